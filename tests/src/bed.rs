//! A lane and its guest in one thread: what a burst costs, without sockets, workers and other cores.
//!
//! ```text
//!   refill: the driver makes frames available and posts buffers      step: the lane, which is what is measured
//!           ▲                                                                │
//!           └──────────────── both rings, in memory of our own ◀─────────────┘
//! ```

use std::sync::Arc;
use std::time::Instant;

use relay::driver::memory::GuestRam;
use relay::driver::queue::{DriverQueue, QueueOptions};
use relay::driver::split::WRITE;
use relay::ends::{Cable, Ends, RelayCounters};
use relay::guest::memory::{GuestMemory, RegionDescription};
use relay::guest::space::AddressSpace;
use relay::lane::Lane;
use relay::ring::receive::ReceiveRules;
use relay::ring::transmit::TransmitRules;
use relay::ring::{PackedRing, ReceiveRing, Ring, RingConfig, SplitRing, TransmitRing};

/// Frames that are under way at a time.
pub const FRAMES: u16 = 256;
/// Descriptors in each ring.
const SIZE: u16 = 512;
const MEMORY: u64 = 0x4000_0000;
const HEADER: u32 = 12;

/// What the frames and rings are like.
#[derive(Clone, Copy, Debug)]
pub struct BedOptions {
    /// Both rings are packed.
    pub packed: bool,
    /// Bytes of each frame.
    pub frame: u32,
    /// Frames may be spread over several buffers.
    pub mergeable: bool,
    /// The driver looks for checksums and segmentation in headers, so they are read.
    pub offloads: bool,
}

impl BedOptions {
    /// Plain frames of so many bytes.
    pub fn new(packed: bool, frame: u32) -> Self {
        Self { packed, frame, mergeable: false, offloads: false }
    }
}

/// A guest whose frames come back to it, by a cable.
#[derive(Debug)]
pub struct Bed {
    lane: Lane,
    ram: GuestRam,
    transmit: DriverQueue,
    receive: DriverQueue,
    options: BedOptions,
    now: Instant,
}

impl Bed {
    /// Rings with nothing in them but receive buffers.
    ///
    /// # Panics
    /// Without memory for the guest.
    #[allow(clippy::expect_used)]
    pub fn new(options: BedOptions) -> Self {
        let queue = QueueOptions {
            size: SIZE,
            buffer: (options.frame + HEADER).next_multiple_of(64).max(2048),
            descriptors: 1,
            packed: options.packed,
            indirect: false,
            in_order: false,
            event_idx: false,
        };
        let bytes = (2 * DriverQueue::footprint(&queue) + (1 << 20)).next_multiple_of(1 << 21);
        let mut ram = GuestRam::new(MEMORY, bytes).expect("memory for a guest");
        let mut queues = [(); 2].map(|()| DriverQueue::new(&mut ram, queue).expect("room for the rings"));
        queues.iter_mut().for_each(|queue| queue.set_polling(&ram, true));
        let region = RegionDescription { gpa: MEMORY, size: bytes, user: ram.user(), offset: 0 };
        let file = ram.file().try_clone().expect("a descriptor");
        let memory = GuestMemory::map([(region, file)]).expect("its memory mapped");
        let space = Arc::new(AddressSpace::physical(Arc::new(memory), None));
        let [transmit, receive] = queues;
        let ring = |queue: &DriverQueue| -> Ring {
            let at = queue.addresses(&ram);
            let config = RingConfig {
                size: SIZE,
                descriptors: at.desc_table_addr,
                available: at.avail_ring_addr,
                used: at.used_ring_addr,
                base: if options.packed { PackedRing::START } else { 0 },
                indirect: true,
                event_idx: false,
            };
            if options.packed {
                PackedRing::new(&config, &space, None).expect("a packed ring").into()
            } else {
                SplitRing::new(&config, &space, None).expect("a split ring").into()
            }
        };
        let offloads = options.offloads.then_some(pmd::Capabilities::ALL);
        let mut ends = Ends::default();
        let rules = TransmitRules { header: HEADER, offloads, in_order: false };
        ends.near.transmit[0] = Some(TransmitRing::new(ring(&transmit), 0, rules));
        let rules = ReceiveRules {
            header: HEADER,
            mergeable: options.mergeable,
            offloads: offloads.unwrap_or(pmd::Capabilities::NONE),
        };
        ends.near.receive[0] = Some(ReceiveRing::new(ring(&receive), 0, rules));
        ends.cable = Some(Cable::Loopback);
        let lane = ends.lanes(0, &RelayCounters::default()).pop().expect("a lane of a cable");
        Self { lane, ram, transmit, receive, options, now: Instant::now() }
    }

    /// The driver's part: takes back what the lane is done with, and makes as many frames available as were asked for,
    /// each with a buffer to go to. Returns the frames that came back.
    pub fn refill(&mut self, frames: u16) -> u64 {
        let Self { ram, transmit, receive, options, .. } = self;
        let mut back = 0;
        while let Some((id, len)) = receive.pop(ram) {
            assert_eq!(len, options.frame + HEADER, "a frame came back cut");
            receive.give_back(id);
            back += 1;
        }
        while let Some((id, _)) = transmit.pop(ram) {
            transmit.give_back(id);
        }
        for _ in 0..frames {
            let (Some(to), Some(from)) = (receive.take(), transmit.take()) else { break };
            receive.push(ram, to, &[receive.buffer(to)], WRITE);
            let (at, _) = transmit.buffer(from);
            transmit.push(ram, from, &[(at, options.frame + HEADER)], 0);
        }
        receive.flush(ram);
        transmit.flush(ram);
        back
    }

    /// One pass of the worker over the lane: a burst. Returns whether there was one.
    #[inline(never)]
    pub fn step(&mut self) -> bool {
        self.lane.step(self.now)
    }
}
