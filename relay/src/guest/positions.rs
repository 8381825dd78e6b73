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
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    const RING: RingIdentity = RingIdentity { device: 1, inode: 2, offset: 0x3000, size: 256, packed: false };

    fn scene() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay-0");
        (directory, path)
    }

    #[test]
    fn a_ring_that_ran_when_its_daemon_died_is_found_where_it_stood() {
        let (_directory, path) = scene();
        let mut positions = Positions::open(&path).unwrap();
        let (mut ring, nothing) = positions.claim(3, RING, 7);
        assert_eq!(nothing, None);
        ring.store(9);
        ring.count(2, 1);
        ring.count(3, 3);
        drop((ring, positions));
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);

        let mut positions = Positions::open(&path).unwrap();
        let (ring, found) = positions.claim(3, RING, 8);
        let expected = Predecessor { position: 9, intended: None, base: 7, chains: 5, frames: 4 };
        assert_eq!(found, Some(expected));
        drop((ring, positions));
        let (mut ring, found) = Positions::open(&path).unwrap().claim(3, RING, 8);
        assert_eq!(found, Some(Predecessor { base: 8, ..expected }), "this one stored nothing");
        ring.intend(12);
        drop(ring);
        let (_, found) = Positions::open(&path).unwrap().claim(3, RING, 8);
        assert_eq!(found.map(|found| (found.position, found.intended)), Some((9, Some(12))));
    }

    #[test]
    fn a_ring_that_was_stopped_or_is_another_has_no_predecessor() {
        let (_directory, path) = scene();
        let mut positions = Positions::open(&path).unwrap();
        for other in [
            RingIdentity { device: 9, ..RING },
            RingIdentity { inode: 9, ..RING },
            RingIdentity { offset: 9, ..RING },
            RingIdentity { size: 512, ..RING },
            RingIdentity { packed: true, ..RING },
        ] {
            positions.claim(0, RING, 5);
            assert!(positions.claim(0, RING, 5).1.is_some());
            assert_eq!(positions.claim(1, RING, 5).1, None, "another slot");
            positions.release(1);
            assert_eq!(positions.claim(0, other, 1).1, None, "{other:?}");
            assert_eq!(positions.claim(0, RING, 1).1, None, "the slot has the other now");
        }
        positions.release(0);
        assert_eq!(positions.claim(0, RING, 1).1, None);
        let (mut ring, nothing) = positions.claim(RINGS, RING, 1);
        assert_eq!(nothing, None);
        ring.store(2);
        positions.release(RINGS);
        RingPosition::none().store(1);
    }

    #[test]
    fn a_position_that_the_ring_cannot_have_is_none() {
        let (_directory, path) = scene();
        let mut positions = Positions::open(&path).unwrap();
        let packed = RingIdentity { packed: true, size: 0x100, ..RING };
        for (identity, position, good) in [
            (RING, 0xffff, true),
            (RING, 0x1_0000, false),
            (packed, 0x80ff_80ff, true),
            (packed, 0x80ff_8100, false),
            (packed, 0x8100_80ff, false),
        ] {
            positions.claim(0, identity, 0).0.store(position);
            assert_eq!(positions.claim(0, identity, 0).1.is_some(), good, "{position:#x}");
            let (mut ring, _) = positions.claim(0, identity, 0);
            ring.store(0);
            ring.intend(position);
            assert_eq!(positions.claim(0, identity, 0).1.is_some(), good, "{position:#x} intended");
            positions.release(0);
        }
    }

    #[test]
    fn what_is_no_file_of_ours_is_replaced() {
        let (directory, path) = scene();
        let fresh = |what: &str| {
            let mut positions = Positions::open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(positions.claim(0, RING, 0).1, None, "{what}");
            positions.claim(0, RING, 0).0.store(4);
            drop(positions);
            assert!(Positions::open(&path).unwrap().claim(0, RING, 0).1.is_some(), "after {what}");
        };
        fresh("nothing");
        std::fs::write(&path, "short").unwrap();
        fresh("a short file");
        let good = || OpenOptions::new().write(true).open(&path).unwrap();
        good().write_all_at(&2u32.to_ne_bytes(), 8).unwrap();
        fresh("another version");
        good().set_len(2 * LENGTH as u64).unwrap();
        fresh("a long file");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        fresh("a file that others can read");
        let target = directory.path().join("target");
        std::fs::rename(&path, &target).unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        fresh("a link");
        assert!(target.exists());
        std::fs::remove_file(&target).unwrap();
        std::fs::hard_link(&path, &target).unwrap();
        fresh("a file with another name");
        std::fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        fresh("a FIFO");
        std::fs::write(path.with_extension("new"), "left behind").unwrap();
        std::fs::write(&path, "short").unwrap();
        fresh("what another left half done");
    }

    #[test]
    fn a_file_that_another_daemon_uses_and_a_directory_are_left_alone() {
        let (directory, path) = scene();
        let _first = Positions::open(&path).unwrap();
        assert_eq!(Positions::open(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(Positions::open(directory.path()).is_err());
    }

    /// Positions of ring k are odd for odd k, so that a mixture shows.
    fn ring(k: u64) -> RingIdentity {
        RingIdentity { inode: k, offset: k << 12, device: k, ..RING }
    }

    /// Not a test of its own: the process that the next test kills.
    #[test]
    fn the_child_that_is_killed() {
        let Some(path) = std::env::var_os("POSITIONS_OF_CHILD") else { return };
        let mut positions = Positions::open(Path::new(&path)).unwrap();
        println!("\nready");
        for round in 0u64.. {
            let k = round % 2;
            let (mut handle, found) = positions.claim(0, ring(k), k as u32);
            assert_eq!(found, None);
            for n in 0..50 {
                let position = (2 * n + k) as u32;
                handle.intend(position);
                handle.store(position);
                handle.count(1, 1);
            }
            if round % 3 == 0 {
                positions.release(0);
            }
        }
    }

    #[test]
    fn wherever_the_daemon_is_killed_its_file_tells_the_truth() {
        let (_directory, path) = scene();
        let mut found_running = 0;
        for round in 0..24 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "guest::positions::tests::the_child_that_is_killed", "--nocapture"])
                .env("POSITIONS_OF_CHILD", &path)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.any(|line| line.unwrap() == "ready"));
            std::thread::sleep(Duration::from_micros(137 * round));
            child.kill().unwrap();
            child.wait().unwrap();
            let mut positions = Positions::open(&path).unwrap();
            let found = [0, 1].map(|k| positions.shared.slot(0).unwrap().predecessor(&ring(k)));
            assert!(found.iter().flatten().count() <= 1, "{found:?}");
            for (k, found) in (0..).zip(&found) {
                let Some(found) = found else { continue };
                found_running += 1;
                assert_eq!((found.position % 2, found.intended.unwrap_or(k) % 2, found.base), (k, k, k));
                let one_step = [found.position + 2, k];
                assert!(found.intended.is_none_or(|next| one_step.contains(&next)), "{found:?}");
            }
            positions.release(0);
        }
        assert!(found_running > 0);
        println!("running in {found_running} of 24 rounds");
    }
}
