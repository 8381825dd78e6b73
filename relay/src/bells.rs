//! What wakes a worker that sleeps: its own bell, which control threads ring, and the descriptors of its lanes.
//!
//! ```text
//!   control thread ── message ──▶ own bell ──┐
//!   guest ─────────── kick ─────▶ eventfd ───┼──▶ epoll ──▶ worker: these lanes, attend to messages
//!   device ────────── frames ───▶ its own ───┘
//! ```
//!
//! Lanes' descriptors are watched for *edges* and never read. They are shared with others: a kick comes from the front end,
//! which may make reading it block, or leave it readable forever. An edge costs one look, however long the descriptor
//! stays readable, and stays to be seen until somebody looks.
//!
//! A descriptor is registered when its lane first goes to a worker, by the control thread that sends it, and not again
//! while it is with the same worker.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::lane::LaneKey;

/// Bells that are told of at once; the others are told of at the next look.
const AT_ONCE: usize = 32;
/// What stands for the worker's own bell in the place of a lane's code.
const OWN: u64 = u64::MAX;

/// All bells of one worker.
#[derive(Debug)]
pub struct Bells {
    epoll: OwnedFd,
    own: OwnedFd,
}

impl Bells {
    /// The own bell, and no lane's.
    pub fn new() -> io::Result<Self> {
        let own = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &own, EventData::new_u64(OWN), EventFlags::IN)?;
        Ok(Self { epoll, own })
    }

    /// Rings the own bell.
    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.own, &1u64.to_ne_bytes());
    }

    /// Makes the own bell quiet.
    pub(crate) fn quieten(&self) {
        let _ = rustix::io::read(&self.own, &mut [0; 8]);
    }

    /// Waits until a bell rings or has rung, at most for `limit`. Calls `lane` for each lane with such a bell, some of them
    /// perhaps twice; returns whether the own bell rings.
    pub(crate) fn wait(&self, limit: Duration, mut lane: impl FnMut(LaneKey)) -> bool {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; AT_ONCE];
        // An error is the signal that ends system calls, which means nothing here.
        if !limit.is_zero() {
            // Limits of `epoll_wait` are whole milliseconds, those of `ppoll` are not.
            let timeout = Timespec::try_from(limit).ok();
            let _ = poll(&mut [PollFd::new(&self.epoll, PollFlags::IN)], timeout.as_ref());
        }
        let n = epoll::wait(&self.epoll, &mut events[..], Some(&Timespec::default())).unwrap_or(0);
        let mut own = false;
        for event in events.iter().take(n) {
            match event.data.u64() {
                OWN => own = true,
                code => lane(LaneKey::from_code(code)),
            }
        }
        own
    }
}

/// A descriptor that rings for a lane while its worker has an eye on it.
#[derive(Debug)]
pub struct Ringer {
    fd: OwnedFd,
    watched: Option<(Arc<Bells>, LaneKey)>,
}

impl Ringer {
    /// For a descriptor that is nobody else's.
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd, watched: None }
    }

    /// Has it ring for lane `key` among `bells`, and nowhere else.
    pub(crate) fn ring_at(&mut self, bells: &Arc<Bells>, key: LaneKey) {
        if self.watched.as_ref().is_some_and(|(there, lane)| Arc::ptr_eq(there, bells) && *lane == key) {
            return;
        }
        self.leave();
        let data = EventData::new_u64(key.code());
        match epoll::add(&bells.epoll, self.fd.as_fd(), data, EventFlags::IN | EventFlags::ET) {
            Ok(()) => self.watched = Some((Arc::clone(bells), key)),
            // The lane is polled then.
            Err(cause) => tracing::warn!("{key}: a descriptor cannot be waited for: {cause}"),
        }
    }

    /// Whether it rings anywhere.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.is_some()
    }

    fn leave(&mut self) {
        if let Some((bells, _)) = self.watched.take() {
            let _ = epoll::delete(&bells.epoll, self.fd.as_fd());
        }
    }
}

impl Drop for Ringer {
    /// Others may have the same eventfd open: to close it here does not end the watch.
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::lane::Direction;

    const LANE: LaneKey = LaneKey { relay: 7, direction: Direction::VmToVf };
    const NOT_LONG: Duration = Duration::from_millis(1);

    fn rung(bells: &Bells, limit: Duration) -> Vec<LaneKey> {
        let mut rung = Vec::new();
        bells.wait(limit, |lane| rung.push(lane));
        rung
    }

    fn kick(fd: &OwnedFd) {
        rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
    }

    fn ringer() -> (Ringer, OwnedFd) {
        let theirs = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        (Ringer::new(theirs.try_clone().unwrap()), theirs)
    }

    #[test]
    fn each_kick_is_told_of_once_and_is_not_lost_while_nobody_looks() {
        let bells = Arc::new(Bells::new().unwrap());
        let (mut ringer, theirs) = ringer();
        ringer.ring_at(&bells, LANE);
        assert!(rung(&bells, NOT_LONG).is_empty());
        for _ in 0..2 {
            kick(&theirs);
            assert_eq!(rung(&bells, Duration::from_secs(10)), [LANE]);
            assert!(rung(&bells, NOT_LONG).is_empty(), "it is still readable, and was told of");
        }
    }

    #[test]
    fn a_ringer_that_is_gone_does_not_ring_though_others_have_its_eventfd() {
        let bells = Arc::new(Bells::new().unwrap());
        let (mut ringer, theirs) = ringer();
        ringer.ring_at(&bells, LANE);
        drop(ringer);
        kick(&theirs);
        assert!(rung(&bells, NOT_LONG).is_empty());
    }

    #[test]
    fn a_ringer_that_moves_rings_at_its_new_place_alone() {
        let [old, new] = [(), ()].map(|()| Arc::new(Bells::new().unwrap()));
        let (mut ringer, theirs) = ringer();
        ringer.ring_at(&old, LANE);
        ringer.ring_at(&new, LANE);
        kick(&theirs);
        assert_eq!(rung(&new, Duration::from_secs(10)), [LANE]);
        assert!(rung(&old, NOT_LONG).is_empty());
    }

    #[test]
    fn a_sleep_of_microseconds_does_not_take_a_millisecond() {
        let bells = Bells::new().unwrap();
        let sleep = || {
            let start = Instant::now();
            bells.wait(Duration::from_micros(50), |_| ());
            start.elapsed()
        };
        let shortest = (0..200).map(|_| sleep()).min().unwrap();
        assert!((Duration::from_micros(50)..NOT_LONG).contains(&shortest), "{shortest:?}");
    }

    #[test]
    fn the_own_bell_rings_until_it_is_quiet() {
        let bells = Bells::new().unwrap();
        assert!(!bells.wait(NOT_LONG, |_| ()));
        bells.ring();
        assert!(bells.wait(Duration::from_secs(10), |_| ()) && bells.wait(NOT_LONG, |_| ()));
        bells.quieten();
        assert!(!bells.wait(NOT_LONG, |_| ()));
    }
}
