//! Multicast groups to receive where the PF does not grant all of them.

use super::message::{MAX_HASHES, multicast_hash};
use crate::mac::MacAddress;

/// Groups to receive where the PF does not grant all of them. IPv6 finds its neighbours through groups that are made
/// of the last three bytes of the sought address (RFC 4291 §2.7.1); here are those of addresses made of the VF's MAC,
/// and of the low numbers that people give to hosts.
pub fn groups(mac: MacAddress) -> impl Iterator<Item = MacAddress> {
    let solicited = |low: [u8; 3]| MacAddress([0x33, 0x33, 0xff, low[0], low[1], low[2]]);
    let named = [
        // All nodes, all routers, MLDv2 routers, mDNS, DHCPv6 relays, LLMNR.
        MacAddress([0x33, 0x33, 0, 0, 0, 0x01]),
        MacAddress([0x33, 0x33, 0, 0, 0, 0x02]),
        MacAddress([0x33, 0x33, 0, 0, 0, 0x16]),
        MacAddress([0x33, 0x33, 0, 0, 0, 0xfb]),
        MacAddress([0x33, 0x33, 0, 1, 0, 2]),
        MacAddress([0x33, 0x33, 0, 1, 0, 3]),
        // All hosts, IGMPv3 routers, mDNS.
        MacAddress([0x01, 0x00, 0x5e, 0, 0, 0x01]),
        MacAddress([0x01, 0x00, 0x5e, 0, 0, 0x16]),
        MacAddress([0x01, 0x00, 0x5e, 0, 0, 0xfb]),
        solicited([mac.0[3], mac.0[4], mac.0[5]]),
    ];
    named.into_iter().chain((1..=u8::MAX).map(move |host| solicited([0, 0, host])))
}

/// Hashes of the first of [`groups`], as many different ones as one message holds.
pub fn group_hashes(mac: MacAddress) -> Vec<u16> {
    let mut hashes = Vec::with_capacity(MAX_HASHES);
    for hash in groups(mac).map(multicast_hash) {
        if hashes.len() < MAX_HASHES && !hashes.contains(&hash) {
            hashes.push(hash);
        }
    }
    hashes
}
