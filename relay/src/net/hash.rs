//! Which flow a frame belongs to, as a number that spreads over queues.
//!
//! A flow is IP addresses, protocol and ports. All fragments of a packet go by their addresses alone, for only the
//! first has ports; what is not IP goes by MAC addresses and EtherType. VLAN ids are no part of it: a NIC may or may not
//! take the tag off, and a flow must stay on its queue either way.
//!
//! The mixing is folded multiplication: two words of 64 bits are multiplied and the halves of the product are XORed,
//! which lets every bit of both reach every bit of the result for the price of one instruction. It is no defence
//! against a sender who picks flows that meet on one queue.

use pmd::net::packet::{self, Version};

/// The fraction of π, 64 bits at a time: numbers without a pattern of their own.
const PI: [u64; 4] =
    [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89];

/// The flow of a frame whose first bytes these are; 66 are enough for IP without options behind two tags, at most
/// [`LOOKED_AT`](packet::LOOKED_AT) are looked at.
#[inline]
pub fn flow_hash(bytes: &[u8]) -> u32 {
    let Some(packet) = packet::parse(bytes) else { return 0 };
    let hash = match packet.ip {
        Some(ip) => {
            let rest = match ip.ports {
                _ if ip.fragment => 0,
                Some(ports) => u64::from(ip.protocol) << 32 | u64::from(u32::from_le_bytes(ports)),
                None => u64::from(ip.protocol) << 32,
            };
            let at = ip.addresses().start;
            match ip.version {
                Version::V4 => mix(word(bytes, at) ^ PI[0], rest ^ PI[1]),
                Version::V6 => {
                    let source = mix(word(bytes, at) ^ PI[0], word(bytes, at + 8) ^ PI[1]);
                    let destination = mix(word(bytes, at + 16) ^ PI[2], word(bytes, at + 24) ^ PI[3]);
                    mix(source ^ rest, destination ^ PI[1])
                }
            }
        }
        None => {
            mix(word(bytes, 0) ^ PI[0], word(bytes, 4) & !0xffff_ffff ^ u64::from(packet.ethertype) ^ PI[1])
        }
    };
    (mix(hash ^ PI[2], PI[3]) >> 32) as u32
}

/// The queue of `n` that a flow goes to: below `n`, which must not be 0 (and then is 0).
///
/// The product's high half is the hash scaled to `n` (no division), and each queue's share of all hashes differs by one
/// at most.
#[inline]
pub fn queue_of(hash: u32, n: usize) -> usize {
    ((u64::from(hash) * n as u64) >> 32) as usize
}

#[inline]
fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Eight bytes; 0 where they are not all there.
#[inline]
fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use pmd::net::packet::{TCP, UDP};

    fn ethernet(tags: usize, ethertype: u16) -> Vec<u8> {
        let mut frame = vec![0x52, 0x54, 0, 0, 0, 1, 0x52, 0x54, 0, 0, 0, 2];
        for tag in 0..tags {
            frame.extend([0x81, 0, 0, 5 + tag as u8]);
        }
        frame.extend(ethertype.to_be_bytes());
        frame
    }

    fn v4(
        tags: usize,
        [source, destination]: [u32; 2],
        protocol: u8,
        fragment: u16,
        ports: [u16; 2],
    ) -> Vec<u8> {
        let mut frame = ethernet(tags, 0x0800);
        frame.extend([0x45, 0, 0, 28, 0, 1]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0]);
        frame.extend(source.to_be_bytes());
        frame.extend(destination.to_be_bytes());
        frame.extend(ports.map(u16::to_be_bytes).concat());
        frame.extend([0; 4]);
        frame
    }

    fn v6([source, destination]: [u128; 2], ports: [u16; 2]) -> Vec<u8> {
        let mut frame = ethernet(0, 0x86dd);
        frame.extend([0x60, 0, 0, 0, 0, 8, TCP, 64]);
        frame.extend(source.to_be_bytes());
        frame.extend(destination.to_be_bytes());
        frame.extend(ports.map(u16::to_be_bytes).concat());
        frame.extend([0; 4]);
        frame
    }

    const NET: u32 = 0x0a00_0000;

    /// Flows as they are met: what counts up is what differs.
    fn flows() -> Vec<(&'static str, Vec<Vec<u8>>)> {
        let n = 0..4096u32;
        let net6 = 0x2001_0db8_0000_0000_0000_0000_0000_0000u128;
        vec![
            (
                "source ports",
                n.clone().map(|i| v4(0, [NET + 1, NET + 2], TCP, 0, [32768 + i as u16, 80])).collect(),
            ),
            (
                "every second port",
                n.clone().map(|i| v4(0, [NET + 1, NET + 2], TCP, 0, [2 * i as u16, 80])).collect(),
            ),
            (
                "destination ports",
                n.clone().map(|i| v4(0, [NET + 1, NET + 2], UDP, 0, [53, i as u16])).collect(),
            ),
            (
                "source addresses",
                n.clone().map(|i| v4(0, [NET + i, NET - 1], UDP, 0, [4789, 4789])).collect(),
            ),
            (
                "addresses of /24s",
                n.clone().map(|i| v4(0, [NET + (i << 8), NET - 1], TCP, 0, [9, 9])).collect(),
            ),
            ("both addresses", n.clone().map(|i| v4(0, [NET + i, NET + i + 1], TCP, 0, [9, 9])).collect()),
            (
                "64 hosts, 64 ports",
                n.clone().map(|i| v4(0, [NET + i / 64, NET], TCP, 0, [1024 + i as u16 % 64, 443])).collect(),
            ),
            ("pings", n.clone().map(|i| v4(0, [NET + i, NET - 1], 1, 0, [0, 0])).collect()),
            ("fragments", n.clone().map(|i| v4(0, [NET + i, NET - 1], UDP, 0x2000, [i as u16, 7])).collect()),
            ("IPv6 ports", n.clone().map(|i| v6([net6 + 1, net6 + 2], [32768 + i as u16, 80])).collect()),
            ("IPv6 hosts", n.clone().map(|i| v6([net6 + u128::from(i), net6], [80, 80])).collect()),
            (
                "IPv6 networks",
                n.clone().map(|i| v6([net6, net6 + (u128::from(i) << 64)], [80, 80])).collect(),
            ),
            (
                "MAC addresses",
                n.map(|i| {
                    let mut frame = ethernet(0, 0x88b5);
                    frame[8..12].copy_from_slice(&i.to_be_bytes());
                    frame
                })
                .collect(),
            ),
        ]
    }

    /// Of 4096 flows thrown at random, a queue's share has a standard deviation of about √(4096 / n). Five of those are
    /// passed by chance once in two million throws; there are some 7000 here, and nothing about them is random.
    #[test]
    fn usual_flows_spread_over_queues_as_if_at_random() {
        for (name, frames) in flows() {
            let hashes: Vec<u32> = frames.iter().map(|frame| flow_hash(frame)).collect();
            for n in 1..=32 {
                let mut share = vec![0u32; n];
                hashes.iter().for_each(|hash| share[queue_of(*hash, n)] += 1);
                let fair = frames.len() as f64 / n as f64;
                for (queue, got) in share.iter().enumerate() {
                    let off = (f64::from(*got) - fair).abs() / fair.sqrt();
                    assert!(off < 5.0, "{name}: queue {queue} of {n} has {got}, fair is {fair:.0}");
                }
            }
        }
    }

    /// 4096 hashes of 32 bits collide 2 times on average by chance.
    #[test]
    fn flows_seldom_share_a_hash() {
        for (name, frames) in flows() {
            let distinct: std::collections::HashSet<u32> =
                frames.iter().map(|frame| flow_hash(frame)).collect();
            assert!(distinct.len() + 10 > frames.len(), "{name}: {} of {}", distinct.len(), frames.len());
        }
    }

    #[test]
    fn a_flow_is_addresses_protocol_and_ports_and_nothing_else() {
        let hash = |addresses, protocol, ports| flow_hash(&v4(0, addresses, protocol, 0, ports));
        let flow = hash([1, 2], TCP, [3, 4]);
        for other in [
            hash([9, 2], TCP, [3, 4]),
            hash([1, 9], TCP, [3, 4]),
            hash([1, 2], UDP, [3, 4]),
            hash([1, 2], TCP, [9, 4]),
            hash([1, 2], TCP, [3, 9]),
        ] {
            assert_ne!(flow, other);
        }
        let mut later = v4(0, [1, 2], TCP, 0x4000, [3, 4]);
        later[14 + 4] = 99; // Identification.
        later[14 + 8] = 1; // TTL.
        later.extend([7; 200]);
        assert_eq!(flow, flow_hash(&later));
    }

    #[test]
    fn tags_do_not_change_the_flow() {
        let flow = flow_hash(&v4(0, [1, 2], TCP, 0, [3, 4]));
        assert_eq!(flow, flow_hash(&v4(1, [1, 2], TCP, 0, [3, 4])));
        assert_eq!(flow, flow_hash(&v4(2, [1, 2], TCP, 0, [3, 4])));
        assert_eq!(flow_hash(&ethernet(0, 0x0806)), flow_hash(&ethernet(2, 0x0806)));
    }

    #[test]
    fn all_fragments_of_a_packet_go_together() {
        let first = flow_hash(&v4(0, [1, 2], UDP, 0x2000, [3, 4]));
        assert_eq!(first, flow_hash(&v4(0, [1, 2], UDP, 0x2000 | 185, [0xdead, 0xbeef])));
        assert_eq!(first, flow_hash(&v4(0, [1, 2], UDP, 370, [5, 6])));
    }

    #[test]
    fn each_queue_has_its_part_of_the_hashes() {
        assert_eq!((queue_of(0, 3), queue_of(u32::MAX, 3), queue_of(u32::MAX, 1)), (0, 2, 0));
        assert_eq!(queue_of(u32::MAX / 2, 2), 0);
        assert_eq!(queue_of(u32::MAX / 2 + 1, 2), 1);
        assert_eq!(queue_of(7, 0), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_hash(bytes in prop::collection::vec(any::<u8>(), 0..300), n in 1usize..1000) {
            prop_assert!(queue_of(flow_hash(&bytes), n) < n);
        }
    }
}
