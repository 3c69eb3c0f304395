//! Owns the rows of sessions and of the runs stored in them. Does not start runs (`agents`, `teams`, `workflows`).

use super::row::{delete, get, patch, post};
use crate::agentos::operation::{
    ListScope::{Own, Tenant},
    Operation, Place, Reply, Resource,
};

// The 2.5.6 list rows carry no owner: a tenant-wide list needs one query per known user there.
#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("get_sessions", "/sessions")
        .on(Resource::Session).owned().scopes(&["sessions:read"])
        .query(&["type", "component_id", "user_id", "session_name", "limit", "page", "sort_by", "sort_order",
                 "db_id", "table"])
        .user(&[Place::Query("user_id")]).list("data", "session_id", Tenant).tool("list_sessions"),
    post("create_session", "/sessions")
        .on(Resource::Session).owned().scopes(&["sessions:write"])
        .query(&["type", "db_id"])
        .json(&["session_id", "session_name", "session_state", "metadata", "user_id", "agent_id", "team_id",
                "workflow_id"])
        .user(&[Place::Json("user_id")]).session(&[Place::Json("session_id")]).creates_session()
        .keeps_session(),
    // `session_ids` is an array: every one of them has to be the caller's.
    delete("delete_sessions", "/sessions")
        .on(Resource::Session).owned().scopes(&["sessions:delete"])
        .query(&["user_id", "db_id", "table", "delete_media"]).json(&["session_ids", "session_types"])
        .user(&[Place::Query("user_id")]).session(&[Place::Json("session_ids")]).reply(Reply::Empty),

    get("get_session_by_id", "/sessions/{session_id}")
        .on(Resource::Session).owned().scopes(&["sessions:read"])
        .query(&["type", "user_id", "db_id", "table"])
        .user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")]).tool("get_session"),
    patch("update_session", "/sessions/{session_id}")
        .on(Resource::Session).owned().scopes(&["sessions:write"])
        .query(&["type", "user_id", "db_id", "table"])
        .json(&["session_name", "session_state", "metadata", "summary"])
        .user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")]).keeps_session(),
    delete("delete_session", "/sessions/{session_id}")
        .on(Resource::Session).owned().scopes(&["sessions:delete"])
        .query(&["user_id", "db_id", "table", "delete_media"])
        .user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")]).keeps_session()
        .reply(Reply::Empty),
    post("rename_session", "/sessions/{session_id}/rename")
        .on(Resource::Session).owned().scopes(&["sessions:write"])
        .query(&["type", "user_id", "db_id", "table"]).json(&["session_name"])
        .user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")]).keeps_session(),

    get("get_session_runs", "/sessions/{session_id}/runs")
        .on(Resource::Session).owned().scopes(&["sessions:read"])
        .query(&["type", "user_id", "created_after", "created_before", "status", "db_id", "table"])
        .user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")]).list("", "run_id", Own),
    get("get_session_run_previews", "/sessions/{session_id}/run-previews").v3()
        .on(Resource::Session).owned().scopes(&["sessions:read"])
        .query(&["type", "user_id", "created_after", "created_before", "status", "db_id", "table"])
        .user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")]).list("", "run_id", Own),
    get("get_session_run", "/sessions/{session_id}/runs/{run_id}")
        .on(Resource::Run).owned().scopes(&["sessions:read"])
        .query(&["type", "user_id", "db_id", "table"])
        .user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")]).run(&[Place::Path("run_id")]),
    // A storage key has slashes of its own. `redirect` would hand out a signed URL that outlives every right.
    get("get_session_media", "/sessions/{session_id}/media/{storage_key:path}").v3()
        .on(Resource::Session).owned().scopes(&["sessions:read"])
        .query(&["type", "user_id", "db_id", "table"])
        .user(&[Place::Query("user_id")]).session(&[Place::Path("session_id")]).reply(Reply::Opaque),
];
