//! How control threads reach a worker: by message, and by ringing its eventfd.
//!
//! A lane has exactly one owner at any time: a worker, or the control thread that recalled it. It changes hands by
//! being sent, which orders all that the old owner did before all that the new one does.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use rustix::event::{EventfdFlags, eventfd};

use crate::lane::{Lane, LaneKey};

/// A message to a worker.
#[derive(Debug)]
pub enum ToWorker {
    /// Poll this lane from now on.
    Adopt(Box<Lane>),
    /// Hand this lane over, as it is.
    Recall(LaneKey, Sender<Box<Lane>>),
    /// End. A worker is only stopped when it has no lanes.
    Stop,
}

/// The sending side, for control threads.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    /// The CPU that the worker is pinned to.
    pub cpu: usize,
    sender: Sender<ToWorker>,
    bell: Arc<OwnedFd>,
}

/// The receiving side, for the worker itself.
#[derive(Debug)]
pub struct Mailbox {
    receiver: Receiver<ToWorker>,
    bell: Arc<OwnedFd>,
}

/// Both sides of a new mailbox.
pub fn mailbox(cpu: usize) -> std::io::Result<(WorkerHandle, Mailbox)> {
    let (sender, receiver) = unbounded();
    let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    Ok((WorkerHandle { cpu, sender, bell: Arc::clone(&bell) }, Mailbox { receiver, bell }))
}

impl WorkerHandle {
    fn send(&self, message: ToWorker) {
        // A worker outlives every relay; only in the middle of a shutdown is nobody there, and then nobody polls.
        let _ = self.sender.send(message);
        let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
    }

    /// Gives a lane to the worker.
    pub fn adopt(&self, lane: Box<Lane>) {
        self.send(ToWorker::Adopt(lane));
    }

    /// Takes a lane from the worker. It comes with the worker's next pass, within microseconds; a worker that does not
    /// answer is stuck, which is logged for as long as it lasts, since nothing safe can be done without the lane.
    pub fn recall(&self, key: LaneKey) -> Option<Box<Lane>> {
        let (reply, answer) = bounded(1);
        self.send(ToWorker::Recall(key, reply));
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

    /// Ends the worker.
    pub fn stop(&self) {
        self.send(ToWorker::Stop);
    }
}

impl Mailbox {
    /// The next message, if there is one.
    #[inline]
    pub fn take(&self) -> Option<ToWorker> {
        if self.receiver.is_empty() { None } else { self.receiver.try_recv().ok() }
    }

    /// What to sleep on: readable as soon as there is a message.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Makes the bell quiet again; to be called after waking and before looking for messages.
    pub fn answer_bell(&self) {
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
    }
}
