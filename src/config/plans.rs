//! Owns `[plans.*]`, `[quota]` and `[store]`: what a plan grants and where use is counted.
//! Does not say who has which plan (`tenants`).
//! Invariant: nothing is unlimited unless the file says `"unlimited"`, token budgets excepted, which warn.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::quota::{self, Plan, Problem, Rate};

use super::reader::{At, Table, Value};
use super::words::{nearest, quoted};

/// The largest count of requests or tokens: far above use, far below overflow.
const COUNT_MAX: u64 = 1_000_000_000_000;
/// Requests per minute of a plan that does not say.
const REQUESTS_PER_MINUTE: u64 = 60;
/// Concurrent runs of a plan that does not say.
const CONCURRENT_RUNS: u32 = 4;

/// The windows that a rate may have.
const WINDOWS: [(&str, u64); 4] = [("per_second", 1), ("per_minute", 60), ("per_hour", 3_600), ("per_day", 86_400)];

/// What these sections hold.
pub(super) struct Read {
    pub(super) plans: BTreeMap<String, Plan>,
    pub(super) default_plan: Option<At<String>>,
    pub(super) flood: Option<Rate>,
}

pub(super) fn read(root: &Table<'_>) -> Read {
    let mut plans = BTreeMap::new();
    if let Some(table) = root.section("plans") {
        for (name, value) in table.entries() {
            let plan = value.table().map(|table| plan(table, name.at));
            plans.insert(name.value.to_owned(), plan.unwrap_or_else(default_plan));
        }
    }
    store(root);
    let (default, flood) = quota(root);
    let read = Read { plans, default_plan: default, flood };
    if let Some(name) = &read.default_plan {
        read.known(root, name, "`default_plan` in `[quota]`");
    }
    read
}

// === impl Read ===

impl Read {
    /// Reports a plan name that no `[plans.*]` table has.
    pub(super) fn known(&self, root: &Table<'_>, name: &At<String>, label: &str) {
        if self.plans.contains_key(&name.value) {
            return;
        }
        let names = || self.plans.keys().map(String::as_str);
        let help = nearest(&name.value, names()).unwrap_or_else(|| match self.plans.is_empty() {
            true => format!("add a table `[plans.{}]`", name.value),
            false => format!("the plans are {}", quoted(names())),
        });
        root.source.problem(name.at, format!("{label} names the unknown plan `{}`", name.value), Some(help));
    }
}

fn plan(table: Table<'_>, at: usize) -> Plan {
    let default = default_plan();
    let requests = table.get("requests").and_then(|v| requests(&v)).unwrap_or(default.requests);
    let concurrent_runs = match table.get("concurrent_runs") {
        Some(value) => concurrent_runs(&value).unwrap_or(default.concurrent_runs),
        None => default.concurrent_runs,
    };
    let (tokens_per_day, tokens_per_month) = match table.get("tokens") {
        Some(value) => tokens(&value).unwrap_or_default(),
        None => {
            let message = format!("{} does not limit tokens", table.label());
            let help = "write `tokens = { per_month = 1_000_000 }`, or `tokens = \"unlimited\"`".to_owned();
            table.source.warn(at, message, Some(help));
            (None, None)
        }
    };
    let plan = Plan { requests, concurrent_runs, tokens_per_day, tokens_per_month };
    keepable(&table, at, &plan);
    table.close();
    plan
}

/// Reports what `quota` says against the rates of a plan.
fn keepable(table: &Table<'_>, at: usize, plan: &Plan) {
    let plans = BTreeMap::from([(String::new(), plan.clone())]);
    if let Err(error) = (quota::Settings { plans, ..quota::Settings::default() }).check() {
        table.source.problem(at, format!("{} cannot be kept: {}", table.label(), reasons(error)), None);
    }
}

/// What `quota` says against rates, without the place that it knows them by.
fn reasons(error: quota::SettingsError) -> String {
    let reason = |problem: &Problem| match problem {
        Problem::RateUnusable { reason, .. } => (*reason).to_owned(),
        Problem::DefaultPlanUnknown { .. } | Problem::TenantPlanUnknown { .. } => problem.to_string(),
    };
    error.problems.iter().map(reason).collect::<Vec<_>>().join(", ")
}

fn default_plan() -> Plan {
    let window = Duration::from_mins(1);
    let requests = vec![Rate { limit: REQUESTS_PER_MINUTE, window, burst: REQUESTS_PER_MINUTE }];
    Plan { requests, concurrent_runs: Some(CONCURRENT_RUNS), tokens_per_day: None, tokens_per_month: None }
}

/// One rate, a list of rates, or `"unlimited"`.
fn requests(value: &Value<'_>) -> Option<Vec<Rate>> {
    if value.text().is_some() {
        return value.word(&[("unlimited", Vec::new())]);
    }
    let items = if value.is_list() { value.list("a list of rates")? } else { vec![value.clone()] };
    let rates: Vec<Option<Vec<Rate>>> = items.iter().map(rates).collect();
    let rates: Option<Vec<Vec<Rate>>> = rates.into_iter().collect();
    Some(rates?.into_iter().flatten().collect())
}

/// The rates of one table: one per window. A `burst` belongs to the only window of its table.
fn rates(value: &Value<'_>) -> Option<Vec<Rate>> {
    if !value.is_table() {
        return value.wrong_type("a rate such as `{ per_minute = 60, burst = 20 }`");
    }
    let table = value.table()?;
    let burst = table.get("burst").map(|v| (v.integer(1..=COUNT_MAX), v));
    let mut rates = Vec::new();
    for (key, seconds) in WINDOWS {
        let Some(limit) = table.get(key).and_then(|v| v.integer(1..=COUNT_MAX)) else { continue };
        rates.push(Rate { limit, window: Duration::from_secs(seconds), burst: limit });
    }
    let windows = WINDOWS.iter().filter(|(key, _)| table.get(key).is_some()).count();
    table.close();
    if windows == 0 {
        let keys = quoted(WINDOWS.into_iter().map(|(key, _)| key));
        return value.problem("has no window", Some(format!("write at least one of {keys}")));
    }
    let Some((burst, place)) = burst else { return Some(rates) };
    if windows > 1 {
        let help = "write a list: `[{ per_second = 5, burst = 10 }, { per_day = 10_000 }]`".to_owned();
        return place.problem("is ambiguous beside several windows", Some(help));
    }
    let burst = burst?;
    Some(rates.into_iter().map(|rate| Rate { burst, ..rate }).collect())
}

fn concurrent_runs(value: &Value<'_>) -> Option<Option<u32>> {
    match value.text() {
        Some(_) => value.word(&[("unlimited", None)]),
        None => value.integer(0..=1_000_000).map(|count| u32::try_from(count).ok()),
    }
}

/// Tokens per day and per month.
fn tokens(value: &Value<'_>) -> Option<(Option<u64>, Option<u64>)> {
    if value.text().is_some() {
        return value.word(&[("unlimited", (None, None))]);
    }
    if !value.is_table() {
        return value.wrong_type("a budget such as `{ per_day = 50_000 }`");
    }
    let table = value.table()?;
    let budget = |key| table.get(key).and_then(|v: Value<'_>| v.integer(0..=COUNT_MAX));
    let (day, month) = (budget("per_day"), budget("per_month"));
    if table.get("per_day").is_none() && table.get("per_month").is_none() {
        value.problem::<()>("has no window", Some("write `per_day`, `per_month` or both".to_owned()));
    }
    table.close();
    Some((day, month))
}

fn quota(root: &Table<'_>) -> (Option<At<String>>, Option<Rate>) {
    let flood = Rate { limit: 100, window: Duration::from_secs(1), burst: 200 };
    let Some(table) = root.section("quota") else { return (None, Some(flood)) };
    let default = table.get("default_plan").and_then(|v| Some(v.at(v.string("the name of a plan")?.to_owned())));
    if let Some(value) = table.get("store")
        && let Some(word) = value.word(&[("memory", "memory"), ("file", "file"), ("redis", "redis")])
        && word != "memory"
    {
        value
            .problem::<()>(format!("is `{word}`, which this version cannot do"), Some("write `\"memory\"`".to_owned()));
    }
    let flood = match table.get("flood") {
        Some(value) if value.text().is_some() => value.word(&[("off", None)]).flatten(),
        Some(value) => one_rate(&value).or(Some(flood)),
        None => Some(flood),
    };
    table.close();
    (default, flood)
}

fn one_rate(value: &Value<'_>) -> Option<Rate> {
    let mut rates = rates(value)?;
    match rates.len() {
        0 | 1 => {
            let settings = quota::Settings { flood: rates.pop(), ..quota::Settings::default() };
            match settings.check() {
                Ok(()) => settings.flood,
                Err(error) => value.problem(format!("cannot be kept: {}", reasons(error)), None),
            }
        }
        _ => value.problem("has several windows", Some("the flood guard has one".to_owned())),
    }
}

/// `[store]` is part of the contract; nothing in this version uses it.
fn store(root: &Table<'_>) {
    let Some(table) = root.section("store") else { return };
    for key in ["file", "redis"] {
        if let Some(value) = table.get(key) {
            let help = "leave `[store]` out: quotas are counted in memory".to_owned();
            value.problem::<()>("cannot be used by this version", Some(help));
        }
    }
    table.close();
}
