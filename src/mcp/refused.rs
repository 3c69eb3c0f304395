//! Owns how a failure is said where the protocol has no tool result for it: reading resources, prompts, completion.
//! Does not decide what failed.
//! Invariant: what is absent, foreign or hidden is one and the same error.

use rmcp::ErrorData;
use serde_json::json;

use super::ask::Failure;
use super::text;

/// Longest address that an error repeats.
const SHOWN_CHARS_MAX: usize = 200;

/// A failure as an error of the protocol, with its code as data.
pub(super) fn protocol_error(failure: &Failure) -> ErrorData {
    let data = Some(json!({"code": failure.code()}));
    if failure.is_forbidden() || matches!(failure, Failure::Argument(_)) {
        ErrorData::invalid_params(failure.text(), data)
    } else {
        ErrorData::internal_error(failure.text(), data)
    }
}

/// There is no such resource, for this caller.
pub(super) fn absent(uri: &str) -> ErrorData {
    let shown = text::head(&text::line(uri), SHOWN_CHARS_MAX);
    ErrorData::resource_not_found("Resource not found", Some(json!({ "uri": shown })))
}
