//! Registers of the VF in BAR 0 and their bits (82599 data sheet, chapter 9; X550 data sheet for the RSS of VFs). The
//! numbers are byte offsets. Written down apart from the driver's: two readings of the same pages.

pub const VFCTRL: u32 = 0x00;
pub const VFSTATUS: u32 = 0x08;
pub const VFLINKS: u32 = 0x10;
pub const VFFRTIMER: u32 = 0x48;
pub const VTEICR: u32 = 0x100;
pub const VTEICS: u32 = 0x104;
pub const VTEIMS: u32 = 0x108;
pub const VTEIMC: u32 = 0x10c;
pub const VTEIAC: u32 = 0x110;
pub const VTEIAM: u32 = 0x114;
/// Four of them, for two queues each.
pub const VTIVAR: u32 = 0x120;
pub const VTIVAR_MISC: u32 = 0x140;
/// Sixteen words.
pub const VFMBMEM: u32 = 0x200;
pub const VFMAILBOX: u32 = 0x2fc;
pub const VFPSRTYPE: u32 = 0x300;
/// One a vector.
pub const VTEITR: u32 = 0x820;
pub const VFMRQC: u32 = 0x3000;
/// Ten words.
pub const VFRSSRK: u32 = 0x3100;
/// Sixteen words, four queues each.
pub const VFRETA: u32 = 0x3200;
/// Receive queues, 64 bytes each.
pub const RECEIVE: u32 = 0x1000;
/// Transmit queues, 64 bytes each.
pub const TRANSMIT: u32 = 0x2000;

// In a queue's 64 bytes.
pub const BASE_LOW: u32 = 0x00;
pub const BASE_HIGH: u32 = 0x04;
pub const LENGTH: u32 = 0x08;
pub const DCA: u32 = 0x0c;
pub const HEAD: u32 = 0x10;
/// Receive queues only.
pub const SRRCTL: u32 = 0x14;
pub const TAIL: u32 = 0x18;
pub const DCTL: u32 = 0x28;
/// Receive queues only.
pub const RSCCTL: u32 = 0x2c;
/// Transmit queues only: where the head is written to, if anywhere.
pub const HEAD_WRITE_BACK_LOW: u32 = 0x38;
/// Its upper half.
pub const HEAD_WRITE_BACK_HIGH: u32 = 0x3c;

// Among the registers of queue 0.
pub const VFGPRC: u32 = 0x101c;
pub const VFGORC_LSB: u32 = 0x1020;
pub const VFGORC_MSB: u32 = 0x1024;
pub const VFMPRC: u32 = 0x1034;
pub const VFGPTC: u32 = 0x201c;
pub const VFGOTC_LSB: u32 = 0x2020;
pub const VFGOTC_MSB: u32 = 0x2024;

/// VFCTRL: resets the VF.
pub const RST: u32 = 1 << 26;
/// VFLINKS: link up.
pub const LINK_UP: u32 = 1 << 30;
/// VFLINKS: 10 Gbit/s.
pub const LINK_10G: u32 = 3 << 28;

/// DCTL: the queue is on.
pub const ENABLE: u32 = 1 << 25;
/// DCTL: what was sent is to be written back now.
pub const SWFLSH: u32 = 1 << 26;
/// RXDCTL: tags are taken out.
pub const VME: u32 = 1 << 30;
/// RXDCTL: longer frames are dropped (X540 and later): whether, and the length with FCS.
pub const RLPML_EN: u32 = 1 << 15;
pub const RLPML: u32 = 0x3fff;
/// SRRCTL: frames without a descriptor are dropped.
pub const DROP_EN: u32 = 1 << 28;
/// SRRCTL: the format of descriptors, and the one with one buffer.
pub const DESCTYPE: u32 = 7 << 25;
pub const ONE_BUFFER: u32 = 1 << 25;
/// DCA_RXCTRL: must be cleared, and is set after a reset.
pub const DCA_MUST_BE_ZERO: u32 = 1 << 12;
/// DCA_RXCTRL after a reset: relaxed ordering of all kinds.
pub const DCA_RX_DEFAULT: u32 = DCA_MUST_BE_ZERO | 1 << 9 | 1 << 13 | 1 << 15;
/// DCA_TXCTRL: write-back may overtake; it must not.
pub const DESC_WRO: u32 = 1 << 11;
/// DCA_TXCTRL after a reset.
pub const DCA_TX_DEFAULT: u32 = DESC_WRO | 1 << 9 | 1 << 13;

/// VFMRQC: RSS is on; what is hashed.
pub const RSS_ON: u32 = 1;
pub const HASH_IPV4_TCP: u32 = 1 << 16;
pub const HASH_IPV4: u32 = 1 << 17;
pub const HASH_IPV6: u32 = 1 << 20;
pub const HASH_IPV6_TCP: u32 = 1 << 21;
pub const HASH_IPV4_UDP: u32 = 1 << 22;
pub const HASH_IPV6_UDP: u32 = 1 << 23;

/// VFMAILBOX: the VF has written a message.
pub const REQ: u32 = 1;
/// The VF has read the PF's message.
pub const ACK: u32 = 2;
/// The words are the VF's.
pub const VFU: u32 = 4;
/// The PF has written a message.
pub const PFSTS: u32 = 1 << 4;
/// The PF has read the VF's message.
pub const PFACK: u32 = 1 << 5;
/// The PF is in reset.
pub const RSTI: u32 = 1 << 6;
/// The PF's reset is over.
pub const RSTD: u32 = 1 << 7;
/// Cleared by reading.
pub const CLEARED_BY_READ: u32 = PFSTS | PFACK | RSTD;
