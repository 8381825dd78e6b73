//! The transmit ring.
//!
//! ```text
//!   returned ──▶ [sent, tokens to be given back] ◀── clean ──▶ [with the device] ◀── tail
//! ```
//!
//! Slot n has buffer n: a frame is copied once, into the buffers of as many slots as it needs. What lies in memory of the
//! guest that the device reaches is not copied: its descriptor points there, and the frame is borrowed until the device has
//! sent it. The device reports where it was asked to (RS), by writing into the descriptor, and what it reports for one slot
//! holds for all before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::registers::*;
use crate::device::{Accepted, Completions, TransmitQueue};
use crate::frame::{Frame, Frames, MIN_FRAME, MIN_WIRE, Segment, Token};
use crate::intel::descriptor::{MAX_TRANSMIT_BUFFER, TransmitFlags, is_transmitted, transmit_word};
use crate::memory::{BUFFER_SIZE, DmaSlice, GuestWindows, SlotBuffers};
use crate::registers::Registers;

const MASK: u16 = RING - 1;
/// Descriptors after which a report is asked for. A copied frame needs none sooner: only room in the ring waits for it.
const REPORT_EVERY: u16 = 32;
/// Most segments of a frame that is sent from where it lies: one in more pieces costs the device more than a copy costs us.
/// A device takes 40 - WTHRESH - 2 descriptors a frame at most (82576 data sheet, chapter 7.2).
const MOST_PIECES: usize = 16;
const _: () = assert!(MOST_PIECES as u32 + LONGEST_FRAME.div_ceil(BUFFER_SIZE) <= 37);
const _: () = assert!(LONGEST_FRAME <= MAX_TRANSMIT_BUFFER);

/// What the transmit queue counts for the slow side.
#[derive(Debug, Default)]
pub struct TransmitCounters {
    /// Frames of a length that the device does not send.
    pub errors: AtomicU64,
}

/// The transmit queue of a VF.
#[derive(Debug)]
pub struct IgbvfTransmit {
    registers: Arc<dyn Registers>,
    ring: DmaSlice,
    buffers: SlotBuffers,
    /// Longest frame.
    max_frame: u32,
    /// The slot that is filled next.
    tail: u16,
    /// The oldest slot that is not known to be sent.
    clean: u16,
    /// The oldest slot whose token, if it has one, has not been given back.
    returned: u16,
    /// Slots that will report, in order: `report_count` of them from `report_first`.
    reports: Box<[u16]>,
    report_first: u16,
    report_count: u16,
    /// Descriptors filled since the last one that reports.
    unreported: u16,
    /// What the device reaches of the guest's memory.
    guest: Arc<GuestWindows>,
    /// Where in `guest` something was found last.
    last_window: usize,
    /// The token of the borrowed frame that ends in each slot.
    tokens: Box<[Option<Token>]>,
    /// Tokens that have not been given back.
    borrowed: usize,
    /// Aborted: nothing is sent any more.
    disabled: bool,
    counters: Arc<TransmitCounters>,
}

/// The descriptor filled last, as far as it may have to be changed.
#[derive(Clone, Copy)]
struct Last {
    slot: u16,
    part: u32,
    frame: u32,
}

/// Where the pieces of a frame are for the device; `None` for one that it does not reach.
type Places = [Option<u64>; MOST_PIECES];

impl IgbvfTransmit {
    /// A queue over `ring` (room for [`RING`] descriptors) and `buffers` (as many of [`BUFFER_SIZE`] bytes), whose
    /// registers are programmed and which is enabled.
    pub(super) fn new(
        registers: Arc<dyn Registers>,
        ring: DmaSlice,
        buffers: DmaSlice,
        max_frame: u32,
        counters: Arc<TransmitCounters>,
    ) -> Self {
        Self {
            registers,
            ring,
            buffers: SlotBuffers::new(buffers, RING),
            max_frame,
            tail: 0,
            clean: 0,
            returned: 0,
            reports: vec![0; usize::from(RING)].into_boxed_slice(),
            report_first: 0,
            report_count: 0,
            unreported: 0,
            guest: Arc::default(),
            last_window: 0,
            tokens: vec![None; usize::from(RING)].into_boxed_slice(),
            borrowed: 0,
            disabled: false,
            counters,
        }
    }

    /// Slots that can be filled; one stays empty, so that a full ring is not taken for an empty one.
    #[inline]
    fn room(&self) -> u16 {
        MASK - (self.tail.wrapping_sub(self.returned) & MASK)
    }

    #[inline]
    fn collect_reports(&mut self) {
        while self.report_count > 0 {
            let Some(&slot) = self.reports.get(usize::from(self.report_first)) else { return };
            if !is_transmitted(self.ring.load(2 * usize::from(slot) + 1)) {
                break;
            }
            self.clean = (slot + 1) & MASK;
            self.report_first = (self.report_first + 1) & MASK;
            self.report_count -= 1;
        }
        if self.borrowed == 0 {
            self.returned = self.clean;
        }
    }

    #[inline]
    fn expect_report(&mut self, slot: u16) {
        let at = (self.report_first + self.report_count) & MASK;
        if let Some(entry) = self.reports.get_mut(usize::from(at)) {
            *entry = slot;
            self.report_count += 1;
        }
        self.unreported = 0;
    }

    /// Gives back the tokens of the slots before `end`, as many as `done` has room for.
    #[inline]
    fn give_back(&mut self, end: u16, done: &mut Completions) {
        while self.returned != end && !done.is_full() {
            if let Some(token) = self.tokens.get_mut(usize::from(self.returned)).and_then(Option::take) {
                self.borrowed -= 1;
                done.push(token);
            }
            self.returned = (self.returned + 1) & MASK;
        }
    }

    /// Fills the next descriptor: `part` bytes at `iova`, of a frame of `frame` bytes, which they are the end of or not.
    #[inline]
    fn describe(&mut self, iova: u64, part: u32, frame: u32, end: bool) -> Last {
        let slot = self.tail;
        let index = 2 * usize::from(slot);
        self.unreported += 1;
        let report = end && self.unreported >= REPORT_EVERY;
        self.ring.store(index, iova);
        self.ring.store(index + 1, transmit_word(part, frame, TransmitFlags { end, report }));
        if report {
            self.expect_report(slot);
        }
        self.tail = (slot + 1) & MASK;
        Last { slot, part, frame }
    }

    /// Fills descriptors for `len` bytes that lie in the buffers from the next slot on: all of a frame of `frame` bytes, or
    /// a piece of it.
    #[inline]
    fn describe_copied(&mut self, len: u32, frame: u32, end: bool) -> Last {
        let mut left = len;
        loop {
            let part = left.min(BUFFER_SIZE);
            left -= part;
            let iova = self.buffers.iova(self.tail);
            let last = self.describe(iova, part, frame, end && left == 0);
            if left == 0 {
                return last;
            }
        }
    }

    /// Copies a frame of a length that can be sent; `None` when there is no room for it.
    #[inline]
    fn send_copy(&mut self, segments: &[Segment], len: u32) -> Option<Last> {
        if SlotBuffers::needed(len) > u32::from(self.room()) {
            return None;
        }
        let padded = self.buffers.copy_frame(segments, len, self.tail);
        Some(self.describe_copied(padded, padded, true))
    }

    /// Where a frame's segments are for the device, and how many slots they take, those that it does not reach copied.
    /// `None` where the whole frame is better copied.
    #[inline]
    fn places(&mut self, segments: &[Segment], len: u32) -> Option<(Places, u16)> {
        if len < MIN_WIRE || segments.len() > MOST_PIECES {
            return None;
        }
        let (mut places, mut slots, mut reached) = ([None; MOST_PIECES], 0, false);
        for (segment, place) in segments.iter().zip(&mut places) {
            *place = self.guest.find(segment, &mut self.last_window);
            reached |= place.is_some();
            slots += if place.is_some() { 1 } else { segment.len().div_ceil(BUFFER_SIZE) as u16 };
        }
        reached.then_some((places, slots))
    }

    /// Sends a frame of a length that can be sent from where it is, as far as the device reaches it; `None` when there is no
    /// room for it.
    #[inline]
    fn send_in_place(&mut self, frame: &Frame, segments: &[Segment]) -> Option<Last> {
        let len = frame.len();
        let last = match self.places(segments, len) {
            None => self.send_copy(segments, len)?,
            Some((_, slots)) if slots > self.room() => return None,
            Some((places, _)) => {
                let (mut last, mut left) = (None, len);
                for (segment, place) in segments.iter().zip(places).filter(|(segment, _)| segment.len() > 0) {
                    left = left.saturating_sub(segment.len());
                    last = Some(match place {
                        Some(iova) => self.describe(iova, segment.len(), len, left == 0),
                        None => {
                            self.buffers.copy(std::slice::from_ref(segment), self.tail);
                            self.describe_copied(segment.len(), len, left == 0)
                        }
                    });
                }
                last?
            }
        };
        if let Some(entry) = self.tokens.get_mut(usize::from(last.slot)) {
            *entry = Some(frame.token());
            self.borrowed += 1;
        }
        Some(last)
    }

    /// Lets the device have what was filled.
    #[inline]
    fn ring_doorbell(&mut self) {
        fence(Ordering::Release);
        self.registers.write(TDT, u32::from(self.tail));
    }

    #[inline]
    fn can_be_sent(&self, frame: &Frame) -> bool {
        (MIN_FRAME..=self.max_frame).contains(&frame.len())
    }

    fn transmit_copies(&mut self, frames: Frames<'_>) -> Accepted {
        let start = self.tail;
        let mut accepted = 0;
        for (frame, segments) in frames.iter() {
            if !self.can_be_sent(frame) {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
            } else if self.send_copy(segments, frame.len()).is_none() {
                break;
            }
            accepted += 1;
        }
        if self.tail != start {
            self.ring_doorbell();
        }
        Accepted::Copied(accepted)
    }

    fn transmit_in_place(&mut self, frames: Frames<'_>) -> Accepted {
        let mut accepted = 0;
        let mut last = None;
        for (frame, segments) in frames.iter() {
            if !self.can_be_sent(frame) {
                if accepted == 0 {
                    self.counters.errors.fetch_add(1, Ordering::Relaxed);
                    return Accepted::Copied(1);
                }
                break;
            }
            let Some(sent) = self.send_in_place(frame, segments) else { break };
            last = Some(sent);
            accepted += 1;
        }
        if let Some(Last { slot, part, frame }) = last {
            // The guest waits for its memory: the last frame of a burst always reports.
            if self.unreported > 0 {
                let word = transmit_word(part, frame, TransmitFlags { end: true, report: true });
                self.ring.store(2 * usize::from(slot) + 1, word);
                self.expect_report(slot);
            }
            self.ring_doorbell();
        }
        Accepted::Borrowed(accepted)
    }
}

impl TransmitQueue for IgbvfTransmit {
    #[inline]
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        if self.disabled {
            return Accepted::Copied(0);
        }
        self.collect_reports();
        if self.guest.is_empty() { self.transmit_copies(frames) } else { self.transmit_in_place(frames) }
    }

    #[inline]
    fn reclaim(&mut self, done: &mut Completions) {
        self.collect_reports();
        // What was read of the descriptors comes before the guest writes to its memory again.
        fence(Ordering::Acquire);
        self.give_back(self.clean, done);
    }

    #[inline]
    fn outstanding(&self) -> usize {
        self.borrowed
    }

    fn set_guest_memory(&mut self, windows: Arc<GuestWindows>) {
        (self.guest, self.last_window) = (windows, 0);
    }

    fn abort(&mut self, done: &mut Completions) {
        if !std::mem::replace(&mut self.disabled, true) {
            super::disable(&*self.registers, TXDCTL);
            (self.clean, self.report_count) = (self.tail, 0);
        }
        self.give_back(self.clean, done);
    }
}

#[cfg(test)]
mod tests {
    use super::super::double::Double;
    use super::*;
    use crate::frame::{Burst, Token};
    use crate::intel::descriptor;
    use crate::memory::dma::DmaMemory;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use crate::memory::guest::tests::Pages;
    use proptest::prelude::*;
    use std::ptr::NonNull;

    struct Ring {
        double: Arc<Double>,
        base: u64,
        device: u16,
        /// Descriptors that asked for a report.
        reports: usize,
        /// Where the bytes of each descriptor were.
        places: Vec<u64>,
        counters: Arc<TransmitCounters>,
    }

    fn queue() -> (IgbvfTransmit, Ring) {
        let sizes = [usize::from(RING) * descriptor::SIZE, usize::from(RING) * BUFFER_SIZE as usize];
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), sizes.iter().sum(), "test").unwrap();
        let [ring, buffers] = memory.carve(sizes).unwrap();
        let (double, counters) = (Double::new(), Arc::new(TransmitCounters::default()));
        let base = ring.iova() - OFFSET;
        let registers = Arc::clone(&double) as Arc<dyn Registers>;
        let queue = IgbvfTransmit::new(registers, ring, buffers, 9724, Arc::clone(&counters));
        (queue, Ring { double, base, device: 0, reports: 0, places: Vec::new(), counters })
    }

    impl Ring {
        /// Plays the device: sends what is there, and reports where it is asked to.
        fn send(&mut self) -> Vec<Vec<u8>> {
            let mut sent = Vec::new();
            let mut bytes = Vec::new();
            while u32::from(self.device) != self.double.peek(TDT) {
                let descriptor = (self.base + u64::from(self.device) * 16) as *mut u64;
                // SAFETY: the queue keeps the ring and its buffers mapped; the test is single-threaded.
                unsafe {
                    self.places.push(descriptor.read_volatile() - OFFSET);
                    let buffer = (descriptor.read_volatile() - OFFSET) as *const u8;
                    let word = descriptor.add(1).read_volatile();
                    let len = word as u16;
                    assert!(len > 0);
                    bytes.extend((0..usize::from(len)).map(|n| buffer.add(n).read()));
                    if word & 1 << 24 != 0 {
                        assert_eq!(bytes.len() as u64, word >> 46);
                        sent.push(std::mem::take(&mut bytes));
                    }
                    if word & 1 << 27 != 0 {
                        self.reports += 1;
                        descriptor.add(1).write_volatile(1 << 32);
                    }
                }
                self.device = (self.device + 1) & MASK;
            }
            sent
        }
    }

    /// A burst of frames, each in pieces; their tokens are their numbers.
    fn burst(frames: &mut [Vec<Vec<u8>>]) -> Burst {
        let mut burst = Burst::new();
        for (n, pieces) in frames.iter_mut().enumerate() {
            for piece in pieces {
                let ptr = NonNull::new(piece.as_mut_ptr()).unwrap();
                // SAFETY: the test keeps the pieces until the burst is done with.
                let _ = burst.push_segment(unsafe { Segment::new(ptr, piece.len() as u32) });
            }
            burst.finish_frame(Token(n as u32));
        }
        burst
    }

    /// A queue whose device reaches the second to last of these pages.
    fn reaching_queue(count: usize) -> (IgbvfTransmit, Ring, Arc<Pages>) {
        let (mut queue, ring) = queue();
        let (pages, map) = (Pages::new(count), Arc::new(FakeMap::default()));
        queue.set_guest_memory(Arc::new(GuestWindows::new(vec![pages.window(&map, 1, count - 1)])));
        (queue, ring, pages)
    }

    fn reclaimed(queue: &mut IgbvfTransmit) -> Vec<u32> {
        let mut tokens = Vec::new();
        loop {
            let mut done = Completions::new();
            queue.reclaim(&mut done);
            if done.is_empty() {
                return tokens;
            }
            tokens.extend(done.iter().map(|token| token.0));
        }
    }

    #[test]
    fn frames_arrive_as_they_were_padded_to_the_minimum() {
        let (mut queue, mut ring) = queue();
        let long: Vec<u8> = (0..9724u32).map(|n| n as u8).collect();
        let mut frames = [
            vec![vec![1; 14]],
            vec![vec![2; 2000], vec![3; 96]],
            vec![long[..5000].into(), long[5000..].into()],
        ];
        let burst = burst(&mut frames);
        assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(3));
        let sent = ring.send();
        assert_eq!((sent[0].len(), &sent[0][..14], &sent[0][14..]), (60, &[1; 14][..], &[0; 46][..]));
        assert_eq!((sent[1].len(), sent[1][1999], sent[1][2000]), (2096, 2, 3));
        assert_eq!(sent[2], long);
        assert_eq!(ring.double.writes(TDT), 1);
    }

    #[test]
    fn a_full_ring_takes_a_prefix_and_goes_on_after_reports() {
        let (mut queue, mut ring) = queue();
        let mut frames: Vec<_> = (0..32).map(|n| vec![vec![n; 64]]).collect();
        let burst = burst(&mut frames);
        let mut accepted = 0;
        loop {
            let Accepted::Copied(n) = queue.transmit(burst.frames()) else { panic!() };
            accepted += n;
            if n < 32 {
                break;
            }
        }
        assert_eq!(accepted, 1023);
        assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(0));
        assert_eq!(ring.send().len(), 1023);
        assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(32));
    }

    #[test]
    fn at_full_bursts_a_frame_costs_no_read_and_a_32nd_of_a_write() {
        let (mut queue, mut ring) = queue();
        let mut frames: Vec<_> = (0..32).map(|n| vec![vec![n; 64]]).collect();
        let burst = burst(&mut frames);
        for _ in 0..100 {
            assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(32));
            ring.send();
        }
        assert_eq!(ring.double.reads(), 0);
        assert_eq!((ring.double.writes(TDT), ring.reports), (100, 100));
    }

    #[test]
    fn copied_frames_ask_for_a_report_every_32_descriptors_however_short_the_bursts() {
        let (mut queue, mut ring) = queue();
        for _ in 0..320 {
            assert_eq!(queue.transmit(burst(&mut [vec![vec![1; 64]]]).frames()), Accepted::Copied(1));
        }
        assert_eq!((ring.send().len(), ring.reports), (320, 10));
    }

    #[test]
    fn memory_that_the_device_reaches_is_sent_from_where_it_is_and_given_back_after_that() {
        let (mut queue, mut ring, pages) = reaching_queue(3);
        let mut burst = Burst::new();
        let frames = [pages.segment(5000, 1500), pages.segment(7000, 60)];
        for segment in &frames {
            segment.copy_from(&[7; 1500]);
        }
        frames.iter().enumerate().for_each(|(n, segment)| assert!(burst.push(*segment, Token(n as u32))));
        assert_eq!((queue.transmit(burst.frames()), queue.outstanding()), (Accepted::Borrowed(2), 2));
        assert!(reclaimed(&mut queue).is_empty(), "it has not been sent");
        // What stands there when the device looks is what is sent.
        frames[0].copy_from(&[9; 3]);
        let sent = ring.send();
        assert_eq!((&sent[0][..4], sent[0].len(), &sent[1]), (&[9, 9, 9, 7][..], 1500, &vec![7; 60]));
        assert_eq!(ring.places, frames.map(|segment| segment.as_ptr() as u64));
        assert_eq!((reclaimed(&mut queue), queue.outstanding()), (vec![0, 1], 0));
        assert_eq!((ring.double.writes(TDT), ring.reports), (1, 1));
    }

    #[test]
    fn what_the_device_does_not_reach_is_copied_and_the_rest_is_not() {
        let (mut queue, mut ring, pages) = reaching_queue(3);
        let mut burst = Burst::new();
        let (header, payload) = (pages.segment(100, 54), pages.segment(4096, 3000));
        let far = pages.segment(0, 4096);
        let parts: [&[Segment]; 5] = [
            &[header, payload],                     // a private header before payload in reach
            &[payload.part(0, 40)],                 // shorter than the wire wants it
            &[far],                                 // out of reach
            &[payload, far.part(0, 3000), payload], // three buffers of its own and two of the guest's
            &std::array::from_fn::<_, 17, _>(|_| payload.part(9, 4)), // in too many pieces
        ];
        let mut whole = Vec::new();
        for (n, segments) in parts.iter().enumerate() {
            let mut bytes = vec![n as u8 + 1; 9000];
            for segment in *segments {
                segment.copy_from(&bytes);
            }
            bytes.truncate(segments.iter().map(|segment| segment.len() as usize).sum());
            bytes.resize(bytes.len().max(60), 0);
            segments.iter().for_each(|segment| burst.push_segment(*segment).unwrap());
            burst.finish_frame(Token(n as u32));
            whole.push(bytes);
            // One at a time, since they are in the same memory.
            assert_eq!(queue.transmit(burst.frames()), Accepted::Borrowed(1));
            burst.clear();
            let sent = ring.send();
            assert!(sent.len() == 1 && sent[0] == whole[n], "frame {n}");
        }
        assert_eq!(reclaimed(&mut queue), [0, 1, 2, 3, 4]);
        let reached =
            |place: &&u64| **place >= payload.as_ptr() as u64 && **place < payload.as_ptr() as u64 + 8192;
        assert_eq!((ring.places.len(), ring.places.iter().filter(reached).count()), (10, 3));
    }

    #[test]
    fn in_place_too_a_frame_costs_no_read_and_a_32nd_of_a_write() {
        let (mut queue, mut ring, pages) = reaching_queue(2);
        let mut burst = Burst::new();
        (0..32).for_each(|n| assert!(burst.push(pages.segment(4096 + 64 * n as usize, 64), Token(n))));
        for _ in 0..100 {
            assert_eq!(queue.transmit(burst.frames()), Accepted::Borrowed(32));
            ring.send();
            assert_eq!(reclaimed(&mut queue), Vec::from_iter(0..32));
        }
        assert_eq!(ring.double.reads(), 0);
        assert_eq!((ring.double.writes(TDT), ring.reports), (100, 100));
    }

    #[test]
    fn borrowed_frames_come_back_from_a_device_that_sends_nothing() {
        let (mut queue, ring, pages) = reaching_queue(2);
        ring.double.write(TXDCTL, DCTL_ENABLE | TXDCTL_THRESHOLDS);
        let mut burst = Burst::new();
        (0..32).for_each(|n| assert!(burst.push(pages.segment(4096, 64), Token(n))));
        let mut accepted = 0;
        while let Accepted::Borrowed(n @ 1..) = queue.transmit(burst.frames()) {
            accepted += n;
        }
        assert_eq!((accepted, queue.outstanding()), (1023, 1023));
        assert!(reclaimed(&mut queue).is_empty());
        let mut tokens = Vec::new();
        while queue.outstanding() > 0 {
            let mut done = Completions::new();
            queue.abort(&mut done);
            tokens.extend(done.iter().map(|token| token.0));
        }
        assert_eq!(tokens, Vec::from_iter((0..1023).map(|n| n % 32)));
        assert_eq!(ring.double.read(TXDCTL), TXDCTL_THRESHOLDS);
        assert!(reclaimed(&mut queue).is_empty(), "once");
        assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(0));
    }

    #[test]
    fn a_queue_that_loses_its_windows_copies_and_still_gives_back_what_it_borrowed() {
        let (mut queue, mut ring, pages) = reaching_queue(2);
        let mut burst = Burst::new();
        assert!(burst.push(pages.segment(4096, 64), Token(5)));
        assert_eq!(queue.transmit(burst.frames()), Accepted::Borrowed(1));
        ring.send();
        queue.set_guest_memory(Arc::default());
        assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(1));
        assert_eq!(reclaimed(&mut queue), [5]);
    }

    #[test]
    fn impossible_lengths_are_not_borrowed() {
        let (mut queue, mut ring, pages) = reaching_queue(4);
        let mut burst = Burst::new();
        for (n, len) in [13, 60, 9725, 61].into_iter().enumerate() {
            assert!(burst.push(pages.segment(4096, len), Token(n as u32)));
        }
        let frames = burst.frames();
        assert_eq!(queue.transmit(frames), Accepted::Copied(1));
        assert_eq!(queue.transmit(frames.skip(1)), Accepted::Borrowed(1));
        assert_eq!(queue.transmit(frames.skip(2)), Accepted::Copied(1));
        assert_eq!(queue.transmit(frames.skip(3)), Accepted::Borrowed(1));
        assert_eq!((ring.send().len(), reclaimed(&mut queue)), (2, vec![1, 3]));
        assert_eq!(ring.counters.errors.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn impossible_lengths_are_counted_and_not_sent() {
        let (mut queue, mut ring) = queue();
        let mut frames = [vec![vec![1; 13]], vec![vec![2; 9725]], vec![vec![3; 60]]];
        assert_eq!(queue.transmit(burst(&mut frames).frames()), Accepted::Copied(3));
        assert_eq!(ring.send(), [vec![3; 60]]);
        assert_eq!(ring.counters.errors.load(Ordering::Relaxed), 2);
        assert_eq!(queue.transmit(burst(&mut frames[..2]).frames()), Accepted::Copied(2));
        assert_eq!(ring.double.writes(TDT), 1);
    }

    #[test]
    fn nothing_is_sent_after_abort() {
        let (mut queue, ring) = queue();
        ring.double.write(TXDCTL, DCTL_ENABLE | TXDCTL_THRESHOLDS);
        queue.abort(&mut Completions::new());
        assert_eq!(ring.double.read(TXDCTL), TXDCTL_THRESHOLDS);
        assert_eq!(queue.transmit(burst(&mut [vec![vec![1; 60]]]).frames()), Accepted::Copied(0));
        assert_eq!(queue.outstanding(), 0);
    }

    proptest! {
        #[test]
        fn every_borrowed_frame_is_sent_whole_and_comes_back_once_in_order(
            rounds in prop::collection::vec(
                (prop::collection::vec(prop::collection::vec((0usize..9000, 1u32..1500), 1..20), 1..20), any::<bool>()), 1..60)
        ) {
            // Pages of which every other one is out of reach.
            let (mut queue, mut ring) = queue();
            let (pages, map) = (Pages::new(4), Arc::new(FakeMap::default()));
            pages.segment(0, 10500).copy_from(&Vec::from_iter((0..10500u32).map(|n| ((n * 7919) >> 5) as u8)));
            let windows = vec![pages.window(&map, 1, 1), pages.window(&map, 2, 1)];
            queue.set_guest_memory(Arc::new(GuestWindows::new(windows)));
            let (mut expected, mut sent, mut given, mut back) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let mut number = 0;
            for (frames, run) in rounds {
                let mut burst = Burst::new();
                let mut whole = Vec::new();
                for pieces in frames {
                    let segments: Vec<_> = pieces.iter().map(|(at, len)| pages.segment(*at, *len)).collect();
                    let len: u32 = segments.iter().map(Segment::len).sum();
                    if !(MIN_FRAME..=9724).contains(&len) {
                        continue;
                    }
                    segments.iter().for_each(|segment| burst.push_segment(*segment).unwrap());
                    prop_assert!(burst.finish_frame(Token(number)));
                    number += 1;
                    let mut bytes = vec![0; len.max(60) as usize];
                    crate::frame::gather(&segments, &mut bytes);
                    whole.push(bytes);
                }
                let Accepted::Borrowed(n) = queue.transmit(burst.frames()) else { panic!() };
                given.extend(burst.frames().take(n).iter().map(|(frame, _)| frame.token().0));
                expected.extend(whole.into_iter().take(n));
                if run {
                    sent.extend(ring.send());
                    back.extend(reclaimed(&mut queue));
                }
            }
            sent.extend(ring.send());
            back.extend(reclaimed(&mut queue));
            prop_assert_eq!(queue.outstanding(), 0);
            prop_assert!(sent == expected);
            prop_assert_eq!(back, given);
        }

        #[test]
        fn every_accepted_frame_is_sent_once_and_whole(
            rounds in prop::collection::vec(
                (prop::collection::vec(prop::collection::vec(1usize..3000, 1..4), 1..32), any::<bool>()), 1..60)
        ) {
            let (mut queue, mut ring) = queue();
            let (mut expected, mut sent) = (Vec::new(), Vec::new());
            let mut mark = 0u8;
            for (lengths, run) in rounds {
                let mut frames: Vec<Vec<Vec<u8>>> = lengths.iter().map(|pieces| {
                    mark = mark.wrapping_add(1);
                    pieces.iter().map(|len| vec![mark; *len]).collect()
                }).collect();
                let Accepted::Copied(n) = queue.transmit(burst(&mut frames).frames()) else { panic!() };
                expected.extend(frames.iter().take(n).map(|pieces| pieces.concat()).filter(|f| (14..=9724).contains(&f.len())));
                if run {
                    sent.extend(ring.send());
                }
            }
            sent.extend(ring.send());
            for frame in &mut expected {
                frame.resize(frame.len().max(60), 0);
            }
            prop_assert_eq!(sent, expected);
        }
    }
}
