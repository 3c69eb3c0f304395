//! Owns the rows of teams and of their runs. They mirror `agents`; what differs is commented here.

use super::row::{get, post};
use crate::agentos::operation::{ListScope::PerItem, OnRun, Operation, Place, Reply, Resource};

#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("get_teams", "/teams")
        .on(Resource::Team).component().scopes(&["teams:read"])
        .shared().list("", "id", PerItem).tool("list_agents"),
    get("get_team", "/teams/{team_id}")
        .on(Resource::Team).component().scopes(&["teams:read"]).shared(),

    get("list_team_runs", "/teams/{team_id}/runs")
        .on(Resource::Session).owned().scopes(&["teams:read"])
        .query(&["session_id", "status"]).session(&[Place::Query("session_id")]),
    // `monitor` exists for teams only.
    post("create_team_run", "/teams/{team_id}/runs")
        .on(Resource::Team).component().runs().model().scopes(&["teams:run"])
        .form(&["message", "stream", "monitor", "session_id", "user_id", "files", "files_metadata", "version",
                "background", "factory_input"])
        .user(&[Place::Form("user_id")]).session(&[Place::Form("session_id")]).run(&[Place::Form("run_id")])
        .reply(Reply::SseIfStream).starts_run().tool("run_agent"),
    get("get_team_run", "/teams/{team_id}/runs/{run_id}")
        .on(Resource::Run).owned().scopes(&["teams:read"])
        .query(&["session_id"]).session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")])
        .tool("get_run"),
    post("cancel_team_run", "/teams/{team_id}/runs/{run_id}/cancel")
        .on(Resource::Run).owned().runs().scopes(&["teams:run"])
        .query(&["session_id"]).session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")])
        .follows_run(OnRun::Cancel).tool("cancel_run"),
    // What an agent calls `tools` is `requirements` here. 2.x cannot continue a team's run.
    post("continue_team_run", "/teams/{team_id}/runs/{run_id}/continue").v3()
        .on(Resource::Run).owned().runs().model().scopes(&["teams:run"])
        .form(&["requirements", "input", "continue_from", "fork", "regenerate", "replace_original",
                "additional_instructions", "session_id", "user_id", "stream", "background"])
        .user(&[Place::Form("user_id")]).session(&[Place::Form("session_id")]).run(&[Place::Path("run_id")])
        .reply(Reply::SseIfStream).follows_run(OnRun::Continue).tool("continue_run"),
    post("resume_team_run_stream", "/teams/{team_id}/runs/{run_id}/resume").v3()
        .on(Resource::Run).owned().reads().scopes(&["teams:run"])
        .form(&["last_event_index", "session_id"])
        .session(&[Place::Form("session_id")]).run(&[Place::Path("run_id")])
        .reply(Reply::Sse).follows_run(OnRun::Resume),
    get("list_team_run_checkpoints", "/teams/{team_id}/runs/{run_id}/checkpoints").v3()
        .on(Resource::Run).owned().scopes(&["teams:read"])
        .query(&["session_id"]).session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")]),
    get("get_team_run_checkpoint_snapshot", "/teams/{team_id}/runs/{run_id}/checkpoints/{message_index}").v3()
        .on(Resource::Run).owned().scopes(&["teams:read"])
        .query(&["session_id"]).session(&[Place::Query("session_id")]).run(&[Place::Path("run_id")]),

    post("fork_team_session", "/teams/{team_id}/sessions/{session_id}/fork").v3()
        .on(Resource::Session).owned().scopes(&["teams:run", "teams:write"])
        .query(&["user_id"]).user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")])
        .keeps_session(),
];
