//! The guest's receive queue: frames are copied into the buffers that the guest posted.

use arrayvec::ArrayVec;
use pmd::frame::MIN_FRAME;
use pmd::{Frames, Segment};

use super::chain::{Access, Stop};
use super::split::SplitRing;
use crate::counters::{DirectionCounters, DropReason};
use crate::net::header;

/// Chains that one frame may be spread over. A jumbo frame of 9702 bytes needs 38 of 256 bytes.
const MAX_CHAINS: usize = 64;

/// A receive queue of a guest (virtqueue 0, 2, 4 …).
#[derive(Debug)]
pub struct ReceiveRing {
    ring: SplitRing,
    header: u32,
    mergeable: bool,
}

/// What became of one frame.
enum Outcome {
    Delivered,
    /// The frame is lost; the ring goes on.
    Dropped(DropReason),
    /// There are not enough buffers now.
    Full,
}

/// The chains that a frame has been spread over so far, none of them completed.
type Chains = ArrayVec<(u16, u32), MAX_CHAINS>;

impl ReceiveRing {
    /// Frames stand behind `header` bytes of virtio-net header, and may be spread over several chains if `mergeable`.
    pub fn new(mut ring: SplitRing, header: u32, mergeable: bool) -> Self {
        ring.disable_kicks();
        Self { ring, header, mergeable }
    }

    /// The ring itself, for what is not about frames.
    pub fn ring(&mut self) -> &mut SplitRing {
        &mut self.ring
    }

    /// Copies frames into the guest, in order, until one finds no room; returns how many it is done with (delivered or
    /// dropped with a reason).
    pub fn deliver(&mut self, frames: Frames<'_>, counters: &DirectionCounters) -> usize {
        self.ring.begin_burst();
        let wanted = frames.len() as u16;
        match self.ring.available(wanted) {
            Ok(waiting) => {
                for ahead in 0..waiting.min(wanted) {
                    self.ring.prefetch(self.ring.head(ahead));
                }
            }
            Err(_) => {
                counters.bad_available_index.add(1);
                return 0;
            }
        }
        let (mut done, mut delivered, mut bytes) = (0, 0, 0);
        for (frame, segments) in frames.iter() {
            // After one frame at least: what waits must get on.
            if done > 0 && self.ring.is_exhausted() {
                break;
            }
            match self.deliver_one(frame.len(), segments) {
                Outcome::Delivered => {
                    delivered += 1;
                    bytes += u64::from(frame.len());
                }
                Outcome::Dropped(reason) => counters.count_drop(reason, 1),
                Outcome::Full => break,
            }
            done += 1;
        }
        counters.tx_frames.add(delivered);
        counters.tx_bytes.add(bytes);
        done
    }

    #[inline]
    fn deliver_one(&mut self, len: u32, segments: &[Segment]) -> Outcome {
        let mut copy =
            Copy { source: segments, within: 0, header_left: self.header, header: ArrayVec::new() };
        let mut left = len + self.header;
        let mut chains = Chains::new();
        while left > 0 {
            if !self.ring.available(1).is_ok_and(|waiting| waiting > 0) {
                self.ring.put_back(chains.len() as u16);
                return Outcome::Full;
            }
            let head = self.ring.head(0);
            let mut written = 0;
            let walked = self.ring.walk(head, Access::Write, |buffer| {
                written += copy.fill(buffer.part(0, left - written))?;
                if written == left { Err(Stop::Enough) } else { Ok(()) }
            });
            let smallest = if !chains.is_empty() {
                1
            } else if self.mergeable {
                self.header
            } else {
                self.header + MIN_FRAME
            };
            let fault = match walked {
                Err(Stop::Malformed(reason)) => Some(reason),
                _ if written < left && written < smallest => Some(DropReason::ChainTooShort),
                _ if written < left && !self.mergeable => {
                    return Outcome::Dropped(DropReason::GuestBufferTooSmall);
                }
                _ if chains.is_full() => Some(DropReason::TooManyBuffers),
                _ => None,
            };
            self.ring.take(1);
            if let Some(reason) = fault {
                return self.give_up(&chains, head, reason);
            }
            chains.push((head, written));
            left -= written;
        }
        let buffers = if self.mergeable { chains.len() as u16 } else { 1 };
        header::scatter(&header::plain(buffers)[..self.header as usize], &copy.header);
        for (head, written) in &chains {
            self.ring.complete(*head, *written);
        }
        Outcome::Delivered
    }

    /// Gives the chains of an undeliverable frame back to the guest, empty.
    #[cold]
    fn give_up(&mut self, chains: &Chains, last: u16, reason: DropReason) -> Outcome {
        for (head, _) in chains {
            self.ring.complete(*head, 0);
        }
        self.ring.complete(last, 0);
        Outcome::Dropped(reason)
    }

    /// Shows the guest what was delivered; to be called once a burst.
    #[inline]
    pub fn flush(&mut self, counters: &DirectionCounters) {
        if self.ring.publish() {
            counters.interrupts.add(1);
        }
    }
}

/// Copies header room and a frame's segments into buffers as they come.
struct Copy<'a> {
    source: &'a [Segment],
    /// Bytes of `source[0]` already copied.
    within: u32,
    /// Bytes of header room still to leave.
    header_left: u32,
    /// Where the header goes once the number of buffers is known: one byte a piece at worst.
    header: ArrayVec<Segment, { header::LENGTH as usize }>,
}

impl Copy<'_> {
    /// Fills `buffer` from its start; returns the bytes used of it (all of it, or less where the frame ends).
    #[inline]
    fn fill(&mut self, buffer: Segment) -> Result<u32, Stop> {
        let mut used = self.header_left.min(buffer.len());
        if used > 0 {
            self.header_left -= used;
            // Every piece holds at least one of the header's bytes, so there are never more pieces than room.
            self.header
                .try_push(buffer.part(0, used))
                .map_err(|_| Stop::Malformed(DropReason::ChainTooShort))?;
        }
        while used < buffer.len() {
            let Some(first) = self.source.first() else { break };
            let n = buffer.part(used, u32::MAX).copy_from_segment(&first.part(self.within, u32::MAX));
            used += n;
            self.within += n;
            if self.within == first.len() {
                self.source = &self.source[1..];
                self.within = 0;
            }
        }
        Ok(used)
    }
}
