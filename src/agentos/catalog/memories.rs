//! Owns the rows of what AgentOS remembers about users: memories and learnings.

use super::row::{delete, get, patch, post};
use crate::agentos::operation::{ListScope::Own, Operation, Place, Reply, Resource};

#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    get("get_memories", "/memories")
        .on(Resource::Memory).owned().scopes(&["memories:read"])
        .query(&["user_id", "agent_id", "team_id", "search_content", "limit", "page", "sort_by", "sort_order",
                 "db_id", "table", "topics"])
        .user(&[Place::Query("user_id")]).list("data", "memory_id", Own)
        .tool("list_memories"),
    post("create_memory", "/memories")
        .on(Resource::Memory).owned().scopes(&["memories:write"])
        .query(&["db_id", "table"]).json(&["memory", "user_id", "topics"]).user(&[Place::Json("user_id")])
        .tool("add_memory"),
    // `memory_ids` is an array; AgentOS narrows it to the rows of `user_id`.
    delete("delete_memories", "/memories")
        .on(Resource::Memory).owned().scopes(&["memories:delete"])
        .query(&["db_id", "table"]).json(&["memory_ids", "user_id"]).user(&[Place::Json("user_id")])
        .reply(Reply::Empty),
    get("get_memory", "/memories/{memory_id}")
        .on(Resource::Memory).owned().scopes(&["memories:read"])
        .query(&["user_id", "db_id", "table"]).user(&[Place::Query("user_id")]),
    // 2.5.6 changes the memory of any user, whatever `user_id` says: its owner has to be looked up first.
    patch("update_memory", "/memories/{memory_id}")
        .on(Resource::Memory).owned().scopes(&["memories:write"])
        .query(&["db_id", "table"]).json(&["memory", "user_id", "topics"]).user(&[Place::Json("user_id")]),
    delete("delete_memory", "/memories/{memory_id}")
        .on(Resource::Memory).owned().scopes(&["memories:delete"])
        .query(&["user_id", "db_id", "table"]).user(&[Place::Query("user_id")]).reply(Reply::Empty),
    get("get_memory_topics", "/memory_topics")
        .on(Resource::Memory).owned().scopes(&["memories:read"])
        .query(&["user_id", "db_id", "table"]).user(&[Place::Query("user_id")]),
    get("get_user_memory_stats", "/user_memory_stats")
        .on(Resource::Memory).owned().scopes(&["memories:read"])
        .query(&["limit", "page", "user_id", "db_id", "table"])
        .user(&[Place::Query("user_id")]).list("data", "user_id", Own),
    post("optimize_memories", "/optimize-memories")
        .on(Resource::Memory).owned().model().scopes(&["memories:write"])
        .query(&["db_id", "table"]).json(&["user_id", "model", "apply"]).user(&[Place::Json("user_id")]),

    // Learnings without an owner (global ones) belong to nobody here: only lists of one's own are served.
    get("list_learnings", "/learnings").v3()
        .on(Resource::Learning).owned().scopes(&["learnings:read"])
        .query(&["learning_type", "user_id", "agent_id", "team_id", "session_id", "namespace", "entity_id",
                 "entity_type", "limit", "page", "sort_by", "sort_order", "db_id", "table"])
        .user(&[Place::Query("user_id")]).session(&[Place::Query("session_id")]).list("data", "learning_id", Own),
    post("create_learning", "/learnings").v3()
        .on(Resource::Learning).owned().scopes(&["learnings:write"])
        .query(&["db_id", "table"])
        .json(&["learning_type", "content", "namespace", "user_id", "agent_id", "team_id", "session_id",
                "entity_id", "entity_type", "metadata"])
        .user(&[Place::Json("user_id")]).session(&[Place::Json("session_id")]),
    get("list_learning_users", "/learnings/users").v3()
        .on(Resource::Learning).owned().scopes(&["learnings:read"])
        .query(&["learning_type", "user_id", "limit", "page", "sort_by", "sort_order", "db_id", "table"])
        .user(&[Place::Query("user_id")]).list("data", "user_id", Own),
    delete("delete_learning_user", "/learnings/users/{user_id}").v3()
        .on(Resource::Learning).owned().scopes(&["learnings:delete"])
        .query(&["learning_type", "db_id", "table"]).user(&[Place::Path("user_id")]).reply(Reply::Empty),
    get("get_learning", "/learnings/{learning_id}").v3()
        .on(Resource::Learning).owned().scopes(&["learnings:read"]).query(&["db_id", "table"]),
    patch("update_learning", "/learnings/{learning_id}").v3()
        .on(Resource::Learning).owned().scopes(&["learnings:write"])
        .query(&["db_id", "table"]).json(&["content", "metadata"]),
    delete("delete_learning", "/learnings/{learning_id}").v3()
        .on(Resource::Learning).owned().scopes(&["learnings:delete"])
        .query(&["db_id", "table"]).reply(Reply::Empty),
];
