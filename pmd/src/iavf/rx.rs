//! A receive ring.
//!
//! A frame longer than a buffer fills several descriptors; it is known by its first buffer, and the pool keeps the chain.
//! Nothing that the device writes is trusted: lengths are cut to the buffer, chains have an end. A VLAN tag that was taken
//! out, because the PF has it so, is put back: as a segment of its own behind the addresses, kept with the first buffer.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use arrayvec::ArrayVec;

use super::descriptor::{Format, RECEIVE_WORDS, Received};
use super::registers::*;
use crate::device::{Armed, ReceiveQueue};
use crate::frame::{Burst, MIN_FRAME, Token};
use crate::intel::tag::{ADDRESSES, push_tagged};
use crate::memory::{BUFFER_SIZE, BufferPool, DmaSlice, PostedBuffers};
use crate::offload::{Checksum, Offload};
use crate::registers::Registers;
use crate::vf::Bell;

/// Most buffers of one frame, as many as the device chains at most (XL710 data sheet, 8.3.3).
pub const MAX_CHAIN: usize = 5;
const _: () = assert!(MAX_CHAIN as u32 * BUFFER_SIZE >= LONGEST_FRAME);
/// The device ignores the lower three bits of a tail (E810 data sheet, QRX_TAIL).
const TAIL_STEP: u16 = 8;

/// What receive queues count for the slow side.
#[derive(Debug, Default)]
pub struct ReceiveCounters {
    /// Frames that the device says are damaged.
    pub damaged: AtomicU64,
    /// Frames that cannot be: without an end, longer than their buffers, shorter than a header.
    pub impossible: AtomicU64,
    /// Frames that two VLAN tags were taken out of: nobody knows where they belong.
    pub torn: AtomicU64,
}

impl ReceiveCounters {
    /// All of them.
    pub fn sum(&self) -> u64 {
        let counters = [&self.damaged, &self.impossible, &self.torn];
        counters.into_iter().map(|counter| counter.load(Ordering::Relaxed)).sum()
    }
}

/// A receive queue of a VF.
#[derive(Debug)]
pub struct IavfReceive {
    registers: Arc<dyn Registers>,
    tail_register: u32,
    format: Format,
    ring: DmaSlice,
    posted: PostedBuffers<RING>,
    /// Where the tag of a frame is that begins in each buffer.
    tags: DmaSlice,
    /// In the middle of a frame that is dropped.
    discarding: bool,
    counters: Arc<ReceiveCounters>,
    bell: Option<Bell>,
}

/// The memory of a receive queue.
#[derive(Debug)]
pub struct ReceiveMemory {
    /// Room for [`RING`] descriptors.
    pub ring: DmaSlice,
    /// The buffers.
    pub pool: BufferPool,
    /// [`TAG`](crate::intel::tag::TAG) bytes for each buffer.
    pub tags: DmaSlice,
}

/// A frame at the head, a part a buffer.
type Parts = ArrayVec<Received, MAX_CHAIN>;

impl IavfReceive {
    /// Queue `number` over `memory`, which the PF knows and has not enabled yet; gives the device its first buffers.
    pub(super) fn new(
        registers: Arc<dyn Registers>,
        number: u16,
        format: Format,
        memory: ReceiveMemory,
        counters: Arc<ReceiveCounters>,
    ) -> Self {
        let ReceiveMemory { ring, pool, tags } = memory;
        let mut queue = Self {
            registers,
            tail_register: QRX_TAIL1 + 4 * u32::from(number),
            format,
            ring,
            posted: PostedBuffers::new(pool, TAIL_STEP, TAIL_STEP),
            tags,
            discarding: false,
            counters,
            bell: None,
        };
        queue.refill();
        queue
    }

    /// Sleepers are woken by `bell`.
    pub(super) fn with_bell(self, bell: Option<Bell>) -> Self {
        Self { bell, ..self }
    }

    #[inline]
    fn refill(&mut self) {
        // The tail stays where the device sees it.
        let told = self.posted.refill(|slot, iova| {
            self.ring.store(RECEIVE_WORDS * slot, iova);
            // The header address, unused; where the device will report that it is done.
            self.ring.store(RECEIVE_WORDS * slot + 1, 0);
        });
        if told > 0 {
            fence(Ordering::Release);
            self.registers.write(self.tail_register, u32::from(self.posted.tail()));
        }
    }

    /// Whether the descriptor `n` after the head is done.
    #[inline]
    fn is_done(&self, n: usize) -> bool {
        Received::is_done(self.ring.load(RECEIVE_WORDS * self.posted.slot(n) + 1))
    }

    /// What the device says about the frame at the head; `None` while its end is not there.
    #[inline]
    fn look(&self) -> Option<Parts> {
        let mut parts = Parts::new();
        for n in 0..usize::from(self.posted.len()).min(MAX_CHAIN) {
            if !self.is_done(n) {
                return None;
            }
            // The other words, and the frame's bytes, are read after the one that says they are there.
            fence(Ordering::Acquire);
            let at = RECEIVE_WORDS * self.posted.slot(n);
            let words = [self.ring.load(at), self.ring.load(at + 1), self.ring.load(at + 2)];
            let part = Received::read(self.format, words);
            parts.push(part);
            if part.end {
                break;
            }
        }
        let whole = parts.last().is_some_and(|part| part.end) || parts.is_full();
        whole.then_some(parts)
    }

    /// What a frame is dropped for.
    #[inline]
    fn fault(&self, parts: &[Received]) -> Option<&AtomicU64> {
        let last = parts.last()?;
        let len: u32 = parts.iter().map(|part| part.len).sum();
        let headless = last.tag.is_some() && parts.first().is_none_or(|part| part.len <= ADDRESSES);
        let counters = &*self.counters;
        if self.discarding
            || !last.end
            || len < MIN_FRAME
            || headless
            || parts.iter().any(|part| part.len > BUFFER_SIZE)
        {
            Some(&counters.impossible)
        } else if last.bad {
            Some(&counters.damaged)
        } else {
            last.torn.then_some(&counters.torn)
        }
    }

    /// Moves one frame into `burst`, or drops it; `false` when there is none or the burst has no room for it.
    #[inline]
    fn next_frame(&mut self, burst: &mut Burst) -> bool {
        let Some(parts) = self.look() else { return false };
        let Some(last) = parts.last().copied() else { return false };
        if let Some(counter) = self.fault(&parts) {
            // Counted once, when its end is there.
            if last.end {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            self.discarding = !last.end;
            self.posted.drop_frame(parts.len());
            return true;
        }
        for (n, part) in parts.iter().enumerate().filter(|(_, part)| part.len > 0) {
            let segment = self.posted.segment(n, part.len);
            let pushed = match last.tag {
                Some(tag) if n == 0 => {
                    let [high, low] = tag.to_be_bytes();
                    push_tagged(burst, &self.tags, self.posted.buffer(0), segment, &[0x81, 0, high, low])
                }
                _ => burst.push_segment(segment),
            };
            if pushed.is_err() {
                burst.abandon_frame();
                return false;
            }
        }
        let checksum = if last.valid { Checksum::Valid } else { Checksum::Unknown };
        if !burst.finish_frame_with(Token(self.posted.buffer(0)), Offload { checksum, ..Offload::NONE }) {
            return false;
        }
        self.posted.take(parts.len());
        true
    }
}

impl ReceiveQueue for IavfReceive {
    #[inline]
    fn receive(&mut self, burst: &mut Burst) {
        while burst.room() > 0 && self.next_frame(burst) {}
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
        Bell::arm(self.bell.as_ref(), || !self.posted.is_empty() && self.is_done(0))
    }

    fn disarm(&mut self) {
        Bell::disarm(self.bell.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use super::super::descriptor::RECEIVE_SIZE;
    use super::super::tests::Plain;
    use super::*;
    use crate::memory::dma::DmaMemory;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use crate::vf::Poke;
    use proptest::prelude::*;
    use rustix::event::{EventfdFlags, eventfd};

    const DONE: u64 = 1;
    const END: u64 = 2;

    struct Ring {
        registers: Arc<Plain>,
        base: u64,
        device: u16,
        counters: Arc<ReceiveCounters>,
    }

    fn queue(buffers: usize, format: Format) -> (IavfReceive, Ring) {
        let sizes = [
            usize::from(RING) * RECEIVE_SIZE,
            buffers * BUFFER_SIZE as usize,
            buffers * crate::intel::tag::TAG,
        ];
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), DmaMemory::needed(&sizes), "test").unwrap();
        let [ring, pool, tags] = memory.carve(sizes).unwrap();
        let (registers, counters) = (Arc::new(Plain::default()), Arc::new(ReceiveCounters::default()));
        let base = ring.iova() - OFFSET;
        let shared = Arc::clone(&registers) as Arc<dyn Registers>;
        let memory = ReceiveMemory { ring, pool: BufferPool::new(pool), tags };
        let queue = IavfReceive::new(shared, 3, format, memory, Arc::clone(&counters));
        (queue, Ring { registers, base, device: 0, counters })
    }

    impl Ring {
        /// Plays the device: fills the next descriptor with these words; `false` where it has none.
        fn write(&mut self, fill: u8, words: [u64; 3]) -> bool {
            if u32::from(self.device) == self.registers.read(QRX_TAIL1 + 12) {
                return false;
            }
            let descriptor = (self.base + u64::from(self.device) * RECEIVE_SIZE as u64) as *mut u64;
            // SAFETY: the queue keeps the ring and its buffers mapped; the test is single-threaded.
            unsafe {
                let buffer = (descriptor.read_volatile() - OFFSET) as *mut u8;
                buffer.write_bytes(fill, BUFFER_SIZE as usize);
                for (n, word) in words.into_iter().enumerate() {
                    descriptor.add(n).write_volatile(word);
                }
            }
            self.device = (self.device + 1) & (RING - 1);
            true
        }

        fn fill(&mut self, fill: u8, len: u64, status: u64) -> bool {
            self.write(fill, [0, status | len << 38, 0])
        }

        fn counts(&self) -> [u64; 3] {
            [&self.counters.damaged, &self.counters.impossible, &self.counters.torn]
                .map(|counter| counter.load(Ordering::Relaxed))
        }
    }

    fn lengths(burst: &Burst) -> Vec<(u32, usize)> {
        burst.frames().iter().map(|(frame, segments)| (frame.len(), segments.len())).collect()
    }

    fn release_all(queue: &mut IavfReceive, burst: &mut Burst) {
        for (frame, _) in burst.frames().iter() {
            queue.release(frame.token());
        }
        burst.clear();
    }

    #[test]
    fn frames_of_one_and_of_several_buffers() {
        let (mut queue, mut ring) = queue(2000, Format::Legacy);
        let mut burst = Burst::new();
        queue.receive(&mut burst);
        assert!(burst.is_empty());
        ring.fill(1, 60, DONE | END);
        ring.fill(2, 2048, DONE);
        ring.fill(3, 2048, DONE);
        queue.receive(&mut burst);
        assert_eq!(lengths(&burst), [(60, 1)]);
        ring.fill(4, 10, DONE | END | 1 << 3 | 26 << 30);
        queue.receive(&mut burst);
        assert_eq!(lengths(&burst), [(60, 1), (4106, 3)]);
        let verdicts: Vec<_> = burst.frames().iter().map(|(frame, _)| frame.offload().checksum).collect();
        assert_eq!(verdicts, [Checksum::Unknown, Checksum::Valid]);
        let free = queue.posted.free();
        release_all(&mut queue, &mut burst);
        assert_eq!(queue.posted.free(), free + 4);
    }

    #[test]
    fn a_frame_in_flexible_descriptors() {
        let (mut queue, mut ring) = queue(2000, Format::Flexible);
        let mut burst = Burst::new();
        ring.write(1, [2 | 2048 << 32, DONE, 0]);
        ring.write(2, [2 | 92 << 16 | 100 << 32, DONE | END | 1 << 3, 0]);
        queue.receive(&mut burst);
        assert_eq!(lengths(&burst), [(2148, 2)]);
        assert_eq!(burst.frames().iter().next().unwrap().0.offload().checksum, Checksum::Valid);
    }

    #[test]
    fn a_tag_that_was_taken_out_is_put_back() {
        let (mut queue, mut ring) = queue(2000, Format::Legacy);
        let mut burst = Burst::new();
        ring.write(1, [0x2007 << 16, DONE | END | 1 << 2 | 60 << 38, 0]);
        ring.write(2, [0, DONE | 2048 << 38, 0]);
        ring.write(2, [0x0fff << 16, DONE | END | 1 << 2 | 10 << 38, 0]);
        // Not even the addresses are there.
        ring.write(3, [0, DONE | 10 << 38, 0]);
        ring.write(3, [0, DONE | END | 1 << 2 | 60 << 38, 0]);
        queue.receive(&mut burst);
        assert_eq!((lengths(&burst), ring.counts()), (vec![(64, 3), (2062, 4)], [0, 1, 0]));
        let frames = burst.frames();
        let tags: Vec<_> = frames
            .iter()
            .map(|(_, segments)| {
                let mut head = [0; 18];
                crate::frame::gather(segments, &mut head);
                (head[11], [head[12], head[13], head[14], head[15]], head[16])
            })
            .collect();
        assert_eq!(tags, [(1, [0x81, 0, 0x20, 7], 1), (2, [0x81, 0, 0x0f, 0xff], 2)]);
        let free = queue.posted.free();
        release_all(&mut queue, &mut burst);
        assert_eq!(queue.posted.free(), free + 3);
    }

    #[test]
    fn damaged_short_and_impossible_frames_are_dropped_and_counted() {
        let (mut queue, mut ring) = queue(2000, Format::Legacy);
        let mut burst = Burst::new();
        ring.fill(0, 60, DONE | END | 1 << 19);
        ring.write(0, [0, DONE | END | 1 << 2 | 60 << 38, 1]);
        ring.fill(0, 13, DONE | END);
        ring.fill(0, 0, DONE | END);
        ring.fill(0, 2049, DONE | END);
        ring.fill(0, 0x3fff, DONE);
        ring.fill(0, 60, DONE | END);
        ring.fill(9, 60, DONE | END);
        queue.receive(&mut burst);
        assert_eq!((lengths(&burst), ring.counts()), (vec![(60, 1)], [1, 4, 1]));
    }

    #[test]
    fn a_frame_without_end_is_dropped_as_one() {
        let (mut queue, mut ring) = queue(2000, Format::Legacy);
        let mut burst = Burst::new();
        for _ in 0..20 {
            ring.fill(0, 2048, DONE);
        }
        queue.receive(&mut burst);
        assert!(burst.is_empty());
        ring.fill(0, 100, DONE | END);
        ring.fill(0, 64, DONE | END);
        queue.receive(&mut burst);
        assert_eq!((lengths(&burst), ring.counts()), (vec![(64, 1)], [0, 1, 0]));
    }

    #[test]
    fn a_ring_runs_dry_when_nothing_is_released_and_recovers() {
        let (mut queue, mut ring) = queue(1104, Format::Legacy);
        let mut bursts: Vec<Burst> = Vec::new();
        let mut received = 0;
        while ring.fill(7, 64, DONE | END) {
            let mut burst = Burst::new();
            queue.receive(&mut burst);
            received += burst.len();
            bursts.push(burst);
        }
        assert_eq!(received, 1104);
        for burst in &mut bursts {
            release_all(&mut queue, burst);
        }
        queue.receive(&mut Burst::new());
        assert!(ring.fill(7, 64, DONE | END));
    }

    #[test]
    fn one_tail_write_a_burst_at_a_multiple_of_8() {
        let (mut queue, mut ring) = queue(2000, Format::Legacy);
        for round in 0..40 {
            for _ in 0..32 - round % 3 {
                ring.fill(0, 64, DONE | END);
            }
            let before = ring.registers.writes(QRX_TAIL1 + 12);
            let mut burst = Burst::new();
            queue.receive(&mut burst);
            assert!(ring.registers.writes(QRX_TAIL1 + 12) <= before + 1);
            assert_eq!(ring.registers.read(QRX_TAIL1 + 12) % 8, 0);
            release_all(&mut queue, &mut burst);
        }
        // The tests' own.
        let looks = ring.registers.reads();
        queue.receive(&mut Burst::new());
        assert_eq!(ring.registers.reads(), looks);
    }

    #[test]
    fn it_lets_the_device_interrupt_only_while_somebody_sleeps() {
        let (mut queue, mut ring) = queue(2000, Format::Legacy);
        assert_eq!(queue.arm(), Armed::Silent, "without an interrupt");
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let control = VFINT_DYN_CTLN1 + 12;
        let mut queue = queue.with_bell(Some(Bell {
            event,
            registers: Arc::clone(&ring.registers) as Arc<dyn Registers>,
            allow: Poke::Word(control, DYN_CTL_ENABLE | DYN_CTL_NO_INTERVAL),
            mask: Poke::Word(control, DYN_CTL_WRITE_BACK),
        }));
        assert_eq!((queue.arm(), ring.registers.read(control)), (Armed::Rings, 0x19));
        queue.disarm();
        assert_eq!(ring.registers.read(control), DYN_CTL_WRITE_BACK);
        ring.fill(1, 60, DONE | END);
        assert_eq!(queue.arm(), Armed::Ready, "it came before");
        queue.receive(&mut Burst::new());
        assert_eq!(queue.arm(), Armed::Rings);
    }

    proptest! {
        #[test]
        fn no_device_makes_it_lose_a_buffer_or_leave_one(
            flexible: bool,
            steps in prop::collection::vec((any::<[u64; 3]>(), 0u8..4), 1..400)
        ) {
            let format = if flexible { Format::Flexible } else { Format::Legacy };
            let (mut queue, mut ring) = queue(1064, format);
            let mut burst = Burst::new();
            for (words, step) in steps {
                match step {
                    0 => queue.receive(&mut burst),
                    1 => release_all(&mut queue, &mut burst),
                    _ => { ring.write(1, words); }
                }
                for (frame, segments) in burst.frames().iter() {
                    prop_assert!(frame.len() >= MIN_FRAME);
                    prop_assert!(segments.iter().all(|segment| segment.len() <= BUFFER_SIZE));
                }
                // Each frame has at least one.
                prop_assert!(queue.posted.free() + usize::from(queue.posted.len()) + burst.len() <= 1064);
            }
            release_all(&mut queue, &mut burst);
            prop_assert_eq!(queue.posted.free() + usize::from(queue.posted.len()), 1064);
        }
    }
}
