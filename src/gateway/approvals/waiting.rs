//! Owns what a paused run waits for, read from the run as AgentOS stored it: tools, and steps of a workflow.
//! Does not answer (`answers`) and does not judge approvals (`rulings`).
//! Invariant: a tool that has run, or was rejected, waits for nothing.

use serde_json::{Value, json};

use super::claims::Pause;
use crate::agentos::Kind;

/// Parts of a stored run whose length grows while it goes on.
const GROWING: [&str; 3] = ["messages", "step_results", "member_responses"];

/// What one tool still needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Needs {
    /// A yes or a no.
    pub(crate) confirmation: bool,
    /// Values, or answers to questions.
    pub(crate) input: bool,
    /// The result of a tool that runs elsewhere.
    pub(crate) result: bool,
}

// === impl Needs ===

impl Needs {
    /// What a tool call still needs. AgentOS takes `requires_confirmation` back once it has dealt with a tool.
    pub(crate) fn of(tool: &Value) -> Self {
        let executed = has(tool, "result");
        Self {
            confirmation: is(tool, "requires_confirmation") && !executed,
            input: is(tool, "requires_user_input") && !is(tool, "answered") && !executed,
            result: is(tool, "external_execution_required") && !executed,
        }
    }

    /// Says whether anything is needed.
    pub(crate) fn any(self) -> bool {
        self.confirmation || self.input || self.result
    }
}

/// The field of `continue`, and of the stored run, that lists what a run waits for.
pub(crate) fn field(kind: Kind) -> &'static str {
    match kind {
        Kind::Agent => "tools",
        Kind::Team => "requirements",
        Kind::Workflow => "step_requirements",
    }
}

/// Says whether a step of a workflow still waits for something of its own, its tools apart.
pub(crate) fn step_waits(step: &Value) -> bool {
    let undecided = !has(step, "confirmed");
    (undecided && (is(step, "requires_confirmation") || is(step, "requires_output_review")))
        || (is(step, "requires_user_input") && !has(step, "user_input"))
        || (is(step, "requires_route_selection") && !has(step, "selected_choices"))
}

/// Every tool call in a list of what a run waits for, each with the runs whose approvals may decide it.
pub(crate) fn tools(kind: Kind, list: &[Value]) -> Vec<(&Value, Vec<&str>)> {
    match kind {
        Kind::Agent => list.iter().map(|tool| (tool, Vec::new())).collect(),
        Kind::Team => list.iter().filter_map(|requirement| of_requirement(requirement, None)).collect(),
        Kind::Workflow => list
            .iter()
            .flat_map(|step| {
                let runs = string(step, "executor_run_id");
                items(step, "executor_requirements").iter().filter_map(move |r| of_requirement(r, runs))
            })
            .collect(),
    }
}

fn of_requirement<'a>(requirement: &'a Value, run: Option<&'a str>) -> Option<(&'a Value, Vec<&'a str>)> {
    let runs = run.into_iter().chain(string(requirement, "member_run_id")).collect();
    Some((requirement.get("tool_execution")?, runs))
}

/// Says whether anything anywhere in a stored run was, or is to be, decided by an approval.
pub(crate) fn mentions_approval(run: &Value) -> bool {
    match run {
        Value::Array(items) => items.iter().any(mentions_approval),
        Value::Object(fields) => needs_approval(run) || fields.values().any(mentions_approval),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

/// Says whether a tool call carries the mark of an approval. `audit` only takes notes afterwards.
pub(crate) fn needs_approval(tool: &Value) -> bool {
    match string(tool, "approval_type") {
        Some("audit") => false,
        Some(_) => true,
        None => string(tool, "approval_id").is_some(),
    }
}

/// Tells this pause of a run from the ones before and after it.
pub(crate) fn pause(kind: Kind, run: &Value) -> Pause {
    let list = items(run, field(kind));
    let waiting = tools(kind, list).into_iter().filter(|(tool, _)| Needs::of(tool).any());
    let tools: Vec<Value> = waiting
        .map(|(tool, _)| json!([tool.get("tool_call_id"), tool.get("tool_name"), tool.get("tool_args")]))
        .collect();
    let steps = list.iter().filter(|step| kind == Kind::Workflow && step_waits(step));
    let steps: Vec<Value> =
        steps.map(|step| json!([step.get("step_id"), step.get("step_index"), step.get("retry_count")])).collect();
    let grown: Vec<usize> = GROWING.iter().map(|name| items(run, name).len()).collect();
    Pause::of(&json!([tools, steps, grown]).to_string())
}

/// The items of a list field; none when it is absent.
pub(crate) fn items<'a>(object: &'a Value, name: &str) -> &'a [Value] {
    object.get(name).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A text field that is there and not empty.
pub(crate) fn string<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// Says whether a field is there and not null.
pub(crate) fn has(object: &Value, name: &str) -> bool {
    object.get(name).is_some_and(|value| !value.is_null())
}

/// Says whether a flag is set.
pub(crate) fn is(object: &Value, name: &str) -> bool {
    object.get(name).and_then(Value::as_bool) == Some(true)
}
