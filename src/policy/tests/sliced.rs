//! Leaving policies out changes nothing: for shipped and generated policies and generated calls, the sliced answer
//! is the one that Cedar gives when it is asked about every policy with every fact.

use std::collections::BTreeSet;

use cedar_policy::{Authorizer, Decision as CedarDecision, PolicyId, PolicySet};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::super::attribute::Reads;
use super::super::entities::Names;
use super::super::load::Loaded;
use super::super::sieve::Known;
use super::super::slice::{self, Slice};
use super::*;

/// A call written down.
#[derive(Debug, Clone)]
struct Scene {
    operation: &'static Operation,
    principal: Principal,
    id: &'static str,
    tenants: Vec<TenantId>,
    open: bool,
    owner: Option<&'static str>,
    tenant: Option<TenantId>,
    component: Option<&'static str>,
    approval: Option<ApprovalFacts<'static>>,
    context: Context<'static>,
    mode: ScopesMode,
}

impl Scene {
    fn ask(&self) -> Ask<'_> {
        Ask {
            principal: &self.principal,
            operation: self.operation,
            resource: ResourceFacts {
                open: self.open,
                owner: self.owner,
                tenant: self.tenant.as_ref(),
                component: self.component,
                approval: self.approval,
                ..ResourceFacts::new(self.operation.resource, self.id, &self.tenants)
            },
            context: self.context,
        }
    }
}

const WORDS: [&str; 6] = ["alice", "bob", "web", "web-1", "acme", ""];
const ROLES: [&str; 6] = ["viewer", "operator", "approver", "admin", "platform_admin", "web"];
const SCOPES: [&str; 8] = [
    "agents:read",
    "agents:run",
    "agents:*:run",
    "agents:web:run",
    "agents:web:read",
    "sessions:read",
    "approvals:write",
    "agent_os:admin",
];

fn words(list: &[&str]) -> Vec<Arc<str>> {
    list.iter().map(|&word| word.into()).collect()
}

fn maybe_word() -> impl Strategy<Value = Option<&'static str>> {
    proptest::option::of(select(&WORDS[..]))
}

fn caller() -> impl Strategy<Value = Principal> {
    let kind = select(&[PrincipalKind::User, PrincipalKind::Service][..]);
    let (roles, scopes) = (subsequence(&ROLES[..], 0..=3), subsequence(&SCOPES[..], 0..=3));
    let plan = proptest::option::of(Just("pro"));
    (kind, select(&["alice", "bob"][..]), select(&["acme", "globex"][..]), roles, scopes, plan).prop_map(
        |(kind, subject, of, roles, scopes, plan)| {
            Principal::new(kind, subject, tenant(of), words(&roles), words(&scopes), plan.map(Into::into), None)
        },
    )
}

fn surroundings() -> impl Strategy<Value = Context<'static>> {
    let door = select(&["http", "mcp", "websocket"][..]);
    (door, select(&["main", "blue"][..]), 0..3u64, any::<[u8; 4]>(), any::<u32>(), any::<bool>()).prop_map(
        |(door, cluster, message_bytes, address, seconds, human)| Context {
            door,
            cluster,
            now: UNIX_EPOCH + Duration::from_secs(u64::from(seconds)),
            source_ip: IpAddr::from(address),
            message_bytes,
            human,
        },
    )
}

fn scene(rows: Vec<&'static Operation>) -> impl Strategy<Value = Scene> {
    let tenants = subsequence(vec![tenant("acme"), tenant("globex"), tenant("web")], 0..=3);
    let tenants = (tenants, any::<bool>());
    let of = proptest::option::of(select(vec![tenant("acme"), tenant("globex")]));
    let approval = (maybe_word(), maybe_word(), maybe_word())
        .prop_map(|(tool_name, status, requested_by)| ApprovalFacts { tool_name, status, requested_by });
    let resource = (select(&WORDS[..]), tenants, maybe_word(), of, maybe_word(), proptest::option::of(approval));
    let mode = select(&[ScopesMode::Add, ScopesMode::Ceiling][..]);
    (select(rows), caller(), resource, surroundings(), mode).prop_map(
        |(operation, principal, (id, (tenants, open), owner, tenant, component, approval), context, mode)| Scene {
            operation,
            principal,
            id,
            tenants,
            open,
            owner,
            tenant,
            component,
            approval,
            context,
            mode,
        },
    )
}

/// An expression that is a string, or fails to be one.
fn text_of() -> impl Strategy<Value = String> {
    let attributes = [
        "principal.subject",
        "principal.plan",
        "resource.id",
        "resource.owner",
        "resource.component",
        "resource.status",
        "resource.requested_by",
        "context.door",
        "context.cluster",
        "context.reach",
        "context.operation",
        "context.scopes_mode",
        "context.nothing",
        "resource.requested_by",
    ];
    prop_oneof![
        4 => select(attributes.to_vec()).prop_map(str::to_owned),
        1 => select(&WORDS[..]).prop_map(|word| format!("\"{word}\"")),
        1 => Just("(if context.human then resource.id else \"web\")".to_owned()),
    ]
}

fn entity_of() -> impl Strategy<Value = String> {
    let entities = [
        "principal",
        "action",
        "resource",
        "principal.tenant",
        "resource.tenant",
        "Tollbridge::Role::\"admin\"",
        "Tollbridge::Role::\"web\"",
        "Tollbridge::Tenant::\"acme\"",
        "Tollbridge::User::\"acme~alice\"",
        "Tollbridge::Service::\"globex~bob\"",
        "Tollbridge::Agent::\"web\"",
        "Tollbridge::Session::\"\"",
        "Tollbridge::Action::\"read\"",
        "Tollbridge::Action::\"get_agent\"",
        "Other::\"web\"",
    ];
    select(entities.to_vec()).prop_map(str::to_owned)
}

fn set_of() -> impl Strategy<Value = String> {
    let listed = proptest::collection::vec(prop_oneof![text_of(), entity_of()], 0..3);
    prop_oneof![
        Just("principal.scopes".to_owned()),
        Just("context.scopes_accepted".to_owned()),
        Just("resource.tenants".to_owned()),
        Just("[\"agents:run\", \"agents:web:run\"]".to_owned()),
        Just("[\"alice\", \"web\"]".to_owned()),
        Just("[Tollbridge::Role::\"admin\", Tollbridge::Tenant::\"acme\"]".to_owned()),
        listed.prop_map(|list| format!("[{}]", list.join(", "))),
    ]
}

fn simple() -> impl Strategy<Value = String> {
    let attributes = ["owner", "tenant", "component", "plan", "status", "requested_by", "nothing", "id"];
    let types = ["User", "Service", "Agent", "Session", "Approval", "Run"];
    let patterns = ["*", "web*", "*-1", "w*b", "", "a*i*e", "*e*", "al**", "**"];
    let variables = ["principal", "resource", "context"];
    prop_oneof![
        3 => (text_of(), select(&["==", "!="][..]), text_of()).prop_map(|(l, op, r)| format!("{l} {op} {r}")),
        2 => (entity_of(), select(&["==", "!=", "in"][..]), entity_of()).prop_map(|(l, op, r)| format!("{l} {op} {r}")),
        1 => (entity_of(), set_of()).prop_map(|(l, r)| format!("{l} in {r}")),
        2 => (select(variables.to_vec()), select(attributes.to_vec())).prop_map(|(v, a)| format!("{v} has {a}")),
        1 => Just("resource has owner.name".to_owned()),
        2 => (select(&["principal", "resource"][..]), select(types.to_vec())).prop_map(|(v, t)| format!("{v} is Tollbridge::{t}")),
        1 => (select(types.to_vec()), entity_of()).prop_map(|(t, e)| format!("principal is Tollbridge::{t} in {e}")),
        2 => (set_of(), prop_oneof![text_of(), entity_of()]).prop_map(|(s, e)| format!("{s}.contains({e})")),
        2 => (set_of(), select(&["containsAny", "containsAll"][..]), set_of()).prop_map(|(l, f, r)| format!("{l}.{f}({r})")),
        1 => set_of().prop_map(|set| format!("{set}.isEmpty()")),
        2 => (text_of(), select(patterns.to_vec())).prop_map(|(text, pattern)| format!("{text} like \"{pattern}\"")),
        1 => select(&["context.human", "context.exclusive", "context.destructive", "true", "false", "resource.id"][..])
            .prop_map(str::to_owned),
        1 => select(&[
            "context.message_bytes + 9223372036854775807 > 0",
            "context.source_ip.isLoopback()",
            "context.now.toTime() < duration(\"12h\")",
            "{ a: context }.a.human",
            "context == context",
        ][..]).prop_map(str::to_owned),
    ]
}

fn condition() -> impl Strategy<Value = String> {
    simple().prop_map(|text| format!("({text})")).prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), select(&["&&", "||"][..]), inner.clone()).prop_map(|(l, op, r)| format!("({l} {op} {r})")),
            inner.clone().prop_map(|arg| format!("!{arg}")),
            (inner.clone(), inner.clone(), inner.clone()).prop_map(|(c, t, e)| format!("(if {c} then {t} else {e})")),
            (inner.clone(), select(&["==", "!="][..]), inner).prop_map(|(l, op, r)| format!("({l} {op} {r})")),
        ]
    })
}

fn policy() -> impl Strategy<Value = String> {
    let principals = [
        "principal",
        "principal in Tollbridge::Role::\"admin\"",
        "principal in Tollbridge::Tenant::\"acme\"",
        "principal == Tollbridge::User::\"acme~alice\"",
        "principal is Tollbridge::Service",
        "principal is Tollbridge::User in Tollbridge::Role::\"viewer\"",
    ];
    let actions = [
        "action",
        "action == Tollbridge::Action::\"get_agent\"",
        "action in Tollbridge::Action::\"read\"",
        "action in [Tollbridge::Action::\"run\", Tollbridge::Action::\"resolve_approval\"]",
    ];
    let resources = [
        "resource",
        "resource is Tollbridge::Session",
        "resource == Tollbridge::Agent::\"web\"",
        "resource in Tollbridge::Agent::\"web\"",
        "resource is Tollbridge::Approval in Tollbridge::Approval::\"web\"",
    ];
    let head = (select(principals.to_vec()), select(actions.to_vec()), select(resources.to_vec()));
    let clause = (select(&["when", "unless"][..]), condition()).prop_map(|(kind, text)| format!("{kind} {{ {text} }}"));
    (select(&["permit", "forbid"][..]), head, proptest::collection::vec(clause, 0..3)).prop_map(
        |(effect, (principal, action, resource), clauses)| {
            format!("{effect} ({principal}, {action}, {resource}) {};", clauses.join(" "))
        },
    )
}

fn loaded(id: &str, text: &str) -> Loaded {
    let policy = cedar_policy::Policy::parse(Some(PolicyId::new(id)), text);
    let policy = policy.unwrap_or_else(|error| panic!("{text}\n{error:?}"));
    Loaded { id: id.to_owned(), policy, file: String::new(), line: 0 }
}

/// The shipped policies and the example, as they are loaded.
fn all_shipped() -> Vec<Loaded> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("policies");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.extend(std::fs::read_dir(dir.join("examples")).unwrap().map(|entry| entry.unwrap().path()));
    files.retain(|file| file.to_string_lossy().contains(".cedar"));
    let sets = files.iter().map(|file| PolicySet::from_str(&std::fs::read_to_string(file).unwrap()).unwrap());
    let policies: Vec<cedar_policy::Policy> =
        sets.flat_map(|set| set.policies().cloned().collect::<Vec<_>>()).collect();
    let named = |policy: &cedar_policy::Policy| {
        let id = policy.annotation("id").unwrap();
        Loaded { id: id.to_owned(), policy: policy.new_id(PolicyId::new(id)), file: String::new(), line: 0 }
    };
    policies.iter().map(named).collect()
}

/// Policies prepared for slicing, and as Cedar takes them: all enforced ones, and all that are tried.
struct Both {
    names: Names,
    rules: Vec<slice::Rule>,
    enforced: PolicySet,
    tried: PolicySet,
}

impl Both {
    fn new(enforced: &[Loaded], shadow: &[Loaded]) -> Self {
        let replaced = |policy: &&Loaded| shadow.iter().all(|other| other.id != policy.id);
        let set = |list: Vec<&Loaded>| PolicySet::from_policies(list.into_iter().map(|p| p.policy.clone())).unwrap();
        Self {
            names: Names::new().unwrap(),
            rules: slice::rules(enforced, shadow).unwrap(),
            enforced: set(enforced.iter().collect()),
            tried: set(enforced.iter().filter(replaced).chain(shadow).collect()),
        }
    }

    /// Compares the sliced answer with the unsliced one.
    fn check(&self, scene: &Scene) {
        let slice = Slice::new(scene.operation, &self.names, &self.rules).unwrap();
        let ask = scene.ask();
        let glance = slice.glance(Known::of_call(&ask, scene.mode));
        let built = self.names.build(&ask, &slice.action, scene.mode, glance.reads, None).unwrap();
        let call = Some((&built.0, &built.1)).filter(|_| !glance.is_settled);
        let decision = slice.decide(&glance, call);

        let whole = self.names.build(&ask, &slice.action, scene.mode, Reads::ALL, None).unwrap();
        let expected = unsliced(&self.enforced, &whole);
        let errors = matches!(decision, Decision::Deny { errors: true, .. });
        assert_eq!((decision.is_allow(), plain(decision.policies()), errors), expected);
        let trial = Some(unsliced(&self.tried, &whole)).filter(|trial| trial.0 != expected.0);
        let shadow = decision.shadow().map(|shadow| (shadow.allow, plain(&shadow.policies), shadow.errors));
        assert_eq!(shadow, trial);
    }
}

/// What Cedar says about every policy at once, given every fact.
fn unsliced(
    set: &PolicySet,
    (request, entities): &(cedar_policy::Request, cedar_policy::Entities),
) -> (bool, Vec<String>, bool) {
    let response = Authorizer::new().is_authorized(request, set, entities);
    let failed: BTreeSet<String> = response
        .diagnostics()
        .errors()
        .map(|cedar_policy::AuthorizationError::PolicyEvaluationError(error)| error.policy_id().to_string())
        .collect();
    let allowed = response.decision() == CedarDecision::Allow;
    let reasons = response.diagnostics().reason().map(ToString::to_string).filter(|_| failed.is_empty() || !allowed);
    let deciding: BTreeSet<String> = reasons.chain(failed.iter().cloned()).collect();
    (allowed && failed.is_empty(), deciding.into_iter().collect(), !failed.is_empty())
}

fn plain(policies: &Arc<[Arc<str>]>) -> Vec<String> {
    policies.iter().map(|policy| policy.to_string()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn slicing_generated_policies_changes_no_answer(
        policies in proptest::collection::vec(policy(), 1..6),
        tried in proptest::collection::vec(policy(), 0..2),
        scenes in proptest::collection::vec(scene(rows()), 8),
    ) {
        let id = |(index, text): (usize, &String)| loaded(&format!("p{index}"), text);
        let enforced: Vec<Loaded> = policies.iter().enumerate().map(id).collect();
        let shadow: Vec<Loaded> = tried.iter().enumerate().map(id).collect();
        let both = Both::new(&enforced, &shadow);
        scenes.iter().for_each(|scene| both.check(scene));
    }

    #[test]
    fn slicing_the_shipped_policies_changes_no_answer(
        scenes in proptest::collection::vec(scene(Catalog::shipped().rows().iter().collect()), 8),
    ) {
        thread_local!(static SHIPPED: Both = Both::new(&all_shipped(), &[]));
        SHIPPED.with(|both| scenes.iter().for_each(|scene| both.check(scene)));
    }

    #[test]
    fn a_scope_is_accepted_exactly_when_it_is_listed(scene in scene(Catalog::shipped().rows().iter().collect())) {
        let ask = scene.ask();
        let held = &ask.principal.scopes;
        let listed = scopes::accepted(ask.operation, &ask.resource, held);
        let odd = ["", ":", "*", "agents", "agents::run", "agents:a:b:run", "agents:web:run ", "sessions:*:read"];
        for scope in SCOPES.iter().chain(&odd).copied().chain(ask.operation.scopes.iter().copied()) {
            assert_eq!(scopes::accepts(ask.operation, &ask.resource, held, scope), listed.contains(scope), "{scope}");
        }
        let holds = held.iter().any(|scope| listed.contains(&**scope));
        assert_eq!(held.iter().any(|scope| scopes::accepts(ask.operation, &ask.resource, held, scope)), holds);
    }
}

#[test]
fn the_shipped_policies_need_no_cedar_unless_they_read_what_changes() {
    let names = Names::new().unwrap();
    let both = Both::new(&all_shipped(), &[]);
    let (caller, tenants) = (principal(&["operator"], &["agents:read"]), [tenant("acme"), tenant("globex")]);
    for operation in rows() {
        let slice = Slice::new(operation, &names, &both.rules).unwrap();
        let ask = ask(&caller, operation.id, "web", &tenants);
        let glance = slice.glance(Known::of_call(&ask, ScopesMode::Add));
        // `office-hours`, an example, reads the clock.
        assert_eq!(glance.is_settled, operation.id != "resolve_approval", "{}", operation.id);
    }
}
