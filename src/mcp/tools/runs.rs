//! Owns the tools that start, read, end and continue runs.
//! Does not read event streams (`run::follow`).
//! Invariant: what a run needs upstream comes from its handle only, never from arguments.

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{CallToolResponse, CallToolResult};
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::agents::resolve;
use super::arguments::{ContinueRun, GetRun, RunAgent, RunOnly, offset, said, wait};
use super::files::{self, File};
use super::pausing;
use crate::agentos::operation::Kind;
use crate::mcp::ask::{Ask, AskBody, Failure};
use crate::mcp::handle::RunHandle;
use crate::mcp::progress::Progress;
use crate::mcp::routes::{self, Deed, pairs};
use crate::mcp::run::follow::{Follow, Followed};
use crate::mcp::run::report::Report;
use crate::mcp::run::view::{RunView, Status};
use crate::mcp::run::waiting::{self, Answers, Need};
use crate::mcp::settings::Decisions;
use crate::mcp::visit::{Visit, id_of};

/// The first polls of a run come this far apart, later ones up to [`POLL_FACTOR_MAX`] times as far: each spends rate.
const POLL: Duration = Duration::from_secs(1);
const POLL_FACTOR_MAX: u32 = 5;

pub(super) async fn run_agent(
    visit: &Visit,
    progress: &mut Progress,
    arguments: RunAgent,
) -> Result<CallToolResponse, Failure> {
    if visit.turn.state.is_some() {
        return pausing::answered(visit, progress).await;
    }
    let files = tokio::select! {
        files = files::read(visit, arguments.files) => files?,
        () = visit.ct.cancelled() => return Err(cancelled()),
    };
    let start = Start {
        files,
        message: said("message", &arguments.message)?.to_owned(),
        session_id: arguments.session_id.map(|id| id_of("session_id", own_part(&id))).transpose()?,
        budget: budget(visit, arguments.wait_s)?,
        background: arguments.background == Some(true),
    };
    let found = tokio::select! {
        found = resolve(visit, &arguments.agent, arguments.kind.map(Kind::from)) => found?,
        () = visit.ct.cancelled() => return Err(cancelled()),
    };
    started(visit, progress, found, &start).await
}

/// What starts a run, whatever the component.
pub(super) struct Start {
    pub(super) message: String,
    pub(super) session_id: Option<String>,
    pub(super) budget: Duration,
    pub(super) background: bool,
    pub(super) files: Vec<File>,
}

/// Starts a run and follows it.
pub(super) async fn started(
    visit: &Visit,
    progress: &mut Progress,
    (cluster, kind, component): (Arc<str>, Kind, String),
    start: &Start,
) -> Result<CallToolResponse, Failure> {
    // Fields that decide come first: the gateway reads a large form only so far before it decides.
    let mut form = vec![("stream", if start.background { "false" } else { "true" })];
    form.extend(start.background.then_some(("background", "true")));
    form.extend(start.session_id.as_deref().map(|id| ("session_id", id)));
    form.push(("message", start.message.as_str()));
    let ids = [component.as_str()];
    let body = match start.files.as_slice() {
        [] => AskBody::Form(pairs(&form)),
        _ if kind == Kind::Workflow => return Err(Failure::Argument("workflows take no `files`".to_owned())),
        several => files::form(&form, several),
    };
    let ask = Ask { body, ..Ask::plain(routes::of(kind, Deed::Start), &cluster, &ids) };
    let (at, budget) = (Instant::now(), start.budget);
    let follow = Follow { visit, progress, cluster: cluster.clone(), kind, component: component.clone(), budget };
    let followed = Box::pin(follow.run(&ask)).await;
    let stood = Stood::of(followed, |view| Follow::handle(kind, &cluster, &component, view))?;
    pausing::conclude(visit, progress, stood, at).await
}

pub(super) async fn get_run(visit: &Visit, progress: Progress, arguments: GetRun) -> Result<CallToolResult, Failure> {
    let handle = visit.run(&arguments.run)?;
    let (budget, offset) = (budget(visit, arguments.wait_s)?, offset(arguments.offset)?);
    let started = Instant::now();
    let mut poll = Poll { visit, handle: &handle, progress, deadline: started + budget };
    let (view, stored) = poll.until_ended().await?;
    let report = report_of(visit, Some(&handle));
    if !stored {
        let text = "AgentOS has not stored this run yet: it is still running, or it was cut off before it was stored. \
            Call get_run again to wait on.";
        return Ok(report.say("running", text));
    }
    Ok(report.part_of(&view, started.elapsed().as_secs(), offset))
}

pub(super) async fn cancel_run(visit: &Visit, arguments: RunOnly) -> Result<CallToolResult, Failure> {
    let handle = visit.run(&arguments.run)?;
    let report = report_of(visit, Some(&handle));
    match cancel(visit, &handle).await {
        Ok(()) => Ok(report.say("cancelled", "The run is cancelled.")),
        Err(Failure::Refused(refused)) if refused.code == "cancel_unconfirmed" => {
            let text = "The cancellation was sent, but the run has not been seen to end. Call get_run to see.";
            Ok(report.say("unknown", text))
        }
        Err(failure) => Err(failure),
    }
}

/// Cancels a run.
///
/// # Errors
/// What the gateway or AgentOS say, `cancel_unconfirmed` among it.
pub(in crate::mcp) async fn cancel(visit: &Visit, handle: &RunHandle) -> Result<(), Failure> {
    let query = [("session_id", handle.session_id.as_str())];
    let ids = [handle.component.as_str(), handle.run_id.as_str()];
    let ask = Ask { query: &query, ..Ask::plain(routes::of(handle.kind, Deed::Cancel), &handle.cluster, &ids) };
    visit.asker.json(&ask).await.map(drop)
}

pub(super) async fn continue_run(
    visit: &Visit,
    progress: &mut Progress,
    arguments: ContinueRun,
) -> Result<CallToolResponse, Failure> {
    if visit.turn.state.is_some() {
        return pausing::answered(visit, progress).await;
    }
    let handle = visit.run(&arguments.run)?;
    let run = tokio::select! {
        run = stored(visit, &handle) => run?,
        () = visit.ct.cancelled() => return Err(cancelled()),
    };
    let (view, at) = (RunView::stored(handle.kind, &run), Instant::now());
    if view.status != Status::Paused {
        return Ok(report_of(visit, Some(&handle)).of(&view, 0).into());
    }
    let answers =
        Answers { confirm: arguments.confirm, inputs: arguments.inputs.unwrap_or_default(), ..Answers::default() };
    let silent = answers.confirm.is_none() && answers.inputs.is_empty();
    let unsaid = view.waiting.iter().find(|w| w.need == Need::Confirmation && w.approval_id.is_none());
    let by_approval = view.waiting.iter().any(|w| w.approval_id.is_some());
    // Whoever says nothing leaves it to the person, where the client can ask one.
    let asks = silent && pausing::can_ask(visit);
    if asks && (unsaid.is_some() || !by_approval) {
        return pausing::conclude(visit, progress, Stood { handle: Some(handle), view }, at).await;
    }
    if let Some(unsaid) = unsaid.filter(|_| answers.confirm.is_none()) {
        let text = format!("`{}` waits for a confirmation: ask the user, then pass `confirm`", unsaid.name);
        return Err(Failure::Argument(text));
    }
    if visit.inner.runs.load().decisions == Decisions::Humans && !silent {
        return Err(Failure::Argument(pausing::HUMANS_ONLY.to_owned()));
    }
    match go_on(visit, progress, &handle, &run, &answers, By::Tool).await {
        Ok(stood) => pausing::conclude(visit, progress, stood, at).await,
        Err(pending) if asks && pending.code() == "approval_pending" => {
            pausing::conclude_or(visit, progress, Stood { handle: Some(handle), view }, at, pending).await
        }
        Err(failure) => Err(failure),
    }
}

/// How long a call follows its run, at most what the operator allows.
pub(super) fn budget(visit: &Visit, asked: Option<f64>) -> Result<Duration, Failure> {
    Ok(wait(asked, visit.client.budget)?.min(visit.inner.runs.load().wait_max))
}

/// Who says that a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Whoever called a tool.
    Tool,
    /// A person, the client claims.
    Person,
}

/// A run as it stands, and its handle once it is known.
pub(super) struct Stood {
    pub(super) handle: Option<RunHandle>,
    pub(super) view: RunView,
}

// === impl Stood ===

impl Stood {
    fn of(followed: Followed, handle_of: impl FnOnce(&RunView) -> Option<RunHandle>) -> Result<Self, Failure> {
        match followed {
            Followed::Stands(view) => Ok(Self { handle: handle_of(&view), view }),
            Followed::NotStarted(failure) => Err(failure),
            Followed::Abandoned => Err(cancelled()),
        }
    }
}

/// Continues a paused run with answers, and follows it.
pub(super) async fn go_on(
    visit: &Visit,
    progress: &mut Progress,
    handle: &RunHandle,
    run: &Value,
    answers: &Answers,
    by: By,
) -> Result<Stood, Failure> {
    let form = form_of(handle, run, answers);
    let ids = [handle.component.as_str(), handle.run_id.as_str()];
    let route = routes::of(handle.kind, Deed::Continue);
    let human = by == By::Person;
    let ask = Ask { body: AskBody::Form(form), human, ..Ask::plain(route, &handle.cluster, &ids) };
    let (cluster, component) = (handle.cluster.clone(), handle.component.clone());
    let follow = Follow { visit, progress, cluster, kind: handle.kind, component, budget: visit.client.budget };
    let followed = Box::pin(follow.run(&ask)).await;
    // AgentOS 3.x may continue in a new run of the same session.
    let handle_of = |view: &RunView| {
        let run_id = view.run_id.clone().unwrap_or_else(|| handle.run_id.clone());
        Some(RunHandle { run_id, ..handle.clone() })
    };
    Stood::of(followed, handle_of)
}

/// The form that continues a run.
pub(in crate::mcp) fn form_of(handle: &RunHandle, run: &Value, answers: &Answers) -> String {
    let (field, list) = waiting::answered(handle.kind, run, answers);
    let list = list.to_string();
    let mut form = vec![("stream", "true"), ("session_id", handle.session_id.as_str())];
    // What approvals decide, the gateway answers from their rows (`gateway::approvals`).
    if waiting::of(run).iter().any(|waiting| waiting.approval_id.is_none()) {
        form.push((field, list.as_str()));
    }
    pairs(&form)
}

/// Polls one run.
struct Poll<'a> {
    visit: &'a Visit,
    handle: &'a RunHandle,
    progress: Progress,
    deadline: Instant,
}

impl Poll<'_> {
    /// The run as it stands when it has ended, or when time is up; and whether it was found at all.
    async fn until_ended(&mut self) -> Result<(RunView, bool), Failure> {
        let mut count = 0_u32;
        loop {
            let mut pause = POLL * (1 + count / 5).min(POLL_FACTOR_MAX);
            count += 1;
            let last = match stored(self.visit, self.handle).await {
                Ok(run) => {
                    let view = RunView::stored(self.handle.kind, &run);
                    if view.ended() {
                        return Ok((view, true));
                    }
                    (view, true)
                }
                // AgentOS 2.x stores a run when it ends.
                Err(failure) if failure.is_not_found() => (RunView::new(self.handle.kind), false),
                Err(Failure::Refused(refused)) if refused.retry_after.is_some() && count > 1 => {
                    pause = Duration::from_secs(refused.retry_after.unwrap_or(1)).max(POLL);
                    (RunView::new(self.handle.kind), true)
                }
                Err(failure) => return Err(failure),
            };
            let next = Instant::now() + pause;
            if next > self.deadline {
                self.sleep_until(self.deadline).await;
                return Ok(last);
            }
            self.sleep_until(next).await;
        }
    }

    async fn sleep_until(&mut self, until: Instant) {
        loop {
            tokio::select! {
                () = sleep_until(until) => return,
                () = sleep_until(self.progress.due()) => self.progress.tick().await,
            }
        }
    }
}

/// The run as AgentOS has stored it.
pub(in crate::mcp) async fn stored(visit: &Visit, handle: &RunHandle) -> Result<Value, Failure> {
    let query = [("session_id", handle.session_id.as_str())];
    let ids = [handle.component.as_str(), handle.run_id.as_str()];
    let ask = Ask { query: &query, ..Ask::plain(routes::of(handle.kind, Deed::Read), &handle.cluster, &ids) };
    visit.asker.json(&ask).await
}

pub(in crate::mcp) fn report_of<'a>(visit: &'a Visit, handle: Option<&'a RunHandle>) -> Report<'a> {
    Report { path: &*visit.inner.path, principal: visit.principal(), handle }
}

pub(super) fn cancelled() -> Failure {
    Failure::Argument("cancelled".to_owned())
}

/// A session id without the cluster that lists write before it: a session lives where its agent does.
fn own_part(id: &str) -> &str {
    id.split_once('/').map_or(id, |(_, id)| id)
}
