//! Registers of the VF in BAR 0, and their bits (X710/XL710 and E810 data sheets, virtual function registers; the names are
//! those of Intel's `iavf_register.h`). The numbers are byte offsets.

/// The BAR with the registers.
pub const BAR: u8 = 0;
/// Bytes of that BAR that are used.
pub const BAR_SIZE: usize = 64 * 1024;

/// Tail of transmit queue 0; the next queues' follow, 4 bytes apart.
pub const QTX_TAIL1: u32 = 0x0000;
/// Tail of receive queue 0, likewise.
pub const QRX_TAIL1: u32 = 0x2000;
/// Control of interrupt 1, that of the first queues; the next follow, 4 bytes apart.
pub const VFINT_DYN_CTLN1: u32 = 0x3800;
/// Control of interrupt 0, that of all else.
pub const VFINT_DYN_CTL01: u32 = 0x5c00;
/// State of resets.
pub const VFGEN_RSTAT: u32 = 0x8800;

/// Registers of one half of the admin queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminRegisters {
    /// Base address, low half.
    pub base_low: u32,
    /// Base address, high half.
    pub base_high: u32,
    /// Number of descriptors, errors, enable.
    pub length: u32,
    /// Head, the device's.
    pub head: u32,
    /// Tail, ours.
    pub tail: u32,
}

/// What the VF sends (VF_ATQBAL1 and so on).
pub const ATQ: AdminRegisters =
    AdminRegisters { base_low: 0x7c00, base_high: 0x7800, length: 0x6800, head: 0x6400, tail: 0x8400 };
/// What the VF receives (VF_ARQBAL1 and so on).
pub const ARQ: AdminRegisters =
    AdminRegisters { base_low: 0x6c00, base_high: 0x6000, length: 0x8000, head: 0x7400, tail: 0x7000 };

/// Length: the queue is on; cleared by every reset.
pub const LENGTH_ENABLE: u32 = 1 << 31;
/// Length: the queue does no work any more.
pub const LENGTH_CRITICAL: u32 = 1 << 30;
/// Length: a message was lost because there was no buffer for it.
pub const LENGTH_OVERFLOW: u32 = 1 << 29;
/// Length: another VF did something forbidden to it.
pub const LENGTH_VF_ERROR: u32 = 1 << 28;
/// Head: the index.
pub const HEAD_MASK: u32 = 0x3ff;

/// VFGEN_RSTAT: the state.
pub const RSTAT_MASK: u32 = 3;
/// The PF has finished a reset of the VF.
pub const RSTAT_COMPLETED: u32 = 1;
/// The PF serves the VF.
pub const RSTAT_ACTIVE: u32 = 2;

/// VFINT_DYN_CTL: may interrupt, once: the device clears it then.
pub const DYN_CTL_ENABLE: u32 = 1;
/// No interval is set by this write.
pub const DYN_CTL_NO_INTERVAL: u32 = 3 << 3;
/// The interval (of timer 0) counts units of 2 µs from here on.
pub const DYN_CTL_INTERVAL_SHIFT: u32 = 5;
/// Descriptors are written back when the timer is over, without an interrupt.
pub const DYN_CTL_WRITE_BACK: u32 = 1 << 30;

/// Descriptors of each ring; a multiple of 32 up to 4096 for receive rings, of 8 for transmit rings.
pub const RING: u16 = 1024;
/// Most queue pairs: the registers of more are elsewhere.
pub const MOST_PAIRS: u16 = 16;
/// Longest frame of the port with FCS.
pub const LONGEST_FRAME: u32 = 9728;
/// Bytes of the FCS, which the device adds and takes away.
pub const FCS: u32 = 4;
