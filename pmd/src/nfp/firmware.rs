//! What the firmware says of itself: the version of its interface, what it can do, how it lays things out.

use super::registers::*;
use crate::registers::Registers;

/// Longest metadata before a frame (`NFP_NET_MAX_PREPEND`).
pub const MOST_PREPENDED: u32 = 64;
/// Header and two VLAN tags: what a frame has beside its MTU.
const AROUND: u32 = 14 + 2 * 4;
/// The largest MTU that is asked for, whatever the firmware takes: jumbo frames are not longer, and buffers hold one frame
/// each.
const LARGEST_MTU: u32 = 9600;

/// Types of structures (`TLV_TYPE_`), and the bit of those that must be understood.
mod tlv {
    pub const UNKNOWN: u32 = 0;
    pub const RESERVED: u32 = 1;
    pub const END: u32 = 2;
    pub const ME_FREQ: u32 = 3;
    pub const MBOX: u32 = 4;
    pub const VNIC_STATS: u32 = 12;
    pub const REQUIRED: u32 = 1 << 31;
}

/// How transmit descriptors look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPath {
    /// 16 bytes, 40-bit addresses.
    Nfd3,
    /// 8 bytes, several a frame, 48-bit addresses.
    Nfdk,
}

/// Where metadata is, and how it looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveLayout {
    /// Where a frame starts in its buffer; 0 for right behind its metadata.
    pub offset: u32,
    /// Metadata is a chain of fields; else it is a hash with its type, if anything.
    pub chained: bool,
    /// Bytes of a buffer.
    pub buffer: u32,
}

/// Where the counters are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counting {
    /// At [`STATS`], one behind the other.
    Fixed,
    /// As many numbers of counters from `ids` on, and the counters behind them.
    Listed {
        /// Offset in the control BAR.
        ids: u32,
        /// How many.
        count: u32,
    },
}

/// What is known of a firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// Transmit descriptors.
    pub path: DataPath,
    /// Major number of the version: 1 to 5.
    pub major: u32,
    /// Bits of [`CAP`] that this driver may use.
    pub cap: u32,
    /// Bits of [`CAP_WORD1`].
    pub cap_word1: u32,
    /// Rings each way.
    pub rings: u32,
    /// Largest MTU.
    pub mtu: u32,
    /// First queue of the transmit rings.
    pub first_tx: u32,
    /// First queue of the receive rings.
    pub first_rx: u32,
    /// Received frames.
    pub receive: ReceiveLayout,
    /// The hash function, a bit of [`RSS_CTRL`]; `None` where none is known here.
    pub hash: Option<u32>,
    /// Offset of the mailbox and bytes of its value; `None` where there is none, or no room in it for a VLAN.
    pub mailbox: Option<(u32, u32)>,
    /// Counters.
    pub counting: Counting,
}

impl Firmware {
    /// Reads it off the control BAR; an error is a part of a sentence. `queue_bits` are those that number a queue.
    pub fn read(control: &dyn Registers, queue_bits: u32) -> Result<Self, String> {
        let read = |offset| control.read(offset);
        let version = read(VERSION);
        let [_, major, class, extend] = version.to_le_bytes().map(u32::from);
        let named = format!("{extend}.{class}.{major}.{}", version & 0xff);
        let path = if extend & 1 == 0 { DataPath::Nfd3 } else { DataPath::Nfdk };
        let oldest = if path == DataPath::Nfd3 { 1 } else { 5 };
        if extend & !1 != 0 || class != 0 || !(oldest..=5).contains(&major) {
            return Err(format!("its firmware has the interface {named}, which is not known here"));
        }
        let mut firmware = Self {
            path,
            major,
            cap: read(CAP),
            cap_word1: read(CAP_WORD1),
            rings: read(MAX_TXRINGS).min(read(MAX_RXRINGS)).min(MOST_RINGS),
            mtu: read(MAX_MTU).min(LARGEST_MTU),
            first_tx: read(START_TXQ) & ((1 << queue_bits) - 1),
            first_rx: read(START_RXQ) & ((1 << queue_bits) - 1),
            receive: ReceiveLayout { offset: 0, chained: true, buffer: 0 },
            hash: None,
            mailbox: Some((MBOX, MBOX_VALUE_SIZE)),
            counting: Counting::Fixed,
        };
        firmware.read_structures(control)?;
        let rss_alone = firmware.cap & RSS != 0 && firmware.cap & (RSS2 | CSUM_COMPLETE) == 0;
        firmware.receive.chained = major == 4 || !rss_alone;
        // Version 1 of RSS has metadata of its own, except with ABI 4 (`nfp_net_read_caps`).
        if firmware.receive.chained && major != 4 {
            firmware.cap &= !RSS;
        }
        if path == DataPath::Nfdk {
            firmware.cap &= !RSS;
        }
        firmware.receive.offset = if major >= 2 { read(RX_OFFSET) } else { 32 };
        if firmware.receive.offset > MOST_PREPENDED {
            return Err(format!("its firmware puts frames at byte {} of a buffer", firmware.receive.offset));
        }
        let before = if firmware.receive.offset == 0 { MOST_PREPENDED } else { firmware.receive.offset };
        firmware.receive.buffer = (before + AROUND + firmware.mtu).next_multiple_of(128);
        let functions = read(RSS_CAP) & RSS_FUNCTIONS;
        firmware.hash = (functions == 0 || functions & RSS_TOEPLITZ != 0).then_some(RSS_TOEPLITZ);
        if firmware.rings == 0 || firmware.mtu < 68 {
            return Err(format!(
                "its firmware grants {} rings and an MTU of {}",
                firmware.rings, firmware.mtu
            ));
        }
        Ok(firmware)
    }

    /// Goes through the type-length-value structures, as far as the control BAR goes.
    fn read_structures(&mut self, control: &dyn Registers) -> Result<(), String> {
        let mut at = TLV_BASE;
        if control.read(at) == 0 {
            return Ok(());
        }
        loop {
            let header = control.read(at);
            let (kind, length) = (header >> 16 & 0x7fff, header & 0xffff);
            let value = at + 4;
            let broken = |what: &str| Err(format!("its firmware's structure at {at:#x} {what}"));
            if !length.is_multiple_of(4) || value + length + 4 > CONTROL_SIZE as u32 && kind != tlv::END {
                return broken("has an impossible length");
            }
            match kind {
                tlv::END if length == 0 => return Ok(()),
                tlv::UNKNOWN | tlv::END => return broken("is none"),
                tlv::RESERVED | tlv::ME_FREQ => {}
                tlv::MBOX => {
                    self.mailbox =
                        length.checked_sub(MBOX_VALUE).filter(|room| *room >= 4).map(|room| (value, room));
                }
                tlv::VNIC_STATS if value.is_multiple_of(8) => {
                    self.counting = Counting::Listed { ids: value, count: length / 10 };
                }
                _ if header & tlv::REQUIRED == 0 => {}
                _ => return broken(&format!("is of type {kind}, which must be understood and is not")),
            }
            at = value + length;
        }
    }

    /// Whether it has all these capabilities.
    pub fn has(&self, bits: u32) -> bool {
        self.cap & bits == bits
    }

    /// How it cuts TCP: [`LSO2`], [`LSO`] or 0.
    pub fn segmentation(&self) -> u32 {
        match self.cap {
            cap if cap & LSO2 != 0 => LSO2,
            cap if cap & LSO != 0 && self.major > 2 => LSO,
            _ => 0,
        }
    }

    /// How it spreads flows over rings: [`RSS2`], [`RSS`] or 0.
    pub fn spreading(&self) -> u32 {
        match self.cap {
            _ if self.hash.is_none() => 0,
            cap if cap & RSS2 != 0 => RSS2,
            cap => cap & RSS,
        }
    }

    /// Longest frame: an MTU of payload behind a header with a tag.
    pub fn max_frame(&self) -> u32 {
        self.mtu + 14 + 4
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Words;
    use super::*;

    fn words() -> Words {
        let words = Words::default();
        for (offset, value) in [
            (VERSION, 0x0000_0402),
            (CAP, ENABLE | RSS2 | RSS | LSO),
            (MAX_TXRINGS, 4),
            (MAX_RXRINGS, 8),
            (MAX_MTU, 9216),
            (START_TXQ, 0x1_0008),
            (START_RXQ, 10),
        ] {
            words.write(offset, value);
        }
        words
    }

    fn structures(list: &[u32]) -> Result<Firmware, String> {
        let words = words();
        for (at, word) in (TLV_BASE..).step_by(4).zip(list) {
            words.write(at, *word);
        }
        Firmware::read(&words, 8)
    }

    #[test]
    fn the_version_tells_the_data_path_and_unknown_ones_are_refused() {
        let words = words();
        let firmware = Firmware::read(&words, 8).unwrap();
        assert_eq!((firmware.path, firmware.rings, firmware.first_tx), (DataPath::Nfd3, 4, 8));
        assert_eq!((firmware.segmentation(), firmware.spreading(), firmware.max_frame()), (LSO, RSS2, 9234));
        words.write(VERSION, 0x0100_0501);
        assert_eq!(Firmware::read(&words, 8).unwrap().path, DataPath::Nfdk);
        for version in [0x0100_0402, 0x0200_0501, 0x0001_0402, 0x0000_0001, 0x0000_0600, u32::MAX] {
            words.write(VERSION, version);
            assert!(Firmware::read(&words, 8).unwrap_err().contains("interface"), "{version:#x}");
        }
    }

    #[test]
    fn metadata_is_chained_unless_old_rss_is_all_there_is() {
        let words = words();
        words.write(VERSION, 0x0000_0300);
        assert!(Firmware::read(&words, 8).unwrap().receive.chained);
        words.write(CAP, ENABLE | RSS);
        let firmware = Firmware::read(&words, 8).unwrap();
        assert!(!firmware.receive.chained && firmware.spreading() == RSS);
        words.write(VERSION, 0x0000_0402);
        assert!(Firmware::read(&words, 8).unwrap().receive.chained);
        words.write(RSS_CAP, 1 << 26);
        assert_eq!(Firmware::read(&words, 8).unwrap().spreading(), 0, "a hash that is not known");
        words.write(RX_OFFSET, 65);
        assert!(Firmware::read(&words, 8).is_err());
    }

    #[test]
    fn structures_are_read_to_their_end() {
        let end = 2 << 16;
        assert_eq!(structures(&[end]), structures(&[]));
        let firmware =
            structures(&[3 << 16 | 4, 1200, 4 << 16 | 16, 0, 0, 0, 0, 99 << 16 | 4, 7, end]).unwrap();
        assert_eq!(firmware.mailbox, Some((TLV_BASE + 12, 8)));
        let aligned = structures(&[1 << 16, 12 << 16 | 20, 0, 0, 0, 0, 0, end]).unwrap();
        assert_eq!(aligned.counting, Counting::Listed { ids: TLV_BASE + 8, count: 2 });
        assert_eq!(structures(&[4 << 16, end]).unwrap().mailbox, None);
        for wrong in [
            &[1 << 16 | 3, end][..],
            &[1 << 31 | 99 << 16, end],
            &[1 << 16 | 0xfffc, end],
            &[1 << 16 | 4, 7, 0],
            &[end | 4],
        ] {
            assert!(structures(wrong).unwrap_err().contains("structure"), "{wrong:x?}");
        }
    }

    #[test]
    fn structures_without_an_end_stop_at_that_of_the_bar() {
        let words = words();
        (TLV_BASE..CONTROL_SIZE as u32).step_by(4).for_each(|at| words.write(at, 1 << 16));
        assert!(Firmware::read(&words, 8).is_err());
    }
}
