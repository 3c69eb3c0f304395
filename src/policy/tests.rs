//! The behaviour of policies: what the shipped ones answer, what loading refuses, what is kept.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may panic")]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

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

// --- Loading

const PERMIT_ALL: &str = "@id(\"all\")\npermit (principal, action, resource);\n";

#[test]
fn every_problem_is_told_at_once_with_place_and_help() {
    let errors = load(&[
        ("a.cedar", "// a comment\n@id(\"typo\")\nforbid (principal, action, resource)\nwhen { resource.tenantt == principal.tenant };\n"),
        ("b.cedar", "permit (principal, action == Tollbridge::Action::\"get_agentz\", resource);\n"),
        ("c.cedar", "@id(\"broken\")\npermit (principal, action resource);\n"),
        ("d.cedar", "@id(\"door\")\nforbid (principal, action, resource)\nwhen { context.door == \"mpc\" };\n"),
        ("e.cedar", "@id(\"never\")\npermit (principal, action == Tollbridge::Action::\"get_agent\", resource is Tollbridge::Session);\n"),
        ("f.cedar", "@id(\"unguarded\")\npermit (principal, action, resource) when { resource.owner == \"x\" };\n"),
        ("g.cedar", "@id(\"slot\")\npermit (principal == ?principal, action, resource);\n"),
        ("h.cedar", "@id(\"door\")\npermit (principal, action, resource);\n@id(\"not plain\")\npermit (principal, action, resource);\n"),
        ("shadow/a.cedar", "permit (principal, action, resource);"),
        ("ignored.cedar.example", "nonsense"),
    ]);
    assert_eq!(errors.unwrap_err(), PROBLEMS);
}

#[test]
fn a_directory_without_policies_is_refused() {
    let help = "\n       help: without a policy every call would be refused: copy the shipped `policies/` or set `dir` in `[policy]`";
    for files in [&[][..], &[("a.cedar", "// nothing yet\n")], &[("shadow/a.cedar", PERMIT_ALL)]] {
        assert_eq!(load(files).unwrap_err(), format!("policies: no policy found in `*.cedar`{help}"));
    }
    let settings = Settings { dir: "no/such/dir".into(), scopes: ScopesMode::Add };
    let error = Policies::load(&settings, &rows()).unwrap_err().to_string();
    assert_eq!(error, format!("no/such/dir: no policy found in `*.cedar`{help}"));
}

#[test]
fn operation_ids_that_break_the_schema_are_refused() {
    static GROUP: Operation = row("read", Resource::Os, Action::Read, Reach::OsWide, &[]);
    let dir = written(&[("a.cedar", PERMIT_ALL)]);
    let settings = Settings { dir: dir.path().to_owned(), scopes: ScopesMode::Add };
    let errors = Policies::load(&settings, &[&GROUP]).unwrap_err();
    assert_eq!(errors.errors.len(), 1);
    assert!(errors.to_string().starts_with("[[operation]]: the catalogue makes no valid schema: "), "{errors}");
}

#[test]
fn a_policy_is_found_by_its_id() {
    let policies = load(&[("a.cedar", PERMIT_ALL), ("shadow/b.cedar", "\n@id(\"all\") permit (principal, action, resource);")]);
    let location = policies.unwrap().location("all").cloned().unwrap();
    assert!(location.file.ends_with("a.cedar"), "{location:?}");
    assert_eq!(location.line, 1);
}

// --- Deciding

#[test]
fn a_policy_that_fails_denies_even_when_others_permit() {
    let overflow = "@id(\"fails\")\nforbid (principal, action, resource)\nwhen { context.message_bytes + 9223372036854775807 > 0 };";
    let policies = load(&[("a.cedar", PERMIT_ALL), ("b.cedar", overflow)]).unwrap();
    let (caller, tenants) = (principal(&[], &[]), [tenant("acme")]);
    let mut ask = ask(&caller, "get_agents", "", &tenants);
    ask.context.message_bytes = 1;
    let fails: Arc<[Arc<str>]> = Arc::from([Arc::from("fails")]);
    assert_eq!(policies.decide(&ask), Decision::Deny { policies: fails, errors: true, shadow: None });
}

#[test]
fn what_cannot_be_asked_is_denied() {
    static UNKNOWN: Operation = row("unknown", Resource::Agent, Action::Read, Reach::Component, &[]);
    let policies = load(&[("a.cedar", PERMIT_ALL)]).unwrap();
    let (caller, tenants) = (principal(&["admin"], &[]), [tenant("acme")]);
    let good = ask(&caller, "get_agents", "", &tenants);
    let wrong_kind = Ask { resource: ResourceFacts { kind: Resource::Team, ..good.resource }, ..good };
    let wrong_row = Ask { operation: &UNKNOWN, ..good };
    assert!(policies.decide(&good).is_allow());
    assert_eq!(policies.decide(&wrong_kind), Decision::broken());
    assert_eq!(policies.decide(&wrong_row), Decision::broken());
}

#[test]
fn services_are_not_users() {
    let text = "@id(\"machines\")\npermit (principal is Tollbridge::Service, action, resource)\nwhen { principal has plan && principal.plan == \"pro\" };";
    let policies = load(&[("a.cedar", text)]).unwrap();
    let tenants = [tenant("acme")];
    for (kind, plan, allowed) in [
        (PrincipalKind::Service, Some("pro"), true),
        (PrincipalKind::Service, Some("free"), false),
        (PrincipalKind::Service, None, false),
        (PrincipalKind::User, Some("pro"), false),
    ] {
        let caller = Principal::new(kind, "key:ci", tenant("acme"), vec![], vec![], plan.map(Into::into), None);
        assert_eq!(policies.decide(&ask(&caller, "get_agents", "", &tenants)).is_allow(), allowed, "{kind:?} {plan:?}");
    }
}

#[test]
fn decisions_are_kept_and_told_apart_by_every_fact() {
    let policies = shipped();
    let (acme, both) = ([tenant("acme")], [tenant("acme"), tenant("globex")]);
    let (alice, other) = (principal(&["admin"], &[]), principal(&["admin"], &["agents:run"]));
    let base = ask(&alice, "resolve_approval", "a1", &acme);
    let approval = |requested_by| Some(ApprovalFacts { tool_name: None, status: Some("pending"), requested_by });
    let facts = base.resource;
    let asks = [
        base,
        Ask { principal: &other, ..base },
        Ask { operation: operation("get_approval"), ..base },
        Ask { resource: ResourceFacts { id: "a2", ..facts }, ..base },
        Ask { resource: ResourceFacts { tenants: &both, ..facts }, ..base },
        Ask { resource: ResourceFacts { owner: Some("a1"), ..facts }, ..base },
        Ask { resource: ResourceFacts { tenant: Some(&acme[0]), ..facts }, ..base },
        Ask { resource: ResourceFacts { component: Some("web"), ..facts }, ..base },
        Ask { resource: ResourceFacts { approval: approval(None), ..facts }, ..base },
        Ask { resource: ResourceFacts { approval: approval(Some("alice")), ..facts }, ..base },
        Ask { context: Context { door: "mcp", ..base.context }, ..base },
        Ask { context: Context { cluster: "blue", ..base.context }, ..base },
        Ask { context: Context { human: true, ..base.context }, ..base },
    ];
    let first: Vec<Decision> = asks.iter().map(|ask| policies.decide(ask)).collect();
    let again: Vec<Decision> = asks.iter().map(|ask| policies.decide(ask)).collect();
    for (index, (one, two)) in first.iter().zip(&again).enumerate() {
        assert!(Arc::ptr_eq(one.policies(), two.policies()), "ask {index} was decided twice");
        let alike = first.iter().filter(|other| Arc::ptr_eq(one.policies(), other.policies())).count();
        assert_eq!(alike, 1, "ask {index} took the decision of another one");
    }
    let later = Context { now: UNIX_EPOCH, source_ip: [10, 0, 0, 1].into(), message_bytes: 7, ..base.context };
    let same = policies.decide(&Ask { context: later, ..base });
    assert!(Arc::ptr_eq(same.policies(), first[0].policies()));
}

#[test]
fn policies_that_read_the_clock_are_decided_afresh() {
    let hours = "@id(\"hours\")\nforbid (principal, action == Tollbridge::Action::\"resolve_approval\", resource)\nunless { context.now.toTime() < duration(\"18h\") };";
    let policies = load(&[("a.cedar", PERMIT_ALL), ("b.cedar", hours)]).unwrap();
    let (caller, tenants) = (principal(&[], &[]), [tenant("acme")]);
    let at = |id, now| {
        let ask = ask(&caller, id, "a1", &tenants);
        policies.decide(&Ask { context: Context { now: instant::parse(now).unwrap(), ..ask.context }, ..ask })
    };
    assert!(at("resolve_approval", "2026-11-02T17:59:59Z").is_allow());
    assert!(!at("resolve_approval", "2026-11-02T18:00:00Z").is_allow());
    // Only operations that such a policy applies to pay for it.
    let (one, two) = (at("get_approval", "2026-11-02T17:00:00Z"), at("get_approval", "2026-11-02T19:00:00Z"));
    assert!(Arc::ptr_eq(one.policies(), two.policies()));
}

#[test]
fn what_a_policy_reads_is_seen_wherever_it_stands() {
    for (condition, volatile) in [
        ("context.human", false),
        ("context.cluster == \"now\"", false),
        ("principal.subject == \"source_ip\"", false),
        ("if context.human then context.now > datetime(\"2026-01-01\") else true", true),
        ("[1, context.message_bytes].contains(2)", true),
        ("{ place: context.source_ip }.place.isLoopback()", true),
        ("context has message_bytes && context.human", true),
        ("{ c: context }.c.message_bytes > 1", true),
        ("context == context", true),
    ] {
        let text = format!("@id(\"p\") permit (principal, action, resource) when {{ {condition} }};");
        let policy = cedar_policy::Policy::parse(None, text).unwrap();
        assert_eq!(lint::Reading::of(&policy).is_volatile(), volatile, "{condition}");
    }
}

#[test]
fn shadow_policies_are_reported_and_not_enforced() {
    let forbid = "@id(\"no-runs\")\nforbid (principal, action in Tollbridge::Action::\"run\", resource);";
    let narrower = "@id(\"all\")\npermit (principal, action in Tollbridge::Action::\"read\", resource);";
    let (caller, tenants) = (principal(&[], &[]), [tenant("acme")]);
    let all: Arc<[Arc<str>]> = Arc::from([Arc::from("all")]);
    let answers = |shadow: &str, id: &str| {
        let policies = load(&[("a.cedar", PERMIT_ALL), ("shadow/b.cedar", shadow)]).unwrap();
        policies.decide(&ask(&caller, id, "web", &tenants))
    };
    let allow = |shadow: Option<Shadow>| Decision::Allow { policies: Arc::clone(&all), shadow: shadow.map(Arc::new) };
    let denied = |ids: &[&str]| Shadow { allow: false, policies: ids.iter().map(|&id| id.into()).collect(), errors: false };
    assert_eq!(answers(forbid, "create_agent_run"), allow(Some(denied(&["no-runs"]))));
    assert_eq!(answers(forbid, "get_agent"), allow(None));
    // A shadow policy with the id of an enforced one is tried in its place.
    assert_eq!(answers(narrower, "create_agent_run"), allow(Some(denied(&[]))));
    assert_eq!(answers(narrower, "get_agent"), allow(None));
}

// --- Schema and cases

#[test]
fn the_schema_names_every_operation() {
    let schema = Policies::schema(&rows());
    for row in ROWS {
        let line = format!(
            "  action \"{}\" in [\"{}\"] appliesTo {{ principal: [User, Service], resource: [{}], context: CallContext }};\n",
            row.id, row.action, row.resource
        );
        assert!(schema.contains(&line), "{schema}");
    }
}

#[test]
fn a_case_that_fails_says_what_came_instead() {
    let policies = shipped();
    let failure = |change: Change| {
        let mut case = case("c", "viewer", "", "get_agents", "allow viewer-reads");
        change(&mut case);
        let text = policies.check(&[case]).remove(0).failure.unwrap_or_default();
        text.replace(concat!(env!("CARGO_MANIFEST_DIR"), "/"), "")
    };
    let changes: [Change; 9] = [
        |_| (),
        |c| c.expect = Expect::Deny,
        |c| c.principal.roles.clear(),
        |c| c.policies = Some(vec![]),
        |c| c.operation = "get_agentz".into(),
        |c| c.policies = Some(vec!["viewer-read".into()]),
        |c| c.principal.tenant = "a~b".into(),
        |c| c.context.door = Some("window".into()),
        |c| c.context.now = Some("noon".into()),
    ];
    let all: Vec<String> = changes.map(failure).into();
    assert_eq!(all.join("\n--\n"), CASE_FAILURES);
}

const CASE_FAILURES: &str = r#"
--
expected  deny, decided by `viewer-reads`
but got   allow
          `viewer-reads`  policies/20-roles.cedar:4
--
expected  allow, decided by `viewer-reads`
but got   deny: no policy permits it
--
expected  allow, decided by no policy
but got   allow
          `viewer-reads`  policies/20-roles.cedar:4
--
unknown operation `get_agentz`
help: did you mean `get_agent`?
--
unknown policy `viewer-read`
help: did you mean `viewer-reads`?
--
tenant name `a~b` must be 1 to 64 characters of `A-Z a-z 0-9 . _ -`
--
unknown door `window`
--
`now` is `noon`, not like `2026-11-02T09:00:00Z`"#;

const PROBLEMS: &str = r#"policies/a.cedar:4:8: attribute `tenantt` on entity type `Tollbridge::Agent` not found
       help: did you mean `tenant`?
policies/b.cedar:1:1: policy has no `@id`
       help: write `@id("short-name")` before it, of `a-z A-Z 0-9 . _ -`: decisions, logs and metrics name it
policies/b.cedar:1:30: unrecognized action `Tollbridge::Action::"get_agentz"`
       help: did you mean `get_agent`?
policies/c.cedar:2:27: unexpected token `resource`
policies/d.cedar:3:24: `context.door` is never `mpc`
       help: did you mean `mcp`?
policies/e.cedar:1:1: policy can never apply: no call satisfies its head and conditions
       help: compare the type of `resource` and the attributes with the schema of the action
policies/f.cedar:2:45: unable to guarantee safety of access to optional attribute `owner` on entity type `Tollbridge::Agent`
       help: try testing for the attribute's presence with `e has owner && ..`
policies/g.cedar:1:1: `?principal` and `?resource` have nothing to be filled with
       help: write the policy for roles or attributes instead
policies/h.cedar:1:1: policy id `door` is taken by policies/d.cedar:1
       help: ids name policies in logs and metrics: choose another one
policies/h.cedar:3:1: policy id `not plain` is not 1 to 64 plain characters
       help: write `@id("short-name")` before it, of `a-z A-Z 0-9 . _ -`: decisions, logs and metrics name it
policies/shadow/a.cedar:1:1: policy has no `@id`
       help: write `@id("short-name")` before it, of `a-z A-Z 0-9 . _ -`: decisions, logs and metrics name it"#;
