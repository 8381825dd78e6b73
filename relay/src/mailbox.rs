//! How control threads reach a worker: by message, and by ringing its eventfd (see [`handover`](crate::handover)).
//!
//! A lane has exactly one owner at any time: a worker, or the control thread that recalled it. It changes hands by
//! being sent, which orders all that the old owner did before all that the new one does.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::handover::{self, Bell, Inbox, Message, Owned, Post, Reply};
use crate::lane::{Lane, LaneKey};

/// Where a lane goes that was recalled.
type Answer = Sender<Box<Lane>>;
type ToWorker = Message<Lane, Answer>;

/// The sending side, for control threads.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    /// The CPU that the worker is pinned to.
    pub cpu: usize,
    sender: Sender<ToWorker>,
    bell: Arc<Eventfd>,
}

/// The receiving side, for the worker itself.
#[derive(Debug)]
pub struct Mailbox {
    receiver: Receiver<ToWorker>,
    bell: Arc<Eventfd>,
}

/// The bell.
#[derive(Debug)]
struct Eventfd(OwnedFd);

/// Both sides of a new mailbox.
pub fn mailbox(cpu: usize) -> std::io::Result<(WorkerHandle, Mailbox)> {
    let (sender, receiver) = unbounded();
    let bell = Arc::new(Eventfd(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
    Ok((WorkerHandle { cpu, sender, bell: Arc::clone(&bell) }, Mailbox { receiver, bell }))
}

impl WorkerHandle {
    fn send(&self, message: ToWorker) {
        handover::send(&self.sender, &*self.bell, message);
    }

    /// Gives a lane to the worker.
    pub fn adopt(&self, lane: Box<Lane>) {
        self.send(Message::Adopt(lane));
    }

    /// Takes a lane from the worker. It comes with the worker's next pass, within microseconds; a worker that does not
    /// answer is stuck, which is logged for as long as it lasts, since nothing safe can be done without the lane.
    pub fn recall(&self, key: LaneKey) -> Option<Box<Lane>> {
        let (reply, answer) = bounded(1);
        self.send(Message::Recall(key, reply));
        loop {
            match answer.recv_timeout(Duration::from_secs(2)) {
                Ok(lane) => return Some(lane),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    tracing::error!("worker on CPU {} does not hand over {key}: it is stuck", self.cpu);
                }
            }
        }
    }

    /// Ends the worker, which must have no lanes.
    pub fn stop(&self) {
        self.send(Message::Stop);
    }
}

impl Mailbox {
    /// Obeys all messages that wait; `false` when one said to end.
    // Boxed as they come, see [`crate::relay::Lanes`].
    #[allow(clippy::vec_box)]
    #[inline]
    pub(crate) fn attend(&self, lanes: &mut Vec<Box<Lane>>) -> bool {
        handover::attend(&self.receiver, lanes)
    }

    /// Sleeps for `limit`, or until there is a message.
    pub fn sleep(&self, limit: Duration) {
        handover::sleep(&*self.bell, limit);
    }
}

impl Owned for Lane {
    type Name = LaneKey;

    fn name(&self) -> LaneKey {
        self.key
    }
}

impl Reply<Lane> for Answer {
    fn hand_over(self, lane: Box<Lane>) {
        let _ = self.send(lane);
    }
}

impl Post<Lane, Answer> for Sender<ToWorker> {
    fn put(&self, message: ToWorker) {
        // A worker outlives every relay; only in the middle of a shutdown is nobody there, and then nobody polls.
        let _ = self.send(message);
    }
}

impl Inbox<Lane, Answer> for Receiver<ToWorker> {
    #[inline]
    fn take(&self) -> Option<ToWorker> {
        if self.is_empty() { None } else { self.try_recv().ok() }
    }
}

impl Bell for Eventfd {
    fn ring(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn wait(&self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let timeout = Timespec::try_from(limit).ok();
        poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
    }

    fn quieten(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}
