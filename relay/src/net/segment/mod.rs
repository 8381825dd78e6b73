//! Checksums and segmentation in software, for frames whose next taker does not do it itself.
//!
//! ```text
//!  frame     [ headers ┊ payload ][ payload           ][ payload ]        segments of the source
//!                 │copied and checked    │          │       │
//!                 ▼                      │          │       │
//!  frame 0   [ headers ][ payload ][ payload ]      │       │             headers of our own,
//!  frame 1   [ headers ]─────────────────────[ payload ][ payload ]       payload still the source's
//! ```
//!
//! One frame's [`Work`] is begun once and then emitted into bursts, as many as it takes: a frame of 64 KiB may become
//! more frames than a burst holds. The headers are copied out of the source's memory once, checked there and sent from
//! there; the payload is copied for its checksum only. A source that rewrites its payload meanwhile sends a frame with a
//! wrong checksum, and nothing else.

mod arena;
mod cut;
#[cfg(test)]
mod tests;

use pmd::frame::{BURST_BYTES, BURST_SEGMENTS, MIN_FRAME, gather};
use pmd::net::checksum::Sum;
use pmd::net::layers::Layers;
use pmd::net::packet::LOOKED_AT;
use pmd::{Burst, Capabilities, Checksum, Offload, Segment, Segmentation, Token};

pub use self::arena::Headers;
use self::cut::{Cut, Part, put};
use crate::counters::DropReason;

/// How far the work on a frame has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Emitted {
    /// All of the frame is in bursts.
    Finished,
    /// The burst or the arena is full. The rest goes into empty ones.
    Full,
}

/// What is left to do for one frame.
#[derive(Clone, Debug)]
pub struct Work {
    /// The frame's first bytes; those before `payload_at` are sent from here.
    headers: [u8; LOOKED_AT],
    payload_at: usize,
    job: Job,
    /// What is left to do for the frames that come of it.
    offload: Offload,
    /// Payload bytes a frame, at most.
    size: u32,
    /// Payload bytes in all.
    payload: u32,
    /// The part that comes next.
    next: Part,
    from: Cursor,
    finished: bool,
}

#[derive(Clone, Copy, Debug)]
enum Job {
    /// Nothing but to send the headers from where they were checked.
    Pass,
    /// The sum of everything from `start` is to be put at `field`.
    Checksum { start: usize, field: usize },
    /// Checksums are filled in or left to the taker, who then finds the sum of the pseudo header.
    Cut { cut: Cut, fill: bool },
}

impl Work {
    /// Looks at a frame that leaves `offload` to a taker who has `capabilities`, and says why if it is to be dropped.
    ///
    /// A frame that the taker covers can be worked on too: it comes out with private, checked headers and an exact
    /// [`header_length`](Offload::header_length), as a taker needs it that reads headers itself. What lies outside the taker's
    /// [`limits`](Capabilities::limits) is done here.
    pub fn begin(
        segments: &[Segment],
        offload: &Offload,
        capabilities: &Capabilities,
    ) -> Result<Self, DropReason> {
        let len: u64 = segments.iter().map(|segment| u64::from(segment.len())).sum();
        if len > u64::from(BURST_BYTES) {
            return Err(DropReason::FrameTooLong);
        }
        // A header of our own comes before, and all must fit a burst together.
        if segments.iter().filter(|segment| segment.len() > 0).count() >= BURST_SEGMENTS {
            return Err(DropReason::TooManyBuffers);
        }
        let len = len as u32;
        let mut headers = [0; LOOKED_AT];
        let copied = gather(segments, &mut headers);
        let seen = &headers[..copied];
        let covered = capabilities.cover(offload);
        let (job, payload_at, left, size) = if offload.segmentation != Segmentation::None {
            let cut = Cut::of(seen, len, offload)?;
            let header_length = cut.header() as u16;
            let offset = (cut.checksum_at() - cut.transport()) as u16;
            let limits = &capabilities.limits;
            let sums = capabilities.checksum && header_length <= limits.headers;
            let checksum = match sums {
                true => Checksum::Partial { start: cut.transport() as u16, offset },
                false => Checksum::Unknown,
            };
            // One segment needs no cut, and NICs want no frame to be cut that is filled up to the shortest length.
            let whole = len - u32::from(header_length) <= u32::from(offload.segment_size);
            if covered && !capabilities.by_header && limits.allow_cut(len, offload.segment_size) {
                (Job::Pass, cut.header(), Offload { header_length, ..*offload }, u32::MAX)
            } else if covered
                && capabilities.by_header
                && sums
                && (whole || limits.allow_cut_behind(header_length, len, offload.segment_size))
            {
                // What is cut by header has its checksum where the header says.
                let left = match whole {
                    true => Offload { checksum, header_length, ..Offload::NONE },
                    false => Offload { checksum, header_length, ..*offload },
                };
                (Job::Pass, cut.header(), left, u32::MAX)
            } else {
                let left = Offload { checksum, header_length, ..Offload::NONE };
                let job = Job::Cut { cut, fill: !sums };
                (job, cut.header(), left, u32::from(offload.segment_size))
            }
        } else {
            let (job, end, left) = match offload.checksum {
                Checksum::Partial { start, offset } => {
                    let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
                    if field + 2 > copied {
                        return Err(DropReason::BadOffload);
                    }
                    match (covered, capabilities.by_header.then(|| Layers::of(seen, offload))) {
                        (true, None) => (Job::Pass, field + 2, *offload),
                        (true, Some(Some(layers)))
                            if layers.headers() <= usize::from(capabilities.limits.headers) =>
                        {
                            let header_length = layers.headers() as u16;
                            (Job::Pass, layers.headers(), Offload { header_length, ..*offload })
                        }
                        _ => (Job::Checksum { start, field }, field + 2, Offload::NONE),
                    }
                }
                _ => (Job::Pass, MIN_FRAME as usize, *offload),
            };
            // A short frame is one piece then, which is less to do for whoever takes it.
            (job, if len as usize <= LOOKED_AT { copied } else { end }, left, u32::MAX)
        };
        let payload = len - payload_at as u32;
        let length = payload.min(size);
        Ok(Self {
            headers,
            payload_at,
            job,
            offload: left,
            size,
            payload,
            next: Part { nth: 0, at: 0, length, last: length == payload },
            from: Cursor::at(segments, payload_at as u32),
            finished: false,
        })
    }

    /// Bytes of the longest frame that comes of it and is not to be cut any more; 0 where the taker cuts.
    pub fn longest(&self) -> u32 {
        match self.offload.segmentation {
            Segmentation::None => self.payload_at as u32 + self.payload.min(self.size),
            _ => 0,
        }
    }

    /// Whether one frame comes of it, the same one with its headers in memory of ours.
    pub fn is_only_checked(&self) -> bool {
        matches!(self.job, Job::Pass)
    }

    /// Adds frames to `burst`, each with `token`, until all are there or nothing more fits.
    ///
    /// `segments` are those the work was begun with. Nothing is lost when it stops: the next call goes on with another
    /// burst or the same one cleared. An empty burst with an empty arena takes one frame at least.
    pub fn emit(
        &mut self,
        segments: &[Segment],
        burst: &mut Burst,
        arena: &mut Headers,
        token: Token,
    ) -> Emitted {
        while !self.finished {
            let Some(slot) = arena.next(self.payload_at).filter(|_| burst.room() > 0) else {
                return Emitted::Full;
            };
            let part = self.next;
            let mut sum = self.write_headers(part);
            let pushed = match burst.push_segment(slot) {
                Ok(()) => self.from.push(segments, part.length, burst, sum.as_mut()),
                Err(_) => Err(Stop::Full),
            };
            match pushed {
                Ok(from) => self.from = from,
                Err(Stop::Full) => {
                    burst.abandon_frame();
                    return Emitted::Full;
                }
                Err(Stop::Missing) => {
                    burst.abandon_frame();
                    break;
                }
            }
            if let Some(sum) = sum {
                self.write_checksum(&sum);
            }
            slot.copy_from(&self.headers);
            arena.take();
            burst.finish_frame_with(token, self.offload);
            self.finished = part.last;
            let at = part.at + part.length;
            let length = (self.payload - at).min(self.size);
            self.next = Part { nth: part.nth + 1, at, length, last: at + length == self.payload };
        }
        self.finished = true;
        Emitted::Finished
    }

    /// Makes the headers those of `part`; returns the sum before the payload where there is one to be filled in.
    #[inline]
    fn write_headers(&mut self, part: Part) -> Option<Sum> {
        let (mut sum, start) = match self.job {
            Job::Pass => return None,
            Job::Checksum { start, .. } => (Sum::new(), start),
            Job::Cut { cut, fill } => {
                let sum = cut.write(&mut self.headers, part);
                if !fill {
                    put(&mut self.headers, cut.checksum_at(), sum.partial());
                    return None;
                }
                (sum, cut.transport())
            }
        };
        sum.add(self.headers.get(start..self.payload_at).unwrap_or_default());
        Some(sum)
    }

    #[inline]
    fn write_checksum(&mut self, sum: &Sum) {
        let (field, sum) = match self.job {
            Job::Pass => return,
            // Whose it is, is not known: all ones are right for UDP and no less right for others.
            Job::Checksum { field, .. } => (field, sum.finish_nonzero()),
            Job::Cut { cut, .. } if cut.is_udp() => (cut.checksum_at(), sum.finish_nonzero()),
            Job::Cut { cut, .. } => (cut.checksum_at(), sum.finish()),
        };
        put(&mut self.headers, field, sum);
    }
}

/// Why payload was not added.
enum Stop {
    /// The burst has no room for it.
    Full,
    /// The segments are fewer than they were.
    Missing,
}

/// A place in a frame's segments.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    segment: usize,
    within: u32,
}

impl Cursor {
    /// The place `within` bytes from the start.
    fn at(segments: &[Segment], mut within: u32) -> Self {
        let before = segments.iter().take_while(|segment| {
            let before = segment.len() <= within;
            within -= if before { segment.len() } else { 0 };
            before
        });
        Self { segment: before.count(), within }
    }

    /// Adds `length` bytes from here to the burst, and to the sum; returns the place behind them.
    #[inline]
    fn push(
        mut self,
        segments: &[Segment],
        mut length: u32,
        burst: &mut Burst,
        mut sum: Option<&mut Sum>,
    ) -> Result<Self, Stop> {
        while length > 0 {
            let part = segments.get(self.segment).ok_or(Stop::Missing)?.part(self.within, length);
            if part.len() == 0 {
                (self.segment, self.within) = (self.segment + 1, 0);
                continue;
            }
            burst.push_segment(part).map_err(|_| Stop::Full)?;
            if let Some(sum) = &mut sum {
                sum.add_segment(&part);
            }
            length -= part.len();
            self.within += part.len();
        }
        Ok(self)
    }
}
