//! Owns the rows of the AgentOS as a whole: configuration, metrics, databases, files, registry, service accounts.

use super::row::{delete, get, patch, post, put};
use crate::agentos::operation::{Operation, Own, Reply};

/// Why `/queue` is off.
const NO_QUEUE: &str = "answers 503 unless AgentOS runs a durable queue, whose operations no row describes";

// `system:*` is what 2.x calls `config:*`; 3.x takes both.
#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    // Load balancers ask the gateway, the gateway asks AgentOS.
    get("health_check", "/health").component().local(Own::Health),
    get("get_api_info", "/").v2().component().scopes(&["config:read", "system:read"])
        .off("names the AgentOS and its version to anyone"),
    // Public in AgentOS although it counts every tenant's agents; here it takes a credential and OS-wide rights.
    get("get_info", "/info").v3().scopes(&["config:read", "system:read"]),
    // Names every agent, team, workflow and knowledge base: filtered per caller like their lists.
    get("get_config", "/config").component().scopes(&["config:read", "system:read"])
        .shared().tool("list_knowledge")
        .lists_within(&[("agents", "get_agents"), ("teams", "get_teams"), ("workflows", "get_workflows")]),
    get("get_models", "/models").v2().component().scopes(&["config:read", "system:read"]),

    // Counts of all users together, also where 3.x takes a user id to narrow them.
    get("get_metrics", "/metrics").scopes(&["metrics:read"])
        .query(&["starting_date", "ending_date", "user_id", "db_id", "table"])
        .tool("get_metrics"),
    post("refresh_metrics", "/metrics/refresh").scopes(&["metrics:write"])
        .query(&["db_id", "table", "user_id", "background"]),
    get("get_metrics_refresh_status", "/metrics/refresh/status").v3().scopes(&["metrics:read"])
        .query(&["db_id", "table"]),

    post("migrate_all_databases", "/databases/all/migrate").scopes(&["config:write", "system:write"])
        .query(&["target_version"]).destructive(),
    post("migrate_database", "/databases/{db_id}/migrate").scopes(&["config:write", "system:write"])
        .query(&["target_version"]).destructive(),

    // Files of agents: the lists show every user's unless AgentOS isolates users, shared namespaces always.
    get("list_filesystem_files", "/filesystem/files").v3().scopes(&["filesystem:read"])
        .query(&["agent_id", "namespace", "query", "sort_by", "sort_order", "page", "limit"]),
    get("list_filesystem_entries", "/filesystem/entries").v3().scopes(&["filesystem:read"])
        .query(&["namespace", "agent_id", "directory", "sort_by", "sort_order", "page", "limit"]),
    get("read_filesystem_content", "/filesystem/content").v3().scopes(&["filesystem:read"])
        .query(&["namespace", "agent_id", "path", "user_id", "offset", "limit"]),
    get("search_filesystem", "/filesystem/search").v3().scopes(&["filesystem:read"])
        .query(&["namespace", "agent_id", "query", "directory", "user_id", "page", "limit"]),

    get("list_registry", "/registry").scopes(&["registry:read"])
        .query(&["resource_type", "name", "page", "limit"])
        .tool("list_registry"),

    // Tokens made here are AgentOS's own: they open no door of the gateway, only AgentOS where it can be reached.
    get("list_service_accounts", "/service-accounts").v3().upstream(&["list_service_accounts_service_accounts_get"])
        .scopes(&["service_accounts:read"])
        .query(&["include_revoked", "limit", "page", "sort_by", "sort_order"]),
    post("create_service_account", "/service-accounts").v3()
        .upstream(&["create_service_account_service_accounts_post"])
        .scopes(&["service_accounts:write"])
        .json(&["name", "scopes", "expires_in_days", "never_expires", "allow_privileged_scopes"]),
    delete("revoke_service_account", "/service-accounts/{service_account_id}").v3()
        .upstream(&["revoke_service_account_service_accounts__service_account_id__delete"])
        .scopes(&["service_accounts:delete"]).reply(Reply::Empty),

    get("get_queue", "/queue").v3().upstream(&["disabled_queue_get"]).scopes(&["config:read"]).off(NO_QUEUE),
    post("post_queue", "/queue").v3().upstream(&["disabled_queue_post"]).scopes(&["config:write"]).off(NO_QUEUE),
    put("put_queue", "/queue").v3().upstream(&["disabled_queue_put"]).scopes(&["config:write"]).off(NO_QUEUE),
    patch("patch_queue", "/queue").v3().upstream(&["disabled_queue_patch"]).scopes(&["config:write"]).off(NO_QUEUE),
    delete("delete_queue", "/queue").v3().upstream(&["disabled_queue_delete"]).scopes(&["config:write"]).off(NO_QUEUE),
];
