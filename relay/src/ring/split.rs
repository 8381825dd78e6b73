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
use std::sync::atomic::{AtomicU16, Ordering};

use pmd::frame::BURST_SEGMENTS;
use pmd::prefetch::{prefetch, prefetch_to_write};

use super::buffer::{BURST_DESCRIPTORS, area, table_entries, table_entry};
use super::chain::{Access, Descriptor, INDIRECT, NEXT, Stop, WRITE};
use super::config::{MAX_SIZE, MIN_SIZE, RingConfig, RingError};
use super::event::need_event;
use super::notify::Call;
use super::plain::{PlainChain, PlainChains, WholeBuffers};
use super::queue::{BadIndex, Chain, Piece, Virtqueue, Walked};
use crate::counters::DropReason;
use crate::guest::dirty_log::DirtyLog;
use crate::guest::iotlb_miss::MissReporter;
use crate::guest::space::{AddressSpace, Translator};
use crate::handshake;

/// `VIRTQ_USED_F_NO_NOTIFY`: the device polls, the driver need not kick (2.7.10).
const USED_NO_NOTIFY: u16 = 1;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver polls, the device need not interrupt (2.7.7).
const AVAIL_NO_INTERRUPT: u16 = 1;

/// Where the three areas are: mapped, aligned and as long as `size` wants, for as long as the ring holds its memory.
#[derive(Clone, Copy, Debug)]
struct Areas {
    descriptors: NonNull<u64>,
    available: NonNull<u16>,
    used: NonNull<u16>,
    /// A power of two.
    size: u16,
}

impl Areas {
    /// The head in slot `index` of the available ring, which starts over at its end.
    #[inline(always)]
    fn head(&self, index: u16) -> u16 {
        let slot = usize::from(index & (self.size - 1));
        // SAFETY: `slot < size`, and the ring of heads begins after two 16-bit fields.
        u16::from_le(unsafe { self.available.as_ptr().add(2 + slot).read_volatile() })
    }

    /// Descriptor `index`; `None` when the table has no such one.
    #[inline(always)]
    fn descriptor(&self, index: u16) -> Option<Descriptor> {
        if index >= self.size {
            return None;
        }
        // SAFETY: `index < size`, and the table has `size` 16-byte entries.
        let (addr, rest) = unsafe {
            let at = self.descriptors.as_ptr().add(2 * usize::from(index));
            (at.read_volatile(), at.add(1).read_volatile())
        };
        Some(Descriptor::from_halves(addr, rest))
    }
}

/// One split ring.
#[derive(Debug)]
pub struct SplitRing {
    areas: Areas,
    /// Guest physical address of the used ring, for the dirty log.
    used_gpa: u64,
    indirect: bool,
    event_idx: bool,
    /// First slot of the available ring that has not been taken.
    next_avail: u16,
    /// `avail.idx` when it was last loaded.
    seen_avail: u16,
    /// Slot of the used ring that is written next.
    next_used: u16,
    /// `used.idx` as the driver sees it.
    published: u16,
    /// `used.idx` when it was last decided whether to interrupt.
    decided: Option<u16>,
    /// Whether something was released that the driver has not been asked about.
    asks: bool,
    /// Descriptors looked at since [`SplitRing::begin_burst`].
    visited: u32,
    memory: Translator,
    call: Option<Call>,
}

// SAFETY: the pointers are into shared mappings that `memory` keeps in place; no thread owns them, and only the ring's
// owner uses them.
unsafe impl Send for SplitRing {}

impl SplitRing {
    /// Checks `config` against `space` and makes the ring. Nothing is written to guest memory yet.
    pub fn new(
        config: &RingConfig,
        space: &Arc<AddressSpace>,
        call: Option<Call>,
    ) -> Result<Self, RingError> {
        let size = config.size;
        if !size.is_power_of_two() || !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return Err(RingError::Size(size));
        }
        let [descriptors, available, used] = config.areas(false);
        let descriptors = area(space, "descriptor table", descriptors, 16)?;
        let available = area(space, "available ring", available, 2)?;
        let used = area(space, "used ring", used, 4)?;
        let base = config.base as u16;
        let mut ring = Self {
            areas: Areas {
                descriptors: descriptors.host.cast(),
                available: available.host.cast(),
                used: used.host.cast(),
                size,
            },
            used_gpa: used.gpa,
            indirect: config.indirect,
            event_idx: config.event_idx,
            next_avail: base,
            seen_avail: base,
            next_used: 0,
            published: 0,
            decided: None,
            asks: false,
            visited: 0,
            memory: Translator::new(Arc::clone(space)),
            call,
        };
        // What the driver has been told is the truth. A front end that knows no better (this end died without saying
        // where it was) has us go on from there: nothing is completed twice, what was in flight is taken again.
        let used_index = u16::from_le(ring.used_index().load(Ordering::Acquire));
        (ring.next_used, ring.published) = (used_index, used_index);
        if ring.next_avail != used_index {
            tracing::debug!(base, used_index, "ring goes on from its used index");
            (ring.next_avail, ring.seen_avail) = (used_index, used_index);
        }
        Ok(ring)
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.areas.size
    }

    /// Where the ring stands, in the format of `VHOST_USER_GET_VRING_BASE`: the first available slot that has not been
    /// taken.
    pub fn base(&self) -> u32 {
        u32::from(self.next_avail)
    }

    /// Replaces what descriptors are looked up in; the ring itself stays where it is.
    pub fn set_space(&mut self, space: Arc<AddressSpace>) {
        self.memory.set_space(space);
    }

    /// Addresses that are not found are reported from now on, since they may be found later.
    pub fn report_misses(&mut self, reporter: MissReporter) {
        self.memory.report_misses(reporter);
    }

    /// Replaces the descriptor that interrupts the guest; `None` for a guest that polls.
    pub fn set_call(&mut self, call: Option<Call>) {
        self.call = call;
        self.decided = None;
    }

    /// Tells the driver that it need not kick.
    pub fn disable_kicks(&mut self) {
        // An index that lies behind: the driver passes it once in 65536 chains.
        self.ask_for_kick(self.next_avail.wrapping_sub(1), USED_NO_NOTIFY);
    }

    /// Asks the driver to kick when it makes a chain available after those that were seen. Returns whether one waits: it may
    /// have come before the driver saw this, or was seen and left where it is.
    pub fn enable_kicks(&mut self) -> bool {
        let seen = self.seen_avail;
        handshake::ask(
            self,
            |ring| ring.ask_for_kick(seen, 0),
            |ring| ring.available_index() != ring.next_avail,
        )
    }

    /// Asks for a kick at the chain with index `event`; without event indices by `flags`.
    fn ask_for_kick(&mut self, event: u16, flags: u16) {
        if self.event_idx {
            // SAFETY: `used` points to 6 + 8 * size mapped bytes, checked in `new`; the event index stands at their end.
            unsafe {
                self.areas
                    .used
                    .as_ptr()
                    .add(2 + 4 * usize::from(self.areas.size))
                    .write_volatile(event.to_le());
            }
        }
        let flags = if self.event_idx { 0 } else { flags };
        // SAFETY: as above; the flags stand at the beginning.
        unsafe { self.areas.used.as_ptr().write_volatile(flags.to_le()) };
        if let Some(log) = self.memory.space().log() {
            log.mark(self.used_gpa, 2);
            log.mark(self.used_gpa + 4 + 8 * u64::from(self.areas.size), 2);
        }
    }

    /// The driver's index of available chains, as it is now.
    #[inline]
    fn available_index(&self) -> u16 {
        // SAFETY: `available` points to 6 + 2 * size mapped bytes, 2-aligned, both checked in `new`; the index is its
        // second field.
        let index = unsafe { AtomicU16::from_ptr(self.areas.available.as_ptr().add(1)) };
        u16::from_le(index.load(Ordering::Acquire))
    }

    /// Chains that wait to be taken, looked up anew if there are fewer than `wanted`. An index further ahead than the
    /// ring is long is the driver's error: nothing is available then.
    #[inline]
    fn available(&mut self, wanted: u16) -> Result<u16, BadIndex> {
        let known = self.seen_avail.wrapping_sub(self.next_avail);
        if known >= wanted {
            return Ok(known);
        }
        let index = self.available_index();
        let waiting = index.wrapping_sub(self.next_avail);
        if waiting > self.areas.size {
            return Err(BadIndex);
        }
        self.seen_avail = index;
        Ok(waiting)
    }

    /// The head of the chain `ahead` slots after the first that waits; only for `ahead` below what
    /// [`available`](Self::available) returned.
    #[inline(always)]
    fn head(&self, ahead: u16) -> u16 {
        self.areas.head(self.next_avail.wrapping_add(ahead))
    }

    /// Asks the processor for the descriptor of `head`, which will be walked soon.
    #[inline]
    fn prefetch(&self, head: u16) {
        let slot = usize::from(head & (self.areas.size - 1));
        // SAFETY: `slot < size`; a prefetch reads nothing anyway.
        prefetch(unsafe { self.areas.descriptors.as_ptr().add(2 * slot) }.cast());
    }

    /// The used entry `ahead` of the one that is written next.
    #[inline]
    fn used_entry(&self, ahead: u16) -> *mut u64 {
        let slot = usize::from(self.next_used.wrapping_add(ahead) & (self.areas.size - 1));
        // SAFETY: `slot < size`, and `size` 8-byte entries follow two 16-bit fields.
        unsafe { self.areas.used.as_ptr().add(2).cast::<u64>().add(slot) }
    }

    /// Visits the buffers of the chain at `head`. The walk ends after at most as many descriptors as the ring has, so a
    /// chain with a loop ends too.
    #[inline]
    fn walk(
        &mut self,
        head: u16,
        access: Access,
        mut visit: impl FnMut(Piece) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let mut index = head;
        // No longer than the ring (2.7.5), nor than what can be handled together.
        for _ in 0..self.areas.size.min(BURST_SEGMENTS as u16) {
            self.visited = self.visited.saturating_add(1);
            let descriptor = self.areas.descriptor(index).ok_or(DropReason::BadDescriptorIndex)?;
            if descriptor.flags & INDIRECT != 0 {
                return self.walk_indirect(descriptor, access, visit);
            }
            descriptor.buffer().visit(&mut self.memory, &mut self.visited, access, &mut visit)?;
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
        mut visit: impl FnMut(Piece) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        // 2.7.5.3.1: no NEXT beside INDIRECT, whole descriptors only.
        let entries = table_entries(table.len)
            .filter(|_| self.indirect && table.flags & NEXT == 0)
            .ok_or(DropReason::BadIndirect)?;
        let mut index = 0;
        // The specification keeps a chain within the ring's size (2.7.5.3.1); drivers with small rings do not, and
        // peers serve them. What fits into a burst is served here.
        for _ in 0..entries.min(BURST_SEGMENTS) {
            self.visited = self.visited.saturating_add(1);
            let (addr, rest) = table_entry(&mut self.memory, table.addr, index)?;
            let descriptor = Descriptor::from_halves(addr, rest);
            if descriptor.flags & INDIRECT != 0 {
                return Err(DropReason::BadIndirect.into());
            }
            descriptor.buffer().visit(&mut self.memory, &mut self.visited, access, &mut visit)?;
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

    /// Lets the driver see all completed chains.
    #[inline]
    fn show_used(&mut self) {
        let done = self.next_used.wrapping_sub(self.published);
        if done > 0
            && let Some(log) = self.memory.space().log()
        {
            self.log_used(log, done);
        }
        self.published = self.next_used;
        self.used_index().store(self.next_used.to_le(), Ordering::Release);
    }

    /// Marks the entries that are being published, and the index with them.
    #[cold]
    fn log_used(&self, log: &DirtyLog, done: u16) {
        let first = self.published & (self.areas.size - 1);
        let whole = done.min(self.areas.size - first);
        for (slot, n) in [(first, whole), (0, done.min(self.areas.size) - whole)] {
            log.mark(self.used_gpa + 4 + 8 * u64::from(slot), 8 * u32::from(n));
        }
        log.mark(self.used_gpa, 4);
    }

    /// Whether the driver is to be told of what was released since this was decided last.
    #[inline]
    fn is_asked(&mut self) -> bool {
        let offset = if self.event_idx { 2 + usize::from(self.areas.size) } else { 0 };
        // SAFETY: the flags are the first field of the available ring, whose 6 + 2 * size bytes are mapped (`new`); the
        // event index is its last.
        let word = u16::from_le(unsafe { self.areas.available.as_ptr().add(offset).read_volatile() });
        match (self.event_idx, self.decided.replace(self.published)) {
            (false, _) => word & AVAIL_NO_INTERRUPT == 0,
            (true, Some(before)) => need_event(word, self.published, before),
            // It was never told of anything, so what it waits for may have passed already.
            (true, None) => true,
        }
    }

    #[inline]
    fn used_index(&self) -> &AtomicU16 {
        // SAFETY: the index is the second 16-bit field of the used ring, which is 4-aligned and mapped (`new`).
        unsafe { AtomicU16::from_ptr(self.areas.used.as_ptr().add(1)) }
    }
}

impl Virtqueue for SplitRing {
    #[inline]
    fn space(&self) -> &Arc<AddressSpace> {
        self.memory.space()
    }

    #[inline]
    fn begin_burst(&mut self, wanted: u16) -> Result<(), BadIndex> {
        self.visited = 0;
        let waiting = self.available(wanted)?.min(wanted);
        for ahead in 0..waiting {
            self.prefetch(self.head(ahead));
        }
        // What will be written: their used entries, eight in a cache line.
        for ahead in (0..waiting).step_by(8) {
            prefetch_to_write(self.used_entry(ahead).cast());
        }
        Ok(())
    }

    #[inline]
    fn is_exhausted(&self) -> bool {
        self.visited >= BURST_DESCRIPTORS
    }

    #[inline]
    fn plain_chains(&mut self, access: Access, wanted: usize, found: &mut PlainChains) -> bool {
        let Ok(waiting) = self.available(1) else { return false };
        let waiting = waiting.min(wanted.min(found.remaining_capacity()) as u16);
        let direction = if access == Access::Write { WRITE } else { 0 };
        let areas = self.areas;
        let mut buffers = WholeBuffers::new(&mut self.memory, access);
        let mut n = 0;
        while n < waiting {
            let id = areas.head(self.next_avail.wrapping_add(n));
            let Some(Descriptor { addr, len, flags, .. }) = areas.descriptor(id) else { break };
            if flags & (NEXT | INDIRECT | WRITE) != direction {
                break;
            }
            let Some(segment) = buffers.find(addr, len) else { break };
            if found.try_push(PlainChain { segment, id }).is_err() {
                break;
            }
            n += 1;
        }
        self.visited = self.visited.saturating_add(u32::from(n));
        n < waiting
    }

    #[inline]
    fn take_plain(&mut self, n: u16) {
        self.next_avail = self.next_avail.wrapping_add(n);
    }

    #[inline]
    fn next_chain(&mut self, access: Access, visit: impl FnMut(Piece) -> Result<(), Stop>) -> Option<Walked> {
        if !self.available(1).is_ok_and(|waiting| waiting > 0) {
            return None;
        }
        let id = self.head(0);
        Some((Chain { id, slots: 1 }, self.walk(id, access, visit)))
    }

    #[inline]
    fn take(&mut self, chain: Chain) {
        self.next_avail = self.next_avail.wrapping_add(chain.slots);
    }

    #[inline]
    fn put_back(&mut self, slots: u16) {
        self.next_avail = self.next_avail.wrapping_sub(slots);
    }

    #[inline]
    fn complete(&mut self, chain: Chain, len: u32) {
        let entry = (u64::from(len) << 32 | u64::from(chain.id)).to_le();
        // SAFETY: 8 mapped bytes; an entry is 4-aligned only.
        unsafe { self.used_entry(0).write_unaligned(entry) };
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    fn complete_run(&mut self, run: impl ExactSizeIterator<Item = (u16, u32)>) {
        run.for_each(|(id, len)| self.complete(Chain { id, slots: 1 }, len));
    }

    fn publish_quietly(&mut self) {
        self.show_used();
        (self.asks, self.decided) = (false, None);
    }

    #[inline]
    fn release(&mut self) -> bool {
        if self.published != self.next_used {
            self.show_used();
            self.asks = self.call.is_some();
        }
        self.asks
    }

    #[inline]
    fn interrupt(&mut self) -> bool {
        std::mem::take(&mut self.asks) && self.is_asked() && self.call.as_ref().is_some_and(Call::notify)
    }
}
