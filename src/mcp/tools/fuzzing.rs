//! Owns what must hold for any tool arguments, for the fuzz targets. Compiled with the feature `fuzzing` only.
//! Does not generate inputs. Invariant: a broken promise is a panic.

use std::time::Duration;

use serde_json::Value;

use super::arguments as args;
use super::schema::{LIMIT_MAX, WAIT_MAX};

/// Reads any JSON as the arguments of every tool, and cleans any text.
///
/// # Panics
/// When a wait or a number of rows is out of its range.
pub fn arguments(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (line, head) = (crate::mcp::text::line(&text), crate::mcp::text::head(&text, 10));
    assert!(!line.chars().any(char::is_control) && head.chars().count() <= 10, "{text:?}");
    let Ok(value) = serde_json::from_slice::<Value>(data) else { return };
    let _ = args::of::<args::ListAgents>(value.clone());
    let _ = args::of::<args::ContinueRun>(value.clone());
    let _ = args::of::<args::ListApprovals>(value.clone());
    let _ = args::of::<args::ResolveApproval>(value.clone());
    let _ = args::of::<args::GetSession>(value.clone());
    if let Ok(found) = args::of::<args::RunAgent>(value.clone()) {
        let wait = args::wait(found.wait_s, Duration::ZERO);
        assert!(wait.is_ok_and(|wait| wait <= Duration::from_secs(WAIT_MAX)) || found.wait_s.is_some());
    }
    if let Ok(found) = args::of::<args::SearchKnowledge>(value) {
        let limit = args::limit(found.limit, 1);
        assert!(limit.is_ok_and(|limit| limit <= LIMIT_MAX) || found.limit.is_some());
    }
}
