//! A network card as a guest's driver sees it, over a real vhost-user socket.

use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::VhostBackend;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vmm_sys_util::eventfd::EventFd;

use super::frontend::Link;
use super::memory::GuestRam;
use super::queue::{DriverQueue, Layout, QueueOptions};
use super::split::WRITE;
use crate::net::header;
use crate::ring::PackedRing;

pub use super::frontend::{NicError, NicOptions, RECEIVER_OFFLOADS, SENDER_OFFLOADS};

const HEADER: usize = header::LENGTH as usize;
/// Where [`NicOptions::pieces`] cuts: in the header, and behind it in the frame.
const CUTS: [u32; 2] = [5, 12 + 20];
/// Guest address of the card's memory.
const MEMORY: u64 = 0x4000_0000;

/// The virtio-net header of a frame.
pub type Header = [u8; HEADER];

/// A receive queue and a transmit queue.
#[derive(Debug)]
struct Pair {
    receive: DriverQueue,
    transmit: DriverQueue,
}

/// A network card of a built-in guest.
#[derive(Debug)]
pub struct GuestNic {
    link: Link,
    ram: GuestRam,
    pairs: Vec<Pair>,
    options: NicOptions,
    frame: Vec<u8>,
}

impl GuestNic {
    /// Connects to a vhost-user socket, negotiates, shares memory, and starts all queue pairs with all receive buffers
    /// posted.
    pub fn connect(path: &Path, options: NicOptions) -> Result<Self, NicError> {
        Self::with(Frontend::connect(path, 2 * u64::from(options.queue_pairs))?, options)
    }

    /// The same over a connection that there is already.
    pub fn over(stream: UnixStream, options: NicOptions) -> Result<Self, NicError> {
        Self::with(Frontend::from_stream(stream, 2 * u64::from(options.queue_pairs)), options)
    }

    fn with(frontend: Frontend, options: NicOptions) -> Result<Self, NicError> {
        let mut link = Link(frontend);
        link.negotiate(&options)?;
        let receive = QueueOptions {
            size: options.queue_size,
            buffer: options.receive_buffer.unwrap_or(options.buffer),
            descriptors: 1,
            packed: options.packed,
            indirect: false,
            in_order: options.in_order,
            event_idx: options.event_idx,
        };
        let pieces = match (options.indirect, options.pieces, options.separate_header) {
            (true, ..) | (_, false, false) => 1,
            (_, false, true) => 2,
            (_, true, _) => 3,
        };
        let transmit = QueueOptions {
            buffer: options.buffer,
            descriptors: pieces,
            indirect: options.indirect,
            ..receive
        };
        let pairs = u64::from(options.queue_pairs);
        // Room for some rings to be reset, which takes new ones.
        let bytes =
            pairs * (DriverQueue::footprint(&receive) + DriverQueue::footprint(&transmit)) + (4 << 20);
        let mut ram = GuestRam::new(MEMORY, bytes.next_multiple_of(1 << 21))?;
        // The first page stays free, so that buffers can be placed around the beginning of memory by hand.
        ram.allocate(4096, 4096)?;
        let pair = |_| -> Result<Pair, NicError> {
            let mut receive = DriverQueue::new(&mut ram, receive)?;
            post_all(&mut receive, &ram);
            Ok(Pair { receive, transmit: DriverQueue::new(&mut ram, transmit)? })
        };
        let pairs = (0..options.queue_pairs).map(pair).collect::<Result<_, _>>()?;
        let mut nic = Self { link, ram, pairs, options, frame: Vec::new() };
        nic.link.share(&nic.ram, options.memory_slots)?;
        nic.restart_queues()?;
        Ok(nic)
    }

    /// Connects to another back end, the first having gone without a word, and has it go on with the rings as they are. As
    /// QEMU, it knows no more of packed rings than where they began.
    pub fn rejoin(&mut self, path: &Path) -> Result<(), NicError> {
        self.link = Link(Frontend::connect(path, 2 * u64::from(self.options.queue_pairs))?);
        self.link.negotiate(&self.options)?;
        self.link.share(&self.ram, self.options.memory_slots)?;
        for (n, pair) in self.pairs.iter().enumerate() {
            for (index, queue) in [(2 * n, &pair.receive), (2 * n + 1, &pair.transmit)] {
                let base = if self.options.packed { PackedRing::START as u16 } else { queue.base() };
                self.link.start_at(index, queue, &self.ram, base)?;
            }
        }
        Ok(())
    }

    /// Stops all queues; returns where the device says the first pair stands (receive, transmit).
    pub fn stop_queues(&mut self) -> Result<(u16, u16), NicError> {
        let mut bases = Vec::new();
        for index in 0..2 * self.pairs.len() {
            bases.push(self.link.0.get_vring_base(index)? as u16);
        }
        Ok((bases[0], bases[1]))
    }

    /// Starts the queues again where they stood.
    pub fn restart_queues(&mut self) -> Result<(), NicError> {
        for (n, pair) in self.pairs.iter().enumerate() {
            self.link.start(2 * n, &pair.receive, &self.ram)?;
            self.link.start(2 * n + 1, &pair.transmit, &self.ram)?;
        }
        Ok(())
    }

    /// Resets the device and brings it up again, with fresh rings.
    pub fn reset(&mut self) -> Result<(), NicError> {
        self.link.0.reset_device()?;
        for pair in &mut self.pairs {
            pair.receive.renew(&mut self.ram, self.options.queue_size)?;
            post_all(&mut pair.receive, &self.ram);
            pair.transmit.renew(&mut self.ram, self.options.queue_size)?;
        }
        self.restart_queues()
    }

    /// Resets one virtqueue (`VIRTIO_F_RING_RESET`) and brings it up with `size` descriptors, no more than it had. What
    /// was under way in it is lost.
    pub fn reset_ring(&mut self, index: usize, size: u16) -> Result<(), NicError> {
        self.link.0.set_vring_enable(index, false)?;
        self.link.0.get_vring_base(index)?;
        let pair = &mut self.pairs[index / 2];
        let queue = if index.is_multiple_of(2) {
            pair.receive.renew(&mut self.ram, size)?;
            post_all(&mut pair.receive, &self.ram);
            &pair.receive
        } else {
            pair.transmit.renew(&mut self.ram, size)?;
            &pair.transmit
        };
        self.link.start(index, queue, &self.ram)
    }

    /// Enables or disables a queue pair. Frames that were sent on a disabled one wait there.
    ///
    /// A pair sends only while it receives, so that a device which sends frames back where they came from need not choose.
    pub fn set_pair_enabled(&mut self, pair: usize, enabled: bool) -> Result<(), NicError> {
        let (receive, transmit) = (2 * pair, 2 * pair + 1);
        let order = if enabled { [receive, transmit] } else { [transmit, receive] };
        for index in order {
            self.link.0.set_vring_enable(index, enabled)?;
        }
        Ok(())
    }

    /// The vhost-user front end, for messages that are not about frames.
    pub fn frontend(&mut self) -> &mut Frontend {
        &mut self.link.0
    }

    /// The guest's memory.
    pub fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// What kind of driver it plays.
    pub fn options(&self) -> &NicOptions {
        &self.options
    }

    /// Number of queue pairs.
    pub fn pairs(&self) -> usize {
        self.pairs.len()
    }

    /// A virtqueue by its index, its ring to write to by hand, and the memory that they are in.
    pub fn by_hand(&mut self, index: usize) -> (&mut Layout, &GuestRam) {
        let pair = &mut self.pairs[index / 2];
        let queue = if index.is_multiple_of(2) { &mut pair.receive } else { &mut pair.transmit };
        (queue.layout(), &self.ram)
    }

    /// Sets memory aside, for what is written by hand; returns its guest address.
    pub fn allocate(&mut self, len: u64) -> Result<u64, NicError> {
        Ok(self.ram.allocate(len, 4096)?)
    }

    /// Frames that can be sent on the first pair before one must come back.
    pub fn free_slots(&self) -> usize {
        self.pairs[0].transmit.free()
    }

    /// Longest frame in bytes that fits into a transmit buffer.
    pub fn max_frame(&self) -> usize {
        self.options.buffer as usize - HEADER
    }

    /// Queues a frame on the first pair; `false` when all buffers are in use. The device sees it after
    /// [`flush`](Self::flush).
    ///
    /// # Panics
    /// When the frame is longer than [`max_frame`](Self::max_frame).
    pub fn send(&mut self, frame: &[u8]) -> bool {
        self.send_on(0, &header::plain(0), frame)
    }

    /// Queues a frame on a pair, behind a header of the caller's choice.
    ///
    /// # Panics
    /// When the frame is longer than [`max_frame`](Self::max_frame), or there is no such pair.
    pub fn send_on(&mut self, pair: usize, header: &Header, frame: &[u8]) -> bool {
        assert!(frame.len() <= self.max_frame(), "frame of {} bytes", frame.len());
        let Self { pairs, ram, options, .. } = self;
        let queue = &mut pairs[pair].transmit;
        let Some(id) = queue.take() else { return false };
        let (at, _) = queue.buffer(id);
        ram.write(at, header);
        ram.write(at + HEADER as u64, frame);
        let len = header::LENGTH + frame.len() as u32;
        match (options.pieces, options.separate_header) {
            (false, false) => queue.push(ram, id, &[(at, len)], 0),
            (false, true) => {
                let header = header::LENGTH;
                queue.push(ram, id, &[(at, header), (at + u64::from(header), len - header)], 0);
            }
            (true, _) => {
                let [first, second] = CUTS.map(|cut| cut.min(len));
                let piece = |from: u32, to: u32| (at + u64::from(from), to - from);
                queue.push(ram, id, &[piece(0, first), piece(first, second), piece(second, len)], 0);
            }
        }
        true
    }

    /// Shows the device what was queued and kicks it if it wants that.
    pub fn flush(&mut self) {
        for pair in &mut self.pairs {
            pair.transmit.flush(&self.ram);
        }
    }

    /// Takes back the buffers of frames that were sent; returns how many.
    pub fn take_sent(&mut self) -> usize {
        let mut n = 0;
        for pair in &mut self.pairs {
            let before = n;
            while let Some((id, _)) = pair.transmit.pop(&self.ram) {
                pair.transmit.give_back(id);
                n += 1;
            }
            if n > before {
                pair.transmit.rearm(&self.ram);
            }
        }
        n
    }

    /// Calls `each` with every frame that has arrived, at most `limit` a pair, and posts its buffers again; returns how
    /// many.
    pub fn receive(&mut self, limit: usize, mut each: impl FnMut(&[u8])) -> usize {
        (0..self.pairs.len()).map(|pair| self.receive_on(pair, limit, |_, frame| each(frame))).sum()
    }

    /// The same for one pair, with the header of each frame.
    pub fn receive_on(&mut self, pair: usize, limit: usize, mut each: impl FnMut(&Header, &[u8])) -> usize {
        let Self { pairs, ram, frame, .. } = self;
        let queue = &mut pairs[pair].receive;
        let mut frames = 0;
        while frames < limit
            && let Some((id, written)) = queue.pop(ram)
        {
            frame.clear();
            take_in(queue, ram, id, written, frame);
            let buffers = frame.get(10..12).map_or(1, |n| u16::from_le_bytes([n[0], n[1]]));
            for _ in 1..buffers {
                // The device publishes all buffers of a frame at once, so the rest is there.
                let Some((id, written)) = queue.pop(ram) else { break };
                take_in(queue, ram, id, written, frame);
            }
            let (header, frame) = frame.split_first_chunk().unwrap_or((&[0; HEADER], &[]));
            each(header, frame);
            frames += 1;
        }
        if frames > 0 {
            queue.flush(ram);
            queue.rearm(ram);
        }
        frames
    }

    /// Asks not to be interrupted (a driver that polls), or to be interrupted again.
    pub fn set_polling(&mut self, polling: bool) {
        for pair in &mut self.pairs {
            pair.receive.set_polling(&self.ram, polling);
            pair.transmit.set_polling(&self.ram, polling);
        }
    }

    /// The eventfds that the device is kicked by, of the first pair: receive, transmit.
    pub fn kicks(&self) -> [&EventFd; 2] {
        [&self.pairs[0].receive.kick, &self.pairs[0].transmit.kick]
    }

    /// The eventfds that the device interrupts, of all pairs.
    pub fn all_interrupts(&self) -> impl Iterator<Item = &EventFd> {
        self.pairs.iter().flat_map(|pair| [&pair.receive.call, &pair.transmit.call])
    }

    /// The eventfds that the device interrupts, of the first pair: receive, transmit.
    pub fn interrupts(&self) -> [&EventFd; 2] {
        [&self.pairs[0].receive.call, &self.pairs[0].transmit.call]
    }

    /// Kicks virtqueue `index` of the first pair (0: receive, 1: transmit), whether the device wants that or not.
    pub fn kick(&self, index: usize) {
        let queue = if index == 0 { &self.pairs[0].receive } else { &self.pairs[0].transmit };
        // A counter at its limit has not been looked at, which is as good.
        let _ = queue.kick.write(1);
    }
}

/// Copies what was written to a receive buffer behind `frame`, and posts it again.
fn take_in(queue: &mut DriverQueue, ram: &GuestRam, id: u16, written: u32, frame: &mut Vec<u8>) {
    let (at, buffer) = (frame.len(), queue.buffer(id));
    frame.resize(at + written.min(buffer.1) as usize, 0);
    ram.read(buffer.0, &mut frame[at..]);
    queue.push(ram, id, &[buffer], WRITE);
}

fn post_all(queue: &mut DriverQueue, ram: &GuestRam) {
    while let Some(id) = queue.take() {
        queue.push(ram, id, &[queue.buffer(id)], WRITE);
    }
    queue.flush(ram);
}
