//! Owns the rows of knowledge bases: content, sources, search.

use super::row::{delete, get, patch, post};
use crate::agentos::operation::{ListScope::Marked, Mark, Operation, Resource};

/// What a change of content makes stale.
const SEARCHES: &[&str] = &["search_knowledge"];

// Content has no owner upstream. A cluster states whose it is: of one tenant, or told apart by a metadata key.
#[rustfmt::skip]
pub(super) static ROWS: &[Operation] = &[
    // A POST that changes nothing. Its embedding call is what a cache saves; filters differ by caller.
    post("search_knowledge", "/knowledge/search")
        .on(Resource::Knowledge).component().reads().scopes(&["knowledge:read"])
        .json(&["query", "db_id", "knowledge_id", "vector_db_ids", "search_type", "max_results", "filters", "meta"])
        .per_principal().mark(Mark::Filter("filters")).tool("search_knowledge"),
    get("get_knowledge_config", "/knowledge/config")
        .on(Resource::Knowledge).component().scopes(&["knowledge:read"]).query(&["db_id", "knowledge_id"])
        // The names of all metadata that anybody's content has.
        .mark(Mark::Mixed("filters")),

    get("get_content", "/knowledge/content")
        .on(Resource::Knowledge).component().scopes(&["knowledge:read"])
        .query(&["limit", "page", "sort_by", "sort_order", "db_id", "knowledge_id", "parent_id"])
        .list("data", "id", Marked),
    // Fetches `url` from inside AgentOS: the gateway checks it before it goes through.
    post("upload_content", "/knowledge/content")
        .on(Resource::Knowledge).component().scopes(&["knowledge:write"])
        .query(&["db_id", "knowledge_id"])
        .form(&["name", "description", "url", "metadata", "file", "text_content", "reader_id", "chunker",
                "chunk_size", "chunk_overlap"])
        .mark(Mark::Metadata("metadata")).purges(SEARCHES)
        .tool("add_knowledge"),
    // Wipes the knowledge of every tenant at once, so it is no component's own business.
    delete("delete_all_content", "/knowledge/content")
        .on(Resource::Knowledge).scopes(&["knowledge:delete"])
        .query(&["db_id", "knowledge_id"]).purges(SEARCHES),
    get("get_content_by_id", "/knowledge/content/{content_id}")
        .on(Resource::Knowledge).component().scopes(&["knowledge:read"]).query(&["db_id", "knowledge_id"]),
    patch("update_content", "/knowledge/content/{content_id}")
        .on(Resource::Knowledge).component().scopes(&["knowledge:write"])
        .query(&["db_id", "knowledge_id"]).form(&["name", "description", "metadata", "reader_id"])
        .mark(Mark::MetadataIfGiven("metadata")).purges(SEARCHES),
    delete("delete_content_by_id", "/knowledge/content/{content_id}")
        .on(Resource::Knowledge).component().scopes(&["knowledge:delete"])
        .query(&["db_id", "knowledge_id"]).purges(SEARCHES),
    post("refresh_content", "/knowledge/content/{content_id}/refresh").v3()
        .on(Resource::Knowledge).component().scopes(&["knowledge:write"])
        .query(&["db_id", "knowledge_id"]).purges(SEARCHES),
    get("get_content_status", "/knowledge/content/{content_id}/status")
        .on(Resource::Knowledge).component().scopes(&["knowledge:read"]).query(&["db_id", "knowledge_id"])
        .tool("knowledge_status"),

    // What stands in the buckets of the AgentOS is nobody's and everybody's: OS-wide.
    post("upload_remote_content", "/knowledge/remote-content")
        .on(Resource::Knowledge).scopes(&["knowledge:write"])
        .query(&["db_id", "knowledge_id"])
        .form(&["config_id", "path", "source_params", "name", "description", "metadata", "reader_id", "chunker",
                "chunk_size", "chunk_overlap"])
        .mark(Mark::Metadata("metadata")).purges(SEARCHES),
    get("list_content_sources", "/knowledge/{knowledge_id}/sources")
        .on(Resource::Knowledge).scopes(&["knowledge:read"]).query(&["db_id"]),
    get("list_source_files", "/knowledge/{knowledge_id}/sources/{source_id}/files")
        .on(Resource::Knowledge).scopes(&["knowledge:read"])
        .query(&["prefix", "limit", "page", "delimiter", "db_id"]),
];
