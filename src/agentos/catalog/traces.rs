//! Owns the rows of traces.

use super::row::{get, post};
use crate::agentos::operation::{ListScope::Own, Operation, Place, Resource};

#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("get_traces", "/traces")
        .on(Resource::Trace).owned().scopes(&["traces:read"])
        .query(&["run_id", "session_id", "user_id", "agent_id", "team_id", "workflow_id", "status", "start_time",
                 "end_time", "page", "limit", "db_id"])
        .user(&[Place::Query("user_id")]).session(&[Place::Query("session_id")]).run(&[Place::Query("run_id")])
        .list("data", "trace_id", Own)
        .tool("list_traces"),
    // Names of fields and operators: the same for everybody.
    get("get_traces_filter_schema", "/traces/filter-schema")
        .on(Resource::Trace).component().scopes(&["traces:read"]),
    get("get_trace", "/traces/{trace_id}")
        .on(Resource::Trace).owned().scopes(&["traces:read"])
        .query(&["span_id", "run_id", "db_id"]).run(&[Place::Query("run_id")])
        .tool("get_trace"),
    get("get_trace_stats", "/trace_session_stats")
        .on(Resource::Trace).owned().scopes(&["traces:read"])
        .query(&["user_id", "agent_id", "team_id", "workflow_id", "start_time", "end_time", "page", "limit", "db_id"])
        .user(&[Place::Query("user_id")]).list("data", "session_id", Own),
    // A free filter expression with no parameter that a user id could be pinned to: it sees every user.
    post("search_traces", "/traces/search")
        .on(Resource::Trace).reads().scopes(&["traces:read"])
        .query(&["db_id"]).json(&["filter", "group_by", "page", "limit"]),
];
