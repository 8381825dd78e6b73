//! SIGBUS on mappings that others can take away: whoever does so loses what is his own, not the daemon.
//!
//! ```text
//!   memory of a guest      its file was truncated            reads give zeros, the relay ends the guest's session
//!   a BAR                  the function left the machine     reads give ones, writes go nowhere (`vfio::bar`)
//! ```
//!
//! Touching a page that is no longer there raises SIGBUS in the thread that touches it. The handler looks the address up in
//! a table of guarded mappings, marks that mapping poisoned, lays zero pages over all of it, and returns: the interrupted
//! access, be it a load or a store, is made again and finishes on zeros. Any other SIGBUS ends the process as it always does.
//!
//! The zeros are those of a memfd without content, each mapping's at an offset that is its address, so that no two share
//! any. Such a mapping promises no memory for pages that nobody touches: with `vm.overcommit_memory=2`, private pages over
//! the memory of a guest could be refused, also with `MAP_NORESERVE`.
//!
//! The handler may only use what is async-signal-safe: atomics and the `mmap` system call.

use std::os::fd::IntoRawFd;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::fs::MemfdFlags;
use rustix::process::{Resource, getrlimit};

/// Mappings that can be guarded at once: 64 guests with 509 regions each (as many as QEMU has), their logs and files, and
/// BARs of as many devices.
const SLOTS: usize = 64 * 520;
/// Addresses of a process, all of which are offsets in the memfd.
const ADDRESSES: u64 = 1 << 56;
/// Faults in one mapping after which zeros do not help: there is no memory for them. Each thread has one or two before all is
/// replaced.
const MOST_FAULTS: u32 = 10_000;

/// One guarded mapping. `version` is odd while the other fields change, so that the handler never pairs the address of
/// one mapping with the length of another.
struct Slot {
    version: AtomicU64,
    start: AtomicUsize,
    len: AtomicUsize,
    taken: AtomicBool,
    poisoned: AtomicBool,
    faults: AtomicU32,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        version: AtomicU64::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        taken: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
        faults: AtomicU32::new(0),
    }
}; SLOTS];

/// The memfd of zeros; -1 where there is none.
static ZEROS: AtomicI32 = AtomicI32::new(-1);

static INSTALL: Once = Once::new();

impl Slot {
    /// Only for the owner of the slot.
    fn set(&self, start: usize, len: usize) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.len.store(len, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Start and length of the mapping, if `address` is in it.
    fn holds(&self, address: usize) -> Option<(usize, usize)> {
        let before = self.version.load(Ordering::SeqCst);
        let (start, len) = (self.start.load(Ordering::SeqCst), self.len.load(Ordering::SeqCst));
        let whole = before.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == before;
        (whole && start != 0 && address.wrapping_sub(start) < len).then_some((start, len))
    }
}

/// Guards one mapping for as long as it lives.
#[derive(Debug)]
pub struct Guard {
    slot: usize,
}

impl Guard {
    /// Guards the mapping of `len` bytes at `start`, whole pages; `None` when all slots are taken: such a mapping must not be
    /// used.
    ///
    /// # Safety
    /// The bytes must be mapped as long as the guard lives, so it goes before the mapping does; and nobody may have references
    /// to them but as atomics, nor count on their values.
    pub unsafe fn new(start: usize, len: usize) -> Option<Self> {
        install();
        let free = |slot: &Slot| {
            slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slot = TABLE.iter().position(free)?;
        TABLE[slot].poisoned.store(false, Ordering::Relaxed);
        TABLE[slot].faults.store(0, Ordering::Relaxed);
        TABLE[slot].set(start, len);
        Some(Self { slot })
    }

    /// Whether a page of the mapping was missing when it was touched. True before anybody can read one of the zeros.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        TABLE[self.slot].poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let slot = &TABLE[self.slot];
        if slot.poisoned.load(Ordering::Acquire) {
            forget_zeros(slot.start.load(Ordering::SeqCst), slot.len.load(Ordering::SeqCst));
        }
        slot.set(0, 0);
        slot.taken.store(false, Ordering::Release);
    }
}

/// What was written over zeros goes: the address may become that of another mapping.
fn forget_zeros(start: usize, len: usize) {
    let hole = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the system call touches no memory of this process; without a memfd it fails.
    unsafe { libc::fallocate(ZEROS.load(Ordering::Relaxed), hole, start as i64, len as i64) };
}

/// A memfd that is as long as addresses may be, without content; `None` where it cannot be had.
fn zeros() -> Option<libc::c_int> {
    // To make a longer file than is allowed ends the process.
    if getrlimit(Resource::Fsize).current.is_some() {
        return None;
    }
    let memfd = rustix::fs::memfd_create("zeros", MemfdFlags::CLOEXEC).ok()?;
    rustix::fs::ftruncate(&memfd, ADDRESSES).ok()?;
    Some(memfd.into_raw_fd())
}

/// Installs the handler, as the first [`Guard`] does otherwise. It holds one descriptor from then on.
pub fn install() {
    INSTALL.call_once(set_up);
}

fn set_up() {
    ZEROS.store(zeros().unwrap_or(-1), Ordering::Relaxed);
    // SAFETY: an all-zero `sigaction` is valid; the handler below is async-signal-safe.
    let status = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &action, std::ptr::null_mut())
    };
    if status != 0 {
        tracing::error!("cannot install the SIGBUS handler: {}", std::io::Error::last_os_error());
    }
}

/// Memory failed somewhere, and no access waits for it (`asm-generic/siginfo.h`).
const BUS_MCEERR_AO: libc::c_int = 5;

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`.
    let code = unsafe { (*info).si_code };
    if code <= 0 || code == BUS_MCEERR_AO {
        // Sent by a process, not by a missing page; or memory went bad that nobody is touching.
        return;
    }
    // SAFETY: as above; a SIGBUS of the kernel carries an address.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &TABLE {
        let Some((start, len)) = slot.holds(address) else { continue };
        // In front of the zeros, so that they can be told from what was there.
        slot.poisoned.store(true, Ordering::SeqCst);
        if slot.faults.fetch_add(1, Ordering::Relaxed) > MOST_FAULTS {
            break;
        }
        let zeros = ZEROS.load(Ordering::Relaxed);
        let (kind, offset) = match zeros {
            -1 => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, 0),
            _ => (libc::MAP_SHARED, start as libc::off_t),
        };
        // The whole mapping, not the page: huge pages cannot be replaced in part, and whoever does this is gone.
        // SAFETY: `start..start+len` is a live mapping (its guard is), which nobody holds references into; replacing its
        // pages by zero pages only changes bytes that may change at any time anyway.
        let laid = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                kind | libc::MAP_FIXED | libc::MAP_NORESERVE,
                zeros,
                offset,
            )
        };
        if laid != libc::MAP_FAILED {
            return;
        }
    }
    // SAFETY: restores the default action, so that the fault, repeated on return, ends the process with a core dump.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_is_being_changed_holds_nothing() {
        let slot = &TABLE[SLOTS - 1];
        slot.set(0x1000, 0x2000);
        assert_eq!(slot.holds(0x2fff), Some((0x1000, 0x2000)));
        assert_eq!(slot.holds(0x3000), None);
        assert_eq!(slot.holds(0xfff), None);
        slot.version.fetch_add(1, Ordering::SeqCst);
        assert_eq!(slot.holds(0x2fff), None);
        slot.version.fetch_add(1, Ordering::SeqCst);
        slot.set(0, 0);
        assert_eq!(slot.holds(0), None);
    }

    /// A mapping of a file that is cut off, in `/proc/self/smaps`: its line, and the flags of the kernel for it.
    fn in_smaps(start: usize) -> Option<(String, String)> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&format!("{start:08x}-")));
        let first = lines.next()?.to_owned();
        Some((first, lines.find(|line| line.starts_with("VmFlags"))?.to_owned()))
    }

    #[test]
    fn zeros_take_loads_and_stores_promise_no_memory_and_are_zeros_again_for_the_next() {
        const LEN: usize = 1 << 36;
        let page = rustix::param::page_size();
        let mut at = std::ptr::null_mut();
        for round in 0..2u8 {
            let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
            rustix::fs::ftruncate(&file, LEN as u64).unwrap();
            let flags = rustix::mm::MapFlags::SHARED | rustix::mm::MapFlags::NORESERVE;
            let rights = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
            // The second time where it was the first time, which is the kernel's choice while that is free.
            // SAFETY: a new mapping, which is given up below.
            let start = unsafe { rustix::mm::mmap(at, LEN, rights, flags, &file, 0) }.unwrap();
            // SAFETY: it stays mapped longer than the guard lives, and nobody has references to it.
            let guard = unsafe { Guard::new(start as usize, LEN) }.unwrap();
            rustix::fs::ftruncate(&file, 0).unwrap();
            let byte = |n: usize| start.cast::<u8>().wrapping_add(n);
            // SAFETY: inside the mapping, and read and written by this thread alone.
            unsafe {
                assert_eq!(byte(5 * page).read_volatile(), 0, "round {round}");
                byte(LEN - 1).write_volatile(7);
                assert_eq!((byte(LEN - 1).read_volatile(), byte(LEN - 2).read_volatile()), (7, 0));
            }
            assert!(guard.is_poisoned());
            let (line, kernel) = in_smaps(start as usize).unwrap();
            assert!(line.contains("rw-s") && line.contains("/memfd:zeros"), "{line}");
            // `ac`: all of it is promised, and counts against what the machine has.
            assert!(!kernel.split_whitespace().any(|flag| flag == "ac"), "{kernel}");
            drop(guard);
            // SAFETY: the test's own, which nothing points to.
            unsafe { rustix::mm::munmap(start, LEN) }.unwrap();
            at = start;
        }
    }
}
