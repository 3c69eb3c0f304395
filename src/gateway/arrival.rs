//! Owns the stages of admission that need no body: operation, caller, cluster, rate, and what we answer ourselves.
//! Does not order them (`admit`).
//! Invariant: what is refused here has cost AgentOS nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::call::{Answer, AnswerBody, Call, Caller};
use super::exchange::Exchange;
use super::explain;
use super::path::Gateway;
use super::refusal::{Code, Refusal, Stage, legacy_headers, limit_headers, limit_json};
use super::snapshot::Snapshot;
use super::trail::Said;
use crate::agentos::{CanonicalPath, Exposure, Matched, NotMatched, Operation, Own};
use crate::cluster::{Cluster, ReservedName, UpstreamUser};
use crate::identity::{Credential, Refused};
use crate::principal::{ClientCertificate, Principal};
use crate::quota::{self, Exceeded, ExceededKind, LimitState, NoPlan, Pass, Scope, Work};

/// The field by which a caller chooses among the clusters of its tenant.
const CHOSEN_CLUSTER: HeaderName = HeaderName::from_static("tollbridge-cluster");

/// Guards against floods from one address, before anything is known about the caller.
pub(super) fn flood(snapshot: &Snapshot, peer: IpAddr) -> Result<(), Refusal> {
    snapshot.quota.flood(peer).map_err(exceeded)
}

/// Verifies the one credential of a request; a client certificate is one where the request names no other: whoever
/// holds both may choose, and says so by sending a token.
pub(super) async fn identify(
    snapshot: &Snapshot,
    headers: &HeaderMap,
    certificate: Option<&ClientCertificate>,
) -> Result<Arc<Principal>, Refusal> {
    let refuse = |code| Refusal::new(code, Stage::Identity);
    let credential = Credential::from_headers(headers).map_err(|_| refuse(Code::CredentialAmbiguous))?;
    let verified = match (credential, certificate) {
        (Some(credential), _) => snapshot.identity.verify(&credential, SystemTime::now()).await,
        (None, Some(certificate)) => snapshot.identity.verify_certificate(certificate, SystemTime::now()),
        (None, None) => Err(Refused::Missing),
    };
    verified.map_err(|refused| {
        let code = match refused {
            Refused::Expired => Code::TokenExpired,
            Refused::KeysUnavailable => Code::Overloaded,
            Refused::Missing | Refused::Invalid(_) | Refused::UnknownTenant | Refused::Revoked => Code::Unauthenticated,
        };
        refuse(code).because(refused.to_string())
    })
}

/// Finds the operation of a call.
///
/// # Errors
/// 400 for a path that is not canonical, 404 and 405 for what is not served.
pub(super) fn operation(
    snapshot: &Snapshot,
    call: &Call,
    exchange: &mut Exchange,
) -> Result<(CanonicalPath, Matched), Refusal> {
    let path = CanonicalPath::parse(&call.path)
        .map_err(|bad| Refusal::new(Code::PathNotCanonical, Stage::Request).because(bad.to_string()))?;
    let matched = snapshot.catalog.find(&call.method, &path).map_err(|not| match not {
        NotMatched::Unknown => Refusal::new(Code::OperationUnknown, Stage::Catalogue),
        NotMatched::MethodNotAllowed { allow } => {
            let mut refusal = Refusal::new(Code::MethodNotAllowed, Stage::Catalogue);
            refusal.allow = Some(allow.iter().map(|m| m.as_str()).collect::<Vec<_>>().join(", "));
            refusal
        }
    })?;
    exchange.event.operation = Some(matched.operation.id);
    exchange.action = Some(matched.operation.action);
    exchange.resource = Some((matched.operation.resource, matched.resource_id().unwrap_or("").to_owned()));
    exchange.note("catalogue", Said::Passed, || explain::operation(&matched, &path));
    match matched.operation.exposure {
        Exposure::Offered | Exposure::Local(_) => Ok((path, matched)),
        Exposure::Off(why) => Err(Refusal::new(Code::OperationUnknown, Stage::Catalogue).because(why)),
        Exposure::Facet(_) => Err(Refusal::new(Code::OperationUnknown, Stage::Catalogue).because("not routed")),
    }
}

/// Knows the caller: verified by the door's carrier, or by the call's own headers.
pub(super) async fn principal(
    snapshot: &Snapshot,
    caller: &Caller,
    headers: &HeaderMap,
    exchange: &mut Exchange,
) -> Result<Arc<Principal>, Refusal> {
    let principal = match caller {
        Caller::ByHeaders => identify(snapshot, headers, None).await?,
        Caller::ByCertificate(certificate) => identify(snapshot, headers, Some(certificate)).await?,
        // Verified once for its carrier, which may live long: a revocation since then counts.
        Caller::Verified(principal) if snapshot.identity.revocations().covers(principal) => {
            return Err(Refusal::new(Code::Unauthenticated, Stage::Identity).because("credential revoked"));
        }
        Caller::Verified(principal) => Arc::clone(principal),
    };
    exchange.note("identity", Said::Passed, || explain::principal(&principal, caller));
    exchange.event.tenant = Some(principal.tenant.clone());
    exchange.event.subject = Some(Arc::clone(&principal.subject));
    Ok(principal)
}

/// Chooses the cluster, and refuses what its AgentOS does not have before anything is spent.
pub(super) fn cluster(
    snapshot: &Snapshot,
    call: &Call,
    principal: &Principal,
    operation: &Operation,
    exchange: &mut Exchange,
) -> Result<Arc<Cluster>, Refusal> {
    let unknown = || Refusal::new(Code::ClusterUnknown, Stage::Cluster);
    let cluster = match &call.cluster {
        Some(name) => snapshot.clusters.named(name, &principal.tenant).map_err(|_| unknown())?,
        None => {
            let header = call.headers.get(&CHOSEN_CLUSTER).map(|v| v.to_str().map_err(|_| unknown())).transpose()?;
            snapshot.clusters.choose(call.host.as_deref(), header, &principal.tenant).map_err(|_| unknown())?
        }
    };
    exchange.event.cluster = Some(Arc::clone(cluster.name()));
    if cluster.version().is_some_and(|version| !operation.versions.include(version)) {
        return Err(Refusal::new(Code::OperationUnsupported, Stage::Cluster));
    }
    exchange.note("cluster", Said::Passed, || explain::cluster(cluster));
    Ok(Arc::clone(cluster))
}

/// What the call works on, as limits see it.
pub(super) fn work<'a>(cluster: &'a Cluster, matched: &'a Matched, tool: Option<&'static str>) -> Work<'a> {
    let component = matched.component().map(|(kind, id)| (kind.plural(), id));
    Work { cluster: cluster.name(), component, tool }
}

/// Spends one request of the caller's rate; in a dry run says what is left.
///
/// # Cancel safety
/// Safe: nothing is spent before the end.
pub(super) async fn spend(
    gateway: &Gateway,
    snapshot: &Snapshot,
    principal: &Principal,
    operation: &Operation,
    work: &Work<'_>,
    exchange: &mut Exchange,
) -> Result<Pass, Refusal> {
    if exchange.rehearsal.is_some() {
        return Box::pin(explain::quota(snapshot, principal, operation, work, exchange)).await;
    }
    let pass = snapshot.quota.spend(principal, work).await.map_err(refused)?;
    for limit in pass.limits.iter().filter(|limit| limit.scope == Scope::Tenant) {
        gateway.telemetry.quota_used(&principal.tenant, limit.name, limit.used_ratio());
    }
    Ok(pass)
}

/// The fields of an answer that say what is left.
pub(super) fn limits_told(snapshot: &Snapshot, limits: &[LimitState]) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    limit_headers(&mut headers, limits);
    if snapshot.quota.has_legacy_headers() {
        legacy_headers(&mut headers, limits);
    }
    headers
}

/// Ends an exchange with a refusal; the answer tells the rates that were spent, and the limit that was met.
pub(super) fn answer_refused(snapshot: &Snapshot, exchange: &mut Exchange, refusal: &Refusal) -> Answer {
    exchange.refused(refusal);
    let mut answer = refusal.answer(&exchange.event.request_id);
    let limits: Vec<LimitState> = exchange.limits.iter().chain(refusal.limit.as_deref()).copied().collect();
    answer.headers.extend(limits_told(snapshot, &limits));
    answer
}

/// Names the caller as this AgentOS does.
pub(super) fn upstream_user(cluster: &Cluster, principal: &Principal) -> Result<UpstreamUser, Refusal> {
    let reserved = |e: ReservedName| Refusal::new(Code::Forbidden, Stage::Identity).because(e.to_string());
    cluster.upstream_user(principal).map_err(reserved)
}

/// The caller's own token, for clusters that pass it on; `None` for all others.
///
/// # Errors
/// `forbidden` when such a cluster gets a call without one: by API key, or over MCP.
pub(super) fn token(cluster: &Cluster, headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    if !cluster.forwards_tokens() {
        return Ok(None);
    }
    let credential = Credential::from_headers(headers).ok().flatten();
    let token = credential.and_then(|credential| credential.expose().map(str::to_owned));
    token.map(Some).ok_or_else(|| {
        let refusal = Refusal::new(Code::Forbidden, Stage::Cluster).because("`credential` is `forward`");
        refusal.saying("this AgentOS takes the caller's own token, which only HTTP calls with a JWT carry")
    })
}

/// The answer about the gateway's own health. AgentOS's is the probes' concern.
pub(super) fn healthy() -> Answer {
    json_answer(r#"{"status":"ok"}"#)
}

/// Answers an operation of the gateway's own, after identity and rate.
pub(super) async fn local(
    operation: &Operation,
    snapshot: &Snapshot,
    principal: &Principal,
    spent: &[LimitState],
) -> Result<Answer, Refusal> {
    match operation.exposure {
        Exposure::Local(Own::Health) => Ok(healthy()),
        Exposure::Local(Own::Quota) => usage(snapshot, principal, spent).await,
        Exposure::Local(Own::Socket) | Exposure::Offered | Exposure::Off(_) | Exposure::Facet(_) => {
            Err(Refusal::new(Code::OperationUnknown, Stage::Catalogue).because("answered by its own door only"))
        }
    }
}

async fn usage(snapshot: &Snapshot, principal: &Principal, spent: &[LimitState]) -> Result<Answer, Refusal> {
    let no_plan = |e: NoPlan| Refusal::new(Code::Forbidden, Stage::Quota).because(e.to_string());
    let plan = snapshot.quota.plan_of(principal).map_err(no_plan)?;
    let usage = snapshot.quota.usage(principal, &Work::default()).await.map_err(no_plan)?;
    let limits: Vec<_> = usage.iter().map(limit_json).collect();
    let body = serde_json::json!({ "tenant": principal.tenant.as_str(), "plan": plan, "limits": limits });
    let mut answer = json_answer(body.to_string());
    answer.headers.extend(limits_told(snapshot, spent));
    Ok(answer)
}

fn json_answer(body: impl Into<bytes::Bytes>) -> Answer {
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Answer { status: http::StatusCode::OK, headers, body: AnswerBody::full(body), refused: None }
}

/// A quota's refusal in the table's words.
pub(super) fn refused(refused: quota::Refused) -> Refusal {
    match refused {
        quota::Refused::Exceeded(limit) => exceeded(limit),
        quota::Refused::NoPlan(no_plan) => Refusal::new(Code::Forbidden, Stage::Quota).because(no_plan.to_string()),
    }
}

pub(super) fn exceeded(exceeded: Exceeded) -> Refusal {
    let code = match exceeded.kind {
        ExceededKind::Flood => Code::Flood,
        ExceededKind::Rate => Code::RateLimited,
        ExceededKind::Runs => Code::TooManyRuns,
        ExceededKind::Budget => Code::BudgetExhausted,
        ExceededKind::Unknown => {
            let refusal = Refusal::new(Code::Overloaded, Stage::Quota).because("the store of limits is out of reach");
            return Refusal { retry_after: Some(exceeded.retry_after), ..refusal }
                .saying("the limits of your tenant cannot be checked now");
        }
    };
    let whose = if code == Code::Flood { "client address".to_owned() } else { format!("plan `{}`", exceeded.plan) };
    let mut refusal = Refusal::new(code, Stage::Quota).because(whose);
    refusal.retry_after = Some(exceeded.retry_after);
    refusal.limit = Some(Box::new(exceeded.limit));
    refusal
}
