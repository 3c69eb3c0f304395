//! Owns one AgentOS process as the balancer sees it: whether it is up, what is in flight there, its version.
//! Does not send anything (`outbound`), does not choose (`balance`), and does not say how many may be out (`ejection`).
//! Invariant: for every `Picked` the in-flight count goes up by one, and down by one when it is dropped.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::balance::Use;
use super::ejection::{Ejection, Record};
use super::life::Life;
use super::run_id::EndpointTag;
use super::sticky::Stay;
use crate::agentos::operation::Version;
use crate::outbound::Origin;

/// Failed connects in a row after which an endpoint is taken out.
const CONNECT_FAILURES_MAX: u32 = 3;
/// Failed probes in a row after which an endpoint is taken out.
const PROBE_FAILURES_MAX: u32 = 2;

/// One AgentOS process. Shared by every exchange that goes there, also across reloads.
pub struct Endpoint {
    /// Where it listens.
    pub origin: Origin,
    /// Its stable name within the cluster; carried by run ids.
    pub tag: EndpointTag,
    /// The origin as text, for logs and metrics.
    pub address: Arc<str>,
    in_flight: AtomicUsize,
    runs: AtomicU32,
    state: AtomicU8,
    connect_failures: AtomicU32,
    probe_failures: AtomicU32,
    probes_passed: AtomicU32,
    version: AtomicU8,
    life: Life,
    /// How it behaved, and until when it is out for that.
    record: Record,
}

/// What is known of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Not probed yet: it gets traffic.
    Unknown,
    /// It gets traffic.
    Up,
    /// It gets none until a probe succeeds.
    Down,
}

/// How an attempt on an endpoint went, as far as the endpoint is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered, whatever the status.
    Answered,
    /// No connection could be made.
    ConnectFailed,
    /// It was connected and then broke off, kept silent, or stood behind a proxy that could not reach it (502, 504).
    Broke,
}

/// A chosen endpoint, counted as in flight until this is dropped: hold it until the last body byte.
pub struct Picked {
    endpoint: Arc<Endpoint>,
    /// Those that it was chosen among, and when one may be ejected.
    peers: Arc<[Arc<Endpoint>]>,
    ejection: Ejection,
    what: Use,
    /// Keeps the session at the endpoint.
    _stay: Option<Stay>,
}

// === impl Endpoint ===

impl Endpoint {
    pub(super) fn new(origin: Origin, tag: EndpointTag) -> Self {
        Self {
            address: origin.to_string().into(),
            origin,
            tag,
            in_flight: AtomicUsize::new(0),
            runs: AtomicU32::new(0),
            state: AtomicU8::new(State::Unknown.code()),
            connect_failures: AtomicU32::new(0),
            probe_failures: AtomicU32::new(0),
            probes_passed: AtomicU32::new(0),
            version: AtomicU8::new(0),
            life: Life::default(),
            record: Record::new(),
        }
    }

    /// One that joins endpoints which serve already: it gets its share of the traffic little by little.
    pub(super) fn joining(origin: Origin, tag: EndpointTag) -> Self {
        let endpoint = Self::new(origin, tag);
        endpoint.record.begin_slowly();
        endpoint
    }

    /// What is known of it.
    pub fn state(&self) -> State {
        State::of_code(self.state.load(Ordering::Relaxed))
    }

    /// Says whether it gets traffic: its probes pass, and it is not out for how it behaved.
    pub fn is_up(&self) -> bool {
        self.answers() && !self.record.is_out()
    }

    /// Says whether its probes pass, or none was made: a run that it holds can be reached.
    pub fn answers(&self) -> bool {
        self.state() != State::Down
    }

    /// Says whether a run that AgentOS had here then is gone, because another process answers here now.
    pub fn has_forgotten(&self, since: Instant) -> bool {
        self.life.has_forgotten(since)
    }

    /// Notes which process answered a probe that was sent then.
    pub(super) fn answered_by(&self, sent: Instant, started: &str) {
        self.life.answered(sent, started);
    }

    /// How often it was taken out for how it behaved, since it last behaved well for long.
    pub fn ejections(&self) -> u32 {
        self.record.ejections()
    }

    /// Its share of new traffic in percent: less than 100 for a while after it came back.
    pub(super) fn warmth(&self, ejection: &Ejection) -> u64 {
        self.record.warmth(ejection.slow_start)
    }

    /// Exchanges that have it picked now.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Runs among them.
    pub fn runs(&self) -> u32 {
        self.runs.load(Ordering::Relaxed)
    }

    /// The AgentOS line that it was last seen to run.
    pub fn version(&self) -> Option<Version> {
        match self.version.load(Ordering::Relaxed) {
            2 => Some(Version::V2),
            3 => Some(Version::V3),
            _ => None,
        }
    }

    pub(super) fn set_version(&self, version: Version) {
        let code = match version {
            Version::V2 => 2,
            Version::V3 => 3,
        };
        self.version.store(code, Ordering::Relaxed);
    }

    /// Counts a passed probe and brings the endpoint up. Returns the state before, and the number of passes in a row.
    pub(super) fn probe_passed(&self) -> (State, u32) {
        self.probe_failures.store(0, Ordering::Relaxed);
        self.connect_failures.store(0, Ordering::Relaxed);
        let passed = self.probes_passed.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let before = self.turn(State::Up);
        if before == State::Down {
            self.record.begin_slowly();
        }
        (before, passed)
    }

    /// Counts a failed probe; the second in a row takes the endpoint out, or the first when none ever passed.
    pub(super) fn probe_failed(&self) -> State {
        self.probes_passed.store(0, Ordering::Relaxed);
        let failures = self.probe_failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let before = self.state();
        if failures >= PROBE_FAILURES_MAX || before == State::Unknown { self.turn(State::Down) } else { before }
    }

    fn report(&self, outcome: Outcome, peers: &[Arc<Self>], ejection: &Ejection) {
        match outcome {
            Outcome::Answered => {
                // Keeps the line of a healthy endpoint out of every other core's cache.
                if self.connect_failures.load(Ordering::Relaxed) != 0 {
                    self.connect_failures.store(0, Ordering::Relaxed);
                }
                self.record.behaved(ejection);
            }
            Outcome::ConnectFailed => {
                let failures = self.connect_failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                if failures >= CONNECT_FAILURES_MAX {
                    self.turn(State::Down);
                }
            }
            // The process lives, and a broken run says little about the next one: several in a row do.
            Outcome::Broke => {
                let out = || peers.iter().filter(|peer| peer.record.is_out()).count();
                self.record.misbehaved(ejection, || ejection.allows(out(), peers.len()));
            }
        }
    }

    fn turn(&self, state: State) -> State {
        State::of_code(self.state.swap(state.code(), Ordering::Relaxed))
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("address", &self.address)
            .field("tag", &self.tag)
            .field("state", &self.state())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

// === impl State ===

impl State {
    fn code(self) -> u8 {
        match self {
            Self::Unknown => 0,
            Self::Up => 1,
            Self::Down => 2,
        }
    }

    fn of_code(code: u8) -> Self {
        match code {
            1 => Self::Up,
            2 => Self::Down,
            _ => Self::Unknown,
        }
    }
}

// === impl Picked ===

impl Picked {
    pub(super) fn new(endpoint: &Arc<Endpoint>, peers: &Arc<[Arc<Endpoint>]>, ejection: Ejection, what: Use) -> Self {
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        if what == Use::Run {
            endpoint.runs.fetch_add(1, Ordering::Relaxed);
        }
        Self { endpoint: Arc::clone(endpoint), peers: Arc::clone(peers), ejection, what, _stay: None }
    }

    /// The same, while a session stays where it is.
    pub(super) fn staying(mut self, stay: Stay) -> Self {
        self._stay = Some(stay);
        self
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Tells how the attempt went; three failed connects in a row take the endpoint out until a probe succeeds, and
    /// several that broke in a row for a time that grows.
    pub fn report(&self, outcome: Outcome) {
        self.endpoint.report(outcome, &self.peers, &self.ejection);
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.what == Use::Run {
            self.endpoint.runs.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Picked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Picked").field(&self.endpoint.address).finish()
    }
}

/// A tag per origin: the first 16 bits of SHA-256 over cluster and origin, unique within the cluster.
///
/// Every instance with the same endpoints computes the same tags, in whatever order they are written: where two
/// would collide, the origin that sorts later is hashed again.
pub(super) fn tags(cluster: &str, origins: &[Origin]) -> Vec<EndpointTag> {
    let mut order: Vec<(usize, &Origin)> = origins.iter().enumerate().collect();
    order.sort_by_key(|(_, origin)| *origin);
    let mut taken = HashSet::new();
    let mut tagged: Vec<(usize, EndpointTag)> =
        order.into_iter().map(|(at, origin)| (at, tag_beside(cluster, origin, &mut taken))).collect();
    tagged.sort_by_key(|(at, _)| *at);
    tagged.into_iter().map(|(_, tag)| tag).collect()
}

/// The tag of an origin that joins others: the one that it has among them, unless that is taken.
pub(super) fn tag_beside(cluster: &str, origin: &Origin, taken: &mut HashSet<EndpointTag>) -> EndpointTag {
    let free = (0..=u32::from(u16::MAX)).map(|round| tag(cluster, origin, round)).find(|tag| taken.insert(*tag));
    free.unwrap_or(EndpointTag(0))
}

fn tag(cluster: &str, origin: &Origin, round: u32) -> EndpointTag {
    let again = if round == 0 { String::new() } else { format!("\0{round}") };
    let digest = Sha256::digest(format!("{cluster}\0{origin}{again}"));
    EndpointTag(digest.iter().take(2).fold(0, |bits, byte| (bits << 8) | u16::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(n: u16) -> Vec<Origin> {
        (1..=n).map(|port| Origin { tls: false, host: "10.0.0.1".into(), port }).collect()
    }

    fn picked(endpoint: &Arc<Endpoint>) -> Picked {
        Picked::new(endpoint, &Arc::from([Arc::clone(endpoint)]), Ejection::default(), Use::Run)
    }

    #[test]
    fn tags_are_stable_whatever_the_order() {
        let mut origins = origins(700);
        let tagged: Vec<_> = origins.iter().cloned().zip(tags("main", &origins)).collect();
        let distinct: HashSet<_> = tagged.iter().map(|(_, tag)| *tag).collect();
        assert_eq!(distinct.len(), 700, "collisions are resolved");
        origins.reverse();
        let mut again: Vec<_> = origins.iter().cloned().zip(tags("main", &origins)).collect();
        again.reverse();
        assert_eq!(again, tagged);
        // SHA-256 of "main\0http://10.0.0.1:1": instances of other releases must agree with it.
        let digest = Sha256::digest(b"main\0http://10.0.0.1:1");
        assert_eq!(tagged[0].1, EndpointTag(u16::from_be_bytes([digest[0], digest[1]])));
        assert_ne!(tags("other", &super::tests::origins(1)), [tagged[0].1]);
    }

    #[test]
    fn probes_take_out_and_bring_back() {
        let endpoint = Endpoint::new(origins(1).remove(0), EndpointTag(1));
        assert_eq!((endpoint.state(), endpoint.is_up()), (State::Unknown, true));
        assert_eq!(endpoint.probe_failed(), State::Unknown);
        assert_eq!(endpoint.state(), State::Down, "the very first probe decides");
        assert_eq!(endpoint.probe_passed(), (State::Down, 1));
        assert_eq!(endpoint.probe_failed(), State::Up);
        assert!(endpoint.is_up(), "one failure may be a hiccup");
        assert_eq!(endpoint.probe_passed(), (State::Up, 1));
        endpoint.probe_failed();
        assert!(endpoint.is_up(), "failures count in a row");
        endpoint.probe_failed();
        assert!(!endpoint.is_up());
    }

    #[test]
    fn three_failed_connects_in_a_row_take_out_until_a_probe_passes() {
        let endpoint = Arc::new(Endpoint::new(origins(1).remove(0), EndpointTag(1)));
        let picked = picked(&endpoint);
        for outcome in [Outcome::ConnectFailed, Outcome::ConnectFailed, Outcome::Answered, Outcome::Broke] {
            picked.report(outcome);
        }
        for _ in 0..3 {
            assert!(endpoint.is_up());
            picked.report(Outcome::ConnectFailed);
        }
        assert!(!endpoint.is_up());
        picked.report(Outcome::Answered);
        assert!(!endpoint.is_up(), "an old exchange does not bring it back");
        endpoint.probe_passed();
        picked.report(Outcome::ConnectFailed);
        assert!(endpoint.is_up(), "a passed probe forgives");
    }

    #[test]
    fn in_flight_counts_what_is_held() {
        let endpoint = Arc::new(Endpoint::new(origins(1).remove(0), EndpointTag(1)));
        let (a, b) = (picked(&endpoint), picked(&endpoint));
        assert_eq!(endpoint.in_flight(), 2);
        drop(a);
        assert_eq!(endpoint.in_flight(), 1);
        drop(b);
        assert_eq!(endpoint.in_flight(), 0);
    }
}
