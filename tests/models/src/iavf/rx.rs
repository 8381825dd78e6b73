//! Receive queues.

use std::collections::VecDeque;

use super::frames::look;
use super::pf::{RECEIVE_DISCARDS, RECEIVED};
use super::{Finished, Held, Iavf, MOST_PAIRS, Wrong};
use crate::bus::Bus;
use crate::rss::{Flow, toeplitz};

/// Most buffers of a frame.
const MOST_BUFFERS: usize = 5;

/// One of them.
#[derive(Debug, Default)]
pub struct Receive {
    base: u64,
    count: u32,
    buffer: usize,
    longest: usize,
    flexible: bool,
    /// Of the next descriptor that is filled.
    head: u32,
    /// Of the next descriptor that the driver gives, and what those said that it gave.
    given: u32,
    promised: VecDeque<Vec<u8>>,
    /// As it was written.
    pub tail: u32,
    pub enabled: bool,
    pub held: Held,
}

/// What is told with a frame's last buffer.
struct Verdict {
    kind: u64,
    tag: Option<u16>,
    hash: u32,
    checked: bool,
    ip_wrong: bool,
    transport_wrong: bool,
    damaged: bool,
}

impl Receive {
    pub fn set_up(&mut self, base: u64, count: u32, buffer: usize, longest: usize, flexible: bool) {
        // The tail may have been there before.
        *self = Self { base, count, buffer, longest, flexible, tail: self.tail, ..Self::default() };
    }

    pub fn is_set_up(&self) -> bool {
        self.count > 0
    }

    pub fn switch(&mut self, bus: &mut Bus, number: usize, on: bool) {
        (self.enabled, self.head, self.given) = (on, 0, 0);
        self.promised.clear();
        self.held = Held::default();
        if on {
            self.give(bus, number, self.tail);
        } else {
            self.tail = 0;
        }
    }

    /// The tail is moved.
    pub fn give(&mut self, bus: &mut Bus, number: usize, tail: u32) {
        if self.count > 0 && tail >= self.count {
            return bus.broken(format!("tail {tail} of receive queue {number} with {}", self.count));
        }
        self.tail = tail;
        while self.enabled && self.given != tail & !7 {
            self.promised.push_back(bus.dma_get(self.base + 32 * u64::from(self.given), 16));
            self.given = (self.given + 1) % self.count;
        }
    }

    /// Descriptors that the device has: the lower bits of the tail are ignored.
    fn available(&self) -> usize {
        let tail = self.tail & !7;
        if self.count == 0 { 0 } else { ((tail + self.count - self.head) % self.count) as usize }
    }

    /// Fills buffers with a frame, for which there are enough.
    fn fill(&mut self, bus: &mut Bus, frame: &[u8], verdict: &Verdict, wrong: Option<Wrong>) {
        let parts = frame.chunks(self.buffer).count();
        for (n, part) in frame.chunks(self.buffer).enumerate() {
            let at = self.base + 32 * u64::from(self.head);
            let given = bus.dma_get(at, 16);
            if self.promised.pop_front().as_ref() != Some(&given) {
                bus.broken(format!("receive descriptor {} is written to while the device has it", self.head));
            }
            let word = |n: usize| {
                given[8 * n..8 * n + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
            };
            if word(0) == 0 || word(1) != 0 {
                bus.broken(format!("receive descriptor {} has {:#x} and {:#x}", self.head, word(0), word(1)));
            }
            bus.dma_write(word(0), part);
            let len = match wrong {
                Some(Wrong::WrongLength) => 0x3fff,
                _ => part.len() as u64,
            };
            let end = n + 1 == parts && wrong != Some(Wrong::NoEnd);
            let words = if self.flexible { flexible(len, end, verdict) } else { legacy(len, end, verdict) };
            let words = match wrong {
                // One bit further up.
                Some(Wrong::WrongDone) => words.map(|word| word & !1),
                _ => words,
            };
            self.held.finish(Finished { address: at, before: given, words: words.to_vec() });
            self.head = (self.head + 1) % self.count;
        }
    }
}

fn flag(set: bool, bit: u32) -> u64 {
    u64::from(set) << bit
}

/// The legacy format.
fn legacy(len: u64, end: bool, verdict: &Verdict) -> [u64; 4] {
    let mut words = [0, 1 | flag(end, 1) | len << 38, 0, 0];
    if end {
        words[0] = u64::from(verdict.tag.unwrap_or(0)) << 16 | u64::from(verdict.hash) << 32;
        words[1] |= flag(verdict.tag.is_some(), 2)
            | flag(verdict.checked, 3)
            | 3 << 12
            | flag(verdict.damaged, 19)
            | flag(verdict.ip_wrong, 22)
            | flag(verdict.transport_wrong, 23)
            | verdict.kind << 30;
    }
    words
}

/// The 800 series' format for NICs.
fn flexible(len: u64, end: bool, verdict: &Verdict) -> [u64; 4] {
    let mut words = [2 | len << 32, 1 | flag(end, 1), 0, 0];
    if end {
        words[0] |= verdict.kind << 16;
        words[1] |= flag(verdict.checked, 3)
            | flag(verdict.ip_wrong, 4)
            | flag(verdict.transport_wrong, 5)
            | flag(verdict.damaged, 10)
            | 1 << 12
            | flag(verdict.tag.is_some(), 13)
            | u64::from(verdict.tag.unwrap_or(0)) << 16
            | u64::from(verdict.hash) << 32;
    }
    words
}

impl Iavf {
    /// Takes what is on the wire.
    pub(super) fn receive_all(&mut self, bus: &mut Bus) {
        while let Some(frame) = bus.wire.take_arriving() {
            if self.link && self.is_for_vf(&frame) {
                self.receive_one(bus, frame);
            }
        }
    }

    fn receive_one(&mut self, bus: &mut Bus, mut frame: Vec<u8>) {
        let hash = self.hash(&frame);
        let place = hash.and_then(|hash| self.vf.table.get(hash as usize % self.vf.table.len().max(1)));
        let number = usize::from(place.copied().unwrap_or(0)).min(MOST_PAIRS - 1);
        let seen = look(&frame);
        let tagged = frame.get(12..14) == Some(&[0x81, 0]) && frame.len() >= 18;
        let strips = self.vf.strips || self.is(Wrong::StripsTags);
        let tag = (tagged && strips).then(|| u16::from_be_bytes([frame[14], frame[15]]));
        if tag.is_some() {
            frame.drain(12..16);
        }
        let queue = &mut self.receive[number];
        let needed = frame.len().div_ceil(queue.buffer.max(1));
        if !queue.enabled
            || needed > queue.available()
            || frame.len() + 4 > queue.longest
            || needed > MOST_BUFFERS
        {
            self.vf.counters[RECEIVE_DISCARDS] += 1;
            bus.wire.missed += 1;
            return;
        }
        let damaged = self.damage > 0 || self.wrong == Some(Wrong::Damaged);
        self.damage = self.damage.saturating_sub(1);
        let wrong = self.wrong == Some(Wrong::WrongVerdict);
        let verdict = Verdict {
            kind: seen.map_or(1, |seen| seen.kind),
            tag,
            hash: hash.unwrap_or(0),
            checked: seen.is_some(),
            ip_wrong: seen.is_some_and(|seen| !seen.ip_good || wrong),
            transport_wrong: seen.is_some_and(|seen| !seen.transport_good || wrong),
            damaged,
        };
        self.vf.count(RECEIVED, &frame);
        self.receive[number].fill(bus, &frame, &verdict, self.wrong);
    }

    fn hash(&self, frame: &[u8]) -> Option<u32> {
        if self.vf.table.is_empty() || self.vf.key.is_empty() {
            return None;
        }
        let flow = Flow::of(frame)?;
        let kind = match (flow.version, flow.protocol, flow.ports.is_empty()) {
            (4, 17, false) => 31,
            (4, 6, false) => 33,
            (4, ..) => 35,
            (_, 17, false) => 41,
            (_, 6, false) => 43,
            _ => 45,
        };
        let input = [flow.addresses, flow.ports].concat();
        (self.vf.hashed >> kind & 1 != 0).then(|| toeplitz(&self.vf.key, &input))
    }
}
