//! Owns telling a listening client what has changed: lists that it sees, runs and agents that it watches.
//! Does not hold streams (`endpoint`) and does not decide: lists are compared as this caller sees them, runs are read by
//! admitted calls.
//! Invariants: a caller hears of a change only when its own list changed; nothing is sent once its credential has
//! ended; a client that does not read holds up nobody, itself included; all waits and tables are bounded.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use rmcp::RoleServer;
use rmcp::model::ResourceUpdatedNotificationParam;
use rmcp::service::{Peer, SubscriptionSink};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::ask::Asker;
use super::handle::RunHandle;
use super::prompts;
use super::reader::Reader;
use super::resources::{self, Address, Part};
use super::run::view::{RunView, Status};
use super::sessions::Session;
use super::tools;
use super::viewer::Viewer;
use crate::principal::{Principal, TenantId};

/// Resources that one listener watches.
pub(super) const WATCHED_MAX: usize = 32;
/// Listening streams of one principal.
const PER_PRINCIPAL_MAX: usize = 64;
/// Listening streams of all principals.
const TOTAL_MAX: usize = 32_768;
/// Changes come in bursts, such as the three lists of one look.
const BURST: Duration = Duration::from_millis(300);
/// Lists also change by what policies read of the clock: they are compared this often at least.
const COMPARE_EVERY: Duration = Duration::from_secs(60);
/// A client that has not taken earlier messages is tried again this much later.
const UNREAD_PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for the transport.
const SEND_WAIT: Duration = Duration::from_secs(2);
/// A watched run is read this often at first, later more seldom: each read spends the caller's rate.
const POLL: Duration = Duration::from_secs(2);
const POLL_MAX: Duration = Duration::from_secs(30);

/// Who listens.
#[derive(Default)]
pub(super) struct Listeners {
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    total: usize,
    by: HashMap<(TenantId, Arc<str>), usize>,
}

/// A place among the listeners, given back on drop.
pub(super) struct Listening {
    listeners: Arc<Listeners>,
    key: (TenantId, Arc<str>),
}

/// The lists that a client wants to hear about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Wanted {
    pub(super) tools: bool,
    pub(super) prompts: bool,
    pub(super) resources: bool,
}

/// The way to a client.
pub(super) enum Way {
    /// The stream of a `subscriptions/listen`.
    Listen(SubscriptionSink),
    /// The common stream of a session.
    Session(Peer<RoleServer>),
}

/// Tells one client of changes.
pub(super) struct Notices {
    viewer: Viewer,
    asker: Asker,
    way: Way,
    reader: Arc<Reader>,
    wanted: Wanted,
    told: Lists,
    watched: Vec<Watched>,
}

/// The listening stream of a session, from its opening to its end.
pub(super) struct Stream {
    pub(super) viewer: Viewer,
    pub(super) asker: Asker,
    pub(super) session: Arc<Session>,
    pub(super) reader: Arc<Reader>,
    /// What the caller saw when the stream was opened.
    pub(super) told: Lists,
}

/// Fingerprints of the lists that a caller sees; `None` for one that it does not want to hear about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lists {
    tools: Option<u64>,
    prompts: Option<u64>,
    resources: Option<u64>,
}

/// What is told.
#[derive(Clone, Copy)]
enum Notice<'a> {
    Tools,
    Prompts,
    Resources,
    Updated(&'a str),
}

struct Watched {
    uri: String,
    what: What,
}

enum What {
    Agent { told: Option<u64> },
    Run { handle: Box<RunHandle>, told: Option<u64>, found: bool, next: Instant, pause: Duration },
}

// === impl Listeners ===

impl Listeners {
    /// Takes a place; `None` when the principal, or everybody together, has too many.
    pub(super) fn enter(self: &Arc<Self>, principal: &Principal) -> Option<Listening> {
        let key = (principal.tenant.clone(), Arc::clone(&principal.subject));
        let mut counts = self.counts.lock();
        let own = counts.by.get(&key).copied().unwrap_or(0);
        if own >= PER_PRINCIPAL_MAX || counts.total >= TOTAL_MAX {
            return None;
        }
        counts.total += 1;
        counts.by.insert(key.clone(), own + 1);
        Some(Listening { listeners: Arc::clone(self), key })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut counts = self.listeners.counts.lock();
        counts.total = counts.total.saturating_sub(1);
        let left = counts.by.get(&self.key).map_or(0, |own| own.saturating_sub(1));
        if left == 0 {
            counts.by.remove(&self.key);
        } else {
            counts.by.insert(self.key.clone(), left);
        }
    }
}

// === impl Wanted ===

impl Wanted {
    /// All lists.
    pub(super) const ALL: Self = Self { tools: true, prompts: true, resources: true };
}

// === impl Notices ===

impl Notices {
    /// Begins with what the caller sees now: only what changes afterwards is told.
    pub(super) fn new(viewer: Viewer, asker: Asker, way: Way, reader: Arc<Reader>, wanted: Wanted) -> Self {
        let told = Lists::of(&viewer, wanted);
        Self { viewer, asker, way, reader, wanted, told, watched: Vec::new() }
    }

    /// Watches these resources and no others. What cannot be watched, or not by this caller, is left out.
    pub(super) fn watch(&mut self, uris: &[String]) {
        let uris: HashSet<&String> = uris.iter().take(WATCHED_MAX).collect();
        self.watched.retain(|watched| uris.contains(&watched.uri));
        for uri in uris {
            if self.watched.iter().any(|watched| watched.uri == *uri) || !resources::can_be_watched(&self.viewer, uri) {
                continue;
            }
            let what = match Address::parse(uri) {
                Some(Address::Agent { .. }) => Some(What::Agent { told: component(&self.viewer, uri) }),
                Some(Address::Run { run, part: Part::Summary }) => {
                    RunHandle::open(&*self.asker.path, &self.asker.principal, &run).ok().map(What::run)
                }
                Some(Address::Run { .. } | Address::Session { .. } | Address::Content { .. }) | None => None,
            };
            self.watched.extend(what.map(|what| Watched { uri: uri.clone(), what }));
        }
    }

    /// Tells the client of changes until the caller's credential ends; `uris` gives new sets of watched resources.
    ///
    /// # Cancel safety
    /// Dropping the future ends the listening; a notice may be lost.
    pub(super) async fn tell(&mut self, mut uris: Option<watch::Receiver<Vec<String>>>) {
        let inner = Arc::clone(&self.viewer.inner);
        let ended = Arc::clone(&inner.path).ended(Arc::clone(&self.asker.principal));
        let (mut seen, mut changes) = (inner.discovery.changes(), inner.path.changes());
        tokio::pin!(ended);
        let mut compare_at = Instant::now() + BURST;
        loop {
            let poll_at = self.next_poll();
            tokio::select! {
                biased;
                () = &mut ended => return,
                Ok(()) = seen.changed() => compare_at = compare_at.min(Instant::now() + BURST),
                Ok(()) = changes.changed() => compare_at = compare_at.min(Instant::now() + BURST),
                new = changed(&mut uris) => self.watch(&new),
                () = sleep_until(compare_at) => {
                    let whole = self.compare().await;
                    compare_at = Instant::now() + if whole { COMPARE_EVERY } else { UNREAD_PAUSE };
                }
                () = sleep_until(poll_at) => self.poll().await,
            }
        }
    }

    /// Compares what the caller sees with what it was told; `false` when the client does not read.
    async fn compare(&mut self) -> bool {
        self.viewer.inner.discovery.want();
        let now = Lists::of(&self.viewer, self.wanted);
        let mut whole = true;
        if now.tools != self.told.tools {
            let sent = self.send(Notice::Tools).await;
            self.told.tools = if sent { now.tools } else { self.told.tools };
            whole &= sent;
        }
        if now.prompts != self.told.prompts {
            let sent = self.send(Notice::Prompts).await;
            self.told.prompts = if sent { now.prompts } else { self.told.prompts };
            whole &= sent;
        }
        if now.resources != self.told.resources {
            let sent = self.send(Notice::Resources).await;
            self.told.resources = if sent { now.resources } else { self.told.resources };
            whole &= sent;
        }
        for at in 0..self.watched.len() {
            let Some(Watched { uri, what: What::Agent { told } }) = self.watched.get(at) else { continue };
            let (uri, told, now) = (uri.clone(), *told, component(&self.viewer, uri));
            if now != told && self.send(Notice::Updated(&uri)).await {
                if let Some(Watched { what: What::Agent { told }, .. }) = self.watched.get_mut(at) {
                    *told = now;
                }
            } else {
                whole &= now == told;
            }
        }
        // What the caller may no longer see was told once more, and is told no more.
        self.watched.retain(|watched| !matches!(watched.what, What::Agent { told: None }));
        whole
    }

    fn next_poll(&self) -> Instant {
        let due = self.watched.iter().filter_map(|watched| match &watched.what {
            What::Run { next, .. } => Some(*next),
            What::Agent { .. } => None,
        });
        // Far enough to mean never.
        due.min().unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400))
    }

    /// Reads the watched runs that are due. Each read is admitted: whoever may no longer read is told nothing.
    async fn poll(&mut self) {
        let now = Instant::now();
        let mut over = Vec::new();
        for at in 0..self.watched.len() {
            let Some(Watched { uri, what: What::Run { handle, next, .. } }) = self.watched.get(at) else { continue };
            if *next > now {
                continue;
            }
            let (uri, handle) = (uri.clone(), handle.clone());
            let read = resources::stored(&self.asker, &handle).await;
            let Some(Watched { what: What::Run { told, found, next, pause, .. }, .. }) = self.watched.get_mut(at)
            else {
                continue;
            };
            *pause = (*pause * 3 / 2).min(POLL_MAX);
            *next = Instant::now() + *pause;
            let view = match read {
                Ok(row) => RunView::stored(handle.kind, &row),
                // AgentOS 2.x stores a run when it ends.
                Err(failure) if failure.is_not_found() && !*found => continue,
                Err(failure) if failure.is_not_found() || failure.is_forbidden() => {
                    over.push(uri);
                    continue;
                }
                Err(failure) => {
                    *next += failure.retry_after().unwrap_or_default();
                    continue;
                }
            };
            *found = true;
            let mark = mark(&view);
            let ended = !matches!(view.status, Status::Running | Status::Paused);
            // A run that was still running when the client began to watch has not changed by being seen.
            let news = told.map_or(view.status != Status::Running, |told| told != mark);
            if !news {
                *told = Some(mark);
            } else if self.send(Notice::Updated(&uri)).await {
                if let Some(Watched { what: What::Run { told, pause, .. }, .. }) = self.watched.get_mut(at) {
                    *told = Some(mark);
                    *pause = POLL;
                }
                over.extend(ended.then_some(uri));
            }
        }
        self.watched.retain(|watched| !over.contains(&watched.uri));
    }

    /// Says whether the credential has ended: a read may have taken longer than it had left.
    fn is_over(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.asker.principal.expires_at.is_some_and(|end| now >= Duration::from_secs(end))
    }

    /// Sends one notice; `false` when the client has not taken the earlier ones.
    async fn send(&self, notice: Notice<'_>) -> bool {
        if self.is_over() || !self.reader.reserve() {
            return false;
        }
        let sending = async {
            match (&self.way, notice) {
                (Way::Listen(sink), Notice::Tools) => sink.notify_tool_list_changed().await.is_ok(),
                (Way::Listen(sink), Notice::Prompts) => sink.notify_prompt_list_changed().await.is_ok(),
                (Way::Listen(sink), Notice::Resources) => sink.notify_resource_list_changed().await.is_ok(),
                (Way::Listen(sink), Notice::Updated(uri)) => sink.notify_resource_updated(uri).await.is_ok(),
                (Way::Session(peer), Notice::Tools) => peer.notify_tool_list_changed().await.is_ok(),
                (Way::Session(peer), Notice::Prompts) => peer.notify_prompt_list_changed().await.is_ok(),
                (Way::Session(peer), Notice::Resources) => peer.notify_resource_list_changed().await.is_ok(),
                (Way::Session(peer), Notice::Updated(uri)) => {
                    peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(uri)).await.is_ok()
                }
            }
        };
        timeout(SEND_WAIT, sending).await.unwrap_or(false)
    }
}

// === impl Stream ===

impl Stream {
    /// Tells the client of changes until its credential ends.
    ///
    /// # Cancel safety
    /// Dropping the future ends the listening.
    pub(super) async fn tell(self) {
        let Self { viewer, asker, session, reader, told } = self;
        let ended = Arc::clone(&asker.path).ended(Arc::clone(&asker.principal));
        // A client that opens its stream first says later that it is ready.
        let peer = tokio::select! {
            () = ended => return,
            peer = session.peer() => peer,
        };
        let mut notices = Notices { told, ..Notices::new(viewer, asker, Way::Session(peer), reader, Wanted::ALL) };
        let mut uris = session.watched();
        let now = uris.borrow_and_update().clone();
        notices.watch(&now);
        notices.tell(Some(uris)).await;
    }
}

// === impl Lists ===

impl Lists {
    /// What the caller sees now.
    pub(super) fn of(viewer: &Viewer, wanted: Wanted) -> Self {
        let hash = |names: Vec<String>| {
            let mut hasher = DefaultHasher::new();
            names.hash(&mut hasher);
            hasher.finish()
        };
        let tools = || tools::described(viewer).iter().map(json).collect();
        let prompts = || prompts::listed(viewer).iter().map(|shown| json(&prompts::describe(shown))).collect();
        let resources = || {
            let templates = resources::templates(viewer).iter().map(json).collect::<Vec<String>>();
            let listed = resources::describe(&resources::listed(viewer)).iter().map(json).collect::<Vec<String>>();
            [templates, listed].concat()
        };
        Self {
            tools: wanted.tools.then(|| hash(tools())),
            prompts: wanted.prompts.then(|| hash(prompts())),
            resources: wanted.resources.then(|| hash(resources())),
        }
    }
}

// === impl What ===

impl What {
    fn run(handle: RunHandle) -> Self {
        Self::Run { handle: Box::new(handle), told: None, found: false, next: Instant::now(), pause: POLL }
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

/// What a caller sees of an agent; `None` when it sees none.
fn component(viewer: &Viewer, uri: &str) -> Option<u64> {
    let Some(Address::Agent { agent, kind }) = Address::parse(uri) else { return None };
    let all = resources::listed(viewer);
    let named = resources::named(&all, &agent, kind);
    let mut hasher = DefaultHasher::new();
    for shown in &named {
        (&shown.found.id, &shown.found.name, &shown.found.description).hash(&mut hasher);
    }
    (!named.is_empty()).then(|| hasher.finish())
}

/// What of a run is worth telling.
fn mark(view: &RunView) -> u64 {
    let mut hasher = DefaultHasher::new();
    (resources::word(&view.status), view.answer().len(), view.waiting.len()).hash(&mut hasher);
    hasher.finish()
}

/// The next set of watched resources.
async fn changed(uris: &mut Option<watch::Receiver<Vec<String>>>) -> Vec<String> {
    let Some(receiver) = uris else { return pending().await };
    if receiver.changed().await.is_err() {
        return pending().await;
    }
    receiver.borrow_and_update().clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::PrincipalKind;

    #[test]
    fn one_principal_listens_a_bounded_number_of_times() {
        let listeners = Arc::new(Listeners::default());
        let of = |subject: &str| {
            Principal::new(PrincipalKind::User, subject, TenantId::new("acme").unwrap(), vec![], vec![], None, None)
        };
        let mut held: Vec<Listening> = (0..PER_PRINCIPAL_MAX).map(|_| listeners.enter(&of("alice")).unwrap()).collect();
        assert!(listeners.enter(&of("alice")).is_none());
        assert!(listeners.enter(&of("bob")).is_some(), "bob is somebody else");
        held.pop();
        assert!(listeners.enter(&of("alice")).is_some());
        drop(held);
        assert!(listeners.counts.lock().by.is_empty() && listeners.counts.lock().total == 0);
    }
}
