//! Owns the rows of approvals. Resolving one does not resume its run: that is `continue_*_run`.

use super::row::{delete, get, post};
use crate::agentos::operation::{ListScope::Tenant, Operation, Place, Reply, Resource};

/// With user isolation AgentOS 3 shows an approval to its requester and to admins only, and lets admins alone resolve
/// it. Whose approval it is has been checked by the time a token is minted.
const ADMIN: &[&str] = &["agent_os:admin"];

#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("list_approvals", "/approvals").upstream(&["list_approvals_approvals_get"])
        .on(Resource::Approval).owned().scopes(&["approvals:read"])
        .query(&["status", "source_type", "approval_type", "pause_type", "agent_id", "team_id", "workflow_id",
                 "user_id", "schedule_id", "run_id", "limit", "page"])
        .user(&[Place::Query("user_id")]).run(&[Place::Query("run_id")])
        .list("data", "id", Tenant).tool("list_approvals"),
    get("get_approval_count", "/approvals/count").upstream(&["get_approval_count_approvals_count_get"])
        .on(Resource::Approval).owned().scopes(&["approvals:read"])
        .query(&["user_id"]).user(&[Place::Query("user_id")]),
    get("get_approval", "/approvals/{approval_id}").upstream(&["get_approval_approvals__approval_id__get"])
        .on(Resource::Approval).owned().scopes(&["approvals:read"]).also_upstream(ADMIN).tool("get_approval"),
    delete("delete_approval", "/approvals/{approval_id}")
        .upstream(&["delete_approval_approvals__approval_id__delete"])
        .on(Resource::Approval).owned().scopes(&["approvals:delete"]).also_upstream(ADMIN).reply(Reply::Empty),
    get("get_approval_status", "/approvals/{approval_id}/status")
        .upstream(&["get_approval_status_approvals__approval_id__status_get"])
        .on(Resource::Approval).owned().scopes(&["approvals:read"]).also_upstream(ADMIN),
    // `resolved_by` is a user id as any other: 2.5.6 stores whatever the caller writes there.
    post("resolve_approval", "/approvals/{approval_id}/resolve")
        .upstream(&["resolve_approval_approvals__approval_id__resolve_post"])
        .on(Resource::Approval).owned().scopes(&["approvals:write"]).also_upstream(ADMIN)
        .json(&["status", "resolved_by", "resolution_data"]).user(&[Place::Json("resolved_by")])
        .tool("resolve_approval"),
];
