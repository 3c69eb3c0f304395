//! Owns what a paused run waits for: read from the shapes that AgentOS has for it, and answered in the same shapes.
//! Does not decide whether an answer is allowed: the gateway guards `continue`.
//! Invariant: an answer changes decisions and inputs only; tool names and arguments go back as AgentOS stored them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::agentos::operation::Kind;
use crate::mcp::text;

/// Most of the arguments that is shown.
const ARGUMENTS_CHARS_MAX: usize = 600;
const MESSAGE_CHARS_MAX: usize = 300;

/// One thing that a run waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// `tool_call_id`, or the step's id.
    pub(crate) id: String,
    /// Tool or step.
    pub(crate) name: String,
    /// Arguments as JSON, cut; or the step's question.
    pub(crate) detail: String,
    /// The same in full.
    pub(crate) whole: String,
    /// The approval row that decides, if any.
    pub(crate) approval_id: Option<String>,
    /// What is wanted.
    pub(crate) need: Need,
    /// The fields of an input, as they are declared.
    pub(crate) fields: Vec<Field>,
}

/// A field that an input asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    /// A question goes by its text.
    pub(crate) name: String,
    /// A type of Python: `str`, `int`, `float`, `bool` and others.
    pub(crate) of_type: String,
    pub(crate) description: String,
    /// What a question offers.
    pub(crate) choice: Option<Choice>,
}

/// What there is to choose from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Labels, as AgentOS wants them back, and what each means.
    pub(crate) options: Vec<(String, String)>,
    /// Several may be chosen.
    pub(crate) many: bool,
}

/// What would let a run go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Need {
    /// A yes or a no.
    Confirmation,
    /// Values for these fields.
    Input(Vec<String>),
    /// The result of a tool that runs elsewhere.
    Result,
}

/// Answers to what a run waits for.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// For plain confirmations.
    pub(crate) confirm: Option<bool>,
    /// By field name, or by id of the tool call for results.
    pub(crate) inputs: Map<String, Value>,
    /// By id of the tool call or step, before the others.
    pub(crate) each: BTreeMap<String, Answer>,
}

/// The answer to one thing that a run waits for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) confirm: Option<bool>,
    pub(crate) inputs: Map<String, Value>,
}

// === impl Answers ===

impl Answers {
    fn confirm(&self, id: &str) -> Option<bool> {
        self.each.get(id).and_then(|answer| answer.confirm).or(self.confirm)
    }

    fn input(&self, id: &str, name: &str) -> Option<&Value> {
        self.each.get(id).and_then(|answer| answer.inputs.get(name)).or_else(|| self.inputs.get(name))
    }
}

/// Everything that an event or a stored run says it waits for.
pub(crate) fn of(data: &Value) -> Vec<Waiting> {
    let tools = items(data, "tools").filter_map(of_tool);
    let tools: Vec<Waiting> = tools.collect();
    let requirements = items(data, "requirements").filter(|r| r.get("confirmation").is_none_or(Value::is_null));
    let requirements = requirements.filter_map(|r| of_tool(r.get("tool_execution")?));
    let steps = items(data, "step_requirements").flat_map(of_step);
    let mut all = tools;
    // An agent lists the same calls twice: as tools and as requirements.
    for waiting in requirements.chain(steps) {
        if !all.iter().any(|known| known.id == waiting.id) {
            all.push(waiting);
        }
    }
    all
}

/// What a step waits for, from its requirement or its pause event.
pub(crate) fn of_step(step: &Value) -> Vec<Waiting> {
    let nested = items(step, "executor_requirements").filter_map(|r| of_tool(r.get("tool_execution").unwrap_or(r)));
    let mut all: Vec<Waiting> = nested.collect();
    let need = if is(step, "requires_user_input") && !is(step, "user_input") {
        Some(Need::Input(input_names(step)))
    } else if is(step, "requires_confirmation") && step.get("confirmed").is_none_or(Value::is_null) {
        Some(Need::Confirmation)
    } else {
        None
    };
    if let Some(need) = need {
        let question = string(step, "confirmation_message").or_else(|| string(step, "user_input_message"));
        let question = question.unwrap_or_default();
        all.push(Waiting {
            id: string(step, "step_id").unwrap_or_default(),
            name: text::line(&format!("step {}", string(step, "step_name").unwrap_or_default())),
            detail: text::head(&text::line(&question), MESSAGE_CHARS_MAX),
            whole: question,
            approval_id: None,
            need,
            fields: fields(step),
        });
    }
    all
}

fn of_tool(tool: &Value) -> Option<Waiting> {
    let open = |flag: &str, answer: &str| is(tool, flag) && tool.get(answer).is_none_or(Value::is_null);
    let need = if open("requires_confirmation", "confirmed") {
        Need::Confirmation
    } else if open("requires_user_input", "answered") {
        Need::Input(input_names(tool))
    } else if open("external_execution_required", "result") {
        Need::Result
    } else {
        return None;
    };
    let arguments = tool.get("tool_args").map(Value::to_string).unwrap_or_default();
    Some(Waiting {
        id: string(tool, "tool_call_id").unwrap_or_default(),
        name: text::line(&string(tool, "tool_name").unwrap_or_default()),
        detail: text::head(&text::line(&arguments), ARGUMENTS_CHARS_MAX),
        whole: arguments,
        approval_id: string(tool, "approval_id"),
        need,
        fields: fields(tool),
    })
}

/// The field of `continue` that carries the answers, and its value, from the stored run.
pub(crate) fn answered(kind: Kind, run: &Value, answers: &Answers) -> (&'static str, Value) {
    let field = match kind {
        Kind::Agent => "tools",
        Kind::Team => "requirements",
        Kind::Workflow => "step_requirements",
    };
    let mut list: Vec<Value> = items(run, field).cloned().collect();
    for item in &mut list {
        match kind {
            Kind::Agent => answer_tool(item, answers),
            Kind::Team => answer_requirement(item, answers),
            Kind::Workflow => answer_step(item, answers),
        }
    }
    (field, Value::Array(list))
}

fn answer_tool(tool: &mut Value, answers: &Answers) {
    let Some(waiting) = of_tool(tool) else { return };
    // An approval decides for itself: the gateway writes what its row says.
    let confirm = answers.confirm(&waiting.id).filter(|_| waiting.approval_id.is_none());
    match (waiting.need, confirm) {
        (Need::Confirmation, Some(confirm)) => set(tool, "confirmed", json!(confirm)),
        (Need::Input(_), _) => {
            if fill_inputs(tool, &waiting.id, answers) {
                set(tool, "answered", json!(true));
            }
        }
        (Need::Result, _) => {
            if let Some(result) = answers.input(&waiting.id, &waiting.id) {
                set(tool, "result", json!(as_text(result)));
            }
        }
        (Need::Confirmation, None) => {}
    }
}

fn answer_requirement(requirement: &mut Value, answers: &Answers) {
    let Some(tool) = requirement.get_mut("tool_execution") else { return };
    answer_tool(tool, answers);
    let (confirmed, result) = (tool.get("confirmed").cloned(), tool.get("result").cloned());
    let external = is(tool, "external_execution_required");
    let same = ["user_input_schema", "user_feedback_schema"].map(|name| (name, tool.get(name).cloned()));
    for (name, value) in [("confirmation", confirmed)].into_iter().chain(same) {
        if let Some(value) = value.filter(|value| !value.is_null()) {
            set(requirement, name, value);
        }
    }
    if let Some(result) = result.filter(|result| external && !result.is_null()) {
        set(requirement, "external_execution_result", result);
    }
}

fn answer_step(step: &mut Value, answers: &Answers) {
    if let Some(Value::Array(nested)) = step.get_mut("executor_requirements") {
        nested.iter_mut().for_each(|requirement| answer_requirement(requirement, answers));
    }
    let id = string(step, "step_id").unwrap_or_default();
    if is(step, "requires_user_input") {
        let names = input_names(step);
        let given = names.into_iter().filter_map(|name| answers.input(&id, &name).cloned().map(|value| (name, value)));
        let given: Map<String, Value> = given.collect();
        if !given.is_empty() {
            set(step, "user_input", Value::Object(given));
            set(step, "confirmed", json!(true));
        }
    } else if is(step, "requires_confirmation")
        && step.get("confirmed").is_none_or(Value::is_null)
        && let Some(confirm) = answers.confirm(&id)
    {
        set(step, "confirmed", json!(confirm));
    }
}

/// Writes given values into the fields, and given choices into the questions, that ask for them; says whether any was
/// written.
fn fill_inputs(tool: &mut Value, id: &str, answers: &Answers) -> bool {
    let mut filled = false;
    for (list, name, answer) in [FIELDS, QUESTIONS] {
        let Some(Value::Array(asking)) = tool.get_mut(list) else { continue };
        for one in asking {
            let given = one.get(name).and_then(Value::as_str).and_then(|name| answers.input(id, name)).cloned();
            let Some(given) = given else { continue };
            // One choice is a list of one.
            let given = if answer == SELECTED && given.is_string() { json!([given]) } else { given };
            set(one, answer, given);
            filled = true;
        }
    }
    filled
}

const SELECTED: &str = "selected_options";
/// The list that asks, the name of each thing in it, and where its answer goes.
const FIELDS: (&str, &str, &str) = ("user_input_schema", "name", "value");
const QUESTIONS: (&str, &str, &str) = ("user_feedback_schema", "question", SELECTED);

fn input_names(data: &Value) -> Vec<String> {
    let names = |(list, name, _)| items(data, list).filter_map(move |one| string(one, name));
    names(FIELDS).chain(names(QUESTIONS)).collect()
}

/// The fields and questions that nobody has answered: AgentOS lists those that the model has filled in as well.
fn fields(data: &Value) -> Vec<Field> {
    let open = |answer: &'static str| move |one: &&Value| one.get(answer).is_none_or(Value::is_null);
    let shown =
        |one: &Value, name: &str| text::head(&text::line(&string(one, name).unwrap_or_default()), MESSAGE_CHARS_MAX);
    let field = |one: &Value| {
        Some(Field {
            name: string(one, "name")?,
            of_type: string(one, "field_type").unwrap_or_else(|| "str".to_owned()),
            description: shown(one, "description"),
            choice: None,
        })
    };
    let question = |one: &Value| {
        let option = |option: &Value| Some((string(option, "label")?, shown(option, "description")));
        let options = items(one, "options").filter_map(option).collect();
        Some(Field {
            name: string(one, "question")?,
            of_type: "str".to_owned(),
            description: shown(one, "header"),
            choice: Some(Choice { options, many: is(one, "multi_select") }),
        })
    };
    let fields = items(data, FIELDS.0).filter(open(FIELDS.2)).filter_map(field);
    fields.chain(items(data, QUESTIONS.0).filter(open(QUESTIONS.2)).filter_map(question)).collect()
}

fn items<'a>(data: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    data.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default().iter()
}

fn is(data: &Value, flag: &str) -> bool {
    match data.get(flag) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(_) => true,
    }
}

fn string(data: &Value, field: &str) -> Option<String> {
    data.get(field)?.as_str().map(str::to_owned)
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Value::Object(map) = object {
        map.insert(field.to_owned(), value);
    }
}

fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: &str) -> Value {
        json!({"tool_call_id": id, "tool_name": "rm", "tool_args": {"path": "/x"}, "requires_confirmation": true,
            "confirmed": null})
    }

    fn confirm(confirm: bool) -> Answers {
        Answers { confirm: Some(confirm), ..Answers::default() }
    }

    #[test]
    fn one_call_that_is_listed_twice_waits_once() {
        let paused = json!({"tools": [call("c1")], "requirements": [{"id": "q", "tool_execution": call("c1")}]});
        let expected = Waiting {
            id: "c1".to_owned(),
            name: "rm".to_owned(),
            detail: r#"{"path":"/x"}"#.to_owned(),
            whole: r#"{"path":"/x"}"#.to_owned(),
            approval_id: None,
            need: Need::Confirmation,
            fields: vec![],
        };
        assert_eq!(of(&paused), [expected]);
        let mut decided = call("c1");
        decided["confirmed"] = json!(false);
        assert_eq!(of(&json!({"tools": [decided], "requirements": null})), []);
    }

    #[test]
    fn a_team_is_answered_by_requirements() {
        let run = json!({"requirements": [{"id": "q", "member_run_id": "m", "tool_execution": call("c1")}]});
        assert_eq!(of(&run).len(), 1);
        let (field, sent) = answered(Kind::Team, &run, &confirm(true));
        let mut tool = call("c1");
        tool["confirmed"] = json!(true);
        let requirement = json!({"id": "q", "member_run_id": "m", "tool_execution": tool, "confirmation": true});
        assert_eq!((field, sent), ("requirements", json!([requirement])));
    }

    #[test]
    fn a_workflow_is_answered_by_steps_and_their_executors() {
        let nested = json!({"id": "q", "tool_execution": call("c1")});
        let steps = json!([
            {"step_id": "1", "step_name": "Publish", "requires_confirmation": true, "confirmed": null,
                "confirmation_message": "Go?"},
            {"step_id": "2", "step_name": "Ask", "requires_user_input": true, "user_input": null,
                "user_input_schema": [{"name": "city", "value": null}]},
            {"step_id": "3", "requires_confirmation": false, "executor_requirements": [nested]},
        ]);
        let run = json!({"step_requirements": steps});
        let needs: Vec<(String, Need)> = of(&run).into_iter().map(|w| (w.name, w.need)).collect();
        let input = Need::Input(vec!["city".to_owned()]);
        let confirmation = || Need::Confirmation;
        assert_eq!(
            needs,
            [("step Publish".into(), confirmation()), ("step Ask".into(), input), ("rm".into(), confirmation())]
        );
        let mut answers = confirm(false);
        answers.inputs.insert("city".to_owned(), json!("Rome"));
        let (field, sent) = answered(Kind::Workflow, &run, &answers);
        assert_eq!(field, "step_requirements");
        assert_eq!((&sent[0]["confirmed"], &sent[1]["user_input"]), (&json!(false), &json!({"city": "Rome"})));
        assert_eq!(sent[2]["executor_requirements"][0]["tool_execution"]["confirmed"], json!(false));
    }

    #[test]
    fn inputs_and_results_go_where_they_were_asked_for_and_arguments_stay() {
        let tools = json!([
            {"tool_call_id": "c1", "tool_name": "book", "tool_args": {"day": 1}, "requires_user_input": true,
                "user_input_schema": [{"name": "city", "value": null}, {"name": "hotel", "value": null}]},
            {"tool_call_id": "c2", "tool_name": "shell", "tool_args": {}, "external_execution_required": true},
        ]);
        let run = json!({"tools": tools});
        let needs: Vec<Need> = of(&run).into_iter().map(|w| w.need).collect();
        assert_eq!(needs, [Need::Input(vec!["city".to_owned(), "hotel".to_owned()]), Need::Result]);
        let inputs = json!({"city": "Rome", "c2": {"exit": 0}, "tool_args": {"day": 9}, "unknown": 1});
        let Value::Object(inputs) = inputs else { unreachable!("an object") };
        let (_, sent) = answered(Kind::Agent, &run, &Answers { inputs, ..Answers::default() });
        assert_eq!(sent[0]["user_input_schema"][0], json!({"name": "city", "value": "Rome"}));
        assert_eq!((&sent[0]["answered"], &sent[0]["tool_args"]), (&json!(true), &json!({"day": 1})));
        assert_eq!(sent[1]["result"], json!("{\"exit\":0}"));
    }

    #[test]
    fn choices_go_where_they_were_offered() {
        let offered = json!([{"label": "Rome", "description": "old", "selected": false}, {"label": "Oslo"}]);
        let question = |text: &str, many: bool| json!({"question": text, "header": "City", "multi_select": many, "options": offered});
        let call = json!({"tool_call_id": "c1", "tool_name": "ask_user", "tool_args": {}, "requires_user_input": true,
            "user_feedback_schema": [question("Where to?", false), question("Where else?", true)]});
        let run = json!({"tools": [call], "requirements": [{"id": "q", "tool_execution": call}]});
        let waiting = &of(&run)[0];
        assert_eq!(waiting.need, Need::Input(vec!["Where to?".to_owned(), "Where else?".to_owned()]));
        let options = vec![("Rome".to_owned(), "old".to_owned()), ("Oslo".to_owned(), String::new())];
        assert_eq!(waiting.fields[1].choice, Some(Choice { options, many: true }));
        assert_eq!(waiting.fields[0].description, "City");
        let inputs = json!({"Where to?": "Oslo", "Where else?": ["Rome"]});
        let Value::Object(inputs) = inputs else { unreachable!("an object") };
        let answers = Answers { inputs, ..Answers::default() };
        let (_, sent) = answered(Kind::Agent, &run, &answers);
        let selected = |asked: &Value| [0, 1].map(|n| asked["user_feedback_schema"][n]["selected_options"].clone());
        assert_eq!((selected(&sent[0]), &sent[0]["answered"]), ([json!(["Oslo"]), json!(["Rome"])], &json!(true)));
        let (_, sent) = answered(Kind::Team, &run, &answers);
        assert_eq!(selected(&sent[0]), selected(&sent[0]["tool_execution"]));
        assert_eq!(selected(&sent[0]), [json!(["Oslo"]), json!(["Rome"])]);
    }

    #[test]
    fn what_is_said_of_one_call_goes_before_what_is_said_of_all() {
        let run = json!({"tools": [call("c1"), call("c2")]});
        let mut answers = confirm(true);
        answers.each.insert("c2".to_owned(), Answer { confirm: Some(false), ..Answer::default() });
        let (_, sent) = answered(Kind::Agent, &run, &answers);
        assert_eq!((&sent[0]["confirmed"], &sent[1]["confirmed"]), (&json!(true), &json!(false)));
    }
}
