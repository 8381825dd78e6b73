//! Workers: the polling threads, one pinned to each worker CPU.
//!
//! A worker owns the lanes that it was given and steps through them in turn, so that each has its share of the time (see
//! [`relay::turns`]). Lanes that have been quiet for a while are left out ([`relay::roster`]), and when all are, it sleeps
//! until one of them or a message wakes it.

mod heartbeat;
mod idle;

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use relay::interrupt::Interrupter;
use relay::lane::Lane;
use relay::mailbox::{Mailbox, WorkerHandle, mailbox};
use relay::pause::pause;
use relay::roster::{LOOK, Resting, Roster};
use relay::turns::{Turns, ticks};
use thiserror::Error;

pub use heartbeat::{Figures, Heartbeat};
pub use idle::Idle;

use heartbeat::Pass;
use idle::{Clock, Company, Next, Restlessness};

/// Lanes for which a worker has room without allocating: those of 1024 relays.
const MOST_LANES: usize = 2048;

/// CPUs that `sched_setaffinity(2)` can name with the C library's set type (`CPU_SETSIZE`).
const MAX_CPUS: usize = 1024;

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
    let mut roster = Roster::new(MOST_LANES, idle != Idle::Poll);
    let mut rest = Restlessness::new(idle);
    let mut turns = Turns::default();
    let mut clock = Clock::new();
    let mut next_look = clock.now();
    let mut next_round = next_look + idle.round();
    while mailbox.attend(&mut roster) {
        let now = clock.now();
        let mut look = roster.is_quiet() || now >= next_look;
        if now >= next_round {
            next_round = now + idle.round();
            roster.stir();
            // In which they lie down again.
            look = true;
        }
        if look {
            next_look = now + LOOK;
            // Of a quiet one the bells were looked at when it slept; of one that polls none is asked to ring.
            if !roster.is_quiet() && roster.has_sleepers() {
                mailbox.look(|lane| roster.wake(&lane));
            }
        }
        let mut pass = Pass::default();
        step(roster.awake(), &mut turns, now, heartbeat, &mut pass);
        if look {
            step(roster.dozing(), &mut turns, now, heartbeat, &mut pass);
            roster.settle(now);
        }
        turns.end_pass();
        heartbeat.end_pass(&pass);
        match rest.next(pass.busy, company(&roster), now) {
            // Dear on some processors, and in emulated machines: not between bursts.
            Next::GoOn if pass.busy => {}
            Next::GoOn => std::hint::spin_loop(),
            Next::Pause(ticks) => pause(ticks),
            Next::Sleep(limit) => {
                heartbeat.count_sleep();
                mailbox.sleep(limit, |lane| roster.wake(&lane));
                turns.slept();
            }
        }
    }
}

/// Gives each of `lanes` its turn that has one.
#[inline]
fn step(lanes: &mut [Box<Lane>], turns: &mut Turns, now: Instant, heartbeat: &Heartbeat, pass: &mut Pass) {
    let mut before = ticks();
    for lane in lanes {
        if !turns.has_turn(&lane.account) {
            // It has work, and others have more right to the time.
            pass.busy = true;
            lane.worked(now);
            continue;
        }
        heartbeat.enter(lane.key);
        let has_work = lane.step(now);
        let after = ticks();
        let time = after.wrapping_sub(before);
        turns.charge(&mut lane.account, time, has_work);
        before = after;
        if has_work {
            lane.worked(now);
            pass.busy = true;
            pass.busy_ticks += time;
            pass.frames += lane.newly_counted();
        }
    }
}

fn company(roster: &Roster<Lane>) -> Company {
    match () {
        () if !roster.is_quiet() => Company::Awake,
        () if !roster.is_asleep() => Company::Dozing,
        () if !roster.is_empty() => Company::Asleep,
        () => Company::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_is_not_there_is_an_error() {
        for absent in [1000, MAX_CPUS, 100_000] {
            assert!(
                matches!(Worker::start(absent, Idle::default()), Err(WorkerError::Pin(cpu)) if cpu == absent)
            );
        }
    }
}
