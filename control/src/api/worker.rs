//! What the polling threads do with their CPUs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One worker since the daemon started. Counters only grow, so that two looks at them say what was in between; shares are
/// over the whole time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Worker {
    /// The CPU that it is pinned to.
    pub cpu: u32,
    /// The relays that it carries frames of, in one direction at least.
    pub relays: Vec<u32>,
    /// Share of the time that was spent on work, from 0 to 1; to look for work in vain is none.
    pub busy_share: f64,
    /// Cycles of work a frame; none before the first.
    pub busy_cycles_per_frame: Option<f64>,
    /// Share of its polls that found nothing, from 0 to 1.
    pub empty_polls_share: f64,
    /// Cycles of the processor's time stamp counter that have passed.
    pub cycles: u64,
    /// Those of them that were spent on work.
    pub busy_cycles: u64,
    /// Frames taken from VMs and devices.
    pub frames: u64,
    /// Rounds over its relays.
    pub polls: u64,
    /// Those of them that found nothing.
    pub empty_polls: u64,
    /// Times that it slept.
    pub sleeps: u64,
}

impl Worker {
    /// Fills in what follows from the counters.
    pub fn with_shares(mut self) -> Self {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        self.busy_share = share(self.busy_cycles, self.cycles).unwrap_or_default();
        self.busy_cycles_per_frame = share(self.busy_cycles, self.frames);
        self.empty_polls_share = share(self.empty_polls, self.polls).unwrap_or_default();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_follow_from_counters() {
        let worker = Worker {
            cycles: 1000,
            busy_cycles: 250,
            frames: 10,
            polls: 4,
            empty_polls: 3,
            ..Worker::default()
        };
        let worker = worker.with_shares();
        assert_eq!(
            (worker.busy_share, worker.busy_cycles_per_frame, worker.empty_polls_share),
            (0.25, Some(25.0), 0.75)
        );
        let idle = Worker::default().with_shares();
        assert_eq!((idle.busy_share, idle.busy_cycles_per_frame, idle.empty_polls_share), (0.0, None, 0.0));
    }
}
