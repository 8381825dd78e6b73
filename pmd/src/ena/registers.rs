//! Registers of the ENA in BAR 0, and their bits (`ena_regs_defs.h` of ena-com). The numbers are byte offsets.

/// The BAR with the registers and the doorbells.
pub const BAR: u8 = 0;
/// Bytes of it in front of the doorbells, whose places the device tells.
pub const REGISTERS: usize = 0x80;
/// The BAR with the memory of low latency queues.
pub const MEMORY_BAR: u8 = 2;

/// Version of the controller.
pub const CONTROLLER_VERSION: u32 = 0x04;
/// Time limits and the width of addresses.
pub const CAPS: u32 = 0x08;
/// Admin queue: base address, low half.
pub const AQ_BASE_LO: u32 = 0x10;
/// High half.
pub const AQ_BASE_HI: u32 = 0x14;
/// Its depth and the bytes of an entry.
pub const AQ_CAPS: u32 = 0x18;
/// Admin completion queue: base address, low half.
pub const ACQ_BASE_LO: u32 = 0x20;
/// High half.
pub const ACQ_BASE_HI: u32 = 0x24;
/// Its depth and the bytes of an entry.
pub const ACQ_CAPS: u32 = 0x28;
/// Admin queue: commands submitted so far.
pub const AQ_DOORBELL: u32 = 0x2c;
/// Queue of asynchronous events: depth and the bytes of an entry.
pub const AENQ_CAPS: u32 = 0x34;
/// Its base address, low half.
pub const AENQ_BASE_LO: u32 = 0x38;
/// High half.
pub const AENQ_BASE_HI: u32 = 0x3c;
/// Events that have been read, and the depth.
pub const AENQ_HEAD: u32 = 0x40;
/// Bit 0 masks the interrupt of the admin queue and of events.
pub const INTERRUPT_MASK: u32 = 0x4c;
/// Device control.
pub const DEV_CTL: u32 = 0x54;
/// Device status.
pub const DEV_STS: u32 = 0x58;
/// Asks for a register's value in memory: a sequence number, and the register's offset in the high half.
pub const REG_READ: u32 = 0x5c;
/// Where such values go: low half.
pub const ANSWER_LO: u32 = 0x60;
/// High half.
pub const ANSWER_HI: u32 = 0x64;

/// CONTROLLER_VERSION: major, minor and subminor, without the implementation's number.
pub const CONTROLLER_VERSION_MASK: u32 = 0xff_ffff;
/// The oldest: 0.0.1.
pub const LEAST_CONTROLLER_VERSION: u32 = 1;

/// CAPS: time limit of a reset, in units of 100 ms.
pub const CAPS_RESET_LIMIT: u32 = 0x3e;
/// Where it starts.
pub const CAPS_RESET_SHIFT: u32 = 1;
/// CAPS: bits of an address.
pub const CAPS_WIDTH: u32 = 0xff00;
/// Where they start.
pub const CAPS_WIDTH_SHIFT: u32 = 8;
/// CAPS: time limit of an admin command, in units of 100 ms; 0 is 3 s.
pub const CAPS_ADMIN_LIMIT: u32 = 0xf_0000;
/// Where it starts.
pub const CAPS_ADMIN_SHIFT: u32 = 16;

/// DEV_CTL: starts a reset; the reason for it stands in the highest four bits.
pub const CTL_RESET: u32 = 1;
/// Where the reason starts.
pub const CTL_REASON_SHIFT: u32 = 28;

/// DEV_STS: the device can be used.
pub const STS_READY: u32 = 1;
/// DEV_STS: a reset was started and has not been taken back.
pub const STS_RESETTING: u32 = 1 << 3;
/// DEV_STS: only a reset helps.
pub const STS_FATAL: u32 = 1 << 5;

/// Bit of the PCI revision: registers are read directly, not through memory (`ENA_MMIO_DISABLE_REG_READ`).
pub const REVISION_DIRECT: u8 = 1;

/// Unmask register of a completion queue: it may interrupt once more. Its moderation delays are the bits below, 0 for none.
pub const UNMASK: u32 = 1 << 30;

/// A depth and the size of an entry, as the CAPS registers of the three admin rings want them.
pub const fn ring_caps(depth: u16, entry: u16) -> u32 {
    depth as u32 | (entry as u32) << 16
}
