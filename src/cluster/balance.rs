//! Owns choosing one endpoint among the healthy ones of a cluster.
//! Does not know requests: callers say whether any will do, or which session or run the choice must follow.
//! Invariants: an endpoint that is down is never chosen; while a session has an exchange in flight, its others go to
//! the same endpoint; a choice that follows nothing takes no lock and no memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use super::ejection::Ejection;
use super::endpoint::{Endpoint, Picked};
use super::run_id::EndpointTag;
use super::sticky::Sticky;

/// A session that is new takes its first endpoint unless that has this much more than its share in flight, in
/// percent, …
const OVERLOAD_PERCENT: usize = 125;
/// … and this many exchanges besides: a few say nothing about load.
const OVERLOAD_SLACK: usize = 8;

/// How a cluster spreads requests that may go anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The one with fewer exchanges in flight, of two drawn at random.
    LeastRequests,
    /// One after the other.
    RoundRobin,
    /// The same endpoint for the same session, also for reads; without a session as `LeastRequests`.
    SessionHash,
}

/// What the choice must follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want<'a> {
    /// Nothing.
    Any,
    /// The session: the same one goes to the same endpoint while that is up.
    Session(&'a str),
    /// The run: only the endpoint that holds it will do.
    Tag(EndpointTag),
    /// Any but those that were tried already.
    Except(&'a [EndpointTag]),
    /// The session, but not where it was tried already.
    SessionExcept(&'a str, &'a [EndpointTag]),
}

/// Why there is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// None is up.
    #[error("none of {0} endpoints is up")]
    AllDown(usize),
    /// Those that are up were tried already.
    #[error("every endpoint that is up was tried")]
    AllTried,
    /// The run's endpoint is down.
    #[error("the endpoint `{0}` that holds the run is down")]
    Down(Arc<str>),
    /// The run's endpoint is not configured any more.
    #[error("the endpoint with tag {0} that held the run is gone")]
    Gone(EndpointTag),
}

/// The endpoints of a cluster and the state of its draws.
pub(super) struct Balancer {
    balance: Balance,
    ejection: Ejection,
    /// Most runs that one endpoint takes.
    runs_max: Option<u32>,
    set: ArcSwap<Set>,
    sticky: Sticky,
    /// Counts draws: a sequence for round robin, a seed for random ones.
    draws: AtomicU64,
}

/// The endpoints at one time.
pub(super) struct Set {
    endpoints: Arc<[Arc<Endpoint>]>,
    /// Those that are gone from the list and still hold runs.
    leaving: Vec<Arc<Endpoint>>,
}

/// What an exchange does at its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It calls models, and counts against `runs_per_endpoint`.
    Run,
    /// It does not.
    Other,
}

// === impl Balancer ===

impl Balancer {
    pub(super) fn new(
        balance: Balance,
        ejection: Ejection,
        runs_max: Option<u32>,
        endpoints: Vec<Arc<Endpoint>>,
        seed: u64,
    ) -> Self {
        let set = Set { endpoints: endpoints.into(), leaving: Vec::new() };
        let (set, sticky) = (ArcSwap::from_pointee(set), Sticky::default());
        Self { balance, ejection, runs_max, set, sticky, draws: AtomicU64::new(seed) }
    }

    /// Goes on where another one stood: its sessions stay where they are, and what left it is still found.
    pub(super) fn after(mut self, former: &Self) -> Self {
        self.sticky = former.sticky.clone();
        self.set.store(Arc::new(former.set.load().followed_by(self.endpoints())));
        self
    }

    /// Takes another list of endpoints; those that are gone are found by their runs while they hold any.
    pub(super) fn replace(&self, endpoints: Vec<Arc<Endpoint>>) {
        self.set.store(Arc::new(self.set.load().followed_by(endpoints.into())));
    }

    /// Those that are gone from the list and still hold runs.
    pub(super) fn leaving(&self) -> Vec<Arc<Endpoint>> {
        self.set.load().leaving.iter().filter(|endpoint| endpoint.in_flight() > 0).cloned().collect()
    }

    pub(super) fn endpoints(&self) -> Arc<[Arc<Endpoint>]> {
        Arc::clone(&self.set.load().endpoints)
    }

    pub(super) fn pick(&self, want: Want<'_>, what: Use) -> Result<Picked, NoEndpoint> {
        let set = self.set.load();
        let picked = |endpoint: &Arc<Endpoint>| Picked::new(endpoint, &set.endpoints, self.ejection, what);
        let none: &[EndpointTag] = &[];
        let (chosen, tried) = match want {
            Want::Any => (self.spread(&set, none, what).map(picked), none),
            Want::Except(tried) => (self.spread(&set, tried, what).map(picked), tried),
            Want::Session(session) => (self.follow(&set, session, none, what), none),
            Want::SessionExcept(session, tried) => (self.follow(&set, session, tried, what), tried),
            Want::Tag(tag) => return self.tagged(&set, tag).map(picked),
        };
        let all_tried = || !tried.is_empty() && set.eligible(none).next().is_some();
        chosen.ok_or_else(|| if all_tried() { NoEndpoint::AllTried } else { NoEndpoint::AllDown(set.endpoints.len()) })
    }

    /// A run is reached wherever it is, also at an endpoint that gets no new ones.
    fn tagged<'a>(&self, set: &'a Set, tag: EndpointTag) -> Result<&'a Arc<Endpoint>, NoEndpoint> {
        let endpoint = set.endpoints.iter().chain(&set.leaving).find(|e| e.tag == tag).ok_or(NoEndpoint::Gone(tag))?;
        if endpoint.answers() { Ok(endpoint) } else { Err(NoEndpoint::Down(Arc::clone(&endpoint.address))) }
    }

    /// Chooses for what follows nothing, where runs have room if they have it anywhere.
    fn spread<'a>(&self, set: &'a Set, tried: &[EndpointTag], what: Use) -> Option<&'a Arc<Endpoint>> {
        let limit = self.runs_max.filter(|_| what == Use::Run);
        limit
            .and_then(|limit| self.draw(|| set.eligible(tried).filter(move |e| e.runs() < limit)))
            .or_else(|| self.draw(|| set.eligible(tried)))
    }

    fn draw<'a, I: Iterator<Item = &'a Arc<Endpoint>>>(&self, eligible: impl Fn() -> I) -> Option<&'a Arc<Endpoint>> {
        let n = eligible().count() as u64;
        match self.balance {
            Balance::RoundRobin => {
                let turn = self.draws.fetch_add(1, Ordering::Relaxed);
                let first = nth(eligible(), turn.checked_rem(n)?)?;
                // One that has just come back passes most of its turns on.
                let warmth = first.warmth(&self.ejection);
                let passes = warmth < 100 && mix(turn) % 100 >= warmth;
                if passes { nth(eligible(), (turn + 1) % n) } else { Some(first) }
            }
            Balance::LeastRequests | Balance::SessionHash => self.of_two(n, eligible),
        }
    }

    /// Power of two choices: close to the least loaded one, without every instance rushing to the same.
    fn of_two<'a, I>(&self, n: u64, eligible: impl Fn() -> I) -> Option<&'a Arc<Endpoint>>
    where
        I: Iterator<Item = &'a Arc<Endpoint>>,
    {
        let draw = mix(self.draws.fetch_add(1, Ordering::Relaxed));
        let first = draw.checked_rem(n)?;
        let one = nth(eligible(), first)?;
        if n == 1 {
            return Some(one);
        }
        let second = (first + 1 + (draw >> 32) % (n - 1)) % n;
        // An endpoint may have gone down between the two looks: then the first one stands.
        let other = nth(eligible(), second).unwrap_or(one);
        Some(if self.weighs(other) < self.weighs(one) { other } else { one })
    }

    /// What an endpoint would have in flight with one more, as if its share were whole.
    fn weighs(&self, endpoint: &Endpoint) -> u64 {
        let in_flight = u64::try_from(endpoint.in_flight()).unwrap_or(u64::MAX);
        in_flight.saturating_add(1).saturating_mul(100) / endpoint.warmth(&self.ejection).max(1)
    }

    /// The endpoint where the session is, else the one that it hashes to, unless that has too much to do.
    fn follow(&self, set: &Set, session: &str, tried: &[EndpointTag], what: Use) -> Option<Picked> {
        let key = session_key(session);
        let limit = self.runs_max.filter(|_| what == Use::Run);
        let (endpoint, stay) = self.sticky.settle(key, |place| {
            let staying = place.and_then(|tag| set.eligible(tried).find(|endpoint| endpoint.tag == tag));
            staying.or_else(|| home(set, key, tried, limit))
        })?;
        Some(Picked::new(endpoint, &set.endpoints, self.ejection, what).staying(stay))
    }
}

// === impl Set ===

impl Set {
    /// Other endpoints; those of this set that are not among them are kept while they hold runs.
    fn followed_by(&self, endpoints: Arc<[Arc<Endpoint>]>) -> Self {
        let gone = self.endpoints.iter().chain(&self.leaving).filter(|e| e.in_flight() > 0);
        let leaving = gone.filter(|e| !endpoints.iter().any(|other| Arc::ptr_eq(other, e))).cloned().collect();
        Self { endpoints, leaving }
    }

    fn eligible<'a>(&'a self, tried: &[EndpointTag]) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        self.endpoints.iter().filter(move |endpoint| endpoint.is_up() && !tried.contains(&endpoint.tag))
    }
}

/// Rendezvous hashing with bounded load: when an endpoint leaves, only its own sessions move; one that has much more
/// to do than the others, or as many runs as it may have, gets no new ones.
fn home<'a>(set: &'a Set, key: u64, tried: &[EndpointTag], limit: Option<u32>) -> Option<&'a Arc<Endpoint>> {
    let (n, in_flight) = set.eligible(&[]).fold((0, 0), |(n, sum), e| (n + 1, sum + e.in_flight()));
    let bound = ((in_flight + 1) * OVERLOAD_PERCENT).div_ceil(n.max(1) * 100) + OVERLOAD_SLACK;
    let rank = |endpoint: &&Arc<Endpoint>| (mix(key ^ mix(u64::from(endpoint.tag.0))), endpoint.tag);
    let has_room = |endpoint: &&Arc<Endpoint>| limit.is_none_or(|limit| endpoint.runs() < limit);
    let free = set.eligible(tried).filter(|endpoint| endpoint.in_flight() < bound && has_room(endpoint));
    let roomy = || set.eligible(tried).filter(has_room).max_by_key(rank);
    free.max_by_key(rank).or_else(roomy).or_else(|| set.eligible(tried).max_by_key(rank))
}

fn nth<'a>(endpoints: impl Iterator<Item = &'a Arc<Endpoint>>, n: u64) -> Option<&'a Arc<Endpoint>> {
    let wanted = usize::try_from(n).ok()?;
    let mut last = None;
    for (at, endpoint) in endpoints.enumerate() {
        last = Some(endpoint);
        if at == wanted {
            break;
        }
    }
    last
}

/// A hash that every instance and release agrees on.
fn session_key(session: &str) -> u64 {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(session.as_bytes());
    digest.iter().take(8).fold(0, |bits, byte| (bits << 8) | u64::from(*byte))
}

/// The output function of SplitMix64 over its counter.
fn mix(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::Origin;

    fn balancer(balance: Balance, n: u16) -> Balancer {
        let endpoint = |port| Arc::new(Endpoint::new(Origin { tls: false, host: "h".into(), port }, EndpointTag(port)));
        Balancer::new(balance, Ejection::default(), None, (1..=n).map(endpoint).collect(), 7)
    }

    fn take_out(balancer: &Balancer, tags: &[u16]) {
        for endpoint in balancer.endpoints().iter().filter(|e| tags.contains(&e.tag.0)) {
            endpoint.probe_failed();
        }
    }

    fn tag(picked: Result<Picked, NoEndpoint>) -> u16 {
        picked.unwrap().endpoint().tag.0
    }

    #[test]
    fn round_robin_takes_turns_among_the_healthy() {
        let balancer = balancer(Balance::RoundRobin, 4);
        take_out(&balancer, &[2]);
        let turns: Vec<u16> = (0..6).map(|_| tag(balancer.pick(Want::Any, Use::Other))).collect();
        assert_eq!(turns, [3, 4, 1, 3, 4, 1]);
    }

    #[test]
    fn least_requests_keeps_the_load_level() {
        let balancer = balancer(Balance::LeastRequests, 8);
        let held: Vec<Picked> = (0..800).map(|_| balancer.pick(Want::Any, Use::Other).unwrap()).collect();
        let loads: Vec<usize> = balancer.endpoints().iter().map(|e| e.in_flight()).collect();
        assert!(loads.iter().all(|load| (90..=110).contains(load)), "{loads:?}");
        drop(held);
        assert!(balancer.endpoints().iter().all(|e| e.in_flight() == 0));
    }

    #[test]
    fn of_two_the_idler_one_is_taken() {
        let balancer = balancer(Balance::LeastRequests, 2);
        let busy = balancer.pick(Want::Tag(EndpointTag(1)), Use::Other).unwrap();
        assert!((0..50).all(|_| tag(balancer.pick(Want::Any, Use::Other)) == 2));
        drop(busy);
    }

    #[test]
    fn sessions_stay_and_only_the_leaver_s_move() {
        let balancer = balancer(Balance::SessionHash, 5);
        let place = |s: &u32| tag(balancer.pick(Want::Session(&format!("session-{s}")), Use::Other));
        let sessions: Vec<u32> = (0..500).collect();
        let before: Vec<u16> = sessions.iter().map(place).collect();
        assert_eq!(before, sessions.iter().map(place).collect::<Vec<_>>());
        for t in 1..=5 {
            let share = before.iter().filter(|p| **p == t).count();
            assert!((60..=140).contains(&share), "endpoint {t} has {share} of 500");
        }
        take_out(&balancer, &[3]);
        let after: Vec<u16> = sessions.iter().map(place).collect();
        for (old, new) in before.iter().zip(&after) {
            assert!(if *old == 3 { *new != 3 } else { old == new });
        }
    }

    #[test]
    fn tags_find_their_endpoint_or_say_why_not() {
        let balancer = balancer(Balance::LeastRequests, 3);
        assert_eq!(tag(balancer.pick(Want::Tag(EndpointTag(2)), Use::Other)), 2);
        take_out(&balancer, &[2]);
        assert_eq!(
            balancer.pick(Want::Tag(EndpointTag(2)), Use::Other).unwrap_err(),
            NoEndpoint::Down("http://h:2".into())
        );
        assert_eq!(balancer.pick(Want::Tag(EndpointTag(9)), Use::Other).unwrap_err(), NoEndpoint::Gone(EndpointTag(9)));
    }

    #[test]
    fn tried_endpoints_are_left_out() {
        for balance in [Balance::LeastRequests, Balance::RoundRobin, Balance::SessionHash] {
            let balancer = balancer(balance, 3);
            let tried = [EndpointTag(1), EndpointTag(3)];
            assert!((0..20).all(|_| tag(balancer.pick(Want::Except(&tried), Use::Other)) == 2), "{balance:?}");
            take_out(&balancer, &[2]);
            assert_eq!(balancer.pick(Want::Except(&tried), Use::Other).unwrap_err(), NoEndpoint::AllTried);
            take_out(&balancer, &[1, 3]);
            for want in [Want::Any, Want::Session("s"), Want::Except(&tried)] {
                assert_eq!(balancer.pick(want, Use::Other).unwrap_err(), NoEndpoint::AllDown(3));
            }
        }
    }

    #[test]
    fn a_session_stays_while_it_has_an_exchange_in_flight() {
        let balancer = balancer(Balance::LeastRequests, 3);
        let first = balancer.pick(Want::Session("s"), Use::Run).unwrap();
        let tag = first.endpoint().tag;
        // However busy its endpoint gets.
        let crowd: Vec<Picked> = (0..500).map(|_| balancer.pick(Want::Tag(tag), Use::Other).unwrap()).collect();
        let more: Vec<Picked> = (0..20).map(|_| balancer.pick(Want::Session("s"), Use::Run).unwrap()).collect();
        assert!(more.iter().all(|picked| picked.endpoint().tag == tag));
        drop((first, more));
        assert_eq!(balancer.sticky.len(), 0);
        assert_ne!(super::tests::tag(balancer.pick(Want::Session("s"), Use::Run)), tag.0, "a new one goes elsewhere");
        drop(crowd);
        assert_eq!(super::tests::tag(balancer.pick(Want::Session("s"), Use::Run)), tag.0);
    }

    #[test]
    fn new_sessions_keep_the_load_within_its_bound() {
        let balancer = balancer(Balance::SessionHash, 4);
        let held: Vec<Picked> =
            (0..2_000).map(|n| balancer.pick(Want::Session(&format!("s{n}")), Use::Run).unwrap()).collect();
        let loads: Vec<usize> = balancer.endpoints().iter().map(|e| e.in_flight()).collect();
        assert!(loads.iter().all(|load| *load <= 2_000 / 4 * OVERLOAD_PERCENT / 100 + OVERLOAD_SLACK + 1), "{loads:?}");
        drop(held);
    }

    #[test]
    fn a_session_moves_with_its_exchanges_when_its_endpoint_goes_down_and_not_back_under_them() {
        let balancer = balancer(Balance::LeastRequests, 3);
        let first = balancer.pick(Want::Session("s"), Use::Run).unwrap();
        let home = first.endpoint().tag;
        take_out(&balancer, &[home.0]);
        let second = balancer.pick(Want::Session("s"), Use::Run).unwrap();
        assert_ne!(second.endpoint().tag, home);
        drop(first);
        balancer.endpoints().iter().find(|e| e.tag == home).unwrap().probe_passed();
        let third = balancer.pick(Want::Session("s"), Use::Run).unwrap();
        assert_eq!(third.endpoint().tag, second.endpoint().tag);
        drop((second, third));
        assert_eq!(balancer.pick(Want::Session("s"), Use::Run).unwrap().endpoint().tag, home);
    }

    #[test]
    fn runs_go_where_there_is_room() {
        let endpoint = |port| Arc::new(Endpoint::new(Origin { tls: false, host: "h".into(), port }, EndpointTag(port)));
        let balancer =
            Balancer::new(Balance::RoundRobin, Ejection::default(), Some(2), (1..=2).map(endpoint).collect(), 0);
        let busy = [EndpointTag(1); 2].map(|tag| balancer.pick(Want::Tag(tag), Use::Run).unwrap());
        let reads: Vec<u16> = (0..4).map(|_| tag(balancer.pick(Want::Any, Use::Other))).collect();
        assert_eq!(reads, [1, 2, 1, 2]);
        let runs: Vec<u16> = (0..4).map(|_| tag(balancer.pick(Want::Any, Use::Run))).collect();
        assert_eq!(runs, [2, 2, 2, 2]);
        let sessions: Vec<u16> = (0..20).map(|n| tag(balancer.pick(Want::Session(&n.to_string()), Use::Run))).collect();
        assert!(sessions.iter().all(|tag| *tag == 2), "{sessions:?}");
        drop(busy);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_came_back_gets_its_share_little_by_little() {
        for balance in [Balance::LeastRequests, Balance::RoundRobin] {
            let balancer = balancer(balance, 2);
            take_out(&balancer, &[2]);
            balancer.endpoints()[1].probe_passed();
            let share = || {
                let held: Vec<Picked> = (0..200).map(|_| balancer.pick(Want::Any, Use::Other).unwrap()).collect();
                held.iter().filter(|picked| picked.endpoint().tag.0 == 2).count()
            };
            let first = share();
            tokio::time::advance(Ejection::default().slow_start).await;
            let later = share();
            assert!(first < 40 && (90..=110).contains(&later), "{balance:?}: {first}, then {later} of 200");
        }
    }

    #[test]
    fn what_left_is_found_by_its_runs_while_it_holds_any() {
        let balancer = balancer(Balance::LeastRequests, 2);
        let run = balancer.pick(Want::Tag(EndpointTag(2)), Use::Run).unwrap();
        let stays = vec![Arc::clone(&balancer.endpoints()[0])];
        balancer.replace(stays.clone());
        assert!((0..20).all(|_| tag(balancer.pick(Want::Any, Use::Run)) == 1));
        assert_eq!(tag(balancer.pick(Want::Tag(EndpointTag(2)), Use::Other)), 2);
        drop(run);
        balancer.replace(stays);
        let gone = balancer.pick(Want::Tag(EndpointTag(2)), Use::Other).unwrap_err();
        assert_eq!(gone, NoEndpoint::Gone(EndpointTag(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn at_most_the_share_is_ejected_and_the_ejected_come_back() {
        let balancer = balancer(Balance::LeastRequests, 4);
        let break_off = |tag: u16| {
            let picked = balancer.pick(Want::Tag(EndpointTag(tag)), Use::Run).unwrap();
            (0..10).for_each(|_| picked.report(super::super::Outcome::Broke));
        };
        (1..=4).for_each(break_off);
        let up: Vec<u16> = balancer.endpoints().iter().filter(|e| e.is_up()).map(|e| e.tag.0).collect();
        assert_eq!(up, [3, 4], "half of them");
        assert!(balancer.pick(Want::Tag(EndpointTag(1)), Use::Other).is_ok(), "runs that it holds are reached");
        tokio::time::advance(Ejection::default().time).await;
        assert!(balancer.endpoints().iter().all(|e| e.is_up()));
    }
}
