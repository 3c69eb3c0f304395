//! Owns `[plans.*]`, `[prices.*]` and `[quota]`: what a plan grants, what models cost, where use is counted.
//! Does not say who has which plan (`tenants`).
//! Invariant: nothing is unlimited unless the file says `"unlimited"`, token budgets excepted, which warn.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::quota::{self, Exhausted, Limits, Plan, Price, Rate, Unit, WhenLost};

use super::limits;
use super::reader::{At, Table};
use super::words::{nearest, quoted};

/// Requests per minute of a plan that does not say.
const REQUESTS_PER_MINUTE: u64 = 60;
/// Concurrent runs of a plan that does not say.
const CONCURRENT_RUNS: u32 = 4;
/// Longest wait for a slot: callers give up sooner or later.
const QUEUE_MAX: Duration = Duration::from_mins(10);

/// What these sections hold.
pub(super) struct Read {
    pub(super) plans: BTreeMap<String, Plan>,
    pub(super) default_plan: Option<At<String>>,
    pub(super) flood: Option<Rate>,
    pub(super) prices: BTreeMap<String, Price>,
    pub(super) legacy_headers: bool,
    pub(super) store: Store,
}

/// Where use is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    Memory,
    File,
    Redis,
}

pub(super) fn read(root: &Table<'_>) -> Read {
    let prices = prices(root);
    let mut plans = BTreeMap::new();
    if let Some(table) = root.section("plans") {
        for (name, value) in table.entries() {
            let plan = value.table().map(|table| plan(table, name.at, &prices));
            plans.insert(name.value.to_owned(), plan.unwrap_or_else(default_plan));
        }
    }
    let mut read = Read {
        plans,
        default_plan: None,
        flood: Some(Rate { limit: 100, window: Duration::from_secs(1), burst: 200 }),
        prices,
        legacy_headers: false,
        store: Store::Memory,
    };
    quota(root, &mut read);
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

fn plan(table: Table<'_>, at: usize, prices: &BTreeMap<String, Price>) -> Plan {
    let written = limits::read(&table);
    if table.get("tokens").is_none() {
        let message = format!("{} does not limit tokens", table.label());
        let help = "write `tokens = { per_month = 1_000_000 }`, or `tokens = \"unlimited\"`".to_owned();
        table.source.warn(at, message, Some(help));
    }
    let part = |key| table.get(key).map(|value| limits::of_part(&value)).unwrap_or_default();
    let waits = Duration::from_millis(100)..=QUEUE_MAX;
    let plan = Plan {
        limits: limits::whole(written, default_plan().limits),
        user: part("user"),
        component: part("component"),
        components: components(&table),
        tools: parts(&table, "tools", ""),
        queue: table.get("queue").and_then(|v| match v.text() {
            Some("off") => None,
            Some(_) | None => v.duration(waits),
        }),
        weight: table
            .get("weight")
            .and_then(|v| v.integer(1..=1_000))
            .map_or(1, |weight| u32::try_from(weight).unwrap_or(1)),
        exhausted: table
            .get("on_exhausted")
            .and_then(|v| v.word(&[("finish", Exhausted::Finish), ("cut", Exhausted::Cut)]))
            .unwrap_or_default(),
        lost: table
            .get("on_store_lost")
            .and_then(|v| v.word(&[("share", WhenLost::Share), ("open", WhenLost::Open), ("closed", WhenLost::Closed)]))
            .unwrap_or_default(),
    };
    keepable(&table, at, &plan);
    priced(&table, at, &plan, prices);
    table.close();
    plan
}

/// Limits of single agents, teams and workflows, by kind and id.
fn components(table: &Table<'_>) -> BTreeMap<String, Limits> {
    let mut all = parts(table, "agents", "agents/");
    all.append(&mut parts(table, "teams", "teams/"));
    all.append(&mut parts(table, "workflows", "workflows/"));
    all
}

fn parts(table: &Table<'_>, key: &'static str, prefix: &str) -> BTreeMap<String, Limits> {
    let Some(names) = table.section(key) else { return BTreeMap::new() };
    let part = |(name, value): (At<&str>, super::reader::Value<'_>)| {
        (format!("{prefix}{}", name.value), limits::of_part(&value))
    };
    names.entries().into_iter().map(part).collect()
}

/// Reports what `quota` says against the rates of a plan.
fn keepable(table: &Table<'_>, at: usize, plan: &Plan) {
    let plans = BTreeMap::from([(String::new(), plan.clone())]);
    if let Err(error) = (quota::Settings { plans, ..quota::Settings::default() }).check() {
        table.source.problem(at, format!("{} cannot be kept: {}", table.label(), limits::reasons(error)), None);
    }
}

/// Reports a budget of money without prices to count it by.
fn priced(table: &Table<'_>, at: usize, plan: &Plan, prices: &BTreeMap<String, Price>) {
    let parts = plan.components.values().chain(plan.tools.values());
    let mut all = [&plan.limits, &plan.user, &plan.component].into_iter().chain(parts);
    if prices.is_empty() && all.any(|limits| limits.budgets.iter().any(|budget| budget.unit == Unit::Money)) {
        let help = "write `[prices.\"the model\"]` and below it `input = \"2.50\"` and `output = \"10.00\"`".to_owned();
        table.source.problem(at, format!("{} limits money, but no model has a price", table.label()), Some(help));
    }
}

fn default_plan() -> Plan {
    let window = Duration::from_mins(1);
    let requests = vec![Rate { limit: REQUESTS_PER_MINUTE, window, burst: REQUESTS_PER_MINUTE }];
    let limits = Limits { requests, concurrent_runs: Some(CONCURRENT_RUNS), budgets: Vec::new() };
    Plan { limits, ..Plan::default() }
}

/// What a million tokens of each model cost.
fn prices(root: &Table<'_>) -> BTreeMap<String, Price> {
    let mut prices = BTreeMap::new();
    let Some(table) = root.section("prices") else { return prices };
    for (model, value) in table.entries() {
        let Some(table) = value.table() else { continue };
        let input = table.require("input", "\"2.50\"").and_then(|v| limits::millionths(&v));
        let output = table.require("output", "\"10.00\"").and_then(|v| limits::millionths(&v));
        table.close();
        let price = Price { input: input.unwrap_or(0), output: output.unwrap_or(0) };
        prices.insert(model.value.to_owned(), price);
    }
    prices
}

fn quota(root: &Table<'_>, read: &mut Read) {
    let Some(table) = root.section("quota") else { return };
    read.default_plan = table.get("default_plan").and_then(|v| Some(v.at(v.string("the name of a plan")?.to_owned())));
    let stores = [("memory", Store::Memory), ("file", Store::File), ("redis", Store::Redis)];
    if let Some(store) = table.get("store").and_then(|v| v.word(&stores)) {
        read.store = store;
    }
    if let Some(value) = table.get("headers") {
        read.legacy_headers = value.word(&[("standard", false), ("standard_and_x", true)]).unwrap_or_default();
    }
    match table.get("flood") {
        Some(value) if value.text().is_some() => read.flood = value.word(&[("off", None)]).unwrap_or(read.flood),
        Some(value) => read.flood = limits::one_rate(&value).or(read.flood),
        None => {}
    }
    table.close();
}
