//! Owns the following of one run: from the request that starts it to its end, its pause, or the end of patience.
//! Does not write results (`report`).
//! Invariants: progress goes out while the run is under way; a client that leaves ends its run or not, as configured; a
//! run that is handed back unfinished keeps being read elsewhere, within a bound.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::header;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until, timeout};

use super::view::{Note, RunView};
use crate::agentos::SseEvents;
use crate::agentos::operation::Kind;
use crate::gateway::{Answer, AnswerBody};
use crate::mcp::Detach;
use crate::mcp::ask::{Ask, Failure, body_json, failure};
use crate::mcp::client::Era;
use crate::mcp::handle::RunHandle;
use crate::mcp::progress::Progress;
use crate::mcp::routes::{self, Deed};
use crate::mcp::settings::Leaving;
use crate::mcp::visit::Visit;

/// Largest event that is read. A terminal event repeats the whole answer of a run.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest reading on of a run that was handed back.
const DRAIN_MAX: Duration = Duration::from_secs(3_600);
/// Longest reading on after a terminal event, before the client gets its result: the stream ends right behind it.
const TAIL_FIRST: Duration = Duration::from_millis(100);
/// The same by somebody else, afterwards.
const TAIL_MAX: Duration = Duration::from_secs(30);
/// The same where nobody else takes it.
const TAIL_WAIT: Duration = Duration::from_secs(2);
/// When nobody would take the stream over, ask again after this.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a cancellation.
const CANCEL_WAIT: Duration = Duration::from_secs(10);

/// Follows one run.
pub(crate) struct Follow<'a> {
    pub(crate) visit: &'a Visit,
    pub(crate) progress: &'a mut Progress,
    pub(crate) cluster: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) component: String,
    /// How long.
    pub(crate) budget: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(crate) enum Followed {
    /// The run stands as it stands: ended, paused, or running on without us.
    Stands(RunView),
    /// There is no run.
    NotStarted(Failure),
    /// The client cancelled.
    Abandoned,
}

/// Why the reading stopped.
enum Stop {
    /// The run is over; its stream may not be.
    Ended,
    /// The stream is over.
    Drained,
    Budget,
    Cancelled,
}

impl Follow<'_> {
    /// Sends the request and follows what it starts.
    ///
    /// # Cancel safety
    /// Dropping the future ends the exchange: AgentOS sees the disconnect.
    pub(crate) async fn run(mut self, ask: &Ask<'_>) -> Followed {
        let Some(answer) = self.head(ask).await else { return Followed::Abandoned };
        if answer.refused.is_some() || !answer.status.is_success() {
            return Followed::NotStarted(failure(answer).await);
        }
        if !is_event_stream(&answer) {
            return match body_json(answer.body).await {
                Ok(run) => Followed::Stands(RunView::stored(self.kind, &run)),
                Err(failure) => Followed::NotStarted(failure),
            };
        }
        self.events(answer.body).await
    }

    /// The handle of the run, once it is known.
    pub(crate) fn handle(kind: Kind, cluster: &Arc<str>, component: &str, view: &RunView) -> Option<RunHandle> {
        Some(RunHandle {
            cluster: Arc::clone(cluster),
            kind,
            component: component.to_owned(),
            session_id: view.session_id.clone()?,
            run_id: view.run_id.clone()?,
        })
    }

    async fn head(&mut self, ask: &Ask<'_>) -> Option<Answer> {
        let mut serve = self.visit.asker.begin(ask);
        loop {
            tokio::select! {
                answer = &mut serve => return Some(answer),
                () = self.visit.ct.cancelled() => {
                    if self.leaving() == Leaving::Keep {
                        self.keep(serve);
                    }
                    return None;
                }
                () = sleep_until(self.progress.due()) => self.progress.tick().await,
            }
        }
    }

    async fn events(mut self, mut body: AnswerBody) -> Followed {
        let mut view = RunView::new(self.kind);
        let mut events = SseEvents::new(EVENT_BYTES_MAX);
        let mut deadline = Instant::now() + self.budget;
        loop {
            match self.read(&mut body, &mut events, &mut view, deadline).await {
                Stop::Ended => {
                    self.finish(body, &view).await;
                    return Followed::Stands(view);
                }
                Stop::Drained => return Followed::Stands(view),
                Stop::Cancelled => {
                    if self.leaving() == Leaving::Keep || !self.cancel(&view).await {
                        // Where nobody takes it the stream is dropped, which ends the run.
                        let _ = hand_over(&self.visit.inner.detach, body, DRAIN_MAX);
                    }
                    return Followed::Abandoned;
                }
                Stop::Budget => match hand_over(&self.visit.inner.detach, body, DRAIN_MAX) {
                    Ok(()) => return Followed::Stands(view),
                    Err(returned) => {
                        body = returned;
                        deadline = Instant::now() + ASK_AGAIN;
                    }
                },
            }
        }
    }

    async fn read(
        &mut self,
        body: &mut AnswerBody,
        events: &mut SseEvents,
        view: &mut RunView,
        deadline: Instant,
    ) -> Stop {
        while !view.ended() {
            // A run can be handed back only by its ids, which the first event brings.
            let known = view.run_id.is_some() && view.session_id.is_some();
            tokio::select! {
                biased;
                () = self.visit.ct.cancelled() => return Stop::Cancelled,
                () = sleep_until(self.progress.due()) => self.progress.tick().await,
                () = sleep_until(deadline), if known => return Stop::Budget,
                frame = body.frame() => match frame {
                    Some(Ok(frame)) => {
                        let Ok(data) = frame.into_data() else { continue };
                        events.push(&data, &mut |event| self.note(view.apply(event)));
                    }
                    // A break without words of the gateway's own looks like an early end.
                    Some(Err(_)) | None => {
                        view.end_of_stream();
                        return Stop::Drained;
                    }
                },
            }
        }
        Stop::Ended
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Silent => {}
            Note::Text(text) => self.progress.say(&text),
            Note::Begins(what) => {
                self.progress.say(&what);
                self.progress.doing(Some(what));
            }
            Note::Ends(what) => {
                self.progress.say(&what);
                self.progress.doing(None);
            }
        }
    }

    /// Reads the rest of a stream whose run is over, so that the exchange settles as complete.
    async fn finish(&mut self, mut body: AnswerBody, view: &RunView) {
        debug_assert!(view.ended(), "a stream is finished after its run");
        if timeout(TAIL_FIRST, rest(&mut body)).await.is_ok() {
            return;
        }
        if let Err(body) = hand_over(&self.visit.inner.detach, body, TAIL_MAX) {
            drain(body, TAIL_WAIT).await;
        }
    }

    /// Tells AgentOS that nobody waits any more; the stream is dropped afterwards. `false` when policy refuses it.
    async fn cancel(&self, view: &RunView) -> bool {
        let Some(handle) = Self::handle(self.kind, &self.cluster, &self.component, view) else { return true };
        let query = [("session_id", handle.session_id.as_str())];
        let ids = [handle.component.as_str(), handle.run_id.as_str()];
        let route = routes::of(handle.kind, Deed::Cancel);
        let ask = Ask { query: &query, ..Ask::plain(route, &handle.cluster, &ids) };
        // Whatever else the answer is, dropping the stream is the second way to say it.
        let said = timeout(CANCEL_WAIT, self.visit.asker.json(&ask)).await;
        !matches!(said, Ok(Err(failure)) if failure.is_forbidden())
    }

    /// What becomes of the run when the client leaves. An older client says so; one of the stateless revision hangs up.
    fn leaving(&self) -> Leaving {
        match self.visit.client.era {
            Era::Stateless => self.visit.inner.runs.load().on_disconnect,
            Era::Sessions => self.visit.inner.runs.load().on_cancel,
        }
    }

    /// Lets a run that has not answered yet go on by itself.
    fn keep(&self, serve: BoxFuture<'static, Answer>) {
        let task = async move {
            if let Ok(answer) = timeout(DRAIN_MAX, serve).await {
                drain(answer.body, DRAIN_MAX).await;
            }
        };
        (self.visit.inner.detach)(Box::pin(task));
    }
}

fn is_event_stream(answer: &Answer) -> bool {
    let content_type = answer.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    content_type.trim_start().to_ascii_lowercase().starts_with("text/event-stream")
}

/// Gives a stream to somebody who reads it to its end; gives it back when nobody takes it.
fn hand_over(detach: &Detach, body: AnswerBody, limit: Duration) -> Result<(), AnswerBody> {
    // A refused task is dropped unseen: the body must not be inside it yet.
    let slot = Arc::new(Mutex::new(Some(body)));
    let theirs = Arc::clone(&slot);
    let task = async move {
        let body = theirs.lock().take();
        if let Some(body) = body {
            drain(body, limit).await;
        }
    };
    if detach(Box::pin(task)) {
        return Ok(());
    }
    let returned = slot.lock().take();
    returned.map_or(Ok(()), Err)
}

/// Lets somebody read a stream to its end; reads a little of it where nobody can.
pub(crate) async fn read_on(detach: &Detach, body: AnswerBody) {
    if let Err(body) = hand_over(detach, body, DRAIN_MAX) {
        drain(body, TAIL_MAX).await;
    }
}

async fn drain(mut body: AnswerBody, limit: Duration) {
    let _ = timeout(limit, rest(&mut body)).await;
}

async fn rest(body: &mut AnswerBody) {
    while let Some(Ok(_)) = body.frame().await {}
}
