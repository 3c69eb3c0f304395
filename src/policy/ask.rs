//! Owns the question and the answer of a policy decision as plain values.
//! Does not know Cedar (`entities`, `slice`) and does not look anything up: the caller brings the facts.
//! Invariant: a `Decision` names its policies sorted and without duplicates.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::agentos::{Operation, Resource};
use crate::principal::{Principal, TenantId};

/// One question: may this caller do this to that?
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The verified caller.
    pub principal: &'a Principal,
    /// The catalogue row.
    pub operation: &'static Operation,
    /// What it acts on; of the kind that the row says, else the answer is a deny with errors.
    pub resource: ResourceFacts<'a>,
    /// The circumstances.
    pub context: Context<'a>,
}

/// What is known about the resource of a call.
#[derive(Debug, Clone, Copy)]
pub struct ResourceFacts<'a> {
    /// The resource type, the same as the row's.
    pub kind: Resource,
    /// Its id; empty for a collection (`GET /sessions`).
    pub id: &'a str,
    /// Every tenant that may use the cluster or component. When it holds exactly one, policies see
    /// `context.exclusive`, unless it is `open`.
    pub tenants: &'a [TenantId],
    /// Other tenants may use the cluster too: policies see the caller's among `tenants`, and nobody has it alone.
    pub open: bool,
    /// Subject of the owner; for a call into a session or run, of its owner. `None` for what nobody owns yet (a new session id) and for collections;
    /// `Some("")` for a stored row whose owner is not known: it belongs to nobody, so only an
    /// administrator of a cluster of one tenant reaches it.
    pub owner: Option<&'a str>,
    /// Tenant of the owner.
    pub tenant: Option<&'a TenantId>,
    /// Agent, team or workflow that the call goes through (`/agents/{agent_id}/runs/…`): scopes such as
    /// `agents:web-agent:run` are read against it. May be `None` where the resource is the component itself.
    pub component: Option<&'a str>,
    /// Facts of an approval row.
    pub approval: Option<ApprovalFacts<'a>>,
}

/// What is known about an approval row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApprovalFacts<'a> {
    /// The tool that waits.
    pub tool_name: Option<&'a str>,
    /// `pending`, `approved`, `rejected` …
    pub status: Option<&'a str>,
    /// Subject that started the run which waits.
    pub requested_by: Option<&'a str>,
}

/// The circumstances of a call.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// `http`, `mcp` or `websocket`.
    pub door: &'static str,
    /// Cluster name.
    pub cluster: &'a str,
    /// When the call is decided.
    pub now: SystemTime,
    /// Address of the caller.
    pub source_ip: IpAddr,
    /// Length of the message that the call carries; 0 when it carries none.
    pub message_bytes: u64,
    /// An MCP client claims that a person confirmed the call. Never sufficient alone.
    pub human: bool,
}

/// The answer, with the policies that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// At least one policy permits and none forbids.
    Allow {
        /// Ids of the policies that permit.
        policies: Arc<[Arc<str>]>,
        /// What the shadow policies would have answered, when that differs.
        shadow: Option<Arc<Shadow>>,
    },
    /// Nothing permits, something forbids, or something could not be evaluated.
    Deny {
        /// Ids of the policies that forbid or failed; empty when no policy permits.
        policies: Arc<[Arc<str>]>,
        /// An evaluation failed: Cedar skips a failed policy, which would turn a failed `forbid` into a hole.
        errors: bool,
        /// What the shadow policies would have answered, when that differs.
        shadow: Option<Arc<Shadow>>,
    },
}

/// A divergent answer: the enforced policies together with those in `shadow/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shadow {
    /// What the answer would have been.
    pub allow: bool,
    /// Ids of the policies that would have made it.
    pub policies: Arc<[Arc<str>]>,
    /// An evaluation failed.
    pub errors: bool,
}

// === impl ResourceFacts ===

impl<'a> ResourceFacts<'a> {
    /// Facts of a resource that nobody owns; set the other fields with struct update syntax.
    pub fn new(kind: Resource, id: &'a str, tenants: &'a [TenantId]) -> Self {
        Self { kind, id, tenants, open: false, owner: None, tenant: None, component: None, approval: None }
    }
}

// === impl Decision ===

impl Decision {
    /// Says whether the call may go on.
    pub fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// Ids of the policies that decided, sorted.
    pub fn policies(&self) -> &Arc<[Arc<str>]> {
        match self {
            Self::Allow { policies, .. } | Self::Deny { policies, .. } => policies,
        }
    }

    /// What the shadow policies would have answered, when that differs.
    pub fn shadow(&self) -> Option<&Shadow> {
        match self {
            Self::Allow { shadow, .. } | Self::Deny { shadow, .. } => shadow.as_deref(),
        }
    }

    /// The safe answer to a question that cannot be put: a deny with errors that names no policy.
    pub(super) fn broken() -> Self {
        Self::Deny { policies: Arc::from([]), errors: true, shadow: None }
    }
}
