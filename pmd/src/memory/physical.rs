//! Memory for devices without an IOMMU: huge pages that follow one another in the machine's memory, and where they lie there.
//!
//! ```text
//!   memfd      [ 0 ][ 1 ][ 2 ][ 3 ][ 4 ]         huge pages as the kernel gives them
//!   physical   2 0 . 4 1 3 …                      where they are: 4 1 3 follow one another
//!   mapped     [ 4 ][ 1 ][ 3 ]                    in that order; the others are given back
//! ```

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::ptr::{self, NonNull};

use rustix::fs::{FallocateFlags, MemfdFlags, fallocate};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::device::DeviceError;

/// Bytes of a huge page.
pub(crate) const HUGE_PAGE: usize = 2 << 20;
/// `/proc/PID/pagemap` (Documentation/admin-guide/mm/pagemap.rst): the page is present; its frame number.
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;
/// Huge pages that are looked at for each one that is wanted, at most: others want some, too.
const GREED: usize = 32;
/// How many there are to look at.
const FREE: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// What is wrong with pages as memory of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfit {
    /// Not in memory.
    Absent,
    /// The kernel does not say where they are.
    Hidden,
    /// They do not follow one another.
    Scattered,
}

impl Unfit {
    fn error(self, len: usize) -> DeviceError {
        match self {
            Self::Absent => DeviceError::Failed(format!("{len} bytes of DMA memory are not in memory; see dmesg")),
            Self::Hidden => DeviceError::NotReady(
                "the kernel hides where memory is (/proc/self/pagemap), which a device without an IOMMU has to know; run the \
                 daemon as root, with the capability CAP_SYS_ADMIN"
                    .to_owned(),
            ),
            Self::Scattered => DeviceError::Failed(format!(
                "{len} bytes of DMA memory do not lie in one piece, which a device without an IOMMU needs"
            )),
        }
    }
}

/// Where the `len` bytes at `ptr` lie in the machine's memory: all of them in one piece.
pub(crate) fn address(ptr: *const u8, len: usize) -> Result<u64, DeviceError> {
    let page = rustix::param::page_size();
    let entries = pagemap(ptr, len.div_ceil(page), page).map_err(|cause| unreadable(&cause))?;
    run_of(&entries).map(|frame| frame * page as u64).map_err(|unfit| unfit.error(len))
}

fn unreadable(cause: &io::Error) -> DeviceError {
    DeviceError::NotReady(format!(
        "cannot read /proc/self/pagemap, which says where memory is: {cause}; let the daemon see it"
    ))
}

/// Entries of `count` pages that are `step` bytes apart, from `ptr` on.
fn pagemap(ptr: *const u8, count: usize, step: usize) -> io::Result<Vec<u64>> {
    let file = File::open("/proc/self/pagemap")?;
    let page = rustix::param::page_size();
    let entry = |n: usize| {
        let mut bytes = [0; 8];
        let at = (ptr as usize + n * step) / page * bytes.len();
        file.read_exact_at(&mut bytes, at as u64)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    (0..count).map(entry).collect()
}

fn frame(entry: u64) -> Result<u64, Unfit> {
    match (entry & PRESENT, entry & FRAME) {
        (0, _) => Err(Unfit::Absent),
        // Frame 0 is never an ordinary page.
        (_, 0) => Err(Unfit::Hidden),
        (_, frame) => Ok(frame),
    }
}

/// The first frame of pages whose frames follow one another.
fn run_of(entries: &[u64]) -> Result<u64, Unfit> {
    let first = frame(*entries.first().ok_or(Unfit::Absent)?)?;
    for (at, entry) in entries.iter().enumerate() {
        if frame(*entry)? != first + at as u64 {
            return Err(Unfit::Scattered);
        }
    }
    Ok(first)
}

/// Of pages at these addresses, the numbers of `wanted` that follow one another at distances of `step`, in that order.
fn row(addresses: &[u64], wanted: usize, step: u64) -> Option<Vec<usize>> {
    let mut order: Vec<usize> = (0..addresses.len()).collect();
    order.sort_by_key(|page| addresses.get(*page));
    order
        .windows(wanted)
        .find(|row| {
            row.windows(2).all(|pair| {
                let at =
                    |n: usize| pair.get(n).and_then(|page| addresses.get(*page)).copied().unwrap_or_default();
                at(1).wrapping_sub(at(0)) == step
            })
        })
        .map(<[usize]>::to_vec)
}

/// Memory of a device without an IOMMU, mapped here.
pub(crate) struct Pages {
    pub(crate) ptr: NonNull<u8>,
    pub(crate) len: usize,
    pub(crate) memfd: OwnedFd,
}

impl Pages {
    /// At least `len` bytes on huge pages that follow one another in the machine's memory.
    pub(crate) fn new(len: usize, name: &str) -> Result<Self, DeviceError> {
        let wanted = len.div_ceil(HUGE_PAGE).max(1);
        let (mut tried, mut looked_at) = (wanted, 0);
        loop {
            let Ok(all) = Reserve::new(tried, name) else {
                // Not so many: all that there are, if that is more than before.
                let free = std::fs::read_to_string(FREE).ok().and_then(|text| text.trim().parse().ok());
                match free.filter(|free| (looked_at + 1..tried).contains(free)) {
                    Some(free) if looked_at > 0 => tried = free,
                    _ if looked_at > 0 => return Err(too_scattered(wanted, looked_at)),
                    _ => return Err(too_few(wanted)),
                }
                continue;
            };
            let entries =
                pagemap(all.mapping.ptr.as_ptr(), tried, HUGE_PAGE).map_err(|cause| unreadable(&cause))?;
            let frames: Result<Vec<u64>, Unfit> = entries.into_iter().map(frame).collect();
            let frames = frames.map_err(|unfit| unfit.error(len))?;
            let step = (HUGE_PAGE / rustix::param::page_size()) as u64;
            if let Some(row) = row(&frames, wanted, step) {
                return all.keep(&row).map_err(|cause| {
                    DeviceError::Failed(format!(
                        "cannot map {wanted} huge pages in a row: {cause}; see dmesg"
                    ))
                });
            }
            if tried >= GREED * wanted {
                return Err(too_scattered(wanted, tried));
            }
            (looked_at, tried) = (tried, tried * 2);
        }
    }
}

fn too_few(wanted: usize) -> DeviceError {
    DeviceError::NotReady(format!(
        "without an IOMMU the device needs {wanted} free huge pages of 2 MiB; reserve some: echo 64 > \
         /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages, or hugepages=64 on the kernel command line"
    ))
}

fn too_scattered(wanted: usize, looked_at: usize) -> DeviceError {
    DeviceError::NotReady(format!(
        "without an IOMMU the device needs {wanted} huge pages in a row, and of the {looked_at} that are free not so many \
         follow one another; reserve more, and before memory is in pieces: hugepages=64 on the kernel command line"
    ))
}

/// A mapping of ours, which goes when this is dropped.
struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// # Safety
    /// The `len` bytes at `ptr` must be a mapping that nobody else gives up and to which nothing points.
    unsafe fn own(ptr: *mut c_void, len: usize) -> io::Result<Self> {
        let ptr = NonNull::new(ptr.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { ptr, len })
    }

    /// Gives up the first `before` bytes and what lies behind the `len` bytes after them.
    fn shrink(&mut self, before: usize, len: usize) -> io::Result<()> {
        // SAFETY: both parts are inside the mapping, and `self` ends where they begin.
        unsafe {
            if self.len > before + len {
                rustix::mm::munmap(self.ptr.add(before + len).as_ptr().cast(), self.len - before - len)?;
                self.len = before + len;
            }
            if before > 0 {
                rustix::mm::munmap(self.ptr.as_ptr().cast(), before)?;
                (self.ptr, self.len) = (self.ptr.add(before), len);
            }
        }
        Ok(())
    }

    /// Hands it on: whoever takes it gives it up.
    fn into_parts(self) -> (NonNull<u8>, usize) {
        let mapping = ManuallyDrop::new(self);
        (mapping.ptr, mapping.len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: as `own` was promised.
        if let Err(cause) = unsafe { rustix::mm::munmap(self.ptr.as_ptr().cast(), self.len) } {
            tracing::error!(%cause, "cannot unmap huge pages");
        }
    }
}

/// Huge pages in the order of their file.
struct Reserve {
    mapping: Mapping,
    pages: usize,
    memfd: OwnedFd,
}

impl Reserve {
    fn new(pages: usize, name: &str) -> io::Result<Self> {
        let len = pages.checked_mul(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
        let memfd =
            rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB)?;
        rustix::fs::ftruncate(&memfd, len as u64)?;
        Self::of(memfd, pages)
    }

    /// All pages of a file, brought in.
    fn of(memfd: OwnedFd, pages: usize) -> io::Result<Self> {
        let (len, flags) = (pages * HUGE_PAGE, MapFlags::SHARED | MapFlags::POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice, which is this value's. Without free huge pages it fails.
        let mapping = unsafe {
            Mapping::own(rustix::mm::mmap(ptr::null_mut(), len, READ_WRITE, flags, &memfd, 0)?, len)
        }?;
        Ok(Self { mapping, pages, memfd })
    }

    /// Maps the pages `row` in this order in a row, and gives the others back.
    fn keep(self, row: &[usize]) -> io::Result<Pages> {
        let len = row.len() * HUGE_PAGE;
        // Room with a boundary of a huge page in it.
        // SAFETY: a new mapping at an address of the kernel's choice, of which nothing is ever touched.
        let mut kept = unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            let room = len + HUGE_PAGE;
            Mapping::own(rustix::mm::mmap_anonymous(ptr::null_mut(), room, ProtFlags::empty(), flags)?, room)
        }?;
        let room = kept.ptr.as_ptr() as usize;
        kept.shrink(room.next_multiple_of(HUGE_PAGE) - room, len)?;
        let start: *mut c_void = kept.ptr.as_ptr().cast();
        for (at, page) in row.iter().enumerate() {
            // SAFETY: replaces a part of the room, which is this function's own.
            unsafe {
                let at = start.byte_add(at * HUGE_PAGE);
                let flags = MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE;
                rustix::mm::mmap(at, HUGE_PAGE, READ_WRITE, flags, &self.memfd, (page * HUGE_PAGE) as u64)?;
            }
        }
        // Frames of others do not belong in a core dump.
        // SAFETY: the mapping made above; this advice keeps its contents.
        let _ = unsafe { rustix::mm::madvise(start, len, Advice::LinuxDontDump) };
        for page in (0..self.pages).filter(|page| !row.contains(page)) {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&self.memfd, hole, (page * HUGE_PAGE) as u64, HUGE_PAGE as u64)?;
        }
        let memfd = self.memfd.try_clone()?;
        let (ptr, len) = kept.into_parts();
        Ok(Pages { ptr, len, memfd })
    }
}

const READ_WRITE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(frames: &[u64]) -> Vec<u64> {
        frames.iter().map(|frame| PRESENT | 1 << 55 | frame).collect()
    }

    #[test]
    fn pages_in_a_row_have_an_address() {
        assert_eq!(run_of(&entries(&[0x1200, 0x1201, 0x1202])), Ok(0x1200));
        assert_eq!(run_of(&entries(&[0x1200, 0x1202])), Err(Unfit::Scattered));
        assert_eq!(run_of(&entries(&[0x1200, 0x11ff])), Err(Unfit::Scattered));
        assert_eq!(run_of(&[]), Err(Unfit::Absent));
    }

    #[test]
    fn hidden_and_absent_pages_are_told_apart() {
        // What a process without CAP_SYS_ADMIN reads.
        assert_eq!(run_of(&[PRESENT]), Err(Unfit::Hidden));
        assert!(Unfit::Hidden.error(4096).to_string().contains("CAP_SYS_ADMIN"));
        assert_eq!(run_of(&[0x1200]), Err(Unfit::Absent));
    }

    #[test]
    fn pages_are_put_into_the_order_of_the_machine() {
        let step = 0x200;
        assert_eq!(
            row(&[0x600, 0x400, 0x200], 3, step),
            Some(vec![2, 1, 0]),
            "descending, as the kernel often gives them"
        );
        assert_eq!(
            row(&[0x2000, 0x400, 0x1000, 0x600, 0x200], 3, step),
            Some(vec![4, 1, 3]),
            "strangers in between"
        );
        assert_eq!(row(&[0x200, 0x600, 0xa00], 2, step), None);
        assert_eq!(row(&[0x400], 1, step), Some(vec![0]));
        assert_eq!(row(&[0x400], 2, step), None);
    }

    #[test]
    fn what_is_missing_is_said_with_its_remedy() {
        assert!(
            too_few(3).to_string().contains("3 free huge pages")
                && too_few(3).to_string().contains("nr_hugepages")
        );
        assert!(too_scattered(3, 9).to_string().contains("hugepages=64 on the kernel command line"));
    }

    /// Of a file of zeros, mappings can be made, but pages cannot be given back.
    #[test]
    fn a_start_that_fails_half_way_leaves_no_mapping() {
        let zeros =
            || -> OwnedFd { File::options().read(true).write(true).open("/dev/zero").unwrap().into() };
        let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("/dev/zero").count();
        let before = mapped();
        let all = Reserve::of(zeros(), 3).unwrap();
        assert_eq!(mapped(), before + 1);
        assert!(all.keep(&[2, 0]).is_err());
        assert_eq!(mapped(), before);
        let pages = Reserve::of(zeros(), 2).unwrap().keep(&[1, 0]).unwrap();
        assert_eq!((pages.len, pages.ptr.as_ptr() as usize % HUGE_PAGE), (2 * HUGE_PAGE, 0));
        // SAFETY: the test's own, which nothing points to.
        drop(unsafe { Mapping::own(pages.ptr.as_ptr().cast(), pages.len) });
        assert_eq!(mapped(), before);
    }

    /// Needs no huge page: the mapping's own pages, which are ordinary ones, one at a time.
    #[test]
    fn the_kernel_says_where_a_page_is_or_that_it_does_not() {
        let page = rustix::param::page_size();
        let memory = vec![7u8; 2 * page];
        let start = memory.as_ptr().wrapping_add(page - memory.as_ptr() as usize % page);
        match address(start, page) {
            Ok(address) => assert!(address != 0 && address.is_multiple_of(page as u64)),
            Err(cause) => assert!(cause.to_string().contains("CAP_SYS_ADMIN"), "{cause}"),
        }
    }
}
