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
    /// Any error of the frame itself: RXE, and the bits CE, SE, SEQ and CXE that older parts set in the same field.
    /// Checksum verdicts (IPE, L4E) are not among them: such a frame is delivered as it came.
    const BAD_FRAME: u32 = 0x9700_0000;

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

    /// Whether the frame arrived damaged; told with its last buffer.
    #[inline]
    pub fn is_bad(self) -> bool {
        self.status() & Self::BAD_FRAME != 0
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

/// Flags of one transmit data descriptor beside those that are always set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitFlags {
    /// The last buffer of its frame (EOP).
    pub end: bool,
    /// The device shall write back when it is done (RS).
    pub report: bool,
}

/// Most bytes in one transmit buffer (DTALEN, 16 bits).
pub const MAX_TRANSMIT_BUFFER: u32 = 0xffff;
/// Most bytes of one frame (PAYLEN, 18 bits).
pub const MAX_TRANSMIT_FRAME: u32 = (1 << 18) - 1;

/// Bytes 8 to 15 of a transmit data descriptor: `buffer` bytes of a frame that is `frame` bytes long (both without FCS;
/// the device appends it). What is over [`MAX_TRANSMIT_BUFFER`] or [`MAX_TRANSMIT_FRAME`] is cut off.
#[inline]
pub fn transmit_word(buffer: u32, frame: u32, flags: TransmitFlags) -> u64 {
    const DATA: u32 = 3 << 20;
    const END: u32 = 1 << 24;
    const APPEND_FCS: u32 = 1 << 25;
    const REPORT: u32 = 1 << 27;
    const ADVANCED: u32 = 1 << 29;
    let mut command = (buffer & MAX_TRANSMIT_BUFFER) | DATA | APPEND_FCS | ADVANCED;
    if flags.end {
        command |= END;
    }
    if flags.report {
        command |= REPORT;
    }
    let options = (frame & MAX_TRANSMIT_FRAME) << 14;
    u64::from(command) | u64::from(options) << 32
}

/// Whether bytes 8 to 15 of a transmit descriptor say that the device is done with it (STA.DD).
#[inline]
pub fn is_transmitted(word: u64) -> bool {
    word >> 32 & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert!(!word(3, 60, 0).is_bad());
        for error in [31, 28, 26, 25, 24] {
            assert!(word(3 | 1 << error, 60, 0).is_bad(), "bit {error}");
        }
        // IP and L4 checksum errors are the guest's to judge.
        assert!(!word(3 | 1 << 30 | 1 << 29, 60, 0).is_bad());
    }

    #[test]
    fn transmit_bits() {
        let plain = transmit_word(60, 60, TransmitFlags::default());
        assert_eq!(plain, 0x000f_0000_2230_003c);
        let end = transmit_word(60, 60, TransmitFlags { end: true, report: false });
        assert_eq!(end ^ plain, 0x0100_0000);
        let report = transmit_word(60, 60, TransmitFlags { end: false, report: true });
        assert_eq!(report ^ plain, 0x0800_0000);
        assert!(!is_transmitted(plain));
        assert!(is_transmitted(plain | 1 << 32));
    }

    proptest! {
        #[test]
        fn lengths_stay_in_their_fields(buffer: u32, frame: u32) {
            let word = transmit_word(buffer, frame, TransmitFlags { end: true, report: true });
            prop_assert_eq!(word as u32 & 0xffff, buffer & 0xffff);
            prop_assert_eq!(word as u32 >> 16, 0x2b30);
            prop_assert_eq!(word >> 46, u64::from(frame & 0x3_ffff));
            prop_assert_eq!(word >> 32 & 0x3fff, 0);
        }
    }
}
