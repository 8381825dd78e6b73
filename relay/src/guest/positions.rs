//! Positions of packed rings that outlive the process: what a successor needs to go on where a daemon died.
//!
//! A split ring shows by its used index how far it is; a packed one does not. A small file in tmpfs, mapped, has a slot
//! for each ring of one relay. The worker writes there how far it is with each used descriptor: a store, no system call.
//! Who died by SIGKILL has left what it stored last.
//!
//! ```text
//!   header   magic, version, number of slots                                    128 bytes
//!   slot     state: 0 empty, 1 running │ progress │ first │ base                64 bytes, the worker's cache line
//!            which ring it is about                                             64 bytes
//!
//!   progress, one word:  published ── used descriptors that the driver does not see yet ── written ── being written ── writing
//! ```
//!
//! A slot is true at every instruction: its identity is complete before its state becomes 1, the state is 0 before the
//! identity changes, and the progress is one 64-bit word, stored before what it announces. A look at the ring tells
//! whether that has happened.
//!
//! What is read from the file are numbers to be checked against the ring, never more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use pmd::memory::sigbus::Guard;
use rustix::fs::{FallocateFlags, FlockOperation, MemfdFlags, fallocate, flock, memfd_create};
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionBuilder};

use crate::ring::position::Position;

/// Rings that one file has slots for.
pub const RINGS: usize = 64;

/// So long a process that was killed may take to let go of its files.
const DYING: Duration = Duration::from_millis(200);

const MAGIC: u64 = u64::from_ne_bytes(*b"vfwdring");
const VERSION: u32 = 3;
const HEADER: usize = 128;
/// Length of the file in bytes: header and slots, in whole pages of 4 KiB.
pub const LENGTH: usize = (HEADER + RINGS * size_of::<Slot>()).next_multiple_of(4096);

const EMPTY: u64 = 0;
const RUNNING: u64 = 1;

/// One slot, as it is in the file.
#[repr(C, align(64))]
struct Slot {
    state: AtomicU64,
    /// [`Progress::word`].
    progress: AtomicU64,
    /// [`First::word`].
    first: AtomicU64,
    base: AtomicU64,
    unused: [AtomicU64; 4],
    /// Words of a [`RingIdentity`].
    identity: [AtomicU64; 4],
    reserved: [AtomicU64; 4],
}

const _: () = assert!(RINGS >= 2 * crate::lane::MOST_PAIRS, "a ring without a slot would keep no position");
const _: () = assert!(size_of::<Slot>() == 128 && HEADER.is_multiple_of(align_of::<Slot>()));

/// Which packed ring a position is about. A ring that lies elsewhere, or has another size, is another ring.
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
}

impl RingIdentity {
    /// The ring of `size` descriptors at `offset` of `file`.
    pub fn new(file: &File, offset: u64, size: u16) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { device: found.dev(), inode: found.ino(), offset, size })
    }

    fn words(&self) -> [u64; 4] {
        [self.device, self.inode, self.offset, u64::from(self.size)]
    }
}

/// How far the used descriptors of a ring are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The driver has seen all before this.
    pub published: Position,
    /// All before this are written, but the first, which is held back.
    pub written: Position,
    /// Those up to here are just being written; the same as `written` if none is.
    pub writing: Position,
    /// Between the two is any number of used descriptors, each of a chain of one slot, written in their order. Otherwise it
    /// is one.
    pub is_run: bool,
}

impl Progress {
    fn at(position: Position) -> Self {
        Self { published: position, written: position, writing: position, is_run: false }
    }

    fn word(self) -> u64 {
        let [a, b, c] =
            [self.published, self.written, self.writing].map(|position| u64::from(position.bits()));
        a | b << 16 | c << 32 | u64::from(self.is_run) << 48
    }

    fn of(word: u64) -> Self {
        let position = |n: u32| Position::from_bits((word >> (16 * n)) as u16);
        Self {
            published: position(0),
            written: position(1),
            writing: position(2),
            is_run: word >> 48 & 1 != 0,
        }
    }

    fn is_within(&self, size: u16) -> bool {
        [self.published, self.written, self.writing].iter().all(|position| position.slot < size)
    }
}

/// The used descriptor that is held back until its burst is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct First {
    /// Buffer id.
    pub id: u16,
    /// Bytes written.
    pub len: u32,
}

impl First {
    fn word(self) -> u64 {
        u64::from(self.id) << 32 | u64::from(self.len)
    }

    fn of(word: u64) -> Self {
        Self { id: (word >> 32) as u16, len: word as u32 }
    }
}

/// What is known of a ring whose daemon died while it ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Predecessor {
    /// How far it was.
    pub progress: Progress,
    /// The used descriptor that it held back, if it had written any.
    pub first: First,
    /// What the front end gave as its base when the ring was started then. One that gives another now has learned more
    /// since, or the guest has begun anew.
    pub base: u32,
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
    // First, so that it goes first (see `pmd::memory::sigbus`): memory that is full or cut off costs positions, not the daemon.
    _guard: Guard,
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
        Self::map(file, 0)
    }

    /// New ones in a memory file of their own, for a front end to keep (`VHOST_USER_GET_INFLIGHT_FD`); returns the file as
    /// well.
    pub fn for_front_end() -> io::Result<(Self, File)> {
        let file = File::from(memfd_create("virtio-forwarder-rings", MemfdFlags::CLOEXEC)?);
        file.set_len(LENGTH as u64)?;
        file.write_all_at(&header(), 0)?;
        Ok((Self::map(file.try_clone()?, 0)?, file))
    }

    /// Those that a front end has kept, in `size` bytes at `offset` of `file` (`VHOST_USER_SET_INFLIGHT_FD`). What is no
    /// work of this version is overwritten by empty ones.
    ///
    /// # Errors
    /// When they cannot be there: too few bytes, not page-aligned, or not in shared memory.
    pub fn from_front_end(file: File, size: u64, offset: u64) -> io::Result<Self> {
        let bad = |what: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let length = file.metadata()?.len();
        if size < LENGTH as u64 || offset.checked_add(size).is_none_or(|end| end > length) {
            return bad("it is too short");
        }
        if rustix::fs::fstatfs(&file)?.f_type != libc::TMPFS_MAGIC {
            return bad("it is not in a memfd");
        }
        let mut found = [0; 16];
        file.read_exact_at(&mut found, offset)?;
        if found != header() {
            file.write_all_at(&[0; LENGTH], offset)?;
            file.write_all_at(&header(), offset)?;
        }
        Self::map(file, offset)
    }

    fn map(file: File, offset: u64) -> io::Result<Self> {
        let region = MmapRegionBuilder::new(LENGTH)
            .with_file_offset(FileOffset::new(file.try_clone()?, offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .build()
            .map_err(io::Error::other)?;
        // SAFETY: the region goes after its guard, and is only reached through atomic words.
        let guard = unsafe { Guard::new(region.as_ptr() as usize, LENGTH) };
        let guard = guard.ok_or_else(|| io::Error::other("too many shared mappings"))?;
        Ok(Self { shared: Arc::new(Shared { _guard: guard, region }), _file: file })
    }

    /// Takes the slot of ring `index`, which is started now. `base` is what the front end gave for it.
    ///
    /// With a [`Predecessor`] the slot keeps the predecessor's progress until the first store, so that dying in between
    /// loses nothing. A handle from an earlier claim must not be used any more. Rings from [`RINGS`] on have no slot:
    /// their handle does nothing.
    pub fn claim(
        &mut self,
        index: usize,
        identity: RingIdentity,
        base: u32,
    ) -> (RingPosition, Option<Predecessor>) {
        let Some(slot) = self.shared.slot(index) else { return (RingPosition::none(), None) };
        let predecessor = slot.predecessor(&identity);
        if predecessor.is_none() {
            slot.begin(&identity, base);
        }
        slot.base.store(u64::from(base), Ordering::Relaxed);
        let progress = Progress::of(slot.progress.load(Ordering::Relaxed));
        (RingPosition { place: Some((Arc::clone(&self.shared), index)), progress }, predecessor)
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
        let progress = Progress::of(self.progress.load(Ordering::Relaxed));
        (same && progress.is_within(identity.size)).then(|| Predecessor {
            progress,
            first: First::of(self.first.load(Ordering::Relaxed)),
            base: self.base.load(Ordering::Relaxed) as u32,
        })
    }

    /// The slot is that of a ring which begins at `base`, and nothing else at any time.
    fn begin(&self, identity: &RingIdentity, base: u32) {
        self.state.store(EMPTY, Ordering::Relaxed);
        // Empty before anything else changes.
        fence(Ordering::Release);
        for (slot, word) in self.identity.iter().zip(identity.words()) {
            slot.store(word, Ordering::Relaxed);
        }
        // The used position is in the upper half, where the front end knows it.
        let used = (base >> 16) as u16;
        let begin = Position::from_bits(if used == 0 { base as u16 } else { used });
        self.progress.store(Progress::at(begin).word(), Ordering::Relaxed);
        self.base.store(u64::from(base), Ordering::Relaxed);
        self.state.store(RUNNING, Ordering::Release);
    }
}

/// The position of one ring, for the worker that owns it.
#[derive(Debug)]
pub struct RingPosition {
    place: Option<(Arc<Shared>, usize)>,
    progress: Progress,
}

impl RingPosition {
    /// One that is kept nowhere.
    pub fn none() -> Self {
        Self { place: None, progress: Progress::at(Position::START) }
    }

    /// A used descriptor is held back, the first of its burst, which takes the ring to `next`; or the only one, which stands
    /// for the whole burst, in the place of an earlier one.
    #[inline]
    pub fn hold(&mut self, first: First, next: Position) {
        if let Some((shared, index)) = &self.place
            && let Some(slot) = shared.slot(*index)
        {
            // One that takes the place of another belongs to another position: in between there is none.
            if self.progress.writing != self.progress.published {
                slot.progress.store(Progress::at(self.progress.published).word(), Ordering::Relaxed);
                fence(Ordering::Release);
            }
            slot.first.store(first.word(), Ordering::Relaxed);
            // Told before it counts: no matter for another CPU, but for the compiler.
            fence(Ordering::Release);
            self.progress = Progress { written: next, writing: next, is_run: false, ..self.progress };
            slot.progress.store(self.progress.word(), Ordering::Relaxed);
        }
    }

    /// A used descriptor that takes the ring to `next` is about to be written.
    #[inline]
    pub fn write(&mut self, next: Position) {
        self.write_to(next, false);
    }

    /// Used descriptors of chains of one slot each are about to be written, in their order, up to `next`.
    #[inline]
    pub fn write_run(&mut self, next: Position) {
        self.write_to(next, true);
    }

    #[inline]
    fn write_to(&mut self, next: Position, is_run: bool) {
        if let Some((shared, index)) = &self.place
            && let Some(slot) = shared.slot(*index)
        {
            self.progress =
                Progress { written: self.progress.writing, writing: next, is_run, ..self.progress };
            slot.progress.store(self.progress.word(), Ordering::Relaxed);
            fence(Ordering::Release);
        }
    }

    /// A predecessor's burst, of which the first used descriptor is held back at `published`, ends at `next`.
    pub fn take_over(&mut self, published: Position, next: Position) {
        if let Some((shared, index)) = &self.place
            && let Some(slot) = shared.slot(*index)
        {
            self.progress = Progress { published, written: next, writing: next, is_run: false };
            slot.progress.store(self.progress.word(), Ordering::Relaxed);
            fence(Ordering::Release);
        }
    }

    /// The driver sees all used descriptors before `position`.
    #[inline]
    pub fn publish(&mut self, position: Position) {
        if let Some((shared, index)) = &self.place
            && let Some(slot) = shared.slot(*index)
        {
            self.progress = Progress::at(position);
            slot.progress.store(self.progress.word(), Ordering::Release);
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
    lock(&file)?;
    let mut header = [0; 16];
    if found.len() != LENGTH as u64 || file.read_exact_at(&mut header, 0).is_err() || header != self::header()
    {
        return unusable("it was written by another version");
    }
    Ok(Some(file))
}

/// Waits a moment for a process that is just dying.
fn lock(file: &File) -> io::Result<()> {
    let end = Instant::now() + DYING;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return Ok(result?),
        }
    }
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
