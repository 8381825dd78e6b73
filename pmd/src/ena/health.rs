//! What a queue tells the slow side of its device: that the device broke a rule.

use std::sync::atomic::{AtomicU8, Ordering};

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
}

#[cfg(test)]
mod tests {
    use super::*;

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
