//! Owns what a client reads about a run: its text, its media, the run's handle last.
//! Does not ask anything.
//! Invariant: no structured content: clients that get it show the model nothing else.

use rmcp::model::{CallToolResult, ContentBlock};

use super::media;
use super::view::{RunView, Status};
use super::waiting::{Need, Waiting};
use crate::mcp::handle::RunHandle;
use crate::mcp::path::Path;
use crate::mcp::text;
use crate::principal::Principal;

/// Most things that a paused run is shown to wait for.
const WAITING_MAX: usize = 20;

/// Writes results for one caller.
pub(crate) struct Report<'a> {
    pub(crate) path: &'a dyn Path,
    pub(crate) principal: &'a Principal,
    /// The run, when it is known.
    pub(crate) handle: Option<&'a RunHandle>,
}

impl Report<'_> {
    /// The result of a run as it stands; `seconds` is how long it was followed.
    pub(crate) fn of(&self, view: &RunView, seconds: u64) -> CallToolResult {
        self.part_of(view, seconds, 0)
    }

    /// The same, with the answer from a place on.
    pub(crate) fn part_of(&self, view: &RunView, seconds: u64, offset: usize) -> CallToolResult {
        let (word, body, error) = match &view.status {
            Status::Completed => ("completed", self.page(view.answer(), offset), false),
            Status::Running => ("running", still_running(seconds), false),
            Status::Paused => ("paused", paused(view), false),
            Status::Cancelled => ("cancelled", with_answer("The run was cancelled.", view), true),
            Status::Failed(why) => ("failed", format!("The run failed: {}", text::capped(why)), true),
            Status::Broken(why) => ("unknown", with_answer(&broken(why), view), true),
        };
        let mut content = Vec::with_capacity(2);
        if !body.is_empty() {
            content.push(ContentBlock::text(body));
        }
        if offset == 0 {
            content.extend(media::blocks(&view.media, |at| self.address_of(at)));
        }
        content.push(ContentBlock::text(self.trailer(word)));
        if error { CallToolResult::error(content) } else { CallToolResult::success(content) }
    }

    /// A sentence about the run, with its handle.
    pub(crate) fn say(&self, word: &str, sentence: &str) -> CallToolResult {
        CallToolResult::success(vec![ContentBlock::text(sentence), ContentBlock::text(self.trailer(word))])
    }

    /// A part of a long answer, and how to get the next one.
    fn page(&self, answer: &str, offset: usize) -> String {
        let total = || answer.chars().count();
        match text::page(answer, offset) {
            ("", None) if offset > 0 => {
                format!("[the answer has {} characters: there is nothing at {offset}]", total())
            }
            (part, None) => part.to_owned(),
            (part, Some(next)) => {
                let left = total() - next;
                let hint = if self.handle.is_some() { "; call get_run with `offset` " } else { "; next part at " };
                format!("{part}\n[truncated: {left} more characters{hint}{next}]")
            }
        }
    }

    /// Where a medium of the run can be read.
    fn address_of(&self, at: usize) -> Option<String> {
        let handle = self.handle?.seal(self.path, self.principal);
        Some(format!("agno://runs/{handle}/media/{at}"))
    }

    fn trailer(&self, word: &str) -> String {
        match self.handle {
            Some(handle) => {
                let sealed = handle.seal(self.path, self.principal);
                format!("run: {sealed}\nstatus: {word}\nsession_id: {}", handle.session_id)
            }
            None => format!("status: {word}"),
        }
    }
}

fn still_running(seconds: u64) -> String {
    format!("The run is still running after {seconds} s. Call get_run with its `run` handle to wait for the answer.")
}

fn broken(why: &str) -> String {
    format!("The stream of the run broke off ({why}). Call get_run to see what became of it.")
}

fn with_answer(sentence: &str, view: &RunView) -> String {
    match view.answer() {
        "" => sentence.to_owned(),
        answer => format!("{sentence} Its answer so far:\n\n{}", text::capped(answer)),
    }
}

fn paused(view: &RunView) -> String {
    let mut lines = vec!["The run is paused. It waits for:".to_owned()];
    lines.extend(view.waiting.iter().take(WAITING_MAX).map(line));
    if view.waiting.len() > WAITING_MAX {
        lines.push(format!("- and {} more", view.waiting.len() - WAITING_MAX));
    }
    lines.push("Show this to the user and ask for a decision; do not decide yourself.".to_owned());
    lines.extend(next_steps(&view.waiting).into_iter().map(str::to_owned));
    lines.join("\n")
}

fn line(waiting: &Waiting) -> String {
    let Waiting { id, name, detail, approval_id, need, .. } = waiting;
    let what = match (need, approval_id) {
        (Need::Confirmation, Some(approval)) => format!("approval `{approval}`"),
        (Need::Confirmation, None) => "confirmation".to_owned(),
        (Need::Input(fields), _) => format!("input: {}", fields.join(", ")),
        (Need::Result, _) => format!("the result of a tool that you run: input `{id}`"),
    };
    format!("- {name} {detail} ({what})")
}

fn next_steps(waiting: &[Waiting]) -> Vec<&'static str> {
    let any = |test: fn(&Waiting) -> bool| waiting.iter().any(test);
    let mut steps = Vec::new();
    if any(|w| w.approval_id.is_some()) {
        steps.push(
            "Approvals: somebody who may approve calls resolve_approval with the approval_id; then call continue_run.",
        );
    }
    if any(|w| w.need == Need::Confirmation && w.approval_id.is_none()) {
        steps.push("Confirmations: call continue_run with `confirm` true or false.");
    }
    if any(|w| w.need != Need::Confirmation) {
        steps.push("Inputs: call continue_run with `inputs`, an object by the names above.");
    }
    if steps.is_empty() {
        steps.push("Then call continue_run.");
    }
    steps
}
