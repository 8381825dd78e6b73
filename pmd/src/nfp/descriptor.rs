//! Descriptors as 64-bit words.
//!
//! ```text
//!   free list   63 address low 32 | 31 done, 0 | 30..24 0 | 23..16 0 | 15..0 address high
//!   received    63..48 tag | 47..32 flags | 31 done | 30..24 bytes of metadata | 23..16 0 | 15..0 bytes with metadata
//!
//!   NFD3   0    63 address low 32 | 31 end | 30..24 offset | 23..8 bytes | 7..0 address high
//!          1    63..48 bytes of the frame | 47..40 L4 at | 39..32 L3 at | 31..24 flags | 23..16 headers | 13..0 segment
//!
//!   NFDk   head    63 address low 32 | 31..28 type, 30 end | 27..16 bytes - 1 | 15..0 address high
//!          more    63 address low 32 | 30 end | 29..16 bytes - 1 | 15..0 address high
//!          meta    3 prepended metadata | 1 L4 checksum | 0 L3 checksum
//!          TSO     47..40 L4 at | 39..32 L3 at | 31..24 segments | 23..16 headers | 13..0 segment
//! ```
//!
//! The facts are those of `nfp_net_rx_desc`, `nfp_nfd3_tx_desc` and `nfp_nfdk_tx_desc`.

use crate::net::layers::{Layers, Transport};
use crate::net::packet::Version;

/// Bytes of a receive and of an NFDk descriptor.
pub const WORD: usize = 8;
/// Bits of an address in NFD3's transmit descriptors, and in all others.
pub const NFD3_ADDRESS: u32 = 40;
/// As [`NFD3_ADDRESS`].
pub const ADDRESS: u32 = 48;
/// Bytes that the first NFDk descriptor of a frame holds, and those that follow.
pub const NFDK_HEAD: u32 = 4096;
/// As [`NFDK_HEAD`].
pub const NFDK_PIECE: u32 = 16 * 1024;

/// Flags of a received frame (`PCIE_DESC_RX_`): what was checked, and that it was right.
const RX_CHECKED: u16 = 1 << 14 | 1 << 12 | 1 << 10 | 1 << 6 | 1 << 4 | 1 << 2;
const RX_RIGHT: u16 = RX_CHECKED >> 1;
/// The transport checksum was right: of TCP, of UDP.
const RX_TRANSPORT_RIGHT: u16 = 1 << 3 | 1 << 1;
/// Its tag was taken off.
const RX_VLAN: u16 = 1 << 0;

const DONE: u64 = 1 << 31;

/// A descriptor that gives the device a buffer.
#[inline]
pub fn free(iova: u64) -> u64 {
    iova << 32 | iova >> 32 & 0xffff
}

/// What the device says of a buffer that it has filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received(u64);

impl Received {
    /// From a descriptor.
    #[inline]
    pub fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Whether the device is done with it; else the rest says nothing.
    #[inline]
    pub fn is_done(self) -> bool {
        self.0 & DONE != 0
    }

    /// Bytes of metadata and frame together.
    #[inline]
    pub fn len(self) -> u32 {
        self.0 as u32 & 0xffff
    }

    /// Bytes of metadata.
    #[inline]
    pub fn metadata(self) -> u32 {
        (self.0 >> 24) as u32 & 0x7f
    }

    #[inline]
    fn flags(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// Whether the transport checksum, and all else that was checked, is right.
    #[inline]
    pub fn is_right(self) -> bool {
        let checked = (self.flags() & RX_CHECKED) >> 1;
        checked == self.flags() & RX_RIGHT && self.flags() & RX_TRANSPORT_RIGHT != 0
    }

    /// Whether a VLAN tag was taken off.
    #[inline]
    pub fn is_stripped(self) -> bool {
        self.flags() & RX_VLAN != 0
    }
}

/// What the device does to a frame on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Its headers.
    pub layers: Layers,
    /// Payload bytes of each TCP segment; 0 where it is not cut.
    pub segment: u16,
    /// Segments that it is cut into.
    pub segments: u8,
}

impl Work {
    fn l4(self) -> u64 {
        u64::from(self.layers.l2) + u64::from(self.layers.l3)
    }

    /// What is the same in both formats: offsets of the headers, their length, the segment.
    fn cut(self) -> u64 {
        u64::from(self.segment)
            | (self.layers.headers() as u64) << 16
            | u64::from(self.layers.l2) << 32
            | self.l4() << 40
    }
}

/// The first word of an NFD3 descriptor: `len` bytes at `iova`, the last of their frame or not.
#[inline]
pub fn nfd3_piece(iova: u64, len: u32, end: bool) -> u64 {
    iova << 32 | u64::from(end) << 31 | u64::from(len as u16) << 8 | iova >> 32 & 0xff
}

/// The second word, the same for all pieces of a frame of `len` bytes.
#[inline]
pub fn nfd3_frame(len: u32, work: Option<&Work>) -> u64 {
    const CHECKSUM: u64 = 1 << 7;
    const IPV4: u64 = 1 << 6;
    const TCP: u64 = 1 << 5;
    const UDP: u64 = 1 << 4;
    const CUT: u64 = 1 << 2;
    let mut word = u64::from(len as u16) << 48;
    if let Some(work) = work {
        let ip = if work.layers.version == Version::V4 { IPV4 } else { 0 };
        let transport = if work.layers.transport == Transport::Tcp { TCP } else { UDP };
        word |= (CHECKSUM | ip | transport) << 24;
        if work.segment > 0 {
            word |= CUT << 24 | work.cut();
        }
    }
    word
}

/// The first NFDk descriptor of a frame: at most [`NFDK_HEAD`] bytes.
#[inline]
pub fn nfdk_head(iova: u64, len: u32, end: bool, work: Option<&Work>) -> u64 {
    const GATHER: u64 = 1;
    const TSO: u64 = 2;
    const SIMPLE: u64 = 8;
    let kind = match work {
        Some(work) if work.segment > 0 => TSO,
        _ if end => SIMPLE,
        _ => GATHER,
    };
    nfdk_address(iova, len, end) | kind << 28
}

/// One that follows: at most [`NFDK_PIECE`] bytes.
#[inline]
pub fn nfdk_piece(iova: u64, len: u32, end: bool) -> u64 {
    nfdk_address(iova, len, end)
}

#[inline]
fn nfdk_address(iova: u64, len: u32, end: bool) -> u64 {
    iova << 32 | u64::from(end) << 30 | u64::from(len - 1) << 16 | iova >> 32 & 0xffff
}

/// The descriptor behind a frame's pieces.
#[inline]
pub fn nfdk_meta(work: Option<&Work>) -> u64 {
    const L3: u64 = 1 << 0;
    const L4: u64 = 1 << 1;
    work.map_or(0, |work| if work.layers.version == Version::V4 { L4 | L3 } else { L4 })
}

/// The descriptor behind that, for a frame that is cut.
#[inline]
pub fn nfdk_cut(work: &Work) -> u64 {
    work.cut() | u64::from(work.segments) << 24
}

#[cfg(test)]
mod tests {
    use super::*;

    const IOVA: u64 = 0x12_3456_7890;

    fn work(segment: u16) -> Work {
        let layers = Layers { l2: 18, l3: 20, l4: 32, version: Version::V4, transport: Transport::Tcp };
        Work { layers, segment, segments: 7 }
    }

    #[test]
    fn a_free_buffer_is_an_address_and_nothing_else() {
        assert_eq!(free(0xabcd_1234_5678), 0x1234_5678_0000_abcd);
    }

    #[test]
    fn a_received_frame_says_how_long_it_is_and_what_was_checked() {
        let received = |flags: u16| Received::from_word(u64::from(flags) << 32 | 0x8800_0100);
        assert!(received(0).is_done() && !Received::from_word(0x0800_0100).is_done());
        assert_eq!((received(0).len(), received(0).metadata()), (0x100, 8));
        let (ip, tcp) = (1 << 6 | 1 << 5, 1 << 4 | 1 << 3);
        assert!(received(ip | tcp).is_right() && received(1 << 2 | 1 << 1).is_right());
        for wrong in [0, ip, 1 << 4, ip | 1 << 4, 1 << 6 | tcp, 1 << 3, ip | tcp | 1 << 12] {
            assert!(!received(wrong).is_right(), "{wrong:#x}");
        }
        assert!(received(1).is_stripped() && !received(!1).is_stripped());
    }

    #[test]
    fn nfd3_descriptors_are_those_of_the_header_file() {
        let bytes = nfd3_piece(IOVA, 0x0506, true).to_le_bytes();
        assert_eq!(bytes, [0x12, 0x06, 0x05, 0x80, 0x90, 0x78, 0x56, 0x34]);
        assert_eq!(nfd3_piece(IOVA, 1, false).to_le_bytes()[3], 0);
        assert_eq!(nfd3_frame(0x1234, None).to_le_bytes(), [0, 0, 0, 0, 0, 0, 0x34, 0x12]);
        assert_eq!(nfd3_frame(100, Some(&work(0))).to_le_bytes(), [0, 0, 0, 0xe0, 0, 0, 100, 0]);
        assert_eq!(nfd3_frame(100, Some(&work(0x5b4))).to_le_bytes(), [0xb4, 5, 70, 0xe4, 18, 38, 100, 0]);
        let udp = Layers { version: Version::V6, transport: Transport::Udp, ..work(0).layers };
        assert_eq!(nfd3_frame(0, Some(&Work { layers: udp, ..work(0) })) >> 24, 0x90);
    }

    #[test]
    fn nfdk_descriptors_are_those_of_the_header_file() {
        let iova = 0xabcd_1234_5678;
        assert_eq!(nfdk_head(iova, 4096, true, None), 0x1234_5678_cfff_abcd);
        assert_eq!(nfdk_head(iova, 61, false, None), 0x1234_5678_103c_abcd);
        assert_eq!(nfdk_head(iova, 61, true, Some(&work(9))), 0x1234_5678_603c_abcd);
        assert_eq!(nfdk_piece(iova, 16384, true), 0x1234_5678_7fff_abcd);
        assert_eq!((nfdk_meta(None), nfdk_meta(Some(&work(0)))), (0, 3));
        assert_eq!(nfdk_cut(&work(0x5b4)).to_le_bytes(), [0xb4, 5, 70, 7, 18, 38, 0, 0]);
    }
}
