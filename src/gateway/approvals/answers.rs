//! Owns what goes upstream when a paused run is continued: the stored calls, with the answers they were waiting for.
//! Does not fetch or send (`approvals`).
//! Invariant: ids, names and arguments of tools are the stored ones; a caller contributes yes or no, values of
//! declared fields and results of tools that run elsewhere, and where an approval decides, never a yes.

use serde_json::{Map, Value, json};

use super::pairing::{pair, requirement_ids, step_ids, tool_ids};
use super::rulings::{Rows, Ruling};
use super::waiting::{Needs, field, has, is, items, step_waits, string};
use crate::agentos::Kind;

/// A continuation ready to be sent.
#[derive(Debug, PartialEq)]
pub(crate) struct Answered {
    /// The stored list with its answers.
    pub(crate) list: Value,
    /// Approvals that decided something.
    pub(crate) approvals: Vec<String>,
}

/// Why a run cannot be continued like this.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// A required approval has not been given.
    Pending,
    /// A required approval was refused, and the tool cannot be told so or the caller says otherwise.
    Rejected,
    /// The caller names a call that the run does not wait for.
    Unknown(String),
    /// The caller's list does not say which of several calls of one id is meant.
    Ambiguous(String),
    /// The caller gives arguments, or a value, that differ from the stored ones.
    Changed(String),
    /// The caller fills in a field that was not asked for.
    Undeclared(String),
    /// Something is still waiting for an answer.
    Unanswered(String),
    /// The caller's list has another shape.
    Malformed(&'static str),
}

/// What a caller says about one call: the call itself, and the requirement around it.
#[derive(Clone, Copy)]
struct Given<'a> {
    call: &'a Value,
    around: &'a Value,
}

/// Everything that answers are made of.
struct Desk<'a> {
    rows: &'a Rows,
    runs: Vec<&'a str>,
    approvals: Vec<String>,
}

/// Answers what a stored run waits for.
///
/// # Errors
/// [`Wrong`] when something is not approved, not answered, or not the caller's to say.
pub(crate) fn answered(kind: Kind, run: &Value, given: &[Value], rows: &Rows) -> Result<Answered, Wrong> {
    let mut list = items(run, field(kind)).to_vec();
    let mut desk = Desk { rows, runs: string(run, "run_id").into_iter().collect(), approvals: Vec::new() };
    match kind {
        Kind::Agent => desk.tools(&mut list, given)?,
        Kind::Team => desk.requirements(&mut list, given)?,
        Kind::Workflow => desk.steps(&mut list, given)?,
    }
    Ok(Answered { list: Value::Array(list), approvals: desk.approvals })
}

// === impl Desk ===

impl<'a> Desk<'a> {
    fn tools(&mut self, list: &mut [Value], given: &[Value]) -> Result<(), Wrong> {
        let places = pair(list, given, tool_ids, |tool| Needs::of(tool).any())?;
        for (tool, place) in list.iter_mut().zip(places) {
            let given = place.and_then(|at| given.get(at)).map(|call| Given { call, around: &Value::Null });
            self.tool(tool, given, &[])?;
        }
        Ok(())
    }

    fn requirements(&mut self, list: &mut [Value], given: &[Value]) -> Result<(), Wrong> {
        let open = |item: &Value| item.get("tool_execution").is_some_and(|call| Needs::of(call).any());
        let places = pair(list, given, requirement_ids, open)?;
        for (requirement, place) in list.iter_mut().zip(places) {
            let given = place.and_then(|at| given.get(at));
            let given =
                given.map(|around| Given { call: around.get("tool_execution").unwrap_or(&Value::Null), around });
            let member = string(requirement, "member_run_id").map(str::to_owned);
            let Some(tool) = requirement.get_mut("tool_execution") else { continue };
            if !Needs::of(tool).any() {
                continue;
            }
            self.tool(tool, given, &member.iter().map(String::as_str).collect::<Vec<_>>())?;
            lift(requirement);
        }
        Ok(())
    }

    fn steps(&mut self, list: &mut [Value], given: &[Value]) -> Result<(), Wrong> {
        let open = |step: &Value| step_waits(step) || !items(step, "executor_requirements").is_empty();
        let places = pair(list, given, step_ids, open)?;
        for (step, place) in list.iter_mut().zip(places) {
            let given = place.and_then(|at| given.get(at));
            let executor = string(step, "executor_run_id").map(str::to_owned);
            if let Some(Value::Array(nested)) = step.get_mut("executor_requirements") {
                let rows = self.rows;
                let runs = self.runs.iter().copied().chain(executor.as_deref()).collect();
                let mut desk = Desk { rows, runs, approvals: Vec::new() };
                desk.requirements(nested, given.map_or(&[], |given| items(given, "executor_requirements")))?;
                self.approvals.append(&mut desk.approvals);
            }
            if step_waits(step) {
                let name = string(step, "step_name").or(string(step, "step_id")).unwrap_or_default().to_owned();
                answer_step(step, given.ok_or_else(|| Wrong::Unanswered(name.clone()))?, &name)?;
            }
        }
        Ok(())
    }

    /// Answers one call.
    fn tool(&mut self, tool: &mut Value, given: Option<Given<'_>>, runs: &[&str]) -> Result<(), Wrong> {
        let needs = Needs::of(tool);
        if !needs.any() {
            return Ok(());
        }
        let name = string(tool, "tool_call_id").unwrap_or_default().to_owned();
        if let Some(given) = given {
            given.same_arguments(tool, needs, &name)?;
        }
        let runs: Vec<&str> = self.runs.iter().copied().chain(runs.iter().copied()).collect();
        match self.rows.ruling(tool, &runs) {
            None => answer_plain(tool, needs, given, &name),
            Some(Ruling::Pending) => Err(Wrong::Pending),
            Some(Ruling::Rejected { id }) => {
                self.approvals.push(id.to_owned());
                // AgentOS runs a rejected tool that waits for input, and cannot tell a result that it should not use.
                if needs.input || needs.result || given.map(|g| g.confirmed()).transpose()?.flatten() == Some(true) {
                    return Err(Wrong::Rejected);
                }
                set(tool, "confirmed", json!(false));
                Ok(())
            }
            Some(Ruling::Approved { id, values }) => {
                self.approvals.push(id.to_owned());
                answer_approved(tool, needs, given, values, &name)
            }
        }
    }
}

// === impl Given ===

impl<'a> Given<'a> {
    fn either(&self, of_call: &str, of_requirement: &str) -> Option<&'a Value> {
        let value = self.call.get(of_call).filter(|value| !value.is_null());
        value.or_else(|| self.around.get(of_requirement).filter(|value| !value.is_null()))
    }

    fn confirmed(&self) -> Result<Option<bool>, Wrong> {
        let value = self.either("confirmed", "confirmation");
        value.map(|v| v.as_bool().ok_or(Wrong::Malformed("`confirmed` must be true or false"))).transpose()
    }

    fn note(&self) -> Result<Option<&'a str>, Wrong> {
        let value = self.either("confirmation_note", "confirmation_note");
        value.map(|v| v.as_str().ok_or(Wrong::Malformed("`confirmation_note` must be a string"))).transpose()
    }

    fn result(&self) -> Result<Option<&'a str>, Wrong> {
        let value = self.either("result", "external_execution_result");
        value.map(|v| v.as_str().ok_or(Wrong::Malformed("`result` must be a string"))).transpose()
    }

    /// Items of a schema, the call's own before the requirement's copy of it.
    fn schema(&self, name: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        let (call, around) = (items(self.call, name), items(self.around, name));
        around.iter().chain(call)
    }

    /// Nobody may believe to have changed a call that then runs as it was stored.
    fn same_arguments(&self, tool: &Value, needs: Needs, name: &str) -> Result<(), Wrong> {
        let stored = |field: &str| tool.get(field).unwrap_or(&Value::Null);
        let given = |field: &str| self.call.get(field).filter(|value| !value.is_null());
        let renamed = given("tool_name").is_some_and(|value| value != stored("tool_name"));
        // Clients that fill in fields may write the values into the arguments as well.
        let changed = !needs.input && given("tool_args").is_some_and(|value| !same(value, stored("tool_args")));
        if renamed || changed { Err(Wrong::Changed(name.to_owned())) } else { Ok(()) }
    }
}

/// Answers a call that only the caller decides.
fn answer_plain(tool: &mut Value, needs: Needs, given: Option<Given<'_>>, name: &str) -> Result<(), Wrong> {
    let unanswered = || Wrong::Unanswered(name.to_owned());
    if needs.confirmation {
        match given.map(|g| g.confirmed()).transpose()?.flatten() {
            Some(confirmed) => set(tool, "confirmed", json!(confirmed)),
            None if has(tool, "confirmed") => {}
            None => return Err(unanswered()),
        }
        if let Some(note) = given.map(|g| g.note()).transpose()?.flatten() {
            set(tool, "confirmation_note", json!(note));
        }
    }
    if needs.input {
        fill(tool, given.ok_or_else(unanswered)?, Prefilled::Open)?;
        set(tool, "answered", json!(true));
    }
    if needs.result {
        let result = given.map(|g| g.result()).transpose()?.flatten().ok_or_else(unanswered)?;
        set(tool, "result", json!(result));
    }
    Ok(())
}

/// Answers a call that somebody approved. The caller may still say no.
fn answer_approved(
    tool: &mut Value,
    needs: Needs,
    given: Option<Given<'_>>,
    values: Option<&Map<String, Value>>,
    name: &str,
) -> Result<(), Wrong> {
    let unanswered = || Wrong::Unanswered(name.to_owned());
    if needs.confirmation {
        let refused = given.map(|g| g.confirmed()).transpose()?.flatten() == Some(false);
        set(tool, "confirmed", json!(!refused));
    }
    if needs.input {
        if let Some(given) = given {
            fill(tool, given, Prefilled::Fixed)?;
        }
        let fields = tool.get_mut("user_input_schema").and_then(Value::as_array_mut);
        let mut complete = given.is_some();
        if let Some(fields) = fields {
            for field in fields.iter_mut() {
                let value = string(field, "name").and_then(|name| values?.get(name)).cloned();
                if let Some(value) = value {
                    set(field, "value", value);
                }
            }
            complete |= !fields.is_empty() && fields.iter().all(|field| has(field, "value"));
        }
        if !complete {
            return Err(unanswered());
        }
        set(tool, "answered", json!(true));
    }
    if needs.result {
        let approved = values.and_then(|values| values.get("result")).and_then(Value::as_str);
        let given = given.map(|g| g.result()).transpose()?.flatten();
        set(tool, "result", json!(approved.or(given).ok_or_else(unanswered)?));
    }
    Ok(())
}

/// Whether a field that the model has filled in may be filled in anew.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Prefilled {
    Open,
    /// Somebody has approved what stands there.
    Fixed,
}

/// Writes the caller's values into declared fields, and selections into the questions that were asked.
fn fill(tool: &mut Value, given: Given<'_>, prefilled: Prefilled) -> Result<(), Wrong> {
    for field in given.schema("user_input_schema") {
        let name = string(field, "name").ok_or(Wrong::Malformed("each field needs its `name`"))?;
        let declared = tool.get_mut("user_input_schema").and_then(Value::as_array_mut);
        let declared = declared.and_then(|fields| fields.iter_mut().find(|known| string(known, "name") == Some(name)));
        let declared = declared.ok_or_else(|| Wrong::Undeclared(name.to_owned()))?;
        let Some(value) = field.get("value").filter(|value| !value.is_null()) else { continue };
        let stands = declared.get("value").filter(|stands| !stands.is_null());
        match stands.filter(|_| prefilled == Prefilled::Fixed) {
            Some(stands) if !same(stands, value) => return Err(Wrong::Changed(name.to_owned())),
            // As it was approved: what is the same may be spelled otherwise, or rounded.
            Some(_) => {}
            None => set(declared, "value", value.clone()),
        }
    }
    for question in given.schema("user_feedback_schema") {
        let text = string(question, "question").ok_or(Wrong::Malformed("each question needs its `question`"))?;
        let asked = tool.get_mut("user_feedback_schema").and_then(Value::as_array_mut);
        let asked = asked.and_then(|all| all.iter_mut().find(|known| string(known, "question") == Some(text)));
        let asked = asked.ok_or_else(|| Wrong::Undeclared(text.to_owned()))?;
        let Some(selected) = question.get("selected_options").filter(|selected| !selected.is_null()) else { continue };
        set(asked, "selected_options", strings(selected, "`selected_options` must be a list of strings")?);
    }
    Ok(())
}

/// Copies a call's answers to the requirement around it, where AgentOS looks as well.
fn lift(requirement: &mut Value) {
    let Some(call) = requirement.get("tool_execution") else { return };
    let external = is(call, "external_execution_required");
    let names = [
        ("confirmed", "confirmation"),
        ("confirmation_note", "confirmation_note"),
        ("user_input_schema", "user_input_schema"),
        ("user_feedback_schema", "user_feedback_schema"),
        ("result", "external_execution_result"),
    ];
    let answers: Vec<(&str, Value)> = names
        .into_iter()
        .filter(|(of_call, _)| *of_call != "result" || external)
        .filter_map(|(of_call, name)| Some((name, call.get(of_call).filter(|value| !value.is_null())?.clone())))
        .collect();
    for (name, value) in answers {
        set(requirement, name, value);
    }
}

/// Answers what a step of a workflow asks by itself.
fn answer_step(step: &mut Value, given: &Value, name: &str) -> Result<(), Wrong> {
    let unanswered = || Wrong::Unanswered(name.to_owned());
    let confirmed = given.get("confirmed").filter(|value| !value.is_null());
    let confirmed = confirmed.map(|v| v.as_bool().ok_or(Wrong::Malformed("`confirmed` must be true or false")));
    let confirmed = confirmed.transpose()?;
    match confirmed {
        Some(confirmed) => set(step, "confirmed", json!(confirmed)),
        None if is(step, "requires_confirmation") || is(step, "requires_output_review") => return Err(unanswered()),
        None => {}
    }
    if let Some(feedback) = string(given, "rejection_feedback") {
        set(step, "rejection_feedback", json!(feedback));
    }
    if is(step, "requires_output_review")
        && let Some(edited) = given.get("edited_output").filter(|edited| !edited.is_null())
    {
        set(step, "edited_output", edited.clone());
    }
    // A step that was refused asks for nothing more.
    if confirmed == Some(false) {
        return Ok(());
    }
    if is(step, "requires_user_input") {
        answer_step_input(step, given, name)?;
    }
    if is(step, "requires_route_selection") {
        let chosen = given.get("selected_choices").filter(|chosen| !chosen.is_null()).ok_or_else(unanswered)?;
        let chosen = strings(chosen, "`selected_choices` must be a list of strings")?;
        let offered = items(step, "available_choices");
        let other = chosen.as_array().into_iter().flatten().find(|choice| !offered.contains(choice));
        if let Some(other) = other.and_then(Value::as_str) {
            return Err(Wrong::Undeclared(other.to_owned()));
        }
        set(step, "selected_choices", chosen);
    }
    Ok(())
}

fn answer_step_input(step: &mut Value, given: &Value, name: &str) -> Result<(), Wrong> {
    let mut values = match given.get("user_input") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(values)) => values.clone(),
        Some(_) => return Err(Wrong::Malformed("`user_input` must be an object")),
    };
    for field in items(given, "user_input_schema") {
        if let (Some(name), Some(value)) = (string(field, "name"), field.get("value").filter(|value| !value.is_null()))
        {
            values.entry(name).or_insert_with(|| value.clone());
        }
    }
    if values.is_empty() {
        return Err(Wrong::Unanswered(name.to_owned()));
    }
    if let Some(Value::Array(fields)) = step.get_mut("user_input_schema") {
        for (name, value) in &values {
            let declared = fields.iter_mut().find(|field| string(field, "name") == Some(name));
            set(declared.ok_or_else(|| Wrong::Undeclared(name.clone()))?, "value", value.clone());
        }
    }
    set(step, "user_input", Value::Object(values));
    Ok(())
}

/// Equal as JSON, where a number may have been written in another way: clients in JavaScript write 1.0 as 1.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len() && one.iter().all(|(name, value)| other.get(name).is_some_and(|o| same(value, o)))
        }
        (one, other) => one == other,
    }
}

fn strings(value: &Value, otherwise: &'static str) -> Result<Value, Wrong> {
    let all = value.as_array().is_some_and(|items| items.iter().all(Value::is_string));
    if all { Ok(value.clone()) } else { Err(Wrong::Malformed(otherwise)) }
}

fn set(object: &mut Value, name: &str, value: Value) {
    if let Value::Object(fields) = object {
        fields.insert(name.to_owned(), value);
    }
}
