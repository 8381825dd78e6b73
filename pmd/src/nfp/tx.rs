//! The transmit ring.
//!
//! ```text
//!   head ──▶ [with the device] ◀── tail      its read pointer, which the device moves, says up to where it has read
//! ```
//!
//! A frame is copied once, into memory that goes around with the ring, and described in the firmware's format. How far the
//! device has got costs nothing to see where it writes its read pointer to memory (TXRWB). Else the pointer is a register,
//! which is read when half of the ring is filled: once for a few hundred frames.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use super::arena::Arena;
use super::cut;
use super::descriptor::{
    NFDK_HEAD, NFDK_PIECE, Work, nfd3_frame, nfd3_piece, nfdk_cut, nfdk_head, nfdk_meta, nfdk_piece,
};
use super::queue_controller::Queue;
use super::registers::POINTER;
use crate::device::{Accepted, Completions, TransmitQueue};
use crate::frame::{BURST_BYTES, Frame, Frames, MIN_FRAME, MIN_WIRE, Segment};
use crate::memory::DmaSlice;
use crate::net::layers::Layers;
use crate::offload::{Capabilities, Limits, Segmentation};
use crate::vf::Progress;

/// Bytes of the ring, in either format.
pub const RING_BYTES: usize = 16 * 1024;
/// Bytes of the memory for frames.
pub const ARENA_BYTES: usize = 2 << 20;
/// Bytes of headers that are looked at.
const HEADERS: usize = 256;
/// Most segments that the firmware cuts a frame into (`NFP_NET_LSO_MAX_SEGS`).
const MOST_SEGMENTS: u32 = 64;
/// Longest headers of a frame that is cut (`NFP_NET_LSO_MAX_HDR_SZ`).
const LONGEST_HEADERS: usize = 255;
/// Largest segment (`NFD3_DESC_TX_MSS_MASK`).
const LARGEST_SEGMENT: u16 = 0x3fff;
/// Smallest segment that is left to the firmware: frames of smaller ones would go out in more parts than a ring holds.
const SMALLEST_SEGMENT: u16 = 32;
/// Longest frame that is cut: as long as bursts may be.
const LONGEST_CUT: u32 = BURST_BYTES;
const _: () = {
    let parts = LONGEST_CUT.div_ceil(MOST_SEGMENTS * SMALLEST_SEGMENT as u32);
    // As `NfpTransmit::send_in_parts` reckons with them.
    let descriptors = parts * 4 + 2 * BLOCK as u32 * (1 + LONGEST_CUT / BLOCK_BYTES);
    let ring = Format::Nfd3 { gathers: true };
    assert!(descriptors <= (ring.ring() - ring.kept_free()) as u32);
};
/// Calls that pass before a register which has not moved is read again.
const PAUSE: u8 = 8;

/// What the firmware, and a ring, can take, where frames of up to `max_frame` bytes are sent.
pub fn limits(max_frame: u32) -> Limits {
    Limits {
        headers: LONGEST_HEADERS as u16,
        cut: LONGEST_CUT,
        segment: (SMALLEST_SEGMENT, LARGEST_SEGMENT),
        segment_frame: max_frame,
    }
}

/// The format of the descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// 1024 of 16 bytes. Frames that are cut come in pieces of at most 16 KiB, for firmware that gathers.
    Nfd3 {
        /// A frame may be in several pieces.
        gathers: bool,
    },
    /// 2048 of 8 bytes, in blocks of 32, over whose ends no frame reaches, with 64 KiB at most.
    Nfdk,
}

impl Format {
    /// Descriptors of a ring.
    pub const fn ring(self) -> u16 {
        match self {
            Self::Nfd3 { .. } => 1024,
            Self::Nfdk => 2048,
        }
    }

    /// Descriptors that stay empty: those that Linux's and DPDK's drivers leave (`NFDK_TX_DESC_STOP_CNT`).
    const fn kept_free(self) -> u16 {
        match self {
            Self::Nfd3 { .. } => 8,
            Self::Nfdk => 64,
        }
    }

    /// Longest frame: its length has 16 bits, or fits into a block.
    const fn longest(self) -> u32 {
        match self {
            Self::Nfd3 { .. } => 0xffff,
            Self::Nfdk => BLOCK_BYTES,
        }
    }
}

/// Descriptors of an NFDk block, and bytes of frames that they may describe (`NFDK_TX_MAX_DATA_PER_BLOCK`).
const BLOCK: u16 = 32;
const BLOCK_BYTES: u32 = 64 * 1024;

/// What the transmit queues count for the slow side.
#[derive(Debug, Default)]
pub struct TransmitCounters {
    /// Frames of lengths that the device does not send.
    pub bad_length: AtomicU64,
    /// Frames whose headers do not say what is left to the device.
    pub bad_headers: AtomicU64,
    /// The read pointer was where nothing has been given to the device: it cannot be trusted any more.
    pub lost: AtomicBool,
}

/// A transmit queue of a VF.
#[derive(Debug)]
pub struct NfpTransmit {
    queue: Queue,
    ring: DmaSlice,
    arena: Arena,
    format: Format,
    capabilities: Capabilities,
    /// Longest frame that is not cut.
    max_frame: u32,
    /// The oldest slot that the device has not read.
    head: u16,
    /// The slot that is filled next.
    tail: u16,
    /// Where the frame that ends in a slot ends in the arena; for slots before its last, where it begins.
    ends: Box<[u32]>,
    /// Where the device writes its read pointer.
    write_back: Option<DmaSlice>,
    /// Calls for which the register is not read.
    pause: u8,
    /// Bytes of frames in the NFDk block that is being filled.
    block_bytes: u32,
    /// Aborted: nothing is sent any more.
    disabled: bool,
    /// Told by the slow side, which reads the queue's pointers.
    progress: Arc<Progress>,
    counters: Arc<TransmitCounters>,
}

/// Memory of a transmit queue.
#[derive(Debug)]
pub(super) struct Memory {
    /// [`RING_BYTES`].
    pub ring: DmaSlice,
    /// [`ARENA_BYTES`].
    pub arena: DmaSlice,
    /// A word for the read pointer, where the firmware writes it.
    pub write_back: Option<DmaSlice>,
}

impl NfpTransmit {
    /// A queue that the firmware has taken over. `capabilities` are what it was switched on to do.
    pub(super) fn new(
        queue: Queue,
        memory: Memory,
        format: Format,
        capabilities: Capabilities,
        max_frame: u32,
        counters: Arc<TransmitCounters>,
    ) -> Self {
        Self {
            queue,
            ring: memory.ring,
            arena: Arena::new(memory.arena),
            format,
            capabilities,
            max_frame,
            head: 0,
            tail: 0,
            ends: vec![0; usize::from(format.ring())].into_boxed_slice(),
            write_back: memory.write_back,
            pause: 0,
            block_bytes: 0,
            disabled: false,
            progress: Arc::default(),
            counters,
        }
    }

    #[inline]
    fn mask(&self) -> u16 {
        self.format.ring() - 1
    }

    /// Slots with the device, or filled for it.
    #[inline]
    fn used(&self) -> u16 {
        self.tail.wrapping_sub(self.head) & self.mask()
    }

    /// Slots that can be filled.
    #[inline]
    fn room(&self) -> u16 {
        (self.format.ring() - self.format.kept_free()).saturating_sub(self.used())
    }

    /// Takes over a read pointer of the device; `false` where it cannot be right.
    #[inline]
    fn advance_to(&mut self, pointer: u32) -> bool {
        let done = (pointer as u16).wrapping_sub(self.head) & self.mask();
        if done > self.used() {
            return false;
        }
        if done > 0 {
            self.head = (self.head + done) & self.mask();
            let last = self.head.wrapping_sub(1) & self.mask();
            if let Some(end) = self.ends.get(usize::from(last)) {
                self.arena.free(*end);
            }
        }
        true
    }

    /// Sees how far the device has got. `short` says that there is no room for a frame.
    #[inline]
    fn look(&mut self, short: bool) {
        if self.used() == 0 {
            return;
        }
        let mut wanted = short;
        if let Some(word) = &self.write_back {
            let pointer = word.load32(0) & POINTER;
            let before = self.head;
            // One that cannot be right is late, or wrong: the register tells.
            wanted |= !self.advance_to(pointer);
            wanted &= self.head == before;
        } else {
            wanted |= self.used() > self.format.ring() / 2;
        }
        if !wanted {
            return;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return;
        }
        let before = self.head;
        let believed = self.queue.read_pointer().is_none_or(|pointer| self.advance_to(pointer));
        if !believed {
            self.disabled = true;
            self.counters.lost.store(true, Ordering::Relaxed);
        }
        self.pause = if self.head == before { PAUSE } else { 0 };
    }

    /// What the device is to do to a frame; an error where its headers do not say so.
    #[inline]
    fn work(&self, frame: &Frame, segments: &[Segment]) -> Result<Option<Work>, ()> {
        let offload = frame.offload();
        if offload.is_done() {
            return Ok(None);
        }
        let mut headers = [0; HEADERS];
        let copied = segments.first().map_or(0, |first| first.copy_to(&mut headers));
        let layers = Layers::of(&headers[..copied], offload).ok_or(())?;
        if offload.segmentation == Segmentation::None {
            return Ok(Some(Work { layers, segment: 0, segments: 1 }));
        }
        let payload = frame.len().saturating_sub(layers.headers() as u32);
        let (size, count) = (offload.segment_size, payload.div_ceil(u32::from(offload.segment_size.max(1))));
        let longest = layers.headers() as u32 + u32::from(size);
        let fits =
            (SMALLEST_SEGMENT..=LARGEST_SEGMENT).contains(&size) && count > 0 && longest <= self.max_frame;
        if !fits || layers.headers() > LONGEST_HEADERS {
            return Err(());
        }
        Ok(Some(Work { layers, segment: size, segments: u8::try_from(count).unwrap_or(u8::MAX) }))
    }

    /// Whether a frame has a length that can be sent.
    #[inline]
    fn is_sendable(&self, len: u32, work: Option<&Work>) -> bool {
        let longest = if work.is_some_and(|work| work.segment > 0) { LONGEST_CUT } else { self.max_frame };
        (MIN_FRAME..=longest).contains(&len)
    }

    /// Fills the next slot.
    #[inline]
    fn fill(&mut self, words: &[u64], end: u32) {
        let at = usize::from(self.tail) * words.len();
        for (n, word) in words.iter().enumerate() {
            self.ring.store(at + n, *word);
        }
        if let Some(entry) = self.ends.get_mut(usize::from(self.tail)) {
            *entry = end;
        }
        self.tail = (self.tail + 1) & self.mask();
    }

    /// Copies and describes a frame; `false` where there is no room for it.
    #[inline]
    fn send(&mut self, segments: &[Segment], len: u32, work: Option<&Work>) -> bool {
        match work.filter(|work| work.segment > 0) {
            Some(cut) if u32::from(cut.segments) > MOST_SEGMENTS || len > self.format.longest() => {
                self.send_in_parts(segments, len, cut)
            }
            _ => self.send_whole(&[], segments, 0, len, work),
        }
    }

    /// As [`send`](Self::send), for a frame that the firmware would have to cut into too many segments: all parts of it or none.
    fn send_in_parts(&mut self, segments: &[Segment], len: u32, work: &Work) -> bool {
        let headers = work.layers.headers() as u32;
        let room_in_frame = (self.format.longest() - headers) / u32::from(work.segment);
        let most = MOST_SEGMENTS.min(room_in_frame).max(1);
        let parts = cut::parts(len - headers, work.segment, most);
        // What the rest of a block, or of the memory's end, takes away comes on top.
        let longest = headers + most * u32::from(work.segment) + MIN_WIRE;
        let count = parts.len() as u32;
        let descriptors =
            count * (longest.div_ceil(NFDK_PIECE) + 3) + 2 * u32::from(BLOCK) * (1 + len / BLOCK_BYTES);
        let bytes = len + count * (headers + 2 * MIN_WIRE + 8);
        if descriptors > u32::from(self.room()) || !self.arena.has_room(bytes, longest) {
            return false;
        }
        for part in parts {
            let mut own = [0; HEADERS];
            let Some(own) = own.get_mut(..headers as usize) else { break };
            let _ = segments.first().map(|first| first.copy_to(own));
            cut::rewrite(own, work, &part);
            let count = part.len.div_ceil(u32::from(work.segment)) as u8;
            let sent = self.send_whole(
                own,
                segments,
                headers + part.at,
                headers + part.len,
                Some(&Work { segments: count, ..*work }),
            );
            debug_assert!(sent, "there was room");
        }
        true
    }

    /// Copies and describes a frame of `len` bytes: `headers`, and the rest from byte `from` of `segments` on.
    #[inline]
    fn send_whole(
        &mut self,
        headers: &[u8],
        segments: &[Segment],
        from: u32,
        len: u32,
        work: Option<&Work>,
    ) -> bool {
        let rest = len - headers.len() as u32;
        // What fills up a frame that is cut would be taken for payload; short frames are filled up by the NIC, too.
        let wire = if work.is_some_and(|work| work.segment > 0) { len } else { len.max(MIN_WIRE) };
        let Some(start) = self.arena.place(wire.max(MIN_WIRE)) else { return false };
        match self.format {
            Format::Nfd3 { gathers } => {
                let piece = if gathers { NFDK_PIECE } else { u32::from(u16::MAX) };
                if wire.div_ceil(piece) > u32::from(self.room()) {
                    return false;
                }
                let end = self.arena.copy(start, headers, segments, from, rest);
                let second = nfd3_frame(wire, work);
                let mut at = 0;
                while at < wire {
                    let part = piece.min(wire - at);
                    let last = at + part == wire;
                    let first = nfd3_piece(self.arena.iova(start.wrapping_add(at)), part, last);
                    self.fill(&[first, second], if last { end } else { start });
                    at += part;
                }
            }
            Format::Nfdk => {
                let pieces = 1 + wire.saturating_sub(NFDK_HEAD).div_ceil(NFDK_PIECE) as u16;
                let cut = work.filter(|work| work.segment > 0);
                let needed = pieces + 1 + u16::from(cut.is_some());
                let left = BLOCK - self.tail % BLOCK;
                let closes = needed > left || self.block_bytes + wire > BLOCK_BYTES;
                if needed + if closes { left } else { 0 } > self.room() {
                    return false;
                }
                if closes {
                    let filled = self.arena.filled();
                    (0..left).for_each(|_| self.fill(&[0], filled));
                    self.block_bytes = 0;
                }
                let end = self.arena.copy(start, headers, segments, from, rest);
                let head = NFDK_HEAD.min(wire);
                self.fill(&[nfdk_head(self.arena.iova(start), head, head == wire, work)], start);
                let mut at = head;
                while at < wire {
                    let part = NFDK_PIECE.min(wire - at);
                    let iova = self.arena.iova(start.wrapping_add(at));
                    self.fill(&[nfdk_piece(iova, part, at + part == wire)], start);
                    at += part;
                }
                self.fill(&[nfdk_meta(work)], if cut.is_some() { start } else { end });
                if let Some(cut) = cut {
                    self.fill(&[nfdk_cut(cut)], end);
                }
                self.block_bytes = if self.tail.is_multiple_of(BLOCK) { 0 } else { self.block_bytes + wire };
            }
        }
        true
    }
}

impl TransmitQueue for NfpTransmit {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    #[inline]
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        self.look(false);
        let start = self.tail;
        let mut accepted = 0;
        for (frame, segments) in frames.iter() {
            if self.disabled {
                break;
            }
            match self.work(frame, segments) {
                Ok(work) if self.is_sendable(frame.len(), work.as_ref()) => {
                    let mut sent = self.send(segments, frame.len(), work.as_ref());
                    if !sent {
                        self.look(true);
                        sent = !self.disabled && self.send(segments, frame.len(), work.as_ref());
                    }
                    if !sent {
                        break;
                    }
                }
                Ok(_) => drop(self.counters.bad_length.fetch_add(1, Ordering::Relaxed)),
                Err(()) => drop(self.counters.bad_headers.fetch_add(1, Ordering::Relaxed)),
            }
            accepted += 1;
        }
        let filled = self.tail.wrapping_sub(start) & self.mask();
        if filled > 0 {
            fence(Ordering::Release);
            self.queue.advance(u32::from(filled));
        }
        Accepted::Copied(accepted)
    }

    fn reclaim(&mut self, _done: &mut Completions) {}

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
    use std::ptr::NonNull;

    use proptest::prelude::*;

    use super::super::registers::{ADD_WPTR, STS_LO};
    use super::super::tests::Words;
    use super::*;
    use crate::frame::{Burst, Token};
    use crate::memory::DmaMemory;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use crate::registers::Registers;

    const FORMATS: [Format; 3] =
        [Format::Nfd3 { gathers: true }, Format::Nfd3 { gathers: false }, Format::Nfdk];

    /// The device's side.
    struct Device {
        words: Arc<Words>,
        ring: u64,
        write_back: Option<u64>,
        read: u16,
        written: u16,
        format: Format,
        counters: Arc<TransmitCounters>,
    }

    fn queue(format: Format, writes_back: bool) -> (NfpTransmit, Device) {
        let sizes = [RING_BYTES, ARENA_BYTES, 8];
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), DmaMemory::needed(&sizes), "test").unwrap();
        let [ring, arena, word] = memory.carve(sizes).unwrap();
        let (words, counters) = (Arc::new(Words::default()), Arc::new(TransmitCounters::default()));
        let (at, write_back) = (ring.iova() - OFFSET, writes_back.then(|| word.iova() - OFFSET));
        let queue = Queue::new(Arc::clone(&words) as Arc<dyn Registers>, 0);
        let memory = Memory { ring, arena, write_back: writes_back.then_some(word) };
        let queue = NfpTransmit::new(queue, memory, format, Capabilities::NONE, 9234, Arc::clone(&counters));
        (queue, Device { words, ring: at, write_back, read: 0, written: 0, format, counters })
    }

    impl Device {
        /// Reads up to `most` descriptors, and says so; the first and last byte of every frame that ends there.
        fn read(&mut self, most: u16) -> Vec<(u8, u8)> {
            let mask = self.format.ring() - 1;
            self.written = (self.written + self.words.take_sum(ADD_WPTR) as u16) & mask;
            let (mut frames, mut first) = (Vec::new(), None);
            let mut left = most.min(self.written.wrapping_sub(self.read) & mask);
            while left > 0 {
                let size = if self.format == Format::Nfdk { 8 } else { 16 };
                let descriptor = (self.ring + u64::from(self.read) * size) as *const u64;
                // SAFETY: the queue keeps the ring and the frames mapped; the test is single-threaded.
                let word = unsafe { descriptor.read_volatile() };
                let (len, end) = match self.format {
                    Format::Nfdk if word >> 16 & 0xffff == 0 => (0, false),
                    Format::Nfdk if first.is_none() => ((word >> 16 & 0xfff) + 1, word >> 30 & 1 != 0),
                    Format::Nfdk => ((word >> 16 & 0x3fff) + 1, word >> 30 & 1 != 0),
                    Format::Nfd3 { .. } => (word >> 8 & 0xffff, word >> 31 & 1 != 0),
                };
                if len > 0 {
                    // Addresses of the test have more bits than descriptors: the upper ones are those of the ring.
                    let low = (word >> 32) as u32;
                    let high = self.ring & !0xffff_ffff;
                    let near = [high.wrapping_sub(1 << 32), high, high + (1 << 32)]
                        .map(|high| high | u64::from(low));
                    let at = near.into_iter().min_by_key(|at| at.abs_diff(self.ring)).unwrap() as *const u8;
                    // SAFETY: as above.
                    let (head, tail) = unsafe { (at.read(), at.add(len as usize - 1).read()) };
                    let head = *first.get_or_insert(head);
                    if end {
                        frames.push((head, tail));
                        first = None;
                    }
                }
                self.read = (self.read + 1) & mask;
                left -= 1;
            }
            self.point(u32::from(self.read));
            frames
        }

        fn point(&self, pointer: u32) {
            self.words.write(STS_LO, pointer);
            if let Some(at) = self.write_back {
                // SAFETY: the queue keeps the word mapped.
                unsafe { (at as *mut u32).write_volatile(pointer) };
            }
        }
    }

    #[test]
    fn all_within_its_limits_is_sent_and_what_lies_outside_is_not() {
        let (inside, outside) = crate::offload::limits::tests::edges(&limits(9234));
        for (sent, frames) in [(true, inside), (false, outside)] {
            for ((mut frame, offload), format) in
                frames.into_iter().flat_map(|frame| FORMATS.map(|format| (frame.clone(), format)))
            {
                let (mut queue, device) = queue(format, true);
                let ptr = NonNull::new(frame.as_mut_ptr()).unwrap();
                let mut burst = Burst::new();
                // SAFETY: the frame outlives the burst.
                let whole = unsafe { Segment::new(ptr, frame.len() as u32) };
                assert!(burst.push_whole(whole, Token(0), offload));
                assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(1), "{format:?} {offload:?}");
                let counters = &device.counters;
                let refused = counters.bad_length.load(Ordering::Relaxed)
                    + counters.bad_headers.load(Ordering::Relaxed);
                let expected = (sent, u64::from(!sent));
                assert_eq!((queue.used() > 0, refused), expected, "{format:?} {offload:?}");
            }
        }
    }

    fn burst(frames: &mut [Vec<u8>]) -> Burst {
        let mut burst = Burst::new();
        for bytes in frames {
            let ptr = NonNull::new(bytes.as_mut_ptr()).unwrap();
            // SAFETY: the test keeps the bytes until the burst is done with.
            burst.push(unsafe { Segment::new(ptr, bytes.len() as u32) }, Token(0));
        }
        burst
    }

    #[test]
    fn a_burst_is_one_doorbell_and_pointers_are_read_when_half_is_filled() {
        for (format, frames_a_read) in [(FORMATS[0], 480), (FORMATS[2], 480)] {
            let (mut queue, mut device) = queue(format, false);
            let mut frames: Vec<_> = (0..32).map(|n| vec![n; 64]).collect();
            let before = device.words.reads();
            for _ in 0..100 {
                assert_eq!(queue.transmit(burst(&mut frames).frames()), Accepted::Copied(32));
                assert_eq!(device.read(u16::MAX).len(), 32);
            }
            assert_eq!(device.words.writes(ADD_WPTR), 100);
            let reads = device.words.reads() - before;
            assert!(reads <= 3200 / frames_a_read, "{format:?}: {reads}");
        }
    }

    #[test]
    fn a_pointer_that_comes_to_memory_costs_no_read() {
        for format in FORMATS {
            let (mut queue, mut device) = queue(format, true);
            let mut frames: Vec<_> = (0..32).map(|n| vec![n; 64]).collect();
            for _ in 0..100 {
                assert_eq!(queue.transmit(burst(&mut frames).frames()), Accepted::Copied(32));
                device.read(u16::MAX);
            }
            assert_eq!(device.words.reads(), 0);
        }
    }

    #[test]
    fn a_ring_that_stands_still_is_not_asked_all_the_time() {
        let (mut queue, device) = queue(FORMATS[0], false);
        while queue.transmit(burst(&mut [vec![1; 60]]).frames()) == Accepted::Copied(1) {}
        let before = device.words.reads();
        for _ in 0..90 {
            assert_eq!(queue.transmit(burst(&mut [vec![1; 60]]).frames()), Accepted::Copied(0));
        }
        assert!((5..=25).contains(&(device.words.reads() - before)), "{}", device.words.reads() - before);
    }

    #[test]
    fn nothing_is_sent_after_abort_or_from_a_queue_whose_device_has_lost_its_place() {
        for lost in [false, true] {
            let (mut queue, device) = queue(FORMATS[0], false);
            if lost {
                while queue.transmit(burst(&mut [vec![1; 60]]).frames()) == Accepted::Copied(1) {
                    device.point(1020);
                }
                assert!(device.counters.lost.load(Ordering::Relaxed));
            } else {
                queue.abort(&mut Completions::new());
            }
            let before = device.words.writes(ADD_WPTR);
            assert_eq!(queue.transmit(burst(&mut [vec![1; 60]]).frames()), Accepted::Copied(0));
            assert_eq!((queue.outstanding(), device.words.writes(ADD_WPTR)), (0, before));
        }
    }

    #[test]
    fn impossible_lengths_are_counted_and_not_sent() {
        for format in FORMATS {
            let (mut queue, mut device) = queue(format, false);
            let mut frames = [vec![1; 13], vec![2; 9235], vec![3; 60], vec![4; 9234]];
            assert_eq!(queue.transmit(burst(&mut frames).frames()), Accepted::Copied(4));
            assert_eq!(device.read(u16::MAX), [(3, 3), (4, 4)]);
            assert_eq!(device.counters.bad_length.load(Ordering::Relaxed), 2);
        }
    }

    proptest! {
        /// A device that tells the truth gets every frame once and whole, however it goes.
        #[test]
        fn every_accepted_frame_is_read_once_in_order(
            rounds in prop::collection::vec((prop::collection::vec(60usize..9234, 1..32), 0u16..400), 1..60),
            format in prop::sample::select(FORMATS.to_vec()), writes_back: bool,
        ) {
            let (mut queue, mut device) = queue(format, writes_back);
            let (mut given, mut seen, mut mark) = (Vec::new(), Vec::new(), 0u8);
            let mut whole = true;
            for (lens, most) in rounds {
                let mut frames: Vec<Vec<u8>> = lens.iter().map(|len| {
                    mark = mark.wrapping_add(1);
                    vec![mark; *len]
                }).collect();
                let Accepted::Copied(n) = queue.transmit(burst(&mut frames).frames()) else { panic!() };
                given.extend(frames.iter().take(n).map(|frame| frame[0]));
                mark = *given.last().unwrap_or(&0);
                // Frames in pieces that are read in two goes are not put together by this double.
                let in_pieces = format != (Format::Nfd3 { gathers: false });
                let frames = device.read(if in_pieces { u16::MAX * (most % 2) } else { most });
                whole &= frames.iter().all(|(head, tail)| head == tail);
                seen.extend(frames.iter().map(|(head, _)| *head));
            }
            seen.extend(device.read(u16::MAX).iter().map(|(head, _)| *head));
            prop_assert!(whole && seen == given);
        }

        /// Whatever pointers a device shows: the ring never takes more than it has, and a lie ends it.
        #[test]
        fn no_pointer_makes_it_fill_what_the_device_may_read(
            steps in prop::collection::vec((any::<u32>(), 1usize..32), 1..200),
            format in prop::sample::select(FORMATS.to_vec()), writes_back: bool,
        ) {
            let (mut queue, device) = queue(format, writes_back);
            for (pointer, count) in steps {
                device.point(pointer);
                let mut frames: Vec<_> = (0..count).map(|_| vec![0; 60]).collect();
                let Accepted::Copied(n) = queue.transmit(burst(&mut frames).frames()) else { panic!() };
                prop_assert!(n <= count);
                prop_assert!(queue.used() <= format.ring() - format.kept_free());
                if device.counters.lost.load(Ordering::Relaxed) {
                    prop_assert_eq!(queue.transmit(burst(&mut frames).frames()), Accepted::Copied(0));
                }
            }
        }
    }
}
