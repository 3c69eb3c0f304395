//! Tests of the table as a whole, of its rules and of matching.

use std::collections::BTreeMap;

use super::*;
use crate::agentos::operation::{
    Action, Affinity, Body, Caching, Kind, Mark, Method, OnRun, Own, Place, Reach, Reply, Resource,
};

fn find(method: &str, path: &str) -> Result<Matched, NotMatched> {
    let path = CanonicalPath::parse(path).unwrap();
    Catalog::shipped().find(&method.parse().unwrap(), &path)
}

fn found(method: &str, path: &str) -> &'static str {
    find(method, path).unwrap().operation.id
}

/// A row that passes, for a test to break.
fn row(id: &'static str, method: Method, path: &'static str) -> Operation {
    Operation { scopes: &["things:read"], ..Operation::new(id, method, path) }
}

fn problems(rows: Vec<Operation>) -> String {
    Catalog::with_rows(rows).map(|_| String::new()).unwrap_or_else(|error| error.to_string())
}

#[test]
fn shipped_rows_meet_every_rule() {
    assert_eq!(problems(Vec::new()), "");
    assert_eq!(Catalog::shipped().rows().len(), 133 + undocumented::ROWS.len() + facets::ROWS.len());
}

#[test]
fn a_literal_segment_beats_a_parameter() {
    for (method, path, id) in [
        ("GET", "/approvals/count", "get_approval_count"),
        ("GET", "/approvals/42", "get_approval"),
        ("GET", "/traces/filter-schema", "get_traces_filter_schema"),
        ("GET", "/traces/abc", "get_trace"),
        ("POST", "/databases/all/migrate", "migrate_all_databases"),
        ("POST", "/databases/main/migrate", "migrate_database"),
        ("GET", "/components/c/configs/current", "get_current_config"),
        ("GET", "/components/c/configs/3", "get_component_config"),
        ("GET", "/learnings/users", "list_learning_users"),
        ("GET", "/learnings/x", "get_learning"),
        ("GET", "/knowledge/content/sources", "get_content_by_id"),
        ("GET", "/knowledge/docs/sources", "list_content_sources"),
        ("GET", "/workflows/ws", "workflow_websocket"),
        ("GET", "/workflows/w", "get_workflow"),
        ("GET", "/", "get_api_info"),
    ] {
        assert_eq!(found(method, path), id, "{method} {path}");
    }
}

#[test]
fn a_later_route_with_the_method_beats_an_earlier_one_without() {
    assert_eq!(found("DELETE", "/approvals/count"), "delete_approval");
    assert_eq!(found("PATCH", "/components/c/configs/current"), "update_config");
    assert_eq!(found("DELETE", "/learnings/users"), "delete_learning");
    assert_eq!(found("POST", "/workflows/ws/runs"), "create_workflow_run");
}

#[test]
fn route_words_as_ids_are_ids() {
    for id in ["runs", "agents", "all", "*", "current", "count", "%5Ba%5D%2A", "..a", "a;b=c", "%252F"] {
        let matched = find("GET", &format!("/agents/{id}")).unwrap();
        assert_eq!(matched.operation.id, "get_agent");
        assert_eq!(matched.component().map(|(kind, _)| kind), Some(Kind::Agent));
    }
}

#[test]
fn an_unknown_path_and_an_unknown_method_differ() {
    for (method, path) in [("GET", "/Agents"), ("GET", "/agents/a/b"), ("PUT", "/nothing"), ("GET", "/mcp")] {
        assert_eq!(find(method, path), Err(NotMatched::Unknown), "{method} {path}");
    }
    for (method, path, allow) in [
        ("PUT", "/memories", vec![Method::Get, Method::Post, Method::Delete]),
        ("HEAD", "/agents", vec![Method::Get]),
        ("OPTIONS", "/agents/a/runs", vec![Method::Get, Method::Post]),
        ("PROPFIND", "/knowledge/search", vec![Method::Post]),
        ("get", "/agents", vec![Method::Get]),
        ("POST", "/approvals/count", vec![Method::Get, Method::Delete]),
    ] {
        assert_eq!(find(method, path), Err(NotMatched::MethodNotAllowed { allow }), "{method} {path}");
    }
}

#[test]
fn parameters_are_decoded_and_in_order() {
    let matched = find("POST", "/teams/my%20team/runs/r%C3%A9sum%C3%A9/continue").unwrap();
    let params: Vec<_> = matched.params.iter().collect();
    assert_eq!(params, [("team_id", "my team"), ("run_id", "résumé")]);
    assert_eq!(matched.component(), Some((Kind::Team, "my team")));
    assert_eq!(matched.resource_id(), Some("résumé"));
    assert_eq!(matched.at(matched.operation.run_id), Some("résumé"));
    assert_eq!(matched.at(matched.operation.session_id), None);
}

#[test]
fn a_storage_key_keeps_its_slashes() {
    let matched = find("GET", "/sessions/s/media/2026/11/a.png").unwrap();
    assert_eq!(matched.operation.id, "get_session_media");
    assert_eq!(matched.params.get("storage_key"), Some("2026/11/a.png"));
    assert_eq!(matched.resource_id(), Some("s"));
    assert_eq!(find("GET", "/sessions/s/media"), Err(NotMatched::Unknown));
}

#[test]
fn a_resource_outside_the_path_has_no_path_id() {
    assert_eq!(find("GET", "/agents/a/runs").unwrap().resource_id(), None);
    assert_eq!(find("POST", "/knowledge/search").unwrap().resource_id(), None);
    assert_eq!(find("GET", "/knowledge/content/c").unwrap().resource_id(), None);
    assert_eq!(find("GET", "/knowledge/kb/sources").unwrap().resource_id(), Some("kb"));
    assert_eq!(find("GET", "/config").unwrap().resource_id(), None);
}

#[test]
fn runs_never_take_identities_or_state_from_the_caller() {
    for row in Catalog::shipped().rows().iter().filter(|row| row.affinity == Affinity::StartsRun) {
        let Body::Form(fields) = row.body else { panic!("{}: a run is a form", row.id) };
        for name in ["run_id", "session_state", "metadata", "dependencies", "knowledge_filters", "output_schema"] {
            assert!(!fields.contains(&name), "{}: {name}", row.id);
        }
        assert_eq!(row.run_id, [Place::Form("run_id")], "{}", row.id);
        assert_eq!(row.reply, Reply::SseIfStream, "{}", row.id);
    }
}

#[test]
fn what_is_done_to_a_run_names_one_row_per_kind() {
    let catalog = Catalog::shipped();
    let ids = |on_run| Kind::ALL.iter().filter_map(|kind| catalog.on_run(*kind, on_run)).map(|row| row.id).collect();
    let expected: &[(OnRun, &[&str])] = &[
        (OnRun::Cancel, &["cancel_agent_run", "cancel_team_run", "cancel_workflow_run"]),
        (OnRun::Continue, &["continue_agent_run", "continue_team_run", "continue_workflow_run"]),
        (OnRun::Resume, &["resume_agent_run_stream", "resume_team_run_stream", "resume_workflow_run_stream"]),
        (OnRun::Fork, &["fork_agent_run", "fork_team_run"]),
        (OnRun::Regenerate, &["regenerate_agent_run", "regenerate_team_run"]),
        (OnRun::RepeatApproved, &["repeat_approved_agent_run", "repeat_approved_team_run"]),
        (OnRun::Other, &[]),
    ];
    for (on_run, rows) in expected {
        let found: Vec<&str> = ids(*on_run);
        assert_eq!(found, *rows, "{on_run:?}");
        let all: Vec<&str> = catalog.rows().iter().filter(|row| row.does(*on_run)).map(|row| row.id).collect();
        assert_eq!(all, *rows, "{on_run:?} is done by one row of a kind");
    }
}

#[test]
fn shared_answers_are_the_descriptions_of_a_cluster() {
    let with = |cache| Catalog::shipped().rows().iter().filter(|r| r.cache == cache).map(|r| r.id).collect::<Vec<_>>();
    let shared = ["get_agents", "get_agent", "get_teams", "get_team", "get_workflows", "get_workflow", "get_config"];
    assert_eq!(with(Caching::Shared), shared);
    assert_eq!(with(Caching::PerPrincipal), ["search_knowledge"]);
}

#[test]
fn tools_name_the_operations_they_stand_for() {
    let mut tools: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in Catalog::shipped().rows() {
        if let Some(tool) = row.tool {
            tools.entry(tool).or_default().push(row.id);
        }
    }
    let expected: &[(&str, &[&str])] = &[
        ("add_knowledge", &["upload_content"]),
        ("add_memory", &["create_memory"]),
        ("cancel_run", &["cancel_agent_run", "cancel_team_run", "cancel_workflow_run"]),
        ("continue_run", &["continue_agent_run", "continue_team_run", "continue_workflow_run"]),
        ("create_schedule", &["create_schedule"]),
        ("get_approval", &["get_approval"]),
        ("get_metrics", &["get_metrics"]),
        ("get_run", &["get_agent_run", "get_team_run", "get_workflow_run"]),
        ("get_session", &["get_session_by_id"]),
        ("get_trace", &["get_trace"]),
        ("knowledge_status", &["get_content_status"]),
        ("list_agents", &["get_agents", "get_teams", "get_workflows"]),
        ("list_approvals", &["list_approvals"]),
        ("list_components", &["list_components"]),
        ("list_knowledge", &["get_config"]),
        ("list_memories", &["get_memories"]),
        ("list_registry", &["list_registry"]),
        ("list_schedules", &["list_schedules"]),
        ("list_sessions", &["get_sessions"]),
        ("list_traces", &["get_traces"]),
        ("resolve_approval", &["resolve_approval"]),
        ("run_agent", &["create_agent_run", "create_team_run", "create_workflow_run"]),
        ("search_knowledge", &["search_knowledge"]),
        ("set_schedule", &["enable_schedule", "disable_schedule"]),
    ];
    assert_eq!(tools, expected.iter().map(|(tool, ids)| (*tool, ids.to_vec())).collect());
}

#[test]
fn nothing_that_is_off_or_destructive_is_a_tool() {
    for row in Catalog::shipped().rows().iter().filter(|row| row.tool.is_some()) {
        assert_eq!(row.exposure, Exposure::Offered, "{}", row.id);
        assert!(!row.destructive, "{}", row.id);
    }
}

/// Which of them a caller gets is policy's business, and in which toolsets they stand that of the MCP door
/// (`os_wide_rows_are_tools_of_optional_toolsets_only`).
#[test]
fn these_os_wide_rows_and_no_others_are_behind_tools() {
    let os_wide = |row: &&Operation| row.tool.is_some() && row.reach == Reach::OsWide;
    let mut ids: Vec<&str> = Catalog::shipped().rows().iter().filter(os_wide).map(|row| row.id).collect();
    ids.sort_unstable();
    let expected = [
        "create_schedule",
        "disable_schedule",
        "enable_schedule",
        "get_metrics",
        "list_components",
        "list_registry",
        "list_schedules",
    ];
    assert_eq!(ids, expected);
}

#[test]
fn an_operator_adds_rows_and_turns_rows_on() {
    let added = row("get_widget", Method::Get, "/widgets/{widget_id}");
    let card = Catalog::shipped().get("get_agent_card").copied().unwrap();
    let on = Operation { exposure: Exposure::Offered, ..card };
    let catalog = Catalog::with_rows(vec![added, on]).unwrap();

    assert_eq!(catalog.rows().len(), Catalog::shipped().rows().len() + 1);
    assert_eq!(catalog.get("get_agent_card").unwrap().exposure, Exposure::Offered);
    let widget = CanonicalPath::parse("/widgets/w").unwrap();
    assert_eq!(catalog.find(&http::Method::GET, &widget).unwrap().operation, &added);
    assert_eq!(Catalog::shipped().find(&http::Method::GET, &widget), Err(NotMatched::Unknown));
}

#[test]
fn the_same_rows_share_one_table() {
    let twice = || Catalog::with_rows(vec![row("get_widget", Method::Get, "/widgets")]).unwrap();
    assert!(std::ptr::eq(twice().rows(), twice().rows()));
    assert!(std::ptr::eq(Catalog::shipped().rows(), Catalog::shipped().rows()));
}

#[test]
fn every_rule_is_reached() {
    let get = row("get_widget", Method::Get, "/widgets/{id}");
    let post = row("post_widget", Method::Post, "/widgets/{id}");
    let path = |path| Operation { path, ..get };
    let cancels = Operation {
        path: "/agents/{agent_id}/runs/{run_id}/stop",
        resource: Resource::Run,
        run_id: &[Place::Path("run_id")],
        affinity: Affinity::FollowsRun(OnRun::Cancel),
        ..post
    };
    let cases = [
        (Operation { id: "Get-Widget", ..get }, "id must be 1 to 64 characters of `a-z0-9_`"),
        (Operation { tool: Some("get_widget2"), ..get }, "tool `get_widget2` must be 1 to 40 characters of `a-z_`"),
        (Operation { scopes: &["widgets"], ..get }, "scope `widgets` must read `resource:action`"),
        (Operation { scopes: &[], ..get }, "no scope grants it"),
        (Operation { exposure: Exposure::Off(""), ..get }, "an operation that is off must say why"),
        (
            Operation { exposure: Exposure::Local(Own::Health), ..get },
            "only the gateway's own rows are answered locally",
        ),
        (path("widgets"), "path `widgets` must start with `/` and have no empty segment"),
        (path("/widgets/"), "path `/widgets/` must start with `/` and have no empty segment"),
        (path("/widgets/../x"), "path `/widgets/../x` has a dot segment"),
        (path("/widgets/a%2Fb"), "path segment `a%2Fb` is neither plain text nor `{name}`"),
        (path("/widgets/{Id}"), "path parameter `Id` must be of `a-z0-9_`"),
        (path("/widgets/{id}/{id}"), "path parameter `id` stands twice"),
        (path("/widgets/{id:path}/x"), "`:path` stands before the end of `/widgets/{id:path}/x`"),
        (path("/agents/{name}"), "`GET /agents/{name}` is ambiguous with `/agents/{agent_id}` of `get_agent`"),
        (path("/{x}/filter-schema"), "`GET /{x}/filter-schema` is ambiguous with `/agents/{agent_id}` of `get_agent`"),
        (Operation { id: "get_agent", ..get }, "id is taken by `GET /agents/{agent_id}`"),
        (
            Operation { session_id: &[Place::Query("session_id")], ..get },
            "an identity is said to travel in `session_id`, which the row does not have",
        ),
        (
            Operation { query: &["user_id"], reach: Reach::Owned, ..get },
            "takes a `user_id` that its row does not list as a place of the user id",
        ),
        (Operation { cache: Caching::PerPrincipal, ..post }, "only a light operation that reads may be cached"),
        (
            Operation { cache: Caching::PerPrincipal, reply: Reply::Sse, ..get },
            "only JSON answers to queries or JSON bodies are cached",
        ),
        (
            Operation { cache: Caching::Shared, reach: Reach::Owned, ..get },
            "only a `GET` of what a cluster's users share may be cached for all of them",
        ),
        (Operation { purges: &["get_agents"], ..get }, "an operation that reads purges nothing"),
        (Operation { purges: &["get_agentz"], ..post }, "purges `get_agentz`, which does not exist"),
        (Operation { purges: &["get_sessions"], ..post }, "purges `get_sessions`, which is never cached"),
        (Operation { affinity: Affinity::StartsRun, ..post }, "starts a run without the cost of a model"),
        (Operation { affinity: Affinity::FollowsRun(OnRun::Other), ..post }, "has run affinity but no run id"),
        (
            Operation { path: "/agents/{agent_id}/runs/{id}/stop", run_id: &[Place::Path("id")], ..cancels },
            "cancels, continues or resumes a run, but its path does not name the run and its component",
        ),
        (
            Operation { path: "/teams/{team_id}/agents/{agent_id}/runs/{run_id}/stop", ..cancels },
            "cancels, continues or resumes a run, but its path does not name the run and its component",
        ),
        (
            Operation { resource: Resource::Agent, ..cancels },
            "cancels, continues or resumes a run, but its resource is no run",
        ),
        (
            Operation { affinity: Affinity::FollowsRun(OnRun::Continue), ..cancels },
            "continues a run without the cost of a model",
        ),
        (
            Operation { path: "/v2/agents/{agent_id}/runs/{run_id}/cancel", affinity: Affinity::Any, ..cancels },
            "its path ends in `/{run_id}/cancel`, but its affinity is not `cancels_run`",
        ),
        (
            Operation { affinity: Affinity::FollowsRun(OnRun::Fork), ..post },
            "only the gateway's own rows are facets of others",
        ),
        (Operation { affinity: Affinity::Session, ..post }, "has session affinity but no session id"),
        (
            Operation { reply: Reply::SseIfStream, ..post },
            "streams if its form says so, but its form has no field `stream`",
        ),
        (
            Operation { list: Catalog::shipped().get("get_agents").unwrap().list, ..post },
            "a list is a JSON answer to an operation that reads",
        ),
        (Operation { body: Body::Json(&[]), ..get }, "a `GET` has no body"),
        (Operation { action: Action::Delete, ..post }, "deletes, so it is destructive"),
        (Operation { query: &["limit", "limit"], ..get }, "names `limit` twice"),
        (
            Operation { lists_within: &[("widgets", "post_widget")], ..get },
            "`post_widget` decides about `widgets`, and is no operation that reads",
        ),
        (Operation { mark: Some(Mark::Filter("filters")), ..post }, "its body has no field for the tenant's mark"),
    ];
    for (broken, text) in cases {
        let all = problems(vec![broken]);
        assert!(all.lines().any(|line| line == format!("operation `{}`: {text}", broken.id)), "{text}\nin\n{all}");
    }
}

#[test]
fn all_problems_come_in_one_go() {
    let error = Catalog::with_rows(vec![
        Operation { scopes: &[], ..row("one", Method::Get, "/one") },
        Operation { scopes: &[], ..row("two", Method::Get, "/two") },
    ])
    .unwrap_err();
    assert_eq!(error.to_string(), "operation `one`: no scope grants it\noperation `two`: no scope grants it");
}
