//! The watchdog: notices a worker that no longer gets round its lanes, names it in the log, and lets systemd know.
//!
//! While every worker gets round, systemd is patted on schedule. While one does not, it is not, and its status line
//! says which one and where: with `WatchdogSec=` in the unit, systemd then restarts the daemon, and VMs reconnect.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use relay::interrupt::Interrupter;

use crate::worker::{Heartbeat, Worker};

/// How often workers are looked at.
const INTERVAL: Duration = Duration::from_millis(20);
/// How often the verdict is told, systemd patted.
const TELL_INTERVAL: Duration = Duration::from_millis(500);
/// A worker that stays in one lane for so long may be in a system call that the lane's guest makes block: it is
/// interrupted. For a worker that only waits for its CPU that means nothing.
const INTERRUPT: Duration = Duration::from_millis(20);
/// A worker that has not got round for so long is stuck. A pass over 64 lanes with full bursts takes far below 1 ms.
const STUCK: Duration = Duration::from_secs(2);

/// What the watchdog tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All workers get round.
    Healthy,
    /// This one does not; a sentence for people.
    Stuck(String),
}

struct Watched {
    cpu: usize,
    beat: Arc<Heartbeat>,
    interrupter: Option<Interrupter>,
    passes: u64,
    since: Instant,
    reported: bool,
}

impl Watched {
    fn new(cpu: usize, beat: &Arc<Heartbeat>, interrupter: Option<Interrupter>, now: Instant) -> Self {
        Self { cpu, beat: Arc::clone(beat), interrupter, passes: beat.passes(), since: now, reported: false }
    }
}

/// Looks at workers, one look at a time.
pub struct Watch {
    workers: Vec<Watched>,
}

impl Watch {
    /// Watches these workers.
    pub fn new<'a>(workers: impl IntoIterator<Item = &'a Worker>, now: Instant) -> Self {
        let watched = |worker: &Worker| {
            Watched::new(worker.handle().cpu, worker.heartbeat(), Some(worker.interrupter()), now)
        };
        Self { workers: workers.into_iter().map(watched).collect() }
    }

    /// Looks at all workers. What is new is logged.
    pub fn look(&mut self, now: Instant) -> Verdict {
        let mut verdict = Verdict::Healthy;
        for worker in &mut self.workers {
            let passes = worker.beat.passes();
            if passes != worker.passes {
                if worker.reported {
                    tracing::warn!("worker on CPU {} goes on", worker.cpu);
                }
                (worker.passes, worker.since, worker.reported) = (passes, now, false);
                continue;
            }
            let time = now.duration_since(worker.since);
            if time >= INTERRUPT && worker.beat.lane().is_some() {
                worker.interrupter.inspect(Interrupter::interrupt);
            }
            if time < STUCK {
                continue;
            }
            let place = worker.beat.lane().map_or("between lanes".to_owned(), |lane| format!("in {lane}"));
            let sentence = format!("worker on CPU {} is stuck for {} s {place}", worker.cpu, time.as_secs());
            if !worker.reported {
                tracing::error!("{sentence}");
                worker.reported = true;
            }
            verdict = Verdict::Stuck(sentence);
        }
        verdict
    }
}

/// The watchdog's thread. Dropping it ends it.
#[derive(Debug)]
pub struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Looks at the workers all the time and hands a verdict to `tell` twice a second.
    pub fn start(mut watch: Watch, tell: impl Fn(&Verdict) + Send + 'static) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).stack_size(256 * 1024).spawn(
            move || {
                let mut told = Instant::now();
                while stopped.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                    let now = Instant::now();
                    let verdict = watch.look(now);
                    if now.duration_since(told) >= TELL_INTERVAL {
                        tell(&verdict);
                        told = now;
                    }
                }
            },
        )?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Tells systemd: a pat when all is well, the name of the stuck worker when not.
pub fn tell_systemd(verdict: &Verdict) {
    use sd_notify::NotifyState;
    let _ = match verdict {
        Verdict::Healthy => sd_notify::notify(&[NotifyState::Watchdog]),
        Verdict::Stuck(sentence) => sd_notify::notify(&[NotifyState::Status(sentence)]),
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Idle;

    #[test]
    fn a_worker_that_stands_still_is_named_and_forgiven_when_it_goes_on() {
        let stuck = Arc::new(Heartbeat::default());
        let start = Instant::now();
        let mut watch = Watch { workers: vec![Watched::new(5, &stuck, None, start)] };
        assert_eq!(watch.look(start + STUCK / 2), Verdict::Healthy);
        let Verdict::Stuck(sentence) = watch.look(start + STUCK) else { panic!("not noticed") };
        assert!(sentence.contains("CPU 5"), "{sentence}");
    }

    #[test]
    fn an_idle_worker_is_not_a_stuck_one() {
        let worker = Worker::start(core_affinity::get_core_ids().unwrap()[0].id, Idle::default()).unwrap();
        let start = Instant::now();
        let mut watch = Watch::new([&worker], start);
        std::thread::sleep(Duration::from_millis(1200));
        assert_eq!(watch.look(start + STUCK), Verdict::Healthy);
    }
}
