//! The queues against devices that write whatever they like, and against one that keeps to the rules in any order.

use std::collections::VecDeque;
use std::ptr::NonNull;

use proptest::prelude::*;

use super::*;
use crate::device::{Accepted, ReceiveQueue, TransmitQueue};
use crate::frame::{Burst, MIN_FRAME, Segment, Token};
use crate::memory::BUFFER_SIZE;
use crate::memory::dma::tests::{FakeMap, OFFSET};
use crate::offload::{Capabilities, Offload, Segmentation};
use crate::registers::Registers;
use transport::Doorbell;
use tx::FEWEST_SLOTS;

const SIZE: u16 = 16;
const BUFFERS: usize = 40;

/// Nobody reads it.
#[derive(Debug)]
struct Deaf;

impl Registers for Deaf {
    fn read(&self, _: u32) -> u32 {
        unreachable!("the queues read no register")
    }

    fn write(&self, _: u32, _: u32) {}
}

/// The device's side of a ring: raw memory.
struct Raw {
    areas: [u64; 3],
    packed: bool,
    /// Split: used index. Packed: slot and wrap bit of the next used descriptor.
    used: u16,
    wrap: bool,
    /// The same of the next available one.
    next: u16,
    next_wrap: bool,
}

impl Raw {
    fn at(&self, area: usize, offset: u64) -> *mut u8 {
        (self.areas[area] - OFFSET + offset) as *mut u8
    }

    fn put<T>(&self, area: usize, offset: u64, value: T) {
        // SAFETY: the tests keep the ring mapped, and stay inside it; they are single-threaded.
        unsafe { self.at(area, offset).cast::<T>().write_unaligned(value) };
    }

    fn get<T>(&self, area: usize, offset: u64) -> T {
        // SAFETY: as above.
        unsafe { self.at(area, offset).cast::<T>().read_unaligned() }
    }

    /// Says that buffer `id` is done; `slots` is how many descriptors it had.
    fn use_up(&mut self, id: u16, len: u32, slots: u16) {
        if self.packed {
            let at = 16 * u64::from(self.used);
            self.put(0, at + 8, len);
            self.put(0, at + 12, id);
            self.put(0, at + 14, if self.wrap { AVAILABLE | USED } else { 0 });
            self.used += slots;
            if self.used >= SIZE {
                (self.used, self.wrap) = (self.used - SIZE, !self.wrap);
            }
        } else {
            self.put(2, 4 + 8 * u64::from(self.used % SIZE), u64::from(id) | u64::from(len) << 32);
            self.used = self.used.wrapping_add(1);
            self.put(2, 2, self.used);
        }
    }

    /// The next buffer that was made available: its id and its pieces.
    fn take(&mut self) -> Option<(u16, Vec<(u64, u32)>)> {
        let mut pieces = Vec::new();
        let descriptor = |raw: &Self, slot: u16| -> (u64, u32, u16, u16) {
            let at = 16 * u64::from(slot);
            (raw.get(0, at), raw.get(0, at + 8), raw.get(0, at + 12), raw.get(0, at + 14))
        };
        if !self.packed {
            if self.get::<u16>(1, 2) == self.next {
                return None;
            }
            let id = self.get(1, 4 + 2 * u64::from(self.next % SIZE));
            self.next = self.next.wrapping_add(1);
            let mut slot = id;
            loop {
                let (iova, len, flags, next) = descriptor(self, slot);
                pieces.push((iova, len));
                if flags & NEXT == 0 {
                    return Some((id, pieces));
                }
                slot = next;
            }
        }
        loop {
            let (iova, len, id, flags) = descriptor(self, self.next);
            if flags & (AVAILABLE | USED) != if self.next_wrap { AVAILABLE } else { USED } {
                assert!(pieces.is_empty(), "half a chain");
                return None;
            }
            pieces.push((iova, len));
            self.next += 1;
            if self.next == SIZE {
                (self.next, self.next_wrap) = (0, !self.next_wrap);
            }
            if flags & NEXT == 0 {
                return Some((id, pieces));
            }
        }
    }
}

fn parts(packed: bool, more: &[u32], filled: u32, spare: usize) -> (Parts, DmaSlice, Raw) {
    let bits = more.iter().map(|bit| 1u64 << bit).sum::<u64>() | u64::from(packed) << RING_PACKED;
    let layout = Layout { size: SIZE, features: Features(bits), filled };
    let sizes = [layout.bytes(), spare];
    let memory = DmaMemory::new(Arc::new(FakeMap::default()), DmaMemory::needed(&sizes), "test").unwrap();
    let [ring, buffers] = memory.carve(sizes).unwrap();
    let ring = Ring::new(ring, layout);
    let raw = Raw { areas: ring.areas(), packed, used: 0, wrap: true, next: 0, next_wrap: true };
    let doorbell = Doorbell::new(Arc::new(Deaf), 0, 0, false);
    let health = Arc::<Health>::default();
    (Parts { ring, size: SIZE, doorbell, counters: Arc::default(), health }, buffers, raw)
}

/// Common configuration whose queues are all notified at one offset.
#[derive(Debug)]
struct Common(u16);

impl Registers for Common {
    fn read(&self, _: u32) -> u32 {
        0
    }

    fn read16(&self, _: u32) -> u16 {
        self.0
    }

    fn write(&self, _: u32, _: u32) {}
}

#[test]
fn a_place_for_notifications_that_is_none_is_named() {
    let doorbell = |notify_off, multiplier, start, bits: u64| {
        let mapped = capabilities::Mapped {
            common: Arc::new(Common(notify_off)),
            notify: (Arc::new(Deaf), 0x100, start),
            device: (Arc::new(Deaf), 8),
            multiplier,
        };
        let text = Transport::new(mapped).doorbell(3, Features(bits)).map(|_| String::new());
        text.unwrap_or_else(|cause| cause.to_string())
    };
    let data = 1 << NOTIFICATION_DATA;
    assert_eq!((doorbell(1, 2, 0x3000, 0), doorbell(1, 4, 0x3000, data)), (String::new(), String::new()));
    assert!(doorbell(1, 3, 0x3000, 0).contains("at 0x3003 of the BAR, which is no multiple of the 2 bytes"));
    assert!(doorbell(1, 2, 0x3000, data).contains("at 0x3002 of the BAR, which is no multiple of the 4"));
    assert!(
        doorbell(1, 4, 0x3002, data).contains("at 0x3006"),
        "the area itself is at an odd place for that"
    );
    assert!(doorbell(0xffff, 0xffff_ffff, 0x3000, 0).contains("of a notification area of 0x100 bytes"));
}

#[test]
fn all_that_it_says_it_cuts_is_sent_and_what_is_longer_is_not() {
    let capabilities = Features(u64::MAX).capabilities();
    for (len, sent) in [(capabilities.limits.cut, true), (capabilities.limits.cut + 1, false)] {
        let bytes = SlotBuffers::bytes(FEWEST_SLOTS);
        let (parts, memory, _) = parts(false, &[], 0, bytes);
        let counters = Arc::clone(&parts.counters);
        let mut queue = VirtioTransmit::new(parts, memory, FEWEST_SLOTS, 1514, capabilities);
        let mut frame = vec![7; len as usize];
        // SAFETY: the frame outlives the burst.
        let whole = unsafe { Segment::new(NonNull::from(&mut frame[0]).cast(), len) };
        let mut burst = Burst::new();
        let segmentation = Segmentation::TcpV4;
        assert!(burst.push_whole(
            whole,
            Token(0),
            Offload { segmentation, segment_size: 1000, ..Offload::NONE }
        ));
        assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(1));
        assert_eq!((queue.in_flight().1 > 0, counters.errors()), (sent, u64::from(!sent)));
    }
}

#[test]
fn a_short_frame_is_filled_up_unless_it_is_cut() {
    for (segmentation, sent) in [(Segmentation::None, 60), (Segmentation::TcpV4, 57)] {
        let bytes = SlotBuffers::bytes(FEWEST_SLOTS);
        let (parts, memory, mut raw) = parts(false, &[], 0, bytes);
        let mut queue = VirtioTransmit::new(parts, memory, FEWEST_SLOTS, 1514, Capabilities::ALL);
        let mut frame = [7; 57];
        // SAFETY: the frame outlives the burst.
        let whole = unsafe { Segment::new(NonNull::from(&mut frame[0]).cast(), 57) };
        let mut burst = Burst::new();
        let segment_size = u16::from(segmentation != Segmentation::None);
        assert!(burst.push_whole(whole, Token(0), Offload { segmentation, segment_size, ..Offload::NONE }));
        assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(1));
        let (_, pieces) = raw.take().unwrap();
        assert_eq!(pieces.iter().map(|(_, len)| len).sum::<u32>(), 12 + sent);
    }
}

proptest! {
    #[test]
    fn no_device_makes_it_deliver_nonsense_or_lend_a_buffer_twice(
        packed: bool, event_idx: bool, in_order: bool, merged: bool,
        steps in prop::collection::vec((0u8..6, any::<u16>(), any::<u32>()), 1..200),
    ) {
        let more = [(EVENT_IDX, event_idx), (IN_ORDER, in_order)];
        let more: Vec<u32> = more.iter().filter(|(_, on)| *on).map(|(bit, _)| *bit).collect();
        let bytes = BUFFERS * BUFFER_SIZE as usize;
        let (parts, buffers, mut raw) = parts(packed, &more, BUFFER_SIZE, bytes);
        let base = (buffers.iova() - OFFSET) as *mut u8;
        let mut queue = VirtioReceive::new(parts, buffers, BUFFER_SIZE, merged, None);
        let mut burst = Burst::new();
        for (step, a, b) in steps {
            match step {
                0 => queue.receive(&mut burst),
                1 => {
                    burst.frames().iter().for_each(|(frame, _)| queue.release(frame.token()));
                    burst.clear();
                }
                // A header somewhere, and something used: rightly, with any length, or anything.
                2 => {
                    let header = [(b >> 8) as u8 & 3, (b >> 16) as u8 & 7, 0, 0, 9, 0, 20, 0, 6, 0, b as u8 % 4, 0];
                    // SAFETY: inside the buffers, which the queue keeps mapped.
                    unsafe {
                        let at = base.add(usize::from(a) % BUFFERS * BUFFER_SIZE as usize);
                        at.cast::<[u8; 12]>().write_unaligned(header);
                    }
                }
                3 => raw.use_up(a % SIZE, 26 + b % 2100, 1),
                4 => raw.use_up(a % SIZE, BUFFER_SIZE, 1),
                _ => raw.use_up(a, b, 1),
            }
            let mut pieces = Vec::new();
            for (frame, segments) in burst.frames().iter() {
                prop_assert!(frame.len() >= MIN_FRAME);
                for segment in segments {
                    let from = segment.as_ptr() as usize - base as usize;
                    prop_assert!(from + segment.len() as usize <= bytes);
                    pieces.push(from / BUFFER_SIZE as usize);
                    prop_assert!(segment.len() as usize <= BUFFER_SIZE as usize - from % BUFFER_SIZE as usize);
                }
            }
            let lent = pieces.len();
            pieces.sort_unstable();
            pieces.dedup();
            prop_assert_eq!(pieces.len(), lent, "a buffer was lent twice");
            prop_assert!(queue.free_buffers() + lent <= BUFFERS);
        }
    }

    #[test]
    fn what_is_sent_holds_still_until_it_comes_back_in_any_order(
        packed: bool,
        steps in prop::collection::vec((prop::collection::vec(14usize..9000, 0..6), any::<u16>(), any::<bool>()), 1..80),
    ) {
        const SLOTS: u16 = 16;
        let (parts, slots, mut raw) = parts(packed, &[], 0, SlotBuffers::bytes(SLOTS));
        let health = Arc::clone(&parts.health);
        let mut queue = VirtioTransmit::new(parts, slots, SLOTS, 9018, Capabilities::NONE);
        let (mut mark, mut expected, mut sent) = (0u8, VecDeque::new(), VecDeque::new());
        let read = |pieces: &[(u64, u32)]| -> Vec<u8> {
            let mut bytes = Vec::new();
            for (iova, len) in pieces {
                let from = (iova - OFFSET) as *const u8;
                // SAFETY: the queue keeps its slots mapped, and the bytes are inside.
                bytes.extend((0..*len as usize).map(|n| unsafe { from.add(n).read() }));
            }
            bytes
        };
        for (lengths, which, backwards) in steps {
            let mut burst = Burst::new();
            let mut frames: Vec<Vec<u8>> = lengths.iter().map(|len| {
                mark = mark.wrapping_add(1);
                vec![mark; *len]
            }).collect();
            for frame in &mut frames {
                let ptr = NonNull::new(frame.as_mut_ptr()).unwrap();
                // SAFETY: the frames outlive the burst.
                let whole = unsafe { Segment::new(ptr, frame.len() as u32) };
                prop_assert!(burst.push(whole, Token(0)));
            }
            let Accepted::Copied(taken) = queue.transmit(burst.frames()) else { panic!() };
            expected.extend(frames.into_iter().take(taken));
            while let Some((id, pieces)) = raw.take() {
                let mut whole: Vec<u8> = expected.pop_front().unwrap();
                whole.resize(whole.len().max(60), 0);
                sent.push_back((id, pieces, [vec![0; 12], whole].concat()));
            }
            prop_assert!(expected.is_empty(), "all that was taken is there");
            for n in 0..usize::from(which) % 4 {
                let at = if backwards { sent.len().wrapping_sub(1) } else { (usize::from(which) >> 4) + n };
                let Some((id, pieces, whole)) = sent.remove(at % sent.len().max(1)) else { break };
                prop_assert!(read(&pieces) == whole);
                raw.use_up(id, 0, pieces.len() as u16);
            }
        }
        for (id, pieces, whole) in sent {
            prop_assert!(read(&pieces) == whole);
            raw.use_up(id, 0, pieces.len() as u16);
        }
        queue.reclaim(&mut crate::Completions::new());
        prop_assert_eq!(queue.in_flight(), (0, 0));
        prop_assert_eq!(health.complaint(), None);
    }

    #[test]
    fn no_device_makes_it_send_from_slots_in_use(
        packed: bool,
        steps in prop::collection::vec((0u8..3, any::<u16>(), any::<u32>()), 1..200),
    ) {
        const SLOTS: u16 = 16;
        let (parts, slots, mut raw) = parts(packed, &[], 0, SlotBuffers::bytes(SLOTS));
        let mut queue = VirtioTransmit::new(parts, slots, SLOTS, 9018, Capabilities::NONE);
        let mut frame = vec![1u8; 9018];
        for (step, a, b) in steps {
            match step {
                0 => {
                    let mut burst = Burst::new();
                    let len = 60 + b % 8900;
                    // SAFETY: the frame outlives the burst.
                    burst.push(unsafe { Segment::new(NonNull::new(frame.as_mut_ptr()).unwrap(), len) }, Token(0));
                    queue.transmit(burst.frames());
                }
                1 => raw.use_up(a % SIZE, b, 1),
                _ => raw.use_up(a, b, 1 + a % 2),
            }
            let (slots, descriptors) = queue.in_flight();
            prop_assert!(slots <= SLOTS && descriptors <= SIZE);
        }
    }
}

#[test]
fn a_batch_of_buffers_comes_back_under_the_name_of_its_last() {
    for packed in [false, true] {
        let (mut parts, _, mut raw) = parts(packed, &[IN_ORDER], 100, 64);
        let piece = ring::Piece { iova: 64, len: 100, write: true };
        for lap in 0..40u16 {
            let ids = [lap * 3 % SIZE, (lap * 3 + 1) % SIZE, (lap * 3 + 2) % SIZE];
            ids.iter().for_each(|id| parts.ring.give(*id, &[piece]));
            parts.ring.show();
            raw.use_up(ids[2], 7, 3);
            if !packed {
                raw.used = raw.used.wrapping_add(2);
                raw.put(2, 2, raw.used);
            }
            let lens: Vec<_> =
                std::iter::from_fn(|| parts.ring.take().unwrap()).map(|used| (used.id, used.len)).collect();
            assert_eq!(lens, [(ids[0], 100), (ids[1], 100), (ids[2], 7)]);
        }
    }
}
