//! Owns the ticket of a question that is answered by a later request: what the answer is bound to, sealed.
//! Does not remember anything: that a ticket is used once is the claim of its number (`Path::claim`).
//! Invariant: a ticket of another caller, tool, call or time is as good as a random string.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::agentos::operation::Kind;
use crate::mcp::handle::RunHandle;
use crate::mcp::path::Path;
use crate::principal::Principal;

const PURPOSE: &str = "mcp question";
/// Longest ticket that is looked at.
const TICKET_BYTES_MAX: usize = 8_192;

/// What a question was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// The tool that was called.
    pub(crate) tool: String,
    /// Of the arguments that it was called with.
    pub(crate) arguments: String,
    pub(crate) run: RunHandle,
    /// Of what the run waited for.
    pub(crate) pause: String,
    /// Its own, for being used once.
    pub(crate) number: String,
}

/// A digest of the arguments of a call. Object keys are in order: the same arguments give the same digest.
pub(crate) fn digest_of(arguments: &Value) -> String {
    let digest = Sha256::digest(arguments.to_string());
    digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

// === impl Ticket ===

impl Ticket {
    pub(crate) fn new(tool: &str, arguments: &str, run: &RunHandle, pause: &str) -> Self {
        Self {
            tool: tool.to_owned(),
            arguments: arguments.to_owned(),
            run: run.clone(),
            pause: pause.to_owned(),
            number: uuid::Uuid::new_v4().simple().to_string(),
        }
    }

    /// The ticket as text for one caller, good for a time.
    pub(crate) fn seal(&self, path: &dyn Path, principal: &Principal, lasts: Duration) -> String {
        let sealed = json!({
            "tenant": principal.tenant.as_str(),
            "subject": &*principal.subject,
            "tool": self.tool,
            "arguments": self.arguments,
            "cluster": &*self.run.cluster,
            "kind": self.run.kind.as_str(),
            "component": self.run.component,
            "session_id": self.run.session_id,
            "run_id": self.run.run_id,
            "pause": self.pause,
            "number": self.number,
            "until": now().saturating_add(lasts.as_secs()),
        });
        path.seal(PURPOSE, sealed.to_string().as_bytes())
    }

    /// Opens a ticket of this caller for this call. `None` for one that is forged, damaged, somebody else's, for
    /// another call, or too old.
    pub(crate) fn open(
        path: &dyn Path,
        principal: &Principal,
        (tool, arguments): (&str, &str),
        text: &str,
    ) -> Option<Self> {
        let bytes = (text.len() <= TICKET_BYTES_MAX).then(|| path.open(PURPOSE, text)).flatten()?;
        let value: Value = serde_json::from_slice(&bytes).ok()?;
        let field = |name: &str| value.get(name)?.as_str();
        let own = field("tenant")? == principal.tenant.as_str() && field("subject")? == &*principal.subject;
        let same = field("tool")? == tool && field("arguments")? == arguments;
        let fresh = value.get("until")?.as_u64()? > now();
        let cluster: Arc<str> = field("cluster")?.into();
        (own && same && fresh && path.clusters_for(principal).contains(&cluster)).then_some(())?;
        let owned = |name: &str| field(name).map(str::to_owned);
        Some(Self {
            tool: tool.to_owned(),
            arguments: arguments.to_owned(),
            run: RunHandle {
                cluster,
                kind: Kind::parse(field("kind")?)?,
                component: owned("component")?,
                session_id: owned("session_id")?,
                run_id: owned("run_id")?,
            },
            pause: owned("pause")?,
            number: owned("number")?,
        })
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(u64::MAX, |now| now.as_secs())
}
