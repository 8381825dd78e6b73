//! A transmit ring.
//!
//! ```text
//!   clean ──▶ [with the device] ◀── tail      slot n has buffer n; a frame's context descriptor has a slot of its own
//! ```
//!
//! A frame is copied once, into the buffers of as many slots as it needs. The device [reports](crate::intel::reports) now and
//! then how far it has got.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::descriptor::{
    MAX_CUT, MAX_TRANSMIT_BUFFER, SEGMENT_SIZES, Work, cut_word, data_word, is_transmitted,
};
use super::registers::*;
use crate::device::{Accepted, Completions, TransmitQueue};
use crate::frame::{Frame, Frames, MIN_FRAME, Segment};
use crate::intel::reports::Reports;
use crate::memory::{BUFFER_SIZE, DmaSlice, SlotBuffers};
use crate::net::checksum::Sum;
use crate::net::layers::Layers;
use crate::net::packet::{LOOKED_AT, TCP, Version};
use crate::offload::{Capabilities, Limits, Segmentation};
use crate::registers::Registers;
use crate::vf::Progress;

const MASK: u16 = RING - 1;
/// Buffers of one frame, or of one segment of a frame that is cut: more are malicious to the device (XL710 data sheet,
/// 8.4.1). A segment begins and ends within buffers, and its headers are in another one.
const MOST_BUFFERS: u32 = 8;
const _: () = assert!(LONGEST_FRAME.div_ceil(BUFFER_SIZE) + 2 <= MOST_BUFFERS);
const _: () = assert!(BUFFER_SIZE <= MAX_TRANSMIT_BUFFER);
// Whatever may be cut fits into the ring.
const _: () = assert!(MAX_CUT.div_ceil(BUFFER_SIZE) + 1 < MASK as u32);

/// What transmit queues count for the slow side.
#[derive(Debug, Default)]
pub struct TransmitCounters {
    /// Frames of a length that the device does not send, cut or whole.
    pub length: AtomicU64,
    /// Frames whose headers are not what their offload says.
    pub headers: AtomicU64,
}

impl TransmitCounters {
    /// All of them.
    pub fn sum(&self) -> u64 {
        self.length.load(Ordering::Relaxed) + self.headers.load(Ordering::Relaxed)
    }
}

/// How a frame is sent.
#[derive(Clone, Copy, Debug)]
enum Plan {
    /// As it is.
    Plain,
    /// With its transport checksum filled in.
    Sum(Layers),
    /// Cut into segments with so much payload.
    Cut(Layers, u16),
}

/// Why a frame is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unfit {
    Length,
    Headers,
}

/// The descriptor filled last, as far as it may have to be changed.
#[derive(Clone, Copy, Debug)]
struct Last {
    slot: u16,
    len: u32,
    work: Work,
}

/// A transmit queue of a VF.
#[derive(Debug)]
pub struct IavfTransmit {
    registers: Arc<dyn Registers>,
    tail_register: u32,
    ring: DmaSlice,
    buffers: SlotBuffers,
    /// Longest frame.
    max_frame: u32,
    capabilities: Capabilities,
    /// The slot that is filled next.
    tail: u16,
    /// The oldest slot that is not known to be sent.
    clean: u16,
    reports: Reports,
    /// Aborted: nothing is sent any more.
    disabled: bool,
    counters: Arc<TransmitCounters>,
}

impl IavfTransmit {
    /// Queue `number` over `ring` (room for [`RING`] descriptors) and `buffers` (as many of [`BUFFER_SIZE`] bytes), which the
    /// PF knows.
    pub(super) fn new(
        registers: Arc<dyn Registers>,
        number: u16,
        ring: DmaSlice,
        buffers: DmaSlice,
        max_frame: u32,
        offloads: bool,
        counters: Arc<TransmitCounters>,
    ) -> Self {
        // Its fields hold all headers that are looked at.
        let limits = Limits {
            cut: MAX_CUT,
            segment: (*SEGMENT_SIZES.start(), *SEGMENT_SIZES.end()),
            segment_frame: max_frame,
            ..Limits::NONE
        };
        let capabilities = Capabilities { udp: false, by_header: true, limits, ..Capabilities::ALL };
        let tail_register = QTX_TAIL1 + 4 * u32::from(number);
        registers.write(tail_register, 0);
        Self {
            registers,
            tail_register,
            ring,
            buffers: SlotBuffers::new(buffers, RING),
            max_frame,
            capabilities: if offloads { capabilities } else { Capabilities::NONE },
            tail: 0,
            clean: 0,
            reports: Reports::new(RING),
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
        let is_sent = |slot| is_transmitted(self.ring.load(2 * usize::from(slot) + 1));
        if let Some(clean) = self.reports.collect(is_sent) {
            self.buffers.came_back(clean, clean.wrapping_sub(self.clean) & MASK);
            self.clean = clean;
        }
        // The buffers are written to after the device has read them.
        fence(Ordering::Acquire);
    }

    /// Fills the next descriptor.
    #[inline]
    fn describe(&mut self, first: u64, second: u64) {
        let index = 2 * usize::from(self.tail);
        self.ring.store(index, first);
        self.ring.store(index + 1, second);
        self.tail = (self.tail + 1) & MASK;
    }

    /// Fills descriptors for the `len` bytes, some at least, in the buffers from the next slot on.
    #[inline]
    fn describe_frame(&mut self, len: u32, work: Work) -> Last {
        let mut left = len;
        loop {
            let part = left.min(BUFFER_SIZE);
            left -= part;
            let end = left == 0;
            let report = self.reports.filled() && end;
            let slot = self.tail;
            self.describe(self.buffers.iova(slot), data_word(part, work, end, report));
            if report {
                self.reports.expect(slot);
            }
            if end {
                return Last { slot, len: part, work };
            }
        }
    }

    /// How a frame is sent.
    #[inline]
    fn plan(&self, frame: &Frame, segments: &[Segment]) -> Result<Plan, Unfit> {
        let (len, offload) = (frame.len(), frame.offload());
        if len < MIN_FRAME || (offload.segmentation == Segmentation::None && len > self.max_frame) {
            return Err(Unfit::Length);
        }
        if offload.is_done() {
            return Ok(Plan::Plain);
        }
        // What decides is read off a copy; nobody changes the headers any more (`Capabilities::by_header`).
        let mut head = [0; LOOKED_AT];
        let copied = segments.first().map_or(0, |segment| segment.copy_to(&mut head));
        let Some(layers) = Layers::of(&head[..copied], offload) else { return Err(Unfit::Headers) };
        let headers = layers.headers() as u32;
        let payload = len.saturating_sub(headers);
        if offload.segmentation == Segmentation::Udp {
            return Err(Unfit::Headers);
        }
        if offload.segmentation == Segmentation::None || payload <= u32::from(offload.segment_size) {
            return if len <= self.max_frame { Ok(Plan::Sum(layers)) } else { Err(Unfit::Length) };
        }
        let fits = SEGMENT_SIZES.contains(&offload.segment_size)
            && headers + u32::from(offload.segment_size) <= self.max_frame
            && len <= MAX_CUT;
        if fits { Ok(Plan::Cut(layers, offload.segment_size)) } else { Err(Unfit::Length) }
    }

    /// Sends a frame; `None` when there is no room for it.
    #[inline]
    fn send(&mut self, frame: &Frame, segments: &[Segment], plan: Plan) -> Option<Last> {
        let context = u32::from(matches!(plan, Plan::Cut(..)));
        let slots = SlotBuffers::needed(frame.len());
        if slots + context > u32::from(self.room()) {
            return None;
        }
        let first = (self.tail + context as u16) & MASK;
        self.buffers.warm(first, slots);
        let len = self.buffers.copy_frame(segments, frame.len(), first);
        let work = match plan {
            Plan::Plain => Work::default(),
            Plan::Sum(layers) => Work::of(&layers, false),
            Plan::Cut(layers, size) => {
                self.prepare_cut(&layers, first);
                self.reports.filled();
                self.describe(0, cut_word(frame.len() - layers.headers() as u32, size));
                Work::of(&layers, true)
            }
        };
        Some(self.describe_frame(len, work))
    }

    /// Makes the headers in the buffer of `slot` what the device starts from: no lengths, no IPv4 checksum, and in place of
    /// the TCP checksum the sum of a pseudo header without length (XL710 data sheet, 8.4.4).
    #[inline]
    fn prepare_cut(&self, layers: &Layers, slot: u16) {
        let (network, transport) = (u32::from(layers.l2), u32::from(layers.l2) + u32::from(layers.l3));
        let headers = self.buffers.segment(slot, layers.headers() as u32);
        let put = |at: u32, bytes: [u8; 2]| headers.part(at, 2).copy_from(&bytes);
        let mut addresses = [0; 32];
        let addresses = match layers.version {
            Version::V4 => {
                put(network + 2, [0; 2]);
                put(network + 10, [0; 2]);
                headers.part(network + 12, 8).copy_to(&mut addresses);
                &addresses[..8]
            }
            Version::V6 => {
                put(network + 4, [0; 2]);
                headers.part(network + 8, 32).copy_to(&mut addresses);
                &addresses[..]
            }
        };
        put(transport + 16, Sum::of_pseudo_header(addresses, TCP, 0).partial());
    }
}

impl TransmitQueue for IavfTransmit {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    #[inline]
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        if self.disabled {
            return Accepted::Copied(0);
        }
        self.collect_reports();
        let mut last = None;
        let mut accepted = 0;
        for (frame, segments) in frames.iter() {
            match self.plan(frame, segments) {
                Err(unfit) => {
                    let counter = match unfit {
                        Unfit::Length => &self.counters.length,
                        Unfit::Headers => &self.counters.headers,
                    };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                Ok(plan) => match self.send(frame, segments, plan) {
                    None => break,
                    sent => last = sent,
                },
            }
            accepted += 1;
        }
        if let Some(Last { slot, len, work }) = last {
            if self.reports.is_wanted(false) {
                self.ring.store(2 * usize::from(slot) + 1, data_word(len, work, true, true));
                self.reports.expect(slot);
            }
            fence(Ordering::Release);
            self.registers.write(self.tail_register, u32::from(self.tail));
        }
        Accepted::Copied(accepted)
    }

    #[inline]
    fn reclaim(&mut self, _done: &mut Completions) {}

    fn progress(&self) -> Option<Arc<Progress>> {
        Some(self.reports.progress())
    }

    #[inline]
    fn outstanding(&self) -> usize {
        0
    }

    /// There is nothing to take back: frames are copied.
    fn abort(&mut self, _done: &mut Completions) {
        self.disabled = true;
    }
}

#[cfg(test)]
mod tests {
    use super::super::descriptor::TRANSMIT_SIZE;
    use super::super::tests::Plain;
    use super::*;
    use crate::frame::{Burst, Token};
    use crate::memory::dma::DmaMemory;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use crate::offload::limits::tests as limits;
    use crate::offload::{Checksum, Offload};
    use proptest::prelude::*;
    use std::ptr::NonNull;

    struct Ring {
        registers: Arc<Plain>,
        base: u64,
        device: u16,
        reports: usize,
        counters: Arc<TransmitCounters>,
    }

    fn queue() -> (IavfTransmit, Ring) {
        let sizes = [usize::from(RING) * TRANSMIT_SIZE, SlotBuffers::bytes(RING)];
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), sizes.iter().sum(), "test").unwrap();
        let [ring, buffers] = memory.carve(sizes).unwrap();
        let (registers, counters) = (Arc::new(Plain::default()), Arc::new(TransmitCounters::default()));
        let base = ring.iova() - OFFSET;
        let shared = Arc::clone(&registers) as Arc<dyn Registers>;
        let queue = IavfTransmit::new(shared, 2, ring, buffers, 9724, true, Arc::clone(&counters));
        (queue, Ring { registers, base, device: 0, reports: 0, counters })
    }

    impl Ring {
        /// Plays the device: takes what it was given; context words and the bytes of each frame.
        fn send(&mut self) -> (Vec<u64>, Vec<Vec<u8>>) {
            let (mut contexts, mut sent, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
            while u32::from(self.device) != self.registers.read(QTX_TAIL1 + 8) {
                let descriptor = (self.base + u64::from(self.device) * TRANSMIT_SIZE as u64) as *mut u64;
                // SAFETY: the queue keeps the ring and its buffers mapped; the test is single-threaded.
                unsafe {
                    let word = descriptor.add(1).read_volatile();
                    if word & 0xf == 1 {
                        contexts.push(word);
                    } else {
                        let buffer = (descriptor.read_volatile() - OFFSET) as *const u8;
                        bytes.extend((0..(word >> 34 & 0x3fff) as usize).map(|n| buffer.add(n).read()));
                        if word & 1 << 4 != 0 {
                            sent.push(std::mem::take(&mut bytes));
                        }
                        if word & 1 << 5 != 0 {
                            self.reports += 1;
                            descriptor.add(1).write_volatile(0xf);
                        }
                    }
                }
                self.device = (self.device + 1) & MASK;
            }
            (contexts, sent)
        }
    }

    fn burst(frames: &mut [(Vec<u8>, Offload)]) -> Burst {
        let mut burst = Burst::new();
        for (n, (bytes, offload)) in frames.iter_mut().enumerate() {
            let ptr = NonNull::new(bytes.as_mut_ptr()).unwrap();
            // SAFETY: the test keeps the frames until the burst is done with.
            let _ = burst.push_segment(unsafe { Segment::new(ptr, bytes.len() as u32) });
            burst.finish_frame_with(Token(n as u32), *offload);
        }
        burst
    }

    fn plain(bytes: Vec<u8>) -> (Vec<u8>, Offload) {
        (bytes, Offload::NONE)
    }

    /// TCP over IPv4 with so much payload, to be cut.
    fn tcp(payload: usize, segment_size: u16) -> (Vec<u8>, Offload) {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0xff, 0xff, 0, 0, 0x40, 0, 64, 6, 0xab, 0xcd]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0; 12]);
        frame.extend([0x50, 0x18, 0, 0, 0x12, 0x34, 0, 0]);
        frame.resize(54 + payload, 7);
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        let segmentation = Segmentation::TcpV4;
        (frame, Offload { checksum, segmentation, segment_size, header_length: 54, ..Offload::NONE })
    }

    #[test]
    fn frames_arrive_as_they_were_padded_to_the_minimum() {
        let (mut queue, mut ring) = queue();
        let long: Vec<u8> = (0..9724u32).map(|n| n as u8).collect();
        let mut frames = [plain(vec![1; 14]), plain(vec![2; 2096]), plain(long.clone())];
        assert_eq!(queue.transmit(burst(&mut frames).frames()), Accepted::Copied(3));
        let (contexts, sent) = ring.send();
        assert!(contexts.is_empty());
        assert_eq!((sent[0].len(), &sent[0][..14], &sent[0][14..]), (60, &[1; 14][..], &[0; 46][..]));
        assert_eq!((&sent[1], &sent[2]), (&vec![2; 2096], &long));
        assert_eq!(ring.registers.writes(QTX_TAIL1 + 8), 2, "one doorbell, and the first tail");
    }

    #[test]
    fn what_is_cut_has_a_context_and_headers_without_lengths() {
        let (mut queue, mut ring) = queue();
        assert_eq!(queue.transmit(burst(&mut [tcp(5000, 1000)]).frames()), Accepted::Copied(1));
        let (contexts, sent) = ring.send();
        assert_eq!(contexts, [cut_word(5000, 1000)]);
        assert_eq!((sent[0].len(), &sent[0][16..18], &sent[0][24..26]), (5054, &[0; 2][..], &[0; 2][..]));
        // 0a00 + 0001 + 0a00 + 0002 + 0006.
        assert_eq!(sent[0][50..52], [0x14, 0x09]);
    }

    #[test]
    fn one_segment_is_not_cut() {
        let (mut queue, mut ring) = queue();
        let mut frames = [tcp(1000, 1000)];
        assert_eq!(queue.transmit(burst(&mut frames).frames()), Accepted::Copied(1));
        let (contexts, sent) = ring.send();
        assert!(contexts.is_empty() && sent[0] == frames[0].0);
    }

    #[test]
    fn what_would_stop_the_queue_is_counted_and_not_sent() {
        let (mut queue, mut ring) = queue();
        let mut odd = tcp(100, 0);
        odd.1.segmentation = Segmentation::None;
        odd.1.checksum = Checksum::Partial { start: 0, offset: 0 };
        let mut udp = tcp(100, 90);
        udp.1.segmentation = Segmentation::Udp;
        let mut frames = [
            tcp(5000, 63),
            tcp(60_000, 9700),
            tcp(60_000, 0),
            plain(vec![1; 13]),
            plain(vec![1; 9725]),
            odd,
            udp,
            plain(vec![3; 60]),
        ];
        assert_eq!(queue.transmit(burst(&mut frames).frames()), Accepted::Copied(8));
        assert_eq!(ring.send().1, [vec![3; 60]]);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((count(&ring.counters.length), count(&ring.counters.headers)), (5, 2));
    }

    #[test]
    fn all_within_its_limits_is_sent_and_what_lies_outside_is_not() {
        let (inside, outside) = limits::edges(&queue().0.capabilities().limits);
        for (sent, frames) in [(true, inside), (false, outside)] {
            for frame in frames {
                let (mut queue, ring) = queue();
                let offload = frame.1;
                assert_eq!(queue.transmit(burst(&mut [frame]).frames()), Accepted::Copied(1));
                let refused = ring.counters.sum();
                assert_eq!((queue.tail > 0, refused), (sent, u64::from(!sent)), "{offload:?}");
            }
        }
    }

    #[test]
    fn a_full_ring_takes_a_prefix_and_goes_on_after_reports() {
        let (mut queue, mut ring) = queue();
        let mut frames: Vec<_> = (0..32).map(|n| plain(vec![n; 64])).collect();
        let burst = burst(&mut frames);
        let mut accepted = 0;
        while let Accepted::Copied(n @ 1..) = queue.transmit(burst.frames()) {
            accepted += n;
        }
        assert_eq!(accepted, 1023);
        assert_eq!(ring.send().1.len(), 1023);
        assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(32));
    }

    #[test]
    fn at_full_bursts_a_frame_costs_no_read_and_a_32nd_of_a_write() {
        let (mut queue, mut ring) = queue();
        let mut frames: Vec<_> = (0..32).map(|n| plain(vec![n; 64])).collect();
        let burst = burst(&mut frames);
        for _ in 0..100 {
            let before = ring.registers.reads();
            assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(32));
            assert_eq!(ring.registers.reads(), before);
            ring.send();
        }
        assert_eq!((ring.registers.writes(QTX_TAIL1 + 8), ring.reports), (101, 100));
    }

    #[test]
    fn nothing_is_sent_after_abort() {
        let (mut queue, _ring) = queue();
        queue.abort(&mut Completions::new());
        assert_eq!(queue.transmit(burst(&mut [plain(vec![1; 60])]).frames()), Accepted::Copied(0));
        assert_eq!(queue.outstanding(), 0);
    }

    proptest! {
        #[test]
        fn every_accepted_frame_is_sent_once_and_whole(
            rounds in prop::collection::vec(
                (prop::collection::vec((any::<bool>(), 1usize..6_000), 1..10), any::<bool>()), 1..20)
        ) {
            let (mut queue, mut ring) = queue();
            let (mut expected, mut sent) = (Vec::new(), Vec::new());
            let mut mark = 0u8;
            for (lengths, run) in rounds {
                let mut frames: Vec<_> = lengths.iter().map(|(cut, len)| {
                    mark = mark.wrapping_add(1);
                    if *cut { tcp(*len, 1000) } else { plain(vec![mark; *len / 3 + 1]) }
                }).collect();
                let Accepted::Copied(n) = queue.transmit(burst(&mut frames).frames()) else { panic!() };
                let lengths = frames.iter().take(n).filter(|(bytes, offload)| {
                    !offload.is_done() || (14..=9724).contains(&bytes.len())
                });
                expected.extend(lengths.map(|(bytes, _)| (bytes.len().max(60), bytes[bytes.len() - 1])));
                if run {
                    sent.extend(ring.send().1);
                }
            }
            sent.extend(ring.send().1);
            let sent: Vec<_> = sent.iter().map(|bytes| (bytes.len(), bytes[13])).collect();
            prop_assert_eq!(sent.len(), expected.len());
            for (sent, expected) in sent.iter().zip(&expected) {
                prop_assert_eq!(sent.0, expected.0);
            }
        }
    }
}
