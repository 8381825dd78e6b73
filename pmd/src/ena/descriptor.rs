//! Descriptors and completions (`ena_eth_io_defs.h` of ena-com): 16 bytes each, but 8 for what was sent. A phase bit in
//! each changes with every lap of its ring, so that both sides see what is new.

use crate::net::layers::{Layers, Transport};
use crate::net::packet::Version;
use crate::offload::Segmentation;

/// Bytes of a descriptor and of a receive completion.
pub const SIZE: usize = 16;
/// Bytes of a transmit completion.
pub const SENT_SIZE: usize = 8;

/// Four words, little-endian.
pub type Words = [u32; 4];

const PHASE: u32 = 1 << 24;
const FIRST: u32 = 1 << 26;
const LAST: u32 = 1 << 27;
const COMPLETION_REQUEST: u32 = 1 << 28;

/// Protocols as descriptors number them.
mod protocol {
    pub const IPV4: u32 = 8;
    pub const IPV6: u32 = 11;
    pub const TCP: u32 = 12;
    pub const UDP: u32 = 13;
}

/// The phase of entry number `count` of a ring of `depth` entries, a power of two up to 32768.
#[inline]
pub fn phase(count: u16, depth: u16) -> bool {
    count & depth == 0
}

/// `descriptor` with its phase.
#[inline]
pub fn in_phase(mut descriptor: Words, phase: bool) -> Words {
    if phase {
        descriptor[0] |= PHASE;
    }
    descriptor
}

/// Most payload of a segment: the 14 bits of `ena_eth_io_tx_meta_desc`'s `mss_lo` and `mss_hi`.
pub const MOST_SEGMENT: u16 = 0x3fff;

/// What the device has to know of a frame's headers to finish it. Some devices remember the last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of payload of each segment; 0 where nothing is cut.
    pub segment_size: u16,
    /// Bytes in front of the IP header.
    pub l2: u8,
    /// Bytes of the IP header.
    pub l3: u8,
    /// Bytes of the TCP header where something is cut; 0 elsewhere.
    pub l4: u8,
}

impl Meta {
    /// Of a frame's headers and what is to be done; the size of a segment is at most [`MOST_SEGMENT`].
    #[inline]
    pub fn of(layers: &Layers, segmentation: Segmentation, segment_size: u16) -> Self {
        let cuts = segmentation != Segmentation::None;
        Self {
            segment_size: if cuts { segment_size & MOST_SEGMENT } else { 0 },
            l2: layers.l2,
            l3: layers.l3,
            l4: if cuts { layers.l4 } else { 0 },
        }
    }

    /// Its descriptor, which is the first of its frame (`ena_eth_io_tx_meta_desc`).
    #[inline]
    pub fn descriptor(&self) -> Words {
        const EXT_VALID: u32 = 1 << 14;
        const EXTENDED: u32 = 1 << 20;
        const STORE: u32 = 1 << 21;
        const META: u32 = 1 << 23;
        let size = u32::from(self.segment_size);
        [
            EXT_VALID | (size >> 10) << 16 | EXTENDED | STORE | META | FIRST,
            0,
            u32::from(self.l3)
                | u32::from(self.l2) << 8
                | u32::from(self.l4 / 4) << 16
                | (size & 0x3ff) << 22,
            0,
        ]
    }
}

/// What is to be done for a frame, in the words of its first descriptor.
#[inline]
pub fn work(layers: &Layers, segmentation: Segmentation, dont_fragment: bool) -> u32 {
    const DF: u32 = 1 << 4;
    const TSO: u32 = 1 << 7;
    const L3_CHECKSUM: u32 = 1 << 13;
    const L4_CHECKSUM: u32 = 1 << 14;
    const L4_PARTIAL: u32 = 1 << 17;
    let l3 = match layers.version {
        Version::V4 => protocol::IPV4,
        Version::V6 => protocol::IPV6,
    };
    let l4 = match layers.transport {
        Transport::Tcp => protocol::TCP,
        Transport::Udp => protocol::UDP,
    };
    let mut work = l3 | l4 << 8 | L4_CHECKSUM;
    // Set for all that is no IPv4.
    if dont_fragment || layers.version == Version::V6 {
        work |= DF;
    }
    if segmentation == Segmentation::None {
        // The sum of the pseudo header stands in the checksum's field.
        return work | L4_PARTIAL;
    }
    if layers.version == Version::V4 {
        work |= L3_CHECKSUM;
    }
    work | TSO
}

/// The descriptor with which a frame begins (`ena_eth_io_tx_desc`). `id` comes back in its completion; `header` bytes stand
/// in the memory of the device, or are called headers.
#[inline]
pub fn begin(id: u16, work: u32, header: u8) -> Words {
    let id = u32::from(id);
    [COMPLETION_REQUEST | (id >> 10) << 16, work | (id & 0x3ff) << 22, 0, u32::from(header) << 24]
}

/// `descriptor` with bytes of the frame: at most 65535.
#[inline]
pub fn with_bytes(mut descriptor: Words, iova: u64, len: u32) -> Words {
    descriptor[0] |= len & 0xffff;
    descriptor[2] = iova as u32;
    descriptor[3] |= (iova >> 32) as u32 & 0xffff;
    descriptor
}

/// Marks the first and the last descriptor of a frame.
#[inline]
pub fn mark_ends(descriptors: &mut [Words]) {
    if let Some(first) = descriptors.first_mut() {
        first[0] |= FIRST;
    }
    if let Some(last) = descriptors.last_mut() {
        last[0] |= LAST;
    }
}

/// What the device says of a frame that it has sent (`ena_eth_io_tx_cdesc`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent(u64);

impl Sent {
    /// From the 8 bytes of a completion.
    #[inline]
    pub fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Its phase.
    #[inline]
    pub fn phase(self) -> bool {
        self.0 >> 24 & 1 != 0
    }

    /// Which frame it was.
    #[inline]
    pub fn id(self) -> u16 {
        self.0 as u16
    }

    /// Whether it did not leave.
    #[inline]
    pub fn is_error(self) -> bool {
        self.0 >> 16 & 0xff != 0
    }

    /// Whether bits are set that must not be.
    #[inline]
    pub fn has_reserved_bits(self) -> bool {
        self.0 >> 30 & 3 != 0
    }
}

/// A descriptor with a buffer of `len` bytes to receive into (`ena_eth_io_rx_desc`).
#[inline]
pub fn buffer(iova: u64, len: u32, id: u16) -> Words {
    [
        FIRST | LAST | COMPLETION_REQUEST | len & 0xffff,
        u32::from(id),
        iova as u32,
        (iova >> 32) as u32 & 0xffff,
    ]
}

/// What the device says of a buffer that it has filled (`ena_eth_io_rx_cdesc_base`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    status: u32,
    part: u32,
    offset: u8,
}

impl Received {
    /// The phase in a completion's first word.
    #[inline]
    pub fn phase(status: u32) -> bool {
        status & PHASE != 0
    }

    /// From the first, second and fourth word of a completion.
    #[inline]
    pub fn from_words(status: u32, part: u32, last: u32) -> Self {
        Self { status, part, offset: (last >> 16) as u8 }
    }

    /// Whether a frame begins here.
    #[inline]
    pub fn is_first(&self) -> bool {
        self.status & FIRST != 0
    }

    /// Whether a frame ends here.
    #[inline]
    pub fn is_last(&self) -> bool {
        self.status & LAST != 0
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.part & 0xffff
    }

    /// Which buffer it is.
    #[inline]
    pub fn id(&self) -> u16 {
        (self.part >> 16) as u16
    }

    /// Bytes in front of the frame, in its first buffer.
    #[inline]
    pub fn offset(&self) -> u8 {
        self.offset
    }

    /// Whether bits are set that must not be.
    #[inline]
    pub fn has_reserved_bits(&self) -> bool {
        self.status & (1 << 7 | 1 << 17) != 0
    }

    /// Whether the device found the checksums right, and so which version of IP it is; said of a frame's last buffer.
    #[inline]
    pub fn verified(&self) -> Option<Version> {
        const L3_BAD: u32 = 1 << 13;
        const L4_BAD: u32 = 1 << 14;
        const FRAGMENT: u32 = 1 << 15;
        const L4_CHECKED: u32 = 1 << 16;
        let version = match self.status & 0x1f {
            protocol::IPV4 if self.status & L3_BAD == 0 => Version::V4,
            protocol::IPV6 => Version::V6,
            _ => return None,
        };
        let known = matches!(self.status >> 8 & 0x1f, protocol::TCP | protocol::UDP);
        (known && self.status & (L4_BAD | FRAGMENT | L4_CHECKED) == L4_CHECKED).then_some(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYERS: Layers = Layers { l2: 18, l3: 24, l4: 32, version: Version::V4, transport: Transport::Tcp };

    #[test]
    fn a_meta_descriptor_has_the_headers_and_a_segment_of_14_bits() {
        let meta = Meta::of(&LAYERS, Segmentation::TcpV4, 0x2bcd);
        let [control, id, lengths, _] = meta.descriptor();
        assert_eq!((control & 0xf_0000) >> 16 << 10 | lengths >> 22, 0x2bcd);
        assert_eq!((lengths & 0xff, lengths >> 8 & 0xff, lengths >> 16 & 0x3f, id), (24, 18, 8, 0));
        assert_eq!(control & !0xf_0000, 1 << 14 | 1 << 20 | 1 << 21 | 1 << 23 | 1 << 26);
        let meta = Meta::of(&LAYERS, Segmentation::None, 1000);
        assert_eq!((meta.segment_size, meta.l4), (0, 0));
    }

    #[test]
    fn a_frame_begins_with_its_id_and_what_is_to_be_done() {
        let work = work(&LAYERS, Segmentation::TcpV4, true);
        assert_eq!(work, 8 | 1 << 4 | 1 << 7 | 12 << 8 | 1 << 13 | 1 << 14);
        assert_eq!(super::work(&LAYERS, Segmentation::None, false), 8 | 12 << 8 | 1 << 14 | 1 << 17);
        let descriptor = with_bytes(begin(0xabcd, work, 96), 0xffff_1234_5678_9abc, 1400);
        assert_eq!(descriptor[0] & 0xffff, 1400);
        assert_eq!((descriptor[0] >> 16 & 0x3f) << 10 | descriptor[1] >> 22, 0xabcd);
        assert_eq!((descriptor[2], descriptor[3]), (0x5678_9abc, 96 << 24 | 0x1234));
        let mut frame = [descriptor];
        mark_ends(&mut frame);
        assert_eq!(in_phase(frame[0], true)[0] >> 22, 0b111_0100);
    }

    #[test]
    fn what_was_checked_is_told_from_what_was_not() {
        let of = |status: u32| Received::from_words(status, 0, 0).verified();
        let good = 8 | 12 << 8 | 1 << 16;
        assert_eq!(of(good), Some(Version::V4));
        assert_eq!(of(11 | 13 << 8 | 1 << 16), Some(Version::V6));
        for bad in [good | 1 << 13, good | 1 << 14, good | 1 << 15, good & !(1 << 16), good & !0x1f00, 0] {
            assert_eq!(of(bad), None, "{bad:#x}");
        }
    }

    #[test]
    fn phases_change_with_every_lap() {
        let seen: Vec<bool> = [0, 3, 4, 7, 8, 0xfffc, 0].map(|count| phase(count, 4)).into();
        assert_eq!(seen, [true, true, false, false, true, false, true]);
    }
}
