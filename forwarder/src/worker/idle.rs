//! What a worker does when there is nothing to do: it spins, pauses, and sleeps.
//!
//! ```text
//!   work │ spin, 25 µs │ pauses, until no lane is polled any more │ sleep until a bell rings; at most 1 ms while a lane dozes
//! ```

use std::time::{Duration, Instant};

use relay::turns::ticks;

/// Without work a worker polls on at full speed for this long; then it pauses between passes.
const SPIN: Duration = Duration::from_micros(25);
/// Length of such a pause in ticks, about 0.5 µs, where the processor can pause for long.
const PAUSE: u64 = 1_000;
/// The first sleep beside lanes that must be looked at is so much shorter than the longest; each one without work after it
/// is twice as long.
const FIRST_SLEEP: u32 = 20;
/// So many timers after one round the next is due, in which those that sleep are looked at, too.
const ROUND: u32 = 500;
/// The longest sleep of a worker for which everything rings: the watchdog wants to see a beat.
const BEAT: Duration = Duration::from_millis(500);

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Sleep until a guest, a device or a control thread rings.
    Adaptive {
        /// The longest sleep while there are rings or devices that do not ring.
        timer: Duration,
    },
    /// Go on polling.
    Poll,
}

impl Default for Idle {
    /// Sleep, and let frames of those that do not ring wait for at most 1 ms.
    fn default() -> Self {
        Self::Adaptive { timer: Duration::from_millis(1) }
    }
}

impl Idle {
    /// How long a frame waits at most for which a bell should have rung, but did not: half a second by default.
    pub(super) fn round(self) -> Duration {
        match self {
            Self::Adaptive { timer } => (timer * ROUND).max(BEAT),
            Self::Poll => BEAT,
        }
    }
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    Pause(u64),
    Sleep(Duration),
}

/// Which lanes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Company {
    /// Some are polled in each pass.
    Awake,
    /// Some are to be looked at now and then.
    Dozing,
    /// All of them ring.
    Asleep,
    /// There are none.
    Nobody,
}

/// How long there has been nothing to do.
#[derive(Debug)]
pub(super) struct Restlessness {
    idle: Idle,
    last_work: Instant,
    /// Sleeps since then, as far as they grow.
    sleeps: u32,
}

impl Restlessness {
    pub(super) fn new(idle: Idle) -> Self {
        Self { idle, last_work: Instant::now(), sleeps: 0 }
    }

    #[inline]
    pub(super) fn next(&mut self, busy: bool, company: Company, now: Instant) -> Next {
        if busy {
            self.last_work = now;
            self.sleeps = 0;
            return Next::GoOn;
        }
        match (self.idle, company) {
            (_, Company::Nobody) => Next::Sleep(BEAT),
            (Idle::Poll, _) | (_, Company::Awake) => {
                let spins = now.saturating_duration_since(self.last_work) < SPIN;
                if spins { Next::GoOn } else { Next::Pause(PAUSE) }
            }
            (Idle::Adaptive { .. }, Company::Asleep) => Next::Sleep(BEAT),
            (Idle::Adaptive { timer }, Company::Dozing) => {
                let sleep = timer / FIRST_SLEEP * (1 << self.sleeps);
                self.sleeps = (self.sleeps + 1).min(FIRST_SLEEP.ilog2() + 1);
                Next::Sleep(sleep.min(timer))
            }
        }
    }
}

/// The time, to within some microseconds, for less than it costs to ask for it in each pass.
#[derive(Debug)]
pub(super) struct Clock {
    read: u64,
    now: Instant,
}

/// Ticks for which a time is good: 2 to 5 µs.
const GOOD_FOR: u64 = 10_000;

impl Clock {
    pub(super) fn new() -> Self {
        Self { read: ticks(), now: Instant::now() }
    }

    #[inline]
    pub(super) fn now(&mut self) -> Instant {
        let ticks = ticks();
        if ticks.wrapping_sub(self.read) > GOOD_FOR {
            *self = Self { read: ticks, now: Instant::now() };
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_spins_then_pauses_while_lanes_are_polled() {
        let mut rest = Restlessness::new(Idle::default());
        let start = rest.last_work;
        assert_eq!(rest.next(false, Company::Awake, start), Next::GoOn);
        assert_eq!(rest.next(false, Company::Awake, start + SPIN), Next::Pause(PAUSE));
        assert_eq!(rest.next(true, Company::Awake, start + SPIN), Next::GoOn);
        assert_eq!(rest.next(false, Company::Awake, start + SPIN), Next::GoOn, "the work has just ended");
    }

    #[test]
    fn beside_lanes_that_doze_sleep_grows_and_begins_anew_with_work() {
        let mut rest = Restlessness::new(Idle::default());
        let now = rest.last_work;
        let mut sleeps = || match rest.next(false, Company::Dozing, now) {
            Next::Sleep(time) => time.as_micros(),
            _ => 0,
        };
        assert_eq!([(); 6].map(|()| sleeps()), [50, 100, 200, 400, 800, 1000]);
        rest.next(true, Company::Awake, now);
        assert_eq!(rest.next(false, Company::Dozing, now), Next::Sleep(Duration::from_micros(50)));
    }

    #[test]
    fn it_sleeps_for_long_where_everything_rings_and_never_when_told_to_poll() {
        let now = Instant::now();
        assert_eq!(Restlessness::new(Idle::default()).next(false, Company::Asleep, now), Next::Sleep(BEAT));
        let mut poller = Restlessness::new(Idle::Poll);
        for company in [Company::Awake, Company::Dozing] {
            assert!(!matches!(poller.next(false, company, now + BEAT), Next::Sleep(_)));
        }
        assert_eq!(poller.next(false, Company::Nobody, now), Next::Sleep(BEAT), "nothing to poll");
    }

    #[test]
    fn the_clock_goes() {
        let mut clock = Clock::new();
        std::thread::sleep(Duration::from_millis(1));
        let before = Instant::now();
        let error = before.saturating_duration_since(clock.now());
        assert!(error < Duration::from_millis(1), "{error:?}");
    }
}
