//! Telling a guest that something happened, and being told by it: the call descriptor of a ring, and its kick descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pmd::Armed;
use rustix::fs::OFlags;

use super::Ring;
use crate::bells::Ringer;

/// The eventfd that interrupts the guest.
///
/// It comes from the front end and is therefore checked: only an eventfd that does not block is taken, since a worker
/// writes to it.
///
/// Whether a write to it may block is a property that the front end shares and can change at any time. A write that
/// blocks all the same is ended from outside (see [`crate::interrupt`]); the descriptor is dead then, and with it all
/// others of the same guest.
#[derive(Debug)]
pub struct Call {
    eventfd: File,
    dead: Arc<AtomicBool>,
}

impl Call {
    /// Takes a descriptor that a front end sent. All of a guest share `dead`: who makes one block has no other tried.
    pub fn new(fd: OwnedFd, dead: Arc<AtomicBool>) -> io::Result<Self> {
        check_eventfd(&fd)?;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { eventfd: File::from(fd), dead })
    }

    /// Adds one to the eventfd; returns whether that was done. A counter at its limit means that the guest has not even
    /// looked yet, which is as good.
    #[inline]
    pub fn notify(&self) -> bool {
        if self.dead.load(Ordering::Relaxed) {
            return false;
        }
        match rustix::io::write(&self.eventfd, &1u64.to_ne_bytes()) {
            Err(rustix::io::Errno::INTR) => {
                self.dead.store(true, Ordering::Relaxed);
                false
            }
            _ => true,
        }
    }
}

/// Takes the eventfd that a guest kicks, as a front end sent it. Nobody reads it, so that it does not matter whether that
/// would block.
pub fn kick(fd: OwnedFd) -> io::Result<Ringer> {
    check_eventfd(&fd)?;
    Ok(Ringer::new(fd))
}

/// Whether the driver of a ring is asked to kick, and the descriptor that it kicks then.
#[derive(Debug, Default)]
pub(super) struct Kicks {
    pub(super) ringer: Option<Ringer>,
    asked: bool,
}

impl Kicks {
    /// Asks for a kick, and looks whether a chain waits. A driver without a descriptor to kick is asked in vain.
    pub(super) fn enable(&mut self, ring: &mut Ring) -> Armed {
        self.asked = true;
        match ring.enable_kicks() {
            true => Armed::Ready,
            false if self.ringer.as_ref().is_some_and(Ringer::is_watched) => Armed::Rings,
            false => Armed::Silent,
        }
    }

    /// None is needed any more.
    pub(super) fn disable(&mut self, ring: &mut Ring) {
        if std::mem::take(&mut self.asked) {
            ring.disable_kicks();
        }
    }
}

/// Refuses anything that is not an eventfd.
pub fn check_eventfd(fd: &impl AsFd) -> io::Result<()> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let target = std::fs::read_link(link)?;
    if target.to_string_lossy() == "anon_inode:[eventfd]" {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not an eventfd but {}", target.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    #[test]
    fn a_write_that_the_guest_makes_block_is_ended_and_not_tried_again() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let theirs = fd.try_clone().unwrap();
        let death = Arc::new(AtomicBool::new(false));
        let call = Call::new(fd, Arc::clone(&death)).unwrap();
        rustix::io::write(&theirs, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        rustix::fs::fcntl_setfl(&theirs, OFlags::empty()).unwrap();
        let (send, receive) = std::sync::mpsc::channel();
        let worker = std::thread::spawn(move || {
            send.send(crate::interrupt::Interrupter::of_this_thread()).unwrap();
            (call.notify(), call.notify())
        });
        let interrupter = receive.recv().unwrap();
        let start = std::time::Instant::now();
        while !death.load(Ordering::Relaxed) {
            assert!(start.elapsed() < std::time::Duration::from_secs(10), "the write still blocks");
            interrupter.interrupt();
            std::thread::yield_now();
        }
        assert_eq!(worker.join().unwrap(), (false, false));
    }

    #[test]
    fn a_full_eventfd_does_not_block_and_a_pipe_is_refused() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        Call::new(fd, Arc::default()).unwrap().notify();
        let (_, write) = std::io::pipe().unwrap();
        assert!(Call::new(OwnedFd::from(write), Arc::default()).is_err());
    }
}
