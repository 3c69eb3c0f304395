//! Owns choosing one endpoint among the healthy ones of a cluster.
//! Does not know requests: callers say whether any will do, or which session or run the choice must follow.
//! Invariant: no lock and no allocation; an endpoint that is down is never chosen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::endpoint::{Endpoint, Picked};
use super::run_id::EndpointTag;

/// How a cluster spreads requests that may go anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// The one with fewer exchanges in flight, of two drawn at random.
    LeastRequests,
    /// One after the other.
    RoundRobin,
    /// The same endpoint for the same session; without a session as `LeastRequests`.
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
    endpoints: Box<[Arc<Endpoint>]>,
    /// Counts draws: a sequence for round robin, a seed for random ones.
    draws: AtomicU64,
}

// === impl Balancer ===

impl Balancer {
    pub(super) fn new(balance: Balance, endpoints: Vec<Arc<Endpoint>>, seed: u64) -> Self {
        Self { balance, endpoints: endpoints.into(), draws: AtomicU64::new(seed) }
    }

    pub(super) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    pub(super) fn pick(&self, want: Want<'_>) -> Result<Picked, NoEndpoint> {
        let chosen = match want {
            Want::Any => self.spread(&[]),
            Want::Except(tried) => self.spread(tried),
            Want::Session(session) => self.highest(session),
            Want::Tag(tag) => return self.tagged(tag),
        };
        let all_tried = || matches!(want, Want::Except(_)) && self.eligible(&[]).next().is_some();
        chosen
            .map(Picked::new)
            .ok_or_else(|| if all_tried() { NoEndpoint::AllTried } else { NoEndpoint::AllDown(self.endpoints.len()) })
    }

    fn tagged(&self, tag: EndpointTag) -> Result<Picked, NoEndpoint> {
        let endpoint = self.endpoints.iter().find(|e| e.tag == tag).ok_or(NoEndpoint::Gone(tag))?;
        if endpoint.is_up() { Ok(Picked::new(endpoint)) } else { Err(NoEndpoint::Down(Arc::clone(&endpoint.address))) }
    }

    fn spread<'a>(&'a self, tried: &[EndpointTag]) -> Option<&'a Arc<Endpoint>> {
        match self.balance {
            Balance::RoundRobin => {
                let n = self.eligible(tried).count() as u64;
                let turn = self.draws.fetch_add(1, Ordering::Relaxed);
                self.nth(tried, turn.checked_rem(n)?)
            }
            Balance::LeastRequests | Balance::SessionHash => self.of_two(tried),
        }
    }

    /// Power of two choices: close to the least loaded one, without every instance rushing to the same.
    fn of_two<'a>(&'a self, tried: &[EndpointTag]) -> Option<&'a Arc<Endpoint>> {
        let n = self.eligible(tried).count() as u64;
        let draw = mix(self.draws.fetch_add(1, Ordering::Relaxed));
        let first = draw.checked_rem(n)?;
        let one = self.nth(tried, first)?;
        if n == 1 {
            return Some(one);
        }
        let second = (first + 1 + (draw >> 32) % (n - 1)) % n;
        // An endpoint may have gone down between the two looks: then the first one stands.
        let other = self.nth(tried, second).unwrap_or(one);
        Some(if other.in_flight() < one.in_flight() { other } else { one })
    }

    /// Rendezvous hashing: when an endpoint leaves, only its own sessions move.
    fn highest(&self, session: &str) -> Option<&Arc<Endpoint>> {
        let key = session_key(session);
        self.eligible(&[]).max_by_key(|endpoint| (mix(key ^ mix(u64::from(endpoint.tag.0))), endpoint.tag))
    }

    fn eligible<'a>(&'a self, tried: &[EndpointTag]) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        self.endpoints.iter().filter(move |endpoint| endpoint.is_up() && !tried.contains(&endpoint.tag))
    }

    fn nth<'a>(&'a self, tried: &[EndpointTag], n: u64) -> Option<&'a Arc<Endpoint>> {
        let wanted = usize::try_from(n).ok()?;
        let mut last = None;
        for (at, endpoint) in self.eligible(tried).enumerate() {
            last = Some(endpoint);
            if at == wanted {
                break;
            }
        }
        last
    }
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
        Balancer::new(balance, (1..=n).map(endpoint).collect(), 7)
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
        let turns: Vec<u16> = (0..6).map(|_| tag(balancer.pick(Want::Any))).collect();
        assert_eq!(turns, [3, 4, 1, 3, 4, 1]);
    }

    #[test]
    fn least_requests_keeps_the_load_level() {
        let balancer = balancer(Balance::LeastRequests, 8);
        let held: Vec<Picked> = (0..800).map(|_| balancer.pick(Want::Any).unwrap()).collect();
        let loads: Vec<usize> = balancer.endpoints().iter().map(|e| e.in_flight()).collect();
        assert!(loads.iter().all(|load| (90..=110).contains(load)), "{loads:?}");
        drop(held);
        assert!(balancer.endpoints().iter().all(|e| e.in_flight() == 0));
    }

    #[test]
    fn of_two_the_idler_one_is_taken() {
        let balancer = balancer(Balance::LeastRequests, 2);
        let busy = balancer.pick(Want::Tag(EndpointTag(1))).unwrap();
        assert!((0..50).all(|_| tag(balancer.pick(Want::Any)) == 2));
        drop(busy);
    }

    #[test]
    fn sessions_stay_and_only_the_leaver_s_move() {
        let balancer = balancer(Balance::SessionHash, 5);
        let place = |s: &u32| tag(balancer.pick(Want::Session(&format!("session-{s}"))));
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
        assert_eq!(tag(balancer.pick(Want::Tag(EndpointTag(2)))), 2);
        take_out(&balancer, &[2]);
        assert_eq!(balancer.pick(Want::Tag(EndpointTag(2))).unwrap_err(), NoEndpoint::Down("http://h:2".into()));
        assert_eq!(balancer.pick(Want::Tag(EndpointTag(9))).unwrap_err(), NoEndpoint::Gone(EndpointTag(9)));
    }

    #[test]
    fn tried_endpoints_are_left_out() {
        for balance in [Balance::LeastRequests, Balance::RoundRobin, Balance::SessionHash] {
            let balancer = balancer(balance, 3);
            let tried = [EndpointTag(1), EndpointTag(3)];
            assert!((0..20).all(|_| tag(balancer.pick(Want::Except(&tried))) == 2), "{balance:?}");
            take_out(&balancer, &[2]);
            assert_eq!(balancer.pick(Want::Except(&tried)).unwrap_err(), NoEndpoint::AllTried);
            take_out(&balancer, &[1, 3]);
            for want in [Want::Any, Want::Session("s"), Want::Except(&tried)] {
                assert_eq!(balancer.pick(want).unwrap_err(), NoEndpoint::AllDown(3));
            }
        }
    }
}
