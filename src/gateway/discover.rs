//! Owns what doors may learn without a caller: which components each AgentOS has, and when to look again.
//! Does not keep what it learns and shows nobody anything: who may see what is decided per caller (`Gateway::may`).
//! Invariant: looks are the gateway's own requests, made with the lookup identity; a cluster that takes callers' own
//! tokens is never asked.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tokio::sync::watch;

use super::forward;
use super::path::Gateway;
use super::refusal::Code;
use crate::agentos::Kind;
use crate::cluster::Cluster;
use crate::principal::Principal;

/// How looks name themselves.
const AGENT: &str = "tollbridge-discovery";

impl Gateway {
    /// The clusters of the configuration that can be asked without a caller.
    pub fn clusters_to_ask(&self) -> Vec<Arc<str>> {
        let snapshot = self.snapshot();
        snapshot.clusters.iter().filter(|cluster| !cluster.forwards_tokens()).map(|c| Arc::clone(c.name())).collect()
    }

    /// The components of a kind on a cluster, as AgentOS lists them.
    ///
    /// # Errors
    /// The code of the refusal: AgentOS did not answer, or not as it should.
    ///
    /// # Cancel safety
    /// Safe: a look reads only.
    pub async fn components(self: &Arc<Self>, cluster: &str, kind: Kind) -> Result<Value, &'static str> {
        let snapshot = self.snapshot();
        let asked = |c: &&Arc<Cluster>| **c.name() == *cluster && !c.forwards_tokens();
        let cluster = snapshot.clusters.iter().find(asked).ok_or(Code::ClusterUnknown.row().code)?;
        let target = format!("/{}", kind.plural());
        let listed = forward::look_up_as(self, cluster, None, &target, Some(AGENT)).await;
        match listed {
            Ok(list) => Ok(list.unwrap_or(Value::Array(Vec::new()))),
            Err(refusal) => Err(refusal.code.row().code),
        }
    }

    /// Counts what may change lists that callers see: new policies, a component written through the gateway.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Something has changed that lists depend on.
    pub(super) fn has_changed(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Waits until a caller who was verified earlier no longer is: the credential has ended or is revoked.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ended(self: Arc<Self>, principal: Arc<Principal>) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let left = principal.expires_at.map(|end| Duration::from_secs(end).saturating_sub(now));
        let revoked = self.snapshot().identity.revocations().clone().ended(principal);
        match left {
            Some(left) => drop(tokio::time::timeout(left, revoked).await),
            None => revoked.await,
        }
    }
}
