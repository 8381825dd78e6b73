//! Frames that arrive: to a queue by their hash, into the buffers that the driver gave.

use super::Ena;
use super::queue::Buffer;
use super::settings::Wrong;
use crate::bus::Bus;
use crate::rss::{Flow, toeplitz};
use crate::work;

const FIRST: u32 = 1 << 26;
const LAST: u32 = 1 << 27;
/// Buffers of a frame, at most.
pub(super) const MOST_BUFFERS: u16 = 8;

impl Ena {
    /// The driver says that it has given buffers up to `tail`.
    pub(super) fn take_buffers(&mut self, bus: &mut Bus, number: usize, tail: u32) {
        let Some(queue) = self.submissions.get_mut(number).and_then(Option::as_mut) else { return };
        let new = (tail as u16).wrapping_sub(queue.head);
        if tail > 0xffff || usize::from(new) + queue.buffers.len() >= usize::from(queue.depth) {
            return bus.broken(format!("doorbell {tail} of a receive queue whose head is {}", queue.head));
        }
        while queue.head != tail as u16 {
            let bytes = bus.dma_get(queue.base + queue.slot() as u64 * 16, 16);
            let control = u32::from(bytes[3]);
            let zero = [bytes[2], bytes[6], bytes[7], bytes[14], bytes[15]];
            if control & 1 != queue.phase() {
                return bus.broken("a receive descriptor has the phase of the lap before");
            }
            if zero != [0; 5] || control & 0xc2 != 0 || control & 0x1c != 0x1c {
                return bus.broken(format!("a receive descriptor: {bytes:x?}"));
            }
            let id = u16::from_le_bytes([bytes[4], bytes[5]]);
            if !queue.take_id(id) {
                bus.broken(format!("the device has buffer {id}, or there is none"));
            }
            let iova = u64::from(u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]))
                | u64::from(u16::from_le_bytes([bytes[12], bytes[13]])) << 32;
            let len = match u16::from_le_bytes([bytes[0], bytes[1]]) {
                0 => 1 << 16,
                len => len.into(),
            };
            queue.buffers.push_back(Buffer { id, iova, len });
            queue.head = queue.head.wrapping_add(1);
        }
    }

    /// The queue that a frame goes to, and its hash.
    fn queue_of(&self, frame: &[u8]) -> (Option<usize>, u32) {
        let hash =
            Flow::of(frame).map_or(0, |flow| toeplitz(&self.key, &[flow.addresses, flow.ports].concat()));
        let receives = |number: &usize| {
            self.submissions.get(*number).and_then(Option::as_ref).is_some_and(|queue| queue.direction == 2)
        };
        let first = (0..self.submissions.len()).find(receives);
        let chosen = match self.table.len() {
            0 => None,
            len => Some(usize::from(self.table[hash as usize % len])).filter(receives),
        };
        (chosen.or(first), hash)
    }

    /// Receives what is on the wire.
    pub(super) fn receive(&mut self, bus: &mut Bus) {
        while let Some(frame) = bus.wire.take_arriving() {
            let (number, hash) = self.queue_of(&frame);
            let lost = !self.link || frame.len() > self.mtu as usize + 18;
            let Some(number) = number.filter(|_| !lost) else {
                bus.wire.missed += 1;
                continue;
            };
            if self.wrong == Some(Wrong::NoWriteBack) {
                continue;
            }
            if !self.deliver(bus, number, &frame, hash) {
                self.counters.overruns += 1;
                bus.wire.missed += 1;
            }
        }
    }

    /// Writes a frame into buffers, if there are enough.
    fn deliver(&mut self, bus: &mut Bus, number: usize, frame: &[u8], hash: u32) -> bool {
        let verdict = self.verdict(frame);
        let (wrong, receive) = (self.wrong, self.settings.receive_offloads);
        let Some(queue) = self.submissions.get_mut(number).and_then(Option::as_mut) else { return false };
        let mut parts = Vec::new();
        let mut left = frame;
        for buffer in queue.buffers.iter().take(MOST_BUFFERS.into()) {
            let (part, rest) = left.split_at(left.len().min(buffer.len));
            parts.push((*buffer, part));
            left = rest;
            if left.is_empty() {
                break;
            }
        }
        if !left.is_empty() || parts.is_empty() {
            return false;
        }
        queue.buffers.drain(..parts.len());
        let completions = queue.completions;
        for (buffer, _) in &parts {
            queue.give_id(buffer.id);
        }
        let count = parts.len();
        for (n, (buffer, part)) in parts.into_iter().enumerate() {
            bus.dma_write(buffer.iova, part);
            let mut status = 1 << 30;
            if n == 0 || wrong == Some(Wrong::FirstAgain) {
                status |= FIRST;
            }
            if n + 1 == count {
                status |= LAST | verdict;
            }
            let len = if wrong == Some(Wrong::Length) { buffer.len + 1 } else { part.len() };
            let id = if wrong == Some(Wrong::StrayBuffer) { buffer.id ^ 0x8000 } else { buffer.id };
            let hash = if receive >> 3 & 1 != 0 { hash } else { 0 };
            let offset = if wrong == Some(Wrong::Offset) { 2u32 << 16 } else { 0 };
            let words = [status, len as u32 & 0xffff | u32::from(id) << 16, hash, offset];
            let entry = words.map(u32::to_le_bytes).concat();
            self.write_to(bus, completions, entry);
        }
        self.counters.received += 1;
        self.counters.received_bytes += frame.len() as u64;
        true
    }

    /// What the device finds out about a frame's checksums: bits of a completion.
    fn verdict(&self, frame: &[u8]) -> u32 {
        const L3_BAD: u32 = 1 << 13;
        const L4_BAD: u32 = 1 << 14;
        const L4_CHECKED: u32 = 1 << 16;
        let Some(flow) = Flow::of(frame) else { return 0 };
        let mut l2 = 14;
        while matches!(frame.get(l2 - 2..l2), Some([0x81, 0x00] | [0x88, 0xa8])) {
            l2 += 4;
        }
        let v4 = flow.version == 4;
        let word = |at: usize| match frame.get(at..at + 2) {
            Some([a, b]) => usize::from(*a) << 8 | usize::from(*b),
            _ => 0,
        };
        let l3 = if v4 { usize::from(frame[l2] & 15) * 4 } else { 40 };
        let length = if v4 { word(l2 + 2).saturating_sub(l3) } else { word(l2 + 4) };
        let mut bits = if v4 { 8 } else { 11 };
        let l3_bad = v4 && work::sum(frame.get(l2..l2 + l3).unwrap_or_default(), 0) != 0xffff;
        if l3_bad && self.settings.receive_offloads & 1 != 0 {
            bits |= L3_BAD;
        }
        bits |= match flow.protocol {
            6 => 12 << 8,
            17 => 13 << 8,
            _ => return bits,
        };
        let checks = self.settings.receive_offloads >> if v4 { 1 } else { 2 } & 1 != 0;
        let Some(bytes) = frame.get(l2 + l3..l2 + l3 + length).filter(|_| checks && !flow.ports.is_empty())
        else {
            return bits;
        };
        let pseudo = work::pseudo(frame, l2, flow.protocol, length as u32);
        if work::sum(bytes, pseudo) != 0xffff {
            bits |= L4_BAD;
        }
        bits | L4_CHECKED
    }
}
