//! The capture file format of libpcap (`pcap-savefile(5)`): a header of 24 bytes, then records of 16 bytes and a frame.
//!
//! Forty bytes of format: less than what a crate for it would want of the way in which buffers are read and written.

use thiserror::Error;

/// Bytes before the first record.
pub(super) const FILE_HEADER: usize = 24;
/// Bytes before each frame.
pub(super) const RECORD_HEADER: usize = 16;
/// Longest frame that is taken for one, in bytes: what libpcap takes (`MAXIMUM_SNAPLEN`).
pub(super) const LONGEST: u32 = 262_144;

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
/// The block type that a pcapng file begins with.
const PCAPNG: u32 = 0x0a0d_0d0a;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;
/// Bit of the link type field that says that frames have their FCS.
const HAS_FCS: u32 = 1 << 26;

/// Why a file cannot be played.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum FormatError {
    #[error("it is a pcapng file; convert it: editcap -F pcap IN OUT, or tcpdump -r IN -w OUT")]
    Pcapng,
    #[error("it is no capture file of libpcap")]
    NoCapture,
    #[error("its frames are not Ethernet frames (link type {0}); capture on an Ethernet interface")]
    LinkType(u32),
    #[error("its frames include their FCS, which no frame here has; capture without it")]
    Fcs,
}

/// Byte order of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

/// What is before a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Bytes of the frame that are in the file.
    pub(super) captured: u32,
    /// Bytes that the frame had.
    pub(super) original: u32,
}

impl ByteOrder {
    /// The byte order that the header of a file tells, if frames can be read behind it.
    pub(super) fn of_file(header: &[u8; FILE_HEADER]) -> Result<Self, FormatError> {
        let magic = |order: Self| matches!(order.word(header, 0), MICROSECONDS | NANOSECONDS);
        let order = match Self::Little.word(header, 0) {
            PCAPNG => return Err(FormatError::Pcapng),
            _ if magic(Self::Little) => Self::Little,
            _ if magic(Self::Big) => Self::Big,
            _ => return Err(FormatError::NoCapture),
        };
        match order.word(header, 20) {
            network if network & 0xffff != ETHERNET => Err(FormatError::LinkType(network & 0xffff)),
            network if network & HAS_FCS != 0 => Err(FormatError::Fcs),
            _ => Ok(order),
        }
    }

    /// The lengths in the header of a record.
    pub(super) fn record(self, header: &[u8; RECORD_HEADER]) -> Record {
        Record { captured: self.word(header, 8), original: self.word(header, 12) }
    }

    fn word(self, bytes: &[u8], at: usize) -> u32 {
        let word = bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
        match self {
            Self::Little => u32::from_le_bytes(word),
            Self::Big => u32::from_be_bytes(word),
        }
    }
}

/// The beginning of a file with times in nanoseconds.
pub(super) fn file_header() -> [u8; FILE_HEADER] {
    let words = [NANOSECONDS, 0x0004_0002, 0, 0, LONGEST, ETHERNET];
    let mut header = [0; FILE_HEADER];
    for (slot, word) in header.chunks_exact_mut(4).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    header
}

/// What is before a frame of `len` bytes that was seen `since_1970`.
pub(super) fn record_header(since_1970: std::time::Duration, len: u32) -> [u8; RECORD_HEADER] {
    let words = [since_1970.as_secs() as u32, since_1970.subsec_nanos(), len, len];
    let mut header = [0; RECORD_HEADER];
    for (slot, word) in header.chunks_exact_mut(4).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn header(magic: u32, network: u32, order: ByteOrder) -> [u8; FILE_HEADER] {
        let mut header = [0; FILE_HEADER];
        for (at, word) in [(0, magic), (20, network)] {
            let word = if order == ByteOrder::Little { word.to_le_bytes() } else { word.to_be_bytes() };
            header[at..at + 4].copy_from_slice(&word);
        }
        header
    }

    #[test]
    fn both_byte_orders_and_both_units_of_time_are_read() {
        for magic in [MICROSECONDS, NANOSECONDS] {
            for order in [ByteOrder::Little, ByteOrder::Big] {
                assert_eq!(ByteOrder::of_file(&header(magic, 1, order)), Ok(order));
            }
        }
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 60, 0, 0, 0, 0, 1, 0, 0];
        assert_eq!(ByteOrder::Little.record(&bytes), Record { captured: 60, original: 256 });
        assert_eq!(ByteOrder::Big.record(&bytes), Record { captured: 60 << 24, original: 1 << 16 });
    }

    #[test]
    fn what_cannot_be_played_is_refused_with_the_reason() {
        let of = |magic, network| ByteOrder::of_file(&header(magic, network, ByteOrder::Little)).unwrap_err();
        assert_eq!(of(PCAPNG, 0), FormatError::Pcapng);
        assert_eq!(of(0x1234_5678, 1), FormatError::NoCapture);
        assert_eq!(of(0xa1b2_cd34, 1), FormatError::NoCapture);
        assert_eq!(of(MICROSECONDS, 113), FormatError::LinkType(113));
        assert_eq!(of(MICROSECONDS, HAS_FCS | 4 << 28 | 1), FormatError::Fcs);
    }

    #[test]
    fn what_is_written_can_be_read() {
        assert_eq!(ByteOrder::of_file(&file_header()), Ok(ByteOrder::Little));
        let record = record_header(Duration::new(7, 999_999_999), 1514);
        assert_eq!(ByteOrder::Little.record(&record), Record { captured: 1514, original: 1514 });
        assert_eq!(record[4..8], 999_999_999u32.to_le_bytes());
    }
}
