//! The behaviour of policies: what the shipped ones answer, what loading refuses, what is kept.

mod loading;
mod shipped;
mod sliced;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use super::*;
use crate::agentos::catalog::Catalog;
use crate::agentos::{Action, List, ListScope, Method, Reach, Resource};
use crate::principal::{Principal, PrincipalKind, TenantId};

const fn row(
    id: &'static str,
    resource: Resource,
    action: Action,
    reach: Reach,
    scopes: &'static [&'static str],
) -> Operation {
    let destructive = matches!(action, Action::Delete);
    Operation { resource, action, scopes, reach, destructive, ..Operation::new(id, Method::Get, "/") }
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
    let rows: Vec<&'static Operation> = Catalog::shipped().rows().iter().collect();
    Policies::load(&Settings { dir, scopes: ScopesMode::Add }, &rows).unwrap_or_else(|errors| panic!("\n{errors}"))
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
    Ask {
        principal,
        operation,
        resource: ResourceFacts::new(operation.resource, resource_id, tenants),
        context: context(),
    }
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

const PERMIT_ALL: &str = "@id(\"all\")\npermit (principal, action, resource);\n";

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
        Ask { resource: ResourceFacts { open: true, ..facts }, ..base },
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
    let denied =
        |ids: &[&str]| Shadow { allow: false, policies: ids.iter().map(|&id| id.into()).collect(), errors: false };
    assert_eq!(answers(forbid, "create_agent_run"), allow(Some(denied(&["no-runs"]))));
    assert_eq!(answers(forbid, "get_agent"), allow(None));
    // A shadow policy with the id of an enforced one is tried in its place.
    assert_eq!(answers(narrower, "create_agent_run"), allow(Some(denied(&[]))));
    assert_eq!(answers(narrower, "get_agent"), allow(None));
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
help: doors are `http`, `mcp`, `websocket`
--
`now` is `noon`, not like `2026-11-02T09:00:00Z`"#;
