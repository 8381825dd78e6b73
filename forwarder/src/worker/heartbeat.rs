//! Signs of life of a worker, and what it did with its time.

use std::sync::atomic::{AtomicU64, Ordering};

use relay::counters::Counter;
use relay::lane::LaneKey;
use relay::turns::ticks;

/// Signs of life and figures of one worker, which alone writes them. Read by the watchdog and for statistics.
#[derive(Debug)]
#[repr(align(128))]
pub struct Heartbeat {
    passes: Counter,
    /// One more than the [code](LaneKey::code) of the lane being stepped; 0 for none.
    lane: AtomicU64,
    empty_passes: Counter,
    busy_ticks: Counter,
    frames: Counter,
    sleeps: Counter,
    /// [`ticks`] when the worker started.
    start: u64,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            passes: Counter::default(),
            lane: AtomicU64::new(0),
            empty_passes: Counter::default(),
            busy_ticks: Counter::default(),
            frames: Counter::default(),
            sleeps: Counter::default(),
            start: ticks(),
        }
    }
}

/// What a worker has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Ticks of [`ticks`] since the start, asleep or awake.
    pub ticks: u64,
    /// Passes over the lanes.
    pub passes: u64,
    /// Passes that found no work.
    pub empty_passes: u64,
    /// Ticks in steps of lanes that had work; polling in vain is not in them.
    pub busy_ticks: u64,
    /// Frames taken from guests and devices.
    pub frames: u64,
    /// Times that it slept.
    pub sleeps: u64,
}

/// What one pass did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pass {
    /// Whether there was work, of lanes too whose turn it was not.
    pub(super) busy: bool,
    pub(super) busy_ticks: u64,
    pub(super) frames: u64,
}

impl Heartbeat {
    /// Passes so far; moves on while the worker lives, asleep or awake.
    pub fn passes(&self) -> u64 {
        self.passes.get()
    }

    /// The lane that the worker is in.
    pub fn lane(&self) -> Option<LaneKey> {
        self.lane.load(Ordering::Relaxed).checked_sub(1).map(LaneKey::from_code)
    }

    /// What the worker has done. Figures of the pass that is just ending may be there in part.
    pub fn figures(&self) -> Figures {
        Figures {
            ticks: ticks().wrapping_sub(self.start),
            passes: self.passes.get(),
            empty_passes: self.empty_passes.get(),
            busy_ticks: self.busy_ticks.get(),
            frames: self.frames.get(),
            sleeps: self.sleeps.get(),
        }
    }

    #[inline]
    pub(super) fn enter(&self, key: LaneKey) {
        self.lane.store(key.code() + 1, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn end_pass(&self, pass: &Pass) {
        self.lane.store(0, Ordering::Relaxed);
        self.passes.add(1);
        if pass.busy {
            self.busy_ticks.add(pass.busy_ticks);
            self.frames.add(pass.frames);
        } else {
            self.empty_passes.add(1);
        }
    }

    pub(super) fn count_sleep(&self) {
        self.sleeps.add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay::lane::Direction;

    #[test]
    fn it_names_the_lane() {
        let beat = Heartbeat::default();
        assert_eq!(beat.lane(), None);
        for direction in [Direction::VfToVm, Direction::VmToVf] {
            let key = LaneKey { relay: 7, direction };
            beat.enter(key);
            assert_eq!(beat.lane(), Some(key));
        }
        beat.end_pass(&Pass::default());
        assert_eq!((beat.lane(), beat.passes()), (None, 1));
    }

    #[test]
    fn only_passes_with_work_count_as_busy() {
        let beat = Heartbeat::default();
        beat.end_pass(&Pass { busy: true, busy_ticks: 900, frames: 32 });
        beat.end_pass(&Pass::default());
        let Figures { passes, empty_passes, busy_ticks, frames, .. } = beat.figures();
        assert_eq!((passes, empty_passes, busy_ticks, frames), (2, 1, 900, 32));
    }
}
