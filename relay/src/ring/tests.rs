//! Rings against a driver's side written by hand: well-behaved first, hostile after.

use std::ptr::NonNull;
use std::sync::Arc;

use pmd::{Burst, Segment, Token};

use super::{ReceiveRing, RingConfig, RingError, SplitRing, TransmitRing};
use crate::counters::{DirectionCounters, DropReason};
use crate::driver::memory::GuestRam;
use crate::driver::split::{Descriptor, DriverRing, INDIRECT, NEXT, WRITE, write_descriptor};
use crate::guest::memory::{GuestMemory, RegionDescription};
use crate::guest::space::AddressSpace;
use crate::ring::queue::Chain;
use crate::ring::receive::ReceiveRules;
use crate::ring::transmit::TransmitRules;

const SIZE: u16 = 8;
const GPA: u64 = 0x10_0000;
const RAM: u64 = 0x10_0000;
/// Buffers of the tests are from here on; rings are below.
const BUFFERS: u64 = GPA + 0x8000;

fn transmit_rules() -> TransmitRules {
    TransmitRules { header: 12, ..TransmitRules::default() }
}

fn receive_rules(mergeable: bool) -> ReceiveRules {
    ReceiveRules { header: 12, mergeable, ..ReceiveRules::default() }
}

struct Guest {
    ram: GuestRam,
    ring: DriverRing,
    space: Arc<AddressSpace>,
    counters: DirectionCounters,
}

impl Guest {
    fn new() -> Self {
        let mut ram = GuestRam::new(GPA, RAM).unwrap();
        let ring = DriverRing::new(&mut ram, SIZE).unwrap();
        let region = RegionDescription { gpa: GPA, size: RAM, user: ram.user(), offset: 0 };
        let memory = GuestMemory::map([(region, ram.file().try_clone().unwrap())]).unwrap();
        let space = Arc::new(AddressSpace::physical(Arc::new(memory), None));
        Self { ram, ring, space, counters: DirectionCounters::default() }
    }

    fn config(&self) -> RingConfig {
        RingConfig {
            size: SIZE,
            descriptors: self.ram.user_of(self.ring.descriptors),
            available: self.ram.user_of(self.ring.available),
            used: self.ram.user_of(self.ring.used),
            base: 0,
            indirect: true,
            event_idx: false,
            batches: false,
        }
    }

    fn split(&self) -> SplitRing {
        SplitRing::new(&self.config(), &self.space, None).unwrap()
    }

    fn transmit(&self) -> TransmitRing {
        TransmitRing::new(self.split().into(), 0, transmit_rules())
    }

    fn receive(&self, mergeable: bool) -> ReceiveRing {
        ReceiveRing::new(self.split().into(), 0, receive_rules(mergeable))
    }

    /// Writes a chain into descriptors `first..` and makes it available.
    fn post(&mut self, first: u16, buffers: &[(u64, u32, u16)]) {
        for (n, (addr, len, flags)) in buffers.iter().enumerate() {
            let last = n + 1 == buffers.len();
            let index = first + n as u16;
            let flags = flags | if last { 0 } else { NEXT };
            self.ring.set(&self.ram, index, Descriptor { addr: *addr, len: *len, flags, next: index + 1 });
        }
        self.ring.push(&self.ram, first);
        self.ring.publish(&self.ram);
    }

    fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(gpa, &mut bytes);
        bytes
    }

    /// What the device takes of the transmit ring in one burst: lengths of the frames.
    fn lengths(&self, ring: &mut TransmitRing) -> Vec<u32> {
        let mut burst = Burst::new();
        ring.receive(&mut burst, &self.counters);
        let lengths = burst.frames().iter().map(|(frame, _)| frame.len()).collect();
        for (frame, _) in burst.frames().iter() {
            ring.complete(frame.token());
        }
        ring.flush(&self.counters);
        lengths
    }

    fn dropped(&self) -> Vec<DropReason> {
        DropReason::ALL.iter().copied().filter(|reason| self.counters.dropped(*reason) > 0).collect()
    }
}

fn frame_of(bytes: &mut [u8]) -> Burst {
    let mut burst = Burst::new();
    // SAFETY: the tests keep `bytes` alive and untouched while the burst is used.
    let segment = unsafe { Segment::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), bytes.len() as u32) };
    assert!(burst.push(segment, Token(0)));
    burst
}

#[test]
fn a_frame_is_borrowed_where_it_lies_and_completed_by_its_token() {
    let mut guest = Guest::new();
    let mut ring = guest.transmit();
    guest.ram.write(BUFFERS + 12, b"a frame of some length");
    guest.post(3, &[(BUFFERS, 12 + 22, 0)]);
    let mut burst = Burst::new();
    ring.receive(&mut burst, &guest.counters);
    let (frame, segments) = burst.frames().iter().next().unwrap();
    let token = frame.token();
    assert_eq!((frame.len(), Chain::of(token).id), (22, 3));
    let mut out = [0; 22];
    assert_eq!(pmd::frame::gather(segments, &mut out), 22);
    assert_eq!(&out, b"a frame of some length");
    ring.flush(&guest.counters);
    assert_eq!(guest.ring.pop(&guest.ram), None, "borrowed, not completed");
    ring.complete(token);
    assert_eq!(guest.ring.pop(&guest.ram), None, "completed, not published");
    ring.flush(&guest.counters);
    assert_eq!(guest.ring.pop(&guest.ram), Some((3, 0)));
}

#[test]
fn the_header_may_be_cut_anywhere() {
    for cut in 1..=12 {
        let mut guest = Guest::new();
        let mut ring = guest.transmit();
        guest.post(0, &[(BUFFERS, cut, 0), (BUFFERS + 0x100, 12 - cut, 0), (BUFFERS + 0x200, 60, 0)]);
        assert_eq!(guest.lengths(&mut ring), [60], "cut after {cut} bytes");
    }
    let mut guest = Guest::new();
    let mut ring = guest.transmit();
    let table = BUFFERS + 0x1000;
    for n in 0..13u16 {
        let (len, flags) = if n < 12 { (1, NEXT) } else { (60, 0) };
        write_descriptor(
            &guest.ram,
            table + 16 * u64::from(n),
            Descriptor { addr: BUFFERS, len, flags, next: n + 1 },
        );
    }
    guest.post(0, &[(table, 16 * 13, INDIRECT)]);
    assert_eq!(guest.lengths(&mut ring), [60], "a table may be longer than the ring");
}

#[test]
fn frames_that_the_sink_had_no_room_for_are_taken_again() {
    let mut guest = Guest::new();
    let mut ring = guest.transmit();
    for n in 0..4 {
        guest.post(n, &[(BUFFERS, 12 + 60 + u32::from(n), 0)]);
    }
    let mut burst = Burst::new();
    ring.receive(&mut burst, &guest.counters);
    assert_eq!(burst.len(), 4);
    ring.complete(burst.frames().iter().next().unwrap().0.token());
    ring.put_back(burst.frames().skip(1));
    assert_eq!(ring.ring().base(), 1);
    assert_eq!(guest.lengths(&mut ring), [61, 62, 63]);
}

#[test]
fn a_malformed_chain_is_completed_counted_and_passed_over() {
    const OUTSIDE: u64 = GPA + RAM;
    let good = (BUFFERS, 12 + 60, 0);
    type Chain = &'static [(u64, u32, u16)];
    let cases: &[(Chain, DropReason)] = &[
        (&[(BUFFERS, 0, 0)], DropReason::ChainTooShort),
        (&[(BUFFERS, 11, 0)], DropReason::ChainTooShort),
        (&[(BUFFERS, 12, 0)], DropReason::FrameTooShort),
        (&[(OUTSIDE, 72, 0)], DropReason::BadAddress),
        (&[(OUTSIDE - 1, 72, 0)], DropReason::BadAddress),
        (&[(u64::MAX, 72, 0)], DropReason::BadAddress),
        (&[(BUFFERS, u32::MAX, 0)], DropReason::FrameTooLong),
        (&[(BUFFERS, 72, WRITE)], DropReason::WrongDirection),
        (&[(BUFFERS, 72, 0), (BUFFERS, 72, WRITE)], DropReason::WrongDirection),
        (&[(BUFFERS, 0, INDIRECT)], DropReason::BadIndirect),
        (&[(BUFFERS, 17, INDIRECT)], DropReason::BadIndirect),
        (&[(BUFFERS, 16, INDIRECT), (BUFFERS, 72, 0)], DropReason::BadIndirect),
        (&[(OUTSIDE, 16, INDIRECT)], DropReason::BadAddress),
        (&[(OUTSIDE - 8, 16, INDIRECT)], DropReason::BadAddress),
        (&[(u64::MAX - 7, 32, INDIRECT)], DropReason::BadAddress),
    ];
    for (chain, reason) in cases {
        let mut guest = Guest::new();
        let mut ring = guest.transmit();
        guest.post(0, &[good]);
        guest.post(1, chain);
        guest.post(4, &[good]);
        let mut taken = guest.lengths(&mut ring);
        taken.extend(guest.lengths(&mut ring));
        assert_eq!(taken, [60, 60], "{chain:x?}");
        assert_eq!(guest.dropped(), [*reason], "{chain:x?}");
        let heads: Vec<_> = std::iter::from_fn(|| guest.ring.pop(&guest.ram)).map(|(head, _)| head).collect();
        assert_eq!(heads, [0, 1, 4], "every chain comes back once: {chain:x?}");
    }
}

#[test]
fn chains_without_an_end_end() {
    let mut guest = Guest::new();
    let mut ring = guest.transmit();
    let to = |next| Descriptor { addr: BUFFERS, len: 20, flags: NEXT, next };
    guest.ring.set(&guest.ram, 0, to(0));
    guest.ring.set(&guest.ram, 1, to(2));
    guest.ring.set(&guest.ram, 2, to(1));
    guest.ring.set(&guest.ram, 3, to(SIZE));
    let table = BUFFERS + 0x1000;
    write_descriptor(&guest.ram, table, to(0));
    guest.ring.set(&guest.ram, 4, Descriptor { addr: table, len: 64, flags: INDIRECT, next: 0 });
    let nested = Descriptor { addr: table, len: 16, flags: INDIRECT, next: 0 };
    write_descriptor(&guest.ram, table + 0x100, nested);
    guest.ring.set(&guest.ram, 5, Descriptor { addr: table + 0x100, ..nested });
    for head in [0, 1, 3, 4, 5, SIZE, u16::MAX] {
        guest.ring.push(&guest.ram, head);
    }
    guest.ring.publish(&guest.ram);
    assert!(guest.lengths(&mut ring).is_empty());
    assert_eq!(guest.counters.dropped(DropReason::ChainTooLong), 3);
    assert_eq!(guest.counters.dropped(DropReason::BadDescriptorIndex), 3);
    assert_eq!(guest.counters.dropped(DropReason::BadIndirect), 1);
    assert_eq!(guest.ring.used_index(&guest.ram), 7);
}

#[test]
fn an_index_out_of_reach_is_an_empty_ring() {
    let mut guest = Guest::new();
    let mut ring = guest.transmit();
    guest.post(0, &[(BUFFERS, 72, 0)]);
    guest.ring.set_available_index(&guest.ram, SIZE + 1);
    assert!(guest.lengths(&mut ring).is_empty());
    assert_eq!(guest.counters.bad_available_index.get(), 1);
    guest.ring.set_available_index(&guest.ram, 1);
    assert_eq!(guest.lengths(&mut ring), [60]);
}

#[test]
fn indices_wrap_around() {
    let mut guest = Guest::new();
    let mut ring = guest.transmit();
    for n in 0..70_000u32 {
        guest.post((n % u32::from(SIZE)) as u16, &[(BUFFERS, 72, 0)]);
        assert_eq!(guest.lengths(&mut ring), [60]);
        assert_eq!(guest.ring.pop(&guest.ram), Some((n % u32::from(SIZE), 0)));
    }
}

#[test]
fn a_delivered_frame_stands_behind_its_header() {
    let mut guest = Guest::new();
    let mut ring = guest.receive(false);
    guest.ram.write(BUFFERS, &[0xff; 100]);
    guest.post(2, &[(BUFFERS, 2048, WRITE)]);
    let mut bytes = [0x5a; 60];
    assert_eq!(ring.deliver(frame_of(&mut bytes).frames(), &guest.counters), 1);
    ring.flush(&guest.counters);
    assert_eq!(guest.ring.pop(&guest.ram), Some((2, 72)));
    let mut expected = vec![0; 12];
    expected[10] = 1;
    expected.extend_from_slice(&bytes);
    assert_eq!(guest.bytes(BUFFERS, 72), expected);
    assert_eq!(guest.bytes(BUFFERS + 72, 1), [0xff], "not a byte more");
    assert_eq!((guest.counters.tx_frames.get(), guest.counters.tx_bytes.get()), (1, 60));
}

#[test]
fn without_buffers_a_frame_waits() {
    let mut guest = Guest::new();
    let mut ring = guest.receive(true);
    let mut bytes = [7; 200];
    let burst = frame_of(&mut bytes);
    assert_eq!(ring.deliver(burst.frames(), &guest.counters), 0);
    guest.post(0, &[(BUFFERS, 100, WRITE)]);
    guest.post(1, &[(BUFFERS + 0x100, 100, WRITE)]);
    assert_eq!(ring.deliver(burst.frames(), &guest.counters), 0, "212 bytes do not fit into 200");
    ring.flush(&guest.counters);
    assert_eq!(guest.ring.pop(&guest.ram), None, "what was tried is taken back");
    guest.post(2, &[(BUFFERS + 0x200, 100, WRITE)]);
    assert_eq!(ring.deliver(burst.frames(), &guest.counters), 1);
    ring.flush(&guest.counters);
    let used: Vec<_> = std::iter::from_fn(|| guest.ring.pop(&guest.ram)).collect();
    assert_eq!(used, [(0, 100), (1, 100), (2, 12)]);
    assert_eq!(guest.bytes(BUFFERS, 12)[10..], [3, 0], "num_buffers");
    assert_eq!(guest.bytes(BUFFERS + 12, 88), [7; 88]);
    assert_eq!(guest.bytes(BUFFERS + 0x200, 12), [7; 12]);
    assert_eq!(guest.dropped(), []);
}

#[test]
fn a_header_in_single_bytes_is_written_in_single_bytes() {
    let mut guest = Guest::new();
    let mut ring = guest.receive(false);
    let table = BUFFERS + 0x4000;
    for n in 0..7u16 {
        let (len, flags) = if n < 6 { (2, NEXT | WRITE) } else { (100, WRITE) };
        let addr = BUFFERS + 0x100 * u64::from(n);
        write_descriptor(&guest.ram, table + 16 * u64::from(n), Descriptor { addr, len, flags, next: n + 1 });
    }
    guest.post(0, &[(table, 16 * 7, INDIRECT)]);
    let mut bytes = [9; 60];
    assert_eq!(ring.deliver(frame_of(&mut bytes).frames(), &guest.counters), 1);
    assert_eq!(guest.bytes(BUFFERS + 0x500, 2), [1, 0], "num_buffers");
    assert_eq!(guest.bytes(BUFFERS + 0x600, 60), [9; 60]);
}

#[test]
fn a_frame_longer_than_the_buffer_is_dropped_and_the_buffer_kept() {
    let mut guest = Guest::new();
    let mut ring = guest.receive(false);
    guest.post(0, &[(BUFFERS, 1526, WRITE)]);
    let mut long = [1; 1600];
    assert_eq!(ring.deliver(frame_of(&mut long).frames(), &guest.counters), 1);
    assert_eq!(guest.dropped(), [DropReason::GuestBufferTooSmall]);
    let mut short = [2; 60];
    assert_eq!(ring.deliver(frame_of(&mut short).frames(), &guest.counters), 1);
    ring.flush(&guest.counters);
    assert_eq!(guest.ring.pop(&guest.ram), Some((0, 72)));
}

#[test]
fn runt_and_malformed_receive_chains_come_back_empty() {
    for (mergeable, chain, reason) in [
        (false, (BUFFERS, 11, WRITE), DropReason::ChainTooShort),
        (false, (BUFFERS, 25, WRITE), DropReason::ChainTooShort),
        (true, (BUFFERS, 0, WRITE), DropReason::ChainTooShort),
        (true, (BUFFERS, 11, WRITE), DropReason::ChainTooShort),
        (true, (BUFFERS, 2048, 0), DropReason::WrongDirection),
        (false, (GPA + RAM, 2048, WRITE), DropReason::BadAddress),
        (true, (GPA - 1, 2048, WRITE), DropReason::BadAddress),
    ] {
        let mut guest = Guest::new();
        let mut ring = guest.receive(mergeable);
        guest.post(1, &[chain]);
        let mut bytes = [1; 60];
        assert_eq!(ring.deliver(frame_of(&mut bytes).frames(), &guest.counters), 1, "{chain:x?}");
        ring.flush(&guest.counters);
        assert_eq!(guest.dropped(), [reason], "{chain:x?}");
        assert_eq!(guest.ring.pop(&guest.ram), Some((1, 0)), "{chain:x?}");
    }
}

#[test]
fn a_bad_chain_in_the_middle_of_a_merged_frame_gives_all_of_them_back() {
    let mut guest = Guest::new();
    let mut ring = guest.receive(true);
    guest.post(0, &[(BUFFERS, 100, WRITE)]);
    guest.post(1, &[(BUFFERS, 100, 0)]);
    guest.post(2, &[(BUFFERS, 2048, WRITE)]);
    let mut long = [1; 300];
    assert_eq!(ring.deliver(frame_of(&mut long).frames(), &guest.counters), 1);
    assert_eq!(ring.deliver(frame_of(&mut long).frames(), &guest.counters), 1);
    ring.flush(&guest.counters);
    let used: Vec<_> = std::iter::from_fn(|| guest.ring.pop(&guest.ram)).collect();
    assert_eq!(used, [(0, 0), (1, 0), (2, 312)]);
    assert_eq!(guest.dropped(), [DropReason::WrongDirection]);
}

#[test]
fn a_ring_that_is_not_where_it_can_be_is_refused() {
    let guest = Guest::new();
    let good = guest.config();
    let refuse = |config: RingConfig| SplitRing::new(&config, &guest.space, None).unwrap_err();
    for size in [0, 1, 3, 6, 32769] {
        assert_eq!(refuse(RingConfig { size, ..good }), RingError::Size(size));
    }
    assert!(matches!(
        refuse(RingConfig { descriptors: good.descriptors + 8, ..good }),
        RingError::Alignment { .. }
    ));
    assert!(matches!(
        refuse(RingConfig { available: good.available + 1, ..good }),
        RingError::Alignment { .. }
    ));
    assert!(matches!(refuse(RingConfig { used: good.used + 2, ..good }), RingError::Alignment { .. }));
    let end = guest.ram.user() + RAM;
    assert!(matches!(refuse(RingConfig { descriptors: end - 112, ..good }), RingError::OutsideMemory { .. }));
    assert!(matches!(refuse(RingConfig { used: end - 64, ..good }), RingError::OutsideMemory { .. }));
    assert!(matches!(refuse(RingConfig { available: 0, ..good }), RingError::OutsideMemory { .. }));
    assert!(SplitRing::new(&RingConfig { descriptors: end - 128, ..good }, &guest.space, None).is_ok());
}

#[test]
fn a_ring_goes_on_from_its_used_index() {
    let mut guest = Guest::new();
    let mut ring = guest.transmit();
    for n in 0..3 {
        guest.post(n, &[(BUFFERS, 72, 0)]);
    }
    assert_eq!(guest.lengths(&mut ring), [60, 60, 60]);
    guest.post(3, &[(BUFFERS, 73, 0)]);
    let mut again = guest.transmit();
    assert_eq!(guest.lengths(&mut again), [61], "a base of 0 is behind what the driver has been told");
    assert_eq!(again.ring().base(), 4);
}

#[test]
fn polling_drivers_are_not_interrupted() {
    use rustix::event::{EventfdFlags, eventfd};
    let mut guest = Guest::new();
    let call = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let ours = super::notify::Call::new(call.try_clone().unwrap(), Arc::default()).unwrap();
    let mut ring = TransmitRing::new(
        SplitRing::new(&guest.config(), &guest.space, Some(ours)).unwrap().into(),
        0,
        transmit_rules(),
    );
    assert_eq!(guest.ring.used_flags(&guest.ram), 1, "the device polls");
    let mut count = [0; 8];
    guest.post(0, &[(BUFFERS, 72, 0)]);
    guest.lengths(&mut ring);
    assert_eq!(rustix::io::read(&call, &mut count), Ok(8));
    guest.ring.set_flags(&guest.ram, 1);
    guest.post(1, &[(BUFFERS, 72, 0)]);
    guest.lengths(&mut ring);
    assert!(rustix::io::read(&call, &mut count).is_err());
    assert_eq!(guest.counters.interrupts.get(), 1);
}

/// A ring that is as large as its test wants it, where it is and what its addresses mean.
fn on_its_own(driver: &DriverRing, ram: &GuestRam) -> (RingConfig, Arc<AddressSpace>) {
    let region = RegionDescription { gpa: ram.gpa(), size: ram.size(), user: ram.user(), offset: 0 };
    let memory = GuestMemory::map([(region, ram.file().try_clone().unwrap())]).unwrap();
    let config = RingConfig {
        size: driver.size,
        descriptors: ram.user_of(driver.descriptors),
        available: ram.user_of(driver.available),
        used: ram.user_of(driver.used),
        base: 0,
        indirect: true,
        event_idx: false,
        batches: false,
    };
    (config, Arc::new(AddressSpace::physical(Arc::new(memory), None)))
}

/// The same frame 32 times; `bytes` must live and stay as they are while the burst is used.
fn burst_of_32(bytes: &mut [u8]) -> Burst {
    let mut burst = Burst::new();
    for number in 0..32 {
        // SAFETY: the tests keep `bytes` alive and untouched while the burst is used.
        let segment = unsafe { Segment::new(NonNull::new(bytes.as_mut_ptr()).unwrap(), bytes.len() as u32) };
        assert!(burst.push(segment, Token(number)));
    }
    burst
}

#[test]
fn long_chains_for_nothing_cost_a_bounded_number_of_looks() {
    // All receive chains are one long walk over empty buffers with a byte at its end.
    let mut ram = GuestRam::new(GPA, 4 << 20).unwrap();
    let size = 4096;
    let mut driver = DriverRing::new(&mut ram, size).unwrap();
    for index in 0..size {
        let last = index + 1 == size;
        let flags = WRITE | if last { 0 } else { NEXT };
        driver.set(&ram, index, Descriptor { addr: GPA, len: u32::from(last), flags, next: index + 1 });
        driver.push(&ram, size - 500);
    }
    driver.publish(&ram);
    let (config, space) = on_its_own(&driver, &ram);
    let counters = DirectionCounters::default();
    let mut bytes = vec![0; 1500];
    let burst = burst_of_32(&mut bytes);
    let mut ring =
        ReceiveRing::new(SplitRing::new(&config, &space, None).unwrap().into(), 0, receive_rules(true));
    assert_eq!(
        ring.deliver(burst.frames(), &counters),
        1,
        "500 looks a frame, and no other frame in a burst then"
    );
    let mut ring =
        TransmitRing::new(SplitRing::new(&config, &space, None).unwrap().into(), 0, transmit_rules());
    let mut burst = Burst::new();
    ring.receive(&mut burst, &counters);
    assert!(ring.ring().base() < 2000, "wrong direction is seen at once");
}

#[test]
fn a_frame_that_is_to_be_spread_over_long_chains_for_nothing_is_given_up() {
    let mut ram = GuestRam::new(GPA, 4 << 20).unwrap();
    let size = 4096;
    let mut driver = DriverRing::new(&mut ram, size).unwrap();
    // Each chain is 60 empty buffers and then one that takes a header; the first three take a frame.
    let table = ram.allocate(16 * 64, 16).unwrap();
    for n in 0..64u16 {
        let (len, flags) = if n == 60 { (12, WRITE) } else { (0, WRITE | NEXT) };
        write_descriptor(&ram, table + 16 * u64::from(n), Descriptor { addr: GPA, len, flags, next: n + 1 });
    }
    for index in 0..size {
        let bad = Descriptor { addr: table, len: 16 * 64, flags: INDIRECT, next: 0 };
        let good = Descriptor { addr: GPA + (1 << 20), len: 2048, flags: WRITE, next: 0 };
        driver.set(&ram, index, if index < 3 { good } else { bad });
        driver.push(&ram, index);
    }
    driver.publish(&ram);
    let (config, space) = on_its_own(&driver, &ram);
    let counters = DirectionCounters::default();
    let mut bytes = vec![0; 1500];
    let burst = burst_of_32(&mut bytes);
    let mut ring =
        ReceiveRing::new(SplitRing::new(&config, &space, None).unwrap().into(), 0, receive_rules(true));
    assert_eq!(ring.deliver(burst.frames(), &counters), 3, "the fourth has to wait for a burst of its own");
    assert_eq!((ring.ring().base(), counters.dropped_in_all()), (3, 0), "its chains too");
    assert_eq!(ring.deliver(burst.frames().skip(3), &counters), 1, "there it is given up");
    assert_eq!(counters.dropped(DropReason::TooManyBuffers), 1);
    ring.flush(&counters);
    let used: Vec<_> = std::iter::from_fn(|| driver.pop(&ram)).collect();
    assert_eq!(used[..4], [(0, 1512), (1, 1512), (2, 1512), (3, 0)]);
    assert!(
        used.len() <= 8 && used[3..].iter().all(|(_, len)| *len == 0),
        "256 looks at 61 a chain: {used:?}"
    );
}

/// A ring with `count` plain receive chains of `len` bytes each.
fn posted(count: u16, len: u32) -> (GuestRam, ReceiveRing) {
    let mut ram = GuestRam::new(GPA, 4 << 20).unwrap();
    let mut driver = DriverRing::new(&mut ram, count).unwrap();
    for index in 0..count {
        let addr = GPA + (1 << 20) + 4096 * u64::from(index);
        driver.set(&ram, index, Descriptor { addr, len, flags: WRITE, next: 0 });
        driver.push(&ram, index);
    }
    driver.publish(&ram);
    let (config, space) = on_its_own(&driver, &ram);
    let ring = SplitRing::new(&config, &space, None).unwrap();
    (ram, ReceiveRing::new(ring.into(), 0, receive_rules(true)))
}

#[test]
fn looks_for_plain_chains_in_vain_do_not_end_a_burst_of_frames_in_pieces() {
    let (_ram, mut ring) = posted(64, 2048);
    let mut bytes = vec![0; 1500];
    let whole = frame_of(&mut bytes);
    let (_, [segment]) = whole.frames().iter().next().unwrap() else { panic!() };
    let mut burst = Burst::new();
    for number in 0..32 {
        assert!(burst.push_segment(segment.part(0, 54)).is_ok());
        assert!(burst.push_segment(segment.part(54, u32::MAX)).is_ok());
        assert!(burst.finish_frame(Token(number)));
    }
    assert_eq!(ring.deliver(burst.frames(), &DirectionCounters::default()), 32);
}

#[test]
fn looks_for_plain_chains_in_vain_do_not_end_a_burst_of_frames_longer_than_a_buffer() {
    let (_ram, mut ring) = posted(128, 512);
    let mut bytes = vec![0; 1500];
    let burst = burst_of_32(&mut bytes);
    assert_eq!(ring.deliver(burst.frames(), &DirectionCounters::default()), 32);
}

#[test]
fn memory_in_crumbs_takes_no_longer_than_long_chains() {
    const CRUMBS: u64 = GPA + RAM;
    let guest = Guest::new();
    let mut memory = GuestMemory::default();
    let ram = RegionDescription { gpa: GPA, size: RAM, user: guest.ram.user(), offset: 0 };
    memory = memory.with(ram, guest.ram.file().try_clone().unwrap()).unwrap();
    let file = crate::guest::memory::tests::memfd(0x1000);
    for n in 0..400 {
        let crumb = RegionDescription { gpa: CRUMBS + n, size: 1, user: n, offset: 0 };
        memory = memory.with(crumb, file.try_clone().unwrap()).unwrap();
    }
    let mut guest = Guest { space: Arc::new(AddressSpace::physical(Arc::new(memory), None)), ..guest };
    let mut ring = guest.receive(false);
    // A table of 512 buffers of 400 bytes each, which are 400 mappings.
    for n in 0..512u16 {
        let next = if n == 511 { 0 } else { NEXT };
        let entry = Descriptor { addr: CRUMBS, len: 400, flags: WRITE | next, next: n + 1 };
        write_descriptor(&guest.ram, BUFFERS + 16 * u64::from(n), entry);
    }
    guest.post(0, &[(BUFFERS, 16 * 512, INDIRECT)]);
    guest.post(1, &[(BUFFERS, 16 * 512, INDIRECT)]);
    let (mut short, mut long) = (vec![7; 1000], vec![7; 60_000]);
    assert_eq!(ring.deliver(frame_of(&mut short).frames(), &guest.counters), 1);
    assert_eq!(guest.dropped(), []);
    assert_eq!(ring.deliver(frame_of(&mut long).frames(), &guest.counters), 1);
    assert_eq!(guest.dropped(), [DropReason::TooManyBuffers]);
}
