//! The control BAR of an NFP's virtual NIC and its queue controller, byte offsets and bits. There is no public data sheet:
//! the names are those of Linux's `nfp_net_ctrl.h` and of DPDK's `nfp_common_ctrl.h` without their prefix
//! (`NFP_NET_CFG_`, `NFP_QCP_`).

/// The BAR with the control words.
pub const CONTROL_BAR: u8 = 0;
/// Bytes of it that mean anything (`BAR_SZ`).
pub const CONTROL_SIZE: usize = 32 * 1024;
/// The BAR with the queue controller, shared by both directions since firmware ABI 1.
pub const QUEUE_BAR: u8 = 2;

/// What is switched on.
pub const CTRL: u32 = 0x0000;
/// What was changed: the firmware sets it to 0 when it has taken that over.
pub const UPDATE: u32 = 0x0004;
/// Transmit rings in use, 64 bits.
pub const TXRS_ENABLE: u32 = 0x0008;
/// Receive rings in use, 64 bits.
pub const RXRS_ENABLE: u32 = 0x0010;
/// Longest packet: what is behind the Ethernet header and its tags.
pub const MTU: u32 = 0x0018;
/// Bytes of a receive buffer.
pub const FLBUFSZ: u32 = 0x001c;
/// Interrupt of link changes, 8 bits.
pub const LSC: u32 = 0x0020;
/// The address: its first four bytes as a big-endian number, the last two in the upper half of the next word.
pub const MACADDR: u32 = 0x0024;
/// Version of the firmware's interface.
pub const VERSION: u32 = 0x0030;
/// The link.
pub const STS: u32 = 0x0034;
/// What the firmware can do: bits of [`CTRL`].
pub const CAP: u32 = 0x0038;
/// Transmit rings that there are.
pub const MAX_TXRINGS: u32 = 0x003c;
/// Receive rings that there are.
pub const MAX_RXRINGS: u32 = 0x0040;
/// Largest [`MTU`].
pub const MAX_MTU: u32 = 0x0044;
/// The first queue of the queue controller that is a transmit ring's.
pub const START_TXQ: u32 = 0x0048;
/// The first that is a receive ring's.
pub const START_RXQ: u32 = 0x004c;
/// Where a frame starts in its buffer; 0 for right behind its metadata.
pub const RX_OFFSET: u32 = 0x0050;
/// Hash functions, in the bits of [`RSS_CTRL`]; 0 for Toeplitz alone.
pub const RSS_CAP: u32 = 0x0054;
/// The first of the type-length-value structures.
pub const TLV_BASE: u32 = 0x0058;
/// More of [`CTRL`].
pub const CTRL_WORD1: u32 = 0x0098;
/// More of [`CAP`].
pub const CAP_WORD1: u32 = 0x00a4;
/// What is hashed and how, and the mask of the indirection table.
pub const RSS_CTRL: u32 = 0x0100;
/// The key.
pub const RSS_KEY: u32 = 0x0104;
/// Bytes of the key.
pub const RSS_KEY_SIZE: usize = 40;
/// The indirection table, a byte an entry.
pub const RSS_ITBL: u32 = RSS_KEY + RSS_KEY_SIZE as u32;
/// Its entries.
pub const RSS_ITBL_SIZE: usize = 128;
/// Counters, 64 bits each.
pub const STATS: u32 = 0x0d00;
/// The mailbox, unless a structure says otherwise.
pub const MBOX: u32 = 0x1800;
/// Bytes of its value.
pub const MBOX_VALUE_SIZE: u32 = 0x1f8;

/// Most rings each way (`TXR_MAX`).
pub const MOST_RINGS: u32 = 64;

/// Where the ring of transmit queue `n` is.
pub const fn txr_addr(n: u32) -> u32 {
    0x200 + 8 * n
}

/// Where the firmware writes its read pointer.
pub const fn txr_wb_addr(n: u32) -> u32 {
    0x400 + 8 * n
}

/// Descriptors of the ring, as a power of two, 8 bits.
pub const fn txr_size(n: u32) -> u32 {
    0x600 + n
}

/// Its interrupt, 8 bits.
pub const fn txr_vector(n: u32) -> u32 {
    0x640 + n
}

/// Where the ring of receive queue `n` is.
pub const fn rxr_addr(n: u32) -> u32 {
    0x800 + 8 * n
}

/// Descriptors of the ring, as a power of two, 8 bits.
pub const fn rxr_size(n: u32) -> u32 {
    0xa00 + n
}

/// Its interrupt, 8 bits.
pub const fn rxr_vector(n: u32) -> u32 {
    0xa40 + n
}

/// Cause of an interrupt, 8 bits; it is masked unless this is 0, and the firmware masks it when it raises it.
pub const fn icr(vector: u32) -> u32 {
    0xc00 + vector
}

/// [`icr`]: masked, as if a ring had interrupted.
pub const ICR_RXTX: u8 = 1;
/// No interrupt ([`LSC`]).
pub const NO_VECTOR: u8 = 0xff;

/// [`CTRL`], [`CAP`]: the virtual NIC is on.
pub const ENABLE: u32 = 1 << 0;
/// Frames for other stations are received.
pub const PROMISC: u32 = 1 << 1;
/// Broadcast is received.
pub const L2BC: u32 = 1 << 2;
/// Groups are received.
pub const L2MC: u32 = 1 << 3;
/// Checksums are checked.
pub const RXCSUM: u32 = 1 << 4;
/// Checksums are filled in.
pub const TXCSUM: u32 = 1 << 5;
/// A frame may be in several pieces.
pub const GATHER: u32 = 1 << 9;
/// TCP is cut; from ABI 3 on like [`LSO2`].
pub const LSO: u32 = 1 << 10;
/// Frames of VLANs that were not asked for are dropped.
pub const CTAG_FILTER: u32 = 1 << 11;
/// Rings may come and go.
pub const RINGCFG: u32 = 1 << 16;
/// Several receive rings, metadata of another format.
pub const RSS: u32 = 1 << 17;
/// The read pointers of transmit rings are written to memory.
pub const TXRWB: u32 = 1 << 21;
/// Transmit rings do not interrupt (DPDK's header alone has it).
pub const MSIX_TX_OFF: u32 = 1 << 26;
/// TCP is cut.
pub const LSO2: u32 = 1 << 28;
/// Several receive rings.
pub const RSS2: u32 = 1 << 29;
/// The sum of the whole packet comes as metadata.
pub const CSUM_COMPLETE: u32 = 1 << 30;

/// [`CTRL_WORD1`]: free lists are taken over before the NIC is on.
pub const FREELIST_EN: u32 = 1 << 6;

/// [`UPDATE`]: control bits and what is not in the others.
pub const UPDATE_GEN: u32 = 1 << 0;
/// Rings.
pub const UPDATE_RING: u32 = 1 << 1;
/// Receive side scaling.
pub const UPDATE_RSS: u32 = 1 << 2;
/// Interrupts.
pub const UPDATE_MSIX: u32 = 1 << 5;
/// The address.
pub const UPDATE_MACADDR: u32 = 1 << 11;
/// The mailbox.
pub const UPDATE_MBOX: u32 = 1 << 12;
/// The firmware refuses.
pub const UPDATE_ERR: u32 = 1 << 31;

/// [`STS`]: there is a carrier.
pub const STS_LINK: u32 = 1 << 0;
/// Its rate, four bits.
pub const STS_RATE_SHIFT: u32 = 1;

/// [`RSS_CTRL`]: the entry is given by so many bits of the hash.
pub const RSS_MASK: u32 = RSS_ITBL_SIZE as u32 - 1;
/// IPv4 and IPv6 addresses; with ports of TCP; with ports of UDP.
pub const RSS_TYPES: u32 = 0x3f << 8;
/// Hash functions.
pub const RSS_FUNCTIONS: u32 = 0xff << 24;
/// Toeplitz.
pub const RSS_TOEPLITZ: u32 = 1 << 24;

/// Mailbox: the command, 64 bits.
pub const MBOX_COMMAND: u32 = 0;
/// What the firmware answers: 0, or an error number.
pub const MBOX_ANSWER: u32 = 4;
/// What the command is about.
pub const MBOX_VALUE: u32 = 8;
/// A VLAN's frames are to pass: its number and the Ethernet type of its tag, 16 bits each.
pub const MBOX_CTAG_FILTER_ADD: u64 = 1;

/// Bytes of one queue of the queue controller.
pub const QUEUE_SIZE: u32 = 0x800;
/// Queues of the controller from one ring to the next.
pub const STRIDE: u32 = 4;
/// The queue, behind the first transmit ring's, whose write pointer tells the firmware of a change.
pub const CONFIG_QUEUE: u32 = 1;
/// Adds to the write pointer.
pub const ADD_WPTR: u32 = 0x4;
/// Low status: the read pointer.
pub const STS_LO: u32 = 0x8;
/// High status: the write pointer.
pub const STS_HI: u32 = 0xc;
/// Bits of either pointer.
pub const POINTER: u32 = 0x3_ffff;
