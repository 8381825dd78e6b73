//! The built-in guest: sends as fast as frames come back, then one at a time.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use relay::driver::nic::GuestNic;

use super::frames::{Frames, SIZES};
use super::report::Summary;

/// Frames under way at once, below the number of receive buffers: whatever is lost was lost by the relay.
const WINDOW: u64 = 192;
/// Frames that are still missing after this time are lost.
const STRAGGLERS: Duration = Duration::from_secs(2);
/// How often the rate on the screen changes.
const SCREEN: Duration = Duration::from_millis(250);

pub(super) struct Guest {
    nic: GuestNic,
    frames: Frames,
    start: Instant,
    sent: u64,
    bytes: u64,
    received: u64,
    next: u64,
    reordered: u64,
    damaged: u64,
    latency: Option<Histogram<u64>>,
}

impl Guest {
    pub(super) fn new(mut nic: GuestNic) -> Self {
        nic.set_polling(true);
        Self {
            nic,
            frames: Frames::new(),
            start: Instant::now(),
            sent: 0,
            bytes: 0,
            received: 0,
            next: 0,
            reordered: 0,
            damaged: 0,
            latency: None,
        }
    }

    pub(super) fn run(mut self, time: Duration) -> Summary {
        // Nine tenths for the rate, the rest for the time that a single frame takes.
        let screen = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            screen.set_style(style);
        }
        self.start = Instant::now();
        let rate_time = time.mul_f64(0.9);
        let (mut shown, mut shown_frames) = (self.start, 0);
        while self.start.elapsed() < rate_time {
            for _ in 0..64 {
                self.exchange(WINDOW);
            }
            if shown.elapsed() >= SCREEN {
                let rate = (self.received - shown_frames) as f64 / shown.elapsed().as_secs_f64() / 1e6;
                screen.set_message(format!(
                    "{rate:.2} Mpps, {} frames, {} reordered",
                    self.received, self.reordered
                ));
                screen.tick();
                (shown, shown_frames) = (Instant::now(), self.received);
            }
        }
        self.drain();
        let elapsed = self.start.elapsed();
        let (frames, bytes) = (self.received, self.bytes);

        screen.set_message("one frame at a time");
        screen.tick();
        // 1 ns to 10 s; the bounds are constants, so this cannot fail, and without it there are no percentiles.
        self.latency = Histogram::new_with_bounds(1, 10_000_000_000, 3).ok();
        let end = Instant::now() + (time - rate_time);
        while Instant::now() < end {
            self.exchange(1);
        }
        self.drain();
        screen.finish_and_clear();
        Summary {
            elapsed,
            frames,
            bytes,
            sent: self.sent,
            lost: self.sent - self.received.min(self.sent),
            reordered: self.reordered,
            damaged: self.damaged,
            latency: self.latency,
        }
    }

    /// Sends until `window` frames are under way, and takes in what has come back.
    fn exchange(&mut self, window: u64) {
        self.nic.take_sent();
        let before = self.sent;
        let now = self.start.elapsed().as_nanos() as u64;
        while self.sent - self.received < window {
            if !self.nic.send(self.frames.write(self.sent, now)) {
                break;
            }
            self.sent += 1;
        }
        if self.sent != before {
            self.nic.flush();
        }
        if self.take_in() == 0 {
            std::thread::yield_now();
        }
    }

    fn take_in(&mut self) -> usize {
        let Self { nic, frames, start, received, next, reordered, damaged, bytes, latency, .. } = self;
        nic.receive(64, |frame| {
            *received += 1;
            *bytes += frame.len() as u64;
            match frames.check(frame) {
                None => *damaged += 1,
                Some(label) => {
                    // A number that was skipped is late or lost; if late, it is out of order when it comes.
                    *reordered += u64::from(label.number < *next);
                    *next = (*next).max(label.number + 1);
                    if let Some(latency) = latency {
                        let now = start.elapsed().as_nanos() as u64;
                        let _ = latency.record(now.saturating_sub(label.sent).max(1));
                    }
                }
            }
        })
    }

    fn drain(&mut self) {
        let deadline = Instant::now() + STRAGGLERS;
        while self.received < self.sent && Instant::now() < deadline {
            self.nic.take_sent();
            if self.take_in() == 0 {
                std::thread::yield_now();
            }
        }
    }
}

const _: () = assert!(WINDOW < 256 && SIZES.len().is_power_of_two());
