//! Which receive queue a frame goes to: a hash of its addresses and ports chooses an entry of a table of queues.

use std::hash::{BuildHasher, Hasher, RandomState};

use super::admin::{AdminError, AdminQueue, Opcode};
use super::features::{self, Attributes, HASH_FUNCTION, HASH_INPUT, INDIRECTION, VALUE};
use super::mmio::Mmio;
use crate::memory::DmaSlice;

/// Entries of the table: 2 to this power, as all drivers have it.
const TABLE_LOG: u32 = 7;
/// Bytes of memory for what is handed over: the hash's input is the longest.
pub const SCRATCH: usize = 512;
/// Words of the hash's key.
const KEY_WORDS: usize = 10;
/// Bit of the Toeplitz hash.
const TOEPLITZ: u32 = 1 << 1;
/// Kinds of packets whose hashed fields can be chosen (`ena_admin_flow_hash_proto`), and what is hashed of each: both
/// addresses (bits 2 and 3) and ports (4 and 5), or the Ethernet addresses (0 and 1).
const INPUTS: [u16; 8] = [0x3c, 0x3c, 0x3c, 0x3c, 0x0c, 0x0c, 0x0c, 0x03];
const KINDS: usize = 16;
const INPUT_BYTES: usize = 4 * KINDS * 4;

/// Spreads flows over the receive queues with these numbers, all of which exist; `scratch` has [`SCRATCH`] bytes. Whether
/// the device spreads them.
pub fn spread(
    admin: &mut AdminQueue,
    mmio: &Mmio,
    device: &Attributes,
    scratch: &mut DmaSlice,
    queues: &[u16],
) -> Result<bool, AdminError> {
    if !device.has(INDIRECTION) || queues.is_empty() {
        return Ok(false);
    }
    let sizes = features::get(admin, mmio, INDIRECTION, 0)?[2];
    if !((sizes & 0xffff)..=(sizes >> 16)).contains(&TABLE_LOG) {
        return Ok(false);
    }
    for (entry, queue) in (0..1usize << TABLE_LOG).zip(queues.iter().cycle()) {
        scratch.store32(entry, u32::from(*queue));
    }
    let set = features::command(Opcode::SetFeature, INDIRECTION, 0)
        .buffer(scratch, 4 << TABLE_LOG)
        .word(VALUE + 1, TABLE_LOG)
        // The table is in the buffer, not in the command.
        .word(VALUE + 2, u32::MAX);
    admin.execute(mmio, set)?;
    // Devices that let neither key nor input be chosen have their own.
    for result in [set_key(admin, mmio, device, scratch), set_input(admin, mmio, device, scratch)] {
        match result {
            Ok(()) | Err(AdminError::Refused { .. }) => {}
            Err(cause) => return Err(cause),
        }
    }
    Ok(true)
}

fn set_key(
    admin: &mut AdminQueue,
    mmio: &Mmio,
    device: &Attributes,
    scratch: &mut DmaSlice,
) -> Result<(), AdminError> {
    if !device.has(HASH_FUNCTION) || features::get(admin, mmio, HASH_FUNCTION, 0)?[2] & TOEPLITZ == 0 {
        return Ok(());
    }
    scratch.store32(0, KEY_WORDS as u32);
    scratch.store32(1, 0);
    for word in 0..KEY_WORDS {
        // Nobody outside shall know which flows meet.
        scratch.store32(2 + word, RandomState::new().build_hasher().finish() as u32);
    }
    let set = features::command(Opcode::SetFeature, HASH_FUNCTION, 0)
        .buffer(scratch, 4 * (2 + KEY_WORDS))
        .word(VALUE + 1, TOEPLITZ)
        .word(VALUE + 2, u32::MAX);
    admin.execute(mmio, set).map(|_| ())
}

fn set_input(
    admin: &mut AdminQueue,
    mmio: &Mmio,
    device: &Attributes,
    scratch: &mut DmaSlice,
) -> Result<(), AdminError> {
    if !device.has(HASH_INPUT) {
        return Ok(());
    }
    let get = features::command(Opcode::GetFeature, HASH_INPUT, 0).buffer(scratch, INPUT_BYTES);
    admin.execute(mmio, get)?;
    for (kind, wanted) in INPUTS.iter().enumerate() {
        if scratch.load16(2 * kind) & wanted != *wanted {
            return Ok(());
        }
        scratch.store32(KINDS + kind, u32::from(*wanted));
    }
    let sort = 0b110;
    let set = features::command(Opcode::SetFeature, HASH_INPUT, 0)
        .buffer(scratch, INPUT_BYTES)
        .word(VALUE, sort << 16);
    admin.execute(mmio, set).map(|_| ())
}
