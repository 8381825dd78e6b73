//! A receive queue.
//!
//! ```text
//!   submission ring   [id, buffer][id, buffer] …  ──▶ device
//!   completion ring   [id, length][id, length] …  ◀──          buffers come back in any order, known by their ids
//! ```
//!
//! A frame longer than a buffer fills several; it is known by its first, and the pool keeps the chain. Nothing that the
//! device writes is trusted: an id must be that of a buffer which the device has, lengths are cut to the buffer, chains
//! have an end. A device that breaks such a rule is not listened to any more until it is reset.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use arrayvec::ArrayVec;

use super::descriptor::{self, Received};
use super::health::{Breach, Health};
use super::registers::UNMASK;
use crate::device::{Armed, ReceiveQueue};
use crate::frame::{Burst, MIN_FRAME, Token};
use crate::memory::{BUFFER_SIZE, BufferPool, DmaSlice, refill_of};
use crate::net::packet::Version;
use crate::offload::{Checksum, Offload};
use crate::registers::Registers;

/// Most buffers of one frame: more than the longest needs.
const MAX_CHAIN: usize = 8;
/// Longest frame that a chain holds.
pub const MAX_FRAME: u32 = MAX_CHAIN as u32 * BUFFER_SIZE;
/// An id without a buffer.
const NONE: u32 = u32::MAX;

/// What the receive queues of a device count for the slow side.
#[derive(Debug, Default)]
pub struct ReceiveCounters {
    /// Frames that were dropped as damaged or impossible.
    pub errors: AtomicU64,
}

/// A register of the interrupt of a completion queue, and what rings when it interrupts.
#[derive(Debug)]
pub struct Interrupt {
    /// The register alone.
    pub unmask: Arc<dyn Registers>,
    /// Rings.
    pub bell: OwnedFd,
}

/// What a receive queue is made of.
#[derive(Debug)]
pub struct Parts {
    /// The ring of descriptors.
    pub submissions: DmaSlice,
    /// The ring of completions.
    pub completions: DmaSlice,
    /// Entries of each: a power of two.
    pub depth: u16,
    /// Where the number of submitted descriptors goes.
    pub doorbell: Arc<dyn Registers>,
    /// Receive buffers.
    pub pool: BufferPool,
    /// Whether the device checks what comes over IPv4, and over IPv6.
    pub verifies: [bool; 2],
    /// Whether the device promises that reserved bits are 0.
    pub keeps_reserved_bits: bool,
    /// Wakes sleepers; without, the queue is polled.
    pub interrupt: Option<Interrupt>,
    /// Told to the slow side.
    pub counters: Arc<ReceiveCounters>,
    /// Likewise.
    pub health: Arc<Health>,
}

/// A receive queue of a VF.
#[derive(Debug)]
pub struct EnaReceive {
    parts: Parts,
    /// The buffer of each id that the device has.
    buffers: Box<[u32]>,
    /// Ids that it has not.
    ids: Vec<u16>,
    /// Descriptors submitted so far.
    tail: u16,
    /// Completions read so far.
    head: u16,
    /// The device broke a rule.
    dead: bool,
}

/// What is found in the completion ring.
type Look = Option<Result<ArrayVec<Received, MAX_CHAIN>, Breach>>;

impl EnaReceive {
    /// A queue that the device knows; gives it its first buffers.
    pub(super) fn new(parts: Parts) -> Self {
        let depth = parts.depth;
        let mut queue = Self {
            parts,
            buffers: vec![NONE; usize::from(depth)].into_boxed_slice(),
            // One descriptor stays empty: a ring whose tail meets its head is an empty one.
            ids: (0..depth - 1).rev().collect(),
            tail: 0,
            head: 0,
            dead: false,
        };
        queue.refill();
        queue
    }

    #[inline]
    fn refill(&mut self) {
        let count = self.ids.len().min(self.parts.pool.available());
        let posted = usize::from(self.parts.depth) - 1 - self.ids.len();
        let worthwhile = usize::from(refill_of(self.parts.depth));
        if count == 0 || self.dead || (count < worthwhile && posted >= worthwhile) {
            return;
        }
        for _ in 0..count {
            let Some(buffer) = self.parts.pool.take() else { break };
            let Some(id) = self.ids.pop() else {
                self.parts.pool.give_back(buffer);
                break;
            };
            if let Some(entry) = self.buffers.get_mut(usize::from(id)) {
                *entry = buffer;
            }
            let buffer = descriptor::buffer(self.parts.pool.iova(buffer), BUFFER_SIZE, id);
            let phase = descriptor::phase(self.tail, self.parts.depth);
            let [control, id, low, high] = descriptor::in_phase(buffer, phase);
            let at = 2 * usize::from(self.tail & (self.parts.depth - 1));
            self.parts.submissions.store(at + 1, u64::from(low) | u64::from(high) << 32);
            self.parts.submissions.store(at, u64::from(control) | u64::from(id) << 32);
            self.tail = self.tail.wrapping_add(1);
        }
        fence(Ordering::Release);
        self.parts.doorbell.write(0, u32::from(self.tail));
    }

    /// What the device says about the next frame, a part a buffer; `None` while its end is not there.
    #[inline]
    fn look(&self) -> Look {
        let mut parts = ArrayVec::new();
        loop {
            let count = self.head.wrapping_add(parts.len() as u16);
            let at = 4 * usize::from(count & (self.parts.depth - 1));
            let status = self.parts.completions.load32(at);
            if Received::phase(status) != descriptor::phase(count, self.parts.depth) {
                return None;
            }
            fence(Ordering::Acquire);
            let word = |n| self.parts.completions.load32(at + n);
            let part = Received::from_words(status, word(1), word(3));
            let reserved = self.parts.keeps_reserved_bits && part.has_reserved_bits();
            if part.is_first() != parts.is_empty() || reserved {
                return Some(Err(Breach::ReceiveDescriptor));
            }
            parts.push(part);
            if part.is_last() {
                return Some(Ok(parts));
            }
            if parts.is_full() {
                return Some(Err(Breach::TooManyBuffers));
            }
        }
    }

    /// The device broke a rule: what it has is lost until it is reset.
    #[cold]
    fn die(&mut self, breach: Breach) {
        self.dead = true;
        self.parts.counters.errors.fetch_add(1, Ordering::Relaxed);
        self.parts.health.breached(breach);
    }

    /// The buffers of a frame, each of which the device has; they are taken from it.
    #[inline]
    fn take(&mut self, parts: &[Received]) -> Option<ArrayVec<u32, MAX_CHAIN>> {
        let mut buffers = ArrayVec::new();
        for part in parts {
            let entry = self.buffers.get_mut(usize::from(part.id()))?;
            let buffer = std::mem::replace(entry, NONE);
            if buffer == NONE {
                // What was taken is lost with the rest of the queue's buffers.
                return None;
            }
            self.ids.push(part.id());
            buffers.push(buffer);
        }
        self.head = self.head.wrapping_add(parts.len() as u16);
        Some(buffers)
    }

    /// Whether these are the parts of a frame that is whole.
    #[inline]
    fn is_sound(parts: &[Received]) -> bool {
        let len: u32 = parts.iter().map(Received::len).sum();
        // The driver has not asked for room in front of frames.
        len >= MIN_FRAME && parts.iter().all(|part| part.len() <= BUFFER_SIZE && part.offset() == 0)
    }

    #[inline]
    fn verdict(&self, last: Option<&Received>) -> Offload {
        let [v4, v6] = self.parts.verifies;
        let valid = match last.and_then(Received::verified) {
            Some(Version::V4) => v4,
            Some(Version::V6) => v6,
            None => false,
        };
        let checksum = if valid { Checksum::Valid } else { Checksum::Unknown };
        Offload { checksum, ..Offload::NONE }
    }

    /// Moves one frame into `burst`, or drops it; `false` when there is none or the burst has no room for it.
    #[inline]
    fn next_frame(&mut self, burst: &mut Burst) -> bool {
        let parts = match self.look() {
            Some(Ok(parts)) => parts,
            Some(Err(breach)) => {
                self.die(breach);
                return false;
            }
            None => return false,
        };
        let sound = Self::is_sound(&parts);
        if sound {
            for part in parts.iter().filter(|part| part.len() > 0) {
                let buffer = self.buffers.get(usize::from(part.id())).copied().unwrap_or(NONE);
                if buffer == NONE {
                    burst.abandon_frame();
                    self.die(Breach::ReceiveId);
                    return false;
                }
                if burst.push_segment(self.parts.pool.segment(buffer, part.len())).is_err() {
                    burst.abandon_frame();
                    return false;
                }
            }
        }
        let Some(buffers) = self.take(&parts) else {
            burst.abandon_frame();
            self.die(Breach::ReceiveId);
            return false;
        };
        for pair in buffers.windows(2) {
            self.parts.pool.link(pair[0], pair[1]);
        }
        let first = buffers.first().copied().unwrap_or(NONE);
        if !sound {
            self.parts.counters.errors.fetch_add(1, Ordering::Relaxed);
            self.parts.pool.give_back(first);
        } else if !burst.finish_frame_with(Token(first), self.verdict(parts.last())) {
            // There was room before its segments were pushed.
            self.parts.counters.errors.fetch_add(1, Ordering::Relaxed);
            self.parts.pool.give_back(first);
        }
        true
    }
}

impl ReceiveQueue for EnaReceive {
    #[inline]
    fn receive(&mut self, burst: &mut Burst) {
        while !self.dead && burst.room() > 0 && self.next_frame(burst) {}
        self.refill();
    }

    #[inline]
    fn release(&mut self, token: Token) {
        self.parts.pool.give_back(token.0);
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.parts.interrupt.as_ref().map(|interrupt| interrupt.bell.as_fd())
    }

    /// Lets the device interrupt, once: it masks the vector itself then.
    fn arm(&mut self) -> Armed {
        let Some(interrupt) = &self.parts.interrupt else { return Armed::Silent };
        if self.dead {
            return Armed::Rings;
        }
        interrupt.unmask.write(0, UNMASK);
        fence(Ordering::SeqCst);
        if self.look().is_some() { Armed::Ready } else { Armed::Rings }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ena::double::Doorbell;
    use crate::memory::dma::DmaMemory;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use proptest::prelude::*;
    use rustix::event::{EventfdFlags, eventfd};

    const DEPTH: u16 = 256;
    const WHOLE: u32 = 1 << 26 | 1 << 27;

    struct Device {
        doorbell: Arc<Doorbell>,
        unmask: Arc<Doorbell>,
        submissions: *mut u64,
        completions: *mut u32,
        /// Descriptors taken, completions written.
        taken: u16,
        written: u16,
        counters: Arc<ReceiveCounters>,
        health: Arc<Health>,
    }

    fn queue(buffers: usize) -> (EnaReceive, Device) {
        let ring = usize::from(DEPTH) * descriptor::SIZE;
        let sizes = [ring, ring, buffers * BUFFER_SIZE as usize];
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), sizes.iter().sum(), "test").unwrap();
        let [submissions, completions, pool] = memory.carve(sizes).unwrap();
        let device = Device {
            doorbell: Arc::default(),
            unmask: Arc::default(),
            submissions: (submissions.iova() - OFFSET) as *mut u64,
            completions: (completions.iova() - OFFSET) as *mut u32,
            taken: 0,
            written: 0,
            counters: Arc::default(),
            health: Arc::default(),
        };
        let queue = EnaReceive::new(Parts {
            submissions,
            completions,
            depth: DEPTH,
            doorbell: Arc::clone(&device.doorbell) as Arc<dyn Registers>,
            pool: BufferPool::new(pool),
            verifies: [true, true],
            keeps_reserved_bits: true,
            interrupt: None,
            counters: Arc::clone(&device.counters),
            health: Arc::clone(&device.health),
        });
        (queue, device)
    }

    impl Device {
        /// The id of the next buffer; `None` where there is none, or it is not marked as new.
        fn take(&mut self) -> Option<u16> {
            if u32::from(self.taken) == self.doorbell.last() {
                return None;
            }
            // SAFETY: the queue keeps the ring mapped; the test is single-threaded.
            let word = unsafe { self.submissions.add(2 * usize::from(self.taken % DEPTH)).read_volatile() };
            // A device that has said that it filled what it never took finds later entries there.
            if (word >> 24 & 1 != 0) != descriptor::phase(self.taken, DEPTH) {
                return None;
            }
            assert_eq!(word >> 26 & 7, 7);
            self.taken = self.taken.wrapping_add(1);
            Some((word >> 32) as u16)
        }

        /// Writes a completion, with the right phase.
        fn complete(&mut self, status: u32, id: u16, len: u16, last: u32) {
            let phase = u32::from(descriptor::phase(self.written, DEPTH)) << 24;
            // SAFETY: as above.
            unsafe {
                let at = self.completions.add(4 * usize::from(self.written % DEPTH));
                at.add(1).write_volatile(u32::from(len) | u32::from(id) << 16);
                at.add(3).write_volatile(last);
                at.write_volatile(status & !(1 << 24) | phase);
            }
            self.written = self.written.wrapping_add(1);
        }

        fn fill(&mut self, len: u16, status: u32) -> bool {
            let Some(id) = self.take() else { return false };
            self.complete(status, id, len, 0);
            true
        }

        fn errors(&self) -> u64 {
            self.counters.errors.load(Ordering::Relaxed)
        }
    }

    fn lengths(burst: &Burst) -> Vec<(u32, usize)> {
        burst.frames().iter().map(|(frame, segments)| (frame.len(), segments.len())).collect()
    }

    fn release_all(queue: &mut EnaReceive, burst: &mut Burst) {
        for (frame, _) in burst.frames().iter() {
            queue.release(frame.token());
        }
        burst.clear();
    }

    #[test]
    fn buffers_come_back_in_any_order() {
        let (mut queue, mut device) = queue(400);
        let ids: Vec<u16> = (0..4).map(|_| device.take().unwrap()).collect();
        device.complete(1 << 26, ids[2], 2048, 0);
        device.complete(1 << 27, ids[0], 100, 0);
        device.complete(WHOLE, ids[3], 60, 0);
        let mut burst = Burst::new();
        queue.receive(&mut burst);
        assert_eq!(lengths(&burst), [(2148, 2), (60, 1)]);
        let free = queue.parts.pool.available();
        release_all(&mut queue, &mut burst);
        assert_eq!(queue.parts.pool.available(), free + 3);
    }

    #[test]
    fn a_frame_whose_end_is_missing_is_waited_for() {
        let (mut queue, mut device) = queue(400);
        let mut burst = Burst::new();
        device.fill(2048, 1 << 26);
        queue.receive(&mut burst);
        assert!(burst.is_empty());
        device.fill(9, 1 << 27);
        queue.receive(&mut burst);
        assert_eq!(lengths(&burst), [(2057, 2)]);
    }

    #[test]
    fn damaged_frames_are_dropped_and_counted() {
        let (mut queue, mut device) = queue(400);
        device.fill(2049, WHOLE);
        device.fill(13, WHOLE);
        device.fill(0, WHOLE);
        let id = device.take().unwrap();
        device.complete(WHOLE, id, 60, 2 << 16);
        device.fill(60, WHOLE);
        let mut burst = Burst::new();
        queue.receive(&mut burst);
        assert_eq!((lengths(&burst), device.errors()), (vec![(60, 1)], 4));
        assert_eq!(device.health.breach(), None);
    }

    #[test]
    fn a_device_that_breaks_a_rule_is_not_listened_to_any_more() {
        type Act = fn(&mut Device);
        let acts: [(Act, Breach); 6] = [
            (|device| device.complete(WHOLE, 300, 60, 0), Breach::ReceiveId),
            (|device| device.complete(WHOLE, DEPTH - 1, 60, 0), Breach::ReceiveId),
            (
                |device| {
                    let id = device.take().unwrap();
                    device.complete(WHOLE, id, 60, 0);
                    device.complete(1 << 26, id, 2048, 0);
                    device.complete(1 << 27, id, 60, 0);
                },
                Breach::ReceiveId,
            ),
            (|device| device.complete(1 << 27, 0, 60, 0), Breach::ReceiveDescriptor),
            (|device| device.complete(WHOLE | 1 << 17, 0, 60, 0), Breach::ReceiveDescriptor),
            (
                |device| {
                    device.fill(2048, 1 << 26);
                    (0..8).for_each(|_| assert!(device.fill(2048, 0)));
                },
                Breach::TooManyBuffers,
            ),
        ];
        for (act, breach) in acts {
            let (mut queue, mut device) = queue(400);
            act(&mut device);
            let mut burst = Burst::new();
            queue.receive(&mut burst);
            assert_eq!((device.health.breach(), device.errors()), (Some(breach), 1));
            device.fill(60, WHOLE);
            let before = burst.len();
            queue.receive(&mut burst);
            assert_eq!((burst.len(), device.errors()), (before, 1), "{breach:?}");
        }
    }

    #[test]
    fn what_the_device_found_right_is_valid_and_nothing_else() {
        let (mut queue, mut device) = queue(400);
        let good = 8 | 12 << 8 | 1 << 16;
        device.fill(60, WHOLE | good);
        device.fill(60, WHOLE | good | 1 << 14);
        queue.parts.verifies = [false, true];
        let mut burst = Burst::new();
        queue.receive(&mut burst);
        queue.parts.verifies = [true, true];
        device.fill(60, WHOLE | good);
        queue.receive(&mut burst);
        let seen: Vec<Checksum> = burst.frames().iter().map(|(frame, _)| frame.offload().checksum).collect();
        assert_eq!(seen, [Checksum::Unknown, Checksum::Unknown, Checksum::Valid]);
    }

    #[test]
    fn one_doorbell_for_a_quarter_of_the_ring_and_no_register_is_read() {
        let (mut queue, mut device) = queue(400);
        let before = device.doorbell.writes();
        for burst in 1..=queue.parts.depth / 4 / 32 {
            assert_eq!(device.doorbell.writes(), before, "before burst {burst}");
            (0..32).for_each(|_| assert!(device.fill(64, WHOLE)));
            queue.receive(&mut Burst::new());
        }
        assert_eq!((device.doorbell.writes(), device.doorbell.reads()), (before + 1, 0));
    }

    #[test]
    fn it_lets_the_device_interrupt_only_while_somebody_sleeps() {
        let (mut queue, mut device) = queue(400);
        assert_eq!(queue.arm(), Armed::Silent, "without an interrupt");
        let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let unmask = Arc::clone(&device.unmask) as Arc<dyn Registers>;
        queue.parts.interrupt = Some(Interrupt { unmask, bell });
        assert_eq!((queue.arm(), device.unmask.writes()), (Armed::Rings, 1));
        assert_eq!(device.unmask.last(), UNMASK);
        device.fill(60, WHOLE);
        assert_eq!(queue.arm(), Armed::Ready, "it came before");
        queue.receive(&mut Burst::new());
        assert_eq!(queue.arm(), Armed::Rings);
    }

    proptest! {
        #[test]
        fn no_device_makes_it_lose_a_buffer_or_leave_one(
            steps in prop::collection::vec((any::<u16>(), any::<u32>(), any::<u16>(), 0u8..8), 1..400)
        ) {
            let (mut queue, mut device) = queue(300);
            let mut burst = Burst::new();
            for (len, status, id, step) in steps {
                match step {
                    0 => queue.receive(&mut burst),
                    1 => release_all(&mut queue, &mut burst),
                    2 => device.complete(status, id % 300, len, 0),
                    // Mostly what a device does.
                    _ => { device.fill(len % 2200, WHOLE | status & 0x1_ff1f); }
                }
                for (frame, segments) in burst.frames().iter() {
                    prop_assert!(frame.len() >= MIN_FRAME);
                    prop_assert!(segments.iter().all(|segment| segment.len() <= BUFFER_SIZE));
                }
                let lent: usize = burst.frames().iter().map(|(_, segments)| segments.len()).sum();
                let posted = queue.buffers.iter().filter(|buffer| **buffer != NONE).count();
                let known = queue.parts.pool.available() + posted + lent;
                prop_assert!(known <= 300);
                prop_assert!(queue.dead || posted + queue.ids.len() == usize::from(DEPTH) - 1);
                let mut owned: Vec<u32> =
                    queue.buffers.iter().copied().filter(|buffer| *buffer != NONE).collect();
                owned.sort_unstable();
                owned.dedup();
                prop_assert_eq!(owned.len(), posted, "no buffer is with the device twice");
            }
        }
    }
}
