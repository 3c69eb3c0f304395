//! Owns `[mcp.runs]`: how long calls follow their runs, what leaving does to a run, and who decides about paused ones.
//! Does not follow runs (`mcp`).

use std::time::Duration;

use super::reader::{Table, Value};
use crate::mcp::{Decisions, Leaving, RunSettings};

/// Longest wait of one call.
const WAIT_MAX: Duration = Duration::from_hours(1);

pub(super) fn read(mcp: &Table<'_>) -> RunSettings {
    let default = RunSettings::default();
    let Some(table) = mcp.section("runs") else { return default };
    let wait_max = table.get("wait_max").and_then(|v| v.duration(Duration::from_secs(1)..=WAIT_MAX));
    let wait_max = wait_max.unwrap_or(default.wait_max);
    let wait = table.get("wait").and_then(|v| v.duration(Duration::ZERO..=wait_max));
    let by_client = table.section("wait_by_client").map(|section| clients(section, wait_max));
    let leaving = |value: Value<'_>| value.word(&[("cancel", Leaving::Cancel), ("keep", Leaving::Keep)]);
    let decisions =
        table.get("decisions").and_then(|v| v.word(&[("tools", Decisions::Tools), ("humans", Decisions::Humans)]));
    let timeout = Duration::from_secs(10)..=WAIT_MAX;
    let runs = RunSettings {
        wait: wait.unwrap_or(default.wait.min(wait_max)),
        wait_by_client: by_client.unwrap_or(default.wait_by_client),
        wait_max,
        on_cancel: table.get("on_cancel").and_then(leaving).unwrap_or(default.on_cancel),
        on_disconnect: table.get("on_disconnect").and_then(leaving).unwrap_or(default.on_disconnect),
        decisions: decisions.unwrap_or(default.decisions),
        decision_timeout: table
            .get("decision_timeout")
            .and_then(|v| v.duration(timeout))
            .unwrap_or(default.decision_timeout),
        calls_in_flight: table
            .get("calls_in_flight")
            .and_then(|v| v.integer(1..=10_000))
            .map_or(default.calls_in_flight, |count| usize::try_from(count).unwrap_or(usize::MAX)),
    };
    table.close();
    runs
}

/// Waits by the beginning of a client's name, longest name first.
fn clients(section: Table<'_>, wait_max: Duration) -> Vec<(String, Duration)> {
    let entries = section.entries();
    let read = |(name, value): &(super::reader::At<&str>, Value<'_>)| {
        if name.value.is_empty() || name.value.chars().any(|c| c.is_ascii_uppercase()) {
            let help = format!("write `{}`", name.value.to_ascii_lowercase());
            return value.problem("is for a name that no client has: names are compared in small letters", Some(help));
        }
        Some((name.value.to_owned(), value.duration(Duration::ZERO..=wait_max)?))
    };
    let mut waits: Vec<(String, Duration)> = entries.iter().filter_map(read).collect();
    waits.sort_by(|(one, _), (other, _)| other.len().cmp(&one.len()).then_with(|| one.cmp(other)));
    waits
}
