//! How fast a driver is against the model of its device: what its own code costs a frame, without the model's.

#![allow(clippy::panic, reason = "a measurement of a broken driver ends by panicking")]

use std::fmt;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use pmd::frame::BURST_FRAMES;
use pmd::{Accepted, Burst, Completions, ReceiveQueue, Segment, Token, TransmitQueue};

use crate::exam::{Exam, numbered};
use crate::model::Model;

/// A burst that is not back after so many looks is lost.
const MOST_LOOKS: u32 = 10_000_000;

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Frames a second that the driver sent and received again, the model's work included.
    pub frames: f64,
    /// Ticks of the time stamp counter that the driver took for sending one and receiving one, without the model's.
    pub ticks: f64,
    /// Register reads and writes a frame.
    pub accesses: (f64, f64),
}

/// The time stamp counter; nanoseconds where there is none.
#[inline]
pub(crate) fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction, and Linux leaves it to programs.
        unsafe { std::arch::x86_64::_rdtsc() }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

/// A driver that sends full bursts through a wire that returns them, and receives them again.
pub trait Looped: fmt::Debug {
    /// One burst of [`BURST_FRAMES`] out and back.
    ///
    /// # Panics
    /// Where a frame is lost.
    fn turn(&mut self);

    /// Register reads and writes so far.
    fn accesses(&self) -> (u64, u64);

    /// Ticks that the model has taken so far.
    fn ticks_in_model(&self) -> u64;

    /// See [`InProcess::leave_out`](crate::InProcess::leave_out).
    fn leave_model_out(&self, on: bool);

    /// That the model has seen nothing that is forbidden.
    ///
    /// # Panics
    /// Where it has.
    fn no_faults(&self);

    /// Goes on for about `time`.
    fn rate(&mut self, time: Duration) -> Rate {
        let (mut turns, mut spent) = (0u32, 0);
        let before = self.accesses();
        let begin = Instant::now();
        while begin.elapsed() < time {
            let (start, in_model) = (ticks(), self.ticks_in_model());
            self.turn();
            spent += (ticks() - start).saturating_sub(self.ticks_in_model() - in_model);
            turns += 1;
        }
        let frames = f64::from(turns) * BURST_FRAMES as f64;
        let seconds = begin.elapsed().as_secs_f64();
        let (reads, writes) = self.accesses();
        self.no_faults();
        let each = |count: u64| count as f64 / frames;
        Rate {
            frames: frames / seconds,
            ticks: each(spent),
            accesses: (each(reads - before.0), each(writes - before.1)),
        }
    }
}

/// An exam of such a driver.
#[derive(Debug)]
pub struct Loop<M: Model> {
    exam: Exam<M>,
    /// Of which all frames are made.
    _bytes: Box<[u8]>,
    out: Burst,
    back: Burst,
}

impl<M: Model> Loop<M> {
    /// With frames of `size` bytes.
    pub fn new(exam: Exam<M>, size: usize) -> Self {
        exam.function.with(|_, bus| bus.wire.set_looped(true));
        let mut bytes = numbered(0, size).into_boxed_slice();
        // SAFETY: the bytes live as long as the burst and are not touched; the queue copies them.
        let segment = unsafe { Segment::new(NonNull::from(&mut *bytes).cast(), size as u32) };
        let mut out = Burst::new();
        for n in 0..BURST_FRAMES {
            out.push(segment, Token(n as u32));
        }
        Self { exam, _bytes: bytes, out, back: Burst::new() }
    }
}

impl<M: Model> Looped for Loop<M> {
    fn turn(&mut self) {
        let Self { exam, out, back, .. } = self;
        let queues = exam.queues();
        let mut sent = 0;
        while sent < BURST_FRAMES {
            queues.transmit[0].reclaim(&mut Completions::new());
            let Accepted::Copied(n) = queues.transmit[0].transmit(out.frames().skip(sent)) else {
                panic!("not copied");
            };
            sent += n;
        }
        let (mut received, mut looks) = (0, 0);
        while received < BURST_FRAMES {
            queues.receive[0].receive(back);
            received += back.len();
            let tokens = back.frames().iter().map(|(frame, _)| frame.token());
            tokens.for_each(|token| queues.receive[0].release(token));
            back.clear();
            looks += 1;
            assert!(looks < MOST_LOOKS, "{received} of a burst came back");
        }
    }

    fn accesses(&self) -> (u64, u64) {
        self.exam.function.accesses()
    }

    fn ticks_in_model(&self) -> u64 {
        self.exam.function.ticks_in_model()
    }

    fn leave_model_out(&self, on: bool) {
        self.exam.function.leave_out(on);
    }

    fn no_faults(&self) {
        self.exam.no_faults();
    }
}
