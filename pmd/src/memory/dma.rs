//! DMA memory: memfds mapped here and in an IO address space.
//!
//! It lies in memfds, on huge pages where there are free ones, so that it can be handed to a successor process. Without an
//! IOMMU it must be huge pages, in a row (`physical`).

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::physical::{self, HUGE_PAGE};
use crate::device::DeviceError;
use crate::frame::Segment;

/// What a device may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaAccess {
    /// Read it.
    Read,
    /// Read and write it.
    ReadWrite,
}

/// Something through which a device reaches our memory.
pub trait DmaMap: Send + Sync + fmt::Debug {
    /// Makes `len` bytes at `ptr` reachable, and returns the address at which the device finds them, a multiple of
    /// `align` (a power of two). The pages are brought in and held in memory, which takes long where there are many.
    ///
    /// # Safety
    /// The bytes must stay mapped, and no Rust reference to them may exist, until [`unmap`](DmaMap::unmap).
    unsafe fn map(
        &self,
        ptr: *mut u8,
        len: usize,
        align: usize,
        access: DmaAccess,
    ) -> Result<u64, DeviceError>;

    /// Takes back what [`map`](DmaMap::map) gave.
    fn unmap(&self, iova: u64, len: usize);

    /// Whether nothing translates between the device and the machine's memory, so that the device finds memory at its
    /// physical address and can reach all of it. Only huge pages can be mapped then that follow one another.
    fn is_physical(&self) -> bool {
        false
    }
}

/// The DMA memory that a device gets while it is started, alive until this is dropped: so that none goes with an error half-way,
/// while the device may still write to it.
#[derive(Debug, Default)]
#[must_use]
pub struct Kept(Vec<Arc<DmaMemory>>);

impl Kept {
    /// Cuts `memory` as [`DmaMemory::carve`] does, and keeps it.
    pub fn carve<const N: usize>(
        &mut self,
        memory: DmaMemory,
        sizes: [usize; N],
    ) -> Result<[DmaSlice; N], DeviceError> {
        as_many(self.carve_all(memory, &sizes)?)
    }

    /// As [`carve`](Self::carve), for a number of slices that is not known before.
    pub fn carve_all(&mut self, memory: DmaMemory, sizes: &[usize]) -> Result<Vec<DmaSlice>, DeviceError> {
        let memory = Arc::new(memory);
        self.0.push(Arc::clone(&memory));
        cut(&memory, sizes)
    }
}

/// A piece of zeroed memory that a device reaches. Used through the [`DmaSlice`]s that [`DmaMemory::carve`] cuts.
#[derive(Debug)]
pub struct DmaMemory {
    ptr: NonNull<u8>,
    len: usize,
    iova: u64,
    memfd: OwnedFd,
    huge: bool,
    map: Arc<dyn DmaMap>,
}

// SAFETY: this value only owns the mapping; the bytes are reached through disjoint `DmaSlice`s.
unsafe impl Send for DmaMemory {}
// SAFETY: as above; no method touches the bytes.
unsafe impl Sync for DmaMemory {}

struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
    memfd: OwnedFd,
}

impl DmaMemory {
    /// At least `len` bytes in whole pages, all present, reachable through `map`. `name` is seen in `/proc/PID/maps`.
    pub fn new(map: Arc<dyn DmaMap>, len: usize, name: &str) -> Result<Self, DeviceError> {
        let (mapping, huge) = if map.is_physical() {
            let physical::Pages { ptr, len, memfd } = physical::Pages::new(len, name)?;
            (Mapping { ptr, len, memfd }, true)
        } else {
            translated(len, name)?
        };
        let Mapping { ptr, len, memfd } = mapping;
        let align = if huge { HUGE_PAGE } else { rustix::param::page_size() };
        // SAFETY: the mapping lives until `drop`, which unmaps it there first; nobody has a reference to it.
        match unsafe { map.map(ptr.as_ptr(), len, align, DmaAccess::ReadWrite) } {
            Ok(iova) => Ok(Self { ptr, len, iova, memfd, huge, map }),
            Err(cause) => {
                unmap(ptr, len);
                Err(cause)
            }
        }
    }

    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it lies on huge pages.
    pub fn is_huge(&self) -> bool {
        self.huge
    }

    /// The memfd, for a successor process. Without an IOMMU its pages are in another order than the memory's.
    pub fn memfd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }

    /// Cuts the memory into slices of these sizes, each aligned to 128 bytes; an error where it is too small.
    pub fn carve<const N: usize>(self, sizes: [usize; N]) -> Result<[DmaSlice; N], DeviceError> {
        as_many(cut(&Arc::new(self), &sizes)?)
    }

    /// Bytes that slices of these sizes take together.
    pub fn needed(sizes: &[usize]) -> usize {
        sizes.iter().map(|size| size.next_multiple_of(SLICE_ALIGN)).sum()
    }
}

const SLICE_ALIGN: usize = 128;

fn as_many<const N: usize>(slices: Vec<DmaSlice>) -> Result<[DmaSlice; N], DeviceError> {
    slices
        .try_into()
        .map_err(|_| DeviceError::Failed("DMA memory was cut into another number of slices".to_owned()))
}

/// Slices of these sizes; of each memory only once.
fn cut(memory: &Arc<DmaMemory>, sizes: &[usize]) -> Result<Vec<DmaSlice>, DeviceError> {
    let mut at = 0usize;
    let mut slices = Vec::with_capacity(sizes.len());
    for &len in sizes {
        if at.checked_add(len).is_none_or(|end| end > memory.len) {
            return Err(DeviceError::Failed(format!(
                "{} bytes of DMA memory are too few for {sizes:?}",
                memory.len
            )));
        }
        // SAFETY: the slice is inside the mapping, as was just checked.
        let ptr = unsafe { memory.ptr.add(at) };
        slices.push(DmaSlice { ptr, len, iova: memory.iova + at as u64, _memory: Arc::clone(memory) });
        at = at.saturating_add(len).saturating_add(SLICE_ALIGN - 1) & !(SLICE_ALIGN - 1);
    }
    Ok(slices)
}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        self.map.unmap(self.iova, self.len);
        unmap(self.ptr, self.len);
    }
}

/// Memory for a device behind an IOMMU, and whether it is on huge pages.
fn translated(len: usize, name: &str) -> Result<(Mapping, bool), DeviceError> {
    if let Ok(mapping) = map_memfd(len, name, true) {
        return Ok((mapping, true));
    }
    let mapping = map_memfd(len, name, false).map_err(|cause| {
        DeviceError::Failed(format!(
            "cannot get {} KiB of DMA memory: {cause}; free some memory, or raise the limit of the control group",
            len.div_ceil(1024)
        ))
    })?;
    Ok((mapping, false))
}

fn map_memfd(len: usize, name: &str, huge: bool) -> Result<Mapping, Errno> {
    let page = if huge { HUGE_PAGE } else { rustix::param::page_size() };
    let len = len.checked_next_multiple_of(page).ok_or(Errno::NOMEM)?;
    let mut flags = MemfdFlags::CLOEXEC;
    if huge {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let memfd = rustix::fs::memfd_create(name, flags)?;
    rustix::fs::ftruncate(&memfd, len as u64)?;
    // SAFETY: a new mapping at an address of the kernel's choice. Without free huge pages it fails.
    let ptr = unsafe {
        rustix::mm::mmap(
            ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &memfd,
            0,
        )
    }?;
    let ptr = NonNull::new(ptr.cast::<u8>()).ok_or(Errno::NOMEM)?;
    // SAFETY: the range is the mapping just made; these kinds of advice keep its contents.
    let populated = unsafe { rustix::mm::madvise(ptr.as_ptr().cast(), len, Advice::LinuxPopulateWrite) };
    match populated {
        // Kernels before 5.14 do not know it; there DMA mapping brings the pages in.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(cause) => {
            unmap(ptr, len);
            return Err(cause);
        }
    }
    // Frames of others do not belong in a core dump.
    // SAFETY: as above.
    let _ = unsafe { rustix::mm::madvise(ptr.as_ptr().cast(), len, Advice::LinuxDontDump) };
    Ok(Mapping { ptr, len, memfd })
}

fn unmap(ptr: NonNull<u8>, len: usize) {
    // SAFETY: the caller gives up a mapping of this length, to which nothing points any more.
    if let Err(cause) = unsafe { rustix::mm::munmap(ptr.as_ptr().cast(), len) } {
        tracing::error!(%cause, "cannot unmap DMA memory");
    }
}

/// A part of a [`DmaMemory`] with one owner. The memory lives as long as any of its slices.
///
/// The device may write at any moment, so bytes are only copied, and words only loaded and stored whole.
#[derive(Debug)]
pub struct DmaSlice {
    ptr: NonNull<u8>,
    len: usize,
    iova: u64,
    _memory: Arc<DmaMemory>,
}

// SAFETY: slices of one memory are disjoint, so a slice's owner is the only one of this process at its bytes.
unsafe impl Send for DmaSlice {}

impl DmaSlice {
    /// Bytes.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where the device finds the first byte.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Element number `index` of the slice as an array of `T`.
    #[inline]
    fn element<T>(&self, index: usize) -> Option<NonNull<T>> {
        if index >= self.len / size_of::<T>() {
            debug_assert!(false, "word {index} is outside the slice");
            return None;
        }
        // SAFETY: the element is inside the slice; slices are aligned to 128 bytes.
        Some(unsafe { self.ptr.cast::<T>().add(index) })
    }

    #[inline]
    fn get<T: Copy>(&self, index: usize, outside: T) -> T {
        // SAFETY: aligned and inside; the device stores such words whole.
        self.element(index).map_or(outside, |word| unsafe { word.read_volatile() })
    }

    #[inline]
    fn put<T: Copy>(&mut self, index: usize, value: T) {
        if let Some(word) = self.element(index) {
            // SAFETY: as in `get`.
            unsafe { word.write_volatile(value) };
        }
    }

    /// Loads the little-endian 64-bit word number `index`; 0 past the end.
    #[inline]
    pub fn load(&self, index: usize) -> u64 {
        u64::from_le(self.get(index, 0))
    }

    /// Stores a little-endian 64-bit word; nothing happens past the end.
    #[inline]
    pub fn store(&mut self, index: usize, value: u64) {
        self.put(index, value.to_le());
    }

    /// Loads the little-endian 32-bit word number `index` (at byte 4 × `index`); 0 past the end.
    #[inline]
    pub fn load32(&self, index: usize) -> u32 {
        u32::from_le(self.get(index, 0))
    }

    /// Stores a little-endian 32-bit word; nothing happens past the end.
    #[inline]
    pub fn store32(&mut self, index: usize, value: u32) {
        self.put(index, value.to_le());
    }

    /// Loads the little-endian 16-bit word number `index` (at byte 2 × `index`); 0 past the end.
    #[inline]
    pub fn load16(&self, index: usize) -> u16 {
        u16::from_le(self.get(index, 0))
    }

    /// Stores a little-endian 16-bit word; nothing happens past the end.
    #[inline]
    pub fn store16(&mut self, index: usize, value: u16) {
        self.put(index, value.to_le());
    }

    /// The `len` bytes from `offset`, cut at the end of the slice.
    ///
    /// The segment must not outlive the slice; what keeps two users of one part apart is their owner's bookkeeping.
    #[inline]
    pub(crate) fn segment(&self, offset: usize, len: u32) -> Segment {
        let offset = offset.min(self.len);
        let len = (self.len - offset).min(len as usize) as u32;
        // SAFETY: the range is inside the slice, whose memory stays mapped while its owner lives, and is never
        // referenced.
        unsafe { Segment::new(self.ptr.add(offset), len) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Maps nothing, and remembers what is mapped; "device" addresses are `ptr + OFFSET`.
    #[derive(Debug, Default)]
    pub(crate) struct FakeMap {
        pub(crate) mapped: Mutex<Vec<(u64, usize)>>,
        /// Mappings that the device may only read, of all that were made.
        pub(crate) read_only: AtomicUsize,
    }

    /// What device addresses are off, so that a mix-up of the two kinds shows.
    pub(crate) const OFFSET: u64 = 1 << 52;

    impl DmaMap for FakeMap {
        unsafe fn map(
            &self,
            ptr: *mut u8,
            len: usize,
            align: usize,
            access: DmaAccess,
        ) -> Result<u64, DeviceError> {
            self.read_only.fetch_add(usize::from(access == DmaAccess::Read), Ordering::Relaxed);
            let iova = ptr as u64 + OFFSET;
            assert!(align.is_power_of_two() && len.is_multiple_of(rustix::param::page_size()));
            self.mapped.lock().unwrap().push((iova, len));
            Ok(iova)
        }

        fn unmap(&self, iova: u64, len: usize) {
            let mut mapped = self.mapped.lock().unwrap();
            let at = mapped.iter().position(|entry| *entry == (iova, len)).unwrap();
            mapped.swap_remove(at);
        }
    }

    #[test]
    fn slices_are_disjoint_aligned_and_keep_the_memory() {
        let map = Arc::new(FakeMap::default());
        let memory = DmaMemory::new(Arc::clone(&map) as Arc<dyn DmaMap>, 10_000, "test").unwrap();
        let base = memory.iova;
        let [mut a, b] = memory.carve([100, 9000]).unwrap();
        assert_eq!((a.iova(), b.iova(), a.len(), b.len()), (base, base + 128, 100, 9000));
        a.store(0, 7);
        assert_eq!((a.load(0), b.load(0)), (7, 0));
        drop(a);
        assert_eq!(map.mapped.lock().unwrap().len(), 1);
        drop(b);
        assert!(map.mapped.lock().unwrap().is_empty());
    }

    /// A map without an IOMMU, which says where memory is.
    #[derive(Debug)]
    struct Physical;

    impl DmaMap for Physical {
        unsafe fn map(
            &self,
            ptr: *mut u8,
            len: usize,
            align: usize,
            _: DmaAccess,
        ) -> Result<u64, DeviceError> {
            assert!(
                align == HUGE_PAGE
                    && len.is_multiple_of(HUGE_PAGE)
                    && (ptr as usize).is_multiple_of(HUGE_PAGE)
            );
            physical::address(ptr, len)
        }

        fn unmap(&self, _: u64, _: usize) {}

        fn is_physical(&self) -> bool {
            true
        }
    }

    #[test]
    fn without_an_iommu_memory_is_in_one_piece_or_the_remedy_is_named() {
        match DmaMemory::new(Arc::new(Physical), 2 * HUGE_PAGE + 1, "test") {
            Ok(memory) => {
                assert_eq!((memory.len(), memory.is_huge()), (3 * HUGE_PAGE, true));
                assert!(memory.iova.is_multiple_of(HUGE_PAGE as u64));
            }
            Err(DeviceError::NotReady(text)) => assert!(
                text.contains("hugepages=64 on the kernel command line") || text.contains("CAP_SYS_ADMIN"),
                "{text}"
            ),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn what_is_kept_outlives_its_slices() {
        let (map, mut kept) = (Arc::new(FakeMap::default()), Kept::default());
        let memory = DmaMemory::new(Arc::clone(&map) as Arc<dyn DmaMap>, 10_000, "test").unwrap();
        drop(kept.carve(memory, [100, 9000]).unwrap());
        assert_eq!(map.mapped.lock().unwrap().len(), 1);
        drop(kept);
        assert!(map.mapped.lock().unwrap().is_empty());
    }

    #[test]
    fn too_small_a_memory_is_not_carved() {
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), 4096, "test").unwrap();
        let len = memory.len();
        assert!(memory.carve([128, len]).is_err());
    }

    #[test]
    fn segments_stay_inside() {
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), 4096, "test").unwrap();
        let [slice] = memory.carve([1000]).unwrap();
        assert_eq!(slice.segment(900, 500).len(), 100);
        assert_eq!(slice.segment(5000, 500).len(), 0);
    }
}
