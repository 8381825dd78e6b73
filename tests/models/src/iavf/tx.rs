//! Transmit queues.

use super::pf::{SEND_ERRORS, SENT};
use super::{Finished, Held, Iavf, Wrong};
use crate::bus::Bus;
use crate::work::{Lengths, cut_tcp, fill_ipv4, fill_over_partial, pseudo};

/// Most descriptors of a frame, or of one segment of it; more are malicious.
const MOST_DESCRIPTORS: usize = 8;
/// Shortest frame that may be sent, and shortest on the wire.
const SHORTEST: usize = 17;
const ON_WIRE: usize = 60;
/// Payload of segments.
const SEGMENTS: std::ops::RangeInclusive<usize> = 64..=9668;

/// One of them.
#[derive(Debug, Default)]
pub struct Transmit {
    base: u64,
    count: u32,
    head: u32,
    pub tail: u32,
    pub enabled: bool,
    pub held: Held,
    /// The frame under way.
    frame: Frame,
}

/// A frame whose descriptors are being read.
#[derive(Clone, Debug, Default)]
struct Frame {
    /// Payload and segment size of its context.
    cut: Option<(usize, usize)>,
    bytes: Vec<u8>,
    /// Bytes of each piece.
    pieces: Vec<usize>,
    /// Command bits and header lengths of its first descriptor.
    work: Option<(u64, u64)>,
    tag: Option<u16>,
}

impl Transmit {
    pub fn set_up(&mut self, base: u64, count: u32) {
        *self = Self { base, count, ..Self::default() };
    }

    pub fn is_set_up(&self) -> bool {
        self.count > 0
    }

    pub fn switch(&mut self, on: bool) {
        (self.enabled, self.head, self.tail) = (on, 0, 0);
        (self.held, self.frame) = (Held::default(), Frame::default());
    }
}

/// Commands of data descriptors.
const END: u64 = 1;
const REPORT: u64 = 1 << 1;
const FCS: u64 = 1 << 2;
const TAG: u64 = 1 << 3;
/// Dummy packets, and FCoE.
const FORBIDDEN: u64 = 1 << 4 | 1 << 7;
const IP: u64 = 3 << 5;
const TRANSPORT: u64 = 3 << 8;

impl Iavf {
    /// The tail of queue `number` is moved.
    pub(super) fn send(&mut self, bus: &mut Bus, number: usize, tail: u32) {
        let queue = &mut self.transmit[number];
        if !queue.enabled {
            // Before they are on, drivers set tails to 0.
            if tail != 0 {
                bus.broken(format!("tail {tail} of transmit queue {number}, which is off"));
            }
            return;
        }
        if tail >= queue.count {
            return bus.broken(format!("tail {tail} of transmit queue {number} with {}", queue.count));
        }
        queue.tail = tail;
        while self.transmit[number].enabled && self.transmit[number].head != tail {
            if let Err(rule) = self.take_descriptor(bus, number) {
                // The device takes the driver for malicious.
                bus.broken(format!(
                    "transmit queue {number}, descriptor {}: {rule}",
                    self.transmit[number].head
                ));
                self.vf.counters[SEND_ERRORS] += 1;
                self.transmit[number].enabled = false;
            }
        }
    }

    fn take_descriptor(&mut self, bus: &mut Bus, number: usize) -> Result<(), String> {
        let longest = self.longest() - 4;
        let silent = self.is(Wrong::NoWriteBack);
        let queue = &mut self.transmit[number];
        let at = queue.base + 16 * u64::from(queue.head);
        let mut bytes = [0; 16];
        bus.dma_read(at, &mut bytes);
        let (first, second) = bytes.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let (first, second) = (word(first), word(second));
        queue.head = (queue.head + 1) % queue.count;
        match second & 0xf {
            0 => {}
            1 => return queue.frame.context(first, second),
            other => return Err(format!("type {other}")),
        }
        let command = second >> 4 & 0xfff;
        queue.frame.add(bus, first, second)?;
        if command & (END | REPORT) == REPORT {
            return Err("a report in the middle of a frame".to_owned());
        }
        if command & END == 0 {
            return Ok(());
        }
        if command & REPORT != 0 && !silent {
            queue.held.finish(Finished { address: at, before: bytes.to_vec(), words: vec![0, 0xf] });
        }
        let frames = std::mem::take(&mut queue.frame).finish(longest)?;
        for mut frame in frames {
            frame.resize(frame.len().max(ON_WIRE), 0);
            self.vf.count(SENT, &frame);
            if self.link {
                bus.wire.send(frame);
            }
        }
        Ok(())
    }
}

/// Whether two sums are the same number: one's complement has two zeros.
fn same(a: u16, b: u16) -> bool {
    a % u16::MAX == b % u16::MAX
}

impl Frame {
    fn context(&mut self, first: u64, second: u64) -> Result<(), String> {
        if self.cut.is_some() || !self.bytes.is_empty() {
            return Err("a context in the middle of a frame".to_owned());
        }
        if first != 0 {
            return Err(format!("a context with a tunnel or a tag: {first:#x}"));
        }
        if second >> 4 & 0x3ff_ffff != 1 {
            return Err(format!("context command {:#x}", second >> 4 & 0x3ff_ffff));
        }
        let (payload, segment) = (second >> 30 & 0x3_ffff, second >> 50);
        if !SEGMENTS.contains(&(segment as usize)) || payload == 0 {
            return Err(format!("{payload} bytes in segments of {segment}"));
        }
        self.cut = Some((payload as usize, segment as usize));
        Ok(())
    }

    fn add(&mut self, bus: &mut Bus, address: u64, word: u64) -> Result<(), String> {
        let (command, offsets) = (word >> 4 & 0xfff, word >> 16 & 0x3_ffff);
        let (size, tag) = ((word >> 34 & 0x3fff) as usize, (word >> 48) as u16);
        if size == 0 || address == 0 {
            return Err(format!("{size} bytes at {address:#x}"));
        }
        if command & FORBIDDEN != 0 || command >> 10 != 0 || command & FCS == 0 {
            return Err(format!("command {command:#x}"));
        }
        if tag != 0 && command & TAG == 0 {
            return Err("a tag that is not put in".to_owned());
        }
        let work = (command & (IP | TRANSPORT | TAG), offsets);
        if *self.work.get_or_insert(work) != work {
            return Err("different work in one frame".to_owned());
        }
        self.tag = (command & TAG != 0).then_some(tag);
        self.bytes.extend(bus.dma_get(address, size));
        self.pieces.push(size);
        if self.cut.is_none() && self.pieces.len() > MOST_DESCRIPTORS {
            return Err(format!("a frame in {} pieces", self.pieces.len()));
        }
        Ok(())
    }

    /// The frames that leave.
    fn finish(self, longest: usize) -> Result<Vec<Vec<u8>>, String> {
        let (command, offsets) = self.work.unwrap_or_default();
        let lengths = Lengths {
            l2: (offsets & 0x7f) as usize * 2,
            l3: (offsets >> 7 & 0x7f) as usize * 4,
            l4: (offsets >> 14) as usize * 4,
        };
        let (ip, transport) = (command >> 5 & 3, command >> 8 & 3);
        let tag = self.tag;
        let mut frames = match (transport, self.cut) {
            (0, Some(_)) => return Err("to be cut without a transport".to_owned()),
            (0, None) if ip != 0 || offsets != 0 => return Err("lengths without a checksum".to_owned()),
            (0, None) => vec![self.bytes],
            (1, Some(_)) => self.cut(lengths, ip)?,
            (1 | 3, None) => vec![self.sum(lengths, ip, transport == 3)?],
            _ => return Err(format!("transport {transport}")),
        };
        for frame in &mut frames {
            if !(SHORTEST..=longest).contains(&frame.len()) {
                return Err(format!("a frame of {} bytes", frame.len()));
            }
            if let Some(tag) = tag {
                frame.splice(12..12, [0x81, 0, (tag >> 8) as u8, tag as u8]);
            }
        }
        Ok(frames)
    }

    /// Checks that the headers are where the descriptor says, and are what it says.
    fn check(&self, lengths: Lengths, ip: u64, protocol: u8) -> Result<(), String> {
        let Lengths { l2, l3, l4 } = lengths;
        let bytes = &self.bytes;
        let headers = l2 + l3 + l4;
        let kind = bytes.get(l2.wrapping_sub(2)..l2).ok_or("no room for headers")?;
        let (v4, seen) = match (kind, ip) {
            ([0x08, 0x00], 2 | 3) => (true, bytes.get(l2 + 9)),
            ([0x86, 0xdd], 1) => (false, bytes.get(l2 + 6)),
            _ => return Err(format!("IP type {ip} for {kind:x?}")),
        };
        let own = usize::from(*bytes.get(l2).ok_or("no room for headers")? & 15) * 4;
        if (v4 && own != l3) || (!v4 && l3 < 40) || headers > bytes.len() || l4 < 8 {
            return Err(format!("{lengths:?} in {} bytes", bytes.len()));
        }
        // Behind extension headers, the number is elsewhere.
        if (v4 || l3 == 40) && seen != Some(&protocol) {
            return Err(format!("protocol {seen:?}, and the descriptor says {protocol}"));
        }
        if protocol == 6 && usize::from(bytes[l2 + l3 + 12] >> 4) * 4 != l4 {
            return Err(format!("a TCP header that does not have {l4} bytes"));
        }
        Ok(())
    }

    fn field(&self, at: usize) -> Result<u16, String> {
        let bytes = self.bytes.get(at..at + 2).ok_or("no room for a checksum")?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn sum(mut self, lengths: Lengths, ip: u64, udp: bool) -> Result<Vec<u8>, String> {
        let (protocol, offset) = if udp { (17, 6) } else { (6, 16) };
        self.check(lengths, ip, protocol)?;
        let start = lengths.l2 + lengths.l3;
        // What fills a short frame up is no part of the packet.
        let length = if ip == 1 {
            usize::from(self.field(lengths.l2 + 4)?) + 40 - lengths.l3
        } else {
            usize::from(self.field(lengths.l2 + 2)?).saturating_sub(lengths.l3)
        };
        if !same(self.field(start + offset)?, pseudo(&self.bytes, lengths.l2, protocol, length as u32)) {
            return Err("the sum of the pseudo header is wrong".to_owned());
        }
        if start + length > self.bytes.len() {
            return Err(format!("a packet of {length} bytes in a frame of {}", self.bytes.len()));
        }
        let rest = self.bytes.split_off(start + length);
        fill_over_partial(&mut self.bytes, start, offset, udp);
        if ip == 3 {
            fill_ipv4(&mut self.bytes, lengths.l2, lengths.l3);
        }
        self.bytes.extend(rest);
        Ok(self.bytes)
    }

    fn cut(self, lengths: Lengths, ip: u64) -> Result<Vec<Vec<u8>>, String> {
        self.check(lengths, ip, 6)?;
        let Lengths { l2, l3, l4 } = lengths;
        let headers = l2 + l3 + l4;
        let Some((payload, segment)) = self.cut else { return Err("no context".to_owned()) };
        if payload + headers != self.bytes.len() {
            return Err(format!("{payload} bytes are to be cut of {} with {headers}", self.bytes.len()));
        }
        if ip == 2 {
            return Err("an IPv4 header that is not summed up is to be cut".to_owned());
        }
        let (length, checksum) = match ip {
            1 => (self.field(l2 + 4)?, 0),
            _ => (self.field(l2 + 2)?, self.field(l2 + 10)?),
        };
        if (length, checksum) != (0, 0) {
            return Err("lengths and IPv4 checksum of what is cut are not 0".to_owned());
        }
        if !same(self.field(l2 + l3 + 16)?, pseudo(&self.bytes, l2, 6, 0)) {
            return Err("the sum of the pseudo header without length is wrong".to_owned());
        }
        self.check_pieces(headers, payload, segment)?;
        Ok(cut_tcp(&self.bytes, lengths, segment))
    }

    /// Counts the pieces of each segment, its headers included.
    fn check_pieces(&self, headers: usize, payload: usize, segment: usize) -> Result<(), String> {
        let ends: Vec<usize> = self
            .pieces
            .iter()
            .scan(0, |sum, size| {
                *sum += size;
                Some(*sum)
            })
            .collect();
        let piece = |at: usize| ends.partition_point(|end| *end <= at);
        let of_headers = piece(headers - 1) + 1;
        for start in (0..payload).step_by(segment) {
            let last = headers + (start + segment).min(payload) - 1;
            let pieces = piece(last) - piece(headers + start) + 1 + of_headers;
            if pieces > MOST_DESCRIPTORS + 1 {
                return Err(format!("a segment in {pieces} pieces"));
            }
        }
        Ok(())
    }
}
