//! Owns asking a person over a session: one form after the other, in the stream of the call that is waiting.
//! Does not serve the stateless revision, where a server asks nothing by itself.
//! Invariant: every question has a deadline, and progress goes on while it is open.

use rmcp::RoleServer;
use rmcp::model::ElicitRequestParams;
use rmcp::service::Peer;
use tokio::time::{Duration, sleep_until};

use super::questions::{Decided, Questions, Said};
use crate::mcp::progress::Progress;
use crate::mcp::visit::Visit;

/// What came of asking.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Everything is answered.
    Decided(Decided),
    /// The person left it as it is.
    Left,
    /// Nobody answered in time, or not in a way that counts.
    Unanswered,
    /// The client cancelled the call.
    Cancelled,
}

/// Asks all questions of a pause.
///
/// # Cancel safety
/// A question may stay open at the client; its answer goes nowhere.
pub(crate) async fn ask(
    visit: &Visit,
    peer: &Peer<RoleServer>,
    questions: &Questions,
    progress: &mut Progress,
) -> Reply {
    let mut decided = Decided::default();
    let lasts = visit.inner.runs.load().decision_timeout;
    progress.doing(Some("waiting for a decision".to_owned()));
    for question in questions.iter() {
        let Some(params) = question.params() else { return Reply::Unanswered };
        let result = match put(visit, peer, params, lasts, progress).await {
            Ok(result) => result,
            Err(reply) => return reply,
        };
        match question.read(&result) {
            Said::Answered(answer) => question.note(answer, &mut decided),
            Said::Left => return Reply::Left,
            Said::Nothing => return Reply::Unanswered,
        }
    }
    progress.doing(None);
    Reply::Decided(decided)
}

async fn put(
    visit: &Visit,
    peer: &Peer<RoleServer>,
    params: ElicitRequestParams,
    lasts: Duration,
    progress: &mut Progress,
) -> Result<rmcp::model::ElicitResult, Reply> {
    let mut asked = Box::pin(peer.create_elicitation_with_timeout(params, Some(lasts)));
    loop {
        tokio::select! {
            // An error is time that is up, a client that refuses to ask, or one that went away.
            result = &mut asked => return result.map_err(|_| Reply::Unanswered),
            () = visit.ct.cancelled() => return Err(Reply::Cancelled),
            () = sleep_until(progress.due()) => progress.tick().await,
        }
    }
}
