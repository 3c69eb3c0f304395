//! Owns what a client is told about one run: built event by event, or from a stored run.
//! Does not read streams (`follow`) and does not write results (`report`).
//! Invariants: only the run's own events end it, never those of members and steps; the first end is the end.

use serde_json::Value;

use super::media::{self, Media};
use super::waiting::{self, Waiting};
use crate::agentos::Event;
use crate::agentos::operation::Kind;
use crate::mcp::text;

/// Longest text that is put together from deltas, in bytes.
const TEXT_BYTES_MAX: usize = 256 * 1024;
/// How much of the text progress looks at.
const TAIL_CHARS: usize = 160;

/// A run as far as it is known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunView {
    kind: Kind,
    /// Known from the first event on.
    pub(crate) run_id: Option<String>,
    /// Known from the first event on.
    pub(crate) session_id: Option<String>,
    /// Where the run stands.
    pub(crate) status: Status,
    /// What a paused run waits for.
    pub(crate) waiting: Vec<Waiting>,
    /// What it made besides text.
    pub(crate) media: Vec<Media>,
    /// The last event was too large to be read: the stored run knows more.
    pub(crate) cut: bool,
    /// The answer as the terminal event or the stored run gives it.
    content: Option<String>,
    /// The answer as its deltas give it.
    text: String,
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    /// Started or about to.
    Running,
    /// Done.
    Completed,
    /// Waits for a decision or for input.
    Paused,
    /// Ended by somebody.
    Cancelled,
    /// Failed; AgentOS says why.
    Failed(String),
    /// The stream broke off: the run may have ended or not.
    Broken(String),
}

/// What an event is worth saying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    /// Nothing.
    Silent,
    /// The answer grows.
    Text(String),
    /// A tool or a step begins.
    Begins(String),
    /// A tool or a step is done.
    Ends(String),
}

// === impl RunView ===

impl RunView {
    /// Nothing is known yet.
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            run_id: None,
            session_id: None,
            status: Status::Running,
            waiting: Vec::new(),
            media: Vec::new(),
            cut: false,
            content: None,
            text: String::new(),
        }
    }

    /// A stored run, as `GET …/runs/{run_id}` and unstreamed runs give it.
    pub(crate) fn stored(kind: Kind, run: &Value) -> Self {
        let mut view = Self::new(kind);
        view.learn_ids(run);
        view.content = content_of(run);
        view.media = media::of(run);
        let word = run.get("status").and_then(Value::as_str).unwrap_or_default().to_ascii_uppercase();
        view.status = match word.as_str() {
            "COMPLETED" => Status::Completed,
            "PAUSED" => Status::Paused,
            "CANCELLED" => Status::Cancelled,
            "ERROR" | "FAILED" => Status::Failed(view.content.take().unwrap_or_default()),
            // PENDING, RUNNING, and words that AgentOS may add: not known to be over.
            _ => Status::Running,
        };
        if view.status == Status::Paused {
            view.waiting = waiting::of(run);
        }
        view
    }

    /// The answer, as far as there is one.
    pub(crate) fn answer(&self) -> &str {
        self.content.as_deref().unwrap_or(&self.text)
    }

    /// Says whether the run is over, or waits for somebody.
    pub(crate) fn ended(&self) -> bool {
        self.status != Status::Running
    }

    /// Takes one event.
    pub(crate) fn apply(&mut self, event: Event<'_>) -> Note {
        // The beginning of an oversized event is no JSON: its name has to do.
        let data: Value = serde_json::from_str(event.data).unwrap_or(Value::Null);
        let inner = data.get("event").and_then(Value::as_str).unwrap_or_default();
        let name = if event.name == "message" { inner } else { event.name };
        if name == "error" {
            self.broken(&data);
            return Note::Silent;
        }
        let word = self.own_word(name, &data);
        match word {
            Some(word) => {
                let note = self.apply_own(word, &data);
                self.cut |= event.oversized && self.ended();
                note
            }
            None => self.apply_any(name, &data),
        }
    }

    /// The stream ended. Without a terminal event that is a break, except where AgentOS 2.x pauses a workflow.
    pub(crate) fn end_of_stream(&mut self) {
        if self.status == Status::Running {
            self.status = if self.waiting.is_empty() {
                Status::Broken("the stream ended before the run did".to_owned())
            } else {
                Status::Paused
            };
        }
    }

    /// The part of an event name after the kind's prefix, when the event is the run's own.
    fn own_word<'a>(&self, name: &'a str, data: &Value) -> Option<&'a str> {
        let word = name.strip_prefix(match self.kind {
            Kind::Agent => "Run",
            Kind::Team => "TeamRun",
            Kind::Workflow => "Workflow",
        })?;
        let id = data.get("run_id").and_then(Value::as_str);
        // Members and steps have run ids of their own. An oversized event comes without data: its name has to do.
        let foreign = matches!((&self.run_id, id), (Some(own), Some(id)) if own != id);
        (!foreign).then_some(word)
    }

    fn apply_own(&mut self, word: &str, data: &Value) -> Note {
        if self.run_id.is_none() {
            self.learn_ids(data);
        }
        match word {
            "Content" => return self.delta(data),
            "Completed" => self.end(Status::Completed, data),
            "Paused" => {
                let listed = waiting::of(data);
                if !listed.is_empty() {
                    self.waiting = listed;
                }
                self.end(Status::Paused, data);
            }
            "Cancelled" => self.end(Status::Cancelled, data),
            "Error" => {
                let why = data.get("content").or_else(|| data.get("error")).and_then(Value::as_str);
                let why = why.unwrap_or("no reason given").to_owned();
                self.end(Status::Failed(why), &Value::Null);
            }
            // Started, Continued, ContentCompleted and what AgentOS may add.
            _ => {}
        }
        Note::Silent
    }

    fn apply_any(&mut self, name: &str, data: &Value) -> Note {
        match name.strip_prefix("Team").unwrap_or(name) {
            "ToolCallStarted" => tool_name(data).map_or(Note::Silent, |tool| Note::Begins(format!("tool {tool}"))),
            "ToolCallCompleted" => tool_name(data).map_or(Note::Silent, |tool| Note::Ends(format!("tool {tool} done"))),
            "ToolCallError" => tool_name(data).map_or(Note::Silent, |tool| Note::Ends(format!("tool {tool} failed"))),
            "StepStarted" => step_name(data).map_or(Note::Silent, |step| Note::Begins(format!("step {step}"))),
            "StepCompleted" => step_name(data).map_or(Note::Silent, |step| Note::Ends(format!("step {step} done"))),
            "StepPaused" | "StepExecutorPaused" | "RouterPaused" | "ConditionPaused" => {
                self.waiting = waiting::of_step(data);
                Note::Silent
            }
            _ => Note::Silent,
        }
    }

    fn end(&mut self, status: Status, data: &Value) {
        // AgentOS 3.x sends RunCompleted after RunCancelled.
        if self.ended() {
            return;
        }
        self.status = status;
        self.content = content_of(data);
        self.media = media::of(data);
    }

    fn broken(&mut self, data: &Value) {
        if self.ended() {
            return;
        }
        if self.run_id.is_none() {
            self.learn_ids(data);
        }
        let field = |name: &str| data.get(name).and_then(Value::as_str);
        let why = field("code").or_else(|| field("error")).unwrap_or("the stream broke off");
        self.status = Status::Broken(why.to_owned());
    }

    fn delta(&mut self, data: &Value) -> Note {
        let Some(delta) = data.get("content").and_then(Value::as_str).filter(|delta| !delta.is_empty()) else {
            return Note::Silent;
        };
        if self.text.len() + delta.len() <= TEXT_BYTES_MAX {
            self.text.push_str(delta);
        }
        let last = self.text.trim_end().rsplit('\n').next().unwrap_or_default();
        Note::Text(text::tail(last, TAIL_CHARS))
    }

    fn learn_ids(&mut self, data: &Value) {
        let field = |name: &str| data.get(name).and_then(Value::as_str).map(str::to_owned);
        self.run_id = self.run_id.take().or_else(|| field("run_id"));
        self.session_id = self.session_id.take().or_else(|| field("session_id"));
    }
}

/// The answer of a terminal event or a stored run: text as it is, anything else as JSON.
fn content_of(data: &Value) -> Option<String> {
    match data.get("content")? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn tool_name(data: &Value) -> Option<String> {
    data.get("tool")?.get("tool_name")?.as_str().map(text::line)
}

fn step_name(data: &Value) -> Option<String> {
    data.get("step_name")?.as_str().map(text::line)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view(kind: Kind, events: &[(&str, Value)]) -> RunView {
        let mut view = RunView::new(kind);
        for (name, data) in events {
            view.apply(Event { name, data: &data.to_string(), oversized: false });
        }
        view.end_of_stream();
        view
    }

    #[test]
    fn the_first_end_is_the_end() {
        let run = |content: Value| json!({"run_id": "r", "session_id": "s", "content": content});
        let cancelled = [
            ("RunStarted", run(Value::Null)),
            ("RunContent", run(json!("half"))),
            ("RunCancelled", json!({"run_id": "r", "reason": "asked to"})),
            ("RunCompleted", run(json!("half"))),
        ];
        let view = view(Kind::Agent, &cancelled);
        assert_eq!((view.status.clone(), view.answer()), (Status::Cancelled, "half"));
    }

    #[test]
    fn a_workflow_of_2_x_pauses_without_an_event_of_its_own() {
        let events = [
            ("WorkflowStarted", json!({"run_id": "w", "session_id": "s"})),
            (
                "StepPaused",
                json!({"run_id": "w", "step_id": "1", "step_name": "Publish", "requires_confirmation": true}),
            ),
        ];
        let view = view(Kind::Workflow, &events);
        assert_eq!((view.status, view.waiting.len()), (Status::Paused, 1));
    }

    #[test]
    fn an_oversized_last_event_leaves_the_text_so_far() {
        let mut view = RunView::new(Kind::Agent);
        let mut apply = |name: &str, data: &str| {
            view.apply(Event { name, data, oversized: false });
        };
        apply("RunStarted", r#"{"run_id":"r","session_id":"s"}"#);
        apply("RunContent", r#"{"run_id":"r","content":"all of it"}"#);
        apply("RunCompleted", "");
        assert_eq!((view.status.clone(), view.answer()), (Status::Completed, "all of it"));
    }

    #[test]
    fn stored_runs_are_read_by_their_status_word() {
        for (word, status) in [
            ("PENDING", Status::Running),
            ("RUNNING", Status::Running),
            ("PAUSED", Status::Paused),
            ("COMPLETED", Status::Completed),
            ("cancelled", Status::Cancelled),
            ("ERROR", Status::Failed("boom".to_owned())),
            ("NEW WORD", Status::Running),
        ] {
            let view = RunView::stored(Kind::Agent, &json!({"status": word, "content": "boom"}));
            assert_eq!(view.status, status, "{word}");
        }
    }
}
