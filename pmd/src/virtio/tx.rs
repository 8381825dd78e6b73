//! The transmit queue.
//!
//! ```text
//!   slots   [ header | frame … ][ … frame ][ header | frame ] …      2 KiB each; a frame takes as many in a row as it needs
//!              └── descriptor ──────┘         └── descriptor            and two descriptors where it goes around the end
//! ```
//!
//! A frame is copied once, behind its virtio-net header. Frames come back in any order; their slots are used again in
//! theirs.

use std::sync::Arc;

use super::health::{Counters, Health, count};
use super::ring::{Piece, Ring};
use super::rx::Parts;
use super::transport::Doorbell;
use crate::device::{Accepted, Completions, TransmitQueue};
use crate::frame::{Frame, Frames, MIN_FRAME, MIN_WIRE, Segment};
use crate::memory::{BUFFER_SIZE, DmaSlice, SlotBuffers};
use crate::net_header::{self, LENGTH};
use crate::offload::{Capabilities, Segmentation};
use crate::vf::Progress;

/// Fewest slots of a queue: the longest frames take 33.
pub const FEWEST_SLOTS: u16 = 128;
/// Longest frame that is still to be cut, in bytes: what an IP packet can have, with its Ethernet header and VLAN tag.
pub const LONGEST: u32 = 65_535 + 18;
/// Descriptors of a frame, at most.
const MOST_DESCRIPTORS: u16 = 2;

/// A frame on its way, under the id of its first descriptor.
#[derive(Clone, Copy, Debug, Default)]
struct Flight {
    slots: u16,
    descriptors: u16,
    done: bool,
}

/// The transmit queue of a virtio-net function.
#[derive(Debug)]
pub struct VirtioTransmit {
    ring: Ring,
    doorbell: Doorbell,
    capabilities: Capabilities,
    max_frame: u32,
    buffers: SlotBuffers,
    slots: u16,
    /// The slot that is filled next, and slots that are in use.
    slot: u16,
    used_slots: u16,
    flights: Box<[Flight]>,
    /// Id of the oldest frame on its way, and of the next; descriptors between the two.
    oldest: u16,
    next: u16,
    used_descriptors: u16,
    progress: Arc<Progress>,
    disabled: bool,
    counters: Arc<Counters>,
    health: Arc<Health>,
}

impl VirtioTransmit {
    /// A queue of a device that runs, with [`SlotBuffers::bytes`] of memory for `slots`.
    pub(super) fn new(
        parts: Parts,
        memory: DmaSlice,
        slots: u16,
        max_frame: u32,
        capabilities: Capabilities,
    ) -> Self {
        Self {
            ring: parts.ring,
            doorbell: parts.doorbell,
            capabilities,
            max_frame,
            buffers: SlotBuffers::new(memory, slots),
            slots,
            slot: 0,
            used_slots: 0,
            flights: vec![Flight::default(); usize::from(parts.size)].into_boxed_slice(),
            oldest: 0,
            next: 0,
            used_descriptors: 0,
            progress: Arc::default(),
            disabled: false,
            counters: parts.counters,
            health: parts.health,
        }
    }

    /// Slots and descriptors that are in use.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> (u16, u16) {
        (self.used_slots, self.used_descriptors)
    }

    #[inline]
    fn flight(&mut self, id: u16) -> Option<&mut Flight> {
        self.flights.get_mut(usize::from(id))
    }

    #[inline]
    fn after(&self, id: u16, descriptors: u16) -> u16 {
        (id + descriptors) & (self.flights.len() as u16 - 1)
    }

    /// Frees what the device is done with.
    #[inline]
    fn collect(&mut self) {
        let is_waiting = self.used_descriptors > 0;
        let mut done = 0;
        loop {
            match self.ring.take() {
                Ok(Some(used)) => {
                    done += 1;
                    if let Some(flight) = self.flight(used.id) {
                        flight.done = true;
                    }
                }
                Ok(None) => break,
                Err(breach) => {
                    count(&self.counters.ring_errors);
                    self.health.complain(breach.into());
                    self.disabled = true;
                    return;
                }
            }
        }
        while self.used_descriptors > 0 {
            let id = self.oldest;
            let Some(flight) = self.flight(id).filter(|flight| flight.done).map(std::mem::take) else {
                break;
            };
            self.used_slots -= flight.slots;
            self.used_descriptors -= flight.descriptors;
            self.oldest = self.after(id, flight.descriptors);
        }
        if is_waiting {
            self.progress.looked(done);
        }
    }

    #[inline]
    fn can_be_sent(&self, frame: &Frame) -> bool {
        let cut = frame.offload().segmentation != Segmentation::None;
        (MIN_FRAME..=if cut { LONGEST } else { self.max_frame }).contains(&frame.len())
    }

    /// Copies a frame of a length that can be sent; `false` when there is no room for it.
    #[inline]
    fn send(&mut self, frame: &Frame, segments: &[Segment]) -> bool {
        let offload = frame.offload();
        // What fills up a frame that is cut would be taken for payload.
        let short = frame.len() < MIN_WIRE && offload.segmentation == Segmentation::None;
        let len = LENGTH + if short { MIN_WIRE } else { frame.len() };
        let needed = len.div_ceil(BUFFER_SIZE) as u16;
        let room = self.flights.len() as u16 - self.used_descriptors;
        if needed > self.slots - self.used_slots || room < MOST_DESCRIPTORS {
            return false;
        }
        // Nothing but what is left to the device may be in it (5.1.6.2.1).
        let header = if offload.is_done() { [0; LENGTH as usize] } else { net_header::write(offload, 0) };
        if short {
            self.buffers.segment(self.slot, LENGTH + MIN_WIRE).copy_from(&[0; (LENGTH + MIN_WIRE) as usize]);
        }
        self.buffers.segment(self.slot, LENGTH).write_array(&header);
        self.buffers.copy_behind(LENGTH, segments, self.slot);

        let iova = self.buffers.iova(self.slot);
        let straight = len.min(u32::from(self.slots - self.slot) * BUFFER_SIZE);
        let piece = |iova, len| Piece { iova, len, write: false };
        let pieces = [piece(iova, straight), piece(self.buffers.iova(0), len - straight)];
        let descriptors = if straight < len { 2 } else { 1 };
        let id = self.next;
        self.ring.give(id, pieces.get(..descriptors).unwrap_or_default());
        let descriptors = descriptors as u16;
        if let Some(flight) = self.flight(id) {
            *flight = Flight { slots: needed, descriptors, done: false };
        }
        self.next = self.after(id, descriptors);
        self.used_descriptors += descriptors;
        self.slot = (self.slot + needed) & (self.slots - 1);
        self.used_slots += needed;
        true
    }
}

impl TransmitQueue for VirtioTransmit {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    #[inline]
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        if !self.disabled {
            self.collect();
        }
        if self.disabled {
            return Accepted::Copied(0);
        }
        let (mut accepted, mut sent, mut bytes) = (0, 0, 0);
        for (frame, segments) in frames.iter() {
            if !self.can_be_sent(frame) {
                count(&self.counters.length_errors);
            } else if self.send(frame, segments) {
                sent += 1;
                bytes += u64::from(frame.len());
            } else {
                break;
            }
            accepted += 1;
        }
        if sent > 0 {
            if self.ring.show() {
                self.doorbell.ring(&self.ring);
            }
            self.counters.add(sent, bytes);
        }
        Accepted::Copied(accepted)
    }

    #[inline]
    fn reclaim(&mut self, _done: &mut Completions) {
        if !self.disabled {
            self.collect();
        }
    }

    fn progress(&self) -> Option<Arc<Progress>> {
        Some(Arc::clone(&self.progress))
    }

    fn outstanding(&self) -> usize {
        0
    }

    /// What is under way is in memory of its own, which the device may go on reading until it is reset.
    fn abort(&mut self, _done: &mut Completions) {
        self.disabled = true;
    }
}
