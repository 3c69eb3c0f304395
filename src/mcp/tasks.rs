//! Owns tasks: long runs as clients of the tasks extension follow them, by a handle that is sealed and bound to its
//! caller.
//! Does not keep tasks: how one stands is read from the run that AgentOS has stored, so any instance can say it, also
//! after a restart. Only answers that are still incomplete are kept here.
//! Invariants: a task of another caller is as good as a random string; nothing of this is offered to clients that do not
//! declare the extension or speak an older revision; every step is admitted like any other call.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rmcp::ErrorData;
use rmcp::model::{
    CreateTaskResult, DetailedTask, GetTaskResult, InputResponses, JsonObject, Task, TaskPayload, TaskStatus,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::ask::{Ask, AskBody, Failure, failure};
use super::handle::RunHandle;
use super::path::Path;
use super::pause::{Questions, Said};
use super::routes::{self, Deed};
use super::run::follow;
use super::run::view::{RunView, Status};
use super::tools::pausing::{askable, resolve};
use super::tools::runs::{cancel, form_of, report_of, stored};
use super::visit::Visit;
use crate::principal::Principal;
use crate::telemetry::Timestamp;

const PURPOSE: &str = "mcp task";
const HANDLE_BYTES_MAX: usize = 4_096;
/// How often a client should ask.
const POLL_MS: u64 = 2_000;
/// A run that AgentOS has not stored by then was lost.
const UNSTORED_MAX: Duration = Duration::from_secs(3_600);
/// Incomplete answers that are kept, and for how long.
const PENDING_MAX: usize = 1_024;
const PENDING_LASTS: Duration = Duration::from_secs(600);

/// A run as a task.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TaskHandle {
    run: RunHandle,
    /// Seconds since 1970.
    created: u64,
}

/// Answers on their way to a run.
#[derive(Default)]
pub(super) struct Pending(Mutex<HashMap<String, Entry>>);

struct Entry {
    at: Instant,
    /// The pause that they are for.
    pause: String,
    given: InputResponses,
    /// They were sent: the stored run may not show it yet.
    sent: bool,
}

/// The result of a call whose run goes on.
pub(super) fn created(visit: &Visit, run: &RunHandle) -> CreateTaskResult {
    let handle = TaskHandle { run: run.clone(), created: now() };
    let id = handle.seal(&*visit.inner.path, visit.principal());
    CreateTaskResult::new(handle.task(id, "running"))
}

/// How a task stands.
///
/// # Errors
/// For a task that is not the caller's, and when the gateway or AgentOS cannot say.
pub(super) async fn get(visit: &Visit, id: &str) -> Result<GetTaskResult, ErrorData> {
    let handle = open(visit, id)?;
    let (said, payload) = match stored(visit, &handle.run).await {
        Ok(run) => standing(visit, &handle.run, &run).await,
        // AgentOS 2.x stores a run when it ends.
        Err(failure) if failure.is_not_found() && !handle.is_old() => ("running".to_owned(), TaskPayload::Working),
        Err(failure) if failure.is_not_found() => {
            ("lost".to_owned(), TaskPayload::Failed { error: error_of("the run was cut off before it was stored") })
        }
        Err(failure) => return later_or(&handle, id, failure),
    };
    Ok(GetTaskResult::new(DetailedTask::new(handle.task(id.to_owned(), &said), payload)))
}

/// A client that asks too often is told to wait; everything else is an error.
fn later_or(handle: &TaskHandle, id: &str, failure: Failure) -> Result<GetTaskResult, ErrorData> {
    match &failure {
        Failure::Refused(refused) if refused.retry_after.is_some() => {
            let mut task = handle.task(id.to_owned(), "running");
            task.poll_interval_ms = refused.retry_after.map(|seconds| seconds.max(1).saturating_mul(1_000));
            Ok(GetTaskResult::new(DetailedTask::new(task, TaskPayload::Working)))
        }
        Failure::Refused(_)
        | Failure::Upstream { .. }
        | Failure::Broken(_)
        | Failure::Argument(_)
        | Failure::State(_) => Err(protocol_error(&failure)),
    }
}

async fn standing(visit: &Visit, run: &RunHandle, data: &Value) -> (String, TaskPayload) {
    let view = RunView::stored(run.kind, data);
    match &view.status {
        Status::Running => ("running".to_owned(), TaskPayload::Working),
        Status::Cancelled => ("cancelled".to_owned(), TaskPayload::Cancelled),
        Status::Paused if visit.client.elicits => match askable(visit, run, data).await {
            Some(questions) if visit.inner.pending.was_sent(run, &questions.pause) => {
                ("going on".to_owned(), TaskPayload::Working)
            }
            Some(questions) => {
                let said = "waiting for a decision".to_owned();
                (said, TaskPayload::InputRequired { input_requests: visit.inner.pending.left(run, &questions) })
            }
            None => ("paused".to_owned(), completed(visit, run, &view)),
        },
        Status::Paused | Status::Completed | Status::Failed(_) | Status::Broken(_) => {
            ("done".to_owned(), completed(visit, run, &view))
        }
    }
}

/// What the call would have answered. A pause that this client cannot answer ends its task: the tools go on from there.
fn completed(visit: &Visit, run: &RunHandle, view: &RunView) -> TaskPayload {
    let result = report_of(visit, Some(run)).of(view, 0);
    match serde_json::to_value(result) {
        Ok(Value::Object(result)) => TaskPayload::Completed { result },
        Ok(_) | Err(_) => TaskPayload::Failed { error: error_of("the result cannot be written") },
    }
}

/// Takes answers to what a task asks. Keys that nobody asked for are ignored; the run goes on once all are there.
///
/// # Errors
/// For a task that is not the caller's, and when the gateway or AgentOS refuse what a complete answer says.
pub(super) async fn update(visit: &Visit, id: &str, responses: InputResponses) -> Result<(), ErrorData> {
    let TaskHandle { run, .. } = open(visit, id)?;
    let data = stored(visit, &run).await.map_err(|failure| protocol_error(&failure))?;
    let Some(questions) = askable(visit, &run, &data).await else { return Ok(()) };
    let given = visit.inner.pending.add(&run, &questions, responses);
    let decided = match questions.read(&given) {
        Said::Answered(decided) => decided,
        Said::Nothing => return Ok(()),
        Said::Left => {
            visit.inner.pending.forget(&run);
            return Ok(());
        }
    };
    resolve(visit, &run, &decided).await.map_err(|failure| protocol_error(&failure))?;
    let form = form_of(&run, &data, &decided.answers);
    let ids = [run.component.as_str(), run.run_id.as_str()];
    let route = routes::of(run.kind, Deed::Continue);
    let ask = Ask { body: AskBody::Form(form), human: true, ..Ask::plain(route, &run.cluster, &ids) };
    let answer = visit.asker.serve(&ask).await;
    if answer.refused.is_some() || !answer.status.is_success() {
        visit.inner.pending.forget(&run);
        return Err(protocol_error(&failure(answer).await));
    }
    visit.inner.pending.sent(&run, &questions.pause);
    follow::read_on(&visit.inner.detach, answer.body).await;
    Ok(())
}

/// Cancels the run of a task.
///
/// # Errors
/// For a task that is not the caller's, and what the gateway or AgentOS say.
pub(super) async fn stop(visit: &Visit, id: &str) -> Result<(), ErrorData> {
    let TaskHandle { run, .. } = open(visit, id)?;
    match cancel(visit, &run).await {
        Ok(()) => Ok(()),
        // Cancelling is a wish: the task tells what came of it.
        Err(Failure::Refused(refused)) if refused.code == "cancel_unconfirmed" => Ok(()),
        Err(failure) => Err(protocol_error(&failure)),
    }
}

fn open(visit: &Visit, id: &str) -> Result<TaskHandle, ErrorData> {
    let unknown = || ErrorData::invalid_params("unknown task", None);
    if !visit.client.tasks {
        return Err(unknown());
    }
    TaskHandle::open(&*visit.inner.path, visit.principal(), id).ok_or_else(unknown)
}

fn protocol_error(failure: &Failure) -> ErrorData {
    let code = json!({"code": failure.code()});
    ErrorData::internal_error(failure.text(), Some(code))
}

fn error_of(message: &str) -> JsonObject {
    let error = json!({"code": -32603, "message": message});
    error.as_object().cloned().unwrap_or_default()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |now| now.as_secs())
}

// === impl TaskHandle ===

impl TaskHandle {
    fn seal(&self, path: &dyn Path, principal: &Principal) -> String {
        let sealed = json!({"run": self.run.seal(path, principal), "created": self.created});
        path.seal(PURPOSE, sealed.to_string().as_bytes())
    }

    /// The run's own handle says whose it is.
    fn open(path: &dyn Path, principal: &Principal, text: &str) -> Option<Self> {
        let bytes = (text.len() <= HANDLE_BYTES_MAX).then(|| path.open(PURPOSE, text)).flatten()?;
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        let run = RunHandle::open(path, principal, value.get("run")?.as_str()?).ok()?;
        Some(Self { run, created: value.get("created")?.as_u64()? })
    }

    fn is_old(&self) -> bool {
        now().saturating_sub(self.created) > UNSTORED_MAX.as_secs()
    }

    fn task(&self, id: String, said: &str) -> Task {
        let created = Timestamp(UNIX_EPOCH + Duration::from_secs(self.created)).to_string();
        let updated = Timestamp(SystemTime::now()).to_string();
        Task::new(id, TaskStatus::Working, created, updated).with_status_message(said).with_poll_interval_ms(POLL_MS)
    }
}

// === impl Pending ===

impl Pending {
    /// Adds answers to those that are there, and gives all.
    fn add(&self, run: &RunHandle, questions: &Questions, responses: InputResponses) -> InputResponses {
        let now = Instant::now();
        let mut table = self.0.lock();
        table.retain(|_, entry| now.duration_since(entry.at) < PENDING_LASTS);
        if table.len() >= PENDING_MAX && !table.contains_key(&run.run_id) {
            // Without room an answer counts when it is whole.
            return responses;
        }
        let fresh = || Entry { at: now, pause: questions.pause.clone(), given: InputResponses::new(), sent: false };
        let entry = table.entry(run.run_id.clone()).or_insert_with(fresh);
        if entry.pause != questions.pause {
            *entry = fresh();
        }
        entry.at = now;
        entry.given.extend(responses.into_iter().filter(|(key, _)| questions.asks(key)));
        entry.given.clone()
    }

    /// The questions that are not answered yet.
    fn left(&self, run: &RunHandle, questions: &Questions) -> rmcp::model::InputRequests {
        let table = self.0.lock();
        let given = table.get(&run.run_id).filter(|entry| entry.pause == questions.pause).map(|entry| &entry.given);
        let mut requests = questions.requests();
        requests.retain(|key, _| given.is_none_or(|given| !given.contains_key(key)));
        // Answers that did not do are asked for once more.
        if requests.is_empty() { questions.requests() } else { requests }
    }

    fn was_sent(&self, run: &RunHandle, pause: &str) -> bool {
        self.0.lock().get(&run.run_id).is_some_and(|entry| entry.sent && entry.pause == pause)
    }

    fn sent(&self, run: &RunHandle, pause: &str) {
        let mut table = self.0.lock();
        if let Some(entry) = table.get_mut(&run.run_id).filter(|entry| entry.pause == pause) {
            entry.sent = true;
        }
    }

    fn forget(&self, run: &RunHandle) {
        self.0.lock().remove(&run.run_id);
    }
}
