//! What a queue tells the slow side of its device: that the device broke a rule, or has stopped working.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A rule that a device broke. Its number is that of the reset that follows (`ena_regs_reset_reason_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Breach {
    /// It returned a receive buffer that it did not have.
    ReceiveId = 4,
    /// It completed a frame that it did not have.
    TransmitId = 5,
    /// A frame takes more buffers than the longest needs.
    TooManyBuffers = 6,
    /// A receive completion is impossible.
    ReceiveDescriptor = 16,
    /// A transmit completion is impossible.
    TransmitDescriptor = 17,
}

impl Breach {
    const ALL: [Self; 5] = [
        Self::ReceiveId,
        Self::TransmitId,
        Self::TooManyBuffers,
        Self::ReceiveDescriptor,
        Self::TransmitDescriptor,
    ];

    /// What happened, as the end of a sentence about the device.
    pub fn what(self) -> &'static str {
        match self {
            Self::ReceiveId => "returned a receive buffer that it did not have",
            Self::TransmitId => "completed a frame that it did not have",
            Self::TooManyBuffers => "received a frame that is too long",
            Self::ReceiveDescriptor => "wrote an impossible receive completion",
            Self::TransmitDescriptor => "wrote an impossible transmit completion",
        }
    }
}

/// The health of one queue: written by its worker, read by the control thread.
#[derive(Debug, Default)]
pub struct Health {
    breach: AtomicU8,
    /// Frames that the device completed.
    completed: AtomicU64,
    /// Looks for completions that found none although frames were on their way.
    vain_looks: AtomicU64,
}

impl Health {
    /// The device broke a rule.
    pub fn breached(&self, breach: Breach) {
        self.breach.store(breach as u8, Ordering::Relaxed);
    }

    /// The rule that the device broke.
    pub fn breach(&self) -> Option<Breach> {
        let number = self.breach.load(Ordering::Relaxed);
        Breach::ALL.into_iter().find(|breach| *breach as u8 == number)
    }

    /// The worker looked for completions and found `completed`.
    #[inline]
    pub fn looked(&self, completed: u64) {
        let counter = if completed > 0 { &self.completed } else { &self.vain_looks };
        // Its only writer.
        counter.store(counter.load(Ordering::Relaxed) + completed.max(1), Ordering::Relaxed);
    }
}

/// Watches whether a queue's frames are sent at all.
#[derive(Debug, Default)]
pub struct Watch {
    completed: u64,
    vain_looks: u64,
    /// Since when the worker has looked in vain.
    since: Option<Instant>,
}

impl Watch {
    /// Whether the worker has looked for longer than `limit`, and up to now, without finding anything.
    pub fn is_stuck(&mut self, health: &Health, limit: Duration) -> bool {
        let completed = health.completed.load(Ordering::Relaxed);
        let vain_looks = health.vain_looks.load(Ordering::Relaxed);
        let looks_on = vain_looks != self.vain_looks;
        if completed != self.completed {
            self.since = None;
        }
        (self.completed, self.vain_looks) = (completed, vain_looks);
        // A worker that does not look says nothing about the device.
        looks_on && self.since.get_or_insert_with(Instant::now).elapsed() > limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_looks_in_vain_all_the_time_is_stuck() {
        let (health, mut watch, now) = (Health::default(), Watch::default(), Duration::ZERO);
        assert!(!watch.is_stuck(&health, now), "nothing was sent");
        health.looked(0);
        assert!(!watch.is_stuck(&health, Duration::from_secs(9)));
        assert!(!watch.is_stuck(&health, now), "nobody has looked since");
        health.looked(0);
        std::thread::sleep(Duration::from_millis(1));
        assert!(watch.is_stuck(&health, now));
        health.looked(0);
        health.looked(3);
        assert!(!watch.is_stuck(&health, Duration::from_secs(9)));
    }

    #[test]
    fn a_breach_is_told_as_it_was_told() {
        let health = Health::default();
        assert_eq!(health.breach(), None);
        for breach in Breach::ALL {
            health.breached(breach);
            assert_eq!(health.breach(), Some(breach));
        }
    }
}
