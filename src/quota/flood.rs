//! Owns the guard in front of authentication: a request rate per client address.
//! Does not decide which address is the client's (`server`, PROXY protocol).
//! Invariant: one IPv6 /64 is one client, and an IPv4 address is the same in both notations.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::limit::{Exceeded, ExceededKind, Scope};
use super::plans::NamedRate;
use super::table::Table;

/// Most client addresses that are counted at a time.
const ADDRESSES_MAX: usize = 65_520;

/// Buckets by client address.
#[derive(Debug)]
pub(super) struct Flood {
    addresses: Table<u64, u64>,
    /// Shared by all new addresses while the table is full of busy ones: a spray of addresses
    /// costs bounded memory and does not switch the guard off.
    overflow: Mutex<u64>,
    no_plan: Arc<str>,
}

impl Flood {
    pub(super) fn new() -> Self {
        Self { addresses: Table::new(ADDRESSES_MAX), overflow: Mutex::new(0), no_plan: "".into() }
    }

    /// Spends one request of an address.
    pub(super) fn spend(&self, rate: &NamedRate, address: IpAddr, now: u64) -> Result<(), Exceeded> {
        self.count(rate, address, now, |full_at, next| *full_at = next)
    }

    /// Says what `spend` would, and keeps the bucket as it is.
    pub(super) fn look(&self, rate: &NamedRate, address: IpAddr, now: u64) -> Result<(), Exceeded> {
        self.count(rate, address, now, |_, _| ())
    }

    fn count(&self, rate: &NamedRate, address: IpAddr, now: u64, keep: impl Fn(&mut u64, u64)) -> Result<(), Exceeded> {
        let take = |full_at: &mut u64| match rate.gcra.take(*full_at, now) {
            Ok(next) => {
                keep(full_at, next);
                Ok(())
            }
            Err(wait) => Err((rate.state(rate.gcra, Scope::Tenant, *full_at, now), wait)),
        };
        let counted = self.addresses.with(client_key(address), now, |full_at| *full_at <= now, |_| 0, take);
        let counted = counted.unwrap_or_else(|| take(&mut self.overflow.lock()));
        counted.map_err(|(limit, wait)| {
            Exceeded::new(ExceededKind::Flood, limit, Duration::from_nanos(wait), self.no_plan.clone())
        })
    }
}

/// One number per client: an IPv6 /64 as its upper half, an IPv4 address under an upper half of its
/// own (`::/64` is never a client's prefix).
fn client_key(address: IpAddr) -> u64 {
    let mapped = |v6: Ipv6Addr| v6.to_ipv4_mapped().map(IpAddr::V4);
    match address {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => match mapped(v6) {
            Some(v4) => client_key(v4),
            None => u64::try_from(u128::from(v6) >> 64).unwrap_or(u64::MAX).saturating_add(1 << 32),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::settings::Rate;
    use super::*;

    fn guard(limit: u64) -> impl Fn(&str) -> bool {
        let flood = Flood::new();
        let rate = NamedRate::new("flood", &Rate { limit, window: Duration::from_secs(1), burst: limit });
        move |address| flood.spend(&rate, address.parse().expect("an address"), 0).is_ok()
    }

    #[test]
    fn addresses_are_counted_as_clients() {
        for (first, second, same) in [
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "::ffff:192.0.2.1", true),
            ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true),
            ("2001:db8::1", "2001:db8:0:1::1", false),
            ("::1", "0.0.0.0", false),
        ] {
            let admits = guard(1);
            assert!(admits(first));
            assert_eq!(admits(second), !same, "{first} and {second}");
        }
    }

    #[test]
    fn a_spray_of_addresses_is_bounded_and_still_guarded() {
        let flood = Flood::new();
        let rate = NamedRate::new("flood", &Rate { limit: 1, window: Duration::from_secs(1), burst: 1 });
        let spray = (0..200_000_u32).map(|n| IpAddr::from(n.to_be_bytes()));
        let admitted = spray.filter(|address| flood.spend(&rate, *address, 0).is_ok()).count();
        assert!(flood.addresses.len() <= ADDRESSES_MAX);
        assert!(admitted <= ADDRESSES_MAX + 1, "{admitted}");
        let later = 1_000_000_000;
        assert!(flood.spend(&rate, "255.0.0.1".parse().expect("an address"), later).is_ok());
    }
}
