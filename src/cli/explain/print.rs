//! Owns how an explanation looks: lines for people, one document for programs.
//! Does not know how it came about.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::cli::Format;
use crate::gateway::{Explanation, Remedy};

/// What the numbers of this process do not say.
const NOTE: &str = "quota counters are those of this command: a running server keeps its own";

pub(super) fn render(explanation: &Explanation, format: Format) -> String {
    match format {
        Format::Table => lines(explanation),
        Format::Json => format!("{:#}\n", document(explanation)),
    }
}

fn document(explanation: &Explanation) -> Value {
    let steps: Vec<Value> = explanation
        .steps
        .iter()
        .map(|step| json!({ "stage": step.stage, "verdict": step.said.as_str(), "facts": step.facts }))
        .collect();
    let remedies: Vec<Value> =
        explanation.remedies.iter().map(|remedy| json!({ "roles": remedy.roles, "scopes": remedy.scopes })).collect();
    json!({
        "allowed": explanation.refused.is_none(),
        "certain": !explanation.is_uncertain(),
        "stages": steps,
        "code": explanation.refused.as_ref().map(|refusal| refusal.code.row().code),
        "stage": explanation.refused.as_ref().map(|refusal| refusal.stage.as_str()),
        "would_allow": remedies,
        "help": explanation.help,
        "note": NOTE,
    })
}

fn lines(explanation: &Explanation) -> String {
    let mut text = String::new();
    for step in &explanation.steps {
        let _ = write!(text, "{:<10} {:<8}", step.stage, step.said.as_str());
        for (name, value) in &step.facts {
            if name != "policies" && name != "limits" {
                let _ = write!(text, " {name}={}", plain(value));
            }
        }
        text.push('\n');
        for (name, value) in &step.facts {
            below(&mut text, name, value);
        }
    }
    let _ = match (&explanation.refused, explanation.is_uncertain()) {
        (None, false) => writeln!(text, "allowed"),
        (None, true) => writeln!(text, "allowed, as far as is known: what is unknown above may refuse it"),
        (Some(refusal), _) => {
            let row = refusal.code.row();
            writeln!(text, "refused by {}: {} {}", refusal.stage.as_str(), row.status, row.code)
        }
    };
    for remedy in &explanation.remedies {
        let _ = writeln!(text, "would allow it: {}", spelled(remedy));
    }
    if let Some(help) = &explanation.help {
        let _ = writeln!(text, "help: {help}");
    }
    let _ = writeln!(text, "note: {NOTE}");
    text
}

/// Facts that take a line each.
fn below(text: &mut String, name: &str, value: &Value) {
    for row in value.as_array().into_iter().flatten() {
        let word = |name: &str| row.get(name).map(plain).unwrap_or_default();
        let _ = match name {
            "policies" => writeln!(text, "{:20}{} {}", "", word("policy"), word("at")),
            "limits" => writeln!(text, "{:20}{}: {} of {} left", "", word("name"), word("remaining"), word("limit")),
            _ => Ok(()),
        };
    }
}

fn spelled(remedy: &Remedy) -> String {
    let roles = remedy.roles.iter().map(|role| format!("role `{role}`"));
    roles.chain(remedy.scopes.iter().map(|scope| format!("scope `{scope}`"))).collect::<Vec<_>>().join(" and ")
}

/// A value without quotes where it has no need for them.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().map(plain).collect::<Vec<_>>().join(",")
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}
