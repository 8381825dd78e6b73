//! The receive ring: a free list that the device fills in place.
//!
//! ```text
//!   buffer   [ … | metadata | frame        ]           one frame each
//! ```
//!
//! Nothing that the device writes is trusted: lengths are checked against the buffer and against each other, and metadata
//! has to add up.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::descriptor::{self, Received};
use super::firmware::{MOST_PREPENDED, ReceiveLayout};
use super::metadata;
use super::queue_controller::Queue;
use crate::device::{Armed, ReceiveQueue};
use crate::frame::{Burst, MIN_FRAME, Token};
use crate::memory::{BufferPool, DmaSlice, PostedBuffers};
use crate::offload::{Checksum, Offload};
use crate::vf::Bell;

/// Descriptors of a ring.
pub const RING: u16 = 1024;
/// Descriptors that are never posted: with a full ring the firmware gets confused (DPDK's `nfp_net_rx_fill_freelist`).
const KEPT_FREE: u16 = 8;

/// What the receive queues count for the slow side.
#[derive(Debug, Default)]
pub struct ReceiveCounters {
    /// Frames of impossible lengths.
    pub bad_length: AtomicU64,
    /// Frames whose metadata does not add up, or is not for this VF.
    pub bad_metadata: AtomicU64,
    /// Frames whose VLAN tag was taken off, which nobody asked for: its place is lost.
    pub stripped: AtomicU64,
}

/// A receive queue of a VF.
#[derive(Debug)]
pub struct NfpReceive {
    free_list: Queue,
    ring: DmaSlice,
    posted: PostedBuffers<RING>,
    layout: ReceiveLayout,
    /// The device checks checksums.
    checks: bool,
    counters: Arc<ReceiveCounters>,
    bell: Option<Bell>,
}

/// Where a frame is in its buffer.
struct Place {
    at: u32,
    len: u32,
}

impl NfpReceive {
    /// A queue over `ring` (room for [`RING`] descriptors) and buffers of the layout's size, which the firmware has taken
    /// over; gives the device its first buffers. `checks` tells whether it was asked to check checksums.
    pub(super) fn new(
        free_list: Queue,
        ring: DmaSlice,
        buffers: DmaSlice,
        layout: ReceiveLayout,
        checks: bool,
        counters: Arc<ReceiveCounters>,
    ) -> Self {
        let mut queue = Self {
            free_list,
            ring,
            posted: PostedBuffers::new(BufferPool::of_size(buffers, layout.buffer), KEPT_FREE, 1),
            layout,
            checks,
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
        let told = self.posted.refill(|slot, iova| self.ring.store(slot, descriptor::free(iova)));
        if told > 0 {
            fence(Ordering::Release);
            self.free_list.advance(u32::from(told));
        }
    }

    /// What the device says about the frame at the head.
    #[inline]
    fn look(&self) -> Option<Received> {
        let received = Received::from_word(self.ring.load(self.posted.slot(0)));
        (!self.posted.is_empty() && received.is_done()).then_some(received)
    }

    /// Where the frame is, or why it is none.
    #[inline]
    fn judge(&self, received: Received) -> Result<Place, &AtomicU64> {
        let (prepended, offset) = (received.metadata(), self.layout.offset);
        let at = if offset == 0 { prepended } else { offset };
        let len = received.len().saturating_sub(prepended);
        if prepended > MOST_PREPENDED || prepended > at {
            return Err(&self.counters.bad_metadata);
        }
        if len < MIN_FRAME || at + len > self.layout.buffer {
            return Err(&self.counters.bad_length);
        }
        let sound = match self.layout.chained {
            _ if prepended == 0 => true,
            false => metadata::is_sound_single(prepended),
            true => {
                let mut bytes = [0; MOST_PREPENDED as usize];
                let copied = self.posted.part(0, at - prepended, prepended).copy_to(&mut bytes);
                metadata::is_sound_chain(&bytes[..copied])
            }
        };
        if !sound {
            return Err(&self.counters.bad_metadata);
        }
        if received.is_stripped() { Err(&self.counters.stripped) } else { Ok(Place { at, len }) }
    }

    /// Moves one frame into `burst`, or drops it; `false` when there is none or the burst has no room for it.
    #[inline]
    fn next_frame(&mut self, burst: &mut Burst) -> bool {
        let Some(received) = self.look() else { return false };
        // The frame's bytes are read after the word that says they are there.
        fence(Ordering::Acquire);
        match self.judge(received) {
            Ok(Place { at, len }) => {
                let valid = self.checks && received.is_right();
                let checksum = if valid { Checksum::Valid } else { Checksum::Unknown };
                let (segment, token) = (self.posted.part(0, at, len), Token(self.posted.buffer(0)));
                if !burst.push_whole(segment, token, Offload { checksum, ..Offload::NONE }) {
                    return false;
                }
                self.posted.take(1);
            }
            Err(counter) => {
                counter.fetch_add(1, Ordering::Relaxed);
                self.posted.drop_frame(1);
            }
        }
        true
    }
}

impl ReceiveQueue for NfpReceive {
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
        Bell::arm(self.bell.as_ref(), || self.look().is_some())
    }

    fn disarm(&mut self) {
        Bell::disarm(self.bell.as_ref());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::Words;
    use super::*;
    use crate::memory::DmaMemory;
    use crate::memory::dma::tests::{FakeMap, OFFSET};
    use crate::registers::Registers;

    const LAYOUT: ReceiveLayout = ReceiveLayout { offset: 0, chained: true, buffer: 1664 };
    const DONE: u64 = 1 << 31;

    struct Ring {
        words: Arc<Words>,
        base: u64,
        device: u16,
        given: u32,
        counters: Arc<ReceiveCounters>,
    }

    fn queue(buffers: usize, layout: ReceiveLayout) -> (NfpReceive, Ring) {
        let sizes = [usize::from(RING) * descriptor::WORD, buffers * layout.buffer as usize];
        let memory = DmaMemory::new(Arc::new(FakeMap::default()), DmaMemory::needed(&sizes), "test").unwrap();
        let [ring, pool] = memory.carve(sizes).unwrap();
        let (words, counters) = (Arc::new(Words::default()), Arc::new(ReceiveCounters::default()));
        let base = ring.iova() - OFFSET;
        let free_list = Queue::new(Arc::clone(&words) as Arc<dyn Registers>, 0);
        let queue = NfpReceive::new(free_list, ring, pool, layout, true, Arc::clone(&counters));
        (queue, Ring { words, base, device: 0, given: 0, counters })
    }

    impl Ring {
        /// Plays the device: puts `bytes` into the next buffer and says of it what `word` says; `false` where it has none.
        fn fill(&mut self, bytes: &[u8], word: u64) -> bool {
            self.given += self.words.take_sum(super::super::registers::ADD_WPTR);
            if self.given == 0 {
                return false;
            }
            let descriptor = (self.base + u64::from(self.device) * 8) as *mut u64;
            // SAFETY: the queue keeps the ring and its buffers mapped; the test is single-threaded.
            unsafe {
                let free = descriptor.read_volatile();
                assert_eq!(free & 0xffff_0000, 0, "reserved");
                // The test's addresses have more bits than a descriptor: the rest is that of the ring.
                let high = (self.base + OFFSET) & !0xffff_ffff_ffff;
                let buffer = ((high | (free & 0xffff) << 32 | free >> 32) - OFFSET) as *mut u8;
                buffer.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len().min(1664));
                descriptor.write_volatile(word);
            }
            self.device = (self.device + 1) & (RING - 1);
            self.given -= 1;
            true
        }

        fn errors(&self) -> (u64, u64, u64) {
            let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            let ReceiveCounters { bad_length, bad_metadata, stripped } = &*self.counters;
            (read(bad_length), read(bad_metadata), read(stripped))
        }
    }

    fn lengths(burst: &Burst) -> Vec<u32> {
        burst.frames().iter().map(|(frame, _)| frame.len()).collect()
    }

    fn release_all(queue: &mut NfpReceive, burst: &mut Burst) {
        for (frame, _) in burst.frames().iter() {
            queue.release(frame.token());
        }
        burst.clear();
    }

    #[test]
    fn a_frame_starts_behind_its_metadata_or_where_it_always_does() {
        let bytes = [&[0, 0, 0, 0x51, 1, 2, 3, 4][..], &[7; 60]].concat();
        let (mut dynamic, mut ring) = queue(1500, LAYOUT);
        let mut burst = Burst::new();
        assert!(ring.fill(&bytes, DONE | 8 << 24 | 68));
        assert!(ring.fill(&bytes[8..], DONE | 60 | 0x78 << 32));
        dynamic.receive(&mut burst);
        let mut frame = [0; 60];
        for (n, (seen, segments)) in burst.frames().iter().enumerate() {
            assert_eq!((seen.len(), segments[0].copy_to(&mut frame), frame), (60, 60, [7; 60]));
            assert_eq!(seen.offload().checksum == Checksum::Valid, n == 1);
        }
        assert_eq!(burst.len(), 2);
        let (mut fixed, mut ring) = queue(1500, ReceiveLayout { offset: 16, ..LAYOUT });
        assert!(ring.fill(&[&[9; 8][..], &bytes].concat(), DONE | 8 << 24 | 68));
        burst.clear();
        fixed.receive(&mut burst);
        let frames = burst.frames();
        let (_, segments) = frames.iter().next().unwrap();
        assert_eq!((segments[0].copy_to(&mut frame), frame), (60, [7; 60]));
    }

    #[test]
    fn what_cannot_be_is_dropped_by_its_reason() {
        let (mut queue, mut ring) = queue(1500, LAYOUT);
        let mut burst = Burst::new();
        for word in [13, 0, 1665, 0xffff, 8 << 24 | 7, 8 << 24 | 21] {
            ring.fill(&[0; 16], DONE | word);
        }
        ring.fill(&[], DONE | 68 << 24 | 200);
        ring.fill(&[0, 0, 0, 3, 0, 0, 0, 0], DONE | 8 << 24 | 100);
        ring.fill(&[0; 8], DONE | 8 << 24 | 100);
        ring.fill(&[], DONE | 1 << 32 | 100);
        ring.fill(&[], DONE | 60);
        queue.receive(&mut burst);
        assert_eq!((lengths(&burst), ring.errors()), (vec![60], (6, 3, 1)));
    }

    #[test]
    fn the_ring_is_never_full_and_one_doorbell_gives_it_a_quarter_of_its_buffers() {
        let (mut queue, mut ring) = queue(1500, LAYOUT);
        let at = super::super::registers::ADD_WPTR;
        assert_eq!((ring.words.writes(at), ring.words.sum(at)), (1, 1016));
        for burst in 1..=RING / 4 / 32 {
            assert_eq!(ring.words.writes(at), 1, "before burst {burst}");
            for _ in 0..32 {
                ring.fill(&[], DONE | 64);
            }
            queue.receive(&mut Burst::new());
        }
        assert_eq!((ring.words.writes(at), ring.words.sum(at), ring.words.reads()), (2, 256, 0));
    }

    #[test]
    fn a_ring_runs_dry_when_nothing_is_released_and_recovers() {
        let (mut queue, mut ring) = queue(1100, LAYOUT);
        let mut bursts: Vec<Burst> = Vec::new();
        while ring.fill(&[], DONE | 64) {
            let mut burst = Burst::new();
            queue.receive(&mut burst);
            bursts.push(burst);
        }
        assert_eq!(bursts.iter().map(Burst::len).sum::<usize>(), 1100);
        bursts.iter_mut().for_each(|burst| release_all(&mut queue, burst));
        queue.receive(&mut Burst::new());
        assert!(ring.fill(&[], DONE | 64));
    }

    proptest! {
        #[test]
        fn no_device_makes_it_lose_a_buffer_or_leave_one(
            steps in prop::collection::vec((any::<u64>(), prop::collection::vec(any::<u8>(), 0..70), 0u8..4), 1..300),
            offset in 0u32..64, chained: bool,
        ) {
            let (mut queue, mut ring) = queue(1060, ReceiveLayout { offset, chained, ..LAYOUT });
            let mut burst = Burst::new();
            for (word, bytes, step) in steps {
                match step {
                    0 => queue.receive(&mut burst),
                    1 => release_all(&mut queue, &mut burst),
                    _ => { ring.fill(&bytes, word); }
                }
                for (frame, segments) in burst.frames().iter() {
                    prop_assert!(frame.len() >= MIN_FRAME && frame.len() <= LAYOUT.buffer);
                    prop_assert_eq!(segments.len(), 1);
                }
                prop_assert_eq!(queue.posted.free() + usize::from(queue.posted.len()) + burst.len(), 1060);
            }
        }
    }
}
