//! The receive queue.
//!
//! ```text
//!   buffer    [ virtio-net header | frame …        ] ─▶ [ … frame          ] ─▶ …      as many as the header says
//! ```
//!
//! A frame longer than a buffer fills several, of which all but the last are full; it is known by its first, and the pool
//! keeps the chain. Nothing that the device writes is trusted: a length is cut to the buffer, a chain has an end, and a
//! device whose frames cannot be told apart any more is not listened to until it was reset.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use arrayvec::ArrayVec;

use super::health::{Complaint, Counters, Health, count};
use super::ring::{Piece, Ring, Used};
use super::transport::Doorbell;
use crate::device::{Armed, ReceiveQueue};
use crate::frame::{Burst, MIN_FRAME, Token};
use crate::memory::{BUFFER_SIZE, BufferPool, DmaSlice, refill_of};
use crate::net_header::{self, LENGTH};
use crate::offload::Offload;

/// Most buffers of one frame: one more than the longest that still has to be cut needs (5.1.6.3.1).
const MAX_CHAIN: usize = 34;
const _: () = assert!(MAX_CHAIN as u32 * BUFFER_SIZE > 65_562 + BUFFER_SIZE);
/// An id without a buffer.
const NONE: u32 = u32::MAX;

/// Ids that are free, the one that has been for longest first.
#[derive(Debug)]
struct Ids {
    ring: Box<[u16]>,
    first: u16,
    count: u16,
}

impl Ids {
    fn new(size: u16) -> Self {
        Self { ring: (0..size).collect(), first: 0, count: size }
    }

    #[inline]
    fn mask(&self) -> u16 {
        self.ring.len() as u16 - 1
    }

    #[inline]
    fn take(&mut self) -> Option<u16> {
        let id = *self.ring.get(usize::from(self.first)).filter(|_| self.count > 0)?;
        self.first = (self.first + 1) & self.mask();
        self.count -= 1;
        Some(id)
    }

    #[inline]
    fn give_back(&mut self, id: u16) {
        let at = (self.first + self.count) & self.mask();
        if let Some(entry) = self.ring.get_mut(usize::from(at)) {
            *entry = id;
            self.count += 1;
        }
    }
}

/// A frame of which not all buffers are there, or for which a burst had no room.
#[derive(Debug, Default)]
struct Pending {
    /// Buffers and the bytes in each.
    parts: ArrayVec<(u32, u32), MAX_CHAIN>,
    /// Buffers that its header announced.
    announced: usize,
    header: [u8; LENGTH as usize],
}

/// The receive queue of a virtio-net function.
#[derive(Debug)]
pub struct VirtioReceive {
    ring: Ring,
    doorbell: Doorbell,
    pool: BufferPool,
    /// Bytes of each buffer.
    size: u32,
    /// The buffer with each id.
    buffers: Box<[u32]>,
    ids: Ids,
    pending: Box<Pending>,
    /// Whether a frame may fill several buffers.
    merged: bool,
    broken: bool,
    counters: Arc<Counters>,
    health: Arc<Health>,
    /// Rings when the device interrupts.
    bell: Option<OwnedFd>,
}

/// What a queue is made of.
#[derive(Debug)]
pub struct Parts {
    /// An enabled ring.
    pub ring: Ring,
    /// Its descriptors.
    pub size: u16,
    /// How it is notified.
    pub doorbell: Doorbell,
    /// Shared with the slow side.
    pub counters: Arc<Counters>,
    /// Shared with the slow side.
    pub health: Arc<Health>,
}

impl VirtioReceive {
    /// A queue of a device that runs, with `memory` for its buffers of `size` bytes; gives it its first ones.
    pub(super) fn new(
        parts: Parts,
        memory: DmaSlice,
        size: u32,
        merged: bool,
        bell: Option<OwnedFd>,
    ) -> Self {
        let mut queue = Self {
            ring: parts.ring,
            doorbell: parts.doorbell,
            pool: BufferPool::of_size(memory, size),
            size,
            buffers: vec![NONE; usize::from(parts.size)].into_boxed_slice(),
            ids: Ids::new(parts.size),
            pending: Box::default(),
            merged,
            broken: false,
            counters: parts.counters,
            health: parts.health,
            bell,
        };
        queue.refill();
        queue
    }

    #[inline]
    fn refill(&mut self) {
        let size = self.buffers.len() as u16;
        let count = self.ids.count.min(self.pool.available().min(usize::from(size)) as u16);
        if count == 0 || count < refill_of(size) && self.ids.count < size / 2 {
            return;
        }
        for _ in 0..count {
            let (Some(id), Some(buffer)) = (self.ids.take(), self.pool.take()) else { break };
            self.ring.give(id, &[Piece { iova: self.pool.iova(buffer), len: self.size, write: true }]);
            if let Some(entry) = self.buffers.get_mut(usize::from(id)) {
                *entry = buffer;
            }
        }
        if self.ring.show() {
            self.doorbell.ring(&self.ring);
        }
    }

    /// Buffers that nobody has.
    #[cfg(test)]
    pub(super) fn free_buffers(&self) -> usize {
        self.pool.available()
    }

    /// The device cannot be believed any more.
    #[cold]
    fn give_up(&mut self, complaint: Complaint) {
        count(&self.counters.ring_errors);
        self.health.complain(complaint);
        self.broken = true;
    }

    /// Drops what there is of the pending frame.
    fn drop_pending(&mut self) {
        for (buffer, _) in self.pending.parts.drain(..) {
            self.pool.give_back(buffer);
        }
    }

    /// What the device leaves to be done for the frame; `None` where it contradicts itself.
    #[inline]
    fn offload(&self, header: &[u8; LENGTH as usize], len: u32) -> Option<Offload> {
        let offload =
            if header[..2] == [0, 0] { Ok(Offload::NONE) } else { net_header::parse_of_device(header, len) };
        offload.map_err(|_| count(&self.counters.header_errors)).ok()
    }

    /// Moves the next frame into `burst`, or drops it; `false` when there is none or the burst has no room for it.
    #[inline]
    fn next_frame(&mut self, burst: &mut Burst) -> bool {
        if !self.pending.parts.is_empty() && self.pending.parts.len() == self.pending.announced {
            return self.finish(burst);
        }
        let Used { id, len } = match self.ring.take() {
            Ok(Some(used)) => used,
            Ok(None) => return false,
            Err(breach) => {
                self.give_up(breach.into());
                return false;
            }
        };
        let Some(entry) = self.buffers.get_mut(usize::from(id)) else { return false };
        let buffer = std::mem::replace(entry, NONE);
        self.ids.give_back(id);
        if self.pending.parts.is_empty() {
            self.first(burst, buffer, len)
        } else {
            self.more(burst, buffer, len)
        }
    }

    /// The first buffer of a frame, which is the only one of most.
    #[inline]
    fn first(&mut self, burst: &mut Burst, buffer: u32, len: u32) -> bool {
        let whole = self.pool.segment(buffer, len);
        let header = whole.read_array::<{ LENGTH as usize }>();
        let Some(header) = header.filter(|_| len <= self.size) else {
            count(&self.counters.length_errors);
            self.pool.give_back(buffer);
            return true;
        };
        let announced =
            if self.merged { usize::from(u16::from_le_bytes([header[10], header[11]])) } else { 1 };
        if announced == 1 {
            let frame = whole.part(LENGTH, u32::MAX);
            if frame.len() < MIN_FRAME {
                count(&self.counters.length_errors);
                self.pool.give_back(buffer);
                return true;
            }
            let Some(offload) = self.offload(&header, frame.len()) else {
                self.pool.give_back(buffer);
                return true;
            };
            if burst.push_whole(frame, Token(buffer), offload) {
                return true;
            }
        }
        if announced == 0 || announced > MAX_CHAIN.min(self.buffers.len()) || announced > 1 && len < self.size
        {
            self.pool.give_back(buffer);
            self.give_up(Complaint::Framing);
            return false;
        }
        self.pending.announced = announced;
        self.pending.header = header;
        self.pending.parts.push((buffer, len));
        announced > 1
    }

    /// A further buffer of a frame.
    fn more(&mut self, burst: &mut Burst, buffer: u32, len: u32) -> bool {
        let at = self.pending.parts.len();
        let last = at + 1 == self.pending.announced;
        if len > self.size || len == 0 || !last && len < self.size {
            self.pool.give_back(buffer);
            self.drop_pending();
            self.give_up(Complaint::Framing);
            return false;
        }
        self.pending.parts.push((buffer, len));
        !last || self.finish(burst)
    }

    /// Moves the pending frame, whose buffers are all there, into `burst`, or drops it.
    fn finish(&mut self, burst: &mut Burst) -> bool {
        let len = self.pending.parts.iter().map(|(_, len)| len).sum::<u32>().saturating_sub(LENGTH);
        let header = self.pending.header;
        let Some(offload) = self.offload(&header, len) else {
            self.drop_pending();
            return true;
        };
        for (n, (buffer, len)) in self.pending.parts.iter().enumerate() {
            let whole = self.pool.segment(*buffer, *len);
            let part = if n == 0 { whole.part(LENGTH, u32::MAX) } else { whole };
            if burst.push_segment(part).is_err() {
                burst.abandon_frame();
                return false;
            }
        }
        let first = self.pending.parts.first().map_or(NONE, |(buffer, _)| *buffer);
        if !burst.finish_frame_with(Token(first), offload) {
            return false;
        }
        for pair in self.pending.parts.windows(2) {
            self.pool.link(pair[0].0, pair[1].0);
        }
        self.pending.parts.clear();
        true
    }
}

impl ReceiveQueue for VirtioReceive {
    #[inline]
    fn receive(&mut self, burst: &mut Burst) {
        if self.broken {
            return;
        }
        let before = (burst.len(), burst.bytes());
        while burst.room() > 0 && self.next_frame(burst) {}
        self.counters.add((burst.len() - before.0) as u64, (burst.bytes() - before.1).into());
        self.refill();
    }

    #[inline]
    fn release(&mut self, token: Token) {
        self.pool.give_back(token.0);
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        self.bell.as_ref().map(|bell| bell.as_fd())
    }

    fn arm(&mut self) -> Armed {
        if self.bell.is_none() {
            return Armed::Silent;
        }
        // Nothing will ever come from a device that is not listened to.
        if self.broken {
            return Armed::Rings;
        }
        self.ring.ask_for_interrupts(true);
        let held = !self.pending.parts.is_empty() && self.pending.parts.len() == self.pending.announced;
        if held || self.ring.has_used() { Armed::Ready } else { Armed::Rings }
    }

    fn disarm(&mut self) {
        if self.bell.is_some() {
            self.ring.ask_for_interrupts(false);
        }
    }
}
