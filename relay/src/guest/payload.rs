//! Payloads of messages, as they come from the wire.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::{
    VhostUserInflight, VhostUserMemory, VhostUserMemoryRegion, VhostUserU64, VhostUserVringState,
};
use vm_memory::ByteValued;

use super::connection::Message;
use super::memory::RegionDescription;
use super::session::{RINGS, Refusal};

/// `SET_VRING_KICK` and its like: the ring's index is in the low byte, this bit says that no descriptor came along.
const NO_DESCRIPTOR: u64 = 1 << 8;

/// The payload as a value of fixed size.
pub(super) fn payload<T: ByteValued>(message: &Message) -> Result<T, Refusal> {
    let mut value = T::zeroed();
    let bytes = value.as_mut_slice();
    let from = message.payload.get(..bytes.len()).ok_or(Refusal::Payload("the payload is too short"))?;
    bytes.copy_from_slice(from);
    Ok(value)
}

pub(super) fn number(message: &Message) -> Result<u64, Refusal> {
    Ok(payload::<VhostUserU64>(message)?.value)
}

/// Index and value of a message whose payload is a ring's state.
pub(super) fn ring_state(message: &Message) -> Result<(usize, u32), Refusal> {
    let state: VhostUserVringState = payload(message)?;
    Ok((ring_index(u64::from(state.index))?, state.num))
}

pub(super) fn ring_index(index: u64) -> Result<usize, Refusal> {
    usize::try_from(index).ok().filter(|index| *index < RINGS).ok_or(Refusal::NoSuchRing(index))
}

/// Ring index and descriptor of `SET_VRING_KICK`, `CALL` and `ERR`.
pub(super) fn ring_descriptor(message: &mut Message) -> Result<(usize, Option<OwnedFd>), Refusal> {
    let value = number(message)?;
    let index = ring_index(value & 0xff)?;
    let fd = message.descriptors.pop();
    if value & !(NO_DESCRIPTOR | 0xff) != 0 || (value & NO_DESCRIPTOR == 0) != fd.is_some() {
        return Err(Refusal::Descriptor(format!(
            "value {value:#x} contradicts the descriptor that came along"
        )));
    }
    Ok((index, fd))
}

/// The payload of `GET_INFLIGHT_FD` and `SET_INFLIGHT_FD`.
pub(super) fn inflight(message: &Message) -> Result<VhostUserInflight, Refusal> {
    let inflight: VhostUserInflight = payload(message)?;
    match inflight.num_queues {
        1.. if usize::from(inflight.num_queues) <= RINGS => Ok(inflight),
        rings => Err(Refusal::Inflight(rings)),
    }
}

pub(super) fn describe(region: &VhostUserMemoryRegion) -> RegionDescription {
    RegionDescription {
        gpa: region.guest_phys_addr,
        size: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

pub(super) fn memory_table(bytes: &[u8]) -> Result<Vec<RegionDescription>, Refusal> {
    let (head, rows) =
        bytes.split_at_checked(size_of::<VhostUserMemory>()).ok_or(Refusal::Payload("no table"))?;
    let mut table = VhostUserMemory::default();
    table.as_mut_slice().copy_from_slice(head);
    let (rows, rest) = rows.as_chunks::<{ size_of::<VhostUserMemoryRegion>() }>();
    if !rest.is_empty() || rows.len() != table.num_regions as usize {
        return Err(Refusal::Payload("the memory table has another length than it says"));
    }
    let read = |row: &[u8; size_of::<VhostUserMemoryRegion>()]| {
        let mut region = VhostUserMemoryRegion::default();
        region.as_mut_slice().copy_from_slice(row);
        describe(&region)
    };
    Ok(rows.iter().map(read).collect())
}
