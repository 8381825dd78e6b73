//! SIGBUS on guest memory: a guest that truncates its memory file loses its own relay, not the daemon.
//!
//! Touching a page behind the end of a truncated file raises SIGBUS in the thread that touches it. The handler looks
//! the address up in a table of guarded mappings, lays private zero pages over the rest of that mapping, marks it
//! poisoned, and returns: the interrupted copy finishes on zeros. Any other SIGBUS ends the process as it always does.
//!
//! The handler may only use what is async-signal-safe: atomics and the `mmap` system call.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can be guarded at once: 64 guests with 64 regions each.
const SLOTS: usize = 4096;

struct Slot {
    start: AtomicUsize,
    len: AtomicUsize,
    taken: AtomicBool,
    poisoned: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        taken: AtomicBool::new(false),
        poisoned: AtomicBool::new(false),
    }
}; SLOTS];

static INSTALL: Once = Once::new();

/// Guards one mapping for as long as it lives.
#[derive(Debug)]
pub(super) struct Guard {
    slot: Option<usize>,
}

impl Guard {
    /// Guards `len` bytes at `start`. With all slots taken the mapping goes unguarded, which is logged.
    pub(super) fn new(start: usize, len: usize) -> Self {
        INSTALL.call_once(install);
        let free = |slot: &Slot| {
            slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slot = TABLE.iter().position(free);
        match slot {
            Some(slot) => {
                let slot = &TABLE[slot];
                slot.poisoned.store(false, Ordering::Relaxed);
                slot.len.store(len, Ordering::Relaxed);
                slot.start.store(start, Ordering::Release);
            }
            None => tracing::warn!(
                "more than {SLOTS} guest memory regions: the newest one is not guarded against truncation"
            ),
        }
        Self { slot }
    }

    /// Whether a page of the mapping was missing when it was touched.
    pub(super) fn is_poisoned(&self) -> bool {
        self.slot.is_some_and(|slot| TABLE[slot].poisoned.load(Ordering::Acquire))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            let slot = &TABLE[slot];
            slot.start.store(0, Ordering::Relaxed);
            slot.len.store(0, Ordering::Release);
            slot.taken.store(false, Ordering::Release);
        }
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

extern "C" fn on_sigbus(_signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`, which for SIGBUS carries an address.
    let address = unsafe { (*info).si_addr() } as usize;
    for slot in &TABLE {
        let start = slot.start.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Acquire);
        if start == 0 || address.wrapping_sub(start) >= len {
            continue;
        }
        // The whole mapping, not the page: huge pages cannot be replaced in part, and a guest that does this is gone.
        // SAFETY: `start..start+len` is a live guest mapping (its guard is), which nobody holds references into;
        // replacing its pages by zero pages only changes bytes that may change at any time anyway.
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
            slot.poisoned.store(true, Ordering::Release);
            return;
        }
    }
    // SAFETY: restores the default action, so that the fault, repeated on return, ends the process with a core dump.
    unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::guest::memory::tests::memfd;
    use crate::guest::memory::{GuestMemory, RegionDescription, Translator};

    #[test]
    fn a_truncated_memory_file_poisons_its_guest_and_nobody_dies() {
        let file = memfd(0x4000);
        let keep = file.try_clone().unwrap();
        let description = RegionDescription { gpa: 0, size: 0x4000, user: 0x10000, offset: 0 };
        let memory = Arc::new(GuestMemory::map([(description, file)]).unwrap());
        let mut translator = Translator::new(Arc::clone(&memory));
        let (host, _) = translator.translate(0x2000, 8).unwrap();
        // SAFETY: the translator holds the mapping.
        unsafe { host.as_ptr().write_volatile(7) };
        assert!(!memory.is_poisoned());
        keep.set_len(0).unwrap();
        // SAFETY: as above; the missing page is what the handler is for.
        let value = unsafe { host.as_ptr().read_volatile() };
        assert_eq!(value, 0);
        assert!(memory.is_poisoned());
    }
}
