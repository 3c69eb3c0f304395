//! Owns what is said about a run whose replica is gone: what the database knows, and that this is not all of it.
//! Does not look for the replica (`cluster`).
//! Invariant: an answer made here says `incomplete`, and never ends as if the run had gone on to its end.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::admit::Admitted;
use super::body::Payload;
use super::call::{Answer, AnswerBody};
use super::forward;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage};
use super::strip::UserStripper;
use crate::agentos::{RunStatus, rows};

/// Answers a resume with the stored run: what came after the caller's last event, then how it stands.
///
/// # Errors
/// `not_found` when the database has no such run either: with its replica it is gone. Those of the look-up.
pub(super) async fn resume(gateway: &Gateway, admitted: &Admitted, last: Option<usize>) -> Result<Answer, Refusal> {
    let (Some((kind, component)), Some(run), Some(session)) =
        (admitted.matched.component(), admitted.matched.params.get("run_id"), &admitted.session)
    else {
        return Err(Refusal::new(Code::NoEndpoint, Stage::Forward).because("the replica that held the run is gone"));
    };
    let path = rows::run(kind, component, run, session);
    let row = forward::look_up(gateway, &admitted.cluster, admitted.caller_token.as_deref(), &path).await?;
    let Some(row) = row else {
        let why = "the replica that held the run is gone, and the database does not know it";
        return Err(Refusal::new(Code::NotFound, Stage::Forward).because(why));
    };
    let mut headers: HeaderMap = admitted.answer_headers.clone();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    let told = tell(run, &row, last);
    // Whole at once: nothing of it is held back for what might come.
    let stripper = UserStripper::new(&admitted.cluster, &admitted.principal.tenant);
    Ok(Answer { status: StatusCode::OK, headers, body: AnswerBody::full(stripper.whole(told)), refused: None })
}

/// The last event that the caller has, by its place in the run.
pub(super) fn last_index(admitted: &Admitted) -> Option<usize> {
    let Payload::Form(form) = &admitted.payload else { return None };
    form.text("last_event_index")?.parse().ok()
}

fn tell(run: &str, row: &Value, last: Option<usize>) -> Bytes {
    let status = row.get("status").and_then(Value::as_str).unwrap_or("UNKNOWN");
    let over = RunStatus::of(row).is_some_and(RunStatus::is_idle);
    let events = row.get("events").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let missed = events.get(last.map_or(0, |last| last.saturating_add(1))..).unwrap_or_default();
    let mut text = BytesMut::new();
    let mut say = |name: &str, data: &Value| {
        text.extend_from_slice(format!("event: {name}\ndata: {data}\n\n").as_bytes());
    };
    say(
        "replay",
        &json!({
            "event": "replay",
            "run_id": run,
            "status": status,
            "incomplete": true,
            "total_events": missed.len(),
            "content": row.get("content"),
            "message": "the replica that held the run is gone; this is what the database knows",
        }),
    );
    for event in missed {
        say(event.get("event").and_then(Value::as_str).unwrap_or("message"), event);
    }
    if !over {
        let body = json!({
            "event": "error", "code": Code::UpstreamUnreachable.row().code, "run_id": run, "retry": false,
            "incomplete": true,
        });
        say("error", &body);
    }
    text.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(told: &Bytes) -> Vec<String> {
        let text = String::from_utf8(told.to_vec()).unwrap();
        text.lines().filter_map(|line| line.strip_prefix("event: ").map(str::to_owned)).collect()
    }

    #[test]
    fn what_the_database_knows_is_told_as_incomplete() {
        let row = json!({"status": "RUNNING", "events": [{"event": "RunStarted"}, {"event": "RunContent"}]});
        let told = tell("r", &row, None);
        assert_eq!(names(&told), ["replay", "RunStarted", "RunContent", "error"]);
        assert!(String::from_utf8_lossy(&told).contains("\"incomplete\":true"));
        assert_eq!(names(&tell("r", &row, Some(0))), ["replay", "RunContent", "error"]);
        assert_eq!(names(&tell("r", &row, Some(7))), ["replay", "error"]);
        let row = json!({"status": "COMPLETED", "content": "all of it"});
        assert_eq!(names(&tell("r", &row, None)), ["replay"], "what has ended needs no error");
        assert_eq!(names(&tell("r", &json!({}), None)), ["replay", "error"]);
    }
}
