//! What the parser of the device sees in a frame.

use crate::work::{pseudo, sum};

/// A frame's layers, as far as there are checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Number of the packet type.
    pub kind: u64,
    /// Whether the checksum of the IPv4 header is right.
    pub ip_good: bool,
    /// Whether the transport checksum is right, or absent.
    pub transport_good: bool,
}

/// Looks at a frame; `None` for what is not IP.
pub fn look(frame: &[u8]) -> Option<Seen> {
    let mut l2 = 14;
    while matches!(frame.get(l2 - 2..l2)?, [0x81, 0x00] | [0x88, 0xa8]) {
        l2 += 4;
    }
    let (v4, l3, protocol, length) = match frame.get(l2 - 2..l2)? {
        [0x08, 0x00] => {
            let header = usize::from(*frame.get(l2)? & 15) * 4;
            let total = usize::from(u16::from_be_bytes([*frame.get(l2 + 2)?, *frame.get(l2 + 3)?]));
            (true, header, *frame.get(l2 + 9)?, total.checked_sub(header)?)
        }
        [0x86, 0xdd] => {
            let length = usize::from(u16::from_be_bytes([*frame.get(l2 + 4)?, *frame.get(l2 + 5)?]));
            (false, 40, *frame.get(l2 + 6)?, length)
        }
        _ => return None,
    };
    let ip_good = !v4 || sum(frame.get(l2..l2 + l3)?, 0) == 0xffff;
    let packet = frame.get(l2 + l3..l2 + l3 + length)?;
    let base = if v4 { 22 } else { 88 };
    let kind = match protocol {
        17 => base + 2,
        6 => base + 4,
        _ => base + 1,
    };
    let absent = protocol == 17 && packet.get(6..8) == Some(&[0, 0]);
    let right = || sum(packet, pseudo(frame, l2, protocol, length as u32)) == 0xffff;
    let transport_good = !matches!(protocol, 6 | 17) || absent || right();
    Some(Seen { kind, ip_good, transport_good })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::{Ip, Transport, packet};

    #[test]
    fn what_is_wrong_with_a_packet_is_seen() {
        for (ip, transport, kind) in
            [(Ip::V4, Transport::Udp, 24), (Ip::V4, Transport::Tcp, 26), (Ip::V6, Transport::Tcp, 92)]
        {
            let mut frame = packet(ip, transport, 1, b"hello");
            assert_eq!(look(&frame), Some(Seen { kind, ip_good: true, transport_good: true }));
            let last = frame.len() - 1;
            frame[last] ^= 1;
            assert_eq!(look(&frame), Some(Seen { kind, ip_good: true, transport_good: false }));
        }
        assert_eq!(look(&[0x88; 60]), None);
    }
}
