//! Receive descriptors of 32 bytes and transmit descriptors of 16, little-endian.
//!
//! ```text
//! receive, as we give it        as it comes back: legacy              as it comes back: flexible (profile 2, "NIC")
//!  0  packet buffer address      0  mirroring │ L2TAG1 │ RSS hash     0  profile │ packet type │ length
//!  8  header buffer address      8  status │ errors │ type │ length   8  status and errors │ L2TAG1 │ RSS hash
//! 16  reserved                  16  extended status │ L2TAG2         16  more status │ L2TAG2
//! transmit data                 transmit context                     transmit, as it comes back
//!  0  buffer address             0  tunnel, L2TAG2                    0  reserved
//!  8  type │ command │ header    8  type │ command │ payload length   8  type 15: done
//!     lengths │ size │ L2TAG1       │ segment size
//! ```
//!
//! XL710 data sheet, chapters 8.3.2 and 8.4.2; E810 data sheet for the flexible format (`ice_lan_tx_rx.h` names its bits).

use crate::net::layers::{Layers, Transport};
use crate::net::packet::Version;

/// 64-bit words of one receive descriptor.
pub const RECEIVE_WORDS: usize = 4;
/// Bytes of one receive descriptor.
pub const RECEIVE_SIZE: usize = 8 * RECEIVE_WORDS;
/// Bytes of one transmit descriptor.
pub const TRANSMIT_SIZE: usize = 16;

/// How receive descriptors come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// As since the 700 series; every PF has it (RXDID 1).
    #[default]
    Legacy,
    /// The 800 series' own (RXDID 2).
    Flexible,
}

impl Format {
    /// Its number in virtchnl messages (`VIRTCHNL_RXDID_1_32B_BASE`, `VIRTCHNL_RXDID_2_FLEX_SQ_NIC`).
    pub fn id(self) -> u8 {
        match self {
            Self::Legacy => 1,
            Self::Flexible => 2,
        }
    }
}

/// What the device says about one receive buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// This buffer is the last of its frame; what follows but `len` is told only there.
    pub end: bool,
    /// Bytes in this buffer, as the device claims.
    pub len: u32,
    /// The frame arrived damaged, or is too long.
    pub bad: bool,
    /// The VLAN tag that was taken out of the frame.
    pub tag: Option<u16>,
    /// Two were, and nobody knows their order.
    pub torn: bool,
    /// The frame is TCP or UDP, and all its checksums are right.
    pub valid: bool,
}

/// Packet types of whole UDP and TCP packets without a tunnel, over IPv4 and IPv6: the same in both formats.
const CHECKED_TYPES: [u64; 4] = [24, 26, 90, 92];

impl Received {
    /// Whether the second word says that the device has filled the buffer; nothing else is meaningful before.
    #[inline]
    pub fn is_done(word: u64) -> bool {
        word & 1 != 0
    }

    /// From the first three words of a descriptor that is done.
    #[inline]
    pub fn read(format: Format, [first, second, third]: [u64; 3]) -> Self {
        let bit = |word: u64, n: u32| word >> n & 1 != 0;
        let any = |bits: &[u32]| bits.iter().any(|n| bit(second, *n));
        let (len, kind, bad, tags, looked, doubts) = match format {
            // Errors from bit 19 on: RXE, two more, IPE, L4E, EIPE, OVERSIZE, PPRS (not summed up for want of time).
            Format::Legacy => (
                second >> 38 & 0x3fff,
                second >> 30 & 0xff,
                any(&[19, 25]),
                (bit(second, 2), bit(third, 0)),
                bit(second, 3),
                any(&[15, 22, 23, 24, 26]),
            ),
            // IPE, L4E, EIPE, EUDPE, IPV6EXADD.
            Format::Flexible => (
                first >> 32 & 0x3fff,
                first >> 16 & 0x3ff,
                bit(second, 10),
                (bit(second, 13), bit(third, 11)),
                bit(second, 3),
                any(&[4, 5, 6, 7, 9]),
            ),
        };
        let end = bit(second, 1);
        let tag = match (format, tags) {
            (_, (false, true)) => Some((third >> 48) as u16),
            (Format::Legacy, (true, false)) => Some((first >> 16) as u16),
            (Format::Flexible, (true, false)) => Some((second >> 16) as u16),
            _ => None,
        };
        Self {
            end,
            len: len as u32,
            bad: end && bad,
            tag: tag.filter(|_| end),
            torn: end && tags == (true, true),
            valid: end && looked && !doubts && CHECKED_TYPES.contains(&kind),
        }
    }
}

/// Most bytes in one transmit buffer (14 bits).
pub const MAX_TRANSMIT_BUFFER: u32 = (1 << 14) - 1;
/// Most bytes of payload that are cut at once (18 bits).
pub const MAX_CUT: u32 = (1 << 18) - 1;
/// Smallest and largest payload of a segment; outside, the device takes the driver for malicious and stops its queue.
pub const SEGMENT_SIZES: std::ops::RangeInclusive<u16> = 64..=9668;

/// What the device is to do for a frame: the command bits and header lengths of its data descriptors, in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work(u64);

impl Work {
    /// Fill in the transport checksum; with `cut`, all of each segment's.
    #[inline]
    pub fn of(layers: &Layers, cut: bool) -> Self {
        let ip = match (layers.version, cut) {
            (Version::V6, _) => 0x20,
            (Version::V4, false) => 0x40,
            (Version::V4, true) => 0x60,
        };
        let transport = match layers.transport {
            Transport::Tcp => 0x100,
            Transport::Udp => 0x300,
        };
        let lengths =
            u64::from(layers.l2 / 2) | u64::from(layers.l3 / 4) << 7 | u64::from(layers.l4 / 4) << 14;
        Self((ip | transport) << 4 | lengths << 16)
    }
}

/// The second word of a data descriptor: `size` bytes; what is over [`MAX_TRANSMIT_BUFFER`] is cut off. `end` is the last of
/// its frame, `report` asks for a write-back.
#[inline]
pub fn data_word(size: u32, work: Work, end: bool, report: bool) -> u64 {
    const APPEND_FCS: u64 = 1 << 6;
    APPEND_FCS
        | work.0
        | u64::from(end) << 4
        | u64::from(report) << 5
        | u64::from(size & MAX_TRANSMIT_BUFFER) << 34
}

/// The second word of a context descriptor: cut `payload` bytes into segments of `segment` bytes. The first word is 0.
#[inline]
pub fn cut_word(payload: u32, segment: u16) -> u64 {
    const CONTEXT: u64 = 1;
    const CUT: u64 = 1 << 4;
    CONTEXT | CUT | u64::from(payload & MAX_CUT) << 30 | u64::from(segment & 0x3fff) << 50
}

/// Whether the second word of a transmit descriptor says that the device is done with it.
#[inline]
pub fn is_transmitted(word: u64) -> bool {
    word & 0xf == 0xf
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn legacy_bits() {
        let read = |second| Received::read(Format::Legacy, [0, second, 0]);
        assert!(Received::is_done(3) && !Received::is_done(2));
        let plain = read(3 | 1514 << 38);
        assert_eq!(plain, Received { end: true, len: 1514, ..Received::default() });
        assert!(read(3 | 1 << 19).bad && read(3 | 1 << 25).bad && !read(1 | 1 << 19).bad);
        let tags = |words| {
            let read = Received::read(Format::Legacy, words);
            (read.tag, read.torn)
        };
        assert_eq!(tags([0x2007 << 16, 3 | 1 << 2, 0]), (Some(0x2007), false));
        assert_eq!(tags([0x2007 << 16, 3, 1 | 0x2008 << 48]), (Some(0x2008), false));
        assert_eq!(tags([0x2007 << 16, 3 | 1 << 2, 1]), (None, true));
        assert_eq!(tags([0x2007 << 16, 1 | 1 << 2, 0]), (None, false));
        let tcp = 3 | 1 << 3 | 26 << 30;
        assert!(read(tcp).valid && !read(3 | 26 << 30).valid && !read(3 | 1 << 3 | 23 << 30).valid);
        for doubt in [15, 22, 23, 24, 26] {
            assert!(!read(tcp | 1 << doubt).valid, "bit {doubt}");
        }
    }

    #[test]
    fn flexible_bits() {
        let read = |first, second| Received::read(Format::Flexible, [first, second, 0]);
        let tcp = 2 | 92 << 16 | 1514 << 32;
        assert_eq!(
            read(tcp, 3 | 1 << 3),
            Received { end: true, len: 1514, valid: true, ..Received::default() }
        );
        assert!(read(tcp, 3 | 1 << 10).bad);
        assert_eq!(read(tcp, 3 | 1 << 13 | 0x2007 << 16).tag, Some(0x2007));
        assert_eq!(Received::read(Format::Flexible, [tcp, 3, 1 << 11 | 0x2008 << 48]).tag, Some(0x2008));
        assert!(Received::read(Format::Flexible, [tcp, 3 | 1 << 13, 1 << 11]).torn);
        for doubt in [4, 5, 6, 7, 9] {
            assert!(!read(tcp, 3 | 1 << 3 | 1 << doubt).valid, "bit {doubt}");
        }
    }

    #[test]
    fn transmit_bits() {
        assert_eq!(data_word(60, Work::default(), false, false), 60 << 34 | 0x40);
        assert_eq!(data_word(60, Work::default(), true, true), 60 << 34 | 0x70);
        let layers = Layers { l2: 18, l3: 20, l4: 32, version: Version::V4, transport: Transport::Tcp };
        assert_eq!(Work::of(&layers, false).0, 0x1400 | (9 | 5 << 7 | 8 << 14) << 16);
        assert_eq!(Work::of(&layers, true).0 & 0x3ff0, 0x1600);
        let udp = Layers { l3: 40, l4: 8, version: Version::V6, transport: Transport::Udp, ..layers };
        assert_eq!(Work::of(&udp, false).0, 0x3200 | (9 | 10 << 7 | 2 << 14) << 16);
        assert_eq!(cut_word(60_000, 1448), 0x11 | 60_000 << 30 | 1448 << 50);
        assert!(is_transmitted(0xf) && !is_transmitted(0x7f0) && !is_transmitted(0x1e));
    }

    proptest! {
        #[test]
        fn lengths_stay_in_their_fields(size: u32, payload: u32, segment: u16) {
            let word = data_word(size, Work::default(), true, true);
            prop_assert_eq!((word & 0x3_ffff_ffff, word >> 48), (0x70, 0));
            let word = cut_word(payload, segment);
            prop_assert_eq!(word & 0x3fff_ffff, 0x11);
            prop_assert_eq!(word >> 48 & 3, 0);
        }

        #[test]
        fn whatever_the_device_writes_a_length_fits_its_field(words: [u64; 3]) {
            for format in [Format::Legacy, Format::Flexible] {
                prop_assert!(Received::read(format, words).len <= 0x3fff);
            }
        }
    }
}
