//! Owns the dry run of admission: what each stage would say, and which roles or scopes would change a policy's mind.
//! Does not repeat the stages: `admit` runs and reports here; only what it must not spend is described instead.
//! Invariant: a dry run spends no quota, takes no lease, fills no cache and sends nothing upstream but look-ups.

use std::sync::Arc;

use serde_json::{Value, json};

use super::admit;
use super::arrival;
use super::call::{Call, Caller};
use super::exchange::Exchange;
use super::facts::Facts;
use super::ground::Ground;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage, limit_json};
use super::snapshot::Snapshot;
use super::trail::{Explanation, Remedy, Said};
use crate::agentos::{Caching, CanonicalPath, Cost, Matched, Operation};
use crate::cluster::Cluster;
use crate::policy::{ADMIN_SCOPE, Decision, Policies};
use crate::principal::Principal;
use crate::quota::{Pass, Work};

/// The roles that the shipped policies know.
const ROLES: [&str; 5] = ["viewer", "operator", "approver", "admin", "platform_admin"];
/// Most remedies that are named.
const REMEDIES_MAX: usize = 8;

impl Gateway {
    /// Says what would happen to a call, without serving it.
    ///
    /// # Cancel safety
    /// Safe: nothing is spent and nothing is kept but owners that were looked up.
    pub async fn explain(self: &Arc<Self>, call: Call) -> Explanation {
        let id = Arc::clone(&call.request_id);
        let mut exchange = Exchange::begin(&self.telemetry, call.door, id, call.peer, &call.method);
        exchange.rehearsal = Some(Box::default());
        let snapshot = self.snapshot();
        let refused = match flood(&snapshot, &call) {
            Err(refusal) => Some(refusal),
            Ok(()) => admit::admit(self, &snapshot, call, &mut exchange).await.err(),
        };
        exchange.rehearsal.as_deref_mut().map(std::mem::take).unwrap_or_default().end(refused)
    }
}

/// What the guard against floods would say, without counting the call.
fn flood(snapshot: &Snapshot, call: &Call) -> Result<(), Refusal> {
    match call.caller {
        Caller::ByHeaders | Caller::ByCertificate(_) => {
            snapshot.quota.would_flood(call.peer).map_err(arrival::exceeded)
        }
        Caller::Verified(_) => Ok(()),
    }
}

/// The row that the call matches.
pub(super) fn operation(matched: &Matched, path: &CanonicalPath) -> Value {
    let row = matched.operation;
    json!({
        "operation": row.id,
        "path": path.as_str(),
        "resource": row.resource.as_str(),
        "id": matched.resource_id(),
        "action": row.action.as_str(),
        "reach": row.reach.as_str(),
        "scopes": row.scopes,
    })
}

/// Who calls.
pub(super) fn principal(principal: &Principal, caller: &Caller) -> Value {
    json!({
        "kind": match principal.kind {
            crate::principal::PrincipalKind::User => "user",
            crate::principal::PrincipalKind::Service => "service",
        },
        "subject": &*principal.subject,
        "tenant": principal.tenant.as_str(),
        "roles": words(&principal.roles),
        "scopes": words(&principal.scopes),
        "plan": principal.plan.as_deref(),
        "expires_at": principal.expires_at,
        // Claims from a file were believed, not verified.
        "verified": caller.is_fresh(),
    })
}

/// Where the call would go.
pub(super) fn cluster(cluster: &Cluster) -> Value {
    let tenants: Vec<&str> = cluster.settings.tenants.iter().map(crate::principal::TenantId::as_str).collect();
    json!({
        "cluster": &*cluster.settings.name,
        "tenants": tenants,
        "open": cluster.settings.open,
        "agno": cluster.version().map_or_else(|| "unknown".to_owned(), |version| version.to_string()),
    })
}

/// What spending would say, from the counters as they are.
///
/// # Errors
/// As spending and leasing: no plan, or a limit with nothing left that the operation needs.
pub(super) async fn quota(
    snapshot: &Snapshot,
    principal: &Principal,
    operation: &Operation,
    work: &Work<'_>,
    exchange: &mut Exchange,
) -> Result<Pass, Refusal> {
    let no_plan = |e: crate::quota::NoPlan| Refusal::new(Code::Forbidden, Stage::Quota).because(e.to_string());
    let plan = snapshot.quota.plan_of(principal).map_err(no_plan)?;
    let limits = snapshot.quota.usage(principal, work).await.map_err(no_plan)?;
    let facts = json!({ "plan": plan, "limits": limits.iter().map(limit_json).collect::<Vec<_>>() });
    let is_run = operation.cost == Cost::Model;
    let used_up = limits.iter().find_map(|limit| {
        let code = match limit.name {
            "concurrent_runs" => Code::TooManyRuns,
            name if name.starts_with("tokens") || name.starts_with("money") => Code::BudgetExhausted,
            _ => Code::RateLimited,
        };
        (limit.remaining == 0 && (is_run || code == Code::RateLimited)).then_some((code, limit))
    });
    if let Some((code, limit)) = used_up {
        exchange.note("quota", Said::Refused, || facts);
        let mut refusal =
            Refusal::new(code, Stage::Quota).because(format!("`{}` of plan `{plan}` is used up", limit.full_name()));
        refusal.retry_after = Some(limit.reset);
        return Err(refusal);
    }
    exchange.note("quota", Said::Passed, || facts);
    Ok(Pass { limits })
}

/// The facts, or in a dry run without a reachable AgentOS what the call itself says.
///
/// # Errors
/// The refusal of the look-ups, where it is known.
pub(super) fn facts(
    gathered: Result<Facts, Refusal>,
    unread: Facts,
    exchange: &mut Exchange,
) -> Result<Facts, Refusal> {
    if exchange.rehearsal.is_none() {
        return gathered;
    }
    match gathered {
        Ok(facts) => {
            exchange.note("facts", Said::Passed, || json!({
                "owner": facts.owner,
                "session": facts.session,
                "run": facts.run,
                "message_bytes": facts.message_bytes,
                "approval": facts.approval_facts().map(|approval| json!({
                    "tool_name": approval.tool_name, "status": approval.status, "requested_by": approval.requested_by,
                })),
            }));
            Ok(facts)
        }
        Err(refusal) if is_out_of_reach(refusal.code) => {
            exchange.note("facts", Said::Unknown, || {
                json!({
                    "owner": "unknown",
                    "reason": refusal.reason.as_deref().unwrap_or(refusal.code.row().detail),
                })
            });
            Ok(unread)
        }
        Err(refusal) => Err(refusal),
    }
}

/// Says whether a dry run may go on without an answer of AgentOS.
pub(super) fn is_out_of_reach(code: Code) -> bool {
    matches!(code, Code::UpstreamUnreachable | Code::UpstreamTimeout | Code::UpstreamReset | Code::NoEndpoint)
}

/// Says that the run behind a schedule could not be learned.
pub(super) fn unknown_run(refusal: Refusal, exchange: &mut Exchange) {
    let reason = refusal.reason.unwrap_or_else(|| refusal.code.row().detail.to_owned());
    exchange.note("facts", Said::Unknown, || json!({ "run": "unknown", "reason": reason }));
}

/// What the policies say, where that is written, and what would change it.
pub(super) fn policy(ground: &Ground<'_>, facts: &Facts, exchange: &mut Exchange) {
    // Outside a dry run nobody reads it: this is on the way of every call.
    if exchange.rehearsal.is_some() {
        policy_on(ground, ground.operation(), &ground.judge(ground.operation(), facts), facts, exchange);
    }
}

/// What the policies say about a right that the call needs besides, where they do not grant it.
pub(super) fn right(ground: &Ground<'_>, operation: &'static Operation, facts: &Facts, exchange: &mut Exchange) {
    let decision = ground.judge(operation, facts);
    if !decision.is_allow() {
        policy_on(ground, operation, &decision, facts, exchange);
    }
}

fn policy_on(
    ground: &Ground<'_>,
    operation: &'static Operation,
    decision: &Decision,
    facts: &Facts,
    exchange: &mut Exchange,
) {
    let Some(trail) = &mut exchange.rehearsal else { return };
    let policies = &ground.snapshot.policies;
    let per_item = decision.policies().is_empty() && super::filter::decides_per_item(operation);
    let allowed = decision.is_allow();
    let said = if allowed || per_item { Said::Passed } else { Said::Refused };
    let shadow = decision
        .shadow()
        .map(|shadow| json!({ "allow": shadow.allow, "policies": located(policies, &shadow.policies) }));
    let note = (per_item && !allowed).then_some("each item of the list is decided on its own");
    trail.add(
        "policy",
        said,
        json!({
            "operation": operation.id,
            "policies": located(policies, decision.policies()),
            "note": note,
            "shadow": shadow,
        }),
    );
    if said == Said::Refused {
        trail.remedies = remedies(ground, operation, facts);
        if trail.remedies.is_empty() {
            trail.help = Some(immovable(policies, decision));
        }
    }
}

/// Says which approvals let the run go on.
pub(super) fn approvals(decided: &[String], exchange: &mut Exchange) {
    exchange.note("approvals", Said::Passed, || json!({ "approvals": decided }));
}

/// Says that what the run waits for, and what its approvals say, could not be learned.
pub(super) fn approvals_unknown(exchange: &mut Exchange) {
    let reason = "whether the run waits, and what its approvals say, could not be looked up";
    exchange.note("approvals", Said::Unknown, || json!({ "reason": reason }));
}

/// What admission would do after the policies agreed.
pub(super) fn rest(ground: &Ground<'_>, facts: &Facts, exchange: &mut Exchange) {
    let operation = ground.operation();
    let ttl = ground.snapshot.cache.ttl(operation).map(|ttl| ttl.as_secs());
    let kept = match operation.cache {
        Caching::Never => "never",
        Caching::Shared => "shared",
        Caching::PerPrincipal => "per_principal",
    };
    let ttl = ttl.filter(|_| operation.cache != Caching::Never);
    exchange.note("cache", Said::Passed, || json!({ "kept": kept, "ttl_s": ttl }));
    match ground.endpoint(facts) {
        Ok((picked, _)) => {
            exchange.note("endpoint", Said::Passed, || json!({ "endpoint": &*picked.endpoint().address }))
        }
        // What this process sees of the endpoints need not be what a server sees.
        Err(refusal) => exchange.note(
            "endpoint",
            Said::Unknown,
            || json!({ "code": refusal.code.row().code, "reason": refusal.reason, "help": refusal.help() }),
        ),
    }
}

/// Every deciding policy with its place.
fn located(policies: &Policies, ids: &[Arc<str>]) -> Vec<Value> {
    let place = |id: &str| policies.location(id).map(|place| format!("{}:{}", place.file, place.line));
    ids.iter().map(|id| json!({ "policy": &**id, "at": place(id) })).collect()
}

/// The fewest roles and scopes whose addition flips the decision: single ones, else pairs.
fn remedies(ground: &Ground<'_>, operation: &'static Operation, facts: &Facts) -> Vec<Remedy> {
    let held = ground.principal;
    let roles = ROLES.iter().filter(|role| !held.has_role(role)).map(|role| (Some(*role), None));
    let wanted = operation.scopes.iter().copied().chain([ADMIN_SCOPE]);
    let scopes = wanted.filter(|scope| !held.scopes.iter().any(|s| &**s == *scope)).map(|scope| (None, Some(scope)));
    let candidates: Vec<(Option<&str>, Option<&str>)> = roles.chain(scopes).collect();
    let remedy = |added: &[(Option<&str>, Option<&str>)]| Remedy {
        roles: added.iter().filter_map(|(role, _)| role.map(str::to_owned)).collect(),
        scopes: added.iter().filter_map(|(_, scope)| scope.map(str::to_owned)).collect(),
    };
    let singles = candidates.iter().map(|one| remedy(&[*one]));
    let found: Vec<Remedy> = singles.filter(|remedy| helps(ground, operation, facts, remedy)).collect();
    if !found.is_empty() {
        return found.into_iter().take(REMEDIES_MAX).collect();
    }
    let pairs = candidates
        .iter()
        .enumerate()
        .flat_map(|(at, one)| candidates.iter().skip(at + 1).map(|two| remedy(&[*one, *two])).collect::<Vec<_>>());
    pairs.filter(|remedy| helps(ground, operation, facts, remedy)).take(REMEDIES_MAX).collect()
}

fn helps(ground: &Ground<'_>, operation: &'static Operation, facts: &Facts, remedy: &Remedy) -> bool {
    let held = ground.principal;
    let with = |held: &[Arc<str>], added: &[String]| {
        held.iter().cloned().chain(added.iter().map(|word| Arc::from(word.as_str()))).collect()
    };
    let changed = Arc::new(Principal::new(
        held.kind,
        Arc::clone(&held.subject),
        held.tenant.clone(),
        with(&held.roles, &remedy.roles),
        with(&held.scopes, &remedy.scopes),
        held.plan.clone(),
        held.expires_at,
    ));
    let ground = Ground { principal: &changed, ..*ground };
    ground.permits(operation, facts)
}

/// Why nothing that a caller can be given would help.
fn immovable(policies: &Policies, decision: &Decision) -> String {
    let places: Vec<String> = decision
        .policies()
        .iter()
        .map(|id| {
            let place = policies.location(id).map_or_else(String::new, |at| format!(" ({}:{})", at.file, at.line));
            format!("`{id}`{place}")
        })
        .collect();
    if places.is_empty() {
        return "no role or scope that is known here permits this: a policy for it is missing".to_owned();
    }
    format!(
        "whatever roles and scopes the caller has, {} forbids this: another caller may, or the policy changes",
        places.join(", ")
    )
}

fn words(words: &[Arc<str>]) -> Vec<&str> {
    words.iter().map(|word| &**word).collect()
}
