//! From what a descriptor says to memory that is mapped: the part of a walk that both ring layouts share.

use std::ptr::NonNull;

use pmd::frame::BURST_SEGMENTS;

use super::chain::{Access, DESCRIPTOR_SIZE, Stop};
use super::config::RingError;
use super::queue::Piece;
use crate::counters::DropReason;
use crate::guest::memory::Place;
use crate::guest::space::{AddressSpace, Translator};

/// Descriptors that one burst looks at before the next lane has its turn; the chain that reaches it is walked to its end.
///
/// Drivers that mean their chains need 32 for a burst, or 64 (a header of its own), or 80 for four frames of 64 KiB in
/// pages, so this is no limit to them. With one chain more of [`BURST_SEGMENTS`] it takes as long as copying 32 frames of
/// 1514 bytes (`hostile_share`), which is what a neighbour at full load costs.
pub(super) const BURST_DESCRIPTORS: u32 = BURST_SEGMENTS as u32 / 2;

/// Pieces and descriptors that one burst looks at, at most: a chain of [`BURST_SEGMENTS`], in a table of as many, that begins
/// just before [`BURST_DESCRIPTORS`]. Only where a front end has cut memory into crumbs is there more, a byte each perhaps.
const MOST_VISITS: u32 = BURST_DESCRIPTORS + 2 * BURST_SEGMENTS as u32;

/// What a descriptor says of its buffer, in a local.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
}

impl Buffer {
    /// Visits the buffer, cut where mappings end; an empty one is not visited. Each cut counts in `visited`, as a descriptor
    /// does.
    #[inline]
    pub fn visit(
        self,
        memory: &mut Translator,
        visited: &mut u32,
        access: Access,
        visit: &mut impl FnMut(Piece) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if !access.allows(self.flags) {
            return Err(DropReason::WrongDirection.into());
        }
        let (mut addr, mut left) = (self.addr, self.len);
        while left > 0 {
            let piece = memory.translate(addr, left, access)?;
            let len = piece.segment.len();
            visit(piece)?;
            left -= len;
            if left > 0 {
                *visited = visited.saturating_add(1);
                if *visited > MOST_VISITS {
                    return Err(DropReason::TooManyBuffers.into());
                }
            }
            // Where it overflows nothing is left: a region never reaches over the end of the address space.
            addr = addr.wrapping_add(u64::from(len));
        }
        Ok(())
    }
}

/// Where an area of a ring is: `len` bytes at `address`, as the front end names it.
pub(super) fn area(
    space: &AddressSpace,
    area: &'static str,
    (address, len): (u64, u64),
    alignment: u64,
) -> Result<Place, RingError> {
    if !address.is_multiple_of(alignment) {
        return Err(RingError::Alignment { area, address, alignment });
    }
    let place = space.area(address, len).ok_or(RingError::OutsideMemory { area, address })?;
    // The region's offset in its file may not be aligned even if the user address is.
    if !(place.host.as_ptr() as u64).is_multiple_of(alignment) {
        return Err(RingError::Alignment { area, address, alignment });
    }
    Ok(place)
}

/// How many descriptors an indirect table of `len` bytes has; `None` where these are no whole descriptors.
#[inline]
pub(super) fn table_entries(len: u32) -> Option<usize> {
    let len = len as usize;
    (len > 0 && len.is_multiple_of(DESCRIPTOR_SIZE)).then_some(len / DESCRIPTOR_SIZE)
}

/// Reads entry `index` of the indirect table at address `table`, once: its two halves as they lie in memory.
#[inline]
pub(super) fn table_entry(memory: &mut Translator, table: u64, index: usize) -> Result<(u64, u64), Stop> {
    let address = table.checked_add((index * DESCRIPTOR_SIZE) as u64).ok_or(DropReason::BadAddress)?;
    let entry = memory.translate(address, DESCRIPTOR_SIZE as u32, Access::Read)?.segment;
    // Cut by the end of a mapping, an entry is none.
    let at = NonNull::new(entry.as_ptr()).filter(|_| entry.len() as usize == DESCRIPTOR_SIZE);
    let at = at.ok_or(DropReason::BadAddress)?;
    let halves = at.cast::<u64>();
    if !halves.is_aligned() {
        // SAFETY: 16 mapped bytes, just checked.
        return Ok(unsafe { unaligned_entry(at) });
    }
    // SAFETY: 16 mapped bytes and 8-aligned, both just checked.
    Ok(unsafe { (halves.as_ptr().read_volatile(), halves.as_ptr().add(1).read_volatile()) })
}

/// A table need not be aligned to anything; those of real drivers are.
///
/// # Safety
/// 16 bytes at `at` must be mapped.
#[cold]
unsafe fn unaligned_entry(at: NonNull<u8>) -> (u64, u64) {
    // SAFETY: 16 mapped bytes, as the caller promises; an array of bytes is aligned anywhere.
    let bytes = unsafe { at.cast::<[u8; DESCRIPTOR_SIZE]>().as_ptr().read_volatile() };
    let whole = u128::from_ne_bytes(bytes);
    let (first, second) =
        if cfg!(target_endian = "little") { (whole, whole >> 64) } else { (whole >> 64, whole) };
    (first as u64, second as u64)
}
