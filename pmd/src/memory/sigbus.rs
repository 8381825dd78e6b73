//! SIGBUS on mappings that others can take away: whoever does so loses what is his own, not the daemon.
//!
//! ```text
//!   memory of a guest      its file was truncated            reads give zeros, the relay ends the guest's session
//!   a BAR                  the function left the machine     reads give ones, writes go nowhere (`vfio::bar`)
//! ```
//!
//! Touching a page that is no longer there raises SIGBUS in the thread that touches it. The handler looks the address up in
//! a table of guarded mappings, marks that mapping poisoned, lays private zero pages over all of it, and returns: the
//! interrupted access is made again and finishes on zeros. Any other SIGBUS ends the process as it always does.
//!
//! The handler may only use what is async-signal-safe: atomics and the `mmap` system call.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// Mappings that can be guarded at once: 64 guests with 509 regions each (as many as QEMU has), their logs and files, and
/// BARs of as many devices.
const SLOTS: usize = 64 * 520;

/// One guarded mapping. `version` is odd while the other fields change, so that the handler never pairs the address of
/// one mapping with the length of another.
struct Slot {
    version: AtomicU64,
    start: AtomicUsize,
    len: AtomicUsize,
    taken: AtomicBool,
    poisoned: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        version: AtomicU64::new(0),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        taken: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
    }
}; SLOTS];

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
        INSTALL.call_once(install);
        let free = |slot: &Slot| {
            slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slot = TABLE.iter().position(free)?;
        TABLE[slot].poisoned.store(false, Ordering::Relaxed);
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
        slot.set(0, 0);
        slot.taken.store(false, Ordering::Release);
    }
}

fn install() {
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
        // The whole mapping, not the page: huge pages cannot be replaced in part, and whoever does this is gone.
        // SAFETY: `start..start+len` is a live mapping (its guard is), which nobody holds references into; replacing its
        // pages by zero pages only changes bytes that may change at any time anyway.
        let zeros = unsafe {
            libc::mmap(
                start as *mut libc::c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if zeros != libc::MAP_FAILED {
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
}
