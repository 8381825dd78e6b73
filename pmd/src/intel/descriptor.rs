//! Advanced descriptors, 16 bytes, little-endian.
//!
//! ```text
//! receive, as we give it            receive, as it comes back
//!  0  packet buffer address          0  type and RSS, header
//!  8  header buffer address          4  RSS hash, or IP id and checksum
//!                                    8  status and errors
//!                                   12  length │ VLAN tag
//! transmit, as we give it           transmit, as it comes back
//!  0  buffer address                 0  reserved
//!  8  command, type, length         12  status
//! 12  payload length, options, status
//! ```
//!
//! 82576 data sheet, chapters 7.1 (receive) and 7.2 (transmit): advanced formats; the 82599 family uses the same.

use super::family::Family;
use crate::net::layers::{Layers, Transport};
use crate::net::packet::Version;

/// Bytes of one descriptor.
pub const SIZE: usize = 16;
/// Bytes to which the base of a ring must be aligned (RDBAL and TDBAL, bits 6 to 0).
pub const RING_ALIGN: usize = 128;

/// What the device says about one receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The second half of the descriptor.
    word: u64,
}

impl Received {
    const DONE: u32 = 1;
    const END: u32 = 1 << 1;
    /// L4CS: the checksum of TCP or UDP was looked at.
    const CHECKSUM_SEEN: u32 = 1 << 5;
    /// LB: sent by another function of the same port.
    const LOOPED: u32 = 1 << 18;

    /// From bytes 8 to 15 of a descriptor.
    #[inline]
    pub fn from_word(word: u64) -> Self {
        Self { word }
    }

    fn status(self) -> u32 {
        self.word as u32
    }

    /// Whether the device has filled the buffer; nothing else is meaningful before.
    #[inline]
    pub fn is_done(self) -> bool {
        self.status() & Self::DONE != 0
    }

    /// Whether this buffer is the last of its frame.
    #[inline]
    pub fn is_end(self) -> bool {
        self.status() & Self::END != 0
    }

    /// Whether it is a whole frame that arrived undamaged and of which nothing was taken off.
    #[inline]
    pub fn is_plain(self, family: &Family) -> bool {
        let told = Self::DONE | Self::END;
        self.status() & (told | family.damaged | family.tag_taken) == told
    }

    /// Whether the frame arrived damaged; told with its last buffer.
    #[inline]
    pub fn is_bad(self, family: &Family) -> bool {
        self.status() & family.damaged != 0
    }

    /// Whether the device looked at the checksum of a transport layer, whichever it is, and found nothing wrong; told with
    /// the frame's last buffer.
    #[inline]
    pub fn checksum_is_right(self, family: &Family) -> bool {
        self.status() & (Self::CHECKSUM_SEEN | family.wrong_checksum) == Self::CHECKSUM_SEEN
    }

    /// The VLAN tag that the device took off the frame, if it did: TPID and TCI as on the wire. Told with the last buffer.
    #[inline]
    pub fn tag(self, family: &Family) -> Option<[u8; 4]> {
        if self.status() & family.tag_taken == 0 {
            return None;
        }
        let field = (self.word >> 48) as u16;
        let swapped = family.swaps_looped_tags && self.status() & Self::LOOPED != 0;
        let [high, low] = if swapped { field.to_le_bytes() } else { field.to_be_bytes() };
        Some([0x81, 0, high, low])
    }

    /// Bytes in this buffer, as the device claims.
    #[inline]
    pub fn len(self) -> u32 {
        u32::from((self.word >> 32) as u16)
    }

    /// Whether the device claims to have written nothing.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// Whether bytes 0 to 7 of a received descriptor say that the frame is TCP or UDP (packet type; not SCTP, whose checksum is
/// another one).
#[inline]
pub fn is_tcp_or_udp(word: u64) -> bool {
    const TCP: u64 = 1 << 8;
    const UDP: u64 = 1 << 9;
    word & (TCP | UDP) != 0
}

/// Most bytes in one transmit buffer (DTALEN, 16 bits).
pub const MAX_TRANSMIT_BUFFER: u32 = 0xffff;
/// Most bytes of one frame (PAYLEN, 18 bits).
pub const MAX_TRANSMIT_FRAME: u32 = (1 << 18) - 1;

const CONTEXT: u32 = 2 << 20;
const DATA: u32 = 3 << 20;
const END: u32 = 1 << 24;
const APPEND_FCS: u32 = 1 << 25;
const REPORT: u32 = 1 << 27;
const ADVANCED: u32 = 1 << 29;
const CUT: u32 = 1 << 31;

/// What the device is to do with a frame. All data descriptors of a frame say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    command: u32,
    options: u32,
}

impl Manner {
    /// To fill in the checksum of the IPv4 header (POPTS.IXSM).
    const IPV4_CHECKSUM: u32 = 1 << 8;
    /// To fill in the checksum of TCP or UDP (POPTS.TXSM).
    const CHECKSUM: u32 = 2 << 8;
    /// CC: the context is to be looked at whatever else is asked for.
    const CHECK_CONTEXT: u32 = 1 << 7;

    /// To send `frame` bytes (without FCS, which the device appends) as they are. What is over [`MAX_TRANSMIT_FRAME`] is cut
    /// off.
    #[inline]
    pub fn plain(frame: u32) -> Self {
        Self { command: DATA | APPEND_FCS | ADVANCED, options: (frame & MAX_TRANSMIT_FRAME) << 14 }
    }

    /// To fill in the checksum of TCP or UDP in a frame of `frame` bytes.
    #[inline]
    pub fn checksum(frame: u32) -> Self {
        let plain = Self::plain(frame);
        Self { options: plain.options | Self::CHECKSUM, ..plain }
    }

    /// To cut `payload` bytes of TCP, headers not counted, and fill in the checksums of every segment.
    #[inline]
    pub fn cut(payload: u32, ipv4: bool) -> Self {
        let whole = Self::checksum(payload);
        let ip = if ipv4 { Self::IPV4_CHECKSUM } else { 0 };
        Self { command: whole.command | CUT, options: whole.options | ip }
    }

    /// With the context in `slot` (0 or 1), which is looked at whatever is asked for where `always`.
    #[inline]
    pub fn with_context(self, slot: u8, always: bool) -> Self {
        let check = if always { Self::CHECK_CONTEXT } else { 0 };
        Self { options: self.options | u32::from(slot & 1) << 4 | check, ..self }
    }

    /// Bytes 8 to 15 of a data descriptor for `buffer` bytes, the last of the frame or not. What is over
    /// [`MAX_TRANSMIT_BUFFER`] is cut off.
    #[inline]
    pub fn word(self, buffer: u32, end: bool) -> u64 {
        let end = if end { END } else { 0 };
        u64::from(self.command | end | (buffer & MAX_TRANSMIT_BUFFER)) | u64::from(self.options) << 32
    }
}

/// Has the device write back when it is done with the descriptor that has `word` (RS).
#[inline]
pub fn reporting(word: u64) -> u64 {
    word | u64::from(REPORT)
}

/// What the device has to know of a frame's layers to work on it: a context descriptor without the slot that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    lengths: u32,
    kind: u32,
    sizes: u32,
}

impl Context {
    /// TUCMD: an IPv4 header.
    const IPV4: u32 = 1 << 10;
    /// TUCMD: the transport is TCP; UDP is 0.
    const TCP: u32 = 1 << 11;
    /// TUCMD: no transport that the device knows.
    const UNKNOWN: u32 = 3 << 11;

    /// For a frame whose headers are nobody's business.
    pub const PLAIN: Self = Self { lengths: 14 << 9, kind: CONTEXT | ADVANCED | Self::UNKNOWN, sizes: 0 };

    /// For a frame with these layers, to be cut into segments of `segment_size` bytes of payload unless that is 0.
    #[inline]
    pub fn of(layers: &Layers, segment_size: u16) -> Self {
        let mut kind = CONTEXT | ADVANCED;
        if layers.version == Version::V4 {
            kind |= Self::IPV4;
        }
        if layers.transport == Transport::Tcp {
            kind |= Self::TCP;
        }
        let sizes =
            if segment_size == 0 { 0 } else { u32::from(segment_size) << 16 | u32::from(layers.l4) << 8 };
        Self { lengths: u32::from(layers.l3) | u32::from(layers.l2) << 9, kind, sizes }
    }

    /// Both halves of the descriptor that writes it to `slot` (0 or 1).
    #[inline]
    pub fn words(self, slot: u8) -> [u64; 2] {
        let sizes = self.sizes | u32::from(slot & 1) << 4;
        [u64::from(self.lengths), u64::from(self.kind) | u64::from(sizes) << 32]
    }
}

/// Whether bytes 8 to 15 of a transmit descriptor say that the device is done with it (STA.DD).
#[inline]
pub fn is_transmitted(word: u64) -> bool {
    word >> 32 & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::igbvf::registers::{RINGS_82576, RINGS_I350};
    use proptest::prelude::*;

    #[test]
    fn receive_bits() {
        let word = |status: u32, len: u16, vlan: u16| {
            Received::from_word(u64::from(status) | u64::from(len) << 32 | u64::from(vlan) << 48)
        };
        assert!(!word(0, 0xffff, 0xffff).is_done());
        assert!(word(1, 0, 0).is_done() && !word(1, 0, 0).is_end() && word(1, 0, 0).is_empty());
        assert!(word(2, 0, 0).is_end() && !word(2, 0, 0).is_done());
        assert_eq!(word(3, 1514, 0xabcd).len(), 1514);
        let family = &RINGS_82576;
        assert!(!word(3, 60, 0).is_bad(family));
        for error in [31, 28, 26, 25, 24] {
            assert!(word(3 | 1 << error, 60, 0).is_bad(family), "bit {error}");
        }
        // IP and L4 checksum errors are the guest's to judge.
        assert!(!word(3 | 1 << 30 | 1 << 29, 60, 0).is_bad(family));
        assert!(word(3 | 1 << 5 | 1 << 6, 60, 0).checksum_is_right(family));
        for wrong in [3, 3 | 1 << 5 | 1 << 29, 3 | 1 << 5 | 1 << 30] {
            assert!(!word(wrong, 60, 0).checksum_is_right(family), "{wrong:#x}");
        }
        assert!(is_tcp_or_udp(1 << 8) && is_tcp_or_udp(1 << 9) && !is_tcp_or_udp(1 << 10 | 0xf));
    }

    #[test]
    fn a_tag_that_was_taken_is_told_as_on_the_wire() {
        let word = |status: u64| Received::from_word(status | 0x2007 << 48);
        assert_eq!(word(3).tag(&RINGS_82576), None);
        assert_eq!(word(3 | 8).tag(&RINGS_82576), Some([0x81, 0, 0x20, 7]));
        let looped = word(3 | 8 | 1 << 18);
        assert_eq!(looped.tag(&RINGS_82576), Some([0x81, 0, 0x20, 7]));
        assert_eq!(looped.tag(&RINGS_I350), Some([0x81, 0, 7, 0x20]), "the I350 swaps it");
        assert_eq!(word(3 | 8).tag(&RINGS_I350), Some([0x81, 0, 0x20, 7]));
    }

    #[test]
    fn transmit_bits() {
        let plain = Manner::plain(60).word(60, false);
        assert_eq!(plain, 0x000f_0000_2230_003c);
        assert_eq!(Manner::plain(60).word(60, true) ^ plain, 0x0100_0000);
        assert_eq!(reporting(plain) ^ plain, 0x0800_0000);
        assert_eq!(Manner::checksum(60).word(60, false) ^ plain, 0x200 << 32);
        assert_eq!(Manner::cut(60, false).word(60, false) ^ plain, 0x200 << 32 | 0x8000_0000);
        assert_eq!(Manner::cut(60, true).word(60, false) ^ plain, 0x300 << 32 | 0x8000_0000);
        assert_eq!(Manner::plain(60).with_context(1, false).word(60, false) ^ plain, 0x10 << 32);
        assert_eq!(Manner::plain(60).with_context(0, true).word(60, false) ^ plain, 0x80 << 32);
        assert!(!is_transmitted(plain));
        assert!(is_transmitted(plain | 1 << 32));
    }

    #[test]
    fn context_bits() {
        let layers = Layers { l2: 14, l3: 20, l4: 32, version: Version::V4, transport: Transport::Tcp };
        assert_eq!(Context::of(&layers, 1448).words(0), [14 << 9 | 20, 0x05a8_2000_2020_0c00]);
        let udp = Layers { l2: 18, l3: 40, l4: 8, version: Version::V6, transport: Transport::Udp };
        assert_eq!(Context::of(&udp, 0).words(1), [18 << 9 | 40, 0x0000_0010_2020_0000]);
        assert_eq!(Context::PLAIN.words(0), [14 << 9, 0x2020_1800]);
    }

    proptest! {
        #[test]
        fn lengths_stay_in_their_fields(buffer: u32, frame: u32) {
            let word = reporting(Manner::plain(frame).word(buffer, true));
            prop_assert_eq!(word as u32 & 0xffff, buffer & 0xffff);
            prop_assert_eq!(word as u32 >> 16, 0x2b30);
            prop_assert_eq!(word >> 46, u64::from(frame & 0x3_ffff));
            prop_assert_eq!(word >> 32 & 0x3fff, 0);
        }
    }
}
