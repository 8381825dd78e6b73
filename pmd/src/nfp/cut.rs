//! TCP frames of more segments than the firmware cuts: parts of them, each a frame to be cut in its own right.
//!
//! The firmware takes 64 segments (`NFP_NET_LSO_MAX_SEGS`), and a frame's length has 16 bits. A guest knows of neither.

use super::descriptor::Work;
use crate::net::checksum::Sum;
use crate::net::packet::Version;

/// Where things are behind the start of their headers (RFC 791, RFC 8200, RFC 9293).
const IPV4_LENGTH: usize = 2;
const IPV4_ID: usize = 4;
const IPV6_LENGTH: usize = 4;
const TCP_SEQUENCE: usize = 4;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;
const FIN_PSH: u8 = 0x09;

/// A part of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its payload in that of the frame.
    pub at: u32,
    /// Bytes of its payload.
    pub len: u32,
    /// Segments before it.
    pub segments_before: u32,
    /// The frame ends with it.
    pub last: bool,
}

/// The parts of a frame with `payload` bytes, cut into segments of `size` bytes, `most` of them in a part.
pub fn parts(payload: u32, size: u16, most: u32) -> impl ExactSizeIterator<Item = Part> {
    let each = u32::from(size.max(1)) * most.max(1);
    (0..payload.div_ceil(each)).map(move |n| {
        let at = n * each;
        let len = each.min(payload - at);
        Part { at, len, segments_before: n * most, last: at + len == payload }
    })
}

/// Makes `headers`, those of the whole frame, the ones of a part: lengths, numbers, flags, and the sum of the pseudo header
/// where the checksum goes. They must be as long as `work` says.
pub fn rewrite(headers: &mut [u8], work: &Work, part: &Part) {
    let (ip, tcp) = (usize::from(work.layers.l2), usize::from(work.layers.l2) + usize::from(work.layers.l3));
    let length = u32::from(work.layers.l4) + part.len;
    let addresses = match work.layers.version {
        Version::V4 => {
            put16(headers, ip + IPV4_LENGTH, (u32::from(work.layers.l3) + length) as u16);
            let id = get16(headers, ip + IPV4_ID).wrapping_add(part.segments_before as u16);
            put16(headers, ip + IPV4_ID, id);
            ip + 12..ip + 20
        }
        Version::V6 => {
            put16(headers, ip + IPV6_LENGTH, (u32::from(work.layers.l3) - 40 + length) as u16);
            ip + 8..ip + 40
        }
    };
    let sum = Sum::of_pseudo_header(headers.get(addresses).unwrap_or_default(), 6, length).partial();
    if let Some(header) = headers.get_mut(tcp..) {
        let high = u32::from(get16(header, TCP_SEQUENCE)) << 16;
        let sequence = (high | u32::from(get16(header, TCP_SEQUENCE + 2))).wrapping_add(part.at);
        put16(header, TCP_SEQUENCE, (sequence >> 16) as u16);
        put16(header, TCP_SEQUENCE + 2, sequence as u16);
        if let Some(flags) = header.get_mut(TCP_FLAGS).filter(|_| !part.last) {
            *flags &= !FIN_PSH;
        }
        if let Some(field) = header.get_mut(TCP_CHECKSUM..TCP_CHECKSUM + 2) {
            field.copy_from_slice(&sum);
        }
    }
}

fn get16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |field| u16::from_be_bytes([field[0], field[1]]))
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_whole_segments_and_the_last_one_is_the_rest() {
        let seen: Vec<_> =
            parts(10_001, 100, 64).map(|part| (part.at, part.len, part.segments_before, part.last)).collect();
        assert_eq!(seen, [(0, 6400, 0, false), (6400, 3601, 64, true)]);
        assert_eq!(parts(6400, 100, 64).len(), 1);
        assert_eq!(parts(0, 100, 64).len(), 0);
    }
}
