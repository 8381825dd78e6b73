//! Workers: the polling threads, one pinned to each worker CPU.
//!
//! A worker owns the lanes that it was given and steps through them in turn, so that each has its share of the time (see
//! [`relay::turns`]). When nothing has happened for a while it sleeps between passes, for a moment that grows to a
//! millisecond; a message wakes it at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use relay::interrupt::Interrupter;
use relay::lane::{Direction, LaneKey};
use relay::mailbox::{Mailbox, WorkerHandle, mailbox};
use relay::relay::Lanes;
use relay::turns::{Turns, ticks};
use thiserror::Error;

/// Without work a worker polls on for this long before it sleeps.
const SPIN: Duration = Duration::from_micros(50);
/// First sleep; each one without work after it is twice as long, up to [`LONGEST_SLEEP`].
const SHORTEST_SLEEP: Duration = Duration::from_micros(50);
/// A frame waits at most about this long for a sleeping worker.
const LONGEST_SLEEP: Duration = Duration::from_millis(1);

/// CPUs that `sched_setaffinity(2)` can name with the C library's set type (`CPU_SETSIZE`).
const MAX_CPUS: usize = 1024;

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Idle {
    /// Sleep, a little.
    #[default]
    Adaptive,
    /// Go on polling.
    Poll,
}

/// Why a worker could not be started.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// No thread, or no eventfd.
    #[error("cannot start the worker for CPU {cpu}: {cause}")]
    Start {
        /// The CPU.
        cpu: usize,
        /// The system's answer.
        cause: io::Error,
    },
    /// The thread may not run there.
    #[error(
        "cannot pin a worker to CPU {0}: it is absent, offline, or outside the CPUs that this process may use"
    )]
    Pin(usize),
}

/// Signs of life of one worker. Read by the watchdog.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Heartbeat {
    passes: AtomicU64,
    /// The lane being stepped, as [`Heartbeat::lane`] decodes it; 0 for none.
    lane: AtomicU64,
}

impl Heartbeat {
    /// Passes over all lanes so far; moves on while the worker lives, asleep or awake.
    pub fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    /// The lane that the worker is in.
    pub fn lane(&self) -> Option<LaneKey> {
        let code = self.lane.load(Ordering::Relaxed).checked_sub(1)?;
        let direction = if code & 1 == 0 { Direction::VfToVm } else { Direction::VmToVf };
        Some(LaneKey { relay: (code >> 1) as u32, direction })
    }

    #[inline]
    fn enter(&self, key: LaneKey) {
        let code = u64::from(key.relay) << 1 | u64::from(key.direction == Direction::VmToVf);
        self.lane.store(code + 1, Ordering::Relaxed);
    }

    #[inline]
    fn pass(&self) {
        self.lane.store(0, Ordering::Relaxed);
        self.passes.store(self.passes.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// A running worker. Dropping it ends the thread; its lanes must have been recalled by then.
#[derive(Debug)]
pub struct Worker {
    handle: WorkerHandle,
    heartbeat: Arc<Heartbeat>,
    interrupter: Interrupter,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a worker pinned to `cpu`.
    pub fn start(cpu: usize, idle: Idle) -> Result<Self, WorkerError> {
        if cpu >= MAX_CPUS {
            return Err(WorkerError::Pin(cpu));
        }
        let failed = |cause| WorkerError::Start { cpu, cause };
        let (handle, mailbox) = mailbox(cpu).map_err(failed)?;
        let heartbeat = Arc::new(Heartbeat::default());
        let (report, pinned) = std::sync::mpsc::channel();
        let beat = Arc::clone(&heartbeat);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{cpu}"))
            .spawn(move || {
                let ok = core_affinity::set_for_current(core_affinity::CoreId { id: cpu });
                let _ = report.send(ok.then(Interrupter::of_this_thread));
                if ok {
                    run(&mailbox, &beat, idle);
                }
            })
            .map_err(failed)?;
        match pinned.recv() {
            Ok(Some(interrupter)) => Ok(Self { handle, heartbeat, interrupter, thread: Some(thread) }),
            _ => Err(WorkerError::Pin(cpu)),
        }
    }

    /// How to reach it.
    pub fn handle(&self) -> &WorkerHandle {
        &self.handle
    }

    /// How to end a system call that it is stuck in.
    pub fn interrupter(&self) -> Interrupter {
        self.interrupter
    }

    /// Its signs of life.
    pub fn heartbeat(&self) -> &Arc<Heartbeat> {
        &self.heartbeat
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(mailbox: &Mailbox, heartbeat: &Heartbeat, idle: Idle) {
    let mut lanes = Lanes::default();
    let mut rest = Rest::new();
    let mut turns = Turns::default();
    while lanes.attend(mailbox) {
        let now = Instant::now();
        let mut busy = false;
        let mut before = ticks();
        for lane in lanes.iter_mut() {
            if !turns.has_turn(&lane.account) {
                // It has work, and others have more right to the time.
                busy = true;
                continue;
            }
            heartbeat.enter(lane.key);
            let has_work = lane.step(now);
            let after = ticks();
            turns.charge(&mut lane.account, after.wrapping_sub(before), has_work);
            before = after;
            busy |= has_work;
        }
        turns.end_pass();
        heartbeat.pass();
        if busy {
            rest.reset(now);
        } else if lanes.is_empty() {
            // Nobody waits for anything here but messages; still, the watchdog wants to see a beat.
            mailbox.sleep(Duration::from_millis(500));
        } else if idle == Idle::Adaptive
            && let Some(time) = rest.next(now)
        {
            mailbox.sleep(time);
        }
    }
}

/// How long to sleep, by how long there has been nothing to do.
struct Rest {
    last_work: Instant,
    sleep: Duration,
}

impl Rest {
    fn new() -> Self {
        Self { last_work: Instant::now(), sleep: SHORTEST_SLEEP }
    }

    #[inline]
    fn reset(&mut self, now: Instant) {
        self.last_work = now;
        self.sleep = SHORTEST_SLEEP;
    }

    #[inline]
    fn next(&mut self, now: Instant) -> Option<Duration> {
        if now.duration_since(self.last_work) < SPIN {
            std::hint::spin_loop();
            return None;
        }
        let sleep = self.sleep;
        self.sleep = (sleep * 2).min(LONGEST_SLEEP);
        Some(sleep)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_grows_and_ends_with_work() {
        let mut rest = Rest::new();
        let start = rest.last_work;
        assert_eq!(rest.next(start), None, "it polls on at first");
        let later = start + SPIN;
        let sleeps: Vec<_> = (0..6).map(|_| rest.next(later).unwrap().as_micros()).collect();
        assert_eq!(sleeps, [50, 100, 200, 400, 800, 1000]);
        rest.reset(later);
        assert_eq!(rest.next(later), None);
        assert_eq!(rest.next(later + SPIN), Some(SHORTEST_SLEEP));
    }

    #[test]
    fn a_cpu_that_is_not_there_is_an_error() {
        for absent in [1000, MAX_CPUS, 100_000] {
            assert!(
                matches!(Worker::start(absent, Idle::Adaptive), Err(WorkerError::Pin(cpu)) if cpu == absent)
            );
        }
    }

    #[test]
    fn a_heartbeat_names_the_lane() {
        let beat = Heartbeat::default();
        assert_eq!(beat.lane(), None);
        for direction in [Direction::VfToVm, Direction::VmToVf] {
            let key = LaneKey { relay: 7, direction };
            beat.enter(key);
            assert_eq!(beat.lane(), Some(key));
        }
        beat.pass();
        assert_eq!((beat.lane(), beat.passes()), (None, 1));
    }
}
