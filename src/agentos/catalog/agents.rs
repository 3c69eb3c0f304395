//! Owns the rows of agents and of their runs. Does not hold the stored components behind them (`components`).

use super::row::{get, post};
use crate::agentos::operation::{ListScope::PerItem, OnRun, Operation, Place, Reply, Resource};

// The run form of AgentOS passes every unknown field into the agent as a keyword argument: `run_id`,
// `session_state`, `metadata` and `dependencies` are among them and stay out of the allow-lists. `run_id` is
// a place all the same: the gateway sets it, callers cannot.
//
// Fork, compact and resume are missing from AgentOS's scope map; its router asks for `agents:run`. Fork and
// compact change the stored session, so `agents:write` grants them as well.
#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("get_agents", "/agents")
        .on(Resource::Agent).component().scopes(&["agents:read"])
        .shared().list("", "id", PerItem).tool("list_agents"),
    get("get_agent", "/agents/{agent_id}")
        .on(Resource::Agent).component().scopes(&["agents:read"]).shared(),

    get("list_agent_runs", "/agents/{agent_id}/runs")
        .on(Resource::Session).owned().scopes(&["agents:read"])
        .query(&["session_id", "status"]).session(&[Place::Query("session_id")]),
    post("create_agent_run", "/agents/{agent_id}/runs")
        .on(Resource::Agent).component().runs().model().scopes(&["agents:run"])
        .form(&["message", "stream", "session_id", "user_id", "files", "files_metadata", "version", "background",
                "factory_input"])
        .user(&[Place::Form("user_id")]).session(&[Place::Form("session_id")]).run(&[Place::Form("run_id")])
        .reply(Reply::SseIfStream).starts_run().tool("run_agent"),
    get("get_agent_run", "/agents/{agent_id}/runs/{run_id}")
        .on(Resource::Run).owned().scopes(&["agents:read"])
        .query(&["session_id"]).session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")])
        .tool("get_run"),
    post("cancel_agent_run", "/agents/{agent_id}/runs/{run_id}/cancel")
        .on(Resource::Run).owned().runs().scopes(&["agents:run"])
        .query(&["session_id"]).session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")])
        .follows_run(OnRun::Cancel).tool("cancel_run"),
    post("continue_agent_run", "/agents/{agent_id}/runs/{run_id}/continue")
        .on(Resource::Run).owned().runs().model().scopes(&["agents:run"])
        .form(&["tools", "input", "continue_from", "fork", "regenerate", "replace_original",
                "additional_instructions", "session_id", "user_id", "stream", "background"])
        .user(&[Place::Form("user_id")]).session(&[Place::Form("session_id")]).run(&[Place::Path("run_id")])
        .reply(Reply::SseIfStream).follows_run(OnRun::Continue).tool("continue_run"),
    // Attaches to a run that already holds its lease: light, and it changes nothing.
    post("resume_agent_run_stream", "/agents/{agent_id}/runs/{run_id}/resume").v3()
        .on(Resource::Run).owned().reads().scopes(&["agents:run"])
        .form(&["last_event_index", "session_id"])
        .session(&[Place::Form("session_id")]).run(&[Place::Path("run_id")])
        .reply(Reply::Sse).follows_run(OnRun::Resume),
    get("list_agent_run_checkpoints", "/agents/{agent_id}/runs/{run_id}/checkpoints").v3()
        .on(Resource::Run).owned().scopes(&["agents:read"])
        .query(&["session_id"]).session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")]),
    get("get_agent_run_checkpoint_snapshot", "/agents/{agent_id}/runs/{run_id}/checkpoints/{message_index}").v3()
        .on(Resource::Run).owned().scopes(&["agents:read"])
        .query(&["session_id"]).session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")]),

    post("fork_agent_session", "/agents/{agent_id}/sessions/{session_id}/fork").v3()
        .on(Resource::Session).owned().scopes(&["agents:run", "agents:write"])
        .query(&["user_id"]).user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")])
        .keeps_session(),
    // Folds the history into a summary, which a model writes.
    post("compact_agent_session", "/agents/{agent_id}/sessions/{session_id}/compact").v3()
        .on(Resource::Session).owned().model().scopes(&["agents:run", "agents:write"])
        .query(&["user_id"]).user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")])
        .keeps_session(),
];
