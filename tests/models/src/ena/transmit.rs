//! Frames that the driver sends: out of descriptors in memory of the host, or out of the device's own memory.

use super::Ena;
use super::queue::{Meta, Submissions};
use super::settings::{Order, Wrong};
use crate::bus::Bus;
use crate::work::{self, Lengths};

const META: u32 = 1 << 23;
const FIRST: u32 = 1 << 26;
const LAST: u32 = 1 << 27;
const COMPLETION_REQUEST: u32 = 1 << 28;
/// Descriptors of a frame, at most, as drivers are told. Linux's does not count the meta descriptor among them, which the
/// specification does: so one more is let through.
pub(super) const MOST_DESCRIPTORS: u16 = 17;
/// Bytes of headers, at most, where descriptors are in memory of the host.
const MOST_HEADER: usize = 96;
/// Frames that are completed together, the last first.
const REVERSED: usize = 5;

type Words = [u32; 4];

fn words_of(bytes: &[u8]) -> Words {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

/// A frame's descriptors, and the bytes that came with them.
#[derive(Debug, Default)]
struct Request {
    descriptors: Vec<Words>,
    pushed: Vec<u8>,
    /// Entries that they took.
    entries: u16,
}

/// What is to be done for a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    l3: u32,
    l4: u32,
    dont_fragment: bool,
    cut: bool,
    l3_checksum: bool,
    l4_checksum: bool,
    partial: bool,
}

impl Work {
    fn of(word: u32) -> Self {
        let bit = |n: u32| word >> n & 1 != 0;
        Self {
            l3: word & 15,
            l4: word >> 8 & 31,
            dont_fragment: bit(4),
            cut: bit(7),
            l3_checksum: bit(13),
            l4_checksum: bit(14),
            partial: bit(17),
        }
    }

    fn is_none(self) -> bool {
        !(self.cut || self.l3_checksum || self.l4_checksum)
    }
}

impl Ena {
    /// The driver says that it has submitted entries up to `tail`.
    pub(super) fn transmit(&mut self, bus: &mut Bus, number: usize, tail: u32) {
        let Some(mut queue) = self.submissions.get_mut(number).and_then(Option::take) else {
            return bus.broken(format!("doorbell of queue {number}, which there is not"));
        };
        let new = (tail as u16).wrapping_sub(queue.head);
        if tail > 0xffff || new >= queue.depth {
            bus.broken(format!("doorbell {tail} of a transmit queue whose head is {}", queue.head));
            self.submissions[number] = Some(queue);
            return;
        }
        if let (Some(_), Some(llq)) = (queue.area, self.settings.llq)
            && llq.burst > 0
            && usize::from(new) * self.entry_bytes() > usize::from(llq.burst)
        {
            bus.broken(format!("{new} entries between two doorbells are more than {} bytes", llq.burst));
        }
        while queue.head != tail as u16 {
            let left = (tail as u16).wrapping_sub(queue.head);
            match self.next_request(bus, &queue, left) {
                Ok(request) => {
                    queue.head = queue.head.wrapping_add(request.entries);
                    if let Err(rule) = self.send(bus, &mut queue, number, &request) {
                        bus.broken(rule);
                    }
                }
                Err(rule) => {
                    bus.broken(rule);
                    queue.head = tail as u16;
                }
            }
        }
        self.submissions[number] = Some(queue);
        if self.order == Order::Reversed && self.waiting.len() >= REVERSED {
            for (queue, id) in std::mem::take(&mut self.waiting).into_iter().rev() {
                self.complete(bus, queue, id);
            }
        }
    }

    /// The descriptors of the next frame, out of at most `left` entries.
    fn next_request(&mut self, bus: &mut Bus, queue: &Submissions, left: u16) -> Result<Request, String> {
        let mut request = Request::default();
        let area = queue.area;
        let phase_at = |entry: u16| u32::from(queue.head.wrapping_add(entry) & queue.depth == 0);
        while request.entries < left {
            let entry = request.entries;
            let slot = usize::from(queue.head.wrapping_add(entry) & (queue.depth - 1));
            let (bytes, room, header_at) = match (area, self.layout) {
                (Some(area), Some(layout)) => {
                    let bytes = self.take_entry(area + slot * layout.entry, layout.entry)?;
                    let first = entry == 0;
                    let room = if first { layout.before_header } else { layout.per_entry };
                    (bytes, room, if first { layout.before_header * 16 } else { layout.entry })
                }
                _ => (bus.dma_get(queue.base + slot as u64 * 16, 16), 1, 16),
            };
            request.entries += 1;
            let mut ended = false;
            let mut used = 0;
            for words in bytes[..room * 16].chunks_exact(16).map(words_of) {
                if words[0] >> 24 & 1 != phase_at(entry) {
                    return Err(format!("a descriptor has the phase of the lap before: {words:x?}"));
                }
                request.descriptors.push(words);
                used += 16;
                if words[0] & LAST != 0 {
                    ended = true;
                    break;
                }
            }
            // Behind descriptors and in front of the header there is nothing.
            let rest = &bytes[used..header_at.min(bytes.len()).max(used)];
            if rest.iter().any(|byte| *byte != 0) {
                return Err("there is something behind the last descriptor of an entry".to_owned());
            }
            if entry == 0 && area.is_some() {
                request.pushed = bytes[header_at..].to_vec();
            }
            if ended {
                return Ok(request);
            }
        }
        Err("a frame's last descriptor is missing".to_owned())
    }

    /// An entry of the device's memory, every word of which was written since it was taken last.
    fn take_entry(&mut self, at: usize, len: usize) -> Result<Vec<u8>, String> {
        let written = &mut self.written[at / 8..(at + len) / 8];
        let whole = written.iter().all(|word| *word);
        written.fill(false);
        if !whole {
            return Err(format!("the entry at {at:#x} was not written whole"));
        }
        Ok(self.memory[at..at + len].to_vec())
    }

    /// The driver writes a word of the device's memory.
    pub(super) fn push(&mut self, bus: &mut Bus, offset: u64, value: u64) {
        let at = offset as usize;
        let entry = self.entry_bytes();
        let inside = self.submissions.iter().flatten().any(|queue| {
            queue.area.is_some_and(|area| (area..area + usize::from(queue.depth) * entry).contains(&at))
        });
        if !inside {
            return bus.broken(format!("{offset:#x} is in no low latency queue"));
        }
        if std::mem::replace(&mut self.written[at / 8], true) {
            bus.broken(format!("{offset:#x} is written again before the doorbell"));
        }
        self.memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn meta(words: Words) -> Result<Meta, String> {
        let [control, id, lengths, zero] = words;
        let must_not = 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 22 | 1 << 25 | 7 << 29;
        if control & must_not != 0 || id & !0x3f != 0 || zero != 0 {
            return Err(format!("reserved bits of a meta descriptor: {words:x?}"));
        }
        if control & (1 << 14 | 1 << 20) != 1 << 14 | 1 << 20 {
            return Err(format!("a meta descriptor that is not an extended one: {words:x?}"));
        }
        let lengths = |shift: u32, mask: u32| (lengths >> shift & mask) as usize;
        Ok(Meta {
            size: ((control >> 16 & 15) << 10) as usize | lengths(22, 0x3ff),
            l2: lengths(8, 0xff),
            l3: lengths(0, 0xff),
            l4: lengths(16, 0x3f) * 4,
        })
    }

    fn send(
        &mut self,
        bus: &mut Bus,
        queue: &mut Submissions,
        number: usize,
        request: &Request,
    ) -> Result<(), String> {
        let count = request.descriptors.len();
        if count > usize::from(MOST_DESCRIPTORS) + 1 {
            return Err(format!("a frame of {count} descriptors"));
        }
        for (n, words) in request.descriptors.iter().enumerate() {
            if (words[0] & FIRST != 0) != (n == 0) || (words[0] & META != 0 && n > 0) {
                return Err(format!("descriptor {n} of a frame: {words:x?}"));
            }
        }
        let (meta, rest) = match request.descriptors.split_first() {
            Some((meta, rest)) if meta[0] & META != 0 => (Some(Self::meta(*meta)?), rest),
            _ => (None, &request.descriptors[..]),
        };
        let remembers = !self.settings.llq.is_some_and(|llq| llq.meta_always && queue.area.is_some());
        if remembers {
            queue.meta = meta.or(queue.meta);
        } else if meta.is_none() {
            return Err("a frame without a meta descriptor, and the device remembers none".to_owned());
        }
        let Some(first) = rest.first() else { return Err("a frame of a meta descriptor".to_owned()) };
        for words in rest {
            let [control, meta, _, high] = *words;
            let zero = 1 << 16 | 7 << 18 | 1 << 21 | 3 << 5;
            if control & (1 << 22 | 1 << 25 | 7 << 29) != 0 || meta & zero != 0 || high >> 16 & 0xff != 0 {
                return Err(format!("reserved bits of a descriptor: {words:x?}"));
            }
        }
        if first[0] & COMPLETION_REQUEST == 0 {
            return Err("a frame that asks for no completion".to_owned());
        }
        let id = ((first[0] >> 16 & 0x3f) << 10 | first[1] >> 22) as u16;
        if !queue.take_id(id) {
            return Err(format!("the device has id {id}, or there is none"));
        }
        let header = (first[3] >> 24) as usize;
        let most = if queue.area.is_some() { request.pushed.len() } else { MOST_HEADER };
        if header > most {
            return Err(format!("a header of {header} bytes"));
        }
        let mut frame = Vec::new();
        if queue.area.is_some() {
            frame.extend_from_slice(&request.pushed[..header]);
            if request.pushed[header..].iter().any(|byte| *byte != 0) {
                return Err("there is something behind a header".to_owned());
            }
        }
        for (n, words) in rest.iter().enumerate() {
            let len = (words[0] & 0xffff) as usize;
            if len == 0 && (n > 0 || frame.is_empty()) {
                return Err("a descriptor of no bytes".to_owned());
            }
            let iova = u64::from(words[2]) | u64::from(words[3] & 0xffff) << 32;
            if len > 0 {
                frame.extend(bus.dma_get(iova, len));
            }
        }
        let result = self.finish(bus, Work::of(first[1]), meta.or(queue.meta), frame);
        match self.order {
            _ if self.wrong == Some(Wrong::NoCompletion) => {}
            Order::InOrder => {
                queue.give_id(id);
                self.write_completion(bus, queue, id);
                if self.wrong == Some(Wrong::CompletedTwice) {
                    self.write_completion(bus, queue, id);
                }
            }
            Order::Reversed | Order::Held => self.waiting.push((number, id)),
        }
        result
    }

    fn complete(&mut self, bus: &mut Bus, number: usize, id: u16) {
        if let Some(mut queue) = self.submissions.get_mut(number).and_then(Option::take) {
            queue.give_id(id);
            self.write_completion(bus, &queue, id);
            self.submissions[number] = Some(queue);
        }
    }

    fn write_completion(&mut self, bus: &mut Bus, queue: &Submissions, id: u16) {
        let mut entry = vec![0; 8];
        entry[..2].copy_from_slice(&id.to_le_bytes());
        entry[2] = u8::from(self.troubles.send_errors);
        entry[6..].copy_from_slice(&queue.head.to_le_bytes());
        self.write_to(bus, queue.completions, entry);
    }

    /// Does what is asked for, and puts the frame on the wire.
    fn finish(
        &mut self,
        bus: &mut Bus,
        work: Work,
        meta: Option<Meta>,
        frame: Vec<u8>,
    ) -> Result<(), String> {
        if frame.len() < 14 {
            return Err(format!("a frame of {} bytes", frame.len()));
        }
        let mut frames = vec![frame];
        if !work.is_none() {
            let meta = meta.ok_or("checksums are asked for, and there was no meta descriptor")?;
            frames = self.work(work, meta, std::mem::take(&mut frames[0]))?;
        }
        for frame in frames {
            self.put_on_wire(bus, frame);
        }
        Ok(())
    }

    /// Whether something is offered: a bit of `ena_admin_feature_offload_desc`.
    fn offers(&self, bit: u32) -> Result<(), String> {
        match self.settings.transmit_offloads >> bit & 1 {
            0 => Err(format!("offload {bit} is asked for and was not offered")),
            _ => Ok(()),
        }
    }

    fn work(&self, work: Work, meta: Meta, mut frame: Vec<u8>) -> Result<Vec<Vec<u8>>, String> {
        let Meta { l2, l3, l4, size } = meta;
        let at = |n: usize| frame.get(n).copied().ok_or(format!("headers end behind the frame: {meta:?}"));
        let mut tags = 12;
        while matches!((at(tags)?, at(tags + 1)?), (0x81, 0x00) | (0x88, 0xa8)) {
            tags += 4;
        }
        if tags + 2 != l2 {
            return Err(format!("the IP header is at {}, not at {l2}", tags + 2));
        }
        let v4 = match (at(tags)?, at(tags + 1)?, work.l3) {
            (0x08, 0x00, 8) => true,
            (0x86, 0xdd, 11) => false,
            (a, b, l3) => return Err(format!("ethertype {a:02x}{b:02x} is not protocol {l3}")),
        };
        if v4 && (usize::from(at(l2)? & 15) * 4 != l3 || (at(l2 + 6)? & 0x40 != 0) != work.dont_fragment) {
            return Err(format!(
                "the IPv4 header is not {l3} bytes long, or DF is not {}",
                work.dont_fragment
            ));
        }
        if !v4 && l3 < 40 {
            return Err(format!("an IPv6 header of {l3} bytes"));
        }
        let protocol = at(if v4 { l2 + 9 } else { l2 + 6 })?;
        let (offset, tcp) = match (protocol, work.l4) {
            (6, 12) => (16, true),
            (17, 13) => (6, false),
            (protocol, l4) => return Err(format!("protocol {protocol} is not {l4}")),
        };
        let start = l2 + l3;
        if work.cut {
            let doff = usize::from(at(start + 12)? >> 4) * 4;
            if !tcp || doff != l4 || size == 0 || work.partial || !work.l4_checksum {
                return Err(format!("a frame to be cut: {work:?}, {meta:?}, TCP header {doff}"));
            }
            if v4 != work.l3_checksum {
                return Err(
                    "the IPv4 header of a frame that is cut needs a checksum, IPv6 has none".to_owned()
                );
            }
            self.offers(if v4 { 5 } else { 6 })?;
            return Ok(work::cut_tcp(&frame, Lengths { l2, l3, l4 }, size));
        }
        if l4 != 0 || size != 0 {
            return Err(format!("nothing is cut, and the meta descriptor is {meta:?}"));
        }
        if work.l3_checksum {
            self.offers(0)?;
            work::fill_ipv4(&mut frame, l2, l3);
        }
        if work.l4_checksum {
            self.offers(if v4 { 1 } else { 3 } + u32::from(!work.partial))?;
            let length = if v4 {
                usize::from(u16::from_be_bytes([frame[l2 + 2], frame[l2 + 3]])) - l3
            } else {
                usize::from(u16::from_be_bytes([frame[l2 + 4], frame[l2 + 5]])) + 40 - l3
            };
            let sum = work::pseudo(&frame, l2, protocol, length as u32);
            let Some(field) = frame.get_mut(start + offset..start + offset + 2) else {
                return Err("a checksum behind the frame".to_owned());
            };
            if !work.partial {
                field.copy_from_slice(&sum.to_be_bytes());
            } else if u16::from_be_bytes([field[0], field[1]]) != sum {
                return Err(format!("the sum of the pseudo header is {sum:#x}, and {field:x?} stands there"));
            }
            work::fill_over_partial(&mut frame, start, offset, !tcp);
        }
        Ok(vec![frame])
    }

    fn put_on_wire(&mut self, bus: &mut Bus, mut frame: Vec<u8>) {
        let tag = if frame.get(12..14) == Some(&[0x81, 0]) { 4 } else { 0 };
        if frame.len() > self.mtu as usize + 14 + tag || self.troubles.send_errors || !self.link {
            self.counters.send_drops += 1;
            return;
        }
        frame.resize(frame.len().max(60), 0);
        self.counters.sent += 1;
        self.counters.sent_bytes += frame.len() as u64;
        bus.wire.send(frame);
    }
}
