//! Owns the tools that start, read, end and continue runs.
//! Does not read event streams (`run::follow`).
//! Invariant: what a run needs upstream comes from its handle only, never from arguments.

use std::time::Duration;

use rmcp::model::CallToolResult;
use serde_json::Value;
use tokio::time::{Instant, sleep_until};

use super::agents::resolve;
use super::arguments::{ContinueRun, GetRun, RunAgent, RunOnly, said, wait};
use crate::agentos::operation::Kind;
use crate::mcp::ask::{Ask, AskBody, Failure};
use crate::mcp::handle::RunHandle;
use crate::mcp::progress::Progress;
use crate::mcp::routes::{self, Deed, pairs};
use crate::mcp::run::follow::{Follow, Followed};
use crate::mcp::run::report::Report;
use crate::mcp::run::view::{RunView, Status};
use crate::mcp::run::waiting::{self, Answers, Need};
use crate::mcp::visit::{Visit, id_of};

/// The first polls of a run come this far apart, later ones up to [`POLL_FACTOR_MAX`] times as far: each spends rate.
const POLL: Duration = Duration::from_secs(1);
const POLL_FACTOR_MAX: u32 = 5;

pub(super) async fn run_agent(
    visit: &Visit,
    progress: Progress,
    arguments: RunAgent,
) -> Result<CallToolResult, Failure> {
    let budget = wait(arguments.wait_s, visit.budget)?;
    let message = said("message", &arguments.message)?;
    let session_id = arguments.session_id.map(|id| id_of("session_id", own_part(&id))).transpose()?;
    let found = tokio::select! {
        found = resolve(visit, &arguments.agent, arguments.kind.map(Kind::from)) => found?,
        () = visit.ct.cancelled() => return Err(Failure::Argument("cancelled".to_owned())),
    };
    let (cluster, kind, component) = found;
    let background = arguments.background == Some(true);
    // Fields that decide come first: the gateway reads a large form only so far before it decides.
    let mut form = vec![("stream", if background { "false" } else { "true" })];
    form.extend(background.then_some(("background", "true")));
    form.extend(session_id.as_deref().map(|id| ("session_id", id)));
    form.push(("message", message));
    let ids = [component.as_str()];
    let ask = Ask { body: AskBody::Form(pairs(&form)), ..Ask::plain(routes::of(kind, Deed::Start), &cluster, &ids) };
    let follow = Follow { visit, progress, cluster: cluster.clone(), kind, component: component.clone(), budget };
    let started = Instant::now();
    let followed = Box::pin(follow.run(&ask)).await;
    report(visit, followed, |view| Follow::handle(kind, &cluster, &component, view), started)
}

pub(super) async fn get_run(visit: &Visit, progress: Progress, arguments: GetRun) -> Result<CallToolResult, Failure> {
    let handle = visit.run(&arguments.run)?;
    let budget = wait(arguments.wait_s, visit.budget)?;
    let started = Instant::now();
    let mut poll = Poll { visit, handle: &handle, progress, deadline: started + budget };
    let (view, stored) = poll.until_ended().await?;
    let report = report_of(visit, Some(&handle));
    if !stored {
        let text = "AgentOS has not stored this run yet: it is still running, or it was cut off before it was stored. \
            Call get_run again to wait on.";
        return Ok(report.say("running", text));
    }
    Ok(report.of(&view, started.elapsed().as_secs()))
}

pub(super) async fn cancel_run(visit: &Visit, arguments: RunOnly) -> Result<CallToolResult, Failure> {
    let handle = visit.run(&arguments.run)?;
    let query = [("session_id", handle.session_id.as_str())];
    let ids = [handle.component.as_str(), handle.run_id.as_str()];
    let ask = Ask { query: &query, ..Ask::plain(routes::of(handle.kind, Deed::Cancel), &handle.cluster, &ids) };
    let report = report_of(visit, Some(&handle));
    match visit.asker.json(&ask).await {
        Ok(_) => Ok(report.say("cancelled", "The run is cancelled.")),
        Err(Failure::Refused(refused)) if refused.code == "cancel_unconfirmed" => {
            let text = "The cancellation was sent, but the run has not been seen to end. Call get_run to see.";
            Ok(report.say("unknown", text))
        }
        Err(failure) => Err(failure),
    }
}

pub(super) async fn continue_run(
    visit: &Visit,
    progress: Progress,
    arguments: ContinueRun,
) -> Result<CallToolResult, Failure> {
    let handle = visit.run(&arguments.run)?;
    let prepared = tokio::select! {
        prepared = prepare(visit, &handle, arguments) => prepared?,
        () = visit.ct.cancelled() => return Err(Failure::Argument("cancelled".to_owned())),
    };
    let form = match prepared {
        Prepared::Form(form) => form,
        Prepared::NotPaused(view) => return Ok(report_of(visit, Some(&handle)).of(&view, 0)),
    };
    let ids = [handle.component.as_str(), handle.run_id.as_str()];
    let route = routes::of(handle.kind, Deed::Continue);
    let ask = Ask { body: AskBody::Form(form), ..Ask::plain(route, &handle.cluster, &ids) };
    let (cluster, component) = (handle.cluster.clone(), handle.component.clone());
    let follow = Follow { visit, progress, cluster, kind: handle.kind, component, budget: visit.budget };
    let started = Instant::now();
    let followed = Box::pin(follow.run(&ask)).await;
    // AgentOS 3.x may continue in a new run of the same session.
    let handle_of = |view: &RunView| {
        let run_id = view.run_id.clone().unwrap_or_else(|| handle.run_id.clone());
        Some(RunHandle { run_id, ..handle.clone() })
    };
    report(visit, followed, handle_of, started)
}

/// What `continue_run` found.
enum Prepared {
    /// The form to send.
    Form(String),
    /// There is nothing to continue.
    NotPaused(RunView),
}

async fn prepare(visit: &Visit, handle: &RunHandle, arguments: ContinueRun) -> Result<Prepared, Failure> {
    let run = stored(visit, handle).await?;
    let view = RunView::stored(handle.kind, &run);
    if view.status != Status::Paused {
        return Ok(Prepared::NotPaused(view));
    }
    let answers = Answers { confirm: arguments.confirm, inputs: arguments.inputs.unwrap_or_default() };
    for waiting in &view.waiting {
        if waiting.need == Need::Confirmation && waiting.approval_id.is_none() && answers.confirm.is_none() {
            let text = format!("`{}` waits for a confirmation: ask the user, then pass `confirm`", waiting.name);
            return Err(Failure::Argument(text));
        }
    }
    let (field, list) = waiting::answered(handle.kind, &run, &answers);
    let list = list.to_string();
    let mut form = vec![("stream", "true"), ("session_id", handle.session_id.as_str())];
    // What approvals decide, the gateway answers from their rows (`gateway::approvals`).
    if view.waiting.iter().any(|waiting| waiting.approval_id.is_none()) {
        form.push((field, list.as_str()));
    }
    Ok(Prepared::Form(pairs(&form)))
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

async fn stored(visit: &Visit, handle: &RunHandle) -> Result<Value, Failure> {
    let query = [("session_id", handle.session_id.as_str())];
    let ids = [handle.component.as_str(), handle.run_id.as_str()];
    let ask = Ask { query: &query, ..Ask::plain(routes::of(handle.kind, Deed::Read), &handle.cluster, &ids) };
    visit.asker.json(&ask).await
}

fn report(
    visit: &Visit,
    followed: Followed,
    handle_of: impl FnOnce(&RunView) -> Option<RunHandle>,
    started: Instant,
) -> Result<CallToolResult, Failure> {
    match followed {
        Followed::Stands(view) => {
            let handle = handle_of(&view);
            Ok(report_of(visit, handle.as_ref()).of(&view, started.elapsed().as_secs()))
        }
        Followed::NotStarted(failure) => Err(failure),
        Followed::Abandoned => Err(Failure::Argument("cancelled".to_owned())),
    }
}

fn report_of<'a>(visit: &'a Visit, handle: Option<&'a RunHandle>) -> Report<'a> {
    Report { path: &*visit.inner.path, principal: visit.principal(), handle }
}

/// A session id without the cluster that lists write before it: a session lives where its agent does.
fn own_part(id: &str) -> &str {
    id.split_once('/').map_or(id, |(_, id)| id)
}
