//! Owns policy test cases: a call written down with the decision it must get.
//! Does not read files or parse TOML (`config`); cases never touch the decision cache.
//! Invariant: a case that cannot be put (an unknown operation, a bad address) fails, it is never skipped.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;

use crate::agentos::Operation;
use crate::principal::{Principal, PrincipalKind, TenantId};

use super::ask::{ApprovalFacts, Ask, Context, Decision, ResourceFacts};
use super::lint::{DOORS, nearest};
use super::{Policies, ScopesMode, instant};

/// A `*.test.toml` file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseFile {
    /// The `[[case]]` tables.
    #[serde(default)]
    pub case: Vec<Case>,
}

/// One call and the decision it must get.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What the case shows, as a sentence.
    pub name: String,
    /// Who calls.
    pub principal: CasePrincipal,
    /// Operation id.
    pub operation: String,
    /// What the call acts on.
    #[serde(default)]
    pub resource: CaseResource,
    /// The circumstances.
    #[serde(default)]
    pub context: CaseContext,
    /// The decision.
    pub expect: Expect,
    /// Policies that must be among those that decide; an empty list says that no policy decides.
    pub policies: Option<Vec<String>>,
}

/// Who calls in a case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CasePrincipal {
    /// Tenant.
    pub tenant: String,
    /// Subject, without tenant.
    pub subject: String,
    /// Role names.
    #[serde(default)]
    pub roles: Vec<String>,
    /// AgentOS scopes.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Plan.
    pub plan: Option<String>,
    /// A machine with an API key instead of a person.
    #[serde(default)]
    pub service: bool,
}

/// What a call acts on in a case; its type is the row's.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaseResource {
    /// Id; empty for a collection.
    pub id: String,
    /// Subject of the owner.
    pub owner: Option<String>,
    /// Tenant of the owner. Default: the caller's, when there is an owner; `""` for an owner of unknown tenant.
    pub tenant: Option<String>,
    /// Tenants that may use the cluster. Default: the caller's and one more.
    pub tenants: Option<Vec<String>>,
    /// Agent, team or workflow that the call goes through.
    pub component: Option<String>,
    /// Of an approval: the tool that waits.
    pub tool_name: Option<String>,
    /// Of an approval: its status.
    pub status: Option<String>,
    /// Of an approval: the subject that started the run.
    pub requested_by: Option<String>,
}

/// The circumstances in a case.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CaseContext {
    /// `http`, `mcp` or `websocket`. Default: `http`.
    pub door: Option<String>,
    /// Default: `main`.
    pub cluster: Option<String>,
    /// Such as `2026-11-02T09:00:00Z`. Default: `2026-01-05T12:00:00Z`, a Monday.
    pub now: Option<String>,
    /// Default: `127.0.0.1`.
    pub source_ip: Option<IpAddr>,
    /// Default: 0.
    pub message_bytes: u64,
    /// Default: false.
    pub human: bool,
    /// `add` or `ceiling`. Default: what `[policy] scopes` says.
    pub scopes: Option<ScopesMode>,
}

/// The decision that a case asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// The call goes on.
    Allow,
    /// The call is refused.
    Deny,
}

/// How a case came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaseResult {
    /// Name of the case.
    pub name: String,
    /// What was expected and what came instead; `None` when the case holds.
    pub failure: Option<String>,
}

/// A case with its words made values.
struct Prepared<'a> {
    case: &'a Case,
    operation: &'static Operation,
    principal: Principal,
    tenants: Vec<TenantId>,
    tenant: Option<TenantId>,
    door: &'static str,
    now: std::time::SystemTime,
}

// === impl Policies ===

impl Policies {
    /// Runs test cases, each against the enforced policies and without the cache.
    pub fn check(&self, cases: &[Case]) -> Vec<CaseResult> {
        let result = |case: &Case| CaseResult { name: case.name.clone(), failure: self.run(case).err() };
        cases.iter().map(result).collect()
    }

    fn run(&self, case: &Case) -> Result<(), String> {
        let operation = self.operation(&case.operation)?;
        let prepared = Prepared::new(case, operation)?;
        let mode = case.context.scopes.unwrap_or(self.scopes);
        let slice = self.slices.get(operation.id).ok_or("the operation has no policies")?;
        let decision = self.evaluate(slice, &prepared.ask(), mode);
        if let Some(unknown) = case.policies.iter().flatten().find(|id| !self.locations.contains_key(*id)) {
            return Err(with_help(format!("unknown policy `{unknown}`"), unknown, self.locations.keys()));
        }
        let named = |id: &String| decision.policies().iter().any(|p| **p == **id);
        let policies_hold = case.policies.as_ref().is_none_or(|expected| match expected.as_slice() {
            [] => decision.policies().is_empty(),
            expected => expected.iter().all(named),
        });
        let expected_allow = case.expect == Expect::Allow;
        if decision.is_allow() == expected_allow && policies_hold {
            Ok(())
        } else {
            Err(self.difference(case, &decision))
        }
    }

    fn operation(&self, id: &str) -> Result<&'static Operation, String> {
        let known = || self.rows.keys().copied();
        self.rows.get(id).copied().ok_or_else(|| with_help(format!("unknown operation `{id}`"), id, known()))
    }

    fn difference(&self, case: &Case, decision: &Decision) -> String {
        let mut text = String::new();
        let expected = if case.expect == Expect::Allow { "allow" } else { "deny" };
        let _ = write!(text, "expected  {expected}");
        match case.policies.as_deref() {
            None => {}
            Some([]) => text.push_str(", decided by no policy"),
            Some(policies) => text.extend([", decided by `", &policies.join("`, `"), "`"]),
        }
        let answer = match decision {
            Decision::Allow { .. } => "allow",
            Decision::Deny { errors: true, .. } => "deny, because a policy failed",
            Decision::Deny { errors: false, .. } => "deny",
        };
        let _ = write!(text, "\nbut got   {answer}");
        if decision.policies().is_empty() {
            text.push_str(": no policy permits it");
        }
        for policy in decision.policies().iter() {
            let place = self.location(policy).map_or(String::new(), |at| format!("  {}:{}", at.file, at.line));
            let _ = write!(text, "\n          `{policy}`{place}");
        }
        text
    }
}

fn with_help(message: String, word: &str, known: impl Iterator<Item = impl AsRef<str>>) -> String {
    let known: Vec<String> = known.map(|k| k.as_ref().to_owned()).collect();
    match nearest(word, known.iter().map(String::as_str)) {
        Some(near) => format!("{message}\nhelp: did you mean `{near}`?"),
        None => message,
    }
}

// === impl Prepared ===

impl<'a> Prepared<'a> {
    fn new(case: &'a Case, operation: &'static Operation) -> Result<Self, String> {
        let tenant = |name: &str| TenantId::new(name).map_err(|error| error.to_string());
        let Case { principal, resource, context, .. } = case;
        let own = tenant(&principal.tenant)?;
        let tenants = match &resource.tenants {
            Some(names) => names.iter().map(|name| tenant(name)).collect::<Result<_, _>>()?,
            None => vec![own.clone(), tenant("another-tenant")?],
        };
        let owner_tenant = match (resource.tenant.as_deref(), &resource.owner) {
            (Some(""), _) | (None, None) => None,
            (Some(name), _) => Some(tenant(name)?),
            (None, Some(_)) => Some(own.clone()),
        };
        let now = context.now.as_deref().unwrap_or("2026-01-05T12:00:00Z");
        let door = context.door.as_deref().unwrap_or("http");
        Ok(Self {
            case,
            operation,
            principal: caller(principal, own),
            tenants,
            tenant: owner_tenant,
            door: DOORS
                .into_iter()
                .find(|known| *known == door)
                .ok_or_else(|| format!("unknown door `{door}`\nhelp: doors are `{}`", DOORS.join("`, `")))?,
            now: instant::parse(now).ok_or(format!("`now` is `{now}`, not like `2026-11-02T09:00:00Z`"))?,
        })
    }

    fn ask(&self) -> Ask<'_> {
        let CaseResource { id, owner, component, tool_name, status, requested_by, .. } = &self.case.resource;
        let context = &self.case.context;
        Ask {
            principal: &self.principal,
            operation: self.operation,
            resource: ResourceFacts {
                owner: owner.as_deref(),
                tenant: self.tenant.as_ref(),
                component: component.as_deref(),
                approval: Some(ApprovalFacts {
                    tool_name: tool_name.as_deref(),
                    status: status.as_deref(),
                    requested_by: requested_by.as_deref(),
                }),
                ..ResourceFacts::new(self.operation.resource, id, &self.tenants)
            },
            context: Context {
                door: self.door,
                cluster: context.cluster.as_deref().unwrap_or("main"),
                now: self.now,
                source_ip: context.source_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                message_bytes: context.message_bytes,
                human: context.human,
            },
        }
    }
}

fn caller(principal: &CasePrincipal, tenant: TenantId) -> Principal {
    let kind = if principal.service { PrincipalKind::Service } else { PrincipalKind::User };
    let shared = |words: &[String]| words.iter().map(|w| w.as_str().into()).collect();
    let plan = principal.plan.as_deref().map(Into::into);
    let (roles, scopes) = (shared(&principal.roles), shared(&principal.scopes));
    Principal::new(kind, principal.subject.as_str(), tenant, roles, scopes, plan, None)
}
