//! How control threads reach a worker: by message, and by ringing its eventfd (see [`handover`](crate::handover)).
//!
//! A lane has exactly one owner at any time: a worker, or the control thread that recalled it. It changes hands by
//! being sent, which orders all that the old owner did before all that the new one does.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use crate::bells::Bells;
use crate::handover::{self, Bell, Inbox, Keep, Message, Owned, Post, Reply};
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
    bells: Arc<Bells>,
}

/// The receiving side, for the worker itself.
#[derive(Debug)]
pub struct Mailbox {
    receiver: Receiver<ToWorker>,
    bells: Arc<Bells>,
}

/// Both sides of a new mailbox.
pub fn mailbox(cpu: usize) -> std::io::Result<(WorkerHandle, Mailbox)> {
    let (sender, receiver) = unbounded();
    let bells = Arc::new(Bells::new()?);
    Ok((WorkerHandle { cpu, sender, bells: Arc::clone(&bells) }, Mailbox { receiver, bells }))
}

impl WorkerHandle {
    fn send(&self, message: ToWorker) {
        handover::send(&self.sender, &*self.bells, message);
    }

    /// Gives a lane to the worker, and has all that can bring it work ring there.
    pub fn adopt(&self, mut lane: Box<Lane>) {
        lane.ring_at(&self.bells);
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
    #[inline]
    pub fn attend(&self, lanes: &mut impl Keep<Lane>) -> bool {
        handover::attend(&self.receiver, lanes)
    }

    /// Whether there is work for lanes that are not polled; `rung` gets their names.
    #[inline]
    pub fn look(&self, rung: impl FnMut(LaneKey)) {
        handover::look(&*self.bells, rung);
    }

    /// Sleeps for `limit`, or until there is a message or work for a lane; `rung` gets the names of lanes with such work.
    pub fn sleep(&self, limit: Duration, rung: impl FnMut(LaneKey)) {
        handover::sleep(&*self.bells, limit, rung);
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

impl Bell for Bells {
    type Other = LaneKey;

    fn ring(&self) {
        Bells::ring(self);
    }

    fn wait(&self, limit: Duration, other: impl FnMut(LaneKey)) -> bool {
        Bells::wait(self, limit, other)
    }

    fn quieten(&self) {
        Bells::quieten(self);
    }
}
