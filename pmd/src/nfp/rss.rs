//! Receive side scaling: the hash of a flow names an entry of a table, and that a receive ring.

use super::registers::*;
use crate::registers::Registers;

/// The key that NICs come with (Microsoft's verification suite for RSS): every flow goes where it went before a restart.
pub const KEY: [u8; RSS_KEY_SIZE] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// Writes key, table and what is hashed, for `rings` rings in turn. The firmware is to be told.
pub fn write(control: &dyn Registers, rings: u32, function: u32) {
    for (at, word) in (RSS_KEY..).step_by(4).zip(KEY.as_chunks::<4>().0) {
        control.write(at, u32::from_le_bytes(*word));
    }
    for entry in (0..RSS_ITBL_SIZE as u32).step_by(4) {
        let rings = [0, 1, 2, 3].map(|n| ((entry + n) % rings.max(1)) as u8);
        control.write(RSS_ITBL + entry, u32::from_le_bytes(rings));
    }
    control.write(RSS_CTRL, function | RSS_TYPES | RSS_MASK);
}
