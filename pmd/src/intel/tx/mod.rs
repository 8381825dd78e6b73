//! The transmit ring.
//!
//! ```text
//!   returned ──▶ [sent, tokens to be given back] ◀── clean ──▶ [with the device] ◀── tail
//! ```
//!
//! Each slot has a buffer: a frame is copied once, into the buffers of as many slots as it needs. What lies in memory of the
//! guest that the device reaches is not copied: its descriptor points there, and the frame is borrowed until the device has
//! sent it, which it [reports](super::reports) now and then.
//!
//! Of a frame that leaves the device something to do, the headers are copied, read and changed in a copy of our own and sent
//! from there. A context descriptor is put before it where the device does not know its kind yet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::context::{Contexts, LONGEST_HEADERS, Task, fill_checksum};
use super::descriptor::{Context, Manner, is_transmitted, reporting};
use super::family::{Family, RING, ring};
use super::pair;
use super::reports::Reports;
use crate::device::{Accepted, Completions, TransmitQueue};
use crate::frame::{Frame, Frames, MIN_FRAME, MIN_WIRE, Segment, Token, gather};
use crate::memory::{BUFFER_SIZE, DmaSlice, GuestWindows, SlotBuffers};
use crate::net::packet::LOOKED_AT;
use crate::offload::{Capabilities, Limits, Segmentation};
use crate::pci::PciFunction;
use crate::registers::Registers;
use crate::vf::Progress;

const MASK: u16 = RING - 1;
/// Most segments of a frame that is sent from where it lies: one in more pieces costs the device more than a copy costs us.
const MOST_PIECES: usize = 16;
/// Most data descriptors of one frame: 40 - WTHRESH - 2 (82576 data sheet, chapter 7.2; 82599 data sheet, chapter 7.2.3).
const MOST_DESCRIPTORS: u32 = 37;
/// Longest frame that is left to the device to be cut: an IP packet of 64 KiB, and two VLAN tags.
const LONGEST_CUT: u32 = 65535 + 22;
const _: () = assert!(LONGEST_CUT.div_ceil(BUFFER_SIZE) <= MOST_DESCRIPTORS);

/// What the transmit queue counts for the slow side.
#[derive(Debug, Default)]
pub struct TransmitCounters {
    /// Frames of a length that the device does not send.
    pub errors: AtomicU64,
}

/// The transmit queue of a VF.
#[derive(Debug)]
pub struct IntelTransmit {
    registers: Arc<dyn Registers>,
    family: &'static Family,
    /// The queue's number.
    number: u16,
    /// The queue's tail register.
    tail_register: u32,
    /// What the device knows.
    contexts: Contexts,
    ring: DmaSlice,
    buffers: SlotBuffers,
    /// Longest frame.
    max_frame: u32,
    /// The slot that is filled next.
    tail: u16,
    /// The oldest slot that is not known to be sent.
    clean: u16,
    /// The oldest slot whose token, if it has one, has not been given back.
    returned: u16,
    reports: Reports,
    /// What the device reaches of the guest's memory.
    guest: Arc<GuestWindows>,
    /// Where in `guest` something was found last.
    last_window: usize,
    /// The token of the borrowed frame that ends in each slot.
    tokens: Box<[Option<Token>]>,
    /// Tokens that have not been given back.
    borrowed: usize,
    /// Aborted: nothing is sent any more.
    disabled: bool,
    counters: Arc<TransmitCounters>,
    /// Keeps the device from the bus where nothing else ends its DMA.
    function: Option<Arc<dyn PciFunction>>,
}

/// The descriptor filled last, as far as it may have to be changed.
#[derive(Clone, Copy)]
struct Last {
    slot: u16,
    word: u64,
}

/// What became of a frame.
enum Sent {
    /// Its descriptors are in the ring.
    Filled(Last),
    /// It does not fit now.
    NoRoom,
    /// It can never be sent.
    Impossible,
}

/// Where the pieces of a frame are for the device; `None` for one that it does not reach.
type Places = [Option<u64>; MOST_PIECES];

/// `segments` without their first `skip` bytes; as many segments, some of them empty.
#[inline]
fn behind(segments: &[Segment], mut skip: u32) -> impl Iterator<Item = Segment> {
    segments.iter().map(move |segment| {
        let rest = segment.part(skip, u32::MAX);
        skip -= skip.min(segment.len());
        rest
    })
}

impl IntelTransmit {
    /// Transmit queue `number` over `ring` (room for [`RING`] descriptors) and `buffers` (as many of [`BUFFER_SIZE`] bytes),
    /// whose registers are programmed and which is enabled. Frames are up to `max_frame` bytes long, unless the device cuts
    /// them.
    pub fn new(
        registers: Arc<dyn Registers>,
        family: &'static Family,
        number: u16,
        [ring, buffers]: [DmaSlice; 2],
        max_frame: u32,
        counters: Arc<TransmitCounters>,
    ) -> Self {
        Self {
            registers,
            family,
            number,
            tail_register: family.transmit_at(number, ring::TAIL),
            contexts: Contexts::default(),
            ring,
            buffers: SlotBuffers::new(buffers, RING),
            max_frame,
            tail: 0,
            clean: 0,
            returned: 0,
            reports: Reports::new(RING),
            function: None,
            guest: Arc::default(),
            last_window: 0,
            tokens: vec![None; usize::from(RING)].into_boxed_slice(),
            borrowed: 0,
            disabled: false,
            counters,
        }
    }

    /// With the function whose queue it is.
    pub fn of(self, function: Arc<dyn PciFunction>) -> Self {
        Self { function: Some(function), ..self }
    }

    /// Slots that can be filled; one stays empty, so that a full ring is not taken for an empty one.
    #[inline]
    fn room(&self) -> u16 {
        MASK - (self.tail.wrapping_sub(self.returned) & MASK)
    }

    #[inline]
    fn collect_reports(&mut self) {
        let is_sent = |slot| is_transmitted(self.ring.load(2 * usize::from(slot) + 1));
        if let Some(clean) = self.reports.collect(is_sent) {
            self.buffers.came_back(clean, clean.wrapping_sub(self.clean) & MASK);
            self.clean = clean;
            // The buffers are written to after the device has read them.
            fence(Ordering::Acquire);
        }
        if self.borrowed == 0 {
            self.returned = self.clean;
        }
    }

    /// Gives back the tokens of the slots before `end`, as many as `done` has room for.
    #[inline]
    fn give_back(&mut self, end: u16, done: &mut Completions) {
        while self.returned != end && !done.is_full() {
            if let Some(token) = self.tokens.get_mut(usize::from(self.returned)).and_then(Option::take) {
                self.borrowed -= 1;
                done.push(token);
            }
            self.returned = (self.returned + 1) & MASK;
        }
    }

    /// Fills the next descriptor: `part` bytes at `iova`, of a frame to be handled in this manner, which they are the end of
    /// or not.
    #[inline(always)]
    fn describe(&mut self, iova: u64, part: u32, manner: Manner, end: bool) -> Last {
        let slot = self.tail;
        let index = 2 * usize::from(slot);
        let report = self.reports.filled() && end;
        let word = manner.word(part, end);
        self.ring.store(index, iova);
        self.ring.store(index + 1, if report { reporting(word) } else { word });
        if report {
            self.reports.expect(slot);
        }
        self.tail = (slot + 1) & MASK;
        Last { slot, word }
    }

    /// Fills descriptors for `len` bytes at `iova`.
    #[inline]
    fn describe_in_place(&mut self, iova: u64, len: u32, manner: Manner, end: bool) -> Last {
        let (mut iova, mut left) = (iova, len);
        loop {
            let part = left.min(self.family.longest_buffer);
            left -= part;
            let last = self.describe(iova, part, manner, end && left == 0);
            if left == 0 {
                return last;
            }
            iova += u64::from(part);
        }
    }

    /// Fills descriptors for `len` bytes that lie in the buffers from the next slot on.
    #[inline(always)]
    fn describe_copied(&mut self, len: u32, manner: Manner, end: bool) -> Last {
        let mut left = len;
        loop {
            let part = left.min(BUFFER_SIZE);
            left -= part;
            let iova = self.buffers.iova(self.tail);
            let last = self.describe(iova, part, manner, end && left == 0);
            if left == 0 {
                return last;
            }
        }
    }

    /// Sees to it that the device knows `context`, and names it in `manner`. `None` when there is no room for that and
    /// `slots` descriptors more.
    #[inline(never)]
    fn introduce(&mut self, context: Context, manner: Manner, slots: u32) -> Option<Manner> {
        let known = self.contexts.find(context);
        if slots + u32::from(known.is_none()) > u32::from(self.room()) {
            return None;
        }
        let slot = match known {
            Some(slot) => slot,
            None => {
                let slot = self.contexts.put(context);
                let index = 2 * usize::from(self.tail);
                for (at, word) in (index..).zip(context.words(slot)) {
                    self.ring.store(at, word);
                }
                self.reports.filled();
                self.tail = (self.tail + 1) & MASK;
                slot
            }
        };
        self.contexts.touch(slot);
        Some(manner.with_context(slot, self.family.always_context))
    }

    /// What comes before a frame that takes `slots` descriptors: a context where its task has one, or the family wants one
    /// for every frame. `None` when there is no room.
    #[inline(always)]
    fn begin(&mut self, task: Option<&Task>, padded: u32, slots: u32) -> Option<Manner> {
        match task {
            Some(task) => self.introduce(task.context, task.manner, slots),
            None if self.family.always_context => {
                self.introduce(Context::PLAIN, Manner::plain(padded), slots)
            }
            None => (slots <= u32::from(self.room())).then(|| Manner::plain(padded)),
        }
    }

    /// Copies a frame of a length that can be sent, its headers from `headers` where it has a task; `None` when there is no
    /// room for it.
    #[inline(always)]
    fn send_copy(
        &mut self,
        segments: &[Segment],
        len: u32,
        task: Option<&Task>,
        headers: &[u8],
    ) -> Option<Last> {
        // What the device is told of a frame that it works on is told to the byte; it fills up what leaves itself.
        let padded = if task.is_some() { len } else { len.max(MIN_WIRE) };
        let slots = SlotBuffers::needed(len);
        let manner = self.begin(task, padded, slots)?;
        self.buffers.warm(self.tail, slots);
        self.buffers.copy_frame(segments, len, self.tail);
        if !headers.is_empty() {
            // What was read and changed is what is sent, not what its owner has made of it since.
            self.buffers.segment(self.tail, BUFFER_SIZE).copy_from(headers);
        }
        Some(self.describe_copied(padded, manner, true))
    }

    /// Where the segments of a frame of `len` bytes are for the device behind the first `skip` bytes, and how many slots they
    /// take, those that it does not reach copied. `None` where the whole frame is better copied.
    #[inline]
    fn places(&mut self, segments: &[Segment], len: u32, skip: u32) -> Option<(Places, u32)> {
        if len < MIN_WIRE || segments.len() > MOST_PIECES {
            return None;
        }
        let (mut places, mut slots, mut reached) = ([None; MOST_PIECES], 0, false);
        for (segment, place) in
            behind(segments, skip).zip(&mut places).filter(|(segment, _)| segment.len() > 0)
        {
            *place = self.guest.find(&segment, &mut self.last_window);
            reached |= place.is_some();
            let longest = if place.is_some() { self.family.longest_buffer } else { BUFFER_SIZE };
            slots += segment.len().div_ceil(longest);
        }
        (reached && slots < MOST_DESCRIPTORS).then_some((places, slots))
    }

    /// Sends a frame of a length that can be sent from where it is, as far as the device reaches it and but for its headers
    /// where it has a task; `None` when there is no room for it.
    #[inline(never)]
    fn send_in_place(
        &mut self,
        frame: &Frame,
        segments: &[Segment],
        task: Option<&Task>,
        headers: &[u8],
    ) -> Option<Last> {
        let (len, skip) = (frame.len(), headers.len() as u32);
        let last = match self.places(segments, len, skip) {
            None => self.send_copy(segments, len, task, headers)?,
            Some((places, slots)) => {
                let manner = self.begin(task, len, slots + u32::from(skip > 0))?;
                let (mut last, mut left) = (None, len - skip);
                if skip > 0 {
                    self.buffers.segment(self.tail, skip).copy_from(headers);
                    last = Some(self.describe_copied(skip, manner, left == 0));
                }
                let pieces = behind(segments, skip).zip(places).filter(|(segment, _)| segment.len() > 0);
                for (segment, place) in pieces {
                    left = left.saturating_sub(segment.len());
                    last = Some(match place {
                        Some(iova) => self.describe_in_place(iova, segment.len(), manner, left == 0),
                        None => {
                            self.buffers.copy(&[segment], self.tail);
                            self.describe_copied(segment.len(), manner, left == 0)
                        }
                    });
                }
                last?
            }
        };
        if let Some(entry) = self.tokens.get_mut(usize::from(last.slot)) {
            *entry = Some(frame.token());
            self.borrowed += 1;
        }
        Some(last)
    }

    /// Sends a frame, copied or from where it is.
    #[inline(always)]
    fn send(&mut self, frame: &Frame, segments: &[Segment], in_place: bool) -> Sent {
        if !frame.offload().is_done() {
            return self.send_with_task(frame, segments, in_place);
        }
        if !(MIN_FRAME..=self.max_frame).contains(&frame.len()) {
            return Sent::Impossible;
        }
        self.place(frame, segments, in_place, None, &[])
    }

    #[inline(always)]
    fn place(
        &mut self,
        frame: &Frame,
        segments: &[Segment],
        in_place: bool,
        task: Option<&Task>,
        headers: &[u8],
    ) -> Sent {
        let sent = match in_place {
            true => self.send_in_place(frame, segments, task, headers),
            false => self.send_copy(segments, frame.len(), task, headers),
        };
        sent.map_or(Sent::NoRoom, Sent::Filled)
    }

    /// As [`send`](Self::send), for a frame that leaves the device something to do.
    #[inline(never)]
    fn send_with_task(&mut self, frame: &Frame, segments: &[Segment], in_place: bool) -> Sent {
        let len = frame.len();
        if !(MIN_FRAME..=LONGEST_CUT).contains(&len) {
            return Sent::Impossible;
        }
        let mut first = [0; LOOKED_AT];
        let copied = gather(segments, &mut first);
        let first = first.get_mut(..copied).unwrap_or_default();
        if len < MIN_WIRE && frame.offload().segmentation == Segmentation::None {
            // It is filled up to the shortest length. QEMU's model would count that to the packet.
            let right = fill_checksum(first, frame.offload());
            return if right { self.place(frame, segments, in_place, None, first) } else { Sent::Impossible };
        }
        let Some(task) = Task::of(first, frame.offload(), len, self.max_frame) else {
            return Sent::Impossible;
        };
        let headers = first.get(..task.headers as usize).unwrap_or_default();
        self.place(frame, segments, in_place, Some(&task), headers)
    }

    /// Lets the device have what was filled, up to `last`; `waited` tells whether somebody waits for its end.
    #[inline]
    fn ring_doorbell(&mut self, last: Last, waited: bool) {
        if self.reports.is_wanted(waited) {
            self.ring.store(2 * usize::from(last.slot) + 1, reporting(last.word));
            self.reports.expect(last.slot);
        }
        fence(Ordering::Release);
        self.registers.write(self.tail_register, u32::from(self.tail));
    }

    fn transmit_copies(&mut self, frames: Frames<'_>) -> Accepted {
        let mut accepted = 0;
        let mut last = None;
        for (frame, segments) in frames.iter() {
            match self.send(frame, segments, false) {
                Sent::Filled(sent) => last = Some(sent),
                Sent::NoRoom => break,
                Sent::Impossible => drop(self.counters.errors.fetch_add(1, Ordering::Relaxed)),
            }
            accepted += 1;
        }
        if let Some(last) = last {
            self.ring_doorbell(last, false);
        }
        Accepted::Copied(accepted)
    }

    fn transmit_in_place(&mut self, frames: Frames<'_>) -> Accepted {
        let mut accepted = 0;
        let mut last = None;
        for (frame, segments) in frames.iter() {
            match self.send(frame, segments, true) {
                Sent::Filled(sent) => last = Some(sent),
                Sent::Impossible if accepted == 0 => {
                    self.counters.errors.fetch_add(1, Ordering::Relaxed);
                    return Accepted::Copied(1);
                }
                Sent::Impossible | Sent::NoRoom => break,
            }
            accepted += 1;
        }
        if let Some(last) = last {
            // The guest waits for its memory.
            self.ring_doorbell(last, true);
        }
        Accepted::Borrowed(accepted)
    }
}

impl TransmitQueue for IntelTransmit {
    fn capabilities(&self) -> Capabilities {
        let limits = Limits {
            headers: LONGEST_HEADERS,
            cut: LONGEST_CUT,
            segment_frame: self.max_frame,
            ..Limits::NONE
        };
        Capabilities { udp: false, by_header: true, limits, ..Capabilities::ALL }
    }

    #[inline]
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        if self.disabled {
            return Accepted::Copied(0);
        }
        self.collect_reports();
        if self.guest.is_empty() { self.transmit_copies(frames) } else { self.transmit_in_place(frames) }
    }

    #[inline]
    fn reclaim(&mut self, done: &mut Completions) {
        self.collect_reports();
        // What was read of the descriptors comes before the guest writes to its memory again.
        fence(Ordering::Acquire);
        self.give_back(self.clean, done);
    }

    fn progress(&self) -> Option<Arc<Progress>> {
        Some(self.reports.progress())
    }

    #[inline]
    fn outstanding(&self) -> usize {
        self.borrowed
    }

    fn set_guest_memory(&mut self, windows: Arc<GuestWindows>) {
        (self.guest, self.last_window) = (windows, 0);
    }

    fn abort(&mut self, done: &mut Completions) {
        if !std::mem::replace(&mut self.disabled, true) {
            let control = self.family.transmit_at(self.number, ring::CONTROL);
            let quiet = pair::disable(&*self.registers, std::iter::once(control));
            // What a guest gets back it writes to: the device must not read it any more.
            if let (false, Some(function)) = (quiet, &self.function)
                && let Err(cause) = function.set_bus_master(false).or_else(|_| function.reset())
            {
                // It has left, then.
                tracing::debug!(%cause, "a queue that does not stop is not kept from the bus");
            }
            self.clean = self.tail;
            self.reports.forget();
        }
        self.give_back(self.clean, done);
    }
}

#[cfg(test)]
mod tests;
