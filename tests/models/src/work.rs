//! What NICs do to frames on their way out: fill in checksums, cut TCP. Shares no code with ours: RFC 1071 word by word.

/// Lengths of a frame's headers in bytes, as a descriptor gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Ethernet with its tags.
    pub l2: usize,
    /// IP.
    pub l3: usize,
    /// Transport.
    pub l4: usize,
}

/// The one's complement sum of big-endian 16-bit words on top of `start`, the last filled up with 0.
pub fn sum(bytes: &[u8], start: u16) -> u16 {
    let mut sum = u32::from(start);
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of a pseudo header (RFC 9293, 3.1; RFC 8200, 8.1) for a frame whose IP header is at `l2`. `length` is that of
/// the transport header and what is behind it; some devices want it left out of what the driver writes (0).
pub fn pseudo(frame: &[u8], l2: usize, protocol: u8, length: u32) -> u16 {
    let addresses = match frame.get(l2).map(|first| first >> 4) {
        Some(4) => frame.get(l2 + 12..l2 + 20),
        _ => frame.get(l2 + 8..l2 + 40),
    };
    sum(&length.to_be_bytes(), sum(&[0, protocol], sum(addresses.unwrap_or_default(), 0)))
}

fn put(frame: &mut [u8], at: usize, value: u16) {
    if let Some(field) = frame.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// Makes the checksum of the IPv4 header right.
pub fn fill_ipv4(frame: &mut [u8], l2: usize, l3: usize) {
    put(frame, l2 + 10, 0);
    let checksum = !sum(frame.get(l2..l2 + l3).unwrap_or_default(), 0);
    put(frame, l2 + 10, checksum);
}

/// Adds up everything from the transport header on, the pseudo header's sum that the driver left in the field included, and
/// puts the checksum there: what a device does that believes the driver. `udp` says that 0 means none.
pub fn fill_over_partial(frame: &mut [u8], start: usize, offset: usize, udp: bool) {
    let checksum = match !sum(frame.get(start..).unwrap_or_default(), 0) {
        0 if udp => 0xffff,
        checksum => checksum,
    };
    put(frame, start + offset, checksum);
}

/// Cuts a TCP frame into segments of at most `size` bytes of payload, with all lengths and checksums right. The field of the
/// TCP checksum is overwritten: what the driver left there is for the model to look at before.
pub fn cut_tcp(frame: &[u8], lengths: Lengths, size: usize) -> Vec<Vec<u8>> {
    let Lengths { l2, l3, l4 } = lengths;
    let headers = l2 + l3 + l4;
    let (Some(head), Some(payload)) = (frame.get(..headers), frame.get(headers..)) else { return Vec::new() };
    let v4 = head[l2] >> 4 == 4;
    let tcp = l2 + l3;
    let word = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let (sequence, id) = (word(tcp + 4), u16::from_be_bytes([head[l2 + 4], head[l2 + 5]]));
    let count = payload.len().div_ceil(size.max(1));
    let mut segments = Vec::with_capacity(count);
    for (n, part) in payload.chunks(size.max(1)).enumerate() {
        let mut segment = [head, part].concat();
        let length = l4 + part.len();
        if v4 {
            put(&mut segment, l2 + 2, (l3 + length) as u16);
            put(&mut segment, l2 + 4, id.wrapping_add(n as u16));
            fill_ipv4(&mut segment, l2, l3);
        } else {
            put(&mut segment, l2 + 4, (l3 - 40 + length) as u16);
        }
        let number = sequence.wrapping_add((n * size) as u32);
        segment[tcp + 4..tcp + 8].copy_from_slice(&number.to_be_bytes());
        // FIN and PSH belong to the last, CWR to the first.
        if n + 1 < count {
            segment[tcp + 13] &= !0x09;
        }
        if n > 0 {
            segment[tcp + 13] &= !0x80;
        }
        let start = pseudo(&segment, l2, 6, length as u32);
        put(&mut segment, tcp + 16, start);
        fill_over_partial(&mut segment, tcp, 16, false);
        segments.push(segment);
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::{Ip, Transport, check, packet, partial};

    #[test]
    fn a_frame_left_to_the_device_becomes_right() {
        for ip in [Ip::V4, Ip::V6] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let mut frame = partial(ip, transport, 9, b"odd");
                let udp = transport == Transport::Udp;
                fill_over_partial(&mut frame, ip.transport_at(), transport.checksum_at(), udp);
                assert_eq!(frame, packet(ip, transport, 9, b"odd"));
            }
        }
    }

    #[test]
    fn every_segment_is_a_packet_of_its_own() {
        for ip in [Ip::V4, Ip::V6] {
            let payload: Vec<u8> = (0..2500).map(|n| n as u8).collect();
            let frame = partial(ip, Transport::Tcp, 9, &payload);
            let lengths = Lengths { l2: 14, l3: ip.transport_at() - 14, l4: 20 };
            let segments = cut_tcp(&frame, lengths, 1000);
            let seen: Vec<_> = segments.iter().map(|segment| check(segment).unwrap()).collect();
            assert_eq!(seen.iter().map(|seen| seen.payload.len()).collect::<Vec<_>>(), [1000, 1000, 500]);
            assert_eq!(seen.iter().map(|seen| seen.flags).collect::<Vec<_>>(), [0x10, 0x10, 0x18]);
            assert_eq!(seen[2].sequence - seen[0].sequence, 2000);
            assert!(seen.iter().flat_map(|seen| &seen.payload).eq(&payload));
        }
    }
}
