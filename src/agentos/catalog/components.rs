//! Owns the rows of stored components: agents, teams and workflows kept in the database, with their versions.

use super::row::{delete, get, patch, post};
use crate::agentos::operation::{Operation, Reply, Resource};

/// What a change of a stored component makes stale.
const RUNNABLE: &[&str] =
    &["get_agents", "get_agent", "get_teams", "get_team", "get_workflows", "get_workflow", "get_config"];

// OS-wide: a component is code for every tenant of the AgentOS. 2.5.6 lets any valid token create one.
#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("list_components", "/components")
        .on(Resource::Component).scopes(&["components:read"])
        .query(&["component_type", "page", "limit", "include_deleted"])
        .tool("list_components"),
    post("create_component", "/components")
        .on(Resource::Component).scopes(&["components:write"])
        .json(&["name", "component_id", "component_type", "description", "metadata", "config", "label", "stage",
                "notes", "set_current"])
        .purges(RUNNABLE),
    get("get_component", "/components/{component_id}")
        .on(Resource::Component).scopes(&["components:read"]).query(&["include_deleted"]),
    patch("update_component", "/components/{component_id}")
        .on(Resource::Component).scopes(&["components:write"])
        .json(&["name", "description", "component_type", "metadata", "current_version", "guard"]).purges(RUNNABLE),
    delete("delete_component", "/components/{component_id}")
        .on(Resource::Component).scopes(&["components:delete"])
        .query(&["expected_current_version"]).json(&["guard"]).purges(RUNNABLE).reply(Reply::Empty),
    // AgentOS asks for the right to delete here: a restore undoes one.
    post("restore_component", "/components/{component_id}/restore").v3()
        .on(Resource::Component).scopes(&["components:delete"]).purges(RUNNABLE),

    get("list_configs", "/components/{component_id}/configs")
        .on(Resource::Component).scopes(&["components:read"]).query(&["include_config"]),
    post("create_config", "/components/{component_id}/configs")
        .on(Resource::Component).scopes(&["components:write"])
        .json(&["config", "version", "label", "stage", "notes", "links", "set_current", "guard"]).purges(RUNNABLE),
    get("get_current_config", "/components/{component_id}/configs/current")
        .on(Resource::Component).scopes(&["components:read"]),
    // AgentOS calls this `get_config` as well; that id is the one of `GET /config`.
    get("get_component_config", "/components/{component_id}/configs/{version}").upstream(&["get_config"])
        .on(Resource::Component).scopes(&["components:read"]),
    patch("update_config", "/components/{component_id}/configs/{version}")
        .on(Resource::Component).scopes(&["components:write"])
        .json(&["config", "label", "stage", "notes", "links", "guard"]).purges(RUNNABLE),
    delete("delete_config", "/components/{component_id}/configs/{version}")
        .on(Resource::Component).scopes(&["components:delete"]).purges(RUNNABLE).reply(Reply::Empty),
    post("set_current_config", "/components/{component_id}/configs/{version}/set-current")
        .on(Resource::Component).scopes(&["components:write"]).json(&["guard"]).purges(RUNNABLE),
];
