//! Translations that a ring misses: from the worker that owns the ring to the session thread, and from there to the
//! front end.
//!
//! ```text
//!   worker ──MissReporter──▶ slot, eventfd ──MissReports::take──▶ session ──BackendChannel::send_miss──▶ front end
//! ```
//!
//! A worker must neither block nor tell the same with every poll. So there is room for one report a ring; what is there
//! is not overwritten, and what was reported is reported again only after [`REPEAT`], in case it was lost or the front
//! end had no answer then. Addresses are those of 4 KiB pages: no IOMMU has smaller ones.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;
use rustix::net::SendFlags;

use super::iotlb::{MESSAGE, Permission};
use super::message::HEADER;

/// After this time what is still missing is reported again.
pub const REPEAT: Duration = Duration::from_millis(100);

/// Pages that one ring can wait for: it stops at the first that is missing, so there are more only if it is moved about.
const OUTSTANDING: usize = 8;

/// The low bits of an address within its page, which carry the permission in a report.
const IN_PAGE: u64 = 0xfff;

/// Both ends of the way for the misses of one ring. `wake` is the session's (see [`wake`]), one for all of its rings.
pub fn miss_report(wake: &Arc<OwnedFd>) -> (MissReporter, MissReports) {
    let slot = Arc::new(AtomicU64::new(0));
    let reporter = MissReporter {
        slot: Arc::clone(&slot),
        wake: Arc::clone(wake),
        outstanding: ArrayVec::new(),
        oldest: 0,
    };
    (reporter, MissReports { slot })
}

/// An eventfd to wake a session thread with; the thread polls it for reading and calls [`quieten`] before it takes reports.
pub fn wake() -> io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
}

/// Makes `wake` quiet again.
pub fn quieten(wake: &OwnedFd) {
    let _ = rustix::io::read(wake, &mut [0; 8]);
}

/// The ring's end: belongs to its owner, a worker.
#[derive(Debug)]
pub struct MissReporter {
    slot: Arc<AtomicU64>,
    wake: Arc<OwnedFd>,
    /// What was reported, and when.
    outstanding: ArrayVec<(u64, Instant), OUTSTANDING>,
    /// Which of them makes room for the next.
    oldest: usize,
}

impl MissReporter {
    /// Reports that `iova` has no translation that permits `needed`; returns whether that was news. Never blocks. If an
    /// earlier report has not been taken yet this one is left out: the ring comes again with its next poll.
    #[cold]
    pub fn report(&mut self, iova: u64, needed: Permission) -> bool {
        self.report_at(iova, needed, Instant::now())
    }

    fn report_at(&mut self, iova: u64, needed: Permission, now: Instant) -> bool {
        let key = iova & !IN_PAGE | needed as u64;
        let known = self.outstanding.iter().position(|(other, _)| *other == key);
        if known.is_some_and(|at| now.duration_since(self.outstanding[at].1) < REPEAT) {
            return false;
        }
        if self.slot.compare_exchange(0, key, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        match known {
            Some(at) => self.outstanding[at].1 = now,
            None => match self.outstanding.try_push((key, now)) {
                Ok(()) => {}
                Err(full) => {
                    self.outstanding[self.oldest] = full.element();
                    self.oldest = (self.oldest + 1) % OUTSTANDING;
                }
            },
        }
        // The eventfd is ours and does not block; at its limit it wakes as well.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        true
    }

    /// There are other translations now: of what was reported only that is still expected which `is_missing` there.
    /// Anything else that is missed from now on is news.
    pub fn renew(&mut self, is_missing: impl Fn(u64, Permission) -> bool) {
        self.outstanding.retain(|(key, _)| {
            Permission::from_number((*key & IN_PAGE) as u8)
                .is_some_and(|needed| is_missing(*key & !IN_PAGE, needed))
        });
        self.oldest = 0;
    }
}

/// The session's end.
#[derive(Debug)]
pub struct MissReports {
    slot: Arc<AtomicU64>,
}

impl MissReports {
    /// The address (of a page) and the permission that the ring misses, if it reported any since.
    pub fn take(&self) -> Option<(u64, Permission)> {
        let key = self.slot.swap(0, Ordering::AcqRel);
        Some((key & !IN_PAGE, Permission::from_number((key & IN_PAGE) as u8)?))
    }
}

/// `VHOST_USER_BACKEND_IOTLB_MSG`.
const BACKEND_IOTLB: u32 = 1;
/// Header flags: protocol version 1, and no answer is wanted, so there is nothing to read from the channel.
const FLAGS: u32 = 1;
/// Type of an IOTLB message: `VHOST_IOTLB_MISS`.
const MISS: u8 = 1;

/// The whole message that asks the front end for a translation of `iova` that permits `needed`.
pub fn miss_message(iova: u64, needed: Permission) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + MESSAGE);
    for word in [BACKEND_IOTLB, FLAGS, MESSAGE as u32] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    for word in [iova, 0, 0] {
        bytes.extend_from_slice(&u64::to_ne_bytes(word));
    }
    bytes.extend_from_slice(&[needed as u8, MISS, 0, 0, 0, 0, 0, 0]);
    bytes
}

/// The channel from back end to front end (`VHOST_USER_SET_BACKEND_REQ_FD`).
#[derive(Debug)]
pub struct BackendChannel {
    socket: OwnedFd,
    /// The rest of a message that went out in part.
    rest: Vec<u8>,
}

impl BackendChannel {
    /// Takes the descriptor that a front end sent: it must be a Unix stream socket.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let wrong =
            || io::Error::new(io::ErrorKind::InvalidInput, "the back end's channel is no Unix stream socket");
        let sockopt = |value: Result<bool, Errno>| value.ok().filter(|fits| *fits).ok_or_else(wrong);
        let socket = fd.as_fd();
        sockopt(
            rustix::net::sockopt::socket_domain(socket).map(|is| is == rustix::net::AddressFamily::UNIX),
        )?;
        sockopt(rustix::net::sockopt::socket_type(socket).map(|is| is == rustix::net::SocketType::STREAM))?;
        Ok(Self { socket: fd, rest: Vec::new() })
    }

    /// Asks for a translation. Never blocks: `Ok(false)` when the front end does not read just now, and nothing of the
    /// message went out; the ring will report the miss again. An error means that the channel is broken.
    pub fn send_miss(&mut self, iova: u64, needed: Permission) -> io::Result<bool> {
        if !self.flush()? {
            return Ok(false);
        }
        self.rest = miss_message(iova, needed);
        self.flush()?;
        let sent = self.rest.len() < HEADER + MESSAGE;
        if !sent {
            self.rest.clear();
        }
        Ok(sent)
    }

    /// Sends what is left of a message; returns whether nothing is.
    fn flush(&mut self) -> io::Result<bool> {
        while !self.rest.is_empty() {
            // By flag for each call: the front end may have a copy of this descriptor and change what it says.
            match rustix::net::send(&self.socket, &self.rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(n) => drop(self.rest.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    const RW: Permission = Permission::ReadWrite;

    fn rings(wake: &OwnedFd) -> bool {
        let mut fds = [PollFd::new(wake, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
    }

    #[test]
    fn a_miss_is_reported_once_however_often_the_ring_is_polled() {
        let wake = wake().unwrap();
        let (mut reporter, reports) = miss_report(&wake);
        let now = Instant::now();
        let mut report = |iova, needed| reporter.report_at(iova, needed, now);
        assert_eq!(reports.take(), None);
        assert!(report(0x1234, Permission::Write));
        assert!(rings(&wake));
        quieten(&wake);
        assert_eq!(reports.take(), Some((0x1000, Permission::Write)));
        for within_the_page in 0x1000..0x1100 {
            assert!(!report(within_the_page, Permission::Write));
        }
        assert!(!rings(&wake) && reports.take().is_none());
        assert!(report(0x1234, Permission::Read), "another permission is another miss");
        assert!(!report(0x2000, RW), "the first has not been taken");
        assert_eq!(reports.take(), Some((0x1000, Permission::Read)));
        assert!(report(0, RW));
        assert_eq!(reports.take(), Some((0, RW)), "address 0 is one like others");
    }

    #[test]
    fn a_translation_that_came_and_time_make_a_miss_news_again() {
        let (mut reporter, reports) = miss_report(&wake().unwrap());
        let now = Instant::now();
        assert!(reporter.report_at(0x1000, RW, now) && reports.take().is_some());
        reporter.renew(|address, needed| (address, needed) == (0x1000, RW));
        assert!(!reporter.report_at(0x1000, RW, now), "the answer to that is still to come");
        reporter.renew(|_, _| false);
        assert!(reporter.report_at(0x1000, RW, now) && reports.take().is_some());
        assert!(!reporter.report_at(0x1000, RW, now + REPEAT / 2));
        assert!(reporter.report_at(0x1000, RW, now + REPEAT) && reports.take().is_some());
        assert!(!reporter.report_at(0x1000, RW, now + REPEAT));
    }

    #[test]
    fn a_ring_that_is_moved_about_reports_on() {
        let (mut reporter, reports) = miss_report(&wake().unwrap());
        let now = Instant::now();
        for page in 0..3 * OUTSTANDING as u64 {
            assert!(reporter.report_at(page << 12, RW, now));
            assert_eq!(reports.take(), Some((page << 12, RW)));
        }
        assert!(!reporter.report_at((3 * OUTSTANDING as u64 - 1) << 12, RW, now));
    }

    #[test]
    fn a_report_from_another_thread_is_taken_whole() {
        let wake = wake().unwrap();
        let (mut reporter, reports) = miss_report(&wake);
        let worker = std::thread::spawn(move || {
            for page in 1..=1000u64 {
                while !reporter.report(page << 32, RW) {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 1;
        while next <= 1000 {
            poll(&mut [PollFd::new(&*wake, PollFlags::IN)], None).unwrap();
            quieten(&wake);
            while let Some(report) = reports.take() {
                assert_eq!(report, (next << 32, RW));
                next += 1;
            }
        }
        worker.join().unwrap();
    }

    #[test]
    fn the_message_is_laid_out_as_the_specification_says() {
        let message = miss_message(0x1122_3344_5566_7788, Permission::Write);
        assert_eq!(message.len(), 44);
        assert_eq!(message[..12], [1u32, 1, 32].map(u32::to_ne_bytes).concat());
        assert_eq!(message[12..36], [0x1122_3344_5566_7788u64, 0, 0].map(u64::to_ne_bytes).concat());
        assert_eq!(message[36..], [2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_front_end_that_does_not_read_neither_blocks_us_nor_gets_half_a_message() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = BackendChannel::new(OwnedFd::from(ours)).unwrap();
        let mut sent = 0u64;
        while channel.send_miss(sent << 12, RW).unwrap() {
            sent += 1;
        }
        let take = |theirs: &mut UnixStream, n: u64| {
            let mut message = [0; 44];
            theirs.read_exact(&mut message).unwrap();
            assert_eq!(message[..], miss_message(n << 12, RW), "message {n}");
        };
        take(&mut theirs, 0);
        assert!(sent > 1);
        let mut taken = 1;
        // The kernel frees room by buffers, not by bytes.
        while !channel.send_miss(sent << 12, RW).unwrap() {
            take(&mut theirs, taken);
            taken += 1;
        }
        for n in taken..=sent {
            take(&mut theirs, n);
        }
        drop(theirs);
        assert!(channel.send_miss(0, RW).is_err());
    }

    #[test]
    fn only_a_unix_stream_is_a_channel() {
        let (datagram, _) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let inet = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for fd in [OwnedFd::from(datagram), OwnedFd::from(inet), OwnedFd::from(file)] {
            assert!(BackendChannel::new(fd).is_err());
        }
    }
}
