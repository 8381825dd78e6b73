//! The driver's side of a virtqueue over DMA memory, in either layout (virtio 1.3, 2.7 and 2.8).
//!
//! A buffer is known by its id, which its owner chooses among the numbers below the ring's size; those of outstanding
//! buffers all differ. With `VIRTIO_F_IN_ORDER` each id follows on the one before, by as many as that one has descriptors.
//! Nothing that the device writes is trusted: what it says is used must have been given to it.

mod packed;
mod split;

use packed::Packed;
use split::Split;

use super::features::{EVENT_IDX, Features, IN_ORDER, RING_PACKED};
use crate::memory::DmaSlice;

/// A run of bytes that belongs to a buffer.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Where the device finds it.
    pub iova: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub write: bool,
}

/// A buffer that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its id.
    pub id: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// How a device broke the rules so that nothing it says can be believed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// It gave back a buffer that it did not have.
    NotGiven,
    /// It gave back more buffers than it had.
    TooMany,
}

/// What was given to the device and has not come back.
#[derive(Debug)]
struct Ledger {
    /// Descriptors of the buffer with each id; 0 where it is not outstanding.
    descriptors: Box<[u8]>,
    /// Descriptors outstanding.
    count: u16,
    /// Buffers come back in the order in which they were given.
    in_order: bool,
    /// The oldest buffer, with `in_order`.
    oldest: u16,
    /// A batch that came back under the name of its last buffer, of which some are not handed out yet.
    batch: Option<Used>,
    /// Length of the buffers of a batch before the last: they were filled.
    filled: u32,
}

impl Ledger {
    fn new(size: u16, in_order: bool, filled: u32) -> Self {
        let descriptors = vec![0; usize::from(size)].into_boxed_slice();
        Self { descriptors, count: 0, in_order, oldest: 0, batch: None, filled }
    }

    #[inline]
    fn given(&mut self, id: u16, descriptors: usize) {
        if let Some(entry) = self.descriptors.get_mut(usize::from(id)) {
            *entry = descriptors as u8;
            self.count += descriptors as u16;
        }
    }

    /// A used entry says that buffer `id` is done; [`take`](Self::take) looks whether it was given.
    #[inline]
    fn said(&mut self, id: u32, len: u32) -> Result<Used, Breach> {
        match self.descriptors.get(id as usize) {
            Some(1..) if self.in_order => {
                self.batch = Some(Used { id: id as u16, len });
                self.next_of_batch().ok_or(Breach::NotGiven)
            }
            Some(_) if !self.in_order => Ok(Used { id: id as u16, len }),
            _ => Err(Breach::NotGiven),
        }
    }

    /// The next buffer of a batch that was begun.
    #[inline]
    fn next_of_batch(&mut self) -> Option<Used> {
        let last = self.batch?;
        if last.id == self.oldest {
            self.batch = None;
            return Some(last);
        }
        Some(Used { id: self.oldest, len: self.filled })
    }

    /// Buffer `id` is out of the device's hands; how many descriptors it had.
    #[inline]
    fn take(&mut self, id: u16) -> Result<u16, Breach> {
        let entry = self.descriptors.get_mut(usize::from(id)).ok_or(Breach::NotGiven)?;
        let descriptors = u16::from(std::mem::take(entry));
        if descriptors == 0 {
            return Err(Breach::NotGiven);
        }
        self.count -= descriptors;
        self.oldest = (id + descriptors) & (self.descriptors.len() as u16 - 1);
        Ok(descriptors)
    }
}

/// What a ring is like.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Descriptors: a power of two.
    pub size: u16,
    /// What was agreed on.
    pub features: Features,
    /// Length in bytes of every buffer that the device fills; 0 where it only reads.
    pub filled: u32,
}

impl Layout {
    /// Bytes of memory for such a ring.
    pub fn bytes(&self) -> usize {
        if self.features.has(RING_PACKED) { packed::bytes(self.size) } else { split::bytes(self.size) }
    }
}

/// A ring in its driver's hands.
#[derive(Debug)]
pub enum Ring {
    /// A table, and an index each way.
    Split(Split),
    /// One ring of descriptors.
    Packed(Packed),
}

macro_rules! either {
    ($ring:expr, $it:ident => $do:expr) => {
        match $ring {
            Ring::Split($it) => $do,
            Ring::Packed($it) => $do,
        }
    };
}

impl Ring {
    /// A ring in `memory` of [`Layout::bytes`], all zeros. It asks for no interrupts.
    pub fn new(memory: DmaSlice, layout: Layout) -> Self {
        let ledger = Ledger::new(layout.size, layout.features.has(IN_ORDER), layout.filled);
        let event_idx = layout.features.has(EVENT_IDX);
        let mut ring = if layout.features.has(RING_PACKED) {
            Self::Packed(Packed::new(memory, layout.size, event_idx, ledger))
        } else {
            Self::Split(Split::new(memory, layout.size, event_idx, ledger))
        };
        ring.ask_for_interrupts(false);
        ring
    }

    /// Where the device finds the descriptors, the driver's area and its own.
    pub fn areas(&self) -> [u64; 3] {
        either!(self, ring => ring.areas())
    }

    /// Descriptors that are free.
    #[inline]
    pub fn room(&self) -> u16 {
        either!(self, ring => ring.size() - ring.ledger.count)
    }

    /// Gives the device buffer `id` of one or more pieces, those it reads first. It sees it after [`show`](Self::show).
    #[inline]
    pub fn give(&mut self, id: u16, pieces: &[Piece]) {
        either!(self, ring => {
            ring.give(id, pieces);
            ring.ledger.given(id, pieces.len());
        });
    }

    /// Shows the device what it was given; whether it wants to be notified.
    #[inline]
    pub fn show(&mut self) -> bool {
        either!(self, ring => ring.show())
    }

    /// The upper half of what a notification says with `VIRTIO_F_NOTIFICATION_DATA` (4.1.5.2): where the next buffer goes.
    #[inline]
    pub fn next_offset(&self) -> u16 {
        either!(self, ring => ring.next_offset())
    }

    /// A buffer that the device is done with. After a breach nothing of the ring means anything.
    #[inline]
    pub fn take(&mut self) -> Result<Option<Used>, Breach> {
        either!(self, ring => {
            let used = match ring.ledger.next_of_batch() {
                Some(used) => used,
                None => match ring.look()? {
                    Some((id, len)) => ring.ledger.said(id, len)?,
                    None => return Ok(None),
                },
            };
            let descriptors = ring.ledger.take(used.id)?;
            ring.advance(descriptors);
            Ok(Some(used))
        })
    }

    /// Whether a buffer came back that was not taken.
    #[inline]
    pub fn has_used(&self) -> bool {
        either!(self, ring => ring.ledger.batch.is_some() || ring.is_used())
    }

    /// Asks the device to interrupt at the next buffer that it is done with, or not to.
    pub fn ask_for_interrupts(&mut self, wanted: bool) {
        either!(self, ring => ring.ask_for_interrupts(wanted));
        // What is used from here on is told of; what was used before is seen.
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    }
}
