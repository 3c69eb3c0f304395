//! Owns the `run` handle: what a run needs upstream, sealed and bound to its caller.
//! Does not check the run itself: AgentOS and `admit` do that when the handle is used.
//! Invariant: a handle of another tenant or subject is as good as a random string.

use std::sync::Arc;

use serde::Serialize;

use super::ask::Failure;
use super::path::Path;
use crate::agentos::operation::Kind;
use crate::principal::Principal;

const PURPOSE: &str = "run";
/// Longest handle that is looked at.
const HANDLE_BYTES_MAX: usize = 4_096;

/// A run, as AgentOS finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunHandle {
    pub(super) cluster: Arc<str>,
    pub(super) kind: Kind,
    pub(super) component: String,
    pub(super) session_id: String,
    pub(super) run_id: String,
}

#[derive(Serialize)]
struct Sealed<'a> {
    cluster: &'a str,
    kind: &'a str,
    component: &'a str,
    session_id: &'a str,
    run_id: &'a str,
    tenant: &'a str,
    subject: &'a str,
}

impl RunHandle {
    /// The handle as text for one caller.
    pub(super) fn seal(&self, path: &dyn Path, principal: &Principal) -> String {
        let sealed = Sealed {
            cluster: &self.cluster,
            kind: self.kind.as_str(),
            component: &self.component,
            session_id: &self.session_id,
            run_id: &self.run_id,
            tenant: principal.tenant.as_str(),
            subject: &principal.subject,
        };
        let bytes = serde_json::to_vec(&sealed).unwrap_or_default();
        path.seal(PURPOSE, &bytes)
    }

    /// Opens a handle.
    ///
    /// # Errors
    /// One and the same failure for a forged handle, a damaged one and one of another caller.
    pub(super) fn open(path: &dyn Path, principal: &Principal, text: &str) -> Result<Self, Failure> {
        Self::try_open(path, principal, text).ok_or_else(|| {
            Failure::Argument("unknown run handle: pass the `run` value that run_agent returned to you".to_owned())
        })
    }

    fn try_open(path: &dyn Path, principal: &Principal, text: &str) -> Option<Self> {
        let text = text.trim();
        let bytes = (text.len() <= HANDLE_BYTES_MAX).then(|| path.open(PURPOSE, text)).flatten()?;
        // Borrowed fields fail on escapes, which ids may need: go through an owned value.
        let value: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        let field = |name: &str| value.get(name)?.as_str();
        let own = field("tenant")? == principal.tenant.as_str() && field("subject")? == &*principal.subject;
        let cluster: Arc<str> = field("cluster")?.into();
        let usable = own && path.clusters_for(principal).contains(&cluster);
        usable.then_some(())?;
        Some(Self {
            cluster,
            kind: Kind::parse(field("kind")?)?,
            component: field("component")?.to_owned(),
            session_id: field("session_id")?.to_owned(),
            run_id: field("run_id")?.to_owned(),
        })
    }
}
