//! Registers of the 82576 and I350 VF in BAR 0, and their bits (82576 data sheet, chapter 9.4: virtual function device).
//! The numbers are byte offsets.

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

/// Mailbox control.
pub const V2PMAILBOX: u32 = 0x0c40;
/// First word of the mailbox.
pub const VMBMEM: u32 = 0x0800;

/// Receive ring 0: base address, low half.
pub const RDBAL: u32 = 0x2800;
/// Base address, high half.
pub const RDBAH: u32 = 0x2804;
/// Bytes of the ring.
pub const RDLEN: u32 = 0x2808;
/// Buffer sizes, descriptor format, what happens without descriptors.
pub const SRRCTL: u32 = 0x280c;
/// Head, the device's.
pub const RDH: u32 = 0x2810;
/// Tail, ours.
pub const RDT: u32 = 0x2818;
/// Enable and write-back thresholds.
pub const RXDCTL: u32 = 0x2828;
/// Frames dropped for want of a descriptor; cleared when read.
pub const RQDPC: u32 = 0x2830;

/// Transmit ring 0: base address, low half.
pub const TDBAL: u32 = 0x3800;
/// Base address, high half.
pub const TDBAH: u32 = 0x3804;
/// Bytes of the ring.
pub const TDLEN: u32 = 0x3808;
/// Head, the device's.
pub const TDH: u32 = 0x3810;
/// Tail, ours.
pub const TDT: u32 = 0x3818;
/// Enable and write-back thresholds.
pub const TXDCTL: u32 = 0x3828;

/// Good frames received, 32 bits, wrapping; so are the others of the five.
pub const VFGPRC: u32 = 0x0f10;
/// Good frames sent.
pub const VFGPTC: u32 = 0x0f14;
/// Bytes of good frames received, FCS included.
pub const VFGORC: u32 = 0x0f18;
/// Bytes of good frames sent, FCS included.
pub const VFGOTC: u32 = 0x0f34;

/// EIMS, EIMC, EIAC, EIAM: vector 0.
pub const VECTOR_0: u32 = 1;
/// IVAR: receive queue 0 has vector 0; the other queues have none.
pub const IVAR_RECEIVE_0: u32 = IVAR_VALID;
const IVAR_VALID: u32 = 1 << 7;

/// CTRL: resets the VF.
pub const CTRL_RST: u32 = 1 << 26;

/// STATUS: link up.
pub const STATUS_LU: u32 = 1 << 1;
/// STATUS: speed; 0 is 10 Mbit/s, 1 is 100, 2 and 3 are 1000.
pub const STATUS_SPEED_SHIFT: u32 = 6;

/// V2PMAILBOX: a message for the PF is ready.
pub const MAILBOX_REQ: u32 = 1;
/// The PF's message has been read.
pub const MAILBOX_ACK: u32 = 1 << 1;
/// The words are the VF's.
pub const MAILBOX_VFU: u32 = 1 << 2;
/// The PF has written a message; cleared when read.
pub const MAILBOX_PFSTS: u32 = 1 << 4;
/// The PF has read our message; cleared when read.
pub const MAILBOX_PFACK: u32 = 1 << 5;
/// The PF is in reset.
pub const MAILBOX_RSTI: u32 = 1 << 6;
/// The PF's reset is over; cleared when read.
pub const MAILBOX_RSTD: u32 = 1 << 7;
/// Bits that vanish when the register is read.
pub const MAILBOX_CLEARED_BY_READ: u32 = MAILBOX_PFSTS | MAILBOX_PFACK | MAILBOX_RSTD;

/// SRRCTL: advanced descriptors with one buffer.
pub const SRRCTL_ONE_BUFFER: u32 = 1 << 25;
/// SRRCTL: frames without a descriptor are dropped. Otherwise a VF that stops receiving holds up the whole port.
pub const SRRCTL_DROP: u32 = 1 << 31;
/// SRRCTL counts packet buffers in units of this many bytes.
pub const SRRCTL_UNIT: u32 = 1024;

/// RXDCTL and TXDCTL: the queue is on.
pub const DCTL_ENABLE: u32 = 1 << 25;
/// RXDCTL: the device fetches descriptors when fewer than 8 are left inside and 8 are ready; it writes each back at
/// once, because with another WTHRESH the 82576's VFs can forget to write back at all (82576 specification update).
pub const RXDCTL_THRESHOLDS: u32 = 8 | 8 << 8 | WTHRESH_ONE;
/// TXDCTL: the same for transmit descriptors, which are fetched as soon as one is ready.
pub const TXDCTL_THRESHOLDS: u32 = 8 | 1 << 8 | WTHRESH_ONE;
const WTHRESH_ONE: u32 = 1 << 16;

/// Descriptors of each ring; RDLEN and TDLEN take multiples of 8 up to 4096 (on the I350; 82576: 32768 bytes and more).
pub const RING: u16 = 1024;

/// Longest frame of the port with FCS: 9.5 KiB.
pub const LONGEST_FRAME: u32 = 9728;
/// Bytes of the FCS, which the device adds and takes away.
pub const FCS: u32 = 4;
