//! Owns `[approvals]`: how long an approval lets a run go on. Does not judge approvals (`gateway`).

use std::time::Duration;

use super::reader::Table;
use crate::gateway::ApprovalSettings;

/// Longest time limit.
const VALID_FOR_MAX: Duration = Duration::from_hours(24 * 365);

pub(super) fn read(root: &Table<'_>) -> ApprovalSettings {
    let Some(table) = root.section("approvals") else { return ApprovalSettings::default() };
    let valid_for = table.get("valid_for").and_then(|v| v.duration(Duration::from_secs(1)..=VALID_FOR_MAX));
    table.close();
    ApprovalSettings { valid_for }
}
