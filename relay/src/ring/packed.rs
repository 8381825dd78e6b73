//! The packed ring (virtio 1.3, section 2.8), device side.
//!
//! ```text
//!   one ring, written by both sides        [addr len id flags] × size
//!
//!   ─── used, seen by the driver ───┬─ used, not yet seen ─┬─── taken ───┬─ available … not yet available ───
//!                                 first                next_used     next_avail
//!
//!   driver event suppression: read here    device event suppression: written here    [event flags]
//! ```
//!
//! A chain is a run of descriptors; whether it is available, the flags of its first descriptor say, which is the one
//! that the driver writes last. They are loaded with acquire order before anything else of the chain is read. A used
//! descriptor takes as many slots as its chain had; the slots behind it are left as they are.
//!
//! The driver looks at used descriptors in the order of their slots and no further than the first that is not used. So
//! all used descriptors of a burst but its first are written at once, and the first with release order when the burst is
//! published: until then the driver sees none of them. Where it is said that chains come back in order and without
//! lengths ([`RingConfig::batches`]), that first one is the only one, with the id of the last chain: the driver knows what it
//! had made available up to there. A batch ends with its lap at the latest, so that in each lap its slots say how far it is.
//!
//! Every descriptor is read once, into a local, and checked there. What bounds the damage that a driver can do:
//! - No more slots are ever in flight than the ring has, so that used descriptors stay behind what is available.
//! - A chain that goes on for longer than the slots that are not in flight, or than a burst has segments, has no end that
//!   could be trusted, and without its end neither its buffer id is known nor where the next chain begins. It is reported
//!   as [`ChainTooLong`](DropReason::ChainTooLong) with no slots. Taking it breaks the ring: from then on no chain waits,
//!   until the ring is set up anew. The walk is as long as that of the longest good chain, and is done once.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use pmd::frame::{BURST_FRAMES, BURST_SEGMENTS};
use pmd::prefetch::{LINE, prefetch, prefetch_to_write};

use super::buffer::{BURST_DESCRIPTORS, Buffer, area, table_entries, table_entry};
use super::chain::{Access, DESCRIPTOR_SIZE, INDIRECT, NEXT, Stop, WRITE};
use super::config::{MAX_SIZE, MIN_SIZE, RingConfig, RingError};
use super::event::{AT_DESCRIPTOR, DISABLE, ENABLE, SUPPRESSION_SIZE, Suppression};
use super::notify::Call;
use super::plain::{PlainChain, PlainChains, WholeBuffers};
use super::position::{AVAIL, Position, USED};
use super::queue::{BadIndex, Chain, Piece, Virtqueue, Walked};
use crate::counters::DropReason;
use crate::guest::dirty_log::DirtyLog;
use crate::guest::iotlb_miss::MissReporter;
use crate::guest::positions::{First, Predecessor, Progress, RingPosition};
use crate::guest::space::{AddressSpace, Translator};
use crate::handshake;
use crate::turns::ticks;

/// Descriptors in a cache line.
const PER_LINE: u16 = (LINE / DESCRIPTOR_SIZE) as u16;

/// A descriptor of a packed ring or of an indirect table of one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PackedDescriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes; in a used descriptor the bytes written.
    pub len: u32,
    /// Buffer id: that of a chain stands in its last descriptor.
    pub id: u16,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`], [`AVAIL`](super::position::AVAIL), [`USED`](super::position::USED).
    pub flags: u16,
}

impl PackedDescriptor {
    /// From its two little-endian halves as they lie in memory.
    #[inline]
    pub fn from_halves(addr: u64, rest: u64) -> Self {
        let (addr, rest) = (u64::from_le(addr), u64::from_le(rest));
        Self { addr, len: rest as u32, id: (rest >> 32) as u16, flags: (rest >> 48) as u16 }
    }

    /// The inverse of [`from_halves`](Self::from_halves).
    #[inline]
    pub fn halves(self) -> (u64, u64) {
        let rest = u64::from(self.flags) << 48 | u64::from(self.id) << 32 | u64::from(self.len);
        (self.addr.to_le(), rest.to_le())
    }

    #[inline]
    fn buffer(self) -> Buffer {
        Buffer { addr: self.addr, len: self.len, flags: self.flags }
    }
}

/// [Ticks](ticks) for which a burst is left to its driver, some 200 ns: it writes 32 descriptors in that time.
const RIPENING: u64 = 500;

/// So many slots a chain may reach into a lap that began inside it, when it is guessed where a ring was left.
const NEW_LAP: u16 = 32;

/// What is written into a descriptor to make it used.
#[derive(Clone, Copy, Debug)]
struct Used {
    at: Position,
    id: u16,
    len: u32,
}

impl Used {
    /// The second half of the descriptor.
    #[inline]
    fn half(self) -> u64 {
        let Self { at, id, len } = self;
        // The length counts only where the device says that it wrote (2.8.4).
        let written = if len > 0 { WRITE } else { 0 };
        PackedDescriptor { addr: 0, len, id, flags: at.used_flags() | written }.halves().1
    }
}

/// The descriptors: mapped and 16-aligned, for as long as the ring holds its memory. Slots are below `size`: they come
/// from a [`Position`], or from counting on from one and starting over at `size`.
#[derive(Clone, Copy, Debug)]
struct Slots {
    descriptors: NonNull<u64>,
    size: u16,
}

impl Slots {
    #[inline(always)]
    fn at(&self, slot: u16) -> *mut u64 {
        debug_assert!(slot < self.size);
        // SAFETY: `slot < size`, and there are `size` descriptors of two words.
        unsafe { self.descriptors.as_ptr().add(2 * usize::from(slot)) }
    }

    /// The half with length, id and flags.
    #[inline(always)]
    fn second_half(&self, slot: u16) -> &AtomicU64 {
        // SAFETY: the second word of a descriptor that is there, 8-aligned.
        unsafe { AtomicU64::from_ptr(self.at(slot).add(1)) }
    }

    /// Reads a descriptor, its flags first: what its driver wrote before them is visible, if they say so.
    #[inline(always)]
    fn descriptor(&self, slot: u16) -> PackedDescriptor {
        let rest = self.second_half(slot).load(Ordering::Acquire);
        // SAFETY: the first word of a descriptor that is there.
        PackedDescriptor::from_halves(unsafe { self.at(slot).read_volatile() }, rest)
    }
}

/// One packed ring.
#[derive(Debug)]
pub struct PackedRing {
    slots: Slots,
    driver_event: NonNull<u32>,
    device_event: NonNull<u32>,
    /// Guest physical addresses of what is written, for the dirty log.
    descriptors_gpa: u64,
    device_event_gpa: u64,
    indirect: bool,
    event_idx: bool,
    /// One used descriptor stands for all chains of a burst.
    batches: bool,
    /// Where the first chain that was not taken begins.
    next_avail: Position,
    /// Where the next used descriptor goes.
    next_used: Position,
    /// Slots of chains that were taken and not completed; at most `size`.
    in_flight: u16,
    /// The first used descriptor of those that the driver does not see yet.
    first: Option<Used>,
    /// `next_used` when it was last decided whether to interrupt.
    decided: Option<Position>,
    /// Whether something was released that the driver has not been asked about.
    asks: bool,
    /// A chain without an end was taken: where the next begins is not known.
    broken: bool,
    /// Descriptors looked at since `begin_burst`.
    visited: u32,
    /// When the first chain of the next burst was seen.
    seen: Option<u64>,
    memory: Translator,
    call: Option<Call>,
    /// Where it is kept how far the ring is, for whoever comes after this process.
    position: RingPosition,
}

impl std::fmt::Display for PackedRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "at slot {} of {}", self.next_used.slot, self.slots.size)
    }
}

// SAFETY: the pointers are into shared mappings that `memory` keeps in place; no thread owns them, and only the ring's
// owner uses them.
unsafe impl Send for PackedRing {}

impl PackedRing {
    /// Base of a fresh ring: the first slot in the first lap.
    pub const START: u32 = 0x8000;

    /// Checks `config` against `space` and makes the ring. Nothing is written to guest memory yet.
    ///
    /// `available` is the address of the driver's event suppression structure and `used` that of the device's.
    pub fn new(
        config: &RingConfig,
        space: &Arc<AddressSpace>,
        call: Option<Call>,
    ) -> Result<Self, RingError> {
        let size = config.size;
        if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
            return Err(RingError::PackedSize(size));
        }
        let [descriptors, driver_event, device_event] = config.areas(true);
        let descriptors = area(space, "descriptor ring", descriptors, DESCRIPTOR_SIZE as u64)?;
        let driver_event = area(space, "driver event suppression", driver_event, SUPPRESSION_SIZE)?;
        let device_event = area(space, "device event suppression", device_event, SUPPRESSION_SIZE)?;
        let next = Self::position_of(config.base, size)?;
        Ok(Self {
            slots: Slots { descriptors: descriptors.host.cast(), size },
            descriptors_gpa: descriptors.gpa,
            driver_event: driver_event.host.cast(),
            device_event: device_event.host.cast(),
            device_event_gpa: device_event.gpa,
            indirect: config.indirect,
            event_idx: config.event_idx,
            batches: config.batches,
            next_avail: next,
            next_used: next,
            in_flight: 0,
            first: None,
            decided: None,
            asks: false,
            broken: false,
            visited: 0,
            seen: None,
            memory: Translator::new(Arc::clone(space)),
            call,
            position: RingPosition::none(),
        })
    }

    /// Where a ring goes on that is at `base`.
    ///
    /// What was taken and not completed nobody knows any more, so it is taken again: the ring goes on from its used
    /// position. Front ends that only know the available position leave the upper half empty; both are the same then.
    fn position_of(base: u32, size: u16) -> Result<Position, RingError> {
        let avail = Position::from_bits(base as u16);
        let used = match (base >> 16) as u16 {
            0 => avail,
            bits => Position::from_bits(bits),
        };
        if avail.slot >= size || used.slot >= size {
            return Err(RingError::Base { base, size });
        }
        if used != avail {
            tracing::debug!(base, "packed ring goes on from its used position");
        }
        Ok(used)
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.slots.size
    }

    /// Where the ring stands, as a front end wants to know it to go on elsewhere: the available position in the lower
    /// half, the used position in the upper one. They are the same when all that was taken is completed.
    pub fn base(&self) -> u32 {
        u32::from(self.next_used.bits()) << 16 | u32::from(self.next_avail.bits())
    }

    /// Guest physical address of the descriptors.
    pub fn guest_address(&self) -> u64 {
        self.descriptors_gpa
    }

    /// Keeps in `position` how far the ring is, from now on.
    pub fn keep_position(&mut self, mut position: RingPosition) {
        match self.first {
            None => position.publish(self.next_used),
            // Noted before it is shown: whoever dies in between has left no more than the predecessor.
            Some(first) => position.take_over(first.at, self.next_used),
        }
        self.position = position;
        self.show_used();
    }

    /// Goes on where `predecessor` left this ring, if it is plausible that it did; returns whether it is. The ring must not
    /// have been used yet. `receives`: the driver keeps as many chains of one descriptor in it as it can.
    ///
    /// A burst that the predecessor had begun to write is held back here too, until
    /// [`keep_position`](Self::keep_position) publishes it: its other used descriptors stand in the ring already, and only the
    /// predecessor knew how long their chains were.
    ///
    /// The ring itself does not say how far it is: slots that a chain was in, but its first, look as before. And its
    /// driver may have begun anew since. What can be said of the slot where the ring would go on, and of those before it:
    ///
    /// ```text
    ///   lap n:  … used, or available again for lap n+1 ┊ inside a chain: anything │ available, or as lap n-1 left it
    ///                                                                          goes on here
    /// ```
    pub fn recover(&mut self, predecessor: &Predecessor, receives: bool) -> bool {
        let Progress { published, written, writing, is_run } = predecessor.progress;
        if [published, written, writing].iter().any(|position| position.slot >= self.slots.size) {
            return false;
        }
        // Otherwise nothing was written, or the driver sees it already.
        let is_held_back =
            writing != published && published.is_available(self.slots.descriptor(published.slot).flags);
        // Stored before it was written, so a look is needed. Not where the driver sees the burst, which is whole then and
        // whose slots it may have used again.
        let is_written = || written.is_used(self.slots.descriptor(written.slot).flags);
        let end = match is_held_back {
            true if is_run => self.end_of_run(written, writing),
            true if !is_written() => written,
            _ => writing,
        };
        // In a burst of a whole lap, the slot to go on at is the one that was held back.
        let whole_lap = is_held_back && end.slot == published.slot;
        // A burst that is held back says nothing of the lap that it begins, and a long one has written over what was before.
        let is_used =
            self.is_used_up_to(end, receives) || is_held_back && self.is_used_up_to(published, receives);
        if !is_used || !(whole_lap || self.may_go_on_at(end, receives)) {
            return false;
        }
        if is_held_back {
            let First { id, len } = predecessor.first;
            self.first = Some(Used { at: published, id, len });
        }
        (self.next_avail, self.next_used) = (end, end);
        true
    }

    /// Where the chains of one slot end that were written from `from` on, `to` at most.
    fn end_of_run(&self, from: Position, to: Position) -> Position {
        let mut at = from;
        while at != to && at.is_used(self.slots.descriptor(at.slot).flags) {
            at = at.next(self.slots.size);
        }
        at
    }

    /// Whether the slot at `at` looks as one that nothing was taken from.
    fn may_go_on_at(&self, at: Position, receives: bool) -> bool {
        if at == Position::START {
            return true;
        }
        let before = Position { wrap: !at.wrap, ..at };
        let flags = self.slots.descriptor(at.slot).flags;
        let inside_a_chain = !receives && before.is_available(flags);
        at.is_available(flags) || before.is_used(flags) || inside_a_chain
    }

    /// Whether the slots before `at` look as if their chains had been used.
    fn is_used_up_to(&self, at: Position, receives: bool) -> bool {
        if at == Position::START {
            return true;
        }
        let was_used = |back| {
            let earlier = at.retreated(back, self.slots.size);
            let again = Position { wrap: !earlier.wrap, ..earlier };
            let flags = self.slots.descriptor(earlier.slot).flags;
            earlier.is_used(flags) || again.is_available(flags)
        };
        // The chain that was used last began in this lap, unless the lap has only begun.
        if (1..=at.slot).any(was_used) {
            return true;
        }
        if at.slot >= NEW_LAP || at.slot > 0 && receives {
            return false;
        }
        // Then all of this lap is the end of one chain. Memory that nobody has used yet looks used in every second lap, so
        // that the lap before says nothing by itself.
        let ends_here = (0..at.slot).all(|slot| {
            let flags = self.slots.descriptor(slot).flags;
            Position { slot, ..at }.is_available(flags) && (flags & NEXT == 0) == (slot + 1 == at.slot)
        });
        ends_here && (at.slot + 1..=self.slots.size.min(BURST_SEGMENTS as u16)).any(was_used)
    }

    /// Whether the driver made a chain available that has no end: nothing is taken from this ring any more.
    pub fn is_broken(&self) -> bool {
        self.broken
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
        self.write_event(Suppression { event: 0, flags: DISABLE });
    }

    /// Tells the driver to kick when it makes the next chain available. Returns whether one waits already: chains that it
    /// made available before it saw this come without a kick. Such a one [is ripe](Self::is_ripe): who was about to sleep
    /// looks once more, and would not find it otherwise.
    pub fn enable_kicks(&mut self) -> bool {
        let flags = if self.event_idx { AT_DESCRIPTOR } else { ENABLE };
        let event = Suppression { event: self.next_avail.bits(), flags };
        let waits = handshake::ask(self, |ring| ring.write_event(event), |ring| ring.chain_waits());
        if waits {
            self.seen = Some(ticks().wrapping_sub(RIPENING));
        }
        waits
    }

    /// Whether it is time to look at the chains that wait.
    ///
    /// A driver writes the descriptors of a burst one after the other. Who reads them at the same time takes each cache line
    /// away from it several times, and finds little. So the first one is given a moment for the others to be written,
    /// unless the last burst was a full one: then there are more of them anyway.
    #[inline]
    pub fn is_ripe(&mut self) -> bool {
        if self.visited >= BURST_FRAMES as u32 {
            return true;
        }
        match self.seen {
            Some(seen) => {
                if ticks().wrapping_sub(seen) < RIPENING {
                    return false;
                }
                self.seen = None;
                true
            }
            None => {
                if self.chain_waits() {
                    self.seen = Some(ticks());
                    return false;
                }
                true
            }
        }
    }

    /// Whether a chain waits. What the driver wrote into it before is visible then.
    #[inline]
    fn chain_waits(&self) -> bool {
        if self.in_flight == self.slots.size || self.broken {
            return false;
        }
        let flags = PackedDescriptor::from_halves(
            0,
            self.slots.second_half(self.next_avail.slot).load(Ordering::Acquire),
        )
        .flags;
        self.next_avail.is_available(flags)
    }

    /// Visits what one descriptor of a chain stands for; `alone` if the chain has no other.
    #[inline]
    fn visit(
        &mut self,
        descriptor: PackedDescriptor,
        alone: bool,
        access: Access,
        visit: &mut impl FnMut(Piece) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if descriptor.flags & INDIRECT == 0 {
            return descriptor.buffer().visit(&mut self.memory, &mut self.visited, access, visit);
        }
        if !self.indirect || !alone {
            return Err(DropReason::BadIndirect.into());
        }
        self.visit_table(descriptor, access, visit)
    }

    /// Visits the buffers of an indirect table: all entries in their order, whose flags mean nothing but [`WRITE`]
    /// (2.8.7), and that only where the device is to write.
    fn visit_table(
        &mut self,
        table: PackedDescriptor,
        access: Access,
        visit: &mut impl FnMut(Piece) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let entries = table_entries(table.len).ok_or(DropReason::BadIndirect)?;
        if entries > BURST_SEGMENTS {
            return Err(DropReason::ChainTooLong.into());
        }
        for index in 0..entries {
            self.visited = self.visited.saturating_add(1);
            let (addr, rest) = table_entry(&mut self.memory, table.addr, index)?;
            let mut entry = PackedDescriptor::from_halves(addr, rest);
            if access == Access::Read {
                // DPDK's driver leaves it set in the tables of its transmit queue. To read such a buffer harms nobody.
                entry.flags &= !WRITE;
            }
            entry.buffer().visit(&mut self.memory, &mut self.visited, access, visit)?;
        }
        Ok(())
    }

    /// Writes a used descriptor, all but its address, which nobody reads.
    ///
    /// One aligned store, so that nobody who sees the flags misses the id or the length.
    #[inline]
    fn write_used(&mut self, used: Used) {
        self.slots.second_half(used.at.slot).store(used.half(), Ordering::Relaxed);
        if let Some(log) = self.memory.space().log() {
            self.log_run(log, used.at, 1);
        }
    }

    /// Marks `n` descriptors from `begin` on, which were written.
    #[cold]
    fn log_run(&self, log: &DirtyLog, begin: Position, n: u16) {
        let whole = n.min(self.slots.size - begin.slot);
        for (slot, n) in [(begin.slot, whole), (0, n - whole)] {
            let size = DESCRIPTOR_SIZE as u32;
            log.mark(self.descriptors_gpa + u64::from(slot) * u64::from(size), u32::from(n) * size);
        }
    }

    /// Writes the device's event suppression structure.
    fn write_event(&mut self, event: Suppression) {
        // SAFETY: 4 mapped bytes, 4-aligned, both checked in `new`.
        let word = unsafe { AtomicU32::from_ptr(self.device_event.as_ptr()) };
        word.store(event.word(), Ordering::Relaxed);
        if let Some(log) = self.memory.space().log() {
            log.mark(self.device_event_gpa, SUPPRESSION_SIZE as u32);
        }
    }

    /// Reads the driver's event suppression structure.
    #[inline]
    fn driver_event(&self) -> Suppression {
        // SAFETY: 4 mapped bytes, 4-aligned, both checked in `new`.
        let word = unsafe { AtomicU32::from_ptr(self.driver_event.as_ptr()) };
        Suppression::from_word(word.load(Ordering::Relaxed))
    }

    /// Lets the driver see all used descriptors.
    #[inline]
    fn show_used(&mut self) {
        let Some(first) = self.first.take() else { return };
        // The others, the buffers and the length of this one are written before its flags.
        fence(Ordering::Release);
        self.write_used(first);
        self.position.publish(self.next_used);
    }

    /// Whether the driver is to be told of what was released since this was decided last.
    #[inline]
    fn is_asked(&mut self) -> bool {
        let before = self.decided.replace(self.next_used);
        self.driver_event().wants(self.event_idx, before, self.next_used, self.slots.size)
    }
}

impl Virtqueue for PackedRing {
    #[inline]
    fn space(&self) -> &Arc<AddressSpace> {
        self.memory.space()
    }

    #[inline]
    fn begin_burst(&mut self, wanted: u16) -> Result<(), BadIndex> {
        self.visited = 0;
        // What is not available yet the driver is about to write: its cache lines are better left with it.
        if self.chain_waits() {
            let mut slot = self.next_avail.slot;
            for _ in 0..wanted.min(self.slots.size).div_ceil(PER_LINE) {
                match self.batches {
                    true => prefetch(self.slots.at(slot).cast()),
                    false => prefetch_to_write(self.slots.at(slot).cast()),
                }
                slot += PER_LINE;
                if slot >= self.slots.size {
                    slot = 0;
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn is_exhausted(&self) -> bool {
        self.visited >= BURST_DESCRIPTORS
    }

    #[inline]
    fn plain_chains(&mut self, access: Access, wanted: usize, found: &mut PlainChains) -> bool {
        if self.broken {
            return false;
        }
        let wanted = (wanted.min(found.remaining_capacity()) as u16).min(self.slots.size - self.in_flight);
        let direction = if access == Access::Write { WRITE } else { 0 };
        let slots = self.slots;
        let mut buffers = WholeBuffers::new(&mut self.memory, access);
        let mut at = self.next_avail;
        let mut n = 0;
        let mut is_other = false;
        while n < wanted {
            let PackedDescriptor { addr, len, id, flags } = slots.descriptor(at.slot);
            if flags & (AVAIL | USED | NEXT | INDIRECT | WRITE) != at.available_flags() | direction {
                is_other = at.is_available(flags);
                break;
            }
            let Some(segment) = buffers.find(addr, len) else {
                is_other = true;
                break;
            };
            if found.try_push(PlainChain { segment, id }).is_err() {
                break;
            }
            at = at.next(slots.size);
            n += 1;
        }
        self.visited = self.visited.saturating_add(u32::from(n));
        is_other
    }

    #[inline]
    fn take_plain(&mut self, n: u16) {
        debug_assert!(n <= self.slots.size - self.in_flight, "{n} chains did not wait");
        let n = n.min(self.slots.size - self.in_flight);
        self.in_flight += n;
        self.next_avail = self.next_avail.advanced(n, self.slots.size);
    }

    #[inline]
    fn next_chain(
        &mut self,
        access: Access,
        mut visit: impl FnMut(Piece) -> Result<(), Stop>,
    ) -> Option<Walked> {
        if !self.chain_waits() {
            return None;
        }
        let limit = (self.slots.size - self.in_flight).min(BURST_SEGMENTS as u16);
        let mut slot = self.next_avail.slot;
        let mut walked = Ok(());
        for slots in 1..=limit {
            self.visited = self.visited.saturating_add(1);
            let descriptor = self.slots.descriptor(slot);
            let last = descriptor.flags & NEXT == 0;
            // The id stands at the end, so the walk goes there even if nothing more is to be visited.
            if walked.is_ok() {
                walked = self.visit(descriptor, last && slots == 1, access, &mut visit);
            }
            if last {
                return Some((Chain { id: descriptor.id, slots }, walked));
            }
            slot += 1;
            if slot == self.slots.size {
                slot = 0;
            }
        }
        Some((Chain { id: 0, slots: 0 }, Err(DropReason::ChainTooLong.into())))
    }

    /// Taking the chain without slots that stands for one without an end breaks the ring.
    #[inline]
    fn take(&mut self, chain: Chain) {
        debug_assert!(chain.slots <= self.slots.size - self.in_flight, "{chain:?} did not wait");
        let slots = chain.slots.min(self.slots.size - self.in_flight);
        self.broken |= chain.slots == 0;
        self.in_flight += slots;
        self.next_avail = self.next_avail.advanced(slots, self.slots.size);
    }

    #[inline]
    fn put_back(&mut self, slots: u16) {
        debug_assert!(slots <= self.in_flight, "{slots} slots are not in flight");
        let slots = slots.min(self.in_flight);
        self.in_flight -= slots;
        self.next_avail = self.next_avail.retreated(slots, self.slots.size);
    }

    /// A chain without an end is not completed: its id is not known.
    #[inline]
    fn complete(&mut self, chain: Chain, len: u32) {
        debug_assert!(chain.slots <= self.in_flight, "{chain:?} is not in flight");
        let slots = chain.slots.min(self.in_flight);
        if slots == 0 {
            return;
        }
        let used = Used { at: self.next_used, id: chain.id, len };
        self.in_flight -= slots;
        self.next_used = self.next_used.advanced(slots, self.slots.size);
        if self.first.is_none() || self.batches {
            self.position.hold(First { id: chain.id, len }, self.next_used);
            self.first = Some(Used { at: self.first.map_or(used.at, |first| first.at), ..used });
            if self.batches && self.next_used.wrap != used.at.wrap {
                self.show_used();
                self.asks = self.call.is_some();
            }
        } else {
            self.position.write(self.next_used);
            self.write_used(used);
        }
    }

    #[inline]
    fn complete_run(&mut self, mut run: impl ExactSizeIterator<Item = (u16, u32)>) {
        if self.batches {
            let (n, to_end) = (run.len() as u16, self.slots.size - self.next_used.slot);
            if n > to_end
                && let Some((id, len)) = run.nth(usize::from(to_end) - 1)
            {
                self.complete(Chain { id, slots: to_end }, len);
            }
            let slots = run.len() as u16;
            if let Some((id, len)) = run.last() {
                self.complete(Chain { id, slots }, len);
            }
            return;
        }
        if self.first.is_none()
            && let Some((id, len)) = run.next()
        {
            self.complete(Chain { id, slots: 1 }, len);
        }
        debug_assert!(run.len() <= usize::from(self.in_flight), "more than is in flight");
        let n = run.len().min(usize::from(self.in_flight)) as u16;
        if n == 0 {
            return;
        }
        let begin = self.next_used;
        self.in_flight -= n;
        self.next_used = begin.advanced(n, self.slots.size);
        self.position.write_run(self.next_used);
        let (slots, mut at) = (self.slots, begin);
        for (id, len) in run.take(usize::from(n)) {
            slots.second_half(at.slot).store(Used { at, id, len }.half(), Ordering::Relaxed);
            at = at.next(slots.size);
        }
        if let Some(log) = self.memory.space().log() {
            self.log_run(log, begin, n);
        }
    }

    #[inline]
    fn release(&mut self) -> bool {
        if self.first.is_some() {
            self.show_used();
            self.asks = self.call.is_some();
        }
        self.asks
    }

    #[inline]
    fn interrupt(&mut self) -> bool {
        std::mem::take(&mut self.asks) && self.is_asked() && self.call.as_ref().is_some_and(Call::notify)
    }

    fn publish_quietly(&mut self) {
        self.show_used();
        (self.asks, self.decided) = (false, None);
    }
}

#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
pub(super) mod tests;
