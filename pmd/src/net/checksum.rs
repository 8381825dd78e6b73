//! The Internet checksum (RFC 1071): the one's complement of the one's complement sum of 16-bit words.
//!
//! The sum does not mind the order of words, nor the order of bytes as long as it is the same throughout (RFC 1071,
//! 2 B), so words are added as the machine reads them and the result is written as the machine writes it. Bytes come in
//! pieces of any length; where a piece begins at an odd byte of the whole, its words lie across and its sum is swapped.

use crate::frame::Segment;

/// Bytes of foreign memory that are copied and summed at once: a few cache lines, and an even number.
const COPIED: usize = 512;

/// A sum under way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of the pieces' sums; each adds less than 2^16, so that 2^48 pieces fit.
    total: u64,
    /// The next byte is the second of its word.
    odd: bool,
}

impl Sum {
    /// The sum of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The sum of the pseudo header that TCP and UDP put before themselves (RFC 9293, 3.1; RFC 768; RFC 8200, 8.1).
    ///
    /// `addresses` are source and destination one behind the other as in the IP header, and `length` is that of
    /// transport header and payload in bytes. IPv4 and IPv6 lay the rest out differently, but as words it is the same.
    #[inline]
    pub fn of_pseudo_header(addresses: &[u8], protocol: u8, length: u32) -> Self {
        let mut sum = Self::new();
        sum.add(addresses);
        sum.add(&length.to_be_bytes());
        sum.add(&[0, protocol]);
        sum
    }

    /// Adds the bytes that come next.
    #[inline]
    pub fn add(&mut self, bytes: &[u8]) {
        let sum = sum(bytes);
        self.total += u64::from(if self.odd { sum.swap_bytes() } else { sum });
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds the bytes of a segment. They are copied first, for their owner may rewrite them meanwhile; then the sum is
    /// that of bytes which were there at some time.
    #[inline]
    pub fn add_segment(&mut self, segment: &Segment) {
        let mut copy = [0; COPIED];
        let mut at = 0;
        while at < segment.len() {
            let n = segment.part(at, COPIED as u32).copy_to(&mut copy);
            self.add(&copy[..n]);
            at += n as u32;
        }
    }

    /// The sum as it stands in a checksum field that is yet to be completed: not complemented.
    #[inline]
    pub fn partial(&self) -> [u8; 2] {
        fold(self.total).to_ne_bytes()
    }

    /// The checksum, as it stands in the frame.
    #[inline]
    pub fn finish(&self) -> [u8; 2] {
        (!fold(self.total)).to_ne_bytes()
    }

    /// The checksum where 0 means that there is none, as in UDP (RFC 768): all ones, which is the same number in one's
    /// complement.
    #[inline]
    pub fn finish_nonzero(&self) -> [u8; 2] {
        match self.finish() {
            [0, 0] => [0xff, 0xff],
            sum => sum,
        }
    }
}

/// The checksum of `bytes`, of an IPv4 header say.
#[inline]
pub fn checksum(bytes: &[u8]) -> [u8; 2] {
    (!sum(bytes)).to_ne_bytes()
}

/// The sum of `bytes` as words that the machine reads; a last odd byte is the first of a word that ends in 0.
#[inline]
fn sum(bytes: &[u8]) -> u16 {
    // Halves of 64-bit words are added in 64 bits, which no frame overflows: there are no carries to wait for, and the
    // four lanes are added at once where the processor can.
    let mut lanes = [0; 4];
    let (blocks, rest) = bytes.as_chunks::<32>();
    for block in blocks {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks().0) {
            *lane += halves(*word);
        }
    }
    let (words, rest) = rest.as_chunks();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let words: u64 = words.iter().map(|word| halves(*word)).sum();
    fold(lanes.iter().sum::<u64>() + words + halves(last))
}

#[inline]
fn halves(word: [u8; 8]) -> u64 {
    let word = u64::from_ne_bytes(word);
    (word & 0xffff_ffff) + (word >> 32)
}

/// Adds up the 16-bit words of `sum`, and of what that gives, until one is left.
#[inline]
fn fold(sum: u64) -> u16 {
    let mut sum = (sum & 0xffff_ffff) + (sum >> 32);
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum as RFC 1071 words it, for tests.
#[cfg(test)]
fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for word in bytes.chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_to_ddf2() {
        let mut sum = Sum::new();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), [0xdd, 0xf2]);
        assert_eq!(sum.finish(), [!0xdd, !0xf2]);
    }

    #[test]
    fn an_ipv4_header_with_its_checksum_sums_to_zero() {
        let header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0, 1, 0xc0, 0xa8, 0, 0xc7];
        assert_eq!(checksum(&header), [0, 0]);
    }

    #[test]
    fn carries_are_not_lost() {
        let ones = [0xff; 100_000];
        assert_eq!(checksum(&ones), [0, 0]);
        let mut sum = Sum::new();
        ones.chunks(333).for_each(|piece| sum.add(piece));
        assert_eq!(sum.finish(), [0, 0]);
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_all_ones() {
        let mut sum = Sum::new();
        sum.add(&[0xff, 0xff]);
        assert_eq!((sum.finish(), sum.finish_nonzero()), ([0, 0], [0xff, 0xff]));
        sum.add(&[0, 1]);
        assert_eq!(sum.finish_nonzero(), [0xff, 0xfe]);
    }

    #[test]
    fn the_pseudo_header_is_that_of_the_rfcs() {
        // RFC 9293: addresses, zero, protocol, TCP length. RFC 8200: addresses, length of 32 bits, zeros, next header.
        let addresses: Vec<u8> = (1..=32).collect();
        let v4 = [&addresses[..8], &[0, 6, 0x05, 0xb4]].concat();
        let v6 = [&addresses[..], &[0, 1, 0x05, 0xb4, 0, 0, 0, 17]].concat();
        let ours = |sum: Sum| u16::from_be_bytes(sum.finish());
        assert_eq!(ours(Sum::of_pseudo_header(&addresses[..8], 6, 0x5b4)), naive(&v4));
        assert_eq!(ours(Sum::of_pseudo_header(&addresses, 17, 0x1_05b4)), naive(&v6));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_have_the_checksum_of_the_rfc(
            mut bytes in prop::collection::vec(any::<u8>(), 0..3000),
            cuts in prop::collection::vec(0usize..3000, 0..6),
            as_segments: bool,
        ) {
            let expected = naive(&bytes).to_be_bytes();
            prop_assert_eq!(checksum(&bytes), expected);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut sum = Sum::new();
            for piece in cuts.windows(2) {
                let piece = &mut bytes[piece[0]..piece[1]];
                if as_segments {
                    // SAFETY: `bytes` outlives the segment and is not touched while it is used.
                    sum.add_segment(&unsafe { Segment::new(NonNull::from(&mut *piece).cast(), piece.len() as u32) });
                } else {
                    sum.add(piece);
                }
            }
            prop_assert_eq!(sum.finish(), expected);
        }
    }
}
