//! The behaviour of policies: what the shipped ones answer, what loading refuses, what is kept.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;
use crate::agentos::{
    Action, Affinity, Body, Caching, Cost, Exposure, List, ListScope, Method, Reach, Reply, Resource, Versions,
};
use crate::principal::{Principal, PrincipalKind, TenantId};

const fn row(id: &'static str, resource: Resource, action: Action, reach: Reach, scopes: &'static [&'static str]) -> Operation {
    Operation {
        id,
        upstream_ids: &[],
        versions: Versions::Both,
        method: Method::Get,
        path: "/",
        resource,
        action,
        scopes,
        reach,
        cost: Cost::Light,
        body: Body::None,
        reply: Reply::Json,
        query: &[],
        user_id: &[],
        session_id: &[],
        run_id: &[],
        cache: Caching::Never,
        purges: &[],
        affinity: Affinity::Any,
        list: None,
        tool: None,
        destructive: matches!(action, Action::Delete),
        exposure: Exposure::Offered,
    }
}

const PER_ITEM: Option<List> = Some(List { items: "", id: "id", scope: ListScope::PerItem });

#[rustfmt::skip]
static ROWS: &[Operation] = &[
    Operation { list: PER_ITEM, ..row("get_agents", Resource::Agent, Action::Read, Reach::Component, &["agents:read"]) },
    row("get_agent", Resource::Agent, Action::Read, Reach::Component, &["agents:read"]),
    row("create_agent_run", Resource::Agent, Action::Run, Reach::Component, &["agents:run"]),
    Operation { destructive: true, ..row("cancel_agent_run", Resource::Run, Action::Run, Reach::Owned, &["agents:run"]) },
    row("get_sessions", Resource::Session, Action::Read, Reach::Owned, &["sessions:read"]),
    row("get_session_by_id", Resource::Session, Action::Read, Reach::Owned, &["sessions:read"]),
    row("update_session", Resource::Session, Action::Write, Reach::Owned, &["sessions:write"]),
    row("delete_session", Resource::Session, Action::Delete, Reach::Owned, &["sessions:delete"]),
    row("update_memory", Resource::Memory, Action::Write, Reach::Owned, &["memories:write"]),
    row("list_approvals", Resource::Approval, Action::Read, Reach::Owned, &["approvals:read"]),
    row("get_approval", Resource::Approval, Action::Read, Reach::Owned, &["approvals:read"]),
    row("resolve_approval", Resource::Approval, Action::Write, Reach::Owned, &["approvals:write"]),
    row("delete_approval", Resource::Approval, Action::Delete, Reach::Owned, &["approvals:delete"]),
    row("upload_content", Resource::Knowledge, Action::Write, Reach::Component, &["knowledge:write"]),
    row("delete_all_content", Resource::Knowledge, Action::Delete, Reach::OsWide, &["knowledge:delete"]),
    row("create_component", Resource::Component, Action::Write, Reach::OsWide, &["components:write"]),
    row("get_metrics", Resource::Os, Action::Read, Reach::OsWide, &["metrics:read"]),
    row("get_quota", Resource::Os, Action::Read, Reach::Owned, &[]),
];

pub(super) fn rows() -> Vec<&'static Operation> {
    ROWS.iter().collect()
}

pub(super) fn operation(id: &str) -> &'static Operation {
    ROWS.iter().find(|row| row.id == id).unwrap()
}

pub(super) fn resource(kind: Resource, id: &str) -> ResourceFacts<'_> {
    ResourceFacts::new(kind, id, &[])
}

fn shipped() -> Policies {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    Policies::load(&Settings { dir, scopes: ScopesMode::Add }, &rows()).unwrap_or_else(|errors| panic!("\n{errors}"))
}

/// A directory of policy files, given as `(name, text)`.
fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn load(files: &[(&str, &str)]) -> Result<Policies, String> {
    let dir = written(files);
    let settings = Settings { dir: dir.path().to_owned(), scopes: ScopesMode::Add };
    Policies::load(&settings, &rows()).map_err(|e| e.to_string().replace(&dir.path().display().to_string(), "policies"))
}

fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

fn principal(roles: &[&str], scopes: &[&str]) -> Principal {
    let shared = |words: &[&str]| words.iter().map(|&w| w.into()).collect();
    Principal::new(PrincipalKind::User, "alice", tenant("acme"), shared(roles), shared(scopes), None, None)
}

fn context() -> Context<'static> {
    Context {
        door: "http",
        cluster: "main",
        now: UNIX_EPOCH + Duration::from_secs(1_793_610_000),
        source_ip: IpAddr::from([127, 0, 0, 1]),
        message_bytes: 0,
        human: false,
    }
}

fn ask<'a>(principal: &'a Principal, id: &str, resource_id: &'a str, tenants: &'a [TenantId]) -> Ask<'a> {
    let operation = operation(id);
    Ask { principal, operation, resource: ResourceFacts::new(operation.resource, resource_id, tenants), context: context() }
}

fn case(name: &str, roles: &str, scopes: &str, id: &str, expect: &str) -> Case {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    let (verdict, policies) = expect.split_once(' ').unwrap_or((expect, ""));
    Case {
        name: name.to_owned(),
        principal: CasePrincipal {
            tenant: "acme".to_owned(),
            subject: "alice".to_owned(),
            roles: words(roles),
            scopes: words(scopes),
            plan: None,
            service: false,
        },
        operation: id.to_owned(),
        resource: CaseResource::default(),
        context: CaseContext::default(),
        expect: if verdict == "allow" { Expect::Allow } else { Expect::Deny },
        policies: Some(words(policies)),
    }
}

fn failures(policies: &Policies, cases: &[Case]) -> Vec<String> {
    let failed = policies.check(cases).into_iter().filter_map(|r| Some(format!("{}\n{}", r.name, r.failure?)));
    failed.collect()
}

type Change = fn(&mut Case);

#[rustfmt::skip]
#[test]
fn shipped_policies_answer_as_promised() {
    let same: Change = |_| {};
    let bobs: Change = |c| c.resource.owner = Some("bob".into());
    let own: Change = |c| c.resource.owner = Some("alice".into());
    let elsewhere: Change = |c| { own_by(c, "bob", "globex"); };
    let exclusive: Change = |c| c.resource.tenants = Some(vec!["acme".into()]);
    let others: Change = |c| c.resource.tenants = Some(vec!["globex".into(), "initech".into()]);
    let requested: Change = |c| { own_by(c, "alice", "acme"); c.resource.requested_by = Some("alice".into()); };
    let unplaced: Change = |c| { c.resource.owner = Some("alice".into()); c.resource.tenant = Some(String::new()); };
    let unplaced_exclusive: Change = |c| {
        c.resource.owner = Some("alice".into());
        c.resource.tenant = Some(String::new());
        c.resource.tenants = Some(vec!["acme".into()]);
    };
    let mcp: Change = |c| { own_by(c, "alice", "acme"); c.context.door = Some("mcp".into()); };
    let web: Change = |c| c.resource.id = "web".into();
    let through_web: Change = |c| c.resource.component = Some("web".into());
    let ceiling: Change = |c| c.context.scopes = Some(ScopesMode::Ceiling);
    let table: &[(&str, &str, &str, Change, &str)] = &[
        ("viewer", "", "get_agents", same, "allow viewer-reads"),
        ("viewer", "", "get_sessions", same, "allow viewer-reads"),
        ("viewer", "", "create_agent_run", same, "deny"),
        ("viewer", "", "get_session_by_id", own, "allow viewer-reads"),
        ("viewer", "", "get_session_by_id", bobs, "deny owner-only"),
        ("viewer", "", "update_session", own, "deny"),
        ("", "", "get_agents", same, "deny"),
        ("unheard-of", "", "get_agents", same, "deny"),
        ("operator", "", "create_agent_run", same, "allow operator-reads-and-runs"),
        ("operator", "", "update_session", own, "allow operator-writes-own"),
        ("operator", "", "update_session", same, "allow operator-writes-own"),
        ("operator", "", "update_session", bobs, "deny owner-only"),
        ("operator", "", "cancel_agent_run", bobs, "deny owner-only"),
        ("operator", "", "upload_content", same, "deny"),
        ("operator", "", "resolve_approval", own, "deny"),
        ("operator", "", "delete_approval", own, "deny"),
        ("approver", "", "get_approval", bobs, "allow approver-reads-approvals"),
        ("approver", "", "list_approvals", same, "allow approver-reads-approvals"),
        ("approver", "", "resolve_approval", bobs, "allow approver-resolves"),
        ("approver", "", "resolve_approval", requested, "deny separation-of-duty"),
        ("approver", "", "resolve_approval", elsewhere, "deny tenant-isolation-row"),
        ("approver", "", "get_session_by_id", own, "deny"),
        ("viewer approver", "", "get_session_by_id", bobs, "deny owner-only"),
        ("admin", "", "update_session", bobs, "allow admin-does-everything"),
        ("admin", "", "update_session", elsewhere, "deny tenant-isolation-row"),
        ("admin", "", "upload_content", same, "allow admin-does-everything"),
        ("admin", "", "upload_content", others, "deny tenant-isolation-cluster"),
        ("admin", "", "resolve_approval", bobs, "allow admin-does-everything"),
        ("admin", "", "resolve_approval", requested, "deny separation-of-duty"),
        ("admin", "", "delete_all_content", same, "deny os-wide"),
        ("admin", "", "delete_all_content", exclusive, "allow admin-does-everything"),
        ("operator", "", "get_metrics", exclusive, "deny os-wide"),
        ("platform_admin", "", "delete_all_content", same, "allow platform-admin-os-wide"),
        ("platform_admin", "", "get_session_by_id", same, "deny"),
        ("platform_admin", "", "create_component", others, "deny tenant-isolation-cluster"),
        ("admin", "", "get_session_by_id", unplaced, "deny tenant-isolation-unplaced"),
        ("viewer", "", "get_session_by_id", unplaced, "deny tenant-isolation-unplaced"),
        ("viewer", "", "get_session_by_id", unplaced_exclusive, "allow viewer-reads"),
        ("admin", "", "delete_session", mcp, "deny destructive-over-mcp"),
        ("operator", "", "cancel_agent_run", mcp, "allow operator-reads-and-runs"),
        ("", "agents:run", "create_agent_run", web, "allow scope-grants"),
        ("", "agents:*:run", "create_agent_run", web, "allow scope-grants"),
        ("", "agents:web:run", "create_agent_run", web, "allow scope-grants"),
        ("", "agents:other:run", "create_agent_run", web, "deny"),
        ("", "agents:web:read", "create_agent_run", web, "deny"),
        ("", "agents:web:run", "cancel_agent_run", through_web, "allow scope-grants"),
        ("", "agents:web:run", "cancel_agent_run", same, "deny"),
        ("", "agents:web:read", "get_agents", same, "allow scope-grants"),
        ("", "agents:web:read", "get_agent", web, "allow scope-grants"),
        ("", "agents:other:read", "get_agent", web, "deny"),
        ("", "sessions:read", "get_session_by_id", bobs, "deny owner-only"),
        ("", "approvals:write", "resolve_approval", bobs, "allow scope-grants"),
        ("", "approvals:read", "resolve_approval", bobs, "deny owner-only"),
        ("", "agent_os:admin", "update_session", bobs, "allow scope-grants scope-admin-grants"),
        ("", "agent_os:admin", "update_session", elsewhere, "deny tenant-isolation-row"),
        ("", "agent_os:admin", "delete_all_content", same, "deny os-wide"),
        ("", "metrics:read", "get_metrics", exclusive, "allow scope-grants"),
        ("", "metrics:read", "get_metrics", same, "deny os-wide"),
        ("", "", "get_quota", same, "allow scope-free-reads"),
        ("operator", "agents:read", "create_agent_run", ceiling, "deny scope-ceiling"),
        ("operator", "agents:run", "create_agent_run", ceiling, "allow operator-reads-and-runs"),
        ("operator", "", "create_agent_run", ceiling, "allow operator-reads-and-runs"),
        ("viewer", "agent_os:admin", "create_agent_run", ceiling, "deny"),
        ("viewer", "agent_os:admin", "get_session_by_id", |c| { own_by(c, "bob", "acme"); c.context.scopes = Some(ScopesMode::Ceiling); }, "deny owner-only"),
        ("viewer", "agents:run", "get_quota", ceiling, "allow scope-free-reads"),
    ];
    let cases: Vec<Case> = table.iter().enumerate().map(|(index, (roles, scopes, id, change, expect))| {
        let mut case = case(&format!("{index}: [{roles}] [{scopes}] {id}"), roles, scopes, id, expect);
        change(&mut case);
        case
    }).collect();
    assert_eq!(failures(&shipped(), &cases).join("\n"), "");
}

fn own_by(case: &mut Case, owner: &str, tenant: &str) {
    case.resource.owner = Some(owner.to_owned());
    case.resource.tenant = Some(tenant.to_owned());
}
