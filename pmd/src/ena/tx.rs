//! A transmit queue.
//!
//! ```text
//!   buffers           oldest ──▶ [frame 7][frame 8][frame 9] ◀── newest     filled in order, free in order
//!   submission ring   [id 3     ][id 0    ][id 5    ]        ──▶ device
//!   completion ring   [id 5][id 3] …                         ◀──            in any order
//! ```
//!
//! A frame is copied once, into as many buffers as it needs, which lie behind each other, and gets an id, by which the device
//! says that it has been sent. The device may do that in any order: the id is free at once, the frame's buffers when all
//! before them are. An id that the device does not have is a rule broken: the queue sends nothing more until it is reset.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use arrayvec::ArrayVec;

use super::descriptor::{self, MOST_SEGMENT, Meta, Sent, Words};
use super::features::LlqLayout;
use super::health::{Breach, Health};
use super::llq::Submissions;
use crate::device::{Accepted, Completions, TransmitQueue};
use crate::frame::{Frame, Frames, MIN_FRAME, Segment};
use crate::memory::{BUFFER_SIZE, DmaSlice, SlotBuffers};
use crate::net::layers::{Layers, Transport};
use crate::net::packet::Version;
use crate::offload::{Capabilities, Limits, Segmentation};
use crate::registers::Registers;
use crate::vf::Progress;

/// Longest frame that the device cuts: what virtio-net sends at most.
const LONGEST_CUT: u32 = 65_550;
/// Bytes of one descriptor; its field has room for 65535.
const MOST_BYTES: u32 = 16 << 10;
/// Descriptors of a frame: a meta descriptor, its bytes, and one more where they go around the end of the buffers.
pub const MOST_DESCRIPTORS: usize = 2 + LONGEST_CUT.div_ceil(MOST_BYTES) as usize;
/// Bytes of a frame that are looked at for its headers.
const LOOKED_AT: u32 = 256;

/// What a device takes, where frames of up to `max_frame` bytes are sent: one that reads headers from the entries of a low
/// latency queue must find all of them there.
pub fn limits(llq: Option<&LlqLayout>, max_frame: u32) -> Limits {
    Limits {
        headers: llq.map_or(LOOKED_AT as u16, LlqLayout::max_header),
        cut: LONGEST_CUT,
        segment: (1, MOST_SEGMENT),
        segment_frame: max_frame,
    }
}

/// What the transmit queues of a device count for the slow side.
#[derive(Debug, Default)]
pub struct TransmitCounters {
    /// Frames that the device does not send: of an impossible length, with headers that nobody knows, or as it said itself.
    pub errors: AtomicU64,
}

/// What a transmit queue is made of.
#[derive(Debug)]
pub struct Parts {
    /// The ring of descriptors.
    pub submissions: Submissions,
    /// The ring of completions.
    pub completions: DmaSlice,
    /// Entries of each, and buffers: a power of two.
    pub depth: u16,
    /// Where the number of submitted entries goes.
    pub doorbell: Arc<dyn Registers>,
    /// Transmit buffers.
    pub buffers: DmaSlice,
    /// Longest frame that is not cut.
    pub max_frame: u32,
    /// What may be left to the device.
    pub capabilities: Capabilities,
    /// Whether the device promises that reserved bits are 0.
    pub keeps_reserved_bits: bool,
    /// Told to the slow side.
    pub counters: Arc<TransmitCounters>,
    /// Likewise.
    pub health: Arc<Health>,
}

/// A frame that the device has.
#[derive(Clone, Copy, Debug)]
struct Away {
    /// Its place in the order of frames.
    place: u16,
    /// Entries of the submission ring.
    entries: u16,
}

/// A frame whose buffers are not free.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    buffers: u16,
    /// The device has sent it.
    sent: bool,
}

/// What a frame asks of the device.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    meta: Option<Meta>,
    bits: u32,
    /// Bytes of headers that descriptors in memory of the host tell.
    headers: u8,
}

/// A transmit queue of a VF.
#[derive(Debug)]
pub struct EnaTransmit {
    submissions: Submissions,
    completions: DmaSlice,
    depth: u16,
    doorbell: Arc<dyn Registers>,
    buffers: SlotBuffers,
    max_frame: u32,
    capabilities: Capabilities,
    keeps_reserved_bits: bool,
    counters: Arc<TransmitCounters>,
    health: Arc<Health>,
    progress: Arc<Progress>,
    /// Entries submitted so far, and those that the device was told of.
    tail: u16,
    rung: u16,
    /// Entries of frames that the device has.
    used: u16,
    /// Completions read so far.
    head: u16,
    /// By id.
    away: Box<[Option<Away>]>,
    ids: Vec<u16>,
    /// Frames in order: `held_count` from `held_first`.
    held: Box<[Held]>,
    held_first: u16,
    held_count: u16,
    /// The buffer that is filled next, and how many are not free.
    buffer: u16,
    filled: u16,
    /// What the device remembers.
    remembered: Meta,
    /// Aborted, or the device broke a rule: nothing is sent any more.
    disabled: bool,
}

impl EnaTransmit {
    /// A queue that the device knows.
    pub(super) fn new(parts: Parts) -> Self {
        let depth = parts.depth;
        Self {
            submissions: parts.submissions,
            completions: parts.completions,
            depth,
            doorbell: parts.doorbell,
            buffers: SlotBuffers::new(parts.buffers, depth),
            max_frame: parts.max_frame,
            capabilities: parts.capabilities,
            keeps_reserved_bits: parts.keeps_reserved_bits,
            counters: parts.counters,
            health: parts.health,
            progress: Arc::default(),
            tail: 0,
            rung: 0,
            used: 0,
            head: 0,
            away: vec![None; usize::from(depth)].into_boxed_slice(),
            ids: (0..depth - 1).rev().collect(),
            held: vec![Held::default(); usize::from(depth)].into_boxed_slice(),
            held_first: 0,
            held_count: 0,
            buffer: 0,
            filled: 0,
            remembered: Meta::default(),
            disabled: false,
        }
    }

    /// The device broke a rule: nothing is sent until it is reset.
    #[cold]
    fn die(&mut self, breach: Breach) {
        self.disabled = true;
        self.health.breached(breach);
    }

    /// Reads what the device has sent.
    #[inline]
    fn collect(&mut self) {
        if self.disabled {
            return;
        }
        let mut found = 0;
        let mut failed = 0;
        // No more than are on their way: a device that completes without end is none of ours to follow.
        let most = self.depth - 1 - self.ids.len() as u16;
        loop {
            let sent = Sent::from_word(self.completions.load(usize::from(self.head & (self.depth - 1))));
            if sent.phase() != descriptor::phase(self.head, self.depth) {
                break;
            }
            if self.keeps_reserved_bits && sent.has_reserved_bits() {
                return self.die(Breach::TransmitDescriptor);
            }
            let away = self.away.get_mut(usize::from(sent.id())).and_then(Option::take);
            let Some(Away { place, entries }) = away.filter(|_| found < most) else {
                return self.die(Breach::TransmitId);
            };
            self.ids.push(sent.id());
            self.used -= entries;
            if let Some(held) = self.held.get_mut(usize::from(place)) {
                held.sent = true;
            }
            failed += u64::from(sent.is_error());
            self.head = self.head.wrapping_add(1);
            found += 1;
        }
        if most > 0 {
            self.progress.looked(u64::from(found));
        }
        if failed > 0 {
            self.counters.errors.fetch_add(failed, Ordering::Relaxed);
        }
        if found > 0 {
            // The buffers are written again after what the device says about them was read.
            fence(Ordering::Acquire);
            self.free_buffers();
        }
    }

    #[inline]
    fn free_buffers(&mut self) {
        while self.held_count > 0 {
            let Some(oldest) = self.held.get(usize::from(self.held_first)).filter(|held| held.sent) else {
                return;
            };
            self.filled -= oldest.buffers;
            self.held_first = (self.held_first + 1) & (self.depth - 1);
            self.held_count -= 1;
        }
    }

    /// Whether the device takes a frame of this length, with this work.
    #[inline]
    fn can_be_sent(&self, frame: &Frame) -> bool {
        let offload = frame.offload();
        let longest = match offload.segmentation {
            Segmentation::None => self.max_frame,
            _ => LONGEST_CUT,
        };
        (MIN_FRAME..=longest).contains(&frame.len()) && self.capabilities.cover(offload)
    }

    /// What a frame asks of the device; `headers` are its first bytes, as they are sent. `None` where the device would not
    /// find what is asked for.
    #[inline]
    fn work(&self, frame: &Frame, headers: &[u8]) -> Option<Work> {
        let offload = frame.offload();
        if offload.is_done() {
            return Some(Work::default());
        }
        let layers = Layers::of(headers, offload)?;
        let segment = u32::from(offload.segment_size);
        let (headers_len, cuts) = (layers.headers() as u32, offload.segmentation != Segmentation::None);
        if cuts && !(1..=self.max_frame.saturating_sub(headers_len)).contains(&segment) {
            return None;
        }
        let flags = headers.get(usize::from(layers.l2) + 6).copied().unwrap_or(0);
        let dont_fragment = layers.version == Version::V4 && flags & 0x40 != 0;
        // A device that reads headers from the entry must find all of them there.
        let pushed = self.submissions.pushed();
        if pushed > 0 && headers_len > pushed {
            return None;
        }
        let told = match &self.submissions {
            // What the specification asks of frames that are longer than headers may be.
            Submissions::Host { max_header, .. } if frame.len() > u32::from(*max_header) => {
                let shortest = if layers.transport == Transport::Tcp { 20 } else { 8 };
                (u32::from(layers.l2) + u32::from(layers.l3) + shortest).min(u32::from(*max_header)) as u8
            }
            _ => 0,
        };
        Some(Work {
            meta: Some(Meta::of(&layers, offload.segmentation, offload.segment_size)),
            bits: descriptor::work(&layers, offload.segmentation, dont_fragment),
            headers: told,
        })
    }

    /// The descriptors of a frame of `len` bytes in the buffers from the next one on, of which `pushed` go with them.
    #[inline]
    fn describe(&self, id: u16, work: &Work, len: u32, pushed: u32) -> ArrayVec<Words, MOST_DESCRIPTORS> {
        let mut descriptors = ArrayVec::new();
        let meta = match work.meta {
            _ if self.submissions.meta_always() => Some(work.meta.unwrap_or_default()),
            Some(meta) if meta != self.remembered => Some(meta),
            _ => None,
        };
        if let Some(meta) = meta {
            descriptors.push(meta.descriptor());
        }
        let header = if pushed > 0 { pushed as u8 } else { work.headers };
        let mut next = descriptor::begin(id, work.bits, header);
        let mut at = pushed;
        loop {
            let slot = (self.buffer + (at / BUFFER_SIZE) as u16) & (self.depth - 1);
            let inside = at % BUFFER_SIZE;
            let behind = u32::from(self.depth - slot) * BUFFER_SIZE - inside;
            let part = (len - at).min(behind).min(MOST_BYTES);
            if part > 0 {
                next = descriptor::with_bytes(next, self.buffers.iova(slot) + u64::from(inside), part);
            }
            at += part;
            if descriptors.try_push(next).is_err() || at >= len {
                break;
            }
            next = [0; 4];
        }
        descriptor::mark_ends(&mut descriptors);
        descriptors
    }

    /// Copies a frame and gives it to the device; `None` when there is no room for it, `Some(false)` when it cannot be sent.
    #[inline]
    fn send(&mut self, frame: &Frame, segments: &[Segment]) -> Option<bool> {
        let len = frame.len();
        if !self.can_be_sent(frame) {
            return Some(false);
        }
        let buffers = SlotBuffers::needed(len) as u16;
        let id = *self.ids.last()?;
        let full = self.used >= self.depth - 1 || self.held_count >= self.depth;
        if full || buffers > self.depth - self.filled {
            return None;
        }
        let len = if frame.offload().segmentation == Segmentation::None {
            self.buffers.copy_frame(segments, len, self.buffer)
        } else {
            // What fills up a frame that is cut would be taken for payload.
            self.buffers.copy(segments, self.buffer);
            len
        };
        let pushed = self.submissions.pushed().min(len);
        let needed = if frame.offload().is_done() { pushed } else { len.min(LOOKED_AT) };
        let mut headers = [0; LOOKED_AT as usize];
        let looked_at = self.buffers.segment(self.buffer, needed).copy_to(&mut headers);
        let headers = &headers[..looked_at];
        let Some(work) = self.work(frame, headers) else { return Some(false) };
        let descriptors = self.describe(id, &work, len, pushed);
        let entries = self.submissions.entries(descriptors.len());
        // One entry stays empty: a ring whose tail meets its head is an empty one.
        if entries > self.depth - 1 - self.used {
            return None;
        }
        let burst = self.submissions.burst();
        if burst > 0 && self.tail.wrapping_sub(self.rung) + entries > burst {
            if entries > burst {
                return Some(false);
            }
            self.ring_doorbell();
        }
        let header = headers.get(..pushed as usize).unwrap_or_default();
        self.submissions.write(&descriptors, header, self.tail, self.depth);
        self.ids.pop();
        if let Some(meta) = work.meta {
            self.remembered = meta;
        }
        let place = (self.held_first + self.held_count) & (self.depth - 1);
        if let (Some(held), Some(away)) =
            (self.held.get_mut(usize::from(place)), self.away.get_mut(usize::from(id)))
        {
            *held = Held { buffers, sent: false };
            *away = Some(Away { place, entries });
        }
        self.held_count += 1;
        self.tail = self.tail.wrapping_add(entries);
        self.used += entries;
        self.buffer = (self.buffer + buffers) & (self.depth - 1);
        self.filled += buffers;
        Some(true)
    }

    /// Lets the device have what was filled.
    #[inline]
    fn ring_doorbell(&mut self) {
        fence(Ordering::Release);
        self.doorbell.write(0, u32::from(self.tail));
        self.rung = self.tail;
    }
}

impl TransmitQueue for EnaTransmit {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    #[inline]
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        self.collect();
        if self.disabled {
            return Accepted::Copied(0);
        }
        let mut accepted = 0;
        for (frame, segments) in frames.iter() {
            match self.send(frame, segments) {
                None => break,
                Some(true) => {}
                Some(false) => {
                    self.counters.errors.fetch_add(1, Ordering::Relaxed);
                }
            }
            accepted += 1;
        }
        if self.tail != self.rung {
            self.ring_doorbell();
        }
        Accepted::Copied(accepted)
    }

    #[inline]
    fn reclaim(&mut self, _done: &mut Completions) {
        self.collect();
    }

    fn progress(&self) -> Option<Arc<Progress>> {
        Some(Arc::clone(&self.progress))
    }

    fn outstanding(&self) -> usize {
        0
    }

    fn abort(&mut self, _done: &mut Completions) {
        self.disabled = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ena::double::{DeviceMemory, Doorbell};
    use crate::ena::features::LlqLayout;
    use crate::frame::{Burst, Token};
    use crate::memory::dma::DmaMemory;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use crate::offload::{Checksum, Offload};
    use proptest::prelude::*;
    use std::ptr::NonNull;

    const DEPTH: u16 = 128;
    /// The usual one: 96 bytes of headers.
    const LAYOUT: LlqLayout = LlqLayout {
        queues: 1,
        depth: 128,
        entry: 128,
        before_header: 2,
        per_entry: 8,
        meta_always: true,
        burst: 0,
    };

    struct Device {
        doorbell: Arc<Doorbell>,
        memory: Arc<DeviceMemory>,
        ring: *const u64,
        completions: *mut u64,
        taken: u16,
        written: u16,
        counters: Arc<TransmitCounters>,
        health: Arc<Health>,
        metas: usize,
    }

    fn queue(layout: Option<LlqLayout>) -> (EnaTransmit, Device) {
        let depth = usize::from(DEPTH);
        let sizes = [depth * descriptor::SIZE, depth * descriptor::SENT_SIZE, SlotBuffers::bytes(DEPTH)];
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), sizes.iter().sum(), "test").unwrap();
        let [ring, completions, buffers] = memory.carve(sizes).unwrap();
        let device = Device {
            doorbell: Arc::default(),
            memory: Arc::default(),
            ring: (ring.iova() - OFFSET) as *const u64,
            completions: (completions.iova() - OFFSET) as *mut u64,
            taken: 0,
            written: 0,
            counters: Arc::default(),
            health: Arc::default(),
            metas: 0,
        };
        let submissions = match layout {
            None => Submissions::Host { ring, max_header: 96 },
            Some(layout) => {
                Submissions::Device { memory: Arc::clone(&device.memory) as Arc<dyn Registers>, layout }
            }
        };
        let queue = EnaTransmit::new(Parts {
            submissions,
            completions,
            depth: DEPTH,
            doorbell: Arc::clone(&device.doorbell) as Arc<dyn Registers>,
            buffers,
            max_frame: 9234,
            capabilities: Capabilities { udp: false, by_header: true, ..Capabilities::ALL },
            keeps_reserved_bits: true,
            counters: Arc::clone(&device.counters),
            health: Arc::clone(&device.health),
        });
        (queue, device)
    }

    impl Device {
        /// Takes what was submitted to memory of the host: ids and bytes of frames.
        fn take(&mut self) -> Vec<(u16, Vec<u8>)> {
            let (mut frames, mut id, mut bytes) = (Vec::new(), 0, Vec::new());
            while u32::from(self.taken) != self.doorbell.last() {
                let at = 2 * usize::from(self.taken & (DEPTH - 1));
                // SAFETY: the queue keeps ring and buffers mapped; the test is single-threaded.
                let words =
                    unsafe { [self.ring.add(at).read_volatile(), self.ring.add(at + 1).read_volatile()] };
                assert_eq!(words[0] >> 24 & 1 != 0, descriptor::phase(self.taken, DEPTH));
                self.taken = self.taken.wrapping_add(1);
                if words[0] >> 23 & 1 != 0 {
                    self.metas += 1;
                    continue;
                }
                if words[0] >> 28 & 1 != 0 {
                    id = ((words[0] >> 16 & 0x3f) << 10 | words[0] >> 54) as u16;
                }
                let buffer = words[1] & 0xffff_ffff_ffff;
                // SAFETY: as above.
                bytes.extend(
                    (0..words[0] as u16).map(|n| unsafe { (buffer as *const u8).add(n.into()).read() }),
                );
                if words[0] >> 27 & 1 != 0 {
                    frames.push((id, std::mem::take(&mut bytes)));
                }
            }
            frames
        }

        fn complete(&mut self, id: u16, status: u64) {
            let phase = u64::from(descriptor::phase(self.written, DEPTH)) << 24;
            let at = usize::from(self.written & (DEPTH - 1));
            // SAFETY: as above.
            unsafe { self.completions.add(at).write_volatile(u64::from(id) | status << 16 | phase) };
            self.written = self.written.wrapping_add(1);
        }

        fn errors(&self) -> u64 {
            self.counters.errors.load(Ordering::Relaxed)
        }
    }

    fn transmit(queue: &mut EnaTransmit, frames: &mut [Vec<u8>], offload: Offload) -> usize {
        let mut burst = Burst::new();
        for (number, frame) in frames.iter_mut().enumerate() {
            let start = NonNull::new(frame.as_mut_ptr()).unwrap();
            // SAFETY: the frames outlive the burst and nobody touches them meanwhile.
            let segment = unsafe { Segment::new(start, frame.len() as u32) };
            burst.push_segment(segment).unwrap();
            assert!(burst.finish_frame_with(Token(number as u32), offload));
        }
        let Accepted::Copied(accepted) = queue.transmit(burst.frames()) else { panic!("not copied") };
        accepted
    }

    #[test]
    fn a_short_frame_that_is_cut_is_not_filled_up_behind_its_payload() {
        for payload in [2usize, 3, 5] {
            let (mut queue, mut device) = queue(None);
            let mut frame = vec![2u8; 12];
            frame.extend([8, 0, 0x45, 0, 0, 40 + payload as u8, 0, 0, 0x40, 0, 64, 6, 0, 0]);
            frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
            frame.extend([0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0]);
            frame.resize(54 + payload, 7);
            let offload = Offload {
                checksum: Checksum::Partial { start: 34, offset: 16 },
                segmentation: Segmentation::TcpV4,
                segment_size: 1,
                header_length: 54,
                ..Offload::NONE
            };
            assert_eq!(transmit(&mut queue, &mut [frame.clone()], offload), 1);
            assert!(device.take().iter().map(|(_, bytes)| bytes).eq([&frame]), "{payload}");
        }
    }

    #[test]
    fn all_within_its_limits_is_sent_and_what_lies_outside_is_not() {
        for layout in [None, Some(LAYOUT)] {
            let (inside, outside) = crate::offload::limits::tests::edges(&limits(layout.as_ref(), 9234));
            for (sent, frames) in [(true, inside), (false, outside)] {
                for (frame, offload) in frames {
                    let (mut queue, device) = queue(layout);
                    assert_eq!(transmit(&mut queue, &mut [frame], offload), 1);
                    let expected = (sent, u64::from(!sent));
                    assert_eq!((queue.tail > 0, device.errors()), expected, "{layout:?} {offload:?}");
                }
            }
        }
    }

    #[test]
    fn frames_that_complete_out_of_order_give_their_ids_back_at_once_and_their_buffers_in_order() {
        let (mut queue, mut device) = queue(None);
        assert_eq!(transmit(&mut queue, &mut [vec![1; 60], vec![2; 5000], vec![3; 60]], Offload::NONE), 3);
        let frames = device.take();
        assert_eq!(frames.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), [60, 5000, 60]);
        device.complete(frames[2].0, 0);
        device.complete(frames[1].0, 0);
        queue.reclaim(&mut Completions::new());
        assert_eq!((queue.ids.len(), queue.filled), (usize::from(DEPTH) - 2, 5));
        device.complete(frames[0].0, 0);
        queue.reclaim(&mut Completions::new());
        assert_eq!((queue.ids.len(), queue.filled, queue.used), (usize::from(DEPTH) - 1, 0, 0));
    }

    #[test]
    fn completions_of_frames_that_are_not_away_end_all_sending() {
        for (id, breach) in [(77, Breach::TransmitId), (9999, Breach::TransmitId)] {
            let (mut queue, mut device) = queue(None);
            transmit(&mut queue, &mut [vec![1; 60]], Offload::NONE);
            device.complete(id, 0);
            assert_eq!(transmit(&mut queue, &mut [vec![1; 60]], Offload::NONE), 0);
            assert_eq!(device.health.breach(), Some(breach));
            assert_eq!(device.take().len(), 1);
        }
        let (mut queue, mut device) = queue(None);
        transmit(&mut queue, &mut [vec![1; 60], vec![1; 60]], Offload::NONE);
        let id = device.take()[0].0;
        device.complete(id, 0);
        device.complete(id, 0);
        queue.reclaim(&mut Completions::new());
        assert_eq!(device.health.breach(), Some(Breach::TransmitId));
    }

    #[test]
    fn impossible_frames_are_counted_and_not_sent() {
        let (mut queue, mut device) = queue(None);
        assert_eq!(transmit(&mut queue, &mut [vec![1; 13], vec![1; 9235], vec![1; 60]], Offload::NONE), 3);
        // A checksum where no header is.
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        let offload = Offload { checksum, header_length: 54, ..Offload::NONE };
        assert_eq!(transmit(&mut queue, &mut [vec![1; 100]], offload), 1);
        assert_eq!((device.take().len(), device.errors()), (1, 3));
    }

    fn tcp(payload: usize) -> (Vec<u8>, Offload) {
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0; 12]);
        frame.extend([0x50, 0x10, 0, 0, 0, 0, 0, 0]);
        frame.resize(frame.len() + payload, 7);
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        (frame, Offload { checksum, header_length: 54, ..Offload::NONE })
    }

    #[test]
    fn a_meta_descriptor_is_written_when_it_changes() {
        let (mut queue, mut device) = queue(None);
        let (frame, offload) = tcp(100);
        let cut = Offload { segmentation: Segmentation::TcpV4, segment_size: 50, ..offload };
        let metas: Vec<usize> = [offload, offload, Offload::NONE, cut, offload]
            .into_iter()
            .map(|offload| {
                transmit(&mut queue, &mut [frame.clone()], offload);
                device.take();
                device.metas
            })
            .collect();
        assert_eq!(metas, [1, 1, 1, 2, 3]);
        // A segment of no bytes, and one that is too long for the wire.
        for segment_size in [0, 9233] {
            transmit(&mut queue, &mut [frame.clone()], Offload { segment_size, ..cut });
        }
        assert_eq!(device.errors(), 2);
    }

    #[test]
    fn the_longest_frame_that_is_cut_has_few_descriptors_wherever_it_begins() {
        let (mut queue, mut device) = queue(None);
        let (frame, offload) = tcp(LONGEST_CUT as usize - 54);
        let offload = Offload { segmentation: Segmentation::TcpV4, segment_size: 1448, ..offload };
        for _ in 0..20 {
            assert_eq!(transmit(&mut queue, &mut [frame.clone()], offload), 1);
            let before = device.taken;
            let taken = device.take();
            assert!(taken[0].1 == frame);
            assert!(usize::from(device.taken.wrapping_sub(before)) <= MOST_DESCRIPTORS);
            device.complete(taken[0].0, 0);
        }
        assert_eq!(device.errors(), 0);
    }

    #[test]
    fn a_burst_into_the_device_is_pushed_with_one_doorbell() {
        let (mut queue, device) = queue(Some(LAYOUT));
        let mut frames: Vec<Vec<u8>> = (0..32).map(|n| vec![n; 90]).collect();
        assert_eq!(transmit(&mut queue, &mut frames, Offload::NONE), 32);
        assert_eq!((device.doorbell.writes(), device.doorbell.reads(), device.doorbell.last()), (1, 0, 32));
        let pushed = device.memory.pushed.lock().unwrap();
        for (n, (offset, entry)) in pushed.iter().enumerate() {
            assert_eq!((*offset, entry.len()), (128 * n as u32, 16));
            // A meta descriptor, one without bytes, and the frame.
            assert_eq!((entry[0] >> 23 & 1, entry[2] as u16), (1, 0));
            assert_eq!((entry[3] >> 56, entry[4].to_ne_bytes()), (90, [n as u8; 8]));
        }
    }

    proptest! {
        #[test]
        fn every_accepted_frame_is_sent_once_and_whole_whatever_the_order_of_completions(
            rounds in prop::collection::vec((prop::collection::vec(14usize..9300, 1..20), any::<u64>()), 1..25)
        ) {
            let (mut queue, mut device) = queue(None);
            let mut away = Vec::new();
            for (mark, (lengths, lot)) in rounds.into_iter().enumerate() {
                let mut frames: Vec<Vec<u8>> = lengths.iter().map(|len| vec![mark as u8; *len]).collect();
                let accepted = transmit(&mut queue, &mut frames, Offload::NONE);
                let taken = device.take();
                let expected: Vec<usize> = lengths[..accepted].iter().filter(|len| **len <= 9234).map(|len| *len.max(&60)).collect();
                prop_assert_eq!(taken.iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>(), expected);
                prop_assert!(taken.iter().all(|(_, bytes)| bytes[..14].iter().all(|byte| *byte == mark as u8)));
                away.extend(taken.into_iter().map(|(id, _)| id));
                let mut lot = lot;
                while lot & 3 != 0 && !away.is_empty() {
                    let id = away.swap_remove(lot as usize % away.len());
                    device.complete(id, 0);
                    lot >>= 2;
                }
            }
            prop_assert_eq!(device.health.breach(), None);
            away.drain(..).for_each(|id| device.complete(id, 0));
            queue.reclaim(&mut Completions::new());
            prop_assert_eq!((queue.ids.len(), queue.filled, queue.used), (usize::from(DEPTH) - 1, 0, 0));
        }

        #[test]
        fn no_device_makes_it_panic_or_send_what_it_cannot(
            steps in prop::collection::vec((any::<u64>(), 0u8..4), 1..300)
        ) {
            let (mut queue, mut device) = queue(None);
            for (word, step) in steps {
                match step {
                    0 => device.complete(word as u16 % 130, word >> 16 & 0xff),
                    1 => {
                        // SAFETY: as above.
                        unsafe { device.completions.add(word as usize % usize::from(DEPTH)).write_volatile(word) };
                    }
                    _ => { transmit(&mut queue, &mut [vec![1; 60], vec![2; 3000]], Offload::NONE); }
                }
                let away = queue.away.iter().flatten().count();
                prop_assert_eq!(away + queue.ids.len(), usize::from(DEPTH) - 1);
                prop_assert!(queue.used < DEPTH && queue.filled <= DEPTH);
            }
        }
    }
}
