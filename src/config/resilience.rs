//! Owns what a cluster says about failure: endpoints found by name, ejection, retries, and what streams do.
//! Does not ask name servers.
//! Invariant: whatever is written, attempts, retries, waits and the share of endpoints that are taken out are bounded.

use std::time::Duration;

use crate::agentos::{Catalog, Cost};
use crate::cluster::{Dns, Ejection, OnDisconnect, Retries, Streams};
use crate::outbound::ServerName;

use super::reader::{Table, Value};
use super::words::nearest;

/// The key of `on_disconnect` for operations that have no rule of their own.
const DEFAULT: &str = "default";

/// `dns` and `[clusters.resolver]`.
pub(super) fn dns(cluster: &Table<'_>) -> Option<Dns> {
    let written = cluster.get("dns");
    let section = cluster.section("resolver");
    let (mut interval, mut timeout, mut server) = (Duration::from_secs(10), Duration::from_secs(2), None);
    if let Some(table) = section {
        let time = |key: &'static str, high: Duration| {
            table.get(key).and_then(|v: Value<'_>| v.duration(Duration::from_millis(100)..=high))
        };
        interval = time("interval", Duration::from_hours(1)).unwrap_or(interval);
        timeout = time("timeout", Duration::from_secs(30)).unwrap_or(timeout);
        server = table.get("server").and_then(|v| match v.text() {
            Some("system") => None,
            Some(_) | None => v.address(),
        });
        if written.is_none() {
            let help = Some("write `dns = \"agentos.internal:7777\"`, or leave the section out".to_owned());
            table.source.problem(table.at, format!("{} has nothing to look up", table.label()), help);
        }
        table.close();
    }
    let value = written?;
    let text = value.string("a name such as `\"agentos.internal:7777\"` or `\"_agentos._tcp.internal\"`")?;
    match text.parse::<ServerName>() {
        Ok(name) => Some(Dns { name, interval, timeout, server }),
        Err(bad) => value.problem(format!("is `{text}`: {bad}"), None),
    }
}

/// `[clusters.ejection]`.
pub(super) fn ejection(cluster: &Table<'_>) -> Ejection {
    let default = Ejection::default();
    let Some(table) = cluster.section("ejection") else { return default };
    let time = |key: &'static str, low: Duration, default: Duration| {
        table.get(key).and_then(|v: Value<'_>| v.duration(low..=Duration::from_hours(1))).unwrap_or(default)
    };
    let ejection = Ejection {
        failures: match table.get("failures") {
            None => default.failures,
            Some(v) if v.text().is_some() => v.word(&[("off", None)]).flatten(),
            Some(v) => v.integer(1..=1_000).and_then(|n| u32::try_from(n).ok()),
        },
        time: time("time", Duration::from_millis(100), default.time),
        time_max: time("time_max", Duration::from_millis(100), default.time_max),
        share_max: percent(&table, "share_max_percent", 0).unwrap_or(default.share_max),
        slow_start: time("slow_start", Duration::ZERO, default.slow_start),
    };
    if ejection.time > ejection.time_max {
        let help = Some("`time` is the first one, `time_max` the longest".to_owned());
        table.source.problem(table.at, format!("`time` in {} is longer than `time_max`", table.label()), help);
    }
    table.close();
    ejection
}

/// `[clusters.retries]`.
pub(super) fn retries(cluster: &Table<'_>) -> Retries {
    let default = Retries::default();
    let Some(table) = cluster.section("retries") else { return default };
    let count = |key: &'static str, low: u64, high: u64| {
        table.get(key).and_then(|v: Value<'_>| v.integer(low..=high)).and_then(|n| u32::try_from(n).ok())
    };
    let retries = Retries {
        attempts: count("attempts", 1, 10).unwrap_or(default.attempts),
        budget_percent: percent(&table, "budget_percent", 0).unwrap_or(default.budget_percent),
        reserve: count("reserve", 0, 10_000).unwrap_or(default.reserve),
        backoff: table
            .get("backoff")
            .and_then(|v| v.duration(Duration::ZERO..=Duration::from_secs(10)))
            .unwrap_or(default.backoff),
    };
    table.close();
    retries
}

fn percent(table: &Table<'_>, key: &'static str, low: u64) -> Option<u8> {
    table.get(key).and_then(|v: Value<'_>| v.integer(low..=100)).and_then(|n| u8::try_from(n).ok())
}

/// `[clusters.streams]` and `[clusters.on_disconnect]`.
pub(super) fn streams(cluster: &Table<'_>, catalog: Option<&Catalog>) -> Streams {
    let mut streams = Streams::default();
    if let Some(table) = cluster.section("streams") {
        let range = Duration::from_secs(1)..=Duration::from_mins(10);
        streams.keep_alive = table.get("keep_alive").and_then(|v| v.duration(range)).unwrap_or(streams.keep_alive);
        table.close();
    }
    for (operation, value) in cluster.section("on_disconnect").map(|table| table.entries()).unwrap_or_default() {
        let words = [
            ("as_agentos", OnDisconnect::AsAgentOs),
            ("cancel", OnDisconnect::Cancel),
            ("detach", OnDisconnect::Detach),
        ];
        let Some(what) = value.word(&words) else { continue };
        let runs = |id: &str| catalog.is_none_or(|c| c.get(id).is_some_and(|row| row.cost == Cost::Model));
        if operation.value == DEFAULT {
            streams.on_disconnect = what;
        } else if runs(operation.value) {
            streams.on_disconnect_of.insert(operation.value.to_owned(), what);
        } else {
            let rows = catalog.into_iter().flat_map(|c| c.rows()).filter(|row| row.cost == Cost::Model);
            let help = nearest(operation.value, rows.map(|row| row.id));
            let help = help.unwrap_or_else(|| "list the operations with `tollbridge operations`".to_owned());
            value.problem::<()>("is no operation that runs a model", Some(help));
        }
    }
    streams
}
