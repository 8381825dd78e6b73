//! Bringing the frames of a run near before they are copied.
//!
//! Buffers were last touched by another core, or have left this one's caches since. Each line takes some hundred cycles to
//! come, and a core can wait for little more than a dozen at the same time: asked for all at once they hold up what has work
//! to do already. So they are asked for frame by frame while others are copied:
//!
//! ```text
//!   copied now    4 frames on          8 frames on
//!   ▓▓▓▓▓▓▓▓▓▓    header│▒▒▒▒▒▒▒▒▒▒    ▒header│▒░░░░░░░░░
//!                 the rest, up to      the lines in which header and
//!                 256 bytes            frame begin
//! ```
//!
//! What is longer the [copy](pmd::Segment::copy_behind) of the frame before it asks for.

use pmd::Segment;
use pmd::frame::SHORT_COPY;
use pmd::prefetch::{LINE, prefetch, prefetch_to_write};

/// So many frames before a frame is copied its beginning is asked for, and so many before it the rest. Measured: 4 and 12 in
/// place of 8 cost 64-byte frames 2 to 5 % of their cycles, 8 in place of 4 costs 256-byte frames 10 %.
const BEGINNING: usize = 8;
const REST: usize = 4;

/// A frame's source and the buffer that it will be copied to, headers included.
pub(crate) type Copied<'a> = (&'a Segment, &'a Segment);

/// What frames of a run have before them, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ahead {
    /// In the source; 0 where it is a device's buffer.
    pub source_header: u32,
    /// In the destination.
    pub sink_header: u32,
}

impl Ahead {
    /// Asks for the sources of the first frames of a run: as soon as they are known, since each of them is waited for, while
    /// what is written may still be on its way.
    #[inline(always)]
    pub fn start_sources<'a>(&self, source: impl Fn(usize) -> Option<&'a Segment>) {
        (0..BEGINNING).filter_map(source).for_each(|source| self.fetch_source(source));
    }

    /// Asks for where the first frames of a run go.
    #[inline(always)]
    pub fn start_sinks<'a>(&self, frame: impl Fn(usize) -> Option<Copied<'a>>) {
        (0..BEGINNING).filter_map(frame).for_each(|frame| self.fetch_sink(frame));
    }

    /// Asks for what comes later, while the frame `at` of the run is copied.
    #[inline(always)]
    pub fn go_on<'a>(&self, at: usize, frame: impl Fn(usize) -> Option<Copied<'a>>) {
        if let Some(later) = frame(at + BEGINNING) {
            self.fetch_source(later.0);
            self.fetch_sink(later);
        }
        if let Some(later) = frame(at + REST) {
            self.fetch_rest(later);
        }
    }

    #[inline(always)]
    fn fetch_source(&self, source: &Segment) {
        let from = source.as_ptr();
        prefetch(from);
        prefetch(from.wrapping_add(self.source_header as usize));
    }

    #[inline(always)]
    fn fetch_sink(&self, (source, sink): Copied<'_>) {
        let to = sink.as_ptr();
        prefetch_to_write(to);
        let to = to.wrapping_add(self.sink_header as usize);
        prefetch_to_write(to);
        if to.addr() % LINE + source.len() as usize > LINE + self.source_header as usize {
            prefetch_to_write(to.wrapping_add(LINE));
        }
    }

    #[inline(always)]
    fn fetch_rest(&self, (source, sink): Copied<'_>) {
        let frame = source.len().saturating_sub(self.source_header);
        if frame <= LINE as u32 {
            return;
        }
        let frame = frame.min(SHORT_COPY);
        let from = source.as_ptr().wrapping_add(self.source_header as usize);
        let to = sink.as_ptr().wrapping_add(self.sink_header as usize);
        later_lines(from, frame).for_each(|line| prefetch(line));
        later_lines(to, frame).skip(1).for_each(prefetch_to_write);
    }
}

/// The cache lines of `len` bytes at `start`, without the first.
#[inline(always)]
fn later_lines(start: *mut u8, len: u32) -> impl Iterator<Item = *mut u8> {
    let first = LINE - start.addr() % LINE;
    (first..len as usize).step_by(LINE).map(move |at| start.wrapping_add(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_lines_are_those_that_the_bytes_reach_into() {
        for (start, len, expected) in [
            (0x1000usize, 64, &[][..]),
            (0x1000, 65, &[0x1040]),
            (0x103f, 1, &[]),
            (0x103f, 2, &[0x1040]),
            (0x1002, 256, &[0x1040, 0x1080, 0x10c0, 0x1100]),
            (0x1002, 0, &[]),
        ] {
            let lines: Vec<_> = later_lines(std::ptr::without_provenance_mut(start), len).collect();
            assert_eq!(
                lines.iter().map(|line| line.addr()).collect::<Vec<_>>(),
                expected,
                "{len} at {start:#x}"
            );
        }
    }
}
