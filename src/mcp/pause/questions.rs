//! Owns what a person is asked about a paused run, as forms, and how the filled-in forms are read.
//! Does not send them (`person`, or the answer of the call) and does not act on them.
//! Invariants: what is shown is one line, cut, without control characters; an answer that does not fit its form is no
//! answer; leaving a question is never a yes.

use std::collections::HashSet;

use rmcp::model::{
    ElicitRequest, ElicitRequestParams, ElicitResult, ElicitationAction, ElicitationSchema, InputRequest,
    InputRequests, InputResponses,
};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::mcp::run::waiting::{Answer, Answers, Choice, Field, Need, Waiting};
use crate::mcp::text;

/// Most questions about one pause; more are left to the tools.
const QUESTIONS_MAX: usize = 8;
/// Most fields of one form.
const FIELDS_MAX: usize = 16;
const ARGUMENTS_CHARS_MAX: usize = 2_000;
const NOTE_CHARS_MAX: usize = 1_000;
const VALUE_CHARS_MAX: usize = 10_000;
/// Longest text of a question that a field stands for, and of one of its options.
const CHOICE_CHARS_MAX: usize = 300;
/// Most options of one field.
const OPTIONS_MAX: usize = 50;

/// Everything that has to be asked about one pause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Questions {
    all: Vec<Question>,
    /// Tells this pause from others.
    pub(crate) pause: String,
}

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    /// Its name in a request that asks several.
    key: String,
    /// The tool call or step.
    id: String,
    /// The approval row that the answer resolves, if there is one.
    pub(crate) approval_id: Option<String>,
    message: String,
    form: Form,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    Decide,
    Fill(Vec<Field>),
}

/// What came of one question, or of all.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Said<T> {
    /// An answer.
    Answered(T),
    /// The person wants to leave it as it is.
    Left,
    /// Nothing that can be used.
    Nothing,
}

/// The answers to all questions.
#[derive(Debug, Default)]
pub(crate) struct Decided {
    pub(crate) answers: Answers,
    /// Approvals to resolve: id, yes or no, note.
    pub(crate) approvals: Vec<(String, bool, Option<String>)>,
}

// === impl Questions ===

impl Questions {
    /// What to ask about a pause; `None` when some of it cannot be asked in a form, or not unmistakably.
    pub(crate) fn of(waiting: &[Waiting], agent: &str) -> Option<Self> {
        let mut ids = HashSet::new();
        let distinct = waiting.iter().all(|w| !w.id.is_empty() && ids.insert(w.id.as_str()));
        if waiting.is_empty() || waiting.len() > QUESTIONS_MAX || !distinct {
            return None;
        }
        let pause = pause_of(waiting);
        let all: Option<Vec<Question>> =
            waiting.iter().enumerate().map(|(at, waiting)| Question::of(waiting, agent, &pause, at)).collect();
        Some(Self { all: all?, pause })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Question> {
        self.all.iter()
    }

    /// Says whether this is the key of a question.
    pub(crate) fn asks(&self, key: &str) -> bool {
        self.all.iter().any(|question| question.key == key)
    }

    /// Says whether something is to be chosen from titled options or several: forms had no such fields at first.
    pub(crate) fn offers_choices(&self) -> bool {
        let choice = |form: &Form| matches!(form, Form::Fill(fields) if fields.iter().any(|f| f.choice.is_some()));
        self.all.iter().any(|question| choice(&question.form))
    }

    /// All questions for one answer.
    pub(crate) fn requests(&self) -> InputRequests {
        let request = |question: &Question| {
            Some((question.key.clone(), InputRequest::Elicitation(ElicitRequest::new(question.params()?))))
        };
        self.all.iter().filter_map(request).collect()
    }

    /// Reads the answers to all questions. One that was left leaves all; one that is missing makes all missing.
    pub(crate) fn read(&self, responses: &InputResponses) -> Said<Decided> {
        let mut decided = Decided::default();
        let mut missing = false;
        for question in &self.all {
            let result = responses.get(&question.key).and_then(|given| serde_json::from_value(given.clone()).ok());
            match result.map_or(Said::Nothing, |result| question.read(&result)) {
                Said::Answered(answer) => question.note(answer, &mut decided),
                Said::Left => return Said::Left,
                Said::Nothing => missing = true,
            }
        }
        if missing { Said::Nothing } else { Said::Answered(decided) }
    }
}

/// A digest of everything that a pause waits for, arguments in full.
fn pause_of(waiting: &[Waiting]) -> String {
    let mut all: Vec<Value> = waiting.iter().map(|w| json!([w.id, w.name, w.whole, w.approval_id])).collect();
    all.sort_by_key(Value::to_string);
    let digest = Sha256::digest(Value::Array(all).to_string());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

// === impl Question ===

impl Question {
    fn of(waiting: &Waiting, agent: &str, pause: &str, at: usize) -> Option<Self> {
        let form = match &waiting.need {
            Need::Confirmation => Form::Decide,
            Need::Input(_) => Form::Fill(askable(&waiting.fields)?),
            Need::Result => return None,
        };
        let key = match &form {
            Form::Decide if waiting.approval_id.is_some() => format!("approval-{at}-{pause}"),
            Form::Decide => format!("confirm-{at}-{pause}"),
            Form::Fill(_) => format!("input-{at}-{pause}"),
        };
        let message = message(waiting, agent, &form);
        Some(Self { key, id: waiting.id.clone(), approval_id: waiting.approval_id.clone(), message, form })
    }

    /// The form as clients get it.
    pub(crate) fn params(&self) -> Option<ElicitRequestParams> {
        let Value::Object(schema) = self.schema() else { return None };
        let requested_schema = ElicitationSchema::from_json_schema(schema).ok();
        debug_assert!(requested_schema.is_some(), "a form of ours is no form: {}", self.schema());
        let message = self.message.clone();
        Some(ElicitRequestParams::FormElicitationParams { meta: None, message, requested_schema: requested_schema? })
    }

    fn schema(&self) -> Value {
        match &self.form {
            Form::Decide => {
                let mut properties = json!({
                    "decision": {"type": "string", "title": "Decision", "enum": ["approve", "reject"]},
                });
                if let (Value::Object(map), Some(_)) = (&mut properties, &self.approval_id) {
                    let note = json!({"type": "string", "title": "Note", "maxLength": NOTE_CHARS_MAX,
                        "description": "Why, for the record."});
                    map.insert("note".to_owned(), note);
                }
                json!({"type": "object", "properties": properties, "required": ["decision"]})
            }
            Form::Fill(fields) => {
                let properties: Map<String, Value> = fields.iter().map(|f| (f.name.clone(), field_schema(f))).collect();
                let names: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
                json!({"type": "object", "properties": properties, "required": names})
            }
        }
    }

    /// Reads what a client brings back for this question.
    pub(crate) fn read(&self, result: &ElicitResult) -> Said<(Answer, Option<String>)> {
        let content = result.content.as_ref();
        match (&result.action, &self.form) {
            (ElicitationAction::Cancel, _) | (ElicitationAction::Decline, Form::Fill(_)) => Said::Left,
            // Who refuses to answer a yes-or-no question does not want it done.
            (ElicitationAction::Decline, Form::Decide) => decision(false, None),
            (ElicitationAction::Accept, Form::Decide) => {
                let text = |name: &str| content.and_then(|content| content.get(name)).and_then(Value::as_str);
                match text("decision") {
                    Some("approve") => decision(true, text("note")),
                    Some("reject") => decision(false, text("note")),
                    Some(_) | None => Said::Nothing,
                }
            }
            (ElicitationAction::Accept, Form::Fill(fields)) => {
                let value = |field: &Field| Some((field.name.clone(), fitting(field, content?.get(&field.name)?)?));
                let inputs: Option<Map<String, Value>> = fields.iter().map(value).collect();
                inputs.map_or(Said::Nothing, |inputs| Said::Answered((Answer { confirm: None, inputs }, None)))
            }
            // An action of a later revision is no answer to this form.
            (_, _) => Said::Nothing,
        }
    }

    /// Adds an answer to the others.
    pub(crate) fn note(&self, (answer, note): (Answer, Option<String>), decided: &mut Decided) {
        match (&self.approval_id, answer.confirm) {
            (Some(approval), Some(confirm)) => decided.approvals.push((approval.clone(), confirm, note)),
            (Some(_) | None, _) => {
                decided.answers.each.insert(self.id.clone(), answer);
            }
        }
    }
}

fn decision(confirm: bool, note: Option<&str>) -> Said<(Answer, Option<String>)> {
    let note = note.map(str::trim).filter(|note| !note.is_empty()).map(|note| text::head(note, NOTE_CHARS_MAX));
    Said::Answered((Answer { confirm: Some(confirm), inputs: Map::new() }, note))
}

fn message(waiting: &Waiting, agent: &str, form: &Form) -> String {
    let shown = text::line(&waiting.whole);
    let cut = text::head(&shown, ARGUMENTS_CHARS_MAX);
    let left = shown.chars().count().saturating_sub(ARGUMENTS_CHARS_MAX);
    let more = if left > 0 { format!(" [{left} more characters are not shown]") } else { String::new() };
    let (agent, name) = (text::head(&text::line(agent), 120), text::head(&waiting.name, 200));
    match form {
        Form::Decide => format!("`{agent}` wants to go on with {name}: {cut}{more}. Approve?"),
        Form::Fill(_) => format!("`{agent}` needs input for {name}: {cut}{more}"),
    }
}

/// The fields, when a form can ask for each of them.
fn askable(fields: &[Field]) -> Option<Vec<Field>> {
    let plain =
        |text: &str, most: usize| (1..=most).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    let field = |field: &Field| match &field.choice {
        None => matches!(field.of_type.as_str(), "str" | "int" | "float" | "bool") && plain(&field.name, 100),
        Some(Choice { options, .. }) => {
            let labels: HashSet<&str> = options.iter().map(|(label, _)| label.as_str()).collect();
            let distinct = labels.len() == options.len() && (1..=OPTIONS_MAX).contains(&options.len());
            let named = plain(&field.name, CHOICE_CHARS_MAX);
            named && distinct && labels.iter().all(|label| plain(label, CHOICE_CHARS_MAX))
        }
    };
    let mut names = HashSet::new();
    let distinct = fields.iter().all(|field| names.insert(field.name.as_str()));
    let fits = !fields.is_empty() && fields.len() <= FIELDS_MAX && distinct && fields.iter().all(field);
    fits.then(|| fields.to_vec())
}

fn field_schema(field: &Field) -> Value {
    let mut schema = match &field.choice {
        Some(choice) => choice_schema(choice),
        None => json!({"type": match field.of_type.as_str() {
            "int" => "integer",
            "float" => "number",
            "bool" => "boolean",
            _ => "string",
        }}),
    };
    if let Value::Object(map) = &mut schema {
        // The text of a question may be long: its header is made to be a title.
        let (title, description) = match (&field.choice, field.description.is_empty()) {
            (Some(_), false) => (&field.description, &field.name),
            (_, _) => (&field.name, &field.description),
        };
        map.insert("title".to_owned(), json!(title));
        if !description.is_empty() {
            map.insert("description".to_owned(), json!(description));
        }
    }
    schema
}

/// One of the options, or several; with titles where AgentOS says what they mean.
fn choice_schema(Choice { options, many }: &Choice) -> Value {
    let labels: Vec<&str> = options.iter().map(|(label, _)| label.as_str()).collect();
    let titled = options.iter().map(|(label, means)| match means.is_empty() {
        true => json!({"const": label, "title": label}),
        false => json!({"const": label, "title": format!("{label}: {means}")}),
    });
    let titled: Vec<Value> = titled.collect();
    let plain = options.iter().all(|(_, means)| means.is_empty());
    match (many, plain) {
        (false, true) => json!({"type": "string", "enum": labels}),
        (false, false) => json!({"type": "string", "oneOf": titled}),
        (true, true) => json!({"type": "array", "items": {"type": "string", "enum": labels}}),
        (true, false) => json!({"type": "array", "items": {"anyOf": titled}}),
    }
}

/// The value, when it is of the field's type.
fn fitting(field: &Field, value: &Value) -> Option<Value> {
    let text = |value: &Value| value.as_str().is_some_and(|text| text.chars().nth(VALUE_CHARS_MAX).is_none());
    let fits = match (&field.choice, field.of_type.as_str()) {
        (Some(choice), _) => chosen(choice, value),
        (None, "int") => value.is_i64() || value.is_u64(),
        (None, "float") => value.is_number(),
        (None, "bool") => value.is_boolean(),
        (None, _) => text(value),
    };
    fits.then(|| value.clone())
}

/// Says whether a value is one of the options, or different ones of them where several may be chosen.
fn chosen(Choice { options, many }: &Choice, value: &Value) -> bool {
    let offered = |value: &Value| value.as_str().is_some_and(|text| options.iter().any(|(label, _)| label == text));
    match value {
        Value::Array(values) if *many => {
            let mut seen = HashSet::new();
            values.iter().all(|value| offered(value) && seen.insert(value.as_str()))
        }
        single => !many && offered(single),
    }
}

#[cfg(test)]
mod tests {
    use crate::mcp::run::waiting;

    use super::*;

    fn tool(id: &str, more: Value) -> Value {
        let mut tool = json!({"tool_call_id": id, "tool_name": "rm\u{202e}", "tool_args": {"path": "/x\u{7}\ny"}});
        tool.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        tool
    }

    fn questions(tools: &[Value]) -> Option<Questions> {
        Questions::of(&waiting::of(&json!({"tools": tools})), "main/web")
    }

    fn confirm(id: &str) -> Value {
        tool(id, json!({"requires_confirmation": true}))
    }

    fn result(text: Value) -> ElicitResult {
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn a_question_shows_the_call_and_asks_for_a_decision() {
        let one = questions(&[confirm("c1")]).unwrap();
        let params = serde_json::to_value(one.iter().next().unwrap().params()).unwrap();
        assert_eq!(params["message"], "`main/web` wants to go on with rm: {\"path\":\"/x\\u0007\\ny\"}. Approve?");
        assert_eq!(params["requestedSchema"]["required"], json!(["decision"]));
        assert_eq!(params["requestedSchema"]["properties"]["note"], Value::Null, "{params}");
        let approval = questions(&[tool("c1", json!({"requires_confirmation": true, "approval_id": "a1"}))]).unwrap();
        let params = serde_json::to_value(approval.iter().next().unwrap().params()).unwrap();
        assert_eq!(params["requestedSchema"]["properties"]["note"]["type"], "string");
        let long = tool("c1", json!({"requires_confirmation": true, "tool_args": "x".repeat(3_000)}));
        let long = questions(&[long]).unwrap();
        assert!(long.iter().next().unwrap().message.contains("… [1002 more characters are not shown]. Approve?"));
    }

    #[test]
    fn every_way_to_answer_a_decision_is_read() {
        let one = questions(&[confirm("c1")]).unwrap();
        let question = one.iter().next().unwrap();
        let confirm = |said: Said<(Answer, Option<String>)>| match said {
            Said::Answered((answer, _)) => answer.confirm.map_or("none", |yes| if yes { "yes" } else { "no" }),
            Said::Left => "left",
            Said::Nothing => "nothing",
        };
        for (given, expected) in [
            (json!({"action": "accept", "content": {"decision": "approve"}}), "yes"),
            (json!({"action": "accept", "content": {"decision": "reject"}}), "no"),
            (json!({"action": "accept", "content": {"decision": "Approve"}}), "nothing"),
            (json!({"action": "accept", "content": {}}), "nothing"),
            (json!({"action": "accept"}), "nothing"),
            (json!({"action": "decline", "content": {"decision": "approve"}}), "no"),
            (json!({"action": "cancel", "content": {"decision": "approve"}}), "left"),
        ] {
            assert_eq!(confirm(question.read(&result(given.clone()))), expected, "{given}");
        }
    }

    #[test]
    fn inputs_are_asked_for_by_type() {
        let schema = json!([{"name": "day", "field_type": "str", "value": "today"},
            {"name": "room", "field_type": "str", "value": null}, {"name": "guests", "field_type": "int"}]);
        let asks = |schema: &Value| tool("c1", json!({"requires_user_input": true, "user_input_schema": schema}));
        let one = questions(&[asks(&schema)]).unwrap();
        let question = one.iter().next().unwrap();
        let read = |content: Value| question.read(&result(json!({"action": "accept", "content": content})));
        let Said::Answered((answer, None)) = read(json!({"room": "7", "guests": 2, "extra": 1})) else { panic!() };
        assert_eq!(Value::Object(answer.inputs), json!({"room": "7", "guests": 2}));
        assert_eq!(read(json!({"room": "7", "guests": "2"})), Said::Nothing);
        assert_eq!(question.read(&result(json!({"action": "decline"}))), Said::Left);
        assert_eq!(questions(&[asks(&json!([{"name": "all", "field_type": "list"}]))]), None);
    }

    #[test]
    fn choices_are_offered_and_only_what_was_offered_is_an_answer() {
        let question = |text: &str, many: bool, options: Value| {
            let mut asked = json!({"question": text, "header": "City", "options": options});
            asked["multi_select"] = json!(many);
            asked
        };
        let asks = |schema: Value| tool("c1", json!({"requires_user_input": true, "user_feedback_schema": schema}));
        let (plain, titled) =
            (json!([{"label": "a"}, {"label": "b"}]), json!([{"label": "a"}, {"label": "b", "description": "bee"}]));
        let four = json!([
            question("one?", false, plain.clone()),
            question("two?", false, titled.clone()),
            question("three?", true, plain.clone()),
            question("four?", true, titled),
        ]);
        let all = questions(&[asks(four)]).unwrap();
        assert!(all.offers_choices() && !questions(&[confirm("c1")]).unwrap().offers_choices());
        let question_of_all = all.iter().next().unwrap();
        let sent = serde_json::to_value(question_of_all.params()).unwrap();
        let field = |of: &str| sent["requestedSchema"]["properties"][of].clone();
        let titles = json!([{"const": "a", "title": "a"}, {"const": "b", "title": "b: bee"}]);
        let of = |name: &str, mut schema: Value| {
            schema["title"] = json!("City");
            schema["description"] = json!(name);
            schema
        };
        for (name, schema) in [
            ("one?", json!({"type": "string", "enum": ["a", "b"]})),
            ("two?", json!({"type": "string", "oneOf": titles})),
            ("three?", json!({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}})),
            ("four?", json!({"type": "array", "items": {"anyOf": titles}})),
        ] {
            assert_eq!(field(name), of(name, schema));
        }
        let read = |content: Value| question_of_all.read(&result(json!({"action": "accept", "content": content})));
        let good = json!({"one?": "a", "two?": "b", "three?": [], "four?": ["b", "a"]});
        let Said::Answered((answer, None)) = read(good.clone()) else { panic!() };
        assert_eq!(Value::Object(answer.inputs), good);
        for (name, wrong) in
            [("one?", json!("c")), ("one?", json!(["a"])), ("four?", json!(["a", "a"])), ("four?", json!("a"))]
        {
            let mut content = good.clone();
            content[name] = wrong.clone();
            assert_eq!(read(content), Said::Nothing, "{name} {wrong}");
        }
        let twice = json!([question("one?", false, plain.clone()), question("one?", true, plain)]);
        let equal = json!([{"label": "a"}, {"label": "a"}]);
        for schema in [twice, json!([question("one?", false, equal)]), json!([question("one?", false, json!([]))])] {
            assert_eq!(questions(&[asks(schema.clone())]), None, "{schema}");
        }
    }

    #[test]
    fn what_cannot_be_asked_unmistakably_is_not_asked() {
        assert_eq!(questions(&[]), None);
        assert_eq!(questions(&[confirm("")]), None);
        assert_eq!(Questions::of(&[], "web"), None);
        let elsewhere = tool("c1", json!({"external_execution_required": true}));
        assert_eq!(questions(&[confirm("c2"), elsewhere]), None);
        let nine: Vec<Value> = (0..9).map(|n| confirm(&format!("c{n}"))).collect();
        assert_eq!(questions(&nine), None);
    }

    #[test]
    fn a_pause_is_known_by_all_that_it_waits_for() {
        let of = |args: Value| questions(&[tool("c1", json!({"requires_confirmation": true, "tool_args": args}))]);
        let (one, other) = (of(json!("x".repeat(5_000))).unwrap(), of(json!("x".repeat(5_001))).unwrap());
        assert_ne!(one.pause, other.pause, "also behind what is shown");
        assert_eq!(one, of(json!("x".repeat(5_000))).unwrap());
    }
}
