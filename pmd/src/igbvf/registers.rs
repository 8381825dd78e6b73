//! Registers of the 82576 and I350 VF in BAR 0, and their bits (82576 data sheet, chapter 9.4: virtual function device).
//! The numbers are byte offsets.

use crate::intel::Family;
use crate::intel::mailbox::MailboxPlace;
use crate::memory::BUFFER_SIZE;

/// The BAR with the registers.
pub const BAR: u8 = 0;
/// Bytes of that BAR.
pub const BAR_SIZE: usize = 16 * 1024;

/// Device control.
pub const CTRL: u32 = 0x0000;
/// Device status.
pub const STATUS: u32 = 0x0008;
/// Extended interrupt mask set: the vectors that may interrupt, a bit each.
pub const EIMS: u32 = 0x1524;
/// Extended interrupt mask clear.
pub const EIMC: u32 = 0x1528;
/// Vectors whose cause is cleared when they have interrupted.
pub const EIAC: u32 = 0x152c;
/// Vectors that are masked when they have interrupted.
pub const EIAM: u32 = 0x1530;
/// The vectors of queues 0 and 1: a byte each for receive queue 0, transmit queue 0, receive queue 1, transmit queue 1.
pub const IVAR: u32 = 0x1700;

/// Where the mailbox is: V2PMAILBOX and VMBMEM.
pub const MAILBOX: MailboxPlace = MailboxPlace { control: 0x0c40, words: 0x0800 };

/// Buffer sizes, descriptor format, what happens without descriptors, among a receive queue's registers.
pub const SRRCTL: u32 = 0x0c;
/// Frames dropped for want of a descriptor, among a receive queue's registers; cleared when read.
pub const RQDPC: u32 = 0x30;

/// Good frames received, 32 bits, wrapping; so are the others.
pub const VFGPRC: u32 = 0x0f10;
/// Good frames sent.
pub const VFGPTC: u32 = 0x0f14;
/// Bytes of good frames received, FCS included.
pub const VFGORC: u32 = 0x0f18;
/// Bytes of good frames sent, FCS included.
pub const VFGOTC: u32 = 0x0f34;
/// Multicast frames received.
pub const VFMPRC: u32 = 0x0f3c;
/// Good frames received from other functions of the port.
pub const VFGPRLBC: u32 = 0x0f40;
/// Good frames sent to other functions of the port.
pub const VFGPTLBC: u32 = 0x0f44;
/// Bytes of good frames received from other functions of the port.
pub const VFGORLBC: u32 = 0x0f48;
/// Bytes of good frames sent to other functions of the port.
pub const VFGOTLBC: u32 = 0x0f50;

/// CTRL: resets the VF.
pub const CTRL_RST: u32 = 1 << 26;

/// STATUS: link up.
pub const STATUS_LU: u32 = 1 << 1;
/// STATUS: speed; 0 is 10 Mbit/s, 1 is 100, 2 and 3 are 1000.
pub const STATUS_SPEED_SHIFT: u32 = 6;

/// SRRCTL: advanced descriptors with one buffer.
const SRRCTL_ONE_BUFFER: u32 = 1 << 25;
/// SRRCTL: frames without a descriptor are dropped. Otherwise a VF that stops receiving holds up the whole port.
const SRRCTL_DROP: u32 = 1 << 31;
/// SRRCTL counts packet buffers in units of this many bytes.
const SRRCTL_UNIT: u32 = 1024;

/// RXDCTL: the device fetches descriptors when fewer than 8 are left inside and 8 are ready; it writes each back at
/// once, because with another WTHRESH the 82576's VFs can forget to write back at all (82576 specification update).
const RXDCTL_THRESHOLDS: u32 = 8 | 8 << 8 | WTHRESH_ONE;
/// TXDCTL: the same for transmit descriptors, which are fetched as soon as one is ready.
const TXDCTL_THRESHOLDS: u32 = 8 | 1 << 8 | WTHRESH_ONE;
const WTHRESH_ONE: u32 = 1 << 16;

/// The vector of receive queue 0 is the one that Linux's driver gives it, too. QEMU's 82576 adds what is written to IVAR to
/// what an earlier driver wrote there, bit by bit, and no reset of the VF clears it: with 0 after Linux's 1, or the other way
/// round, the sum of both is the vector of another function, and the queue never interrupts.
const FIRST_VECTOR: u16 = 1;

pub(crate) const RINGS: Family = Family {
    receive: 0x2800,
    transmit: 0x3800,
    stride: 0x100,
    receive_settings: &[(SRRCTL, SRRCTL_ONE_BUFFER | SRRCTL_DROP | (BUFFER_SIZE / SRRCTL_UNIT))],
    transmit_settings: &[],
    rxdctl: RXDCTL_THRESHOLDS,
    txdctl: TXDCTL_THRESHOLDS,
    eims: EIMS,
    eimc: EIMC,
    eiac: EIAC,
    eiam: EIAM,
    ivar: IVAR,
    first_vector: FIRST_VECTOR,
    // RXE, and the bits CE, SE, SEQ and CXE that older parts set in the same field.
    damaged: 0x9700_0000,
    // IPE and L4E.
    wrong_checksum: 1 << 30 | 1 << 29,
    // VP, which is set where the tag was taken off alone.
    tag_taken: 1 << 3,
    swaps_looped_tags: false,
    longest_frame: 9728,
    longest_buffer: 32 << 10,
    always_context: false,
};

/// The rings of an 82576 VF.
pub static RINGS_82576: Family = RINGS;
/// The rings of an I350 VF.
pub static RINGS_I350: Family = Family { swaps_looped_tags: true, ..RINGS };
