//! A lane and its guest in one thread: what a burst costs, without sockets, workers and other cores.
//!
//! ```text
//!   refill: the driver makes frames available and posts buffers      step: the lane, which is what is measured
//!           ▲                                                                │
//!           └──────────────── both rings, in memory of our own ◀─────────────┘
//! ```

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Instant;

use pmd::frame::{BURST_BYTES, BURST_FRAMES};
use pmd::software::null::NullTransmit;
use pmd::{Burst, Capabilities, Receive, ReceiveQueue, Segment, Token, Transmit};
use relay::counters::DirectionCounters;
use relay::driver::memory::GuestRam;
use relay::driver::queue::{DriverQueue, MOST_PIECES, Piece, QueueOptions};
use relay::driver::split::WRITE;
use relay::ends::{Cable, Ends, RelayCounters};
use relay::guest::memory::{GuestMemory, RegionDescription};
use relay::guest::space::AddressSpace;
use relay::lane::Lane;
use relay::ring::receive::ReceiveRules;
use relay::ring::transmit::TransmitRules;
use relay::ring::{PackedRing, ReceiveRing, Ring, RingConfig, SplitRing, TransmitRing};

use models::packets::{Ip, Transport, partial};

/// Frames that are under way at a time.
pub const FRAMES: u16 = 256;
/// Chains in each ring, at most.
const CHAINS: u16 = 512;
const MEMORY: u64 = 0x4000_0000;
const HEADER: u32 = 12;
/// Longest frame that goes out to a device.
const MAX_FRAME: u32 = 1518;
/// Payload bytes of a TCP segment, which leaves room for options.
const SEGMENT: u16 = 1448;

/// Where frames come from and where they go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the guest's transmit ring into its receive ring.
    Cable,
    /// From the guest's transmit ring to a device that swallows them.
    ToNull,
    /// From a device that always has some into the guest's receive ring.
    FromDevice,
}

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
    /// Where frames come from and go to.
    pub way: Way,
    /// Bytes of a receive buffer.
    pub buffer: u32,
    /// Descriptors of each chain in the transmit ring.
    pub pieces: u16,
    /// These are in a table of their own.
    pub indirect: bool,
    /// Chains come back in the order in which they were made available, in batches where the ring knows that.
    pub in_order: bool,
    /// Frames are TCP over IPv4 and leave their segmentation and checksums to be done.
    pub segmented: bool,
}

impl BedOptions {
    /// Plain frames of so many bytes on a cable, in one buffer each.
    pub fn new(packed: bool, frame: u32) -> Self {
        Self {
            packed,
            frame,
            mergeable: false,
            offloads: false,
            way: Way::Cable,
            buffer: (frame + HEADER).next_multiple_of(64).max(2048),
            pieces: 1,
            indirect: false,
            in_order: false,
            segmented: false,
        }
    }

    fn transmit_queue(&self) -> QueueOptions {
        let descriptors = if self.indirect { 1 } else { self.pieces };
        QueueOptions {
            size: (CHAINS * descriptors).next_power_of_two(),
            buffer: (self.frame + HEADER).next_multiple_of(64).max(2048),
            descriptors,
            packed: self.packed,
            indirect: self.indirect,
            in_order: self.in_order,
            event_idx: false,
        }
    }

    fn receive_queue(&self) -> QueueOptions {
        let size = (CHAINS * self.buffers() as u16).next_power_of_two();
        QueueOptions { size, buffer: self.buffer, descriptors: 1, indirect: false, ..self.transmit_queue() }
    }

    /// Receive buffers that a frame takes.
    fn buffers(&self) -> u32 {
        (self.frame + HEADER).div_ceil(self.buffer)
    }

    /// Frames in a full burst.
    fn burst(&self) -> u16 {
        BURST_BYTES.div_ceil(self.frame).min(BURST_FRAMES as u32) as u16
    }

    /// The virtio-net header and first bytes of each frame.
    fn head(&self) -> Vec<u8> {
        let mut head = vec![0; HEADER as usize];
        if self.segmented {
            let (ip, transport) = (Ip::V4, Transport::Tcp);
            let headers = ip.transport_at() + transport.header();
            let payload = vec![0; self.frame as usize - headers];
            let offload = pmd::Offload {
                checksum: pmd::Checksum::Partial {
                    start: ip.transport_at() as u16,
                    offset: transport.checksum_at() as u16,
                },
                segmentation: pmd::Segmentation::TcpV4,
                ecn: false,
                segment_size: SEGMENT,
                header_length: headers as u16,
            };
            head = pmd::net_header::write(&offload, 0).to_vec();
            head.extend_from_slice(&partial(ip, transport, 1, &payload)[..headers]);
        }
        head
    }
}

/// A guest and its lane.
#[derive(Debug)]
pub struct Bed {
    lane: Lane,
    ram: GuestRam,
    transmit: DriverQueue,
    receive: DriverQueue,
    options: BedOptions,
    head: Vec<u8>,
    /// Where the lane counts frames that it is done with.
    counters: Arc<DirectionCounters>,
    now: Instant,
}

impl Bed {
    /// Rings with nothing in them.
    ///
    /// # Panics
    /// Without memory for the guest.
    #[allow(clippy::expect_used)]
    pub fn new(options: BedOptions) -> Self {
        let queues = [options.transmit_queue(), options.receive_queue()];
        let room: u64 = queues.iter().map(DriverQueue::footprint).sum();
        let bytes = (room + (1 << 20)).next_multiple_of(1 << 21);
        let mut ram = GuestRam::new(MEMORY, bytes).expect("memory for a guest");
        let mut queues = queues.map(|queue| DriverQueue::new(&mut ram, queue).expect("room for the rings"));
        queues.iter_mut().for_each(|queue| queue.set_polling(&ram, true));
        let region = RegionDescription { gpa: MEMORY, size: bytes, user: ram.user(), offset: 0 };
        let file = ram.file().try_clone().expect("a descriptor");
        let memory = GuestMemory::map([(region, file)]).expect("its memory mapped");
        let space = Arc::new(AddressSpace::physical(Arc::new(memory), None));
        let [transmit, receive] = queues;
        let ring = |queue: &DriverQueue, batches: bool| -> Ring {
            let at = queue.addresses(&ram);
            let config = RingConfig {
                size: queue.size(),
                descriptors: at.desc_table_addr,
                available: at.avail_ring_addr,
                used: at.used_ring_addr,
                base: if options.packed { PackedRing::START } else { 0 },
                indirect: true,
                event_idx: false,
                batches,
            };
            if options.packed {
                PackedRing::new(&config, &space, None).expect("a packed ring").into()
            } else {
                SplitRing::new(&config, &space, None).expect("a split ring").into()
            }
        };
        let offloads = options.offloads.then_some(Capabilities::ALL);
        let mut ends = Ends::default();
        if options.way != Way::FromDevice {
            let rules = TransmitRules { header: HEADER, offloads, in_order: options.in_order };
            let ring = ring(&transmit, options.in_order);
            ends.near.transmit[0] = Some(TransmitRing::new(ring, 0, rules));
        }
        if options.way != Way::ToNull {
            let rules = ReceiveRules {
                header: HEADER,
                mergeable: options.mergeable,
                offloads: offloads.unwrap_or(Capabilities::NONE),
            };
            ends.near.receive[0] = Some(ReceiveRing::new(ring(&receive, false), 0, rules));
        }
        match options.way {
            Way::Cable => ends.cable = Some(Cable::Loopback),
            Way::ToNull => ends.put_device(Vec::new(), vec![Transmit::Null(NullTransmit)], MAX_FRAME),
            Way::FromDevice => {
                let fountain = Receive::Other(Box::new(Fountain::new(options.frame as usize)));
                ends.put_device(vec![fountain], Vec::new(), MAX_FRAME);
            }
        }
        let counters = RelayCounters::default();
        let lane = ends.lanes(0, &counters).pop().expect("a lane");
        let counters = if options.way == Way::FromDevice { counters.vf_to_vm } else { counters.vm_to_vf };
        let head = options.head();
        Self { lane, ram, transmit, receive, options, head, counters, now: Instant::now() }
    }

    /// A bed with [`FRAMES`] frames to be carried, in the middle of full bursts: a packed ring that was found emptier waits
    /// for its driver before it is looked at.
    ///
    /// # Panics
    /// When the lane does not carry those before them.
    pub fn ready(options: BedOptions) -> Self {
        let mut bed = Self::new(options);
        bed.refill(FRAMES + options.burst());
        bed.carry(u64::from(options.burst()));
        bed
    }

    /// The driver's part: takes back what the lane is done with, and makes as many frames available as were asked for,
    /// each with buffers to go to. Returns the frames that came back.
    ///
    /// # Panics
    /// When they came back with other lengths.
    pub fn refill(&mut self, frames: u16) -> u64 {
        let back = self.take_back();
        let Self { ram, transmit, receive, options, head, .. } = self;
        for _ in 0..frames {
            let Some(from) = transmit.take() else { break };
            for _ in 0..options.buffers() {
                let Some(to) = receive.take() else { break };
                receive.push(ram, to, &[receive.buffer(to)], WRITE);
            }
            let (at, _) = transmit.buffer(from);
            ram.write(at, head);
            let pieces = pieces(at, options.frame + HEADER, options.pieces);
            transmit.push(ram, from, &pieces[..usize::from(options.pieces)], 0);
        }
        receive.flush(ram);
        transmit.flush(ram);
        back
    }

    /// Takes back what the lane is done with; returns the frames that were carried into the guest.
    ///
    /// # Panics
    /// When their lengths are wrong.
    pub fn take_back(&mut self) -> u64 {
        let Self { ram, transmit, receive, options, .. } = self;
        let (mut buffers, mut bytes) = (0, 0);
        while let Some((id, len)) = receive.pop(ram) {
            receive.give_back(id);
            buffers += 1;
            bytes += u64::from(len);
        }
        while let Some((id, _)) = transmit.pop(ram) {
            transmit.give_back(id);
        }
        let back = buffers / u64::from(options.buffers());
        assert_eq!(bytes, back * u64::from(options.frame + HEADER), "frames came back cut");
        back
    }

    /// One pass of the worker over the lane: a burst. Returns whether there was one.
    #[inline(never)]
    pub fn step(&mut self) -> bool {
        self.lane.step(self.now)
    }

    /// As many passes as it takes until `frames` more frames are done with.
    ///
    /// # Panics
    /// When the lane does nothing any more before.
    pub fn carry(&mut self, frames: u64) {
        let end = self.counters.rx_frames.get() + frames;
        let mut idle = 0;
        while self.counters.rx_frames.get() < end {
            if !self.step() {
                idle += 1;
                assert!(idle < 100_000, "frames wait, and the lane does nothing");
            }
        }
    }

    /// Takes everything back from a bed that was made [`ready`](Self::ready) and whose [`FRAMES`] were carried.
    ///
    /// # Panics
    /// When a frame was dropped, or is not there.
    pub fn finish(&mut self) {
        let frames = u64::from(FRAMES + self.options.burst());
        assert_eq!(self.counters.dropped_in_all(), 0, "frames were dropped");
        assert_eq!(self.counters.rx_frames.get(), frames, "frames that the lane is done with");
        let back = if self.options.way == Way::ToNull { 0 } else { frames };
        assert_eq!(self.take_back(), back, "frames that came back");
    }
}

/// A buffer in so many pieces: the header is the first where there are several, as some drivers have it.
fn pieces(at: u64, len: u32, n: u16) -> [Piece; MOST_PIECES] {
    let mut pieces = [(at, len); MOST_PIECES];
    let n = usize::from(n);
    let mut begin = 0;
    for (index, piece) in pieces.iter_mut().enumerate().take(n) {
        let end = match index {
            last if last + 1 == n => len,
            0 => HEADER,
            index => HEADER + (len - HEADER) / (n as u32 - 1) * index as u32,
        };
        *piece = (at + u64::from(begin), end - begin);
        begin = end;
    }
    pieces
}

/// A device that always has as many frames as are asked for; they lie in a buffer each.
#[derive(Debug)]
struct Fountain {
    frames: Vec<Box<[u8]>>,
    next: usize,
}

impl Fountain {
    fn new(len: usize) -> Self {
        Self { frames: (0..usize::from(FRAMES)).map(|_| vec![0; len].into_boxed_slice()).collect(), next: 0 }
    }
}

impl ReceiveQueue for Fountain {
    fn receive(&mut self, burst: &mut Burst) {
        while burst.room() > 0 {
            self.next = (self.next + 1) % self.frames.len();
            let bytes = &mut self.frames[self.next];
            let Some(start) = NonNull::new(bytes.as_mut_ptr()) else { return };
            // SAFETY: the box stays where it is while this queue lives, and nobody writes to it.
            let segment = unsafe { Segment::new(start, bytes.len() as u32) };
            burst.push(segment, Token(self.next as u32));
        }
    }

    fn release(&mut self, _token: Token) {}
}
