//! Where the headers of a frame are: Ethernet, VLAN tags, IP, and the ports behind it.
//!
//! ```text
//!  0        12      14 (18, 22)     network + 20…            transport
//!  MACs  tags 0…2  ethertype  │ IPv4 + options             │ TCP, UDP, SCTP: ports in the first 4 bytes
//!                             │ IPv6 + extension headers   │
//! ```
//!
//! Of a tunnel only the outer headers are seen. The bytes are a private copy of a frame's first ones; nothing is
//! believed of them but what they say about themselves, and no offset is returned that was not reached by reading.

use std::ops::Range;

/// Bytes of a frame that are looked at, at most. Longer headers count as absent.
pub const LOOKED_AT: usize = 256;

/// IP protocol numbers (IANA) of what has ports.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;
/// See [`TCP`].
pub const SCTP: u8 = 132;

/// Length of an Ethernet header without tags, in bytes.
const ETHERNET: usize = 14;
/// EtherTypes of VLAN tags: 802.1Q, 802.1ad, and the one that was in use for outer tags before it.
const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];
/// Tags that are looked behind; one more than that is some other EtherType.
const MOST_TAGS: usize = 2;
/// IPv6 extension headers that are looked behind. RFC 8200, 4.1 has use for six.
const MOST_EXTENSIONS: usize = 8;

/// IPv6 extension headers (RFC 8200, 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// EtherType behind the VLAN tags (or a length, where it is below 0x600).
    pub ethertype: u16,
    /// The IP packet in it, if there is one that makes sense.
    pub ip: Option<Ip>,
}

/// Version of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// RFC 791.
    V4,
    /// RFC 8200.
    V6,
}

/// An IP packet. Offsets are in bytes from the start of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Its version.
    pub version: Version,
    /// Where its header begins; the fixed part of that is there.
    pub network: usize,
    /// What it carries behind options and extension headers. Where those are cut off or too many, the number of the
    /// extension header that could not be looked behind.
    pub protocol: u8,
    /// Where that begins; may be past the end of the bytes.
    pub transport: usize,
    /// It is a part of a fragmented packet, the first one or another.
    pub fragment: bool,
    /// It has a routing header with segments left: the destination in the header is not the last one.
    pub routed: bool,
    /// Source and destination port as they stand in the frame: of TCP, UDP and SCTP, where the packet is no fragment.
    pub ports: Option<[u8; 4]>,
}

impl Ip {
    /// Where source and destination address are, one behind the other.
    #[inline]
    pub fn addresses(&self) -> Range<usize> {
        match self.version {
            Version::V4 => self.network + 12..self.network + 20,
            Version::V6 => self.network + 8..self.network + 40,
        }
    }
}

/// Reads the headers of a frame off its first bytes; `None` when not even an Ethernet header is there.
#[inline]
pub fn parse(bytes: &[u8]) -> Option<Packet> {
    let bytes = bytes.get(..LOOKED_AT).unwrap_or(bytes);
    let mut network = ETHERNET;
    let mut ethertype = be16(bytes, network - 2)?;
    for _ in 0..MOST_TAGS {
        if !TAGS.contains(&ethertype) {
            break;
        }
        let Some(inner) = be16(bytes, network + 2) else { break };
        ethertype = inner;
        network += 4;
    }
    let ip = match ethertype {
        0x0800 => ipv4(bytes, network),
        0x86dd => ipv6(bytes, network),
        _ => None,
    };
    Some(Packet { ethertype, ip })
}

#[inline]
fn ipv4(bytes: &[u8], network: usize) -> Option<Ip> {
    let header: &[u8; 20] = bytes.get(network..)?.first_chunk()?;
    let length = usize::from(header[0] & 0xf) * 4;
    if header[0] >> 4 != 4 || length < header.len() {
        return None;
    }
    let (protocol, transport) = (header[9], network + length);
    // More fragments to come, or an offset; not the don't-fragment bit above them.
    let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
    let ports = if fragment { None } else { ports(bytes, protocol, transport) };
    Some(Ip { version: Version::V4, network, protocol, transport, fragment, routed: false, ports })
}

#[inline]
fn ipv6(bytes: &[u8], network: usize) -> Option<Ip> {
    let header: &[u8; 40] = bytes.get(network..)?.first_chunk()?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut ip = Ip {
        version: Version::V6,
        network,
        protocol: header[6],
        transport: network + header.len(),
        fragment: false,
        routed: false,
        ports: None,
    };
    for _ in 0..MOST_EXTENSIONS {
        if !matches!(ip.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
            break;
        }
        let Some([next, length, high, low]) = bytes.get(ip.transport..).and_then(|rest| rest.first_chunk())
        else {
            return Some(ip);
        };
        if ip.protocol == FRAGMENT {
            // Offset and the flag for more; a packet with neither is whole (RFC 6946).
            ip.fragment = u16::from_be_bytes([*high, *low]) & 0xfff9 != 0;
            ip.transport += 8;
        } else {
            ip.routed |= ip.protocol == ROUTING && *low != 0;
            ip.transport += (usize::from(*length) + 1) * 8;
        }
        ip.protocol = *next;
        if ip.fragment {
            return Some(ip);
        }
    }
    ip.ports = ports(bytes, ip.protocol, ip.transport);
    Some(ip)
}

#[inline]
fn ports(bytes: &[u8], protocol: u8, transport: usize) -> Option<[u8; 4]> {
    if !matches!(protocol, TCP | UDP | SCTP) {
        return None;
    }
    bytes.get(transport..)?.first_chunk().copied()
}

#[inline]
fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().copied().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PORTS: [u8; 4] = [0x12, 0x34, 0, 80];

    fn ethernet(tags: &[u16], ethertype: u16) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for tag in tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0x60, 7]);
        }
        frame.extend(ethertype.to_be_bytes());
        frame
    }

    fn v4(tags: &[u16], words: u8, fragment: u16, protocol: u8) -> Vec<u8> {
        let mut frame = ethernet(tags, 0x0800);
        let mut header = vec![0; usize::from(words) * 4];
        header[0] = 0x40 | words;
        header[6..8].copy_from_slice(&fragment.to_be_bytes());
        header[9] = protocol;
        frame.extend(header);
        frame.extend(PORTS);
        frame
    }

    /// Extension headers are given as (number, bytes without the next-header field).
    fn v6(extensions: &[(u8, &[u8])], protocol: u8) -> Vec<u8> {
        let mut frame = ethernet(&[], 0x86dd);
        let mut header = [0; 40];
        header[0] = 0x60;
        header[6] = extensions.first().map_or(protocol, |(number, _)| *number);
        frame.extend(header);
        for (n, (_, rest)) in extensions.iter().enumerate() {
            frame.push(extensions.get(n + 1).map_or(protocol, |(number, _)| *number));
            frame.extend(*rest);
        }
        frame.extend(PORTS);
        frame
    }

    fn ip(frame: &[u8]) -> Ip {
        parse(frame).unwrap().ip.unwrap()
    }

    #[test]
    fn ports_are_found_behind_up_to_two_tags_and_options() {
        for (tags, words) in
            [(&[][..], 5), (&[0x8100], 5), (&[0x88a8, 0x8100], 6), (&[0x9100, 0x8100], 15), (&[0x8100; 2], 5)]
        {
            let ip = ip(&v4(tags, words, 0x4000, TCP));
            assert_eq!((ip.version, ip.protocol, ip.ports), (Version::V4, TCP, Some(PORTS)));
            assert_eq!(ip.network, 14 + 4 * tags.len());
            assert_eq!(ip.transport, ip.network + usize::from(words) * 4);
        }
        assert_eq!(parse(&v4(&[0x8100; 3], 5, 0, TCP)), Some(Packet { ethertype: 0x8100, ip: None }));
    }

    #[test]
    fn ports_are_those_of_tcp_udp_and_sctp() {
        for (protocol, ports) in
            [(TCP, Some(PORTS)), (UDP, Some(PORTS)), (SCTP, Some(PORTS)), (1, None), (47, None)]
        {
            assert_eq!(ip(&v4(&[], 5, 0, protocol)).ports, ports);
            assert_eq!(ip(&v6(&[], protocol)).ports, ports);
        }
    }

    #[test]
    fn fragments_have_no_ports() {
        for fragment in [0x2000, 0x2001, 0x0001, 0x1fff] {
            let ip = ip(&v4(&[], 5, fragment, UDP));
            assert!(ip.fragment && ip.ports.is_none());
        }
        let whole = ip(&v6(&[(FRAGMENT, &[0, 0, 0, 9, 9, 9, 9])], UDP));
        assert!(!whole.fragment && whole.ports == Some(PORTS));
        for offset_and_more in [[0, 1], [0, 8], [0xff, 0xf8]] {
            let [a, b] = offset_and_more;
            let part = ip(&v6(&[(FRAGMENT, &[0, a, b, 9, 9, 9, 9])], UDP));
            assert!(part.fragment && part.ports.is_none() && part.protocol == UDP && part.transport == 62);
        }
    }

    #[test]
    fn ipv6_extension_headers_are_looked_behind() {
        let options: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
        let longer: &[u8] = &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let there = ip(&v6(&[(HOP_BY_HOP, options), (ROUTING, longer), (DESTINATION, options)], UDP));
        assert_eq!((there.protocol, there.transport, there.ports), (UDP, 54 + 8 + 16 + 8, Some(PORTS)));
        assert!(!there.routed);
        assert!(ip(&v6(&[(ROUTING, &[0, 4, 1, 0, 0, 0, 0])], TCP)).routed);
    }

    #[test]
    fn a_chain_of_extension_headers_ends_somewhere() {
        let one: (u8, &[u8]) = (DESTINATION, &[0; 7]);
        assert_eq!(ip(&v6(&[one; MOST_EXTENSIONS], UDP)).ports, Some(PORTS));
        let more = ip(&v6(&[one; MOST_EXTENSIONS + 1], UDP));
        assert_eq!((more.protocol, more.ports), (DESTINATION, None));
        let huge = ip(&v6(&[(DESTINATION, &[255, 0, 0, 0, 0, 0, 0])], UDP));
        assert_eq!((huge.protocol, huge.ports), (UDP, None));
    }

    #[test]
    fn what_is_cut_off_or_contradicts_itself_is_not_ip() {
        let good = v4(&[0x8100], 6, 0, TCP);
        assert_eq!(parse(&good[..13]), None);
        assert_eq!(parse(&good[..14]).unwrap().ethertype, 0x8100);
        assert_eq!(parse(&good[..18 + 19]).unwrap().ip, None);
        assert_eq!(ip(&good[..18 + 24 + 3]).ports, None);
        for first in [0x44, 0x65, 0x00] {
            let mut bad = good.clone();
            bad[18] = first;
            assert_eq!(parse(&bad), Some(Packet { ethertype: 0x0800, ip: None }));
        }
    }

    #[test]
    fn bytes_past_the_limit_are_not_looked_at() {
        let padding = [0; 255];
        let far = [27, 0, 0, 0, 0, 0, 0];
        let mut rest = far.to_vec();
        rest.extend(&padding[..27 * 8]);
        let there = ip(&v6(&[(DESTINATION, &rest)], UDP));
        assert_eq!((there.transport, there.protocol, there.ports), (54 + 224, UDP, None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(
            start in prop::sample::select(vec![vec![], v4(&[0x8100], 5, 0, TCP), v6(&[(ROUTING, &[0; 7])], UDP)]),
            noise in prop::collection::vec(any::<(u16, u8)>(), 0..8),
            tail in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut bytes = start;
            bytes.extend(tail);
            for (at, value) in noise {
                if let Some(byte) = bytes.get_mut(usize::from(at)) {
                    *byte = value;
                }
            }
            if let Some(Packet { ip: Some(ip), .. }) = parse(&bytes) {
                prop_assert!(ip.addresses().end <= bytes.len().min(LOOKED_AT));
                if let Some(ports) = ip.ports {
                    prop_assert_eq!(&bytes[ip.transport..ip.transport + 4], &ports);
                }
            }
        }
    }
}
