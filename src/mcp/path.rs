//! Owns the one seam between the bridge and the gateway: what the bridge may ask of it.
//! Does not know MCP, and gives no way around `serve`: every tool call is admitted like any other call.
//! Invariant: of what a caller asks for, nothing here reaches AgentOS except by `serve`.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::agentos::Kind;
use crate::gateway::{Answer, Call, Gateway, Once};
use crate::principal::Principal;
use crate::telemetry::Door;

/// The gateway as the bridge sees it.
pub trait Path: Send + Sync + 'static {
    /// Admits the call, forwards it and hands back the answer as it comes.
    ///
    /// # Cancel safety
    /// Dropping the future or the answer's body ends the exchange: AgentOS sees the disconnect.
    fn serve(self: Arc<Self>, call: Call) -> BoxFuture<'static, Answer>;

    /// Says whether policy would let the caller use the operation over MCP, from its address; `resource_id` is empty for collections.
    /// For lists only: the call itself is decided by `serve`.
    fn may(&self, peer: IpAddr, principal: &Principal, cluster: &str, operation: &str, resource_id: &str) -> bool;

    /// The clusters that the caller may use, its default first.
    fn clusters_for(&self, principal: &Principal) -> Vec<Arc<str>>;

    /// What the caller's plan limits and what is left of it; nothing is spent. `None` without a plan.
    ///
    /// # Cancel safety
    /// Safe.
    fn limits_of(self: Arc<Self>, principal: Arc<Principal>) -> BoxFuture<'static, Option<serde_json::Value>>;

    /// Waits until the caller's credential has ended or is revoked.
    ///
    /// # Cancel safety
    /// Safe.
    fn ended(self: Arc<Self>, principal: Arc<Principal>) -> BoxFuture<'static, ()>;

    /// The clusters whose components can be learned without a caller.
    fn clusters_to_ask(&self) -> Vec<Arc<str>>;

    /// The components of a kind on a cluster, as AgentOS lists them, for the background only. Else a code.
    ///
    /// # Cancel safety
    /// Safe.
    fn components(
        self: Arc<Self>,
        cluster: Arc<str>,
        kind: Kind,
    ) -> BoxFuture<'static, Result<serde_json::Value, &'static str>>;

    /// Counts what may change lists: policies, and components that are written through the gateway.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Says whether a call would be admitted as things stand; nothing is spent and nothing is sent but look-ups.
    ///
    /// # Cancel safety
    /// Safe.
    fn would(self: Arc<Self>, call: Call) -> BoxFuture<'static, bool>;

    /// Takes a name that may be taken once, in all instances that share a store, until the time is over.
    ///
    /// # Cancel safety
    /// The name may have been taken.
    fn take_once(self: Arc<Self>, name: String, lasts: Duration) -> BoxFuture<'static, Once>;

    /// Seals bytes for a purpose; only [`Path::open`] with the same purpose gives them back.
    fn seal(&self, purpose: &str, bytes: &[u8]) -> String;

    /// Opens what [`Path::seal`] made; `None` for anything else.
    fn open(&self, purpose: &str, text: &str) -> Option<Vec<u8>>;
}

impl Path for Gateway {
    fn serve(self: Arc<Self>, call: Call) -> BoxFuture<'static, Answer> {
        Box::pin(async move { Gateway::serve(&self, call).await })
    }

    fn may(&self, peer: IpAddr, principal: &Principal, cluster: &str, operation: &str, resource_id: &str) -> bool {
        Gateway::may(self, Door::Mcp, peer, principal, cluster, operation, resource_id)
    }

    fn clusters_for(&self, principal: &Principal) -> Vec<Arc<str>> {
        Gateway::clusters_for(self, principal)
    }

    fn limits_of(self: Arc<Self>, principal: Arc<Principal>) -> BoxFuture<'static, Option<serde_json::Value>> {
        Box::pin(async move { Gateway::limits_of(&self, &principal).await })
    }

    fn ended(self: Arc<Self>, principal: Arc<Principal>) -> BoxFuture<'static, ()> {
        Box::pin(Gateway::ended(self, principal))
    }

    fn clusters_to_ask(&self) -> Vec<Arc<str>> {
        Gateway::clusters_to_ask(self)
    }

    fn components(
        self: Arc<Self>,
        cluster: Arc<str>,
        kind: Kind,
    ) -> BoxFuture<'static, Result<serde_json::Value, &'static str>> {
        Box::pin(async move { Gateway::components(&self, &cluster, kind).await })
    }

    fn changes(&self) -> watch::Receiver<u64> {
        Gateway::changes(self)
    }

    fn would(self: Arc<Self>, call: Call) -> BoxFuture<'static, bool> {
        Box::pin(async move {
            let explained = self.explain(call).await;
            explained.refused.is_none() && !explained.is_uncertain()
        })
    }

    fn take_once(self: Arc<Self>, name: String, lasts: Duration) -> BoxFuture<'static, Once> {
        Box::pin(async move { Gateway::take_once(&self, &name, lasts).await })
    }

    fn seal(&self, purpose: &str, bytes: &[u8]) -> String {
        Gateway::seal(self).seal(purpose, bytes)
    }

    fn open(&self, purpose: &str, text: &str) -> Option<Vec<u8>> {
        Gateway::seal(self).open(purpose, text)
    }
}
