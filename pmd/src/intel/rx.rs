//! The receive ring.
//!
//! A frame longer than a buffer fills several descriptors; it is known by its first buffer, and the pool keeps the
//! chain. Nothing that the device writes is trusted: lengths are cut to the buffer, chains have an end.
//!
//! A VLAN tag that the device took off (the PF's choice on some devices) is put back: it goes into the burst as a segment of
//! its own, between the addresses and the rest.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use arrayvec::ArrayVec;

use super::descriptor::{Received, is_tcp_or_udp};
use super::family::{Family, RING, ring};
use super::tag::{ADDRESSES, push_tagged};
use crate::device::{Armed, ReceiveQueue};
use crate::frame::{Burst, MIN_FRAME, Token};
use crate::memory::{BUFFER_SIZE, BufferPool, DmaSlice, PostedBuffers};
use crate::offload::{Checksum, Offload};
use crate::registers::Registers;
use crate::vf::Bell;

/// Most buffers of one frame: more than the longest frame needs, so a longer chain is a broken device.
const MAX_CHAIN: usize = 8;

/// What the receive queue counts for the slow side.
#[derive(Debug, Default)]
pub struct ReceiveCounters {
    /// Frames that were dropped as damaged or impossible.
    pub errors: AtomicU64,
}

/// The memory of a receive queue.
#[derive(Debug)]
pub struct ReceiveMemory {
    /// Room for [`RING`] descriptors.
    pub ring: DmaSlice,
    /// The buffers.
    pub pool: BufferPool,
    /// [`TAG`](super::tag::TAG) bytes for each buffer.
    pub tags: DmaSlice,
}

/// The receive queue of a VF.
#[derive(Debug)]
pub struct IntelReceive {
    registers: Arc<dyn Registers>,
    family: &'static Family,
    /// The queue's tail register.
    tail_register: u32,
    ring: DmaSlice,
    posted: PostedBuffers<RING>,
    /// Where the tag of a frame is that begins in each buffer.
    tags: DmaSlice,
    /// In the middle of a frame that is dropped.
    discarding: bool,
    counters: Arc<ReceiveCounters>,
    bell: Option<Bell>,
}

impl IntelReceive {
    /// Receive queue `number`, whose registers are programmed for `memory` and which is enabled; gives the device its first
    /// buffers.
    pub fn new(
        registers: Arc<dyn Registers>,
        family: &'static Family,
        number: u16,
        memory: ReceiveMemory,
        counters: Arc<ReceiveCounters>,
    ) -> Self {
        let ReceiveMemory { ring, pool, tags } = memory;
        let mut queue = Self {
            registers,
            family,
            tail_register: family.receive_at(number, ring::TAIL),
            ring,
            posted: PostedBuffers::new(pool, 1, 1),
            tags,
            discarding: false,
            counters,
            bell: None,
        };
        queue.refill();
        queue
    }

    /// Sleepers are woken by `bell`.
    pub fn with_bell(self, bell: Option<Bell>) -> Self {
        Self { bell, ..self }
    }

    #[inline]
    fn refill(&mut self) {
        let told = self.posted.refill(|slot, iova| {
            self.ring.store(2 * slot, iova);
            // The header address, unused; where the device will report that it is done.
            self.ring.store(2 * slot + 1, 0);
        });
        if told > 0 {
            fence(Ordering::Release);
            self.registers.write(self.tail_register, u32::from(self.posted.tail()));
        }
    }

    /// What the device says about the frame at the head, a part a buffer; `None` while its end is not there.
    #[inline]
    fn look(&self) -> Option<ArrayVec<Received, MAX_CHAIN>> {
        let mut parts = ArrayVec::new();
        for n in 0..usize::from(self.posted.len()).min(MAX_CHAIN) {
            let part = Received::from_word(self.ring.load(2 * self.posted.slot(n) + 1));
            if !part.is_done() {
                return None;
            }
            parts.push(part);
            if part.is_end() {
                break;
            }
        }
        let whole = parts.last().is_some_and(|part| part.is_end()) || parts.is_full();
        whole.then_some(parts)
    }

    /// What the device says of the transport checksum of the frame that ends in the slot `n` after the head. What it found
    /// wrong, the guest judges.
    #[inline]
    fn verdict(&self, last: Received, n: usize) -> Checksum {
        let right =
            last.checksum_is_right(self.family) && is_tcp_or_udp(self.ring.load(2 * self.posted.slot(n)));
        if right { Checksum::Valid } else { Checksum::Unknown }
    }

    /// Moves the frames at the head into `burst` that are plain ones, as nearly all are.
    #[inline]
    fn plain_frames(&mut self, burst: &mut Burst) {
        while burst.room() > 0 && !self.posted.is_empty() && !self.discarding {
            let whole = Received::from_word(self.ring.load(2 * self.posted.slot(0) + 1));
            if !whole.is_plain(self.family) || !(MIN_FRAME..=BUFFER_SIZE).contains(&whole.len()) {
                return;
            }
            // As in `next_frame`.
            fence(Ordering::Acquire);
            let offload = Offload { checksum: self.verdict(whole, 0), ..Offload::NONE };
            let segment = self.posted.segment(0, whole.len());
            if !burst.push_whole(segment, Token(self.posted.buffer(0)), offload) {
                return;
            }
            self.posted.take_first();
        }
    }

    /// Moves one frame into `burst`, or drops it; `false` when there is none or the burst has no room for it.
    #[inline(never)]
    fn next_frame(&mut self, burst: &mut Burst) -> bool {
        let Some(parts) = self.look() else { return false };
        // The frame's bytes are read after the word that says they are there.
        fence(Ordering::Acquire);
        let ended = parts.last().is_some_and(|part| part.is_end());
        let damaged = parts.iter().any(|part| part.is_bad(self.family) || part.len() > BUFFER_SIZE);
        let len: u32 = parts.iter().map(|part| part.len()).sum();
        let tag = parts.last().and_then(|part| part.tag(self.family));
        let torn = tag.is_some() && parts.first().is_none_or(|part| part.len() <= ADDRESSES);
        if self.discarding || !ended || damaged || torn || len < MIN_FRAME {
            // Counted once, when its end is there.
            if ended {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
            }
            self.discarding = !ended;
            self.posted.drop_frame(parts.len());
            return true;
        }
        let first = self.posted.buffer(0);
        for (n, part) in parts.iter().enumerate().filter(|(_, part)| !part.is_empty()) {
            let segment = self.posted.segment(n, part.len());
            let pushed = match tag {
                Some(tag) if n == 0 => push_tagged(burst, &self.tags, first, segment, &tag),
                _ => burst.push_segment(segment),
            };
            if pushed.is_err() {
                burst.abandon_frame();
                return false;
            }
        }
        let checksum = parts.last().map_or(Checksum::Unknown, |last| self.verdict(*last, parts.len() - 1));
        if !burst.finish_frame_with(Token(first), Offload { checksum, ..Offload::NONE }) {
            return false;
        }
        self.posted.take(parts.len());
        true
    }
}

impl ReceiveQueue for IntelReceive {
    #[inline]
    fn receive(&mut self, burst: &mut Burst) {
        loop {
            self.plain_frames(burst);
            if burst.room() == 0 || !self.next_frame(burst) {
                break;
            }
        }
        self.refill();
    }

    #[inline]
    fn release(&mut self, token: Token) {
        self.posted.release(token);
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        Bell::fd(self.bell.as_ref())
    }

    fn arm(&mut self) -> Armed {
        Bell::arm(self.bell.as_ref(), || self.look().is_some())
    }

    fn disarm(&mut self) {
        Bell::disarm(self.bell.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::igbvf::double::Double;
    use crate::igbvf::registers::{EIMC, EIMS, RINGS_82576};
    use crate::intel::descriptor;
    use crate::memory::dma::DmaMemory;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use crate::vf::Poke;
    use proptest::prelude::*;
    use rustix::event::{EventfdFlags, eventfd};

    const DONE: u32 = 1;
    const END: u32 = 2;
    const RDT: u32 = RINGS_82576.receive_at(0, ring::TAIL);

    struct Ring {
        double: Arc<Double>,
        base: u64,
        device: u16,
        counters: Arc<ReceiveCounters>,
    }

    fn queue(buffers: usize) -> (IntelReceive, Ring) {
        let sizes = [
            usize::from(RING) * descriptor::SIZE,
            buffers * BUFFER_SIZE as usize,
            buffers * crate::intel::tag::TAG,
        ];
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), DmaMemory::needed(&sizes), "test").unwrap();
        let [ring, pool, tags] = memory.carve(sizes).unwrap();
        let (double, counters) = (Double::new(), Arc::new(ReceiveCounters::default()));
        let base = ring.iova() - OFFSET;
        let registers = Arc::clone(&double) as Arc<dyn Registers>;
        let memory = ReceiveMemory { ring, pool: BufferPool::new(pool), tags };
        let queue = IntelReceive::new(registers, &RINGS_82576, 0, memory, Arc::clone(&counters));
        (queue, Ring { double, base, device: 0, counters })
    }

    impl Ring {
        /// Plays the device: fills the next descriptor; `false` where it has none.
        fn fill(&mut self, fill: u8, len: u16, status: u32) -> bool {
            self.fill_with(fill, 0, u64::from(status) | u64::from(len) << 32)
        }

        /// Writes both words of the descriptor back.
        fn fill_with(&mut self, fill: u8, first: u64, word: u64) -> bool {
            let len = (word >> 32) as u16;
            if u32::from(self.device) == self.double.read(RDT) {
                return false;
            }
            let descriptor = (self.base + u64::from(self.device) * 16) as *mut u64;
            // SAFETY: the queue keeps the ring and its buffers mapped; the test is single-threaded.
            unsafe {
                let buffer = (descriptor.read_volatile() - OFFSET) as *mut u8;
                buffer.write_bytes(fill, usize::from(len.min(BUFFER_SIZE as u16)));
                descriptor.write_volatile(first);
                descriptor.add(1).write_volatile(word);
            }
            self.device = (self.device + 1) & (RING - 1);
            true
        }

        fn errors(&self) -> u64 {
            self.counters.errors.load(Ordering::Relaxed)
        }
    }

    fn lengths(burst: &Burst) -> Vec<(u32, usize)> {
        burst.frames().iter().map(|(frame, segments)| (frame.len(), segments.len())).collect()
    }

    fn release_all(queue: &mut IntelReceive, burst: &mut Burst) {
        for (frame, _) in burst.frames().iter() {
            queue.release(frame.token());
        }
        burst.clear();
    }

    #[test]
    fn frames_of_one_and_of_several_buffers() {
        let (mut queue, mut ring) = queue(2000);
        let mut burst = Burst::new();
        queue.receive(&mut burst);
        assert!(burst.is_empty());
        ring.fill(1, 60, DONE | END);
        ring.fill(2, 2048, DONE);
        ring.fill(3, 2048, DONE);
        queue.receive(&mut burst);
        assert_eq!(lengths(&burst), [(60, 1)]);
        ring.fill(4, 10, DONE | END);
        queue.receive(&mut burst);
        assert_eq!(lengths(&burst), [(60, 1), (4106, 3)]);
        let mut bytes = vec![0; 4106];
        let frames = burst.frames();
        let (_, segments) = frames.iter().last().unwrap();
        assert_eq!(crate::frame::gather(segments, &mut bytes), 4106);
        assert_eq!((bytes[0], bytes[2048], bytes[4105]), (2, 3, 4));
        let free = queue.posted.free();
        release_all(&mut queue, &mut burst);
        assert_eq!(queue.posted.free(), free + 4);
    }

    #[test]
    fn damaged_short_and_impossible_frames_are_dropped_and_counted() {
        let (mut queue, mut ring) = queue(2000);
        let mut burst = Burst::new();
        ring.fill(0, 60, DONE | END | 1 << 31);
        ring.fill(0, 13, DONE | END);
        ring.fill(0, 0, DONE | END);
        ring.fill(0, 2049, DONE | END);
        ring.fill(0, 0xffff, DONE);
        ring.fill(0, 60, DONE | END);
        ring.fill(9, 60, DONE | END);
        queue.receive(&mut burst);
        assert_eq!((lengths(&burst), ring.errors()), (vec![(60, 1)], 5));
    }

    #[test]
    fn a_frame_without_end_is_dropped_as_one() {
        let (mut queue, mut ring) = queue(2000);
        let mut burst = Burst::new();
        for _ in 0..20 {
            ring.fill(0, 2048, DONE);
        }
        queue.receive(&mut burst);
        assert!(burst.is_empty());
        ring.fill(0, 100, DONE | END);
        ring.fill(0, 64, DONE | END);
        queue.receive(&mut burst);
        assert_eq!((lengths(&burst), ring.errors()), (vec![(64, 1)], 1));
    }

    #[test]
    fn a_ring_runs_dry_when_nothing_is_released_and_recovers() {
        let (mut queue, mut ring) = queue(1100);
        let mut bursts: Vec<Burst> = Vec::new();
        let mut received = 0;
        while ring.fill(7, 64, DONE | END) {
            let mut burst = Burst::new();
            queue.receive(&mut burst);
            received += burst.len();
            bursts.push(burst);
        }
        assert_eq!(received, 1100);
        for burst in &mut bursts {
            release_all(&mut queue, burst);
        }
        queue.receive(&mut Burst::new());
        assert!(ring.fill(7, 64, DONE | END));
    }

    #[test]
    fn a_tag_that_was_taken_off_is_put_back() {
        let (mut queue, mut ring) = queue(2000);
        let mut burst = Burst::new();
        let tagged = |status: u64, len: u64| status | 8 | len << 32 | 0x2007 << 48;
        ring.fill_with(1, 0, tagged(3, 60));
        ring.fill(2, 2048, DONE);
        ring.fill_with(3, 0, tagged(3, 10));
        ring.fill(4, 12, DONE);
        ring.fill_with(4, 0, tagged(3, 60));
        queue.receive(&mut burst);
        assert_eq!((lengths(&burst), ring.errors()), (vec![(64, 3), (2062, 4)], 1), "one is torn");
        for ((_, segments), len) in burst.frames().iter().zip([64, 2062]) {
            let mut bytes = vec![0; len];
            assert_eq!(crate::frame::gather(segments, &mut bytes), len);
            assert_eq!(bytes[12..16], [0x81, 0, 0x20, 7]);
            assert_eq!((bytes[11], bytes[16]), (bytes[0], bytes[0]));
        }
        let free = queue.posted.free();
        release_all(&mut queue, &mut burst);
        assert_eq!(queue.posted.free(), free + 3);
    }

    #[test]
    fn a_checksum_of_tcp_or_udp_that_was_found_right_is_told() {
        let (mut queue, mut ring) = queue(2000);
        let mut burst = Burst::new();
        let (tcp, sctp) = (1 << 8 | 1 << 4, 1 << 10 | 1 << 4);
        let word = |errors: u64| 3 | 1 << 5 | 1 << 6 | errors | 60 << 32;
        ring.fill_with(0, tcp, word(0));
        ring.fill_with(0, tcp, word(1 << 29));
        ring.fill_with(0, tcp, word(1 << 30));
        ring.fill_with(0, sctp, word(0));
        ring.fill_with(0, tcp, 3 | 60 << 32);
        queue.receive(&mut burst);
        let verdicts: Vec<_> = burst.frames().iter().map(|(frame, _)| frame.offload().checksum).collect();
        let [valid, unknown] = [Checksum::Valid, Checksum::Unknown];
        assert_eq!(verdicts, [valid, unknown, unknown, unknown, unknown]);
    }

    #[test]
    fn one_tail_write_for_a_quarter_of_the_ring() {
        let (mut queue, mut ring) = queue(2000);
        let writes = ring.double.writes(RDT);
        for burst in 1..=RING / 4 / 32 {
            assert_eq!(ring.double.writes(RDT), writes, "before burst {burst}");
            for _ in 0..32 {
                ring.fill(0, 64, DONE | END);
            }
            let reads = ring.double.reads();
            queue.receive(&mut Burst::new());
            assert_eq!(ring.double.reads(), reads);
        }
        assert_eq!(ring.double.writes(RDT), writes + 1);
    }

    #[test]
    fn it_lets_the_device_interrupt_only_while_somebody_sleeps() {
        let (mut queue, mut ring) = queue(2000);
        assert!(queue.arm() == Armed::Silent && ring.double.writes(EIMS) == 0, "without an interrupt");
        let mut queue = queue.with_bell(Some(Bell {
            event: eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            registers: Arc::clone(&ring.double) as Arc<dyn Registers>,
            allow: Poke::Word(EIMS, 1),
            mask: Poke::Word(EIMC, 1),
        }));
        assert_eq!((queue.arm(), ring.double.writes(EIMS)), (Armed::Rings, 1));
        queue.disarm();
        assert_eq!(ring.double.writes(EIMC), 1);
        ring.fill(1, 60, DONE | END);
        assert_eq!(queue.arm(), Armed::Ready, "it came before");
        queue.receive(&mut Burst::new());
        assert_eq!(queue.arm(), Armed::Rings);
    }

    proptest! {
        #[test]
        fn no_device_makes_it_lose_a_buffer_or_leave_one(
            steps in prop::collection::vec((any::<u64>(), any::<u64>(), 0u8..4), 1..400)
        ) {
            let (mut queue, mut ring) = queue(1060);
            let mut burst = Burst::new();
            for (first, word, step) in steps {
                match step {
                    0 => queue.receive(&mut burst),
                    1 => release_all(&mut queue, &mut burst),
                    2 => { ring.fill_with(1, first, word); }
                    // No longer than a buffer or two, and not damaged.
                    _ => { ring.fill_with(1, first, word & 0xffff_0fff_68ff_ffff); }
                }
                for (frame, segments) in burst.frames().iter() {
                    prop_assert!(frame.len() >= MIN_FRAME);
                    prop_assert!(segments.iter().all(|segment| segment.len() <= BUFFER_SIZE));
                }
                prop_assert!(queue.posted.free() + usize::from(queue.posted.len()) + burst.len() <= 1060);
            }
            release_all(&mut queue, &mut burst);
            prop_assert_eq!(queue.posted.free() + usize::from(queue.posted.len()), 1060);
        }
    }
}
