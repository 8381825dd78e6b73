//! Telling a guest that something happened: the call descriptor of a ring.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::OFlags;

/// The eventfd that interrupts the guest.
///
/// It comes from the front end and is therefore checked: only an eventfd that does not block is taken, since a worker
/// writes to it.
#[derive(Debug)]
pub struct Call(File);

impl Call {
    /// Takes a descriptor that a front end sent.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        check_eventfd(&fd)?;
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self(File::from(fd)))
    }

    /// Adds one to the eventfd. A counter at its limit means that the guest has not even looked yet, which is as good.
    #[inline]
    pub fn notify(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
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
    fn a_full_eventfd_does_not_block_and_a_pipe_is_refused() {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        Call::new(fd).unwrap().notify();
        let (_, write) = std::io::pipe().unwrap();
        assert!(Call::new(OwnedFd::from(write)).is_err());
    }
}
