//! Owns the prompts: one per agent, team and workflow that the caller may run.
//! Does not run anything: a prompt tells the model which tool to call.
//! Invariants: texts of AgentOS stand in descriptions only, never among the words of a prompt; whoever gets a prompt is
//! admitted like any other reader of its agent.

use rmcp::ErrorData;
use rmcp::model::{GetPromptRequestParams, GetPromptResult, Prompt, PromptArgument, PromptMessage, Role};
use serde_json::{Value, json};

use super::ask::Ask;
use super::narrowing::Toolset;
use super::refused::protocol_error;
use super::routes::{self, Deed};
use super::text;
use super::viewer::{Shown, Viewer};
use super::visit::Visit;

/// Longest message that is put into a prompt.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
const MESSAGE: &str = "message";

/// The components that the caller gets prompts for.
pub(super) fn listed(viewer: &Viewer) -> Vec<Shown> {
    if !viewer.narrowing.has(Toolset::Agents) || viewer.narrowing.is_read_only() {
        return Vec::new();
    }
    let readable = |shown: &Shown| {
        let found = &shown.found;
        viewer.may_on(&found.cluster, routes::show(found.kind).operation, &found.id)
    };
    viewer.components_now(Deed::Start).into_iter().filter(readable).collect()
}

/// As clients see it.
pub(super) fn describe(shown: &Shown) -> Prompt {
    let found = &shown.found;
    let title = if found.name.is_empty() { &found.id } else { &found.name };
    let description = Some(found.description.clone()).filter(|text| !text.is_empty());
    let message = PromptArgument::new(MESSAGE)
        .with_title("Message")
        .with_description(format!("What the {} is to do.", found.kind))
        .with_required(true);
    Prompt::new(shown.slug.as_str(), description, Some(vec![message])).with_title(title.as_str())
}

/// Gives one prompt.
///
/// # Errors
/// Invalid parameters for an unknown prompt or a missing message; what the gateway refuses.
pub(super) async fn get(visit: &Visit, request: GetPromptRequestParams) -> Result<GetPromptResult, ErrorData> {
    let viewer = visit.viewer();
    visit.inner.discovery.settled(&visit.clusters).await;
    let unknown = || ErrorData::invalid_params(format!("Unknown prompt: {}", text::head(&request.name, 80)), None);
    let shown = listed(&viewer).into_iter().find(|shown| shown.slug == request.name).ok_or_else(unknown)?;
    let message = request.arguments.as_ref().and_then(|arguments| arguments.get(MESSAGE)).and_then(Value::as_str);
    let message = message.filter(|message| !message.trim().is_empty() && message.len() <= MESSAGE_BYTES_MAX);
    let Some(message) = message else {
        let why = format!("`{MESSAGE}` must be a text of 1 to {MESSAGE_BYTES_MAX} bytes");
        return Err(ErrorData::invalid_params(why, None));
    };
    let found = &shown.found;
    let known = json!({"id": found.id, "name": found.name, "description": found.description}).to_string();
    let ids = [found.id.as_str()];
    let ask = Ask { known: Some(known.into()), ..Ask::plain(routes::show(found.kind), &found.cluster, &ids) };
    match visit.asker.json(&ask).await {
        Ok(_) => {}
        Err(failure) if failure.is_not_found() => return Err(unknown()),
        Err(failure) => return Err(protocol_error(&failure)),
    }
    let text = format!(
        "Call the tool run_agent with agent `{}` and kind `{}`, and show me its answer. Pass it this message as it \
         stands:\n\n{message}",
        shown.name, found.kind
    );
    let result = GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)]);
    Ok(if found.description.is_empty() { result } else { result.with_description(found.description.as_str()) })
}
