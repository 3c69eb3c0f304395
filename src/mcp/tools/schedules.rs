//! Owns the tools about runs that AgentOS starts by the clock.
//! Does not delete schedules and does not change what one runs.
//! Invariant: a schedule runs an agent with a message; the gateway authorizes it as that run.

use rmcp::model::CallToolResult;
use serde_json::{Value, json};

use super::agents::resolve;
use super::arguments::{CreateSchedule, ListSchedules, SetSchedule, limit, said};
use super::gather::gather;
use super::{one, picked, structured};
use crate::agentos::operation::Kind;
use crate::mcp::ask::{Ask, AskBody, Failure};
use crate::mcp::routes::{self, Deed};
use crate::mcp::visit::Visit;

/// Rows where the caller does not say how many.
pub(super) const LIMIT: usize = 20;
const FIELDS: &[&str] =
    &["id", "name", "description", "cron_expr", "timezone", "endpoint", "payload", "enabled", "next_run_at"];

pub(super) async fn list_schedules(visit: &Visit, arguments: ListSchedules) -> Result<CallToolResult, Failure> {
    let limit = limit(arguments.limit, LIMIT)?.to_string();
    let query = [("limit", limit.as_str())];
    let questions = visit.clusters_or(None)?.into_iter().map(|cluster| {
        let ask = Ask { query: &query, ..Ask::plain(routes::SCHEDULES, &cluster, &[]) };
        (cluster, ask)
    });
    let gathered = gather(&visit.asker, questions.collect()).await.or_failure()?;
    let rows: Vec<Value> =
        gathered.answers.iter().flat_map(|(cluster, page)| picked(visit, cluster, page, FIELDS)).collect();
    let mut result = json!({"schedules": rows});
    gathered.mention_failures(&mut result, std::iter::empty());
    Ok(structured(result, "schedules"))
}

pub(super) async fn create_schedule(visit: &Visit, arguments: CreateSchedule) -> Result<CallToolResult, Failure> {
    let message = said("message", &arguments.message)?;
    let (name, cron) = (said("name", &arguments.name)?, said("cron", &arguments.cron)?);
    let (cluster, kind, component) = resolve(visit, &arguments.agent, arguments.kind.map(Kind::from)).await?;
    let ids = [component.as_str()];
    let mut body = json!({
        "name": name,
        "cron_expr": cron,
        "endpoint": routes::of(kind, Deed::Start).path(&ids),
        "method": "POST",
        "payload": {"message": message},
    });
    if let (Value::Object(map), Some(timezone)) = (&mut body, arguments.timezone) {
        map.insert("timezone".to_owned(), json!(timezone));
    }
    let ask = Ask { body: AskBody::Json(body), ..Ask::plain(routes::SCHEDULE, &cluster, &[]) };
    let row = visit.asker.json(&ask).await?;
    Ok(structured(one(visit, &cluster, &row, FIELDS), ""))
}

pub(super) async fn set_schedule(visit: &Visit, arguments: SetSchedule) -> Result<CallToolResult, Failure> {
    let (cluster, id) = visit.place_or_default("schedule_id", &arguments.schedule_id)?;
    let route = if arguments.enabled { routes::SCHEDULE_ON } else { routes::SCHEDULE_OFF };
    let ids = [id.as_str()];
    let row = visit.asker.json(&Ask::plain(route, &cluster, &ids)).await?;
    Ok(structured(one(visit, &cluster, &row, FIELDS), ""))
}
