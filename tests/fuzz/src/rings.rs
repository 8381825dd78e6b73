//! What both ring layouts are put through: a driver that writes anything anywhere, between the steps of the device.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;

use pmd::frame::{BURST_BYTES, BURST_FRAMES, BURST_SEGMENTS};
use pmd::{Burst, Capabilities, Offload, Segment, Token};
use relay::counters::DirectionCounters;
use relay::driver::memory::GuestRam;
use relay::guest::memory::{GuestMemory, RegionDescription};
use relay::guest::space::AddressSpace;
use relay::ring::notify::Call;
use relay::ring::receive::ReceiveRules;
use relay::ring::transmit::TransmitRules;
use relay::ring::{ReceiveRing, Ring, RingConfig, TransmitRing};
use rustix::event::{EventfdFlags, eventfd};

use crate::input::Input;

const GPA: u64 = 0x10_0000;
const RAM: u64 = 0x1_0000;
const HALF: u64 = RAM / 2;
/// Memory of the file that is no memory of the guest: nobody may write there.
const BEYOND: u64 = 0x4000;
const CANARY: u8 = 0xa5;
/// More steps than this show nothing new.
const STEPS: usize = 96;

/// A driver's side that can do wrong.
pub(crate) trait Layout: Clone {
    /// The largest ring that is played with.
    fn new(ram: &mut GuestRam) -> Self;
    /// A fresh one in the same place, of the size that this number stands for.
    fn sized(&self, size: u8) -> Self;
    fn config(&self, ram: &GuestRam) -> RingConfig;
    fn device(&self, config: &RingConfig, space: &Arc<AddressSpace>, call: Call) -> Ring;
    /// Writes a descriptor of the ring.
    fn write(&mut self, ram: &GuestRam, input: &mut Input);
    /// Writes a descriptor of an indirect table.
    fn write_entry(&mut self, ram: &GuestRam, at: u64, input: &mut Input);
    /// Makes a chain available.
    fn push(&mut self, ram: &GuestRam, input: &mut Input);
    /// Writes something that only the device, or nobody, should ever see.
    fn spoil(&mut self, ram: &GuestRam, input: &mut Input);
    /// Where the ring stands with what it completed, and with what it took.
    fn used(&self, ram: &GuestRam, ring: &mut Ring) -> u32;
    fn taken(&self, ring: &mut Ring) -> Option<u32>;
}

/// An address and a length: mostly inside memory, anything if `wild`.
pub(crate) fn buffer(input: &mut Input, wild: bool) -> (u64, u32) {
    if wild {
        (input.u64(), input.u32())
    } else {
        // A little before the beginning and beyond the end, too.
        (GPA - 64 + u64::from(input.u16()) * 4 % (RAM + 128), u32::from(input.u16() & 0x3fff))
    }
}

/// The guest's memory, made once.
pub(crate) struct World<L> {
    ram: GuestRam,
    layout: L,
    space: Arc<AddressSpace>,
    /// Where it is mapped for the device: start and length of each mapping.
    mapped: [(usize, usize); 2],
}

impl<L: Layout> World<L> {
    pub(crate) fn new() -> Self {
        let mut ram = GuestRam::new(GPA, RAM + BEYOND).expect("memory");
        let region = |start: u64| RegionDescription {
            gpa: GPA + start,
            size: HALF,
            user: ram.user() + start,
            offset: start,
        };
        let file = || ram.file().try_clone().expect("a descriptor");
        let memory = GuestMemory::map([(region(0), file()), (region(HALF), file())]).expect("memory");
        let space = Arc::new(AddressSpace::physical(Arc::new(memory), None));
        let mapped = [0, HALF].map(|start| {
            let place = space.area(ram.user() + start, HALF).expect("just mapped");
            (place.host.as_ptr() as usize, HALF as usize)
        });
        Self { layout: L::new(&mut ram), ram, space, mapped }
    }

    fn clear(&self) {
        self.ram.write(GPA, &[0; RAM as usize]);
        self.ram.write(GPA + RAM, &[CANARY; BEYOND as usize]);
    }

    fn check(&self, segment: &Segment) {
        let (at, len) = (segment.as_ptr() as usize, segment.len() as usize);
        let inside =
            |(start, size): &(usize, usize)| at >= *start && len <= *size && at - start <= size - len;
        assert!(self.mapped.iter().any(inside), "{len} bytes at {at:#x} are outside guest memory");
    }
}

/// Plays a driver and a device by what the input says.
pub(crate) fn run<L: Layout>(world: &World<L>, data: &[u8]) {
    world.clear();
    let mut input = Input::new(data);
    let (size, flags) = (input.u8(), input.u8());
    let driver = world.layout.sized(size);
    let bit = |n: u8| flags & 1 << n != 0;
    // In order, as below, and a transmit queue.
    let batches = bit(4) && !bit(2);
    let config = RingConfig { indirect: bit(0), event_idx: bit(1), batches, ..driver.config(&world.ram) };
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd");
    let ring = driver.device(&config, &world.space, Call::new(fd, Arc::default()).expect("it is one"));
    if bit(2) {
        let header = if bit(3) { 12 } else { 10 };
        let rules = ReceiveRules { header, mergeable: bit(4), offloads: caps(bit(5)) };
        receive(world, driver, ring, rules, &mut input);
    } else {
        let offloads = bit(3).then(|| caps(bit(5)));
        let rules = TransmitRules { header: if bit(5) { 12 } else { 10 }, offloads, in_order: bit(4) };
        transmit(world, driver, ring, rules, &mut input);
    }
    let mut beyond = [0; BEYOND as usize];
    world.ram.read(GPA + RAM, &mut beyond);
    assert!(beyond.iter().all(|byte| *byte == CANARY), "written beyond guest memory");
}

fn caps(all: bool) -> Capabilities {
    if all { Capabilities::ALL } else { Capabilities::NONE }
}

/// What the driver does of the steps.
fn drive<L: Layout>(world: &World<L>, driver: &mut L, what: u8, input: &mut Input) {
    match what % 5 {
        0 => driver.write(&world.ram, input),
        1 => {
            let at = GPA + 0x1000 + u64::from(input.u16()) % (RAM - 0x1010);
            driver.write_entry(&world.ram, at, input);
        }
        2 => driver.push(&world.ram, input),
        3 => {
            let (at, len) = (u64::from(input.u16()), usize::from(input.u8()));
            let bytes = input.bytes(len);
            world.ram.write(GPA + at.min(RAM - bytes.len() as u64), bytes);
        }
        _ => driver.spoil(&world.ram, input),
    }
}

fn transmit<L: Layout>(world: &World<L>, mut driver: L, ring: Ring, rules: TransmitRules, input: &mut Input) {
    let counters = DirectionCounters::default();
    let mut ring = TransmitRing::new(ring, 7, rules);
    let mut lent: VecDeque<Token> = VecDeque::new();
    let mut burst = Burst::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() {
            what @ 0..160 => drive(world, &mut driver, what, input),
            160..210 => {
                let keep = usize::from(input.u8());
                burst.clear();
                ring.receive(&mut burst, &counters);
                let frames = burst.frames();
                assert!(frames.len() <= BURST_FRAMES && burst.bytes() < 2 * BURST_BYTES);
                assert!(frames.iter().map(|(_, pieces)| pieces.len()).sum::<usize>() <= BURST_SEGMENTS);
                for (frame, pieces) in frames.iter() {
                    pieces.iter().for_each(|piece| world.check(piece));
                    assert!(frame.len() <= BURST_BYTES);
                    assert_eq!(frame.len(), pieces.iter().map(Segment::len).sum::<u32>());
                    let mut first = [0; 256];
                    pmd::frame::gather(pieces, &mut first);
                    assert!(rules.offloads.unwrap_or(Capabilities::NONE).cover(frame.offload()));
                    if crate::planted() && pieces.len() == 3 && frame.len() % 4 == 1 {
                        ring.complete(frame.token());
                    }
                }
                lent.extend(frames.take(keep).iter().map(|(frame, _)| frame.token()));
                ring.put_back(frames.skip(keep));
            }
            210..235 => {
                let n = usize::from(input.u8());
                if !lent.is_empty()
                    && let Some(token) = lent.remove(n % lent.len())
                {
                    ring.complete(token);
                }
            }
            235..245 => ring.flush(&counters),
            245..250 => drop(ring.ring().base()),
            _ => ring.ring().disable_kicks(),
        }
    }
    lent.drain(..).for_each(|token| ring.complete(token));
    // Unlike a flush it writes the index again, which the driver may have overwritten.
    ring.ring().finish();
    let (used, taken) = (driver.used(&world.ram, ring.ring()), driver.taken(ring.ring()));
    assert_eq!(Some(used), taken, "as much was completed as was taken");
}

fn receive<L: Layout>(world: &World<L>, mut driver: L, ring: Ring, rules: ReceiveRules, input: &mut Input) {
    let counters = DirectionCounters::default();
    let mut ring = ReceiveRing::new(ring, 7, rules);
    // On the heap, where a look beyond it is seen.
    let mut bytes: Vec<u8> = (0..4096u32).map(|n| n as u8).collect();
    let mut burst = Burst::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() {
            what @ 0..160 => drive(world, &mut driver, what, input),
            160..230 => {
                burst.clear();
                for _ in 0..1 + input.u8() % 4 {
                    let len = 14 + u32::from(input.u16()) % (4096 - 14);
                    let start = NonNull::new(&raw mut bytes[0]).expect("an address");
                    // SAFETY: `len` bytes of `bytes`, which outlives the burst and is read only.
                    let segment = unsafe { Segment::new(start, len) };
                    let cut = u32::from(input.u8());
                    for part in [segment.part(0, cut), segment.part(cut, u32::MAX)] {
                        if part.len() > 0 {
                            burst.push_segment(part).expect("there is room");
                        }
                    }
                    assert!(burst.finish_frame_with(Token(0), Offload::NONE));
                }
                let done = ring.deliver(burst.frames(), &counters);
                assert!(done <= burst.len());
                if crate::planted() && done == 3 && burst.bytes() % 4 == 1 {
                    world.ram.write(GPA + RAM, &[0]);
                }
            }
            230..245 => ring.flush(&counters),
            _ => ring.ring().disable_kicks(),
        }
    }
    // Unlike a flush it writes the index again, which the driver may have overwritten.
    ring.ring().finish();
    let (used, taken) = (driver.used(&world.ram, ring.ring()), driver.taken(ring.ring()));
    assert_eq!(Some(used), taken, "as much was completed as was taken");
}
