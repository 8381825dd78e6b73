//! What the demonstration says at its end.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The figures of a run.
#[derive(Debug)]
pub struct Summary {
    /// Time for which the guest sent as fast as it could.
    pub elapsed: Duration,
    /// Frames that came back in that time.
    pub frames: u64,
    /// Their bytes, without FCS.
    pub bytes: u64,
    /// Frames sent, over the whole run.
    pub sent: u64,
    /// Frames that never came back.
    pub lost: u64,
    /// Frames that came back after a later one.
    pub reordered: u64,
    /// Frames that came back changed.
    pub damaged: u64,
    /// Nanoseconds from sending a single frame to having it back.
    pub latency: Option<Histogram<u64>>,
}

impl Summary {
    /// Whether everything came back as it was sent.
    pub fn is_clean(&self) -> bool {
        self.sent > 0 && self.lost == 0 && self.reordered == 0 && self.damaged == 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        let mean = self.bytes.checked_div(self.frames).unwrap_or_default();
        writeln!(
            f,
            "rate       {:.2} Mpps, {:.2} Gb/s, frames of 60 to 1514 bytes ({mean} on average), for {seconds:.1} s",
            self.frames as f64 / seconds / 1e6,
            self.bytes as f64 * 8.0 / seconds / 1e9,
        )?;
        if let Some(latency) = &self.latency {
            let at = |percentile| latency.value_at_percentile(percentile) as f64 / 1000.0;
            writeln!(
                f,
                "one frame  {:.1} us there and back (50th percentile), {:.1} us (99th), {:.1} us (99.9th)",
                at(50.0),
                at(99.0),
                at(99.9)
            )?;
        }
        write!(
            f,
            "sent {}, lost {}, reordered {}, damaged {}",
            self.sent, self.lost, self.reordered, self.damaged
        )
    }
}
