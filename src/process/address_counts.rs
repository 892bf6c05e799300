//! The connections of a listener by their address, so that one address cannot have them all.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use crate::process::locks::lock_unpoisoned;

/// The bits of an IPv6 address that are one source: a provider gives each customer at least a network of this length.
const IPV6_SOURCE_BITS: u32 = 64;

/// The open connections of each address.
#[derive(Clone, Default)]
pub struct AddressCounts(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One open connection; given back when dropped.
pub struct AddressSlot {
    counts: AddressCounts,
    address: IpAddr,
}

impl AddressCounts {
    /// Takes a place for a connection of this address; `None` if it has as many as it may have.
    #[must_use]
    pub fn take_slot(&self, address: IpAddr, most: usize) -> Option<AddressSlot> {
        let address = source_network(address);
        let mut table = lock_unpoisoned(&self.0);
        let count = table.entry(address).or_default();
        // An address without a connection is not kept: a bound of 0 is none.
        if *count >= most.max(1) {
            return None;
        }
        *count += 1;
        drop(table);
        Some(AddressSlot { counts: self.clone(), address })
    }
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        let mut table = lock_unpoisoned(&self.counts.0);
        if let Entry::Occupied(mut entry) = table.entry(self.address) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

/// The network that counts as one source: an address of IPv4, and of IPv6 its first 64 bits.
#[must_use]
pub fn source_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let host_bits = 128 - IPV6_SOURCE_BITS;
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> host_bits << host_bits))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_is_forgotten_with_the_last() {
        let counts = AddressCounts::default();
        let take = |address: &str| counts.take_slot(address.parse().expect("an address"), 2);
        let (one, two) = (take("192.0.2.1"), take("192.0.2.1"));
        assert!(one.is_some() && two.is_some() && take("192.0.2.1").is_none());
        assert!(take("192.0.2.2").is_some(), "another address");
        drop(one);
        assert!(take("192.0.2.1").is_some());
        drop(two);
        assert!(lock_unpoisoned(&counts.0).is_empty());
    }

    #[test]
    fn hosts_of_one_ipv6_network_are_one_source() {
        let network = |text: &str| source_network(text.parse().expect("an address")).to_string();
        assert_eq!(network("2001:db8:1:2::1"), network("2001:db8:1:2:ffff::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
    }
}
