//! Answers to ARP requests, neighbour solicitations and echo requests.

use std::net::{Ipv4Addr, Ipv6Addr};

use pmd::MacAddress;

/// Sum of 16-bit words in ones' complement (RFC 1071).
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn swap(frame: &mut [u8], a: usize, b: usize, len: usize) {
    for n in 0..len {
        frame.swap(a + n, b + n);
    }
}

/// Turns a request in `frame` into its answer of the returned length; `None` where it is no request for us.
pub fn answer(frame: &mut [u8], mac: MacAddress, ip: Ipv4Addr, ip6: Ipv6Addr) -> Option<usize> {
    match (frame.get(12..14)?, frame.len()) {
        // ARP request for us.
        ([0x08, 0x06], 42..) if frame[20..22] == [0, 1] && frame[38..42] == ip.octets() => {
            frame[21] = 2;
            swap(frame, 22, 32, 10);
            frame[22..28].copy_from_slice(&mac.0);
            frame[28..32].copy_from_slice(&ip.octets());
        }
        // ICMP echo request.
        ([0x08, 0x00], 42..)
            if frame[14] == 0x45 && frame[23] == 1 && frame[34] == 8 && frame[30..34] == ip.octets() =>
        {
            swap(frame, 26, 30, 4);
            frame[34] = 0;
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]])) + 14;
            frame[36..38].fill(0);
            let sum = checksum(&[frame.get(34..total)?]);
            frame[36..38].copy_from_slice(&sum.to_be_bytes());
        }
        // ICMPv6.
        ([0x86, 0xdd], 62..) if frame[20] == 58 => {
            let end = 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            let len = match frame[54] {
                // Neighbour solicitation: advertise, solicited and overriding, with our link-layer address.
                135 if end >= 78 && frame.get(62..78)? == ip6.octets() => {
                    let sender: [u8; 16] = frame[22..38].try_into().ok()?;
                    frame[38..54].copy_from_slice(&sender);
                    frame[22..38].copy_from_slice(&ip6.octets());
                    frame[18..20].copy_from_slice(&32u16.to_be_bytes());
                    frame[54..62].copy_from_slice(&[136, 0, 0, 0, 0x60, 0, 0, 0]);
                    frame
                        .get_mut(78..86)?
                        .copy_from_slice(&[2, 1, mac.0[0], mac.0[1], mac.0[2], mac.0[3], mac.0[4], mac.0[5]]);
                    86
                }
                128 if frame[38..54] == ip6.octets() => {
                    swap(frame, 22, 38, 16);
                    frame[54] = 129;
                    end
                }
                _ => return None,
            };
            frame[56..58].fill(0);
            let length = ((len - 54) as u32).to_be_bytes();
            let sum = checksum(&[&frame[22..54], &length, &[0, 0, 0, 58], frame.get(54..len)?]);
            frame[56..58].copy_from_slice(&sum.to_be_bytes());
        }
        _ => return None,
    }
    swap(frame, 0, 6, 6);
    frame[6..12].copy_from_slice(&mac.0);
    Some(frame.len())
}
