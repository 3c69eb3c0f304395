//! Owns keeping what agents learn about tenants apart where they share a cluster: AgentOS keys some learnings by what
//! they are about alone, and every user's agents read those.
//! Does not check whose a stored learning is (`facts`).
//! Invariant: on a shared cluster a caller makes learnings only that are keyed by its user or by its session.

use serde_json::Value;

use super::body::Payload;
use super::ground::Ground;
use super::refusal::{Code, Refusal, Stage};

/// Learnings that AgentOS keys by user or session.
const OWN: [&str; 3] = ["user_profile", "user_memory", "session_context"];
/// Learnings about things; keyed by the user too in the namespace `user`.
const ABOUT_THINGS: &str = "entity_memory";

/// Refuses to make a learning that the agents of other tenants would read.
///
/// # Errors
/// `forbidden`, with a sentence that says what is possible; `form_malformed` for a body that cannot be read.
pub(super) fn check(ground: &Ground<'_>, payload: &Payload) -> Result<(), Refusal> {
    let (true, Payload::Json(body)) = (ground.operation().id == "create_learning", payload) else { return Ok(()) };
    if ground.cluster.settings.is_exclusive() {
        return Ok(());
    }
    let unreadable = |_| Refusal::new(Code::FormMalformed, Stage::Facts);
    let kind = body.get("learning_type").map_err(unreadable)?;
    let namespace = body.get("namespace").map_err(unreadable)?;
    let own = match (kind.as_ref().and_then(Value::as_str), namespace.as_ref().and_then(Value::as_str)) {
        (Some(ABOUT_THINGS), namespace) => namespace == Some("user"),
        (Some(kind), _) => OWN.contains(&kind),
        (None, _) => false,
    };
    if own {
        return Ok(());
    }
    Err(Refusal::new(Code::Forbidden, Stage::Facts)
        .saying("several tenants use this AgentOS: make learnings of a user or a session, or use the namespace `user`"))
}
