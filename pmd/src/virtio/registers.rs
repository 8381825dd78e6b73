//! Where things are in the configuration structures of a virtio device on PCI (virtio 1.3, 4.1.4) and of a network device
//! (5.1.4). All are little-endian.

use crate::registers::Registers;

/// Common configuration (4.1.4.3).
pub const DEVICE_FEATURE_SELECT: u32 = 0x00;
pub const DEVICE_FEATURE: u32 = 0x04;
pub const DRIVER_FEATURE_SELECT: u32 = 0x08;
pub const DRIVER_FEATURE: u32 = 0x0c;
pub const DEVICE_STATUS: u32 = 0x14;
pub const CONFIG_GENERATION: u32 = 0x15;
pub const QUEUE_SELECT: u32 = 0x16;
pub const QUEUE_SIZE: u32 = 0x18;
pub const QUEUE_MSIX_VECTOR: u32 = 0x1a;
pub const QUEUE_ENABLE: u32 = 0x1c;
pub const QUEUE_NOTIFY_OFF: u32 = 0x1e;
pub const QUEUE_DESC: u32 = 0x20;
pub const QUEUE_DRIVER: u32 = 0x28;
pub const QUEUE_DEVICE: u32 = 0x30;
/// Bytes of it that every device has.
pub const COMMON_BYTES: u32 = 0x38;

/// No interrupt (`VIRTIO_MSI_NO_VECTOR`).
pub const NO_VECTOR: u16 = 0xffff;

/// Device status (2.1).
pub const ACKNOWLEDGE: u8 = 1;
pub const DRIVER: u8 = 2;
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 64;
/// What a device that has left reads as; no status, for it has reserved bits set.
pub const NO_STATUS: u8 = 0xff;

/// Configuration of a network device (5.1.4).
pub const NET_MAC: u32 = 0;
pub const NET_STATUS: u32 = 6;
pub const NET_MAX_PAIRS: u32 = 8;
pub const NET_MTU: u32 = 10;
pub const NET_SPEED: u32 = 12;
pub const NET_RSS_KEY_SIZE: u32 = 17;
pub const NET_RSS_TABLE_LENGTH: u32 = 18;
pub const NET_HASH_TYPES: u32 = 20;
/// Bits of its status.
pub const LINK_UP: u16 = 1;
pub const ANNOUNCE: u16 = 2;
/// Nobody knows the speed.
pub const SPEED_UNKNOWN: u32 = u32::MAX;

/// Bits of a descriptor's flags (2.7.5, 2.8.1).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const AVAILABLE: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// Writes a 64-bit field, which drivers write as two halves (4.1.3.1).
pub fn write_halves(registers: &dyn Registers, offset: u32, value: u64) {
    registers.write(offset, value as u32);
    registers.write(offset + 4, (value >> 32) as u32);
}
