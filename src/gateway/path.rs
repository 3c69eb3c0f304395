//! Owns the gateway as the doors see it: authenticate a carrier, serve a call, ask what a caller may do.
//! Does not hold stage logic (`admit`, `forward`).
//! Invariant: every served call has exactly one `Exchange`.

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use http::HeaderMap;

use super::admit::{self, Verdict};
use super::approvals::Continues;
use super::arrival;
use super::call::{Answer, Call, Carrier};
use super::cancel::Order;
use super::described::Descriptions;
use super::exchange::Exchange;
use super::facts::Owners;
use super::forward;
use super::limits::Limits;
use super::lookups::LookUps;
use super::once::{Names, Once};
use super::refusal::{Code, Refusal, Stage, limit_json};
use super::runs::Runs;
use super::sessions::NewSessions;
use super::snapshot::Snapshot;
use super::turns::Turns;
use super::view::View;
use crate::agentos::{Cost, Reply};
use crate::cluster::{OnDisconnect, Seal};
use crate::outbound::Client;
use crate::policy::Policies;
use crate::principal::{ClientCertificate, Principal};
use crate::quota::Work;
use crate::store::Store;
use crate::telemetry::{Door, Telemetry};

/// Runs a future that outlives its exchange; `false` when there is too much of it, or the process is gone.
pub type Spawn = Arc<dyn Fn(&'static str, BoxFuture<'static, ()>) -> bool + Send + Sync>;

/// The path from a call to its answer. One per process, shared by the doors.
pub struct Gateway {
    snapshot: ArcSwap<Snapshot>,
    pub(super) client: Client,
    pub(super) telemetry: Arc<Telemetry>,
    pub(super) owners: Owners,
    pub(super) look_ups: LookUps,
    pub(super) descriptions: Descriptions,
    pub(super) new_sessions: NewSessions,
    pub(super) runs: Runs,
    pub(super) turns: Turns,
    pub(super) continues: Continues,
    once: Names,
    /// Turns true when streams have to end because the process does.
    pub(super) ending: tokio::sync::watch::Sender<bool>,
    draining: tokio::sync::watch::Sender<bool>,
    pub(super) spawn: Spawn,
    seal: Seal,
    /// Counts what lists depend on.
    pub(super) changed: tokio::sync::watch::Sender<u64>,
}

impl Gateway {
    /// A gateway with its first configuration.
    pub fn new(snapshot: Snapshot, client: Client, telemetry: Arc<Telemetry>, seal: Seal, spawn: Spawn) -> Arc<Self> {
        Self::with(snapshot, client, telemetry, seal, spawn, None)
    }

    /// The same, with the claims of continued runs in a store that instances share.
    pub fn over(
        snapshot: Snapshot,
        client: Client,
        telemetry: Arc<Telemetry>,
        seal: Seal,
        spawn: Spawn,
        store: Arc<dyn Store>,
    ) -> Arc<Self> {
        Self::with(snapshot, client, telemetry, seal, spawn, Some(store))
    }

    fn with(
        snapshot: Snapshot,
        client: Client,
        telemetry: Arc<Telemetry>,
        seal: Seal,
        spawn: Spawn,
        store: Option<Arc<dyn Store>>,
    ) -> Arc<Self> {
        let continues = match &store {
            None => Continues::new(),
            Some(store) => Continues::shared(Arc::clone(store), Arc::clone(&spawn)),
        };
        let once = Names::new(store.clone());
        let shared = store.map(|store| (store, Arc::clone(&spawn)));
        Arc::new(Self {
            snapshot: ArcSwap::from_pointee(snapshot),
            client,
            telemetry,
            owners: Owners::new(),
            look_ups: LookUps::default(),
            descriptions: Descriptions::new(),
            new_sessions: NewSessions::new(),
            runs: Runs::new(shared.clone()),
            turns: Turns::new(shared),
            continues,
            once,
            ending: tokio::sync::watch::Sender::new(false),
            draining: tokio::sync::watch::Sender::new(false),
            spawn,
            seal,
            changed: tokio::sync::watch::Sender::new(0),
        })
    }

    /// The configuration of exchanges that begin now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Replaces the configuration of exchanges that begin from now on.
    pub fn install(&self, snapshot: Snapshot) {
        self.snapshot.store(Arc::new(snapshot));
        self.has_changed();
    }

    /// Replaces the policies alone; every other stage, and what it counts, stays.
    pub fn install_policies(&self, policies: Policies) {
        let policies = Arc::new(policies);
        self.snapshot.rcu(|now| Snapshot { policies: Arc::clone(&policies), ..Snapshot::clone(now) });
        self.has_changed();
    }

    /// Says that the process takes no new work: who holds a conversation is to end it when nothing is under way.
    pub fn begin_drain(&self) {
        self.draining.send_replace(true);
    }

    /// Turns true when the process takes no new work.
    pub fn draining(&self) -> tokio::sync::watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// Ends every stream with an event that says so and that the caller may try again: the process is about to end.
    pub fn end_streams(&self) {
        self.ending.send_replace(true);
    }

    /// Sizes and times that the doors enforce.
    pub fn limits(&self) -> Limits {
        self.snapshot.load().limits.clone()
    }

    /// Runs work that outlives its exchange; `false` when there is too much of it, or the process is gone.
    pub fn detach(&self, name: &'static str, work: BoxFuture<'static, ()>) -> bool {
        (self.spawn)(name, work)
    }

    /// Signs what callers carry for us: run handles, request state.
    pub fn seal(&self) -> &Seal {
        &self.seal
    }

    /// Guards an answer that needs no caller against floods: the refusal to give instead, which counts as one exchange.
    pub fn guard(&self, door: Door, carrier: &Carrier, method: &http::Method) -> Option<Answer> {
        let refusal = arrival::flood(&self.snapshot(), carrier.peer).err()?;
        Some(self.refused(door, carrier, method, &refusal))
    }

    /// Says whether the configuration knows somebody by this client certificate.
    pub fn knows(&self, certificate: &ClientCertificate) -> bool {
        self.snapshot.load().identity.knows(certificate)
    }

    /// Verifies who sent the request that carries calls: an MCP request, a WebSocket handshake.
    ///
    /// # Errors
    /// The refusal as an answer; it counts as one exchange.
    ///
    /// # Cancel safety
    /// Safe: nothing is spent.
    pub async fn authenticate(
        &self,
        door: Door,
        headers: &HeaderMap,
        carrier: &Carrier,
        method: &http::Method,
    ) -> Result<Arc<Principal>, Answer> {
        let snapshot = self.snapshot();
        let verified = match arrival::flood(&snapshot, carrier.peer) {
            Ok(()) => arrival::identify(&snapshot, headers, carrier.certificate.as_deref()).await,
            Err(refusal) => Err(refusal),
        };
        verified.map_err(|refusal| self.refused(door, carrier, method, &refusal))
    }

    fn refused(&self, door: Door, carrier: &Carrier, method: &http::Method, refusal: &Refusal) -> Answer {
        let id = Arc::clone(&carrier.request_id);
        let mut exchange = Exchange::begin(&self.telemetry, door, id, carrier.peer, method);
        exchange.refused(refusal);
        refusal.answer(&carrier.request_id)
    }

    /// Serves one call: admits it, forwards it, and answers, refusals included.
    ///
    /// # Cancel safety
    /// Dropping the future or the answer's body ends the exchange; upstream sees the disconnect. A run that was
    /// started without a stream goes on upstream, so its exchange is finished in the background.
    pub async fn serve(self: &Arc<Self>, call: Call) -> Answer {
        let id = Arc::clone(&call.request_id);
        let mut exchange = Exchange::begin(&self.telemetry, call.door, id, call.peer, &call.method);
        let snapshot = self.snapshot();
        if call.caller.is_fresh()
            && let Err(refusal) = arrival::flood(&snapshot, call.peer)
        {
            return arrival::answer_refused(&snapshot, &mut exchange, &refusal);
        }
        match admit::admit(self, &snapshot, call, &mut exchange).await {
            Ok(Verdict::Answered(answer)) => {
                exchange.served(answer.status.as_u16());
                forward::whole(answer, exchange)
            }
            Ok(Verdict::Admitted(admitted)) => {
                let operation = admitted.operation();
                // AgentOS 2 answers a run in the background whole, also one that is to stream.
                let outlives = operation.cost == Cost::Model
                    && (admitted.background || !admitted.streams())
                    && matches!(operation.reply, Reply::Json | Reply::SseIfStream);
                if outlives {
                    // Boxed: most exchanges end with their caller, and each would carry its state.
                    Box::pin(self.detached(admitted, exchange)).await
                } else {
                    forward::forward(self, admitted, exchange).await
                }
            }
            Err(refusal) => arrival::answer_refused(&snapshot, &mut exchange, &refusal),
        }
    }

    /// AgentOS finishes a non-streamed run whoever waits for it: so do we, to meter it and to keep its lease.
    async fn detached(self: &Arc<Self>, mut admitted: Box<admit::Admitted>, mut exchange: Box<Exchange>) -> Answer {
        let id = Arc::clone(&exchange.event.request_id);
        // What is said if the work is not taken, or cut by the drain.
        let draining = Refusal::new(Code::Draining, Stage::Forward);
        exchange.refused(&draining);
        let (mut sender, receiver) = tokio::sync::oneshot::channel();
        let gateway = Arc::clone(self);
        let cancels = admitted.on_disconnect() == OnDisconnect::Cancel;
        let order = admitted.run_id.filter(|_| cancels).and_then(|run| Order::of(&admitted, &run.to_string()));
        admitted.order = order.map(|order| Arc::new(Some(order).into()));
        let order = admitted.order.clone();
        let work = Box::pin(async move {
            let mut forwarded = Box::pin(forward::forward(&gateway, admitted, exchange));
            let answer = match order {
                None => forwarded.await,
                Some(order) => tokio::select! {
                    answer = &mut forwarded => answer,
                    () = sender.closed() => {
                        // As it is now: the run may have moved to another endpoint, under another id.
                        let order = order.lock().take();
                        if let Some(order) = order {
                            order.send(Arc::clone(&gateway)).await;
                        }
                        forwarded.await
                    }
                },
            };
            // The caller may be gone; the exchange has settled either way.
            let _ = sender.send(answer);
        });
        if !(self.spawn)("run", work) {
            return draining.answer(&id);
        }
        match receiver.await {
            Ok(answer) => answer,
            Err(_) => Refusal::new(Code::Internal, Stage::Forward).answer(&id),
        }
    }

    /// Says whether policy lets the caller use an operation on a resource, through a door and from an address. For lists.
    pub fn may(
        &self,
        door: Door,
        peer: IpAddr,
        principal: &Principal,
        cluster: &str,
        operation: &str,
        resource_id: &str,
    ) -> bool {
        let snapshot = self.snapshot.load();
        let Some(operation) = snapshot.catalog.get(operation) else { return false };
        let Ok(cluster) = snapshot.clusters.named(cluster, &principal.tenant) else { return false };
        if cluster.version().is_some_and(|version| !operation.versions.include(version)) {
            return false;
        }
        let view = View { door, peer, human: false, tool: None };
        view.may(&snapshot.policies, principal, cluster, operation, resource_id)
    }

    /// Takes a name that may be taken once, in all instances that share a store, until the time is over.
    ///
    /// # Cancel safety
    /// The name may have been taken.
    pub async fn take_once(&self, name: &str, lasts: std::time::Duration) -> Once {
        self.once.take(name, lasts).await
    }

    /// What the caller's plan limits and what is left of it, without spending; `None` without a plan.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn limits_of(&self, principal: &Principal) -> Option<serde_json::Value> {
        let limits = self.snapshot().quota.usage(principal, &Work::default()).await.ok()?;
        Some(limits.iter().map(limit_json).collect())
    }

    /// The clusters that the caller's tenant may use, its default first.
    pub fn clusters_for(&self, principal: &Principal) -> Vec<Arc<str>> {
        self.snapshot.load().clusters.usable_by(&principal.tenant).iter().map(|c| Arc::clone(c.name())).collect()
    }
}
