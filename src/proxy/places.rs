//! Owns how many connections one address may hold.
//! Does not count requests (`quota`).
//! Invariant: a place is given back when its connection ends, whatever ended it; the table is bounded by the connections
//! of the server.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Connections by address.
#[derive(Clone, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection of an address; given back on drop.
pub(super) struct Place {
    places: Places,
    address: IpAddr,
}

// === impl Places ===

impl Places {
    /// Takes a place for an address, if it has one left.
    pub(super) fn take(&self, address: IpAddr, max: usize) -> Option<Place> {
        let address = block(address);
        let mut table = self.0.lock();
        let held = table.get(&address).copied().unwrap_or(0);
        if held >= max {
            return None;
        }
        table.insert(address, held + 1);
        drop(table);
        Some(Place { places: self.clone(), address })
    }
}

/// IPv6 by /64: one host has as many addresses as it likes.
fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.places.0.lock();
        match table.get_mut(&self.address) {
            Some(held) if *held > 1 => *held -= 1,
            Some(_) | None => drop(table.remove(&self.address)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_holds_so_many_and_gives_them_back() {
        let places = Places::default();
        let at = |text: &str| places.take(text.parse().unwrap(), 2);
        let held = [at("192.0.2.1"), at("::ffff:192.0.2.1")];
        assert!(held.iter().all(Option::is_some) && at("192.0.2.1").is_none());
        let six = [at("2001:db8::1"), at("2001:db8::2:3")];
        assert!(six.iter().all(Option::is_some) && at("2001:db8::9").is_none() && at("2001:db8:0:1::1").is_some());
        drop(held);
        assert!(at("192.0.2.1").is_some());
        drop(six);
        assert!(places.0.lock().is_empty());
    }
}
