//! The watchdog over what is sent: a device that finishes no frame, although it has some, is reset.
//!
//! ```text
//!   worker            looks for finished descriptors: found some, or none ──▶ Progress (one for each transmit queue)
//!   control thread    every 50 ms: anything new? ◀─────────────────────────── Watchdog ──▶ ResetNeeded
//! ```
//!
//! Only who looks finds nothing: an idle queue, and one whose worker is paused, say nothing about the device. Nor does time
//! without a link, when frames may have to wait, nor time in which nobody asked, as when the daemon was stopped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a queue may be looked at in vain, for families whose specification has no time of its own: as short as lets
/// traffic be back within 2 s.
pub const STALL: Duration = Duration::from_millis(1500);

/// Time that counts as passed between two questions, at most.
const MOST_TICK: Duration = Duration::from_millis(100);

/// How a transmit queue gets on: written by whoever looks at its ring, read by the control thread.
#[derive(Debug, Default)]
pub struct Progress {
    /// What the device has finished, in units of its own.
    finished: AtomicU64,
    /// Looks that found nothing, although something was to be finished.
    vain_looks: AtomicU64,
}

impl Progress {
    /// Somebody looked for what the device has finished, of which there must be some outstanding, and found so much.
    #[inline]
    pub fn looked(&self, finished: u64) {
        let counter = if finished > 0 { &self.finished } else { &self.vain_looks };
        // Its only writer.
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(finished.max(1)), Ordering::Relaxed);
    }
}

/// What is known of one queue.
#[derive(Debug, Default)]
struct Watch {
    finished: u64,
    vain_looks: u64,
    /// Since when it has been looked at in vain, by the watchdog's clock.
    since: Option<Duration>,
}

/// Watches the transmit queues of one run of a device.
#[derive(Debug, Default)]
pub struct Watchdog {
    queues: Vec<(Arc<Progress>, Watch)>,
    /// Time with a link.
    clock: Duration,
    asked: Option<Instant>,
}

impl Watchdog {
    /// A watchdog over these queues.
    pub fn over(queues: impl IntoIterator<Item = Arc<Progress>>) -> Self {
        let queues = queues.into_iter().map(|progress| (progress, Watch::default())).collect();
        Self { queues, clock: Duration::ZERO, asked: None }
    }

    /// The number of a queue that has been looked at for longer than `limit`, and up to now, without anything being finished.
    pub fn stalled(&mut self, now: Instant, has_link: bool, limit: Duration) -> Option<usize> {
        let passed = self.asked.replace(now).map_or(Duration::ZERO, |before| now.duration_since(before));
        if has_link {
            self.clock += passed.min(MOST_TICK);
        }
        let clock = self.clock;
        let mut stalled = None;
        for (number, (progress, watch)) in self.queues.iter_mut().enumerate() {
            let finished = progress.finished.load(Ordering::Relaxed);
            let vain_looks = progress.vain_looks.load(Ordering::Relaxed);
            let looked_in_vain = vain_looks != watch.vain_looks;
            if finished != watch.finished || !has_link {
                watch.since = None;
            }
            (watch.finished, watch.vain_looks) = (finished, vain_looks);
            // Who does not look says nothing about the device.
            if looked_in_vain && has_link && clock.saturating_sub(*watch.since.get_or_insert(clock)) > limit {
                stalled = stalled.or(Some(number));
            }
        }
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(500);

    /// A watchdog over two queues, and a clock that is ours.
    struct Run {
        queues: [Arc<Progress>; 2],
        dog: Watchdog,
        now: Instant,
    }

    impl Run {
        fn new() -> Self {
            let queues = [(); 2].map(|()| Arc::<Progress>::default());
            let dog = Watchdog::over(queues.iter().cloned());
            Self { queues, dog, now: Instant::now() }
        }

        /// So many questions, 50 ms apart, before each of which the second queue's worker looks and finds so much, if it
        /// looks at all.
        fn asks(&mut self, times: u32, looks: Option<u64>, has_link: bool) -> Option<usize> {
            let mut stalled = None;
            for _ in 0..times {
                if let Some(finished) = looks {
                    self.queues[1].looked(finished);
                }
                self.now += Duration::from_millis(50);
                stalled = stalled.or(self.dog.stalled(self.now, has_link, LIMIT));
            }
            stalled
        }
    }

    #[test]
    fn a_queue_that_is_looked_at_in_vain_for_longer_than_the_limit_is_stalled() {
        let mut run = Run::new();
        assert_eq!(run.asks(11, Some(0), true), None, "500 ms since the first look");
        assert_eq!(run.asks(1, Some(0), true), Some(1));
    }

    #[test]
    fn frames_that_come_seldom_show_it_too() {
        let mut run = Run::new();
        assert_eq!(run.asks(1, Some(0), true), None);
        assert_eq!(run.asks(100, None, true), None, "nobody looks");
        assert_eq!(run.asks(1, Some(0), true), Some(1));
    }

    #[test]
    fn an_idle_queue_a_busy_one_and_one_whose_worker_is_paused_are_not() {
        let mut run = Run::new();
        assert_eq!(run.asks(100, None, true), None, "idle");
        assert_eq!(run.asks(100, Some(3), true), None, "busy");
        for _ in 0..10 {
            assert_eq!(run.asks(9, Some(0), true), None, "slow");
            assert_eq!(run.asks(1, Some(1), true), None, "slow");
        }
        assert_eq!(run.asks(9, Some(0), true), None);
        assert_eq!(run.asks(100, None, true), None, "paused");
        assert_eq!(run.asks(9, Some(1), true), None, "what was sent meanwhile is found at once");
    }

    #[test]
    fn time_without_a_link_does_not_count_and_begins_anew_with_it() {
        let mut run = Run::new();
        assert_eq!(run.asks(10, Some(0), true), None);
        assert_eq!(run.asks(100, Some(0), false), None);
        assert_eq!(run.asks(11, Some(0), true), None);
        assert_eq!(run.asks(1, Some(0), true), Some(1));
    }

    #[test]
    fn a_daemon_that_was_stopped_has_seen_no_stalled_device() {
        let mut run = Run::new();
        assert_eq!(run.asks(5, Some(0), true), None);
        run.now += Duration::from_secs(3600);
        assert_eq!(run.asks(1, Some(0), true), None);
    }
}
