//! Owns the meter of one exchange: reads a run's events or its JSON reply as they pass, and sums the
//! model tokens. Does not charge anybody (`quota`) and never holds the bytes back.
//! Invariants: a model call is counted once; only the run that was asked for can end the record.

use super::node::{Node, find_text};
use super::record::{ModelUsage, UsageRecord};
use super::reply::{Counted, members_usage, run_usage, silent_usage, steps_usage};
use super::words::Word;
use super::{RunSeen, Terminal};
use crate::agentos::{Event, SseEvents};

/// Most runs within one run that are told apart. Further ones are counted by their events alone.
const RUNS_MAX: usize = 256;

/// Most bytes of one event that are read. What counts stands in front, or is cut off by the event's own size.
pub(super) const EVENT_BYTES_MAX: usize = 256 * 1024;

/// Meters one reply.
#[derive(Debug)]
pub struct Meter {
    events: SseEvents,
    tally: Tally,
}

#[derive(Debug, Default)]
struct Tally {
    /// A run that goes on, as it was stored before; empty for others.
    before: Box<str>,
    record: UsageRecord,
    run: Option<RunSeen>,
    runs: Vec<RunCalls>,
}

/// The model calls of one run, the metered one or one within it.
#[derive(Debug)]
struct RunCalls {
    run_id: String,
    model: Option<String>,
    /// Began and have not ended.
    open: u32,
    /// At least one was counted.
    counted: bool,
}

impl Default for Meter {
    fn default() -> Self {
        Self { events: SseEvents::new(EVENT_BYTES_MAX), tally: Tally::default() }
    }
}

impl Meter {
    /// A meter that learns the run from the first event.
    pub fn new() -> Self {
        Self::default()
    }

    /// A meter of a run whose id is known. Needed where the first event may belong to a nested run,
    /// as when a stream is resumed in its middle.
    pub fn following(run_id: &str) -> Self {
        let run = Some(RunSeen { run_id: run_id.to_owned(), session_id: None });
        Self { events: SseEvents::new(EVENT_BYTES_MAX), tally: Tally { run, ..Tally::default() } }
    }

    /// A meter of a run that goes on after a pause. AgentOS's last word reports such a run from its beginning: what the
    /// stored run had used before is not counted again.
    pub fn continuing(stored: Box<str>) -> Self {
        Self { tally: Tally { before: stored, ..Tally::default() }, ..Self::default() }
    }

    /// Reads the next bytes of an event stream, cut anywhere.
    pub fn sse(&mut self, chunk: &[u8]) {
        let Self { events, tally } = self;
        events.push(chunk, &mut |event| tally.event(event));
    }

    /// Reads one event that the caller has parsed, for streams that are not SSE (WebSocket) or are
    /// parsed anyway (MCP). A frame without a name goes by `message`.
    pub fn event(&mut self, event: Event<'_>) {
        self.tally.event(event);
    }

    /// Reads a whole JSON reply.
    pub fn json(&mut self, whole: &[u8]) {
        let reply = std::str::from_utf8(whole).ok().and_then(Node::parse);
        if let Some(reply) = reply {
            self.tally.reply(&reply);
        }
    }

    /// The run that is metered, once it is known.
    pub fn run(&self) -> Option<&RunSeen> {
        self.tally.run.as_ref()
    }

    /// How the run ended; `None` until it is seen to end.
    pub fn terminal(&self) -> Option<Terminal> {
        self.tally.record.terminal
    }

    /// Tokens counted so far.
    pub fn tokens_so_far(&self) -> u64 {
        self.tally.record.tokens()
    }

    /// What was counted so far, by model.
    pub fn models_so_far(&self) -> &[ModelUsage] {
        &self.tally.record.models
    }

    /// Returns what was used. An event that was cut off by the end of the stream is not counted.
    pub fn finish(self) -> UsageRecord {
        let Tally { mut record, runs, .. } = self.tally;
        // What the cancel cut off is reported by nobody.
        let cancelled = record.terminal == Some(Terminal::Cancelled);
        record.incomplete |= cancelled || runs.iter().any(|run| run.open > 0);
        record
    }
}

impl Tally {
    fn event(&mut self, event: Event<'_>) {
        let word = Word::of(event.name);
        if word.is_none() && self.knows_session() {
            return;
        }
        match Node::parse(event.data) {
            Some(node) => {
                let inner = || node.event.text().and_then(|name| Word::of(&name));
                let word = if word == Some(Word::Unnamed) { inner() } else { word };
                self.whole_event(word, &node);
            }
            None if event.oversized => self.cut_event(word, event.data),
            None => {}
        }
    }

    fn knows_session(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.session_id.is_some())
    }

    fn whole_event(&mut self, word: Option<Word>, node: &Node<'_>) {
        let (run_id, session_id) = (node.run_id.text(), node.session_id.text());
        // The events of a step name their workflow's run beside their own.
        self.meet(node.workflow_run_id.text().or_else(|| run_id.clone()), session_id);
        let Some(word) = word else { return };
        let run_id = run_id.unwrap_or_default();
        match word {
            Word::Began => self.note_model(&run_id, node),
            Word::Continued => self.go_on(&run_id),
            Word::ModelStarted => {
                self.note_model(&run_id, node);
                self.change_calls(&run_id, |calls| calls.open = calls.open.saturating_add(1));
            }
            Word::ModelCompleted => self.model_completed(&run_id, node),
            Word::Ended(terminal) => {
                self.count_the_rest(terminal, &run_id, node);
                self.ended(terminal, &run_id);
            }
            Word::Broken => self.end(Terminal::Error),
            Word::Unnamed => {}
        }
    }

    /// An event that was too large to keep: its ids stand in front.
    fn cut_event(&mut self, word: Option<Word>, data: &str) {
        let (run_id, session_id) = (find_text(data, "run_id"), find_text(data, "session_id"));
        self.meet(run_id.map(str::to_owned), session_id.map(str::to_owned));
        if let (Some(Word::Ended(terminal)), Some(run_id)) = (word, run_id) {
            self.ended(terminal, run_id);
        }
    }

    /// Learns the run from the first event that names it, and its session when that comes later.
    fn meet(&mut self, run_id: Option<String>, session_id: Option<String>) {
        match (&mut self.run, run_id) {
            (None, Some(run_id)) => self.run = Some(RunSeen { run_id, session_id }),
            (Some(run), _) if run.session_id.is_none() => run.session_id = session_id,
            _ => {}
        }
    }

    fn model_completed(&mut self, run_id: &str, node: &Node<'_>) {
        self.note_model(run_id, node);
        let mut model = None;
        self.change_calls(run_id, |calls| {
            calls.open = calls.open.saturating_sub(1);
            calls.counted = true;
            model = calls.model.clone();
        });
        let model = node.model.text().or(model);
        self.record.add(model.as_deref(), node.input_tokens.count(), node.output_tokens.count());
    }

    /// Counts what a run's last event reports and no event of its own did: silent models, and the
    /// runs within it when their events are not streamed.
    fn count_the_rest(&mut self, terminal: Terminal, run_id: &str, node: &Node<'_>) {
        let owned = self.owns(run_id);
        let within = owned && self.runs.len() < RUNS_MAX;
        let counted: Counted<'_> = &|id| self.runs.iter().any(|run| run.counted && run.run_id == id);
        let rest = |node: &Node<'_>| {
            let mut rest = UsageRecord::default();
            if terminal == Terminal::Completed {
                rest.merge(&silent_usage(node.metrics));
            }
            if within {
                rest.merge(&members_usage(node, counted));
                rest.merge(&steps_usage(node, counted));
            }
            rest
        };
        let rest = if owned { rest(node).since(&self.before(rest)) } else { rest(node) };
        self.record.merge(&rest);
    }

    /// Sums the run as it was stored before it went on.
    fn before(&self, sum: impl FnOnce(&Node<'_>) -> UsageRecord) -> UsageRecord {
        Node::parse(&self.before).map(|node| sum(&node)).unwrap_or_default()
    }

    fn ended(&mut self, terminal: Terminal, run_id: &str) {
        if terminal == Terminal::Error {
            // The model call failed: nothing is owed for it.
            self.change_calls(run_id, |calls| calls.open = 0);
        }
        if self.owns(run_id) {
            self.end(terminal);
        }
    }

    /// A cancelled run of agno 3.1.10 also says that it completed: the first word stands. A pause is
    /// no such word.
    fn end(&mut self, terminal: Terminal) {
        let ended = self.record.terminal.filter(|earlier| *earlier != Terminal::Paused);
        self.record.terminal = ended.or(Some(terminal));
    }

    fn go_on(&mut self, run_id: &str) {
        if self.owns(run_id) && self.record.terminal == Some(Terminal::Paused) {
            self.record.terminal = None;
        }
    }

    fn owns(&self, run_id: &str) -> bool {
        self.run.as_ref().is_some_and(|run| run.run_id == run_id)
    }

    fn note_model(&mut self, run_id: &str, node: &Node<'_>) {
        if let Some(model) = node.model.text() {
            self.change_calls(run_id, |calls| calls.model = Some(model));
        }
    }

    fn change_calls(&mut self, run_id: &str, change: impl FnOnce(&mut RunCalls)) {
        if let Some(calls) = self.runs.iter_mut().find(|calls| calls.run_id == run_id) {
            change(calls);
        } else if self.runs.len() < RUNS_MAX {
            let mut calls = RunCalls { run_id: run_id.to_owned(), model: None, open: 0, counted: false };
            change(&mut calls);
            self.runs.push(calls);
        }
    }

    fn reply(&mut self, reply: &Node<'_>) {
        self.meet(reply.run_id.text(), reply.session_id.text());
        let sum = |run: &Node<'_>| run_usage(run, &|_| false);
        self.record.merge(&sum(reply).since(&self.before(sum)));
        self.record.terminal = reply.status.text().and_then(|status| Terminal::of_status(&status));
    }
}
