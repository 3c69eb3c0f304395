//! Owns what happens when a run that a tool follows pauses: a person is asked where the client can ask one, and the run
//! goes on as the person says; everybody else gets the pause and the tools that end it.
//! Does not read forms (`pause`) and does not judge: approvals are resolved, and runs continued, through the gateway.
//! Invariants: nothing is decided without an answer; an approval is asked about only where policy lets the caller
//! resolve it; a ticket counts once.

use std::sync::Arc;

use rmcp::model::{CallToolResponse, CallToolResult, InputRequiredResult};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::runs::{By, Stood, cancelled, go_on, report_of, stored};
use crate::gateway::Once;
use crate::mcp::ask::{Ask, AskBody, Failure};
use crate::mcp::client::Era;
use crate::mcp::handle::RunHandle;
use crate::mcp::pause::{self, Decided, Questions, Reply, Said, Ticket};
use crate::mcp::progress::Progress;
use crate::mcp::routes;
use crate::mcp::run::view::{RunView, Status};
use crate::mcp::tasks;
use crate::mcp::visit::Visit;

/// Most pauses that one call goes through.
const ROUNDS_MAX: usize = 10;
pub(super) const HUMANS_ONLY: &str = "only a person may decide about this run: the operator has set `decisions = \
    \"humans\"`. Use a client that can ask its user (MCP elicitation), or let somebody decide over HTTP";
const LEFT: &str = "The user has left the question open: nothing was decided.";
const UNANSWERED: &str = "Nobody answered the question in time: nothing was decided.";
const USED: &str = "this requestState was used before: call get_run to see what became of the run";
const INVALID: &str = "this requestState is not valid for this call, or too old: call the tool again without it";

/// What came of asking.
enum Asked {
    /// The client cannot ask, or this cannot be asked.
    Not,
    /// The client asks, and calls again with the answer.
    Later(InputRequiredResult),
    /// A person has decided, about this stored run.
    Decided(Box<(Value, Decided)>),
    /// A person was asked and has not decided.
    Open(&'static str),
}

/// Says whether the client can ask its user.
pub(super) fn can_ask(visit: &Visit) -> bool {
    visit.client.elicits
}

/// Ends a call: with the run as it stands, a question to a person, or, after the person's answer, the run as it stands
/// then.
pub(super) async fn conclude(
    visit: &Visit,
    progress: &mut Progress,
    stood: Stood,
    at: Instant,
) -> Result<CallToolResponse, Failure> {
    rounds(visit, progress, stood, at, None).await
}

/// The same, with a failure for a pause that nobody can be asked about.
pub(super) async fn conclude_or(
    visit: &Visit,
    progress: &mut Progress,
    stood: Stood,
    at: Instant,
    otherwise: Failure,
) -> Result<CallToolResponse, Failure> {
    rounds(visit, progress, stood, at, Some(otherwise)).await
}

async fn rounds(
    visit: &Visit,
    progress: &mut Progress,
    mut stood: Stood,
    at: Instant,
    mut otherwise: Option<Failure>,
) -> Result<CallToolResponse, Failure> {
    for _ in 0..ROUNDS_MAX {
        let handle = match &stood.handle {
            Some(handle) if stood.view.status == Status::Paused => handle.clone(),
            Some(_) | None => return finished(visit, stood, at).await,
        };
        match asked(visit, progress, &handle).await? {
            Asked::Not => match otherwise {
                Some(failure) => return Err(failure),
                None => break,
            },
            Asked::Later(questions) => return Ok(questions.into()),
            Asked::Open(why) => return Ok(open(visit, &handle, &stood.view, why).into()),
            Asked::Decided(decided) => {
                let (run, decided) = *decided;
                stood = act(visit, progress, &handle, &run, decided).await?;
                otherwise = None;
            }
        }
    }
    finished(visit, stood, at).await
}

async fn finished(visit: &Visit, stood: Stood, at: Instant) -> Result<CallToolResponse, Failure> {
    let Stood { handle, mut view } = stood;
    // An answer too large for an event is read from the stored run.
    if let (true, Some(handle)) = (view.cut, &handle)
        && let Ok(run) = stored(visit, handle).await
    {
        let whole = RunView::stored(handle.kind, &run);
        if whole.status == view.status {
            view = whole;
        }
    }
    // Where the client follows tasks, a run that goes on is one.
    if let (Status::Running, true, Some(handle)) = (&view.status, visit.client.tasks, &handle) {
        return Ok(tasks::created(visit, handle).into());
    }
    Ok(report_of(visit, handle.as_ref()).of(&view, at.elapsed().as_secs()).into())
}

/// The pause as it stands, after a person was asked in vain.
fn open(visit: &Visit, handle: &RunHandle, view: &RunView, why: &str) -> CallToolResult {
    let mut result = report_of(visit, Some(handle)).of(view, 0);
    result.content.insert(0, rmcp::model::ContentBlock::text(why));
    result
}

/// Asks a person, as far as that can be done.
async fn asked(visit: &Visit, progress: &mut Progress, handle: &RunHandle) -> Result<Asked, Failure> {
    if !can_ask(visit) {
        return Ok(Asked::Not);
    }
    // What is shown is what AgentOS has stored, and will run.
    let Ok(run) = stored(visit, handle).await else { return Ok(Asked::Not) };
    let Some(questions) = askable(visit, handle, &run).await else { return Ok(Asked::Not) };
    match (visit.client.era, &visit.peer) {
        (Era::Stateless, _) => Ok(Asked::Later(later(visit, handle, &questions))),
        (Era::Sessions, peer) => Ok(match pause::ask(visit, peer, &questions, progress).await {
            Reply::Decided(decided) => Asked::Decided(Box::new((run, decided))),
            Reply::Left => Asked::Open(LEFT),
            Reply::Unanswered => Asked::Open(UNANSWERED),
            Reply::Cancelled => return Err(cancelled()),
        }),
    }
}

/// The questions about a stored run; `None` when it is not paused, or some of it is not for this caller to answer.
pub(in crate::mcp) async fn askable(visit: &Visit, handle: &RunHandle, run: &Value) -> Option<Questions> {
    let view = RunView::stored(handle.kind, run);
    if view.status != Status::Paused {
        return None;
    }
    let questions = Questions::of(&view.waiting, &visit.name(&handle.cluster, &handle.component))?;
    if questions.offers_choices() && !visit.client.chooses {
        return None;
    }
    for approval in questions.iter().filter_map(|question| question.approval_id.as_deref()) {
        let ids = [approval];
        let ask = Ask { human: true, ..resolving(handle, &ids, true, None) };
        if !Arc::clone(&visit.inner.path).would(visit.asker.call(&ask)).await {
            return None;
        }
    }
    Some(questions)
}

/// A question that the client answers with another call.
fn later(visit: &Visit, handle: &RunHandle, questions: &Questions) -> InputRequiredResult {
    let ticket = Ticket::new(&visit.turn.tool, &visit.turn.arguments, handle, &questions.pause);
    let state = ticket.seal(&*visit.inner.path, visit.principal(), visit.inner.runs.load().decision_timeout);
    InputRequiredResult::new(Some(questions.requests()), Some(state))
}

/// Takes the answer to an earlier question.
pub(super) async fn answered(visit: &Visit, progress: &mut Progress) -> Result<CallToolResponse, Failure> {
    let at = Instant::now();
    let call = (visit.turn.tool.as_str(), visit.turn.arguments.as_str());
    let state = visit.turn.state.as_deref().unwrap_or_default();
    let ticket = Ticket::open(&*visit.inner.path, visit.principal(), call, state);
    let Ticket { run: handle, pause, number, .. } = ticket.ok_or(Failure::State(INVALID))?;
    let run = tokio::select! {
        run = stored(visit, &handle) => run?,
        () = visit.ct.cancelled() => return Err(cancelled()),
    };
    let view = RunView::stored(handle.kind, &run);
    let questions = askable(visit, &handle, &run).await.filter(|questions| questions.pause == pause);
    let Some(questions) = questions else {
        // The run has gone on without this answer, or waits for something else by now.
        once(visit, &number).await?;
        return Ok(report_of(visit, Some(&handle)).of(&view, 0).into());
    };
    let decided = match questions.read(&visit.turn.responses) {
        Said::Answered(decided) => decided,
        Said::Nothing => return Ok(later(visit, &handle, &questions).into()),
        Said::Left => {
            once(visit, &number).await?;
            return Ok(open(visit, &handle, &view, LEFT).into());
        }
    };
    once(visit, &number).await?;
    let stood = act(visit, progress, &handle, &run, decided).await?;
    conclude(visit, progress, stood, at).await
}

/// Uses a ticket up.
async fn once(visit: &Visit, number: &str) -> Result<(), Failure> {
    let lasts = visit.inner.runs.load().decision_timeout;
    let path = Arc::clone(&visit.inner.path);
    match path.take_once(format!("mcp question {number}"), lasts).await {
        Once::First => Ok(()),
        Once::Taken => Err(Failure::State(USED)),
        Once::Unknown => Err(Failure::Argument(
            "overloaded: nobody can say whether this answer was used before; retry later".to_owned(),
        )),
    }
}

/// Does what a person has decided.
async fn act(
    visit: &Visit,
    progress: &mut Progress,
    handle: &RunHandle,
    run: &Value,
    decided: Decided,
) -> Result<Stood, Failure> {
    resolve(visit, handle, &decided).await?;
    go_on(visit, progress, handle, run, &decided.answers, By::Person).await
}

/// Resolves the approvals that a person has decided.
///
/// # Errors
/// The first refusal; what was resolved before stays resolved.
pub(in crate::mcp) async fn resolve(visit: &Visit, handle: &RunHandle, decided: &Decided) -> Result<(), Failure> {
    for (approval, yes, note) in &decided.approvals {
        let ids = [approval.as_str()];
        let ask = Ask { human: true, ..resolving(handle, &ids, *yes, note.as_deref()) };
        match visit.asker.json(&ask).await {
            Ok(_) => {}
            // Somebody was faster: the guard of `continue` goes by what the row says.
            Err(Failure::Upstream { status: 409, .. }) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(())
}

fn resolving<'a>(handle: &RunHandle, ids: &'a [&'a str], yes: bool, note: Option<&str>) -> Ask<'a> {
    let mut body = json!({"status": if yes { "approved" } else { "rejected" }});
    if let (Value::Object(map), Some(note)) = (&mut body, note) {
        map.insert("resolution_data".to_owned(), json!({"note": note}));
    }
    Ask { body: AskBody::Json(body), ..Ask::plain(routes::RESOLVE, &handle.cluster, ids) }
}
