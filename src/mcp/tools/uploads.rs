//! Owns the tools that add text to a knowledge base and say how far that is.
//! Does not fetch addresses: what AgentOS would read from the web is not a caller's to choose here.
//! Invariant: whose the content is, the gateway marks.

use rmcp::model::CallToolResult;
use serde_json::json;

use super::arguments::{AddKnowledge, KnowledgeStatus, said};
use super::{one, structured};
use crate::mcp::ask::{Ask, AskBody, Failure};
use crate::mcp::routes::{self, pairs};
use crate::mcp::visit::Visit;

const FIELDS: &[&str] = &["id", "name", "status", "status_message"];

pub(super) async fn add_knowledge(visit: &Visit, arguments: AddKnowledge) -> Result<CallToolResult, Failure> {
    let (name, text) = (said("name", &arguments.name)?, said("text", &arguments.text)?);
    let (cluster, base) = match arguments.knowledge {
        Some(knowledge) => visit.place_or_default("knowledge", &knowledge).map(|(cluster, id)| (cluster, Some(id)))?,
        None => (visit.default_cluster()?, None),
    };
    let mut form = vec![("name", name)];
    form.extend(arguments.description.as_deref().map(|description| ("description", description)));
    form.push(("text_content", text));
    let query: Vec<(&str, &str)> = base.as_deref().map(|id| ("knowledge_id", id)).into_iter().collect();
    let ask = Ask { query: &query, body: AskBody::Form(pairs(&form)), ..Ask::plain(routes::UPLOAD, &cluster, &[]) };
    let row = visit.asker.json(&ask).await?;
    let mut result = one(visit, &cluster, &row, FIELDS);
    if let serde_json::Value::Object(map) = &mut result {
        map.insert("next".to_owned(), json!("call knowledge_status with this id to see when it can be searched"));
    }
    Ok(structured(result, ""))
}

pub(super) async fn knowledge_status(visit: &Visit, arguments: KnowledgeStatus) -> Result<CallToolResult, Failure> {
    let (cluster, id) = visit.place_or_default("content_id", &arguments.content_id)?;
    let ids = [id.as_str()];
    let base = arguments.knowledge.map(|knowledge| visit.place("knowledge", &knowledge)).transpose()?;
    let query: Vec<(&str, &str)> = base.iter().map(|(_, id)| ("knowledge_id", id.as_str())).collect();
    let ask = Ask { query: &query, ..Ask::plain(routes::UPLOADED, &cluster, &ids) };
    let row = visit.asker.json(&ask).await?;
    Ok(structured(one(visit, &cluster, &row, FIELDS), ""))
}
