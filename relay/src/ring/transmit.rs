//! The guest's transmit queue: frames leave it borrowed, and come back completed.

use pmd::frame::BURST_BYTES;
use pmd::{Burst, Token};

use super::chain::{Access, Stop};
use super::split::SplitRing;
use crate::counters::{DirectionCounters, DropReason};

/// A transmit queue of a guest (virtqueue 1, 3, 5 …).
///
/// The chains of frames in a burst are *taken* but not *completed*: their memory is borrowed from the guest until
/// [`complete`](Self::complete) has been called with each frame's token.
#[derive(Debug)]
pub struct TransmitRing {
    ring: SplitRing,
    header: u32,
}

impl TransmitRing {
    /// Frames stand behind `header` bytes of virtio-net header.
    pub fn new(mut ring: SplitRing, header: u32) -> Self {
        ring.disable_kicks();
        Self { ring, header }
    }

    /// The ring itself, for what is not about frames.
    pub fn ring(&mut self) -> &mut SplitRing {
        &mut self.ring
    }

    /// Adds waiting frames to `burst`, as many as fit. A malformed chain is completed unused and counted.
    ///
    /// Such a chain is only dealt with at the head of the burst: what follows a frame can still be put back.
    pub(crate) fn receive(&mut self, burst: &mut Burst, counters: &DirectionCounters) {
        self.ring.begin_burst();
        let room = burst.room() as u16;
        let Ok(waiting) = self.ring.available(room) else {
            counters.bad_available_index.add(1);
            return;
        };
        let waiting = waiting.min(room);
        for ahead in 0..waiting {
            self.ring.prefetch(self.ring.head(ahead));
        }
        for _ in 0..waiting {
            if burst.room() == 0 || self.ring.is_exhausted() {
                return;
            }
            let head = self.ring.head(0);
            match self.push_frame(head, burst) {
                Ok(()) => self.ring.take(1),
                Err(Stop::Enough | Stop::Unmapped) => return,
                Err(Stop::Malformed(reason)) => {
                    if !burst.is_empty() {
                        return;
                    }
                    self.ring.take(1);
                    self.ring.complete(head, 0);
                    counters.count_drop(reason, 1);
                }
            }
        }
    }

    #[inline]
    fn push_frame(&mut self, head: u16, burst: &mut Burst) -> Result<(), Stop> {
        let fresh = burst.is_empty();
        let mut header = self.header;
        let mut total = 0u32;
        let walked = self.ring.walk(head, Access::Read, |segment| {
            let skipped = header.min(segment.len());
            header -= skipped;
            if skipped == segment.len() {
                return Ok(());
            }
            let segment = segment.part(skipped, u32::MAX);
            total = total.saturating_add(segment.len());
            if total > BURST_BYTES {
                return Err(DropReason::FrameTooLong.into());
            }
            // A chain that does not fit behind other frames may fit alone; one that does not fit alone never will.
            let full = if fresh { DropReason::TooManyBuffers.into() } else { Stop::Enough };
            burst.push_segment(segment).map_err(|_| full)
        });
        let walked = walked.and_then(|()| match total {
            _ if header > 0 => Err(DropReason::ChainTooShort.into()),
            0 => Err(DropReason::FrameTooShort.into()),
            _ => Ok(()),
        });
        match walked {
            Ok(()) => {
                burst.finish_frame(Token(u32::from(head)));
            }
            Err(_) => burst.abandon_frame(),
        }
        walked
    }

    /// The frame with this token is done: its memory is the guest's again (after [`flush`](Self::flush)).
    #[inline]
    pub fn complete(&mut self, token: Token) {
        // A token is a head as it was taken, so it fits.
        self.ring.complete(token.0 as u16, 0);
    }

    /// Puts back the last `n` frames taken, untouched.
    pub fn put_back(&mut self, n: u16) {
        self.ring.put_back(n);
    }

    /// Shows the guest what was completed; to be called once a burst.
    #[inline]
    pub fn flush(&mut self, counters: &DirectionCounters) {
        if self.ring.publish() {
            counters.interrupts.add(1);
        }
    }
}
