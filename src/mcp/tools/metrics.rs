//! Owns the tool about what a whole AgentOS has used, day by day.
//! Does not recompute anything.
//! Invariant: these are sums over all users: OS-wide, as policy sees it.

use rmcp::model::CallToolResult;
use serde_json::{Value, json};

use super::arguments::{GetMetrics, day};
use super::gather::gather;
use super::structured;
use crate::mcp::ask::{Ask, Failure};
use crate::mcp::routes;
use crate::mcp::visit::Visit;

pub(super) async fn get_metrics(visit: &Visit, arguments: GetMetrics) -> Result<CallToolResult, Failure> {
    let (from, to) = (day("from", arguments.from)?, day("to", arguments.to)?);
    let mut query = Vec::new();
    query.extend(from.as_deref().map(|day| ("starting_date", day)));
    query.extend(to.as_deref().map(|day| ("ending_date", day)));
    let questions = visit.clusters_or(None)?.into_iter().map(|cluster| {
        let ask = Ask { query: &query, ..Ask::plain(routes::METRICS, &cluster, &[]) };
        (cluster, ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let several = visit.clusters.len() > 1;
    let days: Vec<Value> = gathered
        .answers
        .iter()
        .flat_map(|(cluster, answer)| {
            let days = answer.get("metrics").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            days.iter().cloned().map(move |mut day| {
                if let (Value::Object(map), true) = (&mut day, several) {
                    map.insert("cluster".to_owned(), json!(**cluster));
                }
                day
            })
        })
        .collect();
    let mut result = json!({"days": days});
    gathered.mention_failures(&mut result, std::iter::empty());
    Ok(structured(result, "days"))
}
