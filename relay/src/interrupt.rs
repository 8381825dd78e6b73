//! Ending a system call that another thread is stuck in.
//!
//! A worker makes one system call on a descriptor that a guest's front end shares: the write that interrupts the guest.
//! The front end can make that write block. Whoever watches the worker then sends it a signal whose handler does nothing
//! and that does not restart system calls, so that the write returns `EINTR`.

use std::sync::Once;

use rustix::thread::gettid;

static INSTALL: Once = Once::new();

/// Nobody else sends it: the C library uses the first two real-time signals, and this one has no default use.
const SIGNAL: libc::c_int = libc::SIGURG;

/// Interrupts one thread.
#[derive(Clone, Copy, Debug)]
pub struct Interrupter {
    thread: i32,
}

impl Interrupter {
    /// For the calling thread.
    pub fn of_this_thread() -> Self {
        INSTALL.call_once(install);
        Self { thread: gettid().as_raw_nonzero().get() }
    }

    /// Ends the system call that the thread is in, if it is in one that blocks; otherwise nothing happens. To be repeated
    /// while the thread stays stuck: a signal that comes just before the call does not end it.
    pub fn interrupt(&self) {
        // SAFETY: sends a signal with a handler that does nothing to a thread of this process; a thread that has ended
        // gives ESRCH.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.thread, SIGNAL) };
    }
}

fn install() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: an all-zero `sigaction` is valid (no SA_RESTART in particular), and the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int) = nothing;
        action.sa_sigaction = handler as usize;
        libc::sigaction(SIGNAL, &action, std::ptr::null_mut());
    }
}
