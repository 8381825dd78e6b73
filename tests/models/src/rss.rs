//! Receive-side scaling as silicon does it: which fields of a frame are hashed, and the hash of Toeplitz. Shares no code
//! with ours: bit by bit.

/// What of a frame is hashed, the most that its headers have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Version of IP: 4 or 6.
    pub version: u8,
    /// Protocol above it.
    pub protocol: u8,
    /// Source and destination address, as they stand in the header.
    pub addresses: Vec<u8>,
    /// Source and destination port of TCP and UDP, as they stand there; empty for others and for fragments.
    pub ports: Vec<u8>,
}

impl Flow {
    /// Reads it off a frame, behind any VLAN tags; `None` for what is no IP.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let mut at = 12;
        while matches!(frame.get(at..at + 2)?, [0x81, 0x00] | [0x88, 0xa8]) {
            at += 4;
        }
        let ip = at + 2;
        let (version, protocol, addresses, transport, fragment) = match frame.get(at..at + 2)? {
            [0x08, 0x00] => {
                let header = usize::from(frame.get(ip)? & 15) * 4;
                let fragment = u16::from_be_bytes([*frame.get(ip + 6)?, *frame.get(ip + 7)?]) & 0x3fff != 0;
                (4, *frame.get(ip + 9)?, frame.get(ip + 12..ip + 20)?, ip + header, fragment)
            }
            [0x86, 0xdd] => (6, *frame.get(ip + 6)?, frame.get(ip + 8..ip + 40)?, ip + 40, false),
            _ => return None,
        };
        let ports = match protocol {
            6 | 17 if !fragment => frame.get(transport..transport + 4).unwrap_or_default(),
            _ => &[],
        };
        Some(Self { version, protocol, addresses: addresses.to_vec(), ports: ports.to_vec() })
    }
}

/// The hash of `input` under `key`: of each bit that is set, the 32 bits of the key from there on, all of them XORed.
pub fn toeplitz(key: &[u8], input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], at: usize| bytes.get(at / 8).is_some_and(|byte| byte >> (7 - at % 8) & 1 != 0);
    let mut hash = 0;
    for at in (0..input.len() * 8).filter(|at| bit(input, *at)) {
        hash ^= (at..at + 32).fold(0, |window, at| window << 1 | u32::from(bit(key, at)));
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::{Ip, Transport, packet};

    /// The key and the first examples of Microsoft's "Verifying the RSS hash calculation".
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn hashes_of_others() {
        let addresses = [66, 9, 149, 187, 161, 142, 100, 80];
        assert_eq!(toeplitz(&KEY, &addresses), 0x323e_8fc2);
        let ports = [2794u16.to_be_bytes(), 1766u16.to_be_bytes()].concat();
        assert_eq!(toeplitz(&KEY, &[&addresses[..], &ports].concat()), 0x51cc_c178);
    }

    #[test]
    fn a_flow_is_found_behind_a_tag() {
        for ip in [Ip::V4, Ip::V6] {
            let mut frame = packet(ip, Transport::Udp, 77, b"x");
            let flow = Flow::of(&frame).unwrap();
            assert_eq!((flow.protocol, &flow.ports[..2]), (17, &77u16.to_be_bytes()[..]));
            assert_eq!(flow.addresses.len(), if ip == Ip::V4 { 8 } else { 32 });
            frame.splice(12..12, [0x81, 0, 0, 5]);
            assert_eq!(Flow::of(&frame), Some(flow));
        }
        assert_eq!(Flow::of(&[0; 60]), None);
    }
}
