//! Registers of the VF of 82599, X540, X550 and X552 in BAR 0, and their bits (82599 data sheet, chapter 9.4; X550 data sheet for
//! the RSS of VFs). The numbers are byte offsets.

use crate::intel::Family;
use crate::intel::mailbox::MailboxPlace;
use crate::memory::BUFFER_SIZE;

/// The BAR with the registers.
pub const BAR: u8 = 0;
/// Bytes of that BAR.
pub const BAR_SIZE: usize = 16 * 1024;

/// Device control.
pub const VFCTRL: u32 = 0x0000;
/// Device status.
pub const VFSTATUS: u32 = 0x0008;
/// The wire.
pub const VFLINKS: u32 = 0x0010;
/// Extended interrupt mask set.
pub const VTEIMS: u32 = 0x0108;
/// Extended interrupt mask clear.
pub const VTEIMC: u32 = 0x010c;
/// Vectors whose cause is cleared when they have interrupted.
pub const VTEIAC: u32 = 0x0110;
/// Vectors that are masked when they have interrupted.
pub const VTEIAM: u32 = 0x0114;
/// The vectors of queues 0 and 1, as the 82576's IVAR; those of 2 and 3 are in the next word.
pub const VTIVAR: u32 = 0x0120;
/// Header split, and how many queues the VF spreads frames over (RQPL).
pub const VFPSRTYPE: u32 = 0x0300;

/// Where the mailbox is: VFMAILBOX and VFMBMEM.
pub const MAILBOX: MailboxPlace = MailboxPlace { control: 0x02fc, words: 0x0200 };

/// RSS of the VF's own (X550 and later): what is hashed.
pub const VFMRQC: u32 = 0x3000;
/// The key, 10 words.
pub const VFRSSRK: u32 = 0x3100;
/// The table, 16 words of 4 queues each.
pub const VFRETA: u32 = 0x3200;

/// Good frames received, 32 bits.
pub const VFGPRC: u32 = 0x101c;
/// Their bytes with FCS, 36 bits: the lower half.
pub const VFGORC_LSB: u32 = 0x1020;
/// The upper half.
pub const VFGORC_MSB: u32 = 0x1024;
/// Multicast frames received, 32 bits.
pub const VFMPRC: u32 = 0x1034;
/// Good frames sent, 32 bits.
pub const VFGPTC: u32 = 0x201c;
/// Their bytes with FCS, 36 bits: the lower half.
pub const VFGOTC_LSB: u32 = 0x2020;
/// The upper half.
pub const VFGOTC_MSB: u32 = 0x2024;

/// VFCTRL: resets the VF.
pub const VFCTRL_RST: u32 = 1 << 26;
/// VFLINKS: link up.
pub const LINKS_UP: u32 = 1 << 30;
/// VFLINKS: speed; 3 is 10 Gbit/s, 2 is 1, 1 is 100 Mbit/s, 0 is 10 Mbit/s.
pub const LINKS_SPEED_SHIFT: u32 = 28;
/// VFLINKS: the speed is 2.5 Gbit/s in place of 10, or 5 Gbit/s in place of 100 Mbit/s (X550 and later).
pub const LINKS_SPEED_BETWEEN: u32 = 1 << 27;
/// VFPSRTYPE: RQPL, the logarithm of the number of queues.
pub const PSRTYPE_RQPL_SHIFT: u32 = 29;

/// VFMRQC: RSS is on, over addresses, and ports of TCP and UDP, of IPv4 and IPv6.
pub const MRQC_RSS: u32 = 1 | 0x3 << 16 | 0x3 << 20 | 0x3 << 22;

/// Among a queue's registers: SRRCTL of a receive queue.
const SRRCTL: u32 = 0x14;
/// DCA_RXCTRL, DCA_TXCTRL.
const DCA: u32 = 0x0c;
/// TDWBAL and TDWBAH: the head is written there where bit 0 is set.
const TDWBAL: u32 = 0x38;
const TDWBAH: u32 = 0x3c;

const SRRCTL_ONE_BUFFER: u32 = 1 << 25;
const SRRCTL_DROP: u32 = 1 << 28;
const SRRCTL_UNIT: u32 = 1024;
/// DCA_RXCTRL: descriptors may be read, and data and headers written, out of order. Bit 12, which is set after a reset, must
/// be 0: what is received is garbage otherwise.
const DCA_RXCTRL: u32 = 1 << 9 | 1 << 13 | 1 << 15;
/// DCA_TXCTRL: descriptors and data may be read out of order. Not written (bit 11, set after a reset): a report would overtake
/// what it is about.
const DCA_TXCTRL: u32 = 1 << 9 | 1 << 13;

/// The rings of these VFs.
pub static RINGS: Family = Family {
    receive: 0x1000,
    transmit: 0x2000,
    stride: 0x40,
    receive_settings: &[
        (SRRCTL, SRRCTL_ONE_BUFFER | SRRCTL_DROP | (BUFFER_SIZE / SRRCTL_UNIT)),
        (DCA, DCA_RXCTRL),
    ],
    transmit_settings: &[(DCA, DCA_TXCTRL), (TDWBAL, 0), (TDWBAH, 0)],
    // VME stays off: tags stay where they are.
    rxdctl: 0,
    // Descriptors are fetched when fewer than 32 are inside and one is ready. WTHRESH is 0: with another one every frame would
    // have to ask for a report (82599 data sheet, chapter 7.2.3.5.1).
    txdctl: 32 | 1 << 8,
    eims: VTEIMS,
    eimc: VTEIMC,
    eiac: VTEIAC,
    eiam: VTEIAM,
    ivar: VTIVAR,
    first_vector: 0,
    // RXE: any error of the MAC.
    damaged: 1 << 29,
    // IPE and L4E.
    wrong_checksum: 1 << 31 | 1 << 30,
    // VP says here that there is a tag, taken off or not.
    tag_taken: 0,
    swaps_looped_tags: false,
    longest_frame: 9728,
    longest_buffer: 12 << 10,
    // The port switches between its functions, by what the context says (82599 data sheet, chapter 7.2.3.2.4: CC).
    always_context: true,
};
