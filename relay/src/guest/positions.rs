//! Ring positions that outlive the process: what a successor needs to go on where a daemon died.
//!
//! A small file in tmpfs, mapped, with a slot for each ring of one relay. The worker writes its position there after each
//! publish: one store, no system call. Who died by SIGKILL has left what it stored last.
//!
//! ```text
//!   header   magic, version, number of slots                                    128 bytes
//!   slot     state: 0 empty, 1 running │ position │ counters │ base             64 bytes, the worker's cache line
//!            which ring it is about                                             64 bytes
//! ```
//!
//! A slot is true at every instruction: its identity is complete before its state becomes 1, the state is 0 before the
//! identity changes, and a position is one 64-bit word. The word holds two positions: the one that the driver has seen
//! for certain, and the one that is being published. They differ only between [`RingPosition::intend`] and
//! [`RingPosition::store`], and then a look at the ring tells which holds.
//!
//! What is read from the file is a number to be checked against the ring, never more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

use super::sigbus;

/// Rings that one file has slots for.
pub const RINGS: usize = 64;

const MAGIC: u64 = u64::from_ne_bytes(*b"vfwdring");
const VERSION: u32 = 1;
const HEADER: usize = 128;
/// Length of the file in bytes: header and slots, in whole pages of 4 KiB.
const LENGTH: usize = (HEADER + RINGS * size_of::<Slot>()).next_multiple_of(4096);

const EMPTY: u64 = 0;
const RUNNING: u64 = 1;

/// One slot, as it is in the file.
#[repr(C, align(64))]
struct Slot {
    state: AtomicU64,
    /// Low half: published for certain. High half: being published.
    position: AtomicU64,
    chains: AtomicU64,
    frames: AtomicU64,
    base: AtomicU64,
    unused: [AtomicU64; 3],
    /// Words of a [`RingIdentity`].
    identity: [AtomicU64; 4],
    reserved: [AtomicU64; 4],
}

const _: () = assert!(size_of::<Slot>() == 128 && HEADER.is_multiple_of(align_of::<Slot>()));

/// Which ring a position is about. A ring that lies elsewhere, or is of another kind, is another ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingIdentity {
    /// Device of the memory file that the ring lies in (`st_dev`).
    pub device: u64,
    /// Inode of that file (`st_ino`).
    pub inode: u64,
    /// Where the descriptors begin in that file, in bytes.
    pub offset: u64,
    /// Number of descriptors.
    pub size: u16,
    /// Whether it is a packed ring.
    pub packed: bool,
}

impl RingIdentity {
    /// The ring of `size` descriptors at `offset` of `file`.
    pub fn new(file: &File, offset: u64, size: u16, packed: bool) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { device: found.dev(), inode: found.ino(), offset, size, packed })
    }

    fn words(&self) -> [u64; 4] {
        [self.device, self.inode, self.offset, u64::from(self.size) | u64::from(self.packed) << 16]
    }

    /// Whether a ring like this can be at `position`, in the format of `SET_VRING_BASE`: for a split ring any 16-bit
    /// number; for a packed one two indices below its size, each with a wrap counter in bit 15.
    fn can_be_at(&self, position: u32) -> bool {
        let index = |half: u32| half & 0x7fff < u32::from(self.size);
        if self.packed { index(position) && index(position >> 16) } else { position <= 0xffff }
    }
}

/// What is known of a ring whose daemon died while it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// The last position that was published for certain.
    pub position: u32,
    /// A position that was just being published: it holds if the ring shows what lies between as used.
    pub intended: Option<u32>,
    /// What the front end gave as its base when the ring was started then. One that gives another now has learned more
    /// since, or the guest has begun anew.
    pub base: u32,
    /// Chains that had been completed since that start.
    pub chains: u64,
    /// Frames that had been moved since that start.
    pub frames: u64,
}

/// The file of one relay.
#[derive(Debug)]
pub struct Positions {
    shared: Arc<Shared>,
    /// Open for as long as this lives: it carries the lock.
    _file: File,
}

#[derive(Debug)]
struct Shared {
    // First, so that it goes first (see `sigbus`): memory that is full or cut off costs positions, not the daemon.
    _guard: sigbus::Guard,
    region: MmapRegion<()>,
}

impl Shared {
    fn slot(&self, index: usize) -> Option<&Slot> {
        if index >= RINGS {
            return None;
        }
        // SAFETY: the mapping is `LENGTH` bytes, page-aligned, lives as long as `self`, and holds `RINGS` slots behind
        // the header. A slot is made of atomics, for which any bytes are valid and may change at any time.
        Some(unsafe { &*self.region.as_ptr().add(HEADER).cast::<Slot>().add(index) })
    }
}

impl Positions {
    /// Opens the file at `path`, in a directory that only the daemon's user and root can change. What is there and is not
    /// such a file, of this version, ours alone, is replaced by an empty one.
    ///
    /// # Errors
    /// `WouldBlock` when another process uses the file; else what the system said.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = match open(path) {
            Ok(Some(file)) => file,
            Ok(None) => create(path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
            Err(error) => return Err(error),
        };
        let region = MmapRegionBuilder::new(LENGTH)
            .with_file_offset(FileOffset::new(file.try_clone()?, 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .build()
            .map_err(io::Error::other)?;
        let guard = sigbus::Guard::new(region.as_ptr() as usize, LENGTH)
            .ok_or_else(|| io::Error::other("too many shared mappings"))?;
        Ok(Self { shared: Arc::new(Shared { _guard: guard, region }), _file: file })
    }

    /// Takes the slot of ring `index`, which is started now. `base` is what the front end gave for it.
    ///
    /// With a [`Predecessor`] the slot keeps the predecessor's position until the first store, so that dying in between
    /// loses nothing; without one it begins at `base`. A handle from an earlier claim must not be used any more. Rings
    /// from [`RINGS`] on have no slot: their handle does nothing.
    pub fn claim(
        &mut self,
        index: usize,
        identity: RingIdentity,
        base: u32,
    ) -> (RingPosition, Option<Predecessor>) {
        let Some(slot) = self.shared.slot(index) else { return (RingPosition::none(), None) };
        let predecessor = slot.predecessor(&identity);
        match predecessor {
            Some(_) => slot.base.store(u64::from(base), Ordering::Relaxed),
            None => slot.begin(&identity, base),
        }
        let published = predecessor.map_or(base, |predecessor| predecessor.position);
        (RingPosition { place: Some((Arc::clone(&self.shared), index)), published }, predecessor)
    }

    /// Ring `index` has been stopped in good order: its front end was told where it stands, or has gone.
    pub fn release(&mut self, index: usize) {
        if let Some(slot) = self.shared.slot(index) {
            slot.state.store(EMPTY, Ordering::Release);
        }
    }
}

impl Slot {
    fn predecessor(&self, identity: &RingIdentity) -> Option<Predecessor> {
        if self.state.load(Ordering::Acquire) != RUNNING {
            return None;
        }
        let same =
            self.identity.iter().zip(identity.words()).all(|(is, word)| is.load(Ordering::Relaxed) == word);
        let word = self.position.load(Ordering::Relaxed);
        let (position, intended) = (word as u32, (word >> 32) as u32);
        let valid = identity.can_be_at(position) && identity.can_be_at(intended);
        let base = self.base.load(Ordering::Relaxed) as u32;
        (same && valid).then(|| Predecessor {
            position,
            intended: (intended != position).then_some(intended),
            base,
            chains: self.chains.load(Ordering::Relaxed),
            frames: self.frames.load(Ordering::Relaxed),
        })
    }

    fn begin(&self, identity: &RingIdentity, base: u32) {
        self.state.store(EMPTY, Ordering::Relaxed);
        // Empty before anything else changes.
        fence(Ordering::Release);
        for (slot, word) in self.identity.iter().zip(identity.words()) {
            slot.store(word, Ordering::Relaxed);
        }
        self.position.store(both(base), Ordering::Relaxed);
        self.base.store(u64::from(base), Ordering::Relaxed);
        self.chains.store(0, Ordering::Relaxed);
        self.frames.store(0, Ordering::Relaxed);
        self.state.store(RUNNING, Ordering::Release);
    }
}

fn both(position: u32) -> u64 {
    u64::from(position) << 32 | u64::from(position)
}

/// The position of one ring, for the worker that owns it.
#[derive(Debug)]
pub struct RingPosition {
    place: Option<(Arc<Shared>, usize)>,
    published: u32,
}

impl RingPosition {
    /// One that is kept nowhere.
    pub fn none() -> Self {
        Self { place: None, published: 0 }
    }

    #[inline]
    fn slot(&self) -> Option<&Slot> {
        self.place.as_ref().and_then(|(shared, index)| shared.slot(*index))
    }

    /// Says, before it is published, where the ring will stand. Rings that show by themselves what was published need
    /// not say so (a split ring has its used index).
    #[inline]
    pub fn intend(&mut self, position: u32) {
        if let Some(slot) = self.slot() {
            slot.position.store(u64::from(position) << 32 | u64::from(self.published), Ordering::Relaxed);
            // Before the driver sees what is published: no matter for another CPU, but for the compiler.
            fence(Ordering::Release);
        }
    }

    /// Says where the ring stands, in the format of `SET_VRING_BASE`; after it was published.
    #[inline]
    pub fn store(&mut self, position: u32) {
        self.published = position;
        if let Some(slot) = self.slot() {
            slot.position.store(both(position), Ordering::Release);
        }
    }

    /// Adds to the counters.
    #[inline]
    pub fn count(&mut self, chains: u64, frames: u64) {
        if let Some(slot) = self.slot() {
            // Only the ring's owner writes them.
            for (counter, more) in [(&slot.chains, chains), (&slot.frames, frames)] {
                let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
                counter.store(sum, Ordering::Relaxed);
            }
        }
    }
}

/// The file at `path`, locked; `None` when it is none that can be used.
fn open(path: &Path) -> io::Result<Option<File>> {
    // O_NONBLOCK, since opening a FIFO would wait otherwise.
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let unusable = |reason: &str| {
        tracing::warn!("{} is replaced: {reason}", path.display());
        Ok(None)
    };
    let file = match OpenOptions::new().read(true).write(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return unusable("it is a symbolic link"),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => return unusable("it is no file"),
        Err(error) => return Err(error),
    };
    let found = file.metadata()?;
    if !found.is_file() {
        return unusable("it is no file");
    }
    if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 || found.nlink() != 1 {
        return unusable("it is not ours alone");
    }
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    let mut header = [0; 16];
    if found.len() != LENGTH as u64 || file.read_exact_at(&mut header, 0).is_err() || header != self::header()
    {
        return unusable("it was written by another version");
    }
    Ok(Some(file))
}

/// A new, empty file in place of whatever is at `path`, locked.
fn create(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    match std::fs::remove_file(&name) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC)
        .open(&name)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)?;
    // Pages now, rather than SIGBUS later when tmpfs is full.
    fallocate(&file, FallocateFlags::empty(), 0, LENGTH as u64)?;
    file.write_all_at(&header(), 0)?;
    std::fs::rename(&name, path)?;
    Ok(file)
}

fn header() -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&MAGIC.to_ne_bytes());
    bytes[8..12].copy_from_slice(&VERSION.to_ne_bytes());
    bytes[12..].copy_from_slice(&(RINGS as u32).to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests;
