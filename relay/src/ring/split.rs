//! The split ring (virtio 1.3, section 2.7), device side.
//!
//! ```text
//!  driver writes                                    device writes
//!  descriptors  [addr len flags next] × size        used.flags  used.idx  [id len] × size
//!  avail.flags  avail.idx  [head] × size
//!
//!        next_avail ──▶ avail.idx      heads we have not taken yet
//!        published ──▶ next_used       entries written, not yet visible to the driver
//! ```
//!
//! Every field that the driver writes is read once, into a local, and checked there. An index is loaded with acquire
//! order before what it covers is read; `used.idx` is stored with release order after what it covers was written.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use pmd::Segment;
use pmd::frame::BURST_SEGMENTS;
use thiserror::Error;

use super::chain::{Access, DESCRIPTOR_SIZE, Descriptor, INDIRECT, NEXT, Stop};
use super::notify::Call;
use crate::counters::DropReason;
use crate::guest::memory::{GuestMemory, Translator};

/// Largest ring (virtio 1.3, 2.7).
pub const MAX_SIZE: u16 = 32768;
/// Smallest ring that is of use.
pub const MIN_SIZE: u16 = 2;

/// Descriptors that one burst looks at before the next lane has its turn: twice what a burst of full chains needs.
const BURST_DESCRIPTORS: u32 = 2 * BURST_SEGMENTS as u32;

/// `VIRTQ_USED_F_NO_NOTIFY`: the device polls, the driver need not kick (2.7.10).
const USED_NO_NOTIFY: u16 = 1;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver polls, the device need not interrupt (2.7.7).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// Where a ring is, as a front end says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingConfig {
    /// Number of descriptors; a power of two from 2 to 32768.
    pub size: u16,
    /// User address of the descriptor table.
    pub descriptors: u64,
    /// User address of the available ring.
    pub available: u64,
    /// User address of the used ring.
    pub used: u64,
    /// Where the ring goes on: the first available slot that has not been taken (split), or a
    /// [`Position`](super::position::Position) twice, that of the device side in the upper half (packed).
    pub base: u32,
    /// Whether indirect descriptors were negotiated.
    pub indirect: bool,
    /// Whether event indices were negotiated.
    pub event_idx: bool,
    /// Whether chains are to be completed in the order in which they were taken.
    pub in_order: bool,
}

/// Why a ring cannot be started.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// Size is no power of two from 2 to 32768.
    #[error("ring size {0} is not a power of two from {MIN_SIZE} to {MAX_SIZE}")]
    Size(u16),
    /// Size of a packed ring is not from 2 to 32768.
    #[error("packed ring size {0} is not from {MIN_SIZE} to {MAX_SIZE}")]
    PackedSize(u16),
    /// The base of a packed ring is outside it.
    #[error("a ring of {size} descriptors cannot go on from base {base:#x}")]
    Base {
        /// As the front end said it.
        base: u32,
        /// Number of descriptors.
        size: u16,
    },
    /// One of the three areas is misaligned.
    #[error("the {area} at {address:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// Which area.
        area: &'static str,
        /// User address.
        address: u64,
        /// Bytes.
        alignment: u64,
    },
    /// One of the three areas does not lie within one memory region.
    #[error("the {area} at {address:#x} is not inside a memory region")]
    OutsideMemory {
        /// Which area.
        area: &'static str,
        /// User address.
        address: u64,
    },
}

/// One split ring.
#[derive(Debug)]
pub struct SplitRing {
    descriptors: NonNull<u64>,
    available: NonNull<u16>,
    used: NonNull<u16>,
    size: u16,
    indirect: bool,
    /// First slot of the available ring that has not been taken.
    next_avail: u16,
    /// `avail.idx` when it was last loaded.
    seen_avail: u16,
    /// Slot of the used ring that is written next.
    next_used: u16,
    /// `used.idx` as the driver sees it.
    published: u16,
    /// Descriptors looked at since [`SplitRing::begin_burst`].
    visited: u32,
    memory: Translator,
    call: Option<Call>,
}

// SAFETY: the pointers are into shared mappings that `memory` keeps in place; no thread owns them, and only the ring's
// owner uses them.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Checks `config` against `memory` and makes the ring. Nothing is written to guest memory yet.
    pub fn new(
        config: &RingConfig,
        memory: &Arc<GuestMemory>,
        call: Option<Call>,
    ) -> Result<Self, RingError> {
        let size = config.size;
        if !size.is_power_of_two() || !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return Err(RingError::Size(size));
        }
        let area = |area: &'static str, address: u64, alignment: u64, len: u64| {
            if !address.is_multiple_of(alignment) {
                return Err(RingError::Alignment { area, address, alignment });
            }
            let start =
                memory.at_user_address(address, len).ok_or(RingError::OutsideMemory { area, address })?;
            // The region's offset in its file may not be aligned even if the user address is.
            if !(start.as_ptr() as u64).is_multiple_of(alignment) {
                return Err(RingError::Alignment { area, address, alignment });
            }
            Ok(start)
        };
        let entries = u64::from(size);
        // Sizes with the event fields at the end (2.7.2): they are part of the ring whether negotiated or not.
        let descriptors = area("descriptor table", config.descriptors, 16, 16 * entries)?.cast();
        let available = area("available ring", config.available, 2, 6 + 2 * entries)?.cast();
        let used = area("used ring", config.used, 4, 6 + 8 * entries)?.cast();
        let mut ring = Self {
            descriptors,
            available,
            used,
            size,
            indirect: config.indirect,
            next_avail: config.base as u16,
            seen_avail: config.base as u16,
            next_used: 0,
            published: 0,
            visited: 0,
            memory: Translator::new(Arc::clone(memory)),
            call,
        };
        // What the driver has been told is the truth. A front end that knows no better (this end died without saying
        // where it was) has us go on from there: nothing is completed twice, what was in flight is taken again.
        let used_index = ring.used_index().load(Ordering::Acquire);
        (ring.next_used, ring.published) = (used_index, used_index);
        if ring.next_avail != used_index {
            tracing::debug!(base = ring.next_avail, used_index, "ring goes on from its used index");
            (ring.next_avail, ring.seen_avail) = (used_index, used_index);
        }
        Ok(ring)
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The first available slot that has not been taken: what a front end needs to go on elsewhere.
    pub fn next_available(&self) -> u16 {
        self.next_avail
    }

    /// The memory that the ring's buffers are in.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.memory.memory()
    }

    /// Replaces the descriptor that interrupts the guest; `None` for a guest that polls.
    pub fn set_call(&mut self, call: Option<Call>) {
        self.call = call;
    }

    /// Tells the driver that it need not kick.
    pub fn disable_kicks(&mut self) {
        // SAFETY: `used` points to 6 + 8 * size mapped bytes, checked in `new`.
        unsafe { self.used.as_ptr().write_volatile(USED_NO_NOTIFY.to_le()) };
    }

    /// Chains that wait to be taken, looked up anew if there are fewer than `wanted`. An index further ahead than the
    /// ring is long is the driver's error: it counts as nothing available, and `Err` says so.
    #[inline]
    pub fn available(&mut self, wanted: u16) -> Result<u16, BadIndex> {
        let known = self.seen_avail.wrapping_sub(self.next_avail);
        if known >= wanted {
            return Ok(known);
        }
        // SAFETY: `available` points to 6 + 2 * size mapped bytes, 2-aligned, both checked in `new`; the index is its
        // second field.
        let index = unsafe { AtomicU16::from_ptr(self.available.as_ptr().add(1)) };
        let index = u16::from_le(index.load(Ordering::Acquire));
        let waiting = index.wrapping_sub(self.next_avail);
        if waiting > self.size {
            return Err(BadIndex);
        }
        self.seen_avail = index;
        Ok(waiting)
    }

    /// Begins a burst: from here on the descriptors looked at are counted.
    #[inline]
    pub fn begin_burst(&mut self) {
        self.visited = 0;
    }

    /// Whether so many descriptors were looked at in this burst that others must have their turn: a guest that writes
    /// long chains for nothing costs its neighbours no more than one with full bursts does.
    #[inline]
    pub fn is_exhausted(&self) -> bool {
        self.visited >= BURST_DESCRIPTORS
    }

    /// The head of the chain `ahead` slots after the first that waits; only for `ahead` below what
    /// [`available`](Self::available) returned.
    #[inline]
    pub fn head(&self, ahead: u16) -> u16 {
        let slot = usize::from(self.next_avail.wrapping_add(ahead) & (self.size - 1));
        // SAFETY: `slot < size`, and the ring array begins after two 16-bit fields.
        u16::from_le(unsafe { self.available.as_ptr().add(2 + slot).read_volatile() })
    }

    /// Marks the first `n` waiting chains as taken.
    #[inline]
    pub fn take(&mut self, n: u16) {
        self.next_avail = self.next_avail.wrapping_add(n);
    }

    /// Puts back the last `n` taken chains, none of which may have been completed.
    #[inline]
    pub fn put_back(&mut self, n: u16) {
        self.next_avail = self.next_avail.wrapping_sub(n);
    }

    /// Asks the processor for the descriptor of `head`, which will be walked soon.
    #[inline]
    pub fn prefetch(&self, head: u16) {
        let slot = usize::from(head & (self.size - 1));
        // SAFETY: `slot < size`; a prefetch reads nothing anyway.
        prefetch(unsafe { self.descriptors.as_ptr().add(2 * slot) }.cast());
    }

    /// Visits the buffers of the chain at `head`, cut where memory regions end; empty buffers are left out.
    ///
    /// The walk ends after at most as many descriptors as the ring has, so a chain with a loop ends too.
    #[inline]
    pub fn walk(
        &mut self,
        head: u16,
        access: Access,
        mut visit: impl FnMut(Segment) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut index = head;
        // No longer than the ring (2.7.5), nor than what can be handled together.
        for _ in 0..self.size.min(BURST_SEGMENTS as u16) {
            self.visited = self.visited.saturating_add(1);
            if index >= self.size {
                return Err(DropReason::BadDescriptorIndex.into());
            }
            let descriptor = self.descriptor(index);
            if descriptor.flags & INDIRECT != 0 {
                return self.walk_indirect(descriptor, access, visit);
            }
            self.visit_buffer(descriptor, access, &mut visit)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(DropReason::ChainTooLong.into())
    }

    fn walk_indirect(
        &mut self,
        table: Descriptor,
        access: Access,
        mut visit: impl FnMut(Segment) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let len = table.len as usize;
        let entries = len / DESCRIPTOR_SIZE;
        // 2.7.5.3.1: no NEXT beside INDIRECT, whole descriptors only.
        if !self.indirect || table.flags & NEXT != 0 || entries == 0 || !len.is_multiple_of(DESCRIPTOR_SIZE) {
            return Err(DropReason::BadIndirect.into());
        }
        let mut index = 0;
        // The specification keeps a chain within the ring's size (2.7.5.3.1); drivers with small rings do not, and
        // peers serve them. What fits into a burst is served here.
        for _ in 0..entries.min(BURST_SEGMENTS) {
            self.visited = self.visited.saturating_add(1);
            let address =
                table.addr.checked_add((index * DESCRIPTOR_SIZE) as u64).ok_or(DropReason::BadAddress)?;
            let descriptor = self.indirect_descriptor(address)?;
            if descriptor.flags & INDIRECT != 0 {
                return Err(DropReason::BadIndirect.into());
            }
            self.visit_buffer(descriptor, access, &mut visit)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = usize::from(descriptor.next);
            if index >= entries {
                return Err(DropReason::BadDescriptorIndex.into());
            }
        }
        Err(DropReason::ChainTooLong.into())
    }

    #[inline]
    fn visit_buffer(
        &mut self,
        descriptor: Descriptor,
        access: Access,
        visit: &mut impl FnMut(Segment) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if !access.allows(descriptor.flags) {
            return Err(DropReason::WrongDirection.into());
        }
        let (mut addr, mut left) = (descriptor.addr, descriptor.len);
        while left > 0 {
            let (ptr, len) = self.memory.translate(addr, left).ok_or(DropReason::BadAddress)?;
            // SAFETY: the translator vouches for `len` bytes at `ptr` and keeps them mapped while this ring lives;
            // a frame made of the segment is completed before its ring is given up. No references to them exist.
            visit(unsafe { Segment::new(ptr, len) })?;
            left -= len;
            // Where it overflows nothing is left: a region never reaches over the end of the address space.
            addr = addr.wrapping_add(u64::from(len));
        }
        Ok(())
    }

    #[inline]
    fn descriptor(&self, index: u16) -> Descriptor {
        debug_assert!(index < self.size);
        // SAFETY: `index < size` (checked by the caller), and the table has `size` 16-byte entries.
        let (addr, rest) = unsafe {
            let at = self.descriptors.as_ptr().add(2 * usize::from(index));
            (at.read_volatile(), at.add(1).read_volatile())
        };
        Descriptor::from_halves(addr, rest)
    }

    fn indirect_descriptor(&mut self, address: u64) -> Result<Descriptor, DropReason> {
        let (ptr, len) =
            self.memory.translate(address, DESCRIPTOR_SIZE as u32).ok_or(DropReason::BadAddress)?;
        if (len as usize) < DESCRIPTOR_SIZE {
            return Err(DropReason::BadAddress);
        }
        // SAFETY: 16 mapped bytes, just checked; bytes, since a table need not be aligned to anything.
        let bytes = unsafe { ptr.cast::<[u8; DESCRIPTOR_SIZE]>().as_ptr().read_volatile() };
        let whole = u128::from_ne_bytes(bytes);
        let (first, second) =
            if cfg!(target_endian = "little") { (whole, whole >> 64) } else { (whole >> 64, whole) };
        Ok(Descriptor::from_halves(first as u64, second as u64))
    }

    /// Writes a used entry: the chain at `head` is done and `len` bytes of it were written. The driver sees it after
    /// [`publish`](Self::publish).
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        let slot = usize::from(self.next_used & (self.size - 1));
        let entry = (u64::from(len) << 32 | u64::from(head)).to_le();
        // SAFETY: `slot < size`, and `size` 8-byte entries follow two 16-bit fields; an entry is 4-aligned only.
        unsafe { self.used.as_ptr().add(2).cast::<u64>().add(slot).write_unaligned(entry) };
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Lets the driver see all completed chains, without interrupting it: for a ring that is being stopped.
    pub fn publish_quietly(&mut self) {
        self.published = self.next_used;
        self.used_index().store(self.next_used.to_le(), Ordering::Release);
    }

    /// Lets the driver see all completed chains and interrupts it if it wants that; returns whether it was.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_used {
            return false;
        }
        self.publish_quietly();
        let Some(call) = &self.call else { return false };
        // The driver sets its flag, then looks at used.idx again; we store used.idx, then look at the flag. Without the
        // fence both could miss the other.
        fence(Ordering::SeqCst);
        // SAFETY: the flags are the first field of the available ring.
        let flags = u16::from_le(unsafe { self.available.as_ptr().read_volatile() });
        if flags & AVAIL_NO_INTERRUPT != 0 {
            return false;
        }
        call.notify()
    }

    #[inline]
    fn used_index(&self) -> &AtomicU16 {
        // SAFETY: the index is the second 16-bit field of the used ring, which is 4-aligned and mapped (`new`).
        unsafe { AtomicU16::from_ptr(self.used.as_ptr().add(1)) }
    }
}

/// The driver's available index is further ahead than the ring is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadIndex;

/// Asks the processor to bring a cache line near.
#[inline]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; any address is allowed.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
