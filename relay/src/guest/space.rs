//! What a ring sees of its guest: the look-up of the addresses that a driver writes into descriptors.
//!
//! ```text
//!   descriptor's address ──▶ window ──▶ our mapping, guest physical address
//! ```
//!
//! An [`AddressSpace`] never changes; rings get a new one when memory does. Each ring looks up through a
//! [`Translator`] of its own, which remembers the window that it found last.

use std::ptr::NonNull;
use std::sync::Arc;

use pmd::Segment;

use super::dirty_log::DirtyLog;
use super::iotlb::{Iotlb, Permission};
use super::iotlb_miss::MissReporter;
use super::memory::{GuestMemory, Place};
use crate::counters::DropReason;
use crate::ring::chain::{Access, Stop};
use crate::ring::queue::Piece;

/// Addresses that are found by one comparison.
#[derive(Clone, Copy, Debug)]
struct Window {
    start: u64,
    size: u64,
    place: Place,
    permission: Permission,
}

/// The addresses of one guest.
#[derive(Debug, Default)]
pub struct AddressSpace {
    /// In the order of their addresses, none overlapping another.
    windows: Box<[Window]>,
    memory: Arc<GuestMemory>,
    /// The translations behind the windows; `None` where descriptors hold guest physical addresses.
    iotlb: Option<Iotlb>,
    log: Option<Arc<DirtyLog>>,
}

// SAFETY: the pointers are addresses of shared mappings that `memory` keeps in place; no thread owns them.
unsafe impl Send for AddressSpace {}
// SAFETY: as above, and nothing in it changes.
unsafe impl Sync for AddressSpace {}

impl AddressSpace {
    /// Descriptors hold guest physical addresses. What is written is marked in `log`.
    pub fn physical(memory: Arc<GuestMemory>, log: Option<Arc<DirtyLog>>) -> Self {
        let window = |(gpa, size, host)| Window {
            start: gpa,
            size,
            place: Place { host, gpa },
            permission: Permission::ReadWrite,
        };
        let windows = memory.regions().map(window).collect();
        Self { windows, memory, iotlb: None, log }
    }

    /// Descriptors hold addresses that `iotlb` translates to the front end's own. What is written is marked in `log`.
    pub fn translated(memory: Arc<GuestMemory>, iotlb: &Iotlb, log: Option<Arc<DirtyLog>>) -> Self {
        // Entries that name a piece of memory once each are cut where regions end, and no more often. Others could make any
        // number of windows: those that are left out are not translated.
        let most = iotlb.len() + memory.len();
        let mut windows = Vec::with_capacity(iotlb.len());
        for (mut start, last, mut user, permission) in iotlb.entries() {
            // An entry may reach over several regions; where there is none, nothing can be used.
            while windows.len() < most
                && let Some((place, size)) =
                    memory.begin_of_user_range(user, (last - start).saturating_add(1))
            {
                windows.push(Window { start, size, place, permission });
                let Some(next) = start.checked_add(size).filter(|next| *next <= last) else { break };
                (start, user) = (next, user + size);
            }
        }
        Self { windows: windows.into(), memory, iotlb: Some(iotlb.clone()), log }
    }

    /// The memory behind it.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Where what is written is to be marked.
    #[inline]
    pub fn log(&self) -> Option<&DirtyLog> {
        self.log.as_deref()
    }

    /// Where a ring's area of `len` bytes is; it must lie in one mapping. A front end names it by its own address, or by
    /// one that is translated, as buffers are.
    pub fn area(&self, address: u64, len: u64) -> Option<Place> {
        if self.iotlb.is_none() {
            return self.memory.at_user_address(address, len);
        }
        // Looked up for every ring whenever a translation goes, so not in a copy of all of them.
        let (_, window) = self.window(address)?;
        if window.permission != Permission::ReadWrite {
            return None;
        }
        let len = u32::try_from(len).ok()?;
        let piece = window.find(address, len, Access::Read).filter(|piece| piece.segment.len() == len)?;
        Some(Place { host: NonNull::new(piece.segment.as_ptr())?, gpa: piece.gpa })
    }

    /// The only window that `address` can be in, and its place among the others.
    fn window(&self, address: u64) -> Option<(usize, &Window)> {
        let at = self.windows.partition_point(|window| window.start <= address).checked_sub(1)?;
        Some((at, self.windows.get(at)?))
    }

    /// Whether `address` is found, and may be used for what is `needed`.
    fn permits(&self, address: u64, needed: Permission) -> bool {
        self.window(address).is_some_and(|(_, window)| {
            address - window.start < window.size && window.permission.allows(needed)
        })
    }

    /// The first of `len` bytes at `address` that has no translation; `None` when all have one, or need none.
    pub fn first_missing(&self, address: u64, len: u64) -> Option<u64> {
        self.iotlb.as_ref()?.first_missing(address, len)
    }
}

/// Address look-up for one ring.
///
/// Holds the address space, so what [`Translator::translate`] returns stays mapped as long as the translator lives.
#[derive(Debug)]
pub struct Translator {
    space: Arc<AddressSpace>,
    last: usize,
    misses: Option<MissReporter>,
}

impl Translator {
    /// A look-up in `space`.
    pub fn new(space: Arc<AddressSpace>) -> Self {
        Self { space, last: 0, misses: None }
    }

    /// Looks into another space from now on.
    pub fn set_space(&mut self, space: Arc<AddressSpace>) {
        (self.space, self.last) = (space, 0);
        if let Some(misses) = &mut self.misses {
            misses.renew(|address, needed| !self.space.permits(address, needed));
        }
    }

    /// What is not found is reported from now on, since it may be found later.
    pub fn report_misses(&mut self, reporter: MissReporter) {
        self.misses = Some(reporter);
    }

    /// The space that it looks into.
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// The beginning of the `len` bytes at `address`, as far as they lie in one mapping: at least one byte for
    /// `len > 0`. [`Stop::Unmapped`] where a translation may still come.
    #[inline]
    pub fn translate(&mut self, address: u64, len: u32, access: Access) -> Result<Piece, Stop> {
        if let Some(found) =
            self.space.windows.get(self.last).and_then(|window| window.find(address, len, access))
        {
            return Ok(found);
        }
        self.search(address, len, access)
    }

    /// The mapping that was found last, as far as it may be used for `access`.
    #[inline]
    pub fn near(&self, access: Access) -> Near {
        match self.space.windows.get(self.last) {
            Some(Window { start, size, place, permission }) if permission.allows(access.permission()) => {
                Near { start: *start, size: *size, host: place.host }
            }
            _ => Near { start: 0, size: 0, host: NonNull::dangling() },
        }
    }

    /// Makes the mapping that `address` is in the one that was found last; nothing where there is none.
    pub fn go_near(&mut self, address: u64) {
        if let Some((at, _)) = self.space.window(address) {
            self.last = at;
        }
    }

    #[cold]
    fn search(&mut self, address: u64, len: u32, access: Access) -> Result<Piece, Stop> {
        if let Some((at, window)) = self.space.window(address)
            && let Some(found) = window.find(address, len, access)
        {
            self.last = at;
            return Ok(found);
        }
        match &mut self.misses {
            None => Err(DropReason::BadAddress.into()),
            Some(misses) => {
                misses.report(address, access.permission());
                Err(Stop::Unmapped)
            }
        }
    }
}

/// One mapping of a guest's memory, for looking up many addresses that are likely to be in it. It is only good for as long
/// as the [`Translator`] that it came from keeps its space.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    start: u64,
    size: u64,
    host: NonNull<u8>,
}

impl Near {
    /// The `len` bytes at `address`; `None` where there are none, or not all are in this mapping.
    #[inline(always)]
    pub fn whole(&self, address: u64, len: u32) -> Option<Segment> {
        let offset = address.wrapping_sub(self.start);
        if len == 0 || offset >= self.size || u64::from(len) > self.size - offset {
            return None;
        }
        // SAFETY: `offset + len <= size`, so these bytes are inside the mapping, which lives as long as the translator, and
        // that outlives what a ring makes of it; no references into it exist.
        Some(unsafe { Segment::new(self.host.add(offset as usize), len) })
    }
}

impl Window {
    #[inline]
    fn find(&self, address: u64, len: u32, access: Access) -> Option<Piece> {
        let offset = address.wrapping_sub(self.start);
        if offset >= self.size || !self.permission.allows(access.permission()) {
            return None;
        }
        let len = u64::from(len).min(self.size - offset) as u32;
        // SAFETY: `offset < size`, so the result is inside the mapping, and so are `len` bytes from there. The mapping
        // lives as long as the translator, which outlives what a ring makes of it; no references into it exist.
        let segment = unsafe { Segment::new(self.host_at(offset), len) };
        Some(Piece { segment, gpa: self.place.gpa + offset })
    }

    /// # Safety
    /// `offset` must be below the window's size.
    #[inline]
    unsafe fn host_at(&self, offset: u64) -> NonNull<u8> {
        // SAFETY: by contract within the mapping, which is `size` bytes long from `place.host`.
        unsafe { self.place.host.add(offset as usize) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::memory::RegionDescription;
    use crate::guest::memory::tests::{region, two};

    fn translator(memory: &Arc<GuestMemory>) -> Translator {
        Translator::new(Arc::new(AddressSpace::physical(Arc::clone(memory), None)))
    }

    fn length(t: &mut Translator, gpa: u64, len: u32) -> Option<u32> {
        t.translate(gpa, len, Access::Read).ok().map(|piece| {
            assert_eq!(piece.gpa, gpa);
            piece.segment.len()
        })
    }

    #[test]
    fn addresses_translate_up_to_the_end_of_their_region_and_no_further() {
        let mut t = translator(&Arc::new(two()));
        assert_eq!(length(&mut t, 0xf_ffff, 2), None, "one byte before the first region");
        assert_eq!(length(&mut t, 0x10_0000, 4), Some(4));
        assert_eq!(length(&mut t, 0x10_1fff, 4), Some(1), "the last byte of a region");
        assert_eq!(length(&mut t, 0x10_2000, 0x2000), Some(0x1000), "the adjacent region is another mapping");
        assert_eq!(length(&mut t, 0x10_3000, 1), None, "one byte behind the last region");
        assert_eq!(length(&mut t, u64::MAX, u32::MAX), None);
        assert_eq!(length(&mut translator(&Arc::default()), 0, 1), None);
    }

    #[test]
    fn a_removed_region_stays_mapped_for_those_who_hold_it() {
        let memory = Arc::new(two());
        let mut old = translator(&memory);
        let smaller = Arc::new(memory.without(region(0x10_2000, 0x1000)).unwrap());
        assert_eq!((memory.len(), smaller.len()), (2, 1));
        drop(memory);
        let piece = old.translate(0x10_2000, 1, Access::Write).unwrap();
        assert_eq!(piece.segment.copy_from(&[1]), 1);
        assert_eq!(length(&mut translator(&smaller), 0x10_2000, 1), None);
        assert!(two().without(region(0x20_0000, 0x1000)).is_err());
    }

    #[test]
    fn entries_that_all_name_the_same_memory_do_not_multiply_its_regions() {
        let mut memory = GuestMemory::default();
        let file = crate::guest::memory::tests::memfd(0x1000);
        let regions = 100;
        for n in 0..regions {
            let crumb = RegionDescription { gpa: n, size: 1, user: n, offset: 0 };
            memory = memory.with(crumb, file.try_clone().unwrap()).unwrap();
        }
        let mut iotlb = Iotlb::default();
        let entries = 200;
        for n in 0..entries {
            iotlb.update(n << 32, regions, 0, Permission::ReadWrite).unwrap();
        }
        let space = AddressSpace::translated(Arc::new(memory), &iotlb, None);
        assert!(space.windows.len() as u64 <= entries + regions, "{}", space.windows.len());
    }
}
