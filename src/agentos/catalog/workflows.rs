//! Owns the rows of workflows and of their runs. They mirror `agents`; what differs is commented here.

use super::row::{get, post};
use crate::agentos::operation::{ListScope::PerItem, OnRun, Operation, Place, Reply, Resource};

#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("get_workflows", "/workflows")
        .on(Resource::Workflow).component().scopes(&["workflows:read"])
        .shared().list("", "id", PerItem).tool("list_agents"),
    get("get_workflow", "/workflows/{workflow_id}")
        .on(Resource::Workflow).component().scopes(&["workflows:read"]).query(&["version"]).shared(),

    get("list_workflow_runs", "/workflows/{workflow_id}/runs").v3()
        .on(Resource::Session).owned().scopes(&["workflows:read"])
        .query(&["session_id", "status", "factory_input"]).session(&[Place::Query("session_id")]),
    // A workflow takes no files. A background run that is not streamed mints its own id, whatever `run_id` says; where
    // AgentOS has a durable queue, so does a streamed one.
    post("create_workflow_run", "/workflows/{workflow_id}/runs")
        .on(Resource::Workflow).component().runs().model().scopes(&["workflows:run"])
        .form(&["message", "stream", "background", "session_id", "user_id", "version", "factory_input"])
        .user(&[Place::Form("user_id")]).session(&[Place::Form("session_id")]).run(&[Place::Form("run_id")])
        .reply(Reply::SseIfStream).starts_run().tool("run_agent"),
    get("get_workflow_run", "/workflows/{workflow_id}/runs/{run_id}")
        .on(Resource::Run).owned().scopes(&["workflows:read"])
        .query(&["session_id", "factory_input"])
        .session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")]).tool("get_run"),
    post("cancel_workflow_run", "/workflows/{workflow_id}/runs/{run_id}/cancel")
        .on(Resource::Run).owned().runs().scopes(&["workflows:run"])
        .query(&["session_id"]).session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")])
        .follows_run(OnRun::Cancel).tool("cancel_run"),
    // What an agent calls `tools` is `step_requirements` here. 2.x has no such route.
    post("continue_workflow_run", "/workflows/{workflow_id}/runs/{run_id}/continue").v3()
        .on(Resource::Run).owned().runs().model().scopes(&["workflows:run"])
        .form(&["step_requirements", "session_id", "user_id", "stream", "background", "factory_input"])
        .user(&[Place::Form("user_id")]).session(&[Place::Form("session_id")]).run(&[Place::Path("run_id")])
        .reply(Reply::SseIfStream).follows_run(OnRun::Continue).tool("continue_run"),
    post("resume_workflow_run_stream", "/workflows/{workflow_id}/runs/{run_id}/resume").v3()
        .on(Resource::Run).owned().reads().scopes(&["workflows:run"])
        .form(&["last_event_index", "session_id"])
        .session(&[Place::Form("session_id")]).run(&[Place::Path("run_id")])
        .reply(Reply::Sse).follows_run(OnRun::Resume),
];
