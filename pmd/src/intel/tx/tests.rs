//! The transmit ring against a double of the device.

use super::*;
use crate::device::DeviceError;
use crate::frame::{Burst, Token};
use crate::igbvf::double::Double;
use crate::igbvf::registers::{RINGS, RINGS_82576};
use crate::intel::descriptor;
use crate::intel::family::ENABLE;
use crate::memory::dma::DmaMemory;
use crate::memory::dma::tests::{FakeMap, OFFSET};
use crate::memory::guest::tests::Pages;
use crate::memory::{DmaAccess, DmaMap};
use crate::offload::limits::tests as limits;
use crate::offload::{Checksum, Offload};
use crate::registers::Caching;
use proptest::prelude::*;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::AtomicBool;

const TDT: u32 = RINGS_82576.transmit_at(0, ring::TAIL);
const TXDCTL: u32 = RINGS_82576.transmit_at(0, ring::CONTROL);
const TXDCTL_THRESHOLDS: u32 = RINGS_82576.txdctl;

struct Ring {
    double: Arc<Double>,
    base: u64,
    device: u16,
    /// Descriptors that asked for a report.
    reports: usize,
    /// Where the bytes of each descriptor were.
    places: Vec<u64>,
    /// Context descriptors, and the data descriptors' upper halves at the end of each frame.
    contexts: Vec<[u64; 2]>,
    ends: Vec<u64>,
    counters: Arc<TransmitCounters>,
}

fn queue() -> (IntelTransmit, Ring) {
    let sizes = [usize::from(RING) * descriptor::SIZE, usize::from(RING) * BUFFER_SIZE as usize];
    let memory = DmaMemory::new(Arc::new(FakeMap::default()), sizes.iter().sum(), "test").unwrap();
    let [ring, buffers] = memory.carve(sizes).unwrap();
    let (double, counters) = (Double::new(), Arc::new(TransmitCounters::default()));
    let base = ring.iova() - OFFSET;
    let registers = Arc::clone(&double) as Arc<dyn Registers>;
    let queue = IntelTransmit::new(registers, &RINGS_82576, 0, [ring, buffers], 9724, Arc::clone(&counters));
    (
        queue,
        Ring {
            double,
            base,
            device: 0,
            reports: 0,
            places: Vec::new(),
            contexts: Vec::new(),
            ends: Vec::new(),
            counters,
        },
    )
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
                let word = descriptor.add(1).read_volatile();
                if word >> 20 & 0xf == 2 {
                    self.contexts.push([descriptor.read_volatile(), word]);
                    self.device = (self.device + 1) & MASK;
                    continue;
                }
                self.places.push(descriptor.read_volatile() - OFFSET);
                let buffer = (descriptor.read_volatile() - OFFSET) as *const u8;
                let len = word as u16;
                assert!(len > 0);
                bytes.extend((0..usize::from(len)).map(|n| buffer.add(n).read()));
                if word & 1 << 24 != 0 {
                    // What is to be cut counts without its headers.
                    assert!(bytes.len() as u64 == word >> 46 || word & 1 << 31 != 0);
                    self.ends.push(word);
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
fn reaching_queue(count: usize) -> (IntelTransmit, Ring, Arc<Pages>) {
    let (mut queue, ring) = queue();
    let (pages, map) = (Pages::new(count), Arc::new(FakeMap::default()));
    queue.set_guest_memory(Arc::new(GuestWindows::new(vec![pages.window(&map, 1, count - 1)])));
    (queue, ring, pages)
}

fn reclaimed(queue: &mut IntelTransmit) -> Vec<u32> {
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
    let mut frames =
        [vec![vec![1; 14]], vec![vec![2; 2000], vec![3; 96]], vec![long[..5000].into(), long[5000..].into()]];
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
fn copied_frames_ask_for_a_report_every_32_descriptors_while_one_is_awaited() {
    let (mut queue, mut ring) = queue();
    for _ in 0..320 {
        assert_eq!(queue.transmit(burst(&mut [vec![vec![1; 64]]]).frames()), Accepted::Copied(1));
    }
    assert_eq!((ring.send().len(), ring.reports), (320, 10));
}

#[test]
fn as_long_as_the_device_has_frames_one_of_them_will_report() {
    let (mut queue, mut ring) = queue();
    for n in 1..=5 {
        assert_eq!(queue.transmit(burst(&mut [vec![vec![1; 64]]]).frames()), Accepted::Copied(1));
        ring.send();
        assert_eq!(ring.reports, n);
    }
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
    ring.double.write(TXDCTL, ENABLE | TXDCTL_THRESHOLDS);
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

/// A device that does not switch its queue off, and the function that it is.
#[derive(Debug)]
struct Stuck {
    double: Arc<Double>,
    /// It may master the bus.
    master: AtomicBool,
    /// Its configuration space cannot be written.
    refuses: bool,
    resets: AtomicU64,
}

impl Registers for Stuck {
    fn read(&self, offset: u32) -> u32 {
        if offset == TXDCTL { ENABLE } else { self.double.read(offset) }
    }

    fn write(&self, offset: u32, value: u32) {
        self.double.write(offset, value);
    }
}

impl DmaMap for Stuck {
    unsafe fn map(&self, _: *mut u8, _: usize, _: usize, _: DmaAccess) -> Result<u64, DeviceError> {
        Err(DeviceError::Unsupported("no memory is mapped here".to_owned()))
    }

    fn unmap(&self, _: u64, _: usize) {}
}

impl PciFunction for Stuck {
    fn reset(&self) -> io::Result<()> {
        self.resets.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn set_bus_master(&self, on: bool) -> io::Result<()> {
        if self.refuses {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.master.store(on, Ordering::Relaxed);
        Ok(())
    }

    fn bar(self: Arc<Self>, _: u8, _: u64, _: usize, _: Caching) -> Result<Arc<dyn Registers>, DeviceError> {
        Ok(self)
    }

    fn shares_address_space(&self) -> bool {
        false
    }

    fn removal_requested(&self) -> bool {
        false
    }
}

#[test]
fn a_guest_gets_memory_back_only_from_a_device_that_cannot_read_it_any_more() {
    for refuses in [false, true] {
        let (mut queue, ring, pages) = reaching_queue(2);
        let (double, master) = (Arc::clone(&ring.double), AtomicBool::new(true));
        let stuck = Arc::new(Stuck { double, master, refuses, resets: AtomicU64::new(0) });
        queue.registers = Arc::clone(&stuck) as Arc<dyn Registers>;
        let mut queue = queue.of(Arc::clone(&stuck) as Arc<dyn PciFunction>);
        let mut burst = Burst::new();
        assert!(burst.push(pages.segment(4096, 64), Token(7)));
        assert_eq!(queue.transmit(burst.frames()), Accepted::Borrowed(1));
        let mut done = Completions::new();
        queue.abort(&mut done);
        assert_eq!(done[..], [Token(7)]);
        let kept_off = (!stuck.master.load(Ordering::Relaxed), stuck.resets.load(Ordering::Relaxed));
        assert_eq!(kept_off, (!refuses, u64::from(refuses)));
    }
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
    ring.double.write(TXDCTL, ENABLE | TXDCTL_THRESHOLDS);
    queue.abort(&mut Completions::new());
    assert_eq!(ring.double.read(TXDCTL), TXDCTL_THRESHOLDS);
    assert_eq!(queue.transmit(burst(&mut [vec![vec![1; 60]]]).frames()), Accepted::Copied(0));
    assert_eq!(queue.outstanding(), 0);
}

proptest! {
    #[test]
    fn no_device_makes_it_lose_a_frame_or_give_one_back_twice(
        steps in prop::collection::vec((0u8..4, any::<u16>(), any::<u64>(), 1usize..6), 1..300)
    ) {
        let (mut queue, ring, pages) = reaching_queue(20);
        let (frame, offload) = tcp(20_000, 1000);
        let long = pages.segment(4096, frame.len() as u32);
        long.copy_from(&frame);
        let short = pages.segment(8192, 64);
        let (mut given, mut back) = (Vec::new(), Vec::new());
        for (step, slot, word, count) in steps {
            match step {
                0 => {
                    let mut burst = Burst::new();
                    for n in 0..count {
                        let token = Token((given.len() + n) as u32);
                        let pushed = match n % 2 {
                            0 => burst.push_whole(short, token, Offload::NONE),
                            _ => burst.push_whole(long, token, offload),
                        };
                        prop_assert!(pushed);
                    }
                    let Accepted::Borrowed(n) = queue.transmit(burst.frames()) else { panic!() };
                    given.extend(burst.frames().take(n).iter().map(|(frame, _)| frame.token().0));
                }
                1 => back.extend(reclaimed(&mut queue)),
                // A device that writes where it likes; every other time it says that it is done.
                _ => {
                    let at = (ring.base + u64::from(slot & MASK) * 16) as *mut u64;
                    // SAFETY: the queue keeps the ring mapped; the test is single-threaded.
                    unsafe { at.add(1).write_volatile(if step == 2 { word } else { word | 1 << 32 }) };
                }
            }
        }
        while queue.outstanding() > 0 {
            let mut done = Completions::new();
            queue.abort(&mut done);
            prop_assert!(!done.is_empty());
            back.extend(done.iter().map(|token| token.0));
        }
        prop_assert_eq!(back, given);
    }

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

/// A frame of TCP over IPv4 with these payload bytes, and what is left to do for it.
fn tcp(payload: usize, segment_size: u16) -> (Vec<u8>, Offload) {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(((40 + payload) as u16).to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 6, 0xab, 0xcd, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 9, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0x55, 0x55, 0, 0]);
    frame.extend((0..payload).map(|n| n as u8));
    let segmentation = if segment_size == 0 { Segmentation::None } else { Segmentation::TcpV4 };
    let checksum = Checksum::Partial { start: 34, offset: 16 };
    (frame, Offload { checksum, segmentation, segment_size, header_length: 54, ..Offload::NONE })
}

fn burst_with(pieces: &[Segment], offload: Offload) -> Burst {
    let mut burst = Burst::new();
    pieces.iter().for_each(|piece| burst.push_segment(*piece).unwrap());
    assert!(burst.finish_frame_with(Token(9), offload));
    burst
}

fn whole(bytes: &mut [u8]) -> Segment {
    // SAFETY: the tests keep the bytes while the segment is used.
    unsafe { Segment::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), bytes.len() as u32) }
}

#[test]
fn all_within_its_limits_is_sent_and_what_lies_outside_is_not() {
    let (inside, outside) = limits::edges(&queue().0.capabilities().limits);
    for (sent, frames) in [(true, inside), (false, outside)] {
        for (mut frame, offload) in frames {
            let (mut queue, ring) = queue();
            assert_eq!(
                queue.transmit(burst_with(&[whole(&mut frame)], offload).frames()),
                Accepted::Copied(1)
            );
            let refused = ring.counters.errors.load(Ordering::Relaxed);
            assert_eq!((queue.tail > 0, refused), (sent, u64::from(!sent)), "{offload:?}");
        }
    }
}

#[test]
fn a_context_is_written_when_it_changes_and_two_are_kept() {
    let (mut queue, mut ring) = queue();
    let mut slots = Vec::new();
    for size in [0, 1000, 0, 1000, 0, 500, 0, 500, 1000] {
        let (mut frame, offload) = tcp(3000, size);
        assert_eq!(queue.transmit(burst_with(&[whole(&mut frame)], offload).frames()), Accepted::Copied(1));
        ring.send();
        slots.push((ring.contexts.len(), ring.ends.last().unwrap() >> 36 & 1));
    }
    assert_eq!(slots, [(1, 1), (2, 0), (2, 1), (2, 0), (2, 1), (3, 0), (3, 1), (3, 0), (4, 1)]);
    assert_eq!(ring.contexts[0], [14 << 9 | 20, 0x0010_2020_0c00], "{:x?}", ring.contexts[0]);
    assert_eq!(ring.double.reads(), 0);
}

#[test]
fn a_frame_of_64_kib_goes_out_in_37_descriptors_at_most() {
    let (mut queue, mut ring) = queue();
    let (mut frame, offload) = tcp(65535 - 40, 1448);
    let burst = burst_with(&[whole(&mut frame)], offload);
    assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(1));
    let sent = ring.send();
    assert_eq!((sent[0].len(), ring.places.len(), ring.double.writes(TDT)), (65549, 33, 1));
    assert_eq!(ring.ends[0] >> 46, 65495, "the headers do not count");
    assert_eq!((&sent[0][16..18], &sent[0][24..26]), (&[0, 0][..], &[0, 0][..]));
    assert!(sent[0][54..] == frame[54..]);
}

#[test]
fn headers_are_sent_from_a_copy_even_where_the_device_reaches_them() {
    let (mut queue, mut ring, pages) = reaching_queue(20);
    let (frame, offload) = tcp(60_000, 1448);
    let segment = pages.segment(4096, frame.len() as u32);
    segment.copy_from(&frame);
    let burst = burst_with(&[segment], offload);
    assert_eq!((queue.transmit(burst.frames()), queue.outstanding()), (Accepted::Borrowed(1), 1));
    // Its owner thinks better of it.
    segment.copy_from(&[0xff; 54]);
    let sent = ring.send();
    assert_eq!(sent[0][..14], frame[..14]);
    assert!(sent[0][54..] == frame[54..]);
    let inside = |place: &&u64| {
        (segment.as_ptr() as u64..).contains(place) && **place < segment.as_ptr() as u64 + 65536
    };
    assert_eq!((ring.places.len(), ring.places.iter().filter(inside).count()), (3, 2), "32 KiB a descriptor");
    assert_eq!(reclaimed(&mut queue), [9]);
}

#[test]
fn a_frame_that_is_filled_up_is_summed_up_here_and_one_that_is_cut_is_told_to_the_byte() {
    for in_place in [false, true] {
        let (mut queue, mut ring, pages) = reaching_queue(3);
        if !in_place {
            queue.set_guest_memory(Arc::default());
        }
        for (payload, size, contexts) in [(2, 0, 0), (2, 1, 1), (6, 0, 2)] {
            let (frame, offload) = tcp(payload, size);
            let segment = pages.segment(4096, frame.len() as u32);
            segment.copy_from(&frame);
            queue.transmit(burst_with(&[segment], offload).frames());
            let sent = ring.send();
            assert_eq!(ring.contexts.len(), contexts, "{payload} {size}");
            assert_eq!(sent[0].len(), if size == 0 { 60 } else { frame.len() });
            assert_eq!(sent[0][50..52] != frame[50..52], contexts < 2, "its checksum");
        }
    }
}

#[test]
fn what_the_device_cannot_do_is_counted_and_not_sent() {
    let (mut queue, mut ring, _) = reaching_queue(3);
    let (frame, offload) = tcp(3000, 1448);
    let elsewhere = Offload { checksum: Checksum::Partial { start: 34, offset: 6 }, ..offload };
    let udp = Offload { segmentation: Segmentation::Udp, ..offload };
    let long = Offload { segment_size: 9700, ..tcp(9999, 9700).1 };
    for (mut frame, offload) in [
        (frame.clone(), elsewhere),
        (frame, udp),
        (tcp(9999, 9700).0, long),
        tcp(65536, 1448),
        tcp(9700, 0),
        (vec![0; 60], tcp(0, 0).1),
    ] {
        let burst = burst_with(&[whole(&mut frame)], offload);
        assert_eq!(queue.transmit(burst.frames()), Accepted::Copied(1));
    }
    assert_eq!((ring.send().len(), ring.counters.errors.load(Ordering::Relaxed)), (0, 6));
    assert_eq!(queue.outstanding(), 0);
}

#[test]
fn a_family_that_looks_at_contexts_always_gets_one_for_plain_frames_too() {
    static FAMILY: Family = Family { always_context: true, ..RINGS };
    let (queue, mut ring) = queue();
    let mut queue = IntelTransmit { family: &FAMILY, ..queue };
    for _ in 0..3 {
        let mut frames: Vec<_> = (0..32).map(|n| vec![vec![n; 64]]).collect();
        assert_eq!(queue.transmit(burst(&mut frames).frames()), Accepted::Copied(32));
        assert_eq!(ring.send().len(), 32);
    }
    assert_eq!(ring.contexts.len(), 1, "once");
    assert!(ring.ends.iter().all(|word| word >> 39 & 1 == 1), "CC");
}
