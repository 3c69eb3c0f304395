//! Owns the rows of schedules.

use super::row::{delete, get, patch, post};
use crate::agentos::operation::{Operation, Reply, Resource, Triggers};

/// What a schedule consists of.
const FIELDS: &[&str] = &[
    "name",
    "cron_expr",
    "endpoint",
    "method",
    "description",
    "payload",
    "timezone",
    "timeout_seconds",
    "max_retries",
    "retry_delay_seconds",
];

/// AgentOS 3 asks for the right to run a schedule's target when the schedule is written and triggered. It keeps the
/// scopes with the schedule, and asks them again when the run starts (`run`) and when its end is looked for (`read`).
const RUN_ANY: &[&str] = &["agents:run", "agents:read", "teams:run", "teams:read", "workflows:run", "workflows:read"];

// OS-wide, not owned: 2.5.6 records no owner, and both versions run a schedule as `__scheduler__` with the right
// to run every agent, so whoever may touch one acts for the whole AgentOS. Creating, changing and triggering one
// is besides authorized as the run behind its `endpoint`.
#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("list_schedules", "/schedules").upstream(&["list_schedules_schedules_get"])
        .on(Resource::Schedule).scopes(&["schedules:read"]).query(&["enabled", "limit", "page"])
        .tool("list_schedules"),
    post("create_schedule", "/schedules").upstream(&["create_schedule_schedules_post"])
        .on(Resource::Schedule).scopes(&["schedules:write"]).also_upstream(RUN_ANY).json(FIELDS)
        .triggers(Triggers::Schedule)
        .tool("create_schedule"),
    get("get_schedule", "/schedules/{schedule_id}").upstream(&["get_schedule_schedules__schedule_id__get"])
        .on(Resource::Schedule).scopes(&["schedules:read"]),
    patch("update_schedule", "/schedules/{schedule_id}")
        .upstream(&["update_schedule_schedules__schedule_id__patch"])
        .on(Resource::Schedule).scopes(&["schedules:write"]).also_upstream(RUN_ANY).json(FIELDS)
        .triggers(Triggers::Schedule),
    delete("delete_schedule", "/schedules/{schedule_id}")
        .upstream(&["delete_schedule_schedules__schedule_id__delete"])
        .on(Resource::Schedule).scopes(&["schedules:delete"]).reply(Reply::Empty),
    post("enable_schedule", "/schedules/{schedule_id}/enable")
        .upstream(&["enable_schedule_schedules__schedule_id__enable_post"])
        .on(Resource::Schedule).scopes(&["schedules:write"]).also_upstream(RUN_ANY)
        .triggers(Triggers::Schedule)
        .tool("set_schedule"),
    post("disable_schedule", "/schedules/{schedule_id}/disable")
        .upstream(&["disable_schedule_schedules__schedule_id__disable_post"])
        .on(Resource::Schedule).scopes(&["schedules:write"]).also_upstream(RUN_ANY)
        .tool("set_schedule"),
    // Runs the endpoint now and answers when it ended: it costs what the run costs.
    post("trigger_schedule", "/schedules/{schedule_id}/trigger")
        .upstream(&["trigger_schedule_schedules__schedule_id__trigger_post"])
        .on(Resource::Schedule).runs().model().scopes(&["schedules:write"]).also_upstream(RUN_ANY)
        .triggers(Triggers::Schedule),
    get("list_schedule_runs", "/schedules/{schedule_id}/runs")
        .upstream(&["list_schedule_runs_schedules__schedule_id__runs_get"])
        .on(Resource::Schedule).scopes(&["schedules:read"]).query(&["limit", "page"]),
    // The run of a schedule, not of an agent: its id is AgentOS's own and no run id of ours.
    get("get_schedule_run", "/schedules/{schedule_id}/runs/{run_id}")
        .upstream(&["get_schedule_run_schedules__schedule_id__runs__run_id__get"])
        .on(Resource::Schedule).scopes(&["schedules:read"]),
];
