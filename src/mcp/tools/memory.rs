//! Owns the tools about what AgentOS remembers of the caller.
//! Does not delete: over MCP nothing is lost that a model was talked into losing.
//! Invariant: memories are the caller's own; the gateway pins whose they are.

use rmcp::model::CallToolResult;
use serde_json::{Value, json};

use super::arguments::{AddMemory, ListMemories, limit, said};
use super::gather::gather;
use super::{picked, structured};
use crate::mcp::ask::{Ask, AskBody, Failure};
use crate::mcp::routes;
use crate::mcp::visit::Visit;

/// Rows where the caller does not say how many.
pub(super) const LIMIT: usize = 20;
const FIELDS: &[&str] = &["memory_id", "memory", "topics", "agent_id", "team_id", "updated_at"];

pub(super) async fn list_memories(visit: &Visit, arguments: ListMemories) -> Result<CallToolResult, Failure> {
    let limit = limit(arguments.limit, LIMIT)?.to_string();
    let mut query = vec![("limit", limit.as_str()), ("sort_by", "updated_at"), ("sort_order", "desc")];
    query.extend(arguments.query.as_deref().map(|text| ("search_content", text)));
    let questions = visit.clusters_or(None)?.into_iter().map(|cluster| {
        let ask = Ask { query: &query, ..Ask::plain(routes::MEMORIES, &cluster, &[]) };
        (cluster, ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let memories: Vec<Value> =
        gathered.answers.iter().flat_map(|(cluster, page)| picked(visit, cluster, page, FIELDS)).collect();
    let mut result = json!({"memories": memories});
    gathered.mention_failures(&mut result, std::iter::empty());
    Ok(structured(result, "memories"))
}

pub(super) async fn add_memory(visit: &Visit, arguments: AddMemory) -> Result<CallToolResult, Failure> {
    let mut body = json!({"memory": said("memory", &arguments.memory)?});
    if let (Value::Object(map), Some(topics)) = (&mut body, arguments.topics) {
        map.insert("topics".to_owned(), json!(topics));
    }
    let cluster = visit.default_cluster()?;
    let ask = Ask { body: AskBody::Json(body), ..Ask::plain(routes::REMEMBER, &cluster, &[]) };
    let row = visit.asker.json(&ask).await?;
    Ok(structured(super::one(visit, &cluster, &row, FIELDS), ""))
}
