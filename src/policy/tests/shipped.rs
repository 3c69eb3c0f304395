//! What the shipped policies answer.

use super::*;

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

/// Asks every operation of the catalogue of a shared cluster and returns the ids of those allowed.
fn allowed(policies: &Policies, caller: &Principal, facts: ResourceFacts<'_>) -> Vec<&'static Operation> {
    let catalog = Catalog::shipped();
    let may = |operation: &&'static Operation| {
        let resource = ResourceFacts { kind: operation.resource, ..facts };
        policies.decide(&Ask { principal: caller, operation, resource, context: context() }).is_allow()
    };
    catalog.rows().iter().filter(may).collect()
}

#[test]
fn roles_keep_to_their_groups_over_the_whole_catalogue() {
    let (policies, tenants) = (shipped(), [tenant("acme"), tenant("globex")]);
    let facts = ResourceFacts::new(Resource::Os, "x", &tenants);
    let of = |roles: &[&str]| allowed(&policies, &principal(roles, &[]), facts);
    let ids = |rows: Vec<&'static Operation>| rows.iter().map(|row| row.id).collect::<Vec<_>>().join(" ");
    assert_eq!(ids(of(&[])), "health_check get_quota");
    assert!(of(&["viewer"]).iter().all(|row| row.action == Action::Read && row.reach != Reach::OsWide));
    assert!(
        of(&["operator"])
            .iter()
            .all(|row| row.reach != Reach::OsWide && row.resource != Resource::Approval || row.action == Action::Read)
    );
    assert!(of(&["admin"]).iter().all(|row| row.reach != Reach::OsWide));
    // What an approval let happen once is nobody's to repeat.
    let once = |row: &&Operation| !row.id.starts_with("repeat_approved_");
    let everything = Catalog::shipped().rows().iter().filter(once).count();
    assert_eq!(everything + 2, Catalog::shipped().rows().len());
    assert_eq!(of(&["admin", "platform_admin"]).len(), everything);
    let alone = ResourceFacts { tenants: &tenants[..1], ..facts };
    assert_eq!(allowed(&policies, &principal(&["admin"], &[]), alone).len(), everything);
    // A cluster that tenants outside the table may use as well is nobody's alone, and the caller's too.
    let open = |tenants| ResourceFacts { tenants, open: true, ..facts };
    let shared = ids(of(&["admin"]));
    for tenants in [&tenants[..1], &tenants[1..], &[]] {
        assert_eq!(ids(allowed(&policies, &principal(&["admin"], &[]), open(tenants))), shared);
    }
    let strangers = ResourceFacts { tenants: &tenants[1..], ..facts };
    assert_eq!(ids(allowed(&policies, &principal(&["admin", "platform_admin"], &["agent_os:admin"]), strangers)), "");
}

#[test]
fn a_slice_answers_like_the_whole_set() {
    let policies = shipped();
    let mut whole = cedar_policy::PolicySet::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("policies")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "cedar") {
            let file = cedar_policy::PolicySet::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
            for policy in file.policies() {
                whole.add(policy.new_id(cedar_policy::PolicyId::new(policy.annotation("id").unwrap()))).unwrap();
            }
        }
    }
    let tenants = [tenant("acme"), tenant("globex")];
    let callers = [&["viewer"][..], &["operator", "approver"], &["admin"]]
        .map(|roles| principal(roles, &["agents:read", "approvals:write"]));
    for (operation, caller) in policies.rows.values().flat_map(|row| callers.iter().map(move |caller| (*row, caller))) {
        for (owner, owner_tenant) in
            [(None, None), (Some("alice"), Some(&tenants[0])), (Some("bob"), Some(&tenants[0]))]
        {
            let resource =
                ResourceFacts { owner, tenant: owner_tenant, ..ResourceFacts::new(operation.resource, "x", &tenants) };
            let ask = Ask { principal: caller, operation, resource, context: context() };
            let slice = &policies.slices[operation.id];
            let (request, entities) =
                policies.names.build(&ask, &slice.action, ScopesMode::Add, Reads::ALL, None).unwrap();
            let response = cedar_policy::Authorizer::new().is_authorized(&request, &whole, &entities);
            let mut ids: Vec<&str> = response.diagnostics().reason().map(AsRef::as_ref).collect();
            ids.sort_unstable();
            let decision = policies.decide(&ask);
            let named: Vec<&str> = decision.policies().iter().map(|id| &**id).collect();
            let allow = response.decision() == cedar_policy::Decision::Allow;
            assert_eq!((decision.is_allow(), named), (allow, ids), "{} {:?} {owner:?}", operation.id, caller.roles);
        }
    }
}

/// The names of both AgentOS versions, spelled for all components, any component and the one that is called: as a
/// ceiling each of them leaves what the roles allow, and no scope for something else does.
#[test]
fn as_a_ceiling_every_spelling_of_a_row_s_scopes_counts_and_no_other_does() {
    let policies = shipped();
    let slices = |row: &Operation| &policies.slices[row.id];
    let tenants = [tenant("acme")];
    let facts =
        |row: &Operation| ResourceFacts { component: Some("web"), ..ResourceFacts::new(row.resource, "web", &tenants) };
    let decide = |row: &'static Operation, scope: &str| {
        let caller = principal(&["admin", "platform_admin"], &[scope]);
        let ask = Ask { principal: &caller, operation: row, resource: facts(row), context: context() };
        let decision = policies.evaluate(slices(row), &ask, ScopesMode::Ceiling);
        (decision.is_allow(), decision.policies().iter().any(|policy| &**policy == "scope-ceiling"))
    };
    let once = |row: &&&Operation| !row.id.starts_with("repeat_approved_") && !row.scopes.is_empty();
    for row in policies.rows.values().filter(once) {
        assert_eq!(decide(row, "agent_os:admin"), (true, false), "{}", row.id);
        for scope in row.scopes {
            let (family, action) = scope.split_once(':').unwrap();
            let per_id = ["agents", "teams", "workflows"].contains(&family);
            let (any, this) = (format!("{family}:*:{action}"), format!("{family}:web:{action}"));
            assert_eq!(decide(row, scope), (true, false), "{} {scope}", row.id);
            assert_eq!(decide(row, &any), (true, false), "{} {any}", row.id);
            assert_eq!(decide(row, &this), (per_id, !per_id), "{} {this}", row.id);
            let strangers = [
                format!("{family}:other:{action}"),
                format!("{family}:{action}x"),
                format!("x{scope}"),
                format!("{family}:{}", if action == "read" { "delete" } else { "look" }),
                family.to_owned(),
            ];
            for other in strangers.iter().filter(|other| !row.scopes.contains(&other.as_str())) {
                assert_eq!(decide(row, other), (false, true), "{} {other}", row.id);
            }
        }
    }
}

/// What the two versions call the same right, and the families that only one of them has.
#[test]
fn scope_names_of_both_agentos_versions_open_their_rows() {
    let policies = shipped();
    let tenants = [tenant("acme")];
    for (id, scopes) in [
        ("get_config", &["config:read", "system:read"][..]),
        ("get_agents", &["agents:read"]),
        ("create_team_run", &["teams:run"]),
        ("create_workflow_run", &["workflows:run"]),
        ("delete_session", &["sessions:delete"]),
        ("update_memory", &["memories:write"]),
        ("search_knowledge", &["knowledge:read"]),
        ("run_eval", &["evals:write"]),
        ("get_metrics", &["metrics:read"]),
        ("get_traces", &["traces:read"]),
        ("create_schedule", &["schedules:write"]),
        ("resolve_approval", &["approvals:write"]),
    ] {
        let row = policies.rows[id];
        let ceiling = |scope: &str| {
            let caller = principal(&["admin"], &[scope]);
            let resource = ResourceFacts::new(row.resource, "", &tenants);
            let ask = Ask { principal: &caller, operation: row, resource, context: context() };
            policies.evaluate(&policies.slices[id], &ask, ScopesMode::Ceiling).is_allow()
        };
        assert!(scopes.iter().all(|scope| ceiling(scope)), "{id} {scopes:?} {:?}", row.scopes);
        assert!(!ceiling("nothing:read"), "{id}");
    }
}
