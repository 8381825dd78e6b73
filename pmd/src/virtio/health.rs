//! What the queues tell the slow side: what they counted, and that the device is not to be trusted any more.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::ring::Breach;

/// Why the device must be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// It gave back what it did not have.
    NotGiven,
    /// It gave back more than it had.
    TooMany,
    /// Where one received frame ends and the next begins is not known any more.
    Framing,
}

impl From<Breach> for Complaint {
    fn from(breach: Breach) -> Self {
        match breach {
            Breach::NotGiven => Self::NotGiven,
            Breach::TooMany => Self::TooMany,
        }
    }
}

impl Complaint {
    const ALL: [Self; 3] = [Self::NotGiven, Self::TooMany, Self::Framing];

    /// In words, as the end of a sentence that begins with the device's name.
    pub fn words(self) -> &'static str {
        match self {
            Self::NotGiven => "gave a buffer back that it did not have",
            Self::TooMany => "gave more buffers back than it had",
            Self::Framing => "spread a received frame over buffers as its own header does not say",
        }
    }
}

/// Shared by the slow side and the queues of one run.
#[derive(Debug, Default)]
pub struct Health {
    complaint: AtomicU8,
}

impl Health {
    /// A queue has something to complain of; the first complaint stays.
    pub fn complain(&self, complaint: Complaint) {
        let number = Complaint::ALL.iter().position(|one| *one == complaint).map_or(0, |at| at as u8 + 1);
        let _ = self.complaint.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// What was complained of.
    pub fn complaint(&self) -> Option<Complaint> {
        let number = usize::from(self.complaint.load(Ordering::Relaxed));
        Complaint::ALL.get(number.wrapping_sub(1)).copied()
    }
}

/// What all queues of one kind count. A worker adds to it once a burst.
#[derive(Debug, Default)]
pub struct Counters {
    /// Frames.
    pub frames: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Received: shorter than a header, or longer than the buffer. Sent: of a length that the device does not take.
    pub length_errors: AtomicU64,
    /// Received: with a header that contradicts the frame.
    pub header_errors: AtomicU64,
    /// Buffers that came back wrongly.
    pub ring_errors: AtomicU64,
}

impl Counters {
    /// Frames that were lost for any reason.
    pub fn errors(&self) -> u64 {
        [&self.length_errors, &self.header_errors, &self.ring_errors]
            .map(|counter| counter.load(Ordering::Relaxed))
            .iter()
            .sum()
    }

    /// A burst passed.
    #[inline]
    pub fn add(&self, frames: u64, bytes: u64) {
        if frames > 0 {
            self.frames.fetch_add(frames, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}

/// One more.
pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaint_stays() {
        let health = Health::default();
        assert_eq!(health.complaint(), None);
        health.complain(Complaint::Framing);
        health.complain(Complaint::NotGiven);
        assert_eq!(health.complaint(), Some(Complaint::Framing));
    }
}
