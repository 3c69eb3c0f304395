//! Owns how limits are written: rates, concurrent runs, budgets of tokens and money.
//! Does not say whose limits they are (`plans`, `tenants`).
//! Invariant: what was not written is `None`, so that every reader has defaults of its own.

use std::time::Duration;

use crate::quota::{self, Budget, Instead, Limits, Period, Problem, Rate, Unit};

use super::reader::{Table, Value};
use super::words::quoted;

/// The largest count of requests, tokens or millionths: far above use, far below overflow.
const COUNT_MAX: u64 = 1_000_000_000_000;

/// The windows that a rate may have.
const WINDOWS: [(&str, u64); 4] = [("per_second", 1), ("per_minute", 60), ("per_hour", 3_600), ("per_day", 86_400)];
/// The periods that a budget may have.
const PERIODS: [(&str, Period); 4] = [
    ("per_day", Period::Day),
    ("per_month", Period::Month),
    ("per_24_hours", Period::Last24Hours),
    ("per_30_days", Period::Last30Days),
];

/// The limits that a table writes.
pub(super) fn read(table: &Table<'_>) -> Instead {
    Instead {
        requests: table.get("requests").and_then(|v| requests(&v)),
        concurrent_runs: table.get("concurrent_runs").and_then(|v| concurrent_runs(&v)),
        tokens: table.get("tokens").and_then(|v| budgets(&v, Unit::Tokens)),
        money: table.get("money").and_then(|v| budgets(&v, Unit::Money)),
    }
}

/// The limits of a part of a tenant: what is not written is not limited beyond the tenant's own.
pub(super) fn of_part(value: &Value<'_>) -> Limits {
    let Some(table) = value.table() else { return Limits::default() };
    let limits = whole(read(&table), Limits::default());
    if limits.is_empty() {
        let help = "write `requests`, `concurrent_runs`, `tokens` or `money`, or leave the table out".to_owned();
        table.source.warn(value.at, format!("{} limits nothing", table.label()), Some(help));
    }
    table.close();
    limits
}

/// The written limits, and the defaults for the rest.
pub(super) fn whole(written: Instead, default: Limits) -> Limits {
    let budgets = [written.tokens, written.money].into_iter().flatten().flatten();
    Limits {
        requests: written.requests.unwrap_or(default.requests),
        concurrent_runs: written.concurrent_runs.unwrap_or(default.concurrent_runs),
        budgets: budgets.collect(),
    }
}

/// One rate alone.
pub(super) fn one_rate(value: &Value<'_>) -> Option<Rate> {
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

/// What `quota` says against rates, without the place that it knows them by.
pub(super) fn reasons(error: quota::SettingsError) -> String {
    let reason = |problem: &Problem| match problem {
        Problem::RateUnusable { reason, .. } => (*reason).to_owned(),
        Problem::DefaultPlanUnknown { .. } | Problem::TenantPlanUnknown { .. } => problem.to_string(),
    };
    error.problems.iter().map(reason).collect::<Vec<_>>().join(", ")
}

/// A price or a budget of money: a decimal number as text, in millionths.
pub(super) fn millionths(value: &Value<'_>) -> Option<u64> {
    let expected = "an amount of money such as `\"2.50\"`";
    let text = value.string(expected)?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let plain = !whole.is_empty() && digits(whole) && digits(fraction) && fraction.len() <= 6;
    let parse = || {
        let whole: u64 = whole.parse().ok()?;
        let fraction: u64 = format!("{fraction:0<6}").parse().ok()?;
        whole.checked_mul(1_000_000)?.checked_add(fraction).filter(|amount| *amount <= COUNT_MAX)
    };
    match parse().filter(|_| plain) {
        Some(amount) => Some(amount),
        None => {
            let help = "digits, a point, at most six more digits, and at most a million".to_owned();
            value.problem(format!("is `{text}`, which is not {expected}"), Some(help))
        }
    }
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

/// Budgets of one unit, or `"unlimited"`.
fn budgets(value: &Value<'_>, unit: Unit) -> Option<Vec<Budget>> {
    if value.text().is_some() {
        return value.word(&[("unlimited", Vec::new())]);
    }
    if !value.is_table() {
        let example = if unit == Unit::Tokens { "50_000" } else { "\"25.00\"" };
        return value.wrong_type(&format!("a budget such as `{{ per_day = {example} }}`"));
    }
    let table = value.table()?;
    let mut budgets = Vec::new();
    for (key, period) in PERIODS {
        let Some(amount) = table.get(key) else { continue };
        let limit = match unit {
            Unit::Tokens => amount.integer(0..=COUNT_MAX),
            Unit::Money => millionths(&amount),
        };
        budgets.extend(limit.map(|limit| Budget { unit, period, limit }));
    }
    if PERIODS.iter().all(|(key, _)| table.get(key).is_none()) {
        let keys = "write `per_day`, `per_month` (UTC), `per_24_hours` or `per_30_days` (rolling)";
        value.problem::<()>("has no window", Some(keys.to_owned()));
    }
    table.close();
    Some(budgets)
}
