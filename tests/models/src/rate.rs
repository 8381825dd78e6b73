//! How fast a driver is against the model of its device: what its own code costs a frame, without the model's.

#![allow(clippy::panic, reason = "a measurement of a broken driver ends by panicking")]

use std::ptr::NonNull;
use std::time::{Duration, Instant};

use pmd::frame::BURST_FRAMES;
use pmd::{Accepted, Burst, Completions, ReceiveQueue, Segment, Token, TransmitQueue};

use crate::exam::{Exam, numbered};
use crate::model::Model;

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

impl<M: Model> Exam<M> {
    /// Sends bursts of frames of `size` bytes for about `time` through a wire that returns them.
    ///
    /// # Panics
    /// Where a frame is lost.
    pub fn rate(&mut self, size: usize, time: Duration) -> Rate {
        self.function.with(|_, bus| bus.wire.set_looped(true));
        let mut bytes = numbered(0, size);
        let Some(start) = NonNull::new(bytes.as_mut_ptr()) else { panic!("no memory") };
        // SAFETY: the bytes outlive the burst and are not touched; the queue copies them.
        let segment = unsafe { Segment::new(start, size as u32) };
        let mut out = Burst::new();
        for n in 0..BURST_FRAMES {
            out.push(segment, Token(n as u32));
        }
        let function = self.function.clone();
        let queues = self.queues();
        let (mut frames, mut spent) = (0u64, 0u64);
        let accesses = function.accesses();
        let begin = Instant::now();
        let mut burst = Burst::new();
        while begin.elapsed() < time {
            let (start, in_model) = (ticks(), function.ticks_in_model());
            let mut sent = 0;
            while sent < BURST_FRAMES {
                queues.transmit[0].reclaim(&mut Completions::new());
                let Accepted::Copied(n) = queues.transmit[0].transmit(out.frames().skip(sent)) else {
                    panic!("not copied");
                };
                sent += n;
            }
            let mut received = 0;
            while received < BURST_FRAMES {
                queues.receive[0].receive(&mut burst);
                received += burst.len();
                let tokens = burst.frames().iter().map(|(frame, _)| frame.token());
                tokens.for_each(|token| queues.receive[0].release(token));
                burst.clear();
                assert!(begin.elapsed() < time + Duration::from_secs(2), "{received} of a burst came back");
            }
            frames += BURST_FRAMES as u64;
            spent += (ticks() - start).saturating_sub(function.ticks_in_model() - in_model);
        }
        let seconds = begin.elapsed().as_secs_f64();
        let (reads, writes) = function.accesses();
        let each = |count: u64| count as f64 / frames as f64;
        self.function.with(|_, bus| bus.wire.set_looped(false));
        self.no_faults();
        Rate {
            frames: frames as f64 / seconds,
            ticks: each(spent),
            accesses: (each(reads - accesses.0), each(writes - accesses.1)),
        }
    }
}
