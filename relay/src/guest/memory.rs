//! Guest memory: the regions that a front end shares, mapped here, and the look-up of guest addresses.
//!
//! ```text
//!   guest physical   [ region 0        )      [ region 1   )
//!   front end's own  [ user address    )      [ …          )      rings are named by user address,
//!   ours             [ mapping         )      [ …          )      buffers by guest address
//! ```
//!
//! A [`GuestMemory`] never changes. Adding or removing a region makes a new one, which shares the mappings that stay;
//! a mapping goes when the last ring that holds it has gone, so unmapping too early cannot be written down.

use std::any::Any;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;

use pmd::memory::sigbus::Guard;
use thiserror::Error;
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

/// Regions of one guest, at most. QEMU uses up to 512 slots, of which memory devices get 509.
pub const MAX_REGIONS: usize = 509;

/// Bytes of memory of one guest, at most: 1 TiB. With 64 relays at this limit half of the address space is left.
pub const MAX_MEMORY: u64 = 1 << 40;

/// Why a region was refused.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// Nothing to map.
    #[error("memory region at {0:#x} has size 0")]
    Empty(u64),
    /// Address arithmetic would overflow.
    #[error("memory region at {gpa:#x} of {size:#x} bytes reaches over the end of the address space")]
    Overflow {
        /// Guest physical address.
        gpa: u64,
        /// Size in bytes.
        size: u64,
    },
    /// Two regions share guest addresses.
    #[error("memory region at {0:#x} overlaps another")]
    Overlap(u64),
    /// More than [`MAX_REGIONS`].
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// More than [`MAX_MEMORY`].
    #[error("more than {} GiB of memory", MAX_MEMORY >> 30)]
    TooMuch,
    /// Not made of whole pages of its file.
    #[error(
        "memory region at {gpa:#x} does not begin and end with pages of {page} bytes, which its file has"
    )]
    Pages {
        /// Guest physical address.
        gpa: u64,
        /// Page size of the file in bytes.
        page: u64,
    },
    /// There is no region like that to remove.
    #[error("no memory region at {0:#x} of that size")]
    Unknown(u64),
    /// The file is no shared memory, where a page could be missing for reasons of its own (a disk, a network).
    #[error("guest memory must be a memfd, tmpfs or hugetlbfs file (QEMU: memory-backend-memfd,share=on)")]
    NotSharedMemory,
    /// The kernel refused to map it.
    #[error("cannot map memory region at {gpa:#x}: {cause}")]
    Map {
        /// Guest physical address.
        gpa: u64,
        /// What the kernel or the mapping code said.
        cause: String,
    },
}

/// A region as the front end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionDescription {
    /// Guest physical address.
    pub gpa: u64,
    /// Size in bytes.
    pub size: u64,
    /// Address of the region in the front end's own address space.
    pub user: u64,
    /// Where the region begins in its file, in bytes.
    pub offset: u64,
}

/// One mapped region.
#[derive(Clone, Debug)]
struct Region {
    description: RegionDescription,
    mapping: Arc<Mapping>,
}

#[derive(Debug)]
struct Mapping {
    // Before the region: the handler must not lay pages where something else may be mapped by then.
    guard: Guard,
    region: MmapRegion<()>,
}

impl Region {
    fn map(description: RegionDescription, file: File) -> Result<Self, MemoryError> {
        let RegionDescription { gpa, size, user, offset } = description;
        if size == 0 {
            return Err(MemoryError::Empty(gpa));
        }
        let fits = |start: u64| start.checked_add(size).is_some();
        if !fits(gpa) || !fits(user) || !fits(offset) || size > isize::MAX as u64 {
            return Err(MemoryError::Overflow { gpa, size });
        }
        let map_error = |cause: &dyn std::fmt::Display| MemoryError::Map { gpa, cause: cause.to_string() };
        let length = file.metadata().map_err(|cause| map_error(&cause))?.len();
        if offset + size > length {
            return Err(map_error(&format!("its file has {length} bytes only")));
        }
        let system = rustix::fs::fstatfs(&file).map_err(|cause| map_error(&cause))?;
        if system.f_type != libc::TMPFS_MAGIC && system.f_type != libc::HUGETLBFS_MAGIC {
            return Err(MemoryError::NotSharedMemory);
        }
        // Huge pages are mapped, replaced and unmapped as a whole or not at all. hugetlbfs reports their size here.
        let page = system.f_bsize as u64;
        if system.f_type == libc::HUGETLBFS_MAGIC
            && (!size.is_multiple_of(page) || !offset.is_multiple_of(page))
        {
            return Err(MemoryError::Pages { gpa, page });
        }
        let fd = file.as_raw_fd();
        let region = MmapRegionBuilder::new(size as usize)
            .with_file_offset(FileOffset::new(file, offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()
            .map_err(|cause| map_error(&cause))?;
        tracing::trace!(fd, gpa, size, "guest memory region mapped");
        // A core dump of the daemon is no place for the memory of VMs.
        // SAFETY: advice about a mapping that is ours, over its whole length; its contents stay as they are.
        unsafe { libc::madvise(region.as_ptr().cast(), size as usize, libc::MADV_DONTDUMP) };
        // SAFETY: the region goes after its guard, and guest memory is only copied.
        let guard = unsafe { Guard::new(region.as_ptr() as usize, size as usize) };
        let guard = guard.ok_or(MemoryError::TooMany)?;
        Ok(Self { description, mapping: Arc::new(Mapping { guard, region }) })
    }

    fn host(&self) -> *mut u8 {
        self.mapping.region.as_ptr()
    }
}

/// All regions of one guest, in the order of their guest addresses.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    /// Maps a whole table.
    pub fn map(table: impl IntoIterator<Item = (RegionDescription, File)>) -> Result<Self, MemoryError> {
        table
            .into_iter()
            .try_fold(Self::default(), |memory, (description, file)| memory.with(description, file))
    }

    /// This memory and one region more.
    pub fn with(&self, description: RegionDescription, file: File) -> Result<Self, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let total: u64 = self.regions.iter().map(|region| region.description.size).sum();
        if total.checked_add(description.size).is_none_or(|total| total > MAX_MEMORY) {
            return Err(MemoryError::TooMuch);
        }
        let region = Region::map(description, file)?;
        let end = |d: &RegionDescription| d.gpa + d.size;
        let overlaps = |other: &Region| {
            description.gpa < end(&other.description) && other.description.gpa < end(&description)
        };
        if self.regions.iter().any(overlaps) {
            return Err(MemoryError::Overlap(description.gpa));
        }
        let mut regions = self.regions.clone();
        let at = regions.partition_point(|other| other.description.gpa < description.gpa);
        regions.insert(at, region);
        Ok(Self { regions })
    }

    /// This memory without the region that has the guest address, user address and size of `description`.
    pub fn without(&self, description: RegionDescription) -> Result<Self, MemoryError> {
        let same = |region: &Region| {
            let d = region.description;
            (d.gpa, d.user, d.size) == (description.gpa, description.user, description.size)
        };
        let at = self.regions.iter().position(same).ok_or(MemoryError::Unknown(description.gpa))?;
        let mut regions = self.regions.clone();
        regions.remove(at);
        Ok(Self { regions })
    }

    /// Number of regions.
    pub fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Guest address of the first byte behind all regions.
    pub fn end(&self) -> u64 {
        self.regions.last().map_or(0, |region| region.description.gpa + region.description.size)
    }

    /// Whether the front end took away pages that we touched since (it truncated the file).
    pub fn is_poisoned(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.guard.is_poisoned())
    }

    /// All regions as a device may be let into them: where the whole pages of each are mapped, their bytes, and what keeps them
    /// there. The same mapping has the same keeper in every memory that it is part of.
    pub(crate) fn pages(&self) -> impl Iterator<Item = (NonNull<u8>, usize, Arc<dyn Any + Send + Sync>)> {
        let page = rustix::param::page_size();
        self.regions.iter().filter_map(move |region| {
            // The rest of a page that is cut belongs to somebody else, perhaps.
            let len = region.description.size as usize / page * page;
            let keeper = Arc::clone(&region.mapping) as Arc<dyn Any + Send + Sync>;
            Some((NonNull::new(region.host()).filter(|_| len > 0)?, len, keeper))
        })
    }

    /// Where `len` bytes at a user address of the front end are; they must lie within one region.
    pub fn at_user_address(&self, user: u64, len: u64) -> Option<Place> {
        self.regions.iter().find_map(|region| {
            let d = region.description;
            let offset = user.checked_sub(d.user)?;
            let inside = offset.checked_add(len)? <= d.size;
            // SAFETY: `offset + len` is within the mapping, which is `size` bytes long.
            let host =
                inside.then(|| unsafe { NonNull::new_unchecked(region.host().add(offset as usize)) })?;
            Some(Place { host, gpa: d.gpa + offset })
        })
    }

    /// Where the bytes at a user address of the front end are, and how many of the `len` from there lie in the same region.
    pub(super) fn begin_of_user_range(&self, user: u64, len: u64) -> Option<(Place, u64)> {
        self.regions.iter().find_map(|region| {
            let d = region.description;
            let left = d.size.checked_sub(user.checked_sub(d.user)?).filter(|left| *left > 0)?;
            let len = len.min(left);
            Some((self.at_user_address(user, len)?, len))
        })
    }

    /// The file that guest address `gpa` is in, and where in it.
    pub(super) fn file_at(&self, gpa: u64) -> Option<(&File, u64)> {
        self.regions.iter().find_map(|region| {
            let d = region.description;
            let offset = gpa.checked_sub(d.gpa).filter(|offset| *offset < d.size)?;
            let file = region.mapping.region.file_offset()?;
            Some((file.file(), d.offset + offset))
        })
    }

    /// All regions: guest address, size in bytes, where they are mapped; in the order of their addresses.
    pub(super) fn regions(&self) -> impl Iterator<Item = (u64, u64, NonNull<u8>)> {
        self.regions.iter().filter_map(|region| {
            let d = region.description;
            Some((d.gpa, d.size, NonNull::new(region.host())?))
        })
    }
}

/// A place in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where it is mapped here.
    pub host: NonNull<u8>,
    /// Its guest physical address.
    pub gpa: u64,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    pub(crate) fn memfd(size: u64) -> File {
        let fd: OwnedFd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, size).unwrap();
        File::from(fd)
    }

    pub(crate) fn region(gpa: u64, size: u64) -> RegionDescription {
        RegionDescription { gpa, size, user: gpa.wrapping_add(0x7000_0000_0000), offset: 0 }
    }

    pub(crate) fn two() -> GuestMemory {
        GuestMemory::map([
            (region(0x10_0000, 0x2000), memfd(0x2000)),
            (region(0x10_2000, 0x1000), memfd(0x1000)),
        ])
        .unwrap()
    }

    #[test]
    fn rings_must_lie_within_one_region() {
        let memory = two();
        let user = 0x7000_0000_0000 + 0x10_0000;
        assert!(memory.at_user_address(user, 0x2000).is_some());
        assert!(memory.at_user_address(user, 0x2001).is_none());
        assert!(memory.at_user_address(user + 0x1fff, u64::MAX).is_none());
    }

    #[test]
    fn impossible_regions_are_refused() {
        let bad = |d: RegionDescription| GuestMemory::map([(d, memfd(0x1000))]).unwrap_err();
        assert!(matches!(bad(region(0, 0)), MemoryError::Empty(_)));
        assert!(matches!(bad(region(u64::MAX - 0x1000, 0x2000)), MemoryError::Overflow { .. }));
        assert!(matches!(
            bad(RegionDescription { offset: u64::MAX, ..region(0, 0x1000) }),
            MemoryError::Overflow { .. }
        ));
        assert!(matches!(bad(RegionDescription { offset: 1, ..region(0, 0x800) }), MemoryError::Map { .. }));
        assert!(matches!(bad(region(0, 0x2000)), MemoryError::Map { .. }), "longer than its file");
        assert!(matches!(bad(region(0, MAX_MEMORY + 1)), MemoryError::TooMuch));
        assert!(matches!(two().with(region(1 << 30, MAX_MEMORY), memfd(1)), Err(MemoryError::TooMuch)));
        assert!(matches!(
            two().with(region(0x10_1000, 0x2000), memfd(0x2000)).unwrap_err(),
            MemoryError::Overlap(_)
        ));
        let disk = File::open("/proc/self/exe").unwrap();
        assert!(matches!(
            GuestMemory::map([(region(0, 0x1000), disk)]).unwrap_err(),
            MemoryError::NotSharedMemory
        ));
    }

    #[test]
    fn regions_of_huge_pages_are_whole_ones() {
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
        // Making the file takes no huge page; a kernel without them has nothing to test.
        let Ok(fd) = rustix::fs::memfd_create("guest", flags) else { return };
        rustix::fs::ftruncate(&fd, 1 << 30).unwrap();
        for (size, offset) in [(0x1000, 0), (1 << 30, 0x1000), ((1 << 21) + 0x1000, 0)] {
            let description = RegionDescription { size, offset, ..region(0, 0) };
            let file = File::from(fd.try_clone().unwrap());
            let error = GuestMemory::map([(description, file)]).unwrap_err();
            assert!(matches!(error, MemoryError::Pages { .. } | MemoryError::Map { .. }), "{error}");
        }
    }

    #[test]
    fn a_truncated_memory_file_poisons_its_guest_and_nobody_dies() {
        let file = memfd(0x4000);
        let keep = file.try_clone().unwrap();
        let description = RegionDescription { gpa: 0, size: 0x4000, user: 0x10000, offset: 0 };
        let memory = GuestMemory::map([(description, file)]).unwrap();
        let host = memory.at_user_address(0x12000, 8).unwrap().host;
        // SAFETY: `memory` holds the mapping.
        unsafe { host.as_ptr().write_volatile(7) };
        assert!(!memory.is_poisoned());
        keep.set_len(0).unwrap();
        // SAFETY: as above; the missing page is what the handler is for.
        let value = unsafe { host.as_ptr().read_volatile() };
        assert_eq!(value, 0);
        assert!(memory.is_poisoned());
    }
}
