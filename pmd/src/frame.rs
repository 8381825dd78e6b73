//! Frames between the two ends of a relay, and the burst that carries them.
//!
//! ```text
//!  Burst
//!   frames    [ first=0 count=2 len=1500 token ][ first=2 count=1 len=60 token ] …   up to 32
//!   segments  [ ptr,len ][ ptr,len ][ ptr,len ] …                                    up to 512
//!                  │          │         └── the bytes stay where they are: in the memory of a guest,
//!                  └──────────┘             or in a buffer of the device that received them
//! ```
//!
//! A frame is *borrowed* from its source: the source keeps the memory in place until the frame's [`Token`] comes back.
//! Nobody but the owner of the memory may assume that the bytes hold still, so a segment never becomes a slice: it is
//! read and written by copying only.

use std::ptr::NonNull;

use arrayvec::ArrayVec;

pub use crate::copy::SHORT_COPY;
use crate::copy::{Next, copy};
use crate::offload::Offload;

/// Frames in one burst.
pub const BURST_FRAMES: usize = 32;
/// Segments in one burst, over all its frames.
pub const BURST_SEGMENTS: usize = 512;
/// Bytes at which a burst is considered full; the last frame may reach over it.
pub const BURST_BYTES: u32 = 256 * 1024;
/// Shortest thing that is a frame: an Ethernet header without payload (IEEE 802.3, FCS not counted).
pub const MIN_FRAME: u32 = 14;
/// Shortest frame on the wire without FCS (IEEE 802.3 §3.2.8), in bytes; devices get shorter ones filled up with zeros.
pub const MIN_WIRE: u32 = 60;

/// What a source wrote on a frame to know it again when it is done: a descriptor head, a buffer number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u32);

/// A run of bytes that somebody else may rewrite at any moment.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    ptr: NonNull<u8>,
    len: u32,
}

// SAFETY: a segment is an address and a length; whoever made it promised (see `Segment::new`) that the bytes stay
// mapped for as long as it is in use, on whichever thread that is.
unsafe impl Send for Segment {}

impl Segment {
    /// # Safety
    /// `len` bytes at `ptr` must stay mapped, readable (and writable where the segment is written to) until the frame
    /// that holds the segment has been completed, and no Rust reference to them may exist meanwhile.
    pub unsafe fn new(ptr: NonNull<u8>, len: u32) -> Self {
        Self { ptr, len }
    }

    /// Length in bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Where the bytes are. For prefetching and for descriptors; reading through it needs the care of
    /// [`Segment::copy_to`].
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    /// The part from `offset`, at most `len` bytes of it.
    ///
    /// `offset` past the end gives an empty segment.
    #[inline]
    pub fn part(&self, offset: u32, len: u32) -> Self {
        let offset = offset.min(self.len);
        // SAFETY: `offset` is within the segment, so the sum stays inside (or one past) the same mapping.
        let ptr = unsafe { self.ptr.add(offset as usize) };
        Self { ptr, len: len.min(self.len - offset) }
    }

    /// Copies the first bytes into `dst`; as many as both have room for, which is returned.
    #[inline]
    pub fn copy_to(&self, dst: &mut [u8]) -> usize {
        let n = dst.len().min(self.len as usize);
        // SAFETY: `new`'s contract makes `n <= len` bytes readable; `dst` is an exclusive reference, so the two do not
        // overlap. The bytes may change under the copy, which yields arbitrary `u8`s, and every `u8` is valid.
        unsafe { std::ptr::copy_nonoverlapping(self.ptr.as_ptr(), dst.as_mut_ptr(), n) };
        // What is checked in `dst` must be what is used later: the compiler may not go back to the source for it.
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        n
    }

    /// Copies `src` to the start of the segment; as many bytes as both have room for, which is returned.
    #[inline]
    pub fn copy_from(&self, src: &[u8]) -> usize {
        let n = src.len().min(self.len as usize);
        // SAFETY: as in `copy_to`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), self.ptr.as_ptr(), n) };
        n
    }

    /// Copies the first `N` bytes out; `None` where there are fewer.
    #[inline(always)]
    pub fn read_array<const N: usize>(&self) -> Option<[u8; N]> {
        (self.len as usize >= N).then(|| {
            // SAFETY: as in `copy_to`, for `N <= len` bytes; an array of bytes is aligned anywhere.
            let bytes = unsafe { self.ptr.cast::<[u8; N]>().read_unaligned() };
            // As in `copy_to`.
            std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
            bytes
        })
    }

    /// Copies `bytes` to the start of the segment; `false`, and nothing is done, where there is no room for all of them.
    #[inline(always)]
    pub fn write_array<const N: usize>(&self, bytes: &[u8; N]) -> bool {
        if (self.len as usize) < N {
            return false;
        }
        // SAFETY: `new`'s contract makes `N <= len` bytes writable; an array of bytes is aligned anywhere.
        unsafe { self.ptr.cast::<[u8; N]>().write_unaligned(*bytes) };
        true
    }

    /// Copies bytes from `src` into this segment; as many as both have, which is returned. The two may overlap: a
    /// hostile guest can describe the same memory twice.
    #[inline]
    pub fn copy_from_segment(&self, src: &Segment) -> u32 {
        let n = src.len.min(self.len);
        // SAFETY: both segments keep `n` bytes mapped by `new`'s contract.
        unsafe { copy(src.as_ptr(), self.as_ptr(), n as usize, || Next::NONE) };
        n
    }

    /// Copies `head` to the start of the segment and all of `src` behind it; `false`, and nothing is done, where there is no
    /// room for both. `next` gives the source and the destination of the copy that comes after, which are brought near
    /// where this one takes long enough.
    #[inline(always)]
    pub fn copy_behind<'a, const N: usize>(
        &self,
        head: &[u8; N],
        src: &Segment,
        next: impl FnOnce() -> Option<(&'a Segment, &'a Segment)>,
    ) -> bool {
        if N as u64 + u64::from(src.len) > u64::from(self.len) {
            return false;
        }
        let next = || {
            next().map_or(Next::NONE, |(source, sink)| Next {
                source: source.as_ptr(),
                sink: sink.as_ptr(),
                len: source.len.min(sink.len) as usize,
            })
        };
        // SAFETY: both segments are mapped by `new`'s contract, and this one has room for `N` bytes and `src.len` more; an
        // array of bytes is aligned anywhere.
        unsafe {
            self.ptr.cast::<[u8; N]>().write_unaligned(*head);
            copy(src.as_ptr(), self.as_ptr().add(N), src.len as usize, next);
        }
        true
    }
}

/// One frame of a burst; its bytes are `count` segments of the burst from `first`.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    first: u16,
    count: u16,
    len: u32,
    token: Token,
    offload: Offload,
}

impl Frame {
    /// Length in bytes, without FCS.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The source's mark.
    #[inline]
    pub fn token(&self) -> Token {
        self.token
    }

    /// What is left to do for it.
    #[inline]
    pub fn offload(&self) -> &Offload {
        &self.offload
    }
}

/// Up to [`BURST_FRAMES`] frames that are handled together.
#[derive(Debug, Default)]
pub struct Burst {
    frames: ArrayVec<Frame, BURST_FRAMES>,
    segments: ArrayVec<Segment, BURST_SEGMENTS>,
    bytes: u32,
    open: usize,
}

impl Burst {
    /// An empty burst, 8 KiB: make it once and reuse it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets all frames; their tokens must have been dealt with.
    #[inline]
    pub fn clear(&mut self) {
        self.frames.clear();
        self.segments.clear();
        self.bytes = 0;
        self.open = 0;
    }

    /// Number of frames.
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there is no frame.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Sum of the frames' lengths in bytes.
    #[inline]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// How many more frames fit: 0 as well when the burst has reached [`BURST_BYTES`].
    #[inline]
    pub fn room(&self) -> usize {
        if self.bytes >= BURST_BYTES { 0 } else { self.frames.remaining_capacity() }
    }

    /// Adds a segment to the frame under construction; gives it back when the burst has no room for it.
    #[inline]
    pub fn push_segment(&mut self, segment: Segment) -> Result<(), Segment> {
        self.segments.try_push(segment).map_err(|full| full.element())
    }

    /// Makes a frame of the segments pushed since the last call. `false` when the burst is full; the segments are
    /// dropped then.
    #[inline]
    pub fn finish_frame(&mut self, token: Token) -> bool {
        self.finish_frame_with(token, Offload::NONE)
    }

    /// As [`finish_frame`](Self::finish_frame), for a frame that leaves something to do.
    #[inline]
    pub fn finish_frame_with(&mut self, token: Token, offload: Offload) -> bool {
        let (first, end) = (self.open, self.segments.len());
        let len = self.segments[first..end].iter().map(|segment| segment.len).sum();
        let frame = Frame { first: first as u16, count: (end - first) as u16, len, token, offload };
        if self.frames.try_push(frame).is_err() {
            self.segments.truncate(first);
            return false;
        }
        self.bytes += len;
        self.open = end;
        true
    }

    /// Adds a frame of one segment; `false` when the burst is full. No frame may be under construction.
    #[inline]
    pub fn push_whole(&mut self, segment: Segment, token: Token, offload: Offload) -> bool {
        let first = self.open as u16;
        let len = segment.len;
        if self.frames.is_full() || self.segments.try_push(segment).is_err() {
            return false;
        }
        self.frames.push(Frame { first, count: 1, len, token, offload });
        self.bytes += len;
        self.open += 1;
        true
    }

    /// Drops the segments pushed since the last finished frame.
    #[inline]
    pub fn abandon_frame(&mut self) {
        self.segments.truncate(self.open);
    }

    /// Adds a frame of another burst, which keeps its token; `false` when it does not fit.
    #[inline]
    pub fn push_frame(&mut self, frame: &Frame, segments: &[Segment]) -> bool {
        let fits = self.room() > 0 && self.segments.try_extend_from_slice(segments).is_ok();
        fits && self.finish_frame_with(frame.token, frame.offload)
    }

    /// Forgets the first `n` frames.
    pub fn discard(&mut self, n: usize) {
        let n = n.min(self.frames.len());
        let gone: u32 = self.frames.drain(..n).map(|frame| frame.len).sum();
        let cut = self.frames.first().map_or(self.open, |frame| usize::from(frame.first));
        self.segments.drain(..cut);
        for frame in &mut self.frames {
            frame.first -= cut as u16;
        }
        self.bytes -= gone;
        self.open -= cut;
    }

    /// A frame of one segment; `false` when the burst is full.
    #[inline]
    pub fn push(&mut self, segment: Segment, token: Token) -> bool {
        self.push_segment(segment).is_ok() && self.finish_frame(token)
    }

    /// All frames, to read.
    #[inline]
    pub fn frames(&self) -> Frames<'_> {
        Frames { frames: &self.frames, segments: &self.segments }
    }
}

/// Some consecutive frames of a burst.
#[derive(Clone, Copy, Debug)]
pub struct Frames<'a> {
    frames: &'a [Frame],
    segments: &'a [Segment],
}

impl<'a> Frames<'a> {
    /// Number of frames.
    #[inline]
    pub fn len(self) -> usize {
        self.frames.len()
    }

    /// Whether there is no frame.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.frames.is_empty()
    }

    /// Sum of the frames' lengths in bytes.
    #[inline]
    pub fn bytes(self) -> u64 {
        self.frames.iter().map(|frame| u64::from(frame.len)).sum()
    }

    /// The frames without the first `n`.
    #[inline]
    pub fn skip(self, n: usize) -> Self {
        Self { frames: &self.frames[n.min(self.frames.len())..], segments: self.segments }
    }

    /// The first `n` frames.
    #[inline]
    pub fn take(self, n: usize) -> Self {
        Self { frames: &self.frames[..n.min(self.frames.len())], segments: self.segments }
    }

    /// The segment in which the frame `at` begins; `None` where there are not so many.
    #[inline]
    pub fn beginning(self, at: usize) -> Option<&'a Segment> {
        self.segments.get(usize::from(self.frames.get(at)?.first))
    }

    /// Every frame with its segments, in order.
    #[inline]
    pub fn iter(self) -> impl ExactSizeIterator<Item = (&'a Frame, &'a [Segment])> {
        self.frames.iter().map(move |frame| {
            let first = usize::from(frame.first);
            (frame, &self.segments[first..first + usize::from(frame.count)])
        })
    }
}

/// Copies a frame's segments, one after the other, to the start of `dst`; returns the number of bytes copied, at most
/// `dst.len()`.
#[inline]
pub fn gather(segments: &[Segment], dst: &mut [u8]) -> usize {
    let mut at = 0;
    for segment in segments {
        at += segment.copy_to(&mut dst[at..]);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(bytes: &mut [u8]) -> Segment {
        // SAFETY: the tests keep `bytes` alive and untouched while the segment is used.
        unsafe { Segment::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), bytes.len() as u32) }
    }

    #[test]
    fn a_frame_in_pieces_is_gathered_in_order() {
        let (mut a, mut b) = (*b"hello ", *b"world");
        let mut burst = Burst::new();
        burst.push_segment(segment(&mut a)).unwrap();
        burst.push_segment(segment(&mut b)).unwrap();
        assert!(burst.finish_frame(Token(7)));
        let (frame, segments) = burst.frames().iter().next().unwrap();
        assert_eq!((frame.len(), frame.token(), segments.len()), (11, Token(7), 2));
        let mut out = [0; 16];
        assert_eq!(gather(segments, &mut out), 11);
        assert_eq!(&out[..11], b"hello world");
    }

    #[test]
    fn an_abandoned_frame_leaves_nothing_behind() {
        let mut a = [1u8; 4];
        let mut burst = Burst::new();
        assert!(burst.push(segment(&mut a), Token(1)));
        burst.push_segment(segment(&mut a)).unwrap();
        burst.abandon_frame();
        assert!(burst.push(segment(&mut a), Token(2)));
        assert_eq!(burst.len(), 2);
        assert!(burst.frames().iter().all(|(frame, segments)| frame.len() == 4 && segments.len() == 1));
    }

    #[test]
    fn a_burst_is_full_at_32_frames_or_256_kib() {
        let mut a = [0u8; 60];
        let mut burst = Burst::new();
        for n in 0..BURST_FRAMES {
            assert_eq!(burst.room(), BURST_FRAMES - n);
            assert!(burst.push(segment(&mut a), Token(n as u32)));
        }
        assert!(!burst.push(segment(&mut a), Token(99)));
        burst.clear();
        let mut big = vec![0u8; 128 * 1024];
        assert!(burst.push(segment(&mut big), Token(0)));
        assert!(burst.push(segment(&mut big), Token(1)));
        assert_eq!(burst.room(), 0);
    }

    #[test]
    fn frames_move_from_burst_to_burst_and_leave_in_order() {
        let (mut a, mut b) = ([1u8; 60], [2u8; 70]);
        let mut from = Burst::new();
        for n in 0..6 {
            from.push_segment(segment(&mut a)).unwrap();
            from.push_segment(segment(&mut b)).unwrap();
            from.finish_frame(Token(n));
        }
        let mut to = Burst::new();
        for (frame, segments) in from.frames().iter().skip(1).step_by(2) {
            assert!(to.push_frame(frame, segments));
        }
        to.discard(1);
        assert!(to.push(segment(&mut a), Token(9)));
        let seen: Vec<_> = to.frames().iter().map(|(f, s)| (f.token().0, f.len(), s.len())).collect();
        assert_eq!(seen, [(3, 130, 2), (5, 130, 2), (9, 60, 1)]);
        assert_eq!(to.bytes(), 320);
        to.discard(usize::MAX);
        assert!(to.is_empty() && to.bytes() == 0 && to.room() == BURST_FRAMES);
    }

    #[test]
    fn a_frame_goes_behind_its_header_whole_or_not_at_all() {
        let header = *b"header";
        for len in [0, 1, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 255, 256, 257, 320, 1518]
        {
            let mut frame: Vec<_> = (0..len).map(|n| n as u8 ^ 0x5a).collect();
            let expected = [&header[..], &frame].concat();
            let frame = segment(&mut frame);
            for spare in 0..3 {
                let mut bytes = vec![0xee; expected.len() + spare + 1];
                let end = expected.len() + spare;
                let room = segment(&mut bytes[..end]);
                assert!(room.copy_behind(&header, &frame, || Some((&frame, &room))));
                assert!(bytes[..expected.len()] == expected, "{len}");
                assert!(bytes[expected.len()..].iter().all(|byte| *byte == 0xee), "{len}: no byte more");
            }
            let mut bytes = vec![0xee; expected.len() - 1];
            assert!(!segment(&mut bytes).copy_behind(&header, &frame, || None), "{len}");
            assert!(bytes.iter().all(|byte| *byte == 0xee), "{len}: nothing is done");
        }
    }

    /// What `before` is after `len` bytes of it were copied from `from` to `to`, by way of segments.
    fn copied_within(before: &[u8], from: usize, to: usize, len: usize) -> Vec<u8> {
        let mut after = before.to_vec();
        let whole = segment(&mut after);
        let part = |at: usize| whole.part(at as u32, len as u32);
        assert_eq!(part(to).copy_from_segment(&part(from)), len as u32);
        after
    }

    fn pattern() -> Vec<u8> {
        (0..2000usize).map(|n| ((n * 7) ^ (n >> 5)) as u8).collect()
    }

    #[test]
    fn a_copy_of_any_length_is_exact_and_touches_nothing_else() {
        let before = pattern();
        for len in 0..=600 {
            // Next to each other, far apart, and at any alignment to each other.
            for (from, to) in
                [(700, 700 + len), (700 + len, 700), (1, 1200), (1203, 2), (13, 1300), (1300, 13)]
            {
                let mut expected = before.clone();
                expected.copy_within(from..from + len, to);
                assert!(copied_within(&before, from, to, len) == expected, "{len} bytes from {from} to {to}");
            }
        }
    }

    #[test]
    fn a_copy_onto_itself_writes_bytes_of_the_source_and_touches_nothing_else() {
        let before = pattern();
        for len in (0..=300).chain([400, 511, 512, 600]) {
            for by in 0..len {
                for (from, to) in [(700, 700 + by), (700 + by, 700)] {
                    let after = copied_within(&before, from, to, len);
                    let is_like = |range: std::ops::Range<usize>| before[range.clone()] == after[range];
                    assert!(is_like(0..to) && is_like(to + len..2000), "{len} bytes from {from} to {to}");
                    let mut known = [false; 256];
                    before[from..from + len].iter().for_each(|byte| known[usize::from(*byte)] = true);
                    assert!(after[to..to + len].iter().all(|byte| known[usize::from(*byte)]));
                    assert!(by > 0 || after == before, "{len} bytes onto themselves");
                }
            }
        }
    }

    #[test]
    fn a_copy_between_segments_is_as_long_as_the_shorter_one() {
        for (from, to) in [(0, 20), (20, 0), (15, 17), (17, 15), (256, 300), (300, 256)] {
            let (mut source, mut sink) = (vec![1u8; from], vec![0u8; to]);
            let n = from.min(to);
            assert_eq!(segment(&mut sink).copy_from_segment(&segment(&mut source)), n as u32);
            assert!(sink[..n].iter().all(|byte| *byte == 1) && sink[n..].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn parts_never_leave_the_segment() {
        let mut a = [0u8; 10];
        let s = segment(&mut a);
        assert_eq!(s.part(4, 100).len(), 6);
        assert_eq!(s.part(10, 1).len(), 0);
        assert_eq!(s.part(11, 1).len(), 0);
    }

    #[test]
    fn views_split_a_burst() {
        let mut a = [0u8; 60];
        let mut burst = Burst::new();
        for n in 0..5 {
            burst.push(segment(&mut a), Token(n));
        }
        let tokens = |frames: Frames<'_>| frames.iter().map(|(f, _)| f.token().0).collect::<Vec<_>>();
        assert_eq!(tokens(burst.frames().skip(3)), [3, 4]);
        assert_eq!(tokens(burst.frames().skip(1).take(2)), [1, 2]);
        assert_eq!(burst.frames().skip(9).bytes(), 0);
    }
}
