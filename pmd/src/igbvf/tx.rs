//! The transmit ring.
//!
//! Slot n has buffer n: a frame is copied once, into the buffers of as many slots as it needs. The device reports where
//! it was asked to (RS), by writing into the descriptor, and what it reports for one slot holds for all before it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::registers::*;
use crate::device::{Accepted, Completions, TransmitQueue};
use crate::frame::{Frames, MIN_FRAME, Segment};
use crate::intel::descriptor::{TransmitFlags, is_transmitted, transmit_word};
use crate::memory::{BUFFER_SIZE, DmaSlice};
use crate::registers::Registers;

const MASK: u16 = RING - 1;
/// Descriptors after which a report is asked for, in a burst that long.
const REPORT_EVERY: u16 = 32;
/// Shortest frame on the wire without FCS (IEEE 802.3 §3.2.8); shorter ones are filled up with zeros.
const WIRE_MIN: u32 = 60;
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
    buffers: DmaSlice,
    /// Longest frame.
    max_frame: u32,
    /// The slot that is filled next.
    tail: u16,
    /// The oldest slot that is not known to be sent.
    clean: u16,
    /// Slots that will report, in order: `report_count` of them from `report_first`.
    reports: Box<[u16]>,
    report_first: u16,
    report_count: u16,
    /// Aborted: nothing is sent any more.
    disabled: bool,
    counters: Arc<TransmitCounters>,
}

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
            buffers,
            max_frame,
            tail: 0,
            clean: 0,
            reports: vec![0; usize::from(RING)].into_boxed_slice(),
            report_first: 0,
            report_count: 0,
            disabled: false,
            counters,
        }
    }

    /// Slots that can be filled; one stays empty, so that a full ring is not taken for an empty one.
    #[inline]
    fn room(&self) -> u16 {
        MASK - (self.tail.wrapping_sub(self.clean) & MASK)
    }

    #[inline]
    fn collect_reports(&mut self) {
        while self.report_count > 0 {
            let Some(&slot) = self.reports.get(usize::from(self.report_first)) else { return };
            if !is_transmitted(self.ring.load(2 * usize::from(slot) + 1)) {
                return;
            }
            self.clean = (slot + 1) & MASK;
            self.report_first = (self.report_first + 1) & MASK;
            self.report_count -= 1;
        }
    }

    #[inline]
    fn expect_report(&mut self, slot: u16) {
        let at = (self.report_first + self.report_count) & MASK;
        if let Some(entry) = self.reports.get_mut(usize::from(at)) {
            *entry = slot;
            self.report_count += 1;
        }
    }

    /// Copies `segments` into the buffers from slot `slot` on, zeros up to `padded` bytes behind them.
    #[inline]
    fn copy(&self, segments: &[Segment], mut slot: u16, len: u32, padded: u32) {
        if padded > len {
            let short = self.buffers.segment(usize::from(slot) * BUFFER_SIZE as usize, padded);
            short.copy_from(&[0; WIRE_MIN as usize]);
        }
        let mut at = 0;
        for segment in segments {
            let mut done = 0;
            while done < segment.len() {
                if at == BUFFER_SIZE {
                    (slot, at) = ((slot + 1) & MASK, 0);
                }
                let part = segment.part(done, BUFFER_SIZE - at);
                let start = usize::from(slot) * BUFFER_SIZE as usize + at as usize;
                self.buffers.segment(start, part.len()).copy_from_segment(&part);
                done += part.len();
                at += part.len();
            }
        }
    }

    /// Fills descriptors for a frame of `len` bytes whose bytes are in place; the last one, whose slot is returned,
    /// asks for a report if `report`.
    #[inline]
    fn describe(&mut self, len: u32, report: bool) -> u16 {
        let mut left = len;
        loop {
            let slot = self.tail;
            let part = left.min(BUFFER_SIZE);
            left -= part;
            let end = left == 0;
            let word = transmit_word(part, len, TransmitFlags { end, report: end && report });
            let index = 2 * usize::from(slot);
            self.ring.store(index, self.buffers.iova() + u64::from(slot) * u64::from(BUFFER_SIZE));
            self.ring.store(index + 1, word);
            self.tail = (slot + 1) & MASK;
            if end {
                return slot;
            }
        }
    }
}

impl TransmitQueue for IgbvfTransmit {
    #[inline]
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        if self.disabled {
            return Accepted::Copied(0);
        }
        self.collect_reports();
        let start = self.tail;
        let mut accepted = 0;
        let mut since_report = 0;
        // The last frame described: its slot, and its length while it does not report.
        let mut unreported: Option<(u16, u32)> = None;
        for (frame, segments) in frames.iter() {
            let len = frame.len();
            if len < MIN_FRAME || len > self.max_frame {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                accepted += 1;
                continue;
            }
            let padded = len.max(WIRE_MIN);
            let needed = padded.div_ceil(BUFFER_SIZE) as u16;
            if needed > self.room() {
                break;
            }
            self.copy(segments, self.tail, len, padded);
            since_report += needed;
            let report = since_report >= REPORT_EVERY;
            let slot = self.describe(padded, report);
            if report {
                self.expect_report(slot);
                since_report = 0;
            }
            unreported = (!report).then_some((slot, padded));
            accepted += 1;
        }
        if self.tail == start {
            return Accepted::Copied(accepted);
        }
        if let Some((slot, len)) = unreported {
            let part = (len - 1) % BUFFER_SIZE + 1;
            let word = transmit_word(part, len, TransmitFlags { end: true, report: true });
            self.ring.store(2 * usize::from(slot) + 1, word);
            self.expect_report(slot);
        }
        fence(Ordering::Release);
        self.registers.write(TDT, u32::from(self.tail));
        Accepted::Copied(accepted)
    }

    #[inline]
    fn reclaim(&mut self, _done: &mut Completions) {}

    #[inline]
    fn outstanding(&self) -> usize {
        0
    }

    fn abort(&mut self, _done: &mut Completions) {
        self.disabled = true;
        super::disable(&*self.registers, TXDCTL);
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
    use proptest::prelude::*;
    use std::ptr::NonNull;

    struct Ring {
        double: Arc<Double>,
        base: u64,
        device: u16,
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
        (queue, Ring { double, base, device: 0, counters })
    }

    impl Ring {
        /// Plays the device: sends what is there, and reports where it is asked to.
        fn send(&mut self) -> Vec<Vec<u8>> {
            let mut sent = Vec::new();
            let mut bytes = Vec::new();
            while u32::from(self.device) != self.double.read(TDT) {
                let descriptor = (self.base + u64::from(self.device) * 16) as *mut u64;
                // SAFETY: the queue keeps the ring and its buffers mapped; the test is single-threaded.
                unsafe {
                    let buffer = (descriptor.read_volatile() - OFFSET) as *const u8;
                    let word = descriptor.add(1).read_volatile();
                    let len = word as u16;
                    assert!(u32::from(len) <= BUFFER_SIZE);
                    bytes.extend((0..usize::from(len)).map(|n| buffer.add(n).read()));
                    if word & 1 << 24 != 0 {
                        assert_eq!(bytes.len() as u64, word >> 46);
                        sent.push(std::mem::take(&mut bytes));
                    }
                    if word & 1 << 27 != 0 {
                        descriptor.add(1).write_volatile(1 << 32);
                    }
                }
                self.device = (self.device + 1) & MASK;
            }
            sent
        }
    }

    /// A burst of frames, each in pieces.
    fn burst(frames: &mut [Vec<Vec<u8>>]) -> Burst {
        let mut burst = Burst::new();
        for pieces in frames {
            for piece in pieces {
                let ptr = NonNull::new(piece.as_mut_ptr()).unwrap();
                // SAFETY: the test keeps the pieces until the burst is done with.
                let _ = burst.push_segment(unsafe { Segment::new(ptr, piece.len() as u32) });
            }
            burst.finish_frame(Token(0));
        }
        burst
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
