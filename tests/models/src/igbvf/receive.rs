//! What arrives: the PF's filters, the queue, the descriptors.

use super::ring::{Ring, Switch};
use super::{Igbvf, PAIRS, Wrong};
use crate::bus::Bus;
use crate::rss::toeplitz;

const SRRCTL: u64 = 0x0c;
const RQDPC: u64 = 0x30;
/// SRRCTL: BSIZEPACKET, BSIZEHEADER, RDMTS, DESCTYPE, DROP_EN.
const SRRCTL_BITS: u32 = 0x7f | 0xf << 8 | 0x1f << 20 | 7 << 25 | 1 << 31;
/// SRRCTL, DESCTYPE: one buffer, or one for the beginning of each frame and one for the rest.
const ONE_BUFFER: u32 = 1;
const SPLIT: u32 = 5;

/// Descriptor, status: DD, EOP, VP, L4CS, IPCS; and LB of the I350: another function of the port has sent it.
const DONE: u64 = 1;
const END: u64 = 1 << 1;
const TAGGED: u64 = 1 << 3;
const L4_SEEN: u64 = 1 << 5;
const IP_SEEN: u64 = 1 << 6;
const LOOPED: u64 = 1 << 18;
/// Descriptor, errors: L4E, IPE.
const L4_WRONG: u64 = 1 << 29;
const IP_WRONG: u64 = 1 << 30;

/// A receive queue.
#[derive(Debug, Default)]
pub struct Receive {
    pub ring: Ring,
    srrctl: u32,
    /// Frames that found no descriptor.
    missed: u32,
}

impl Receive {
    /// A read of register `register`.
    pub fn read(&mut self, bus: &mut Bus, register: u64) -> u32 {
        match register {
            SRRCTL => self.srrctl,
            RQDPC => std::mem::take(&mut self.missed),
            _ => self.ring.read(bus, register),
        }
    }

    /// A write to register `register`.
    pub fn write(&mut self, bus: &mut Bus, register: u64, value: u32, switch: Switch) {
        match register {
            SRRCTL if self.ring.is_enabled() => bus.broken("SRRCTL is written while its queue is on"),
            SRRCTL => {
                let kind = value >> 25 & 7;
                let split = kind == SPLIT && value >> 8 & 0xf != 0;
                if value & !SRRCTL_BITS != 0 || kind != ONE_BUFFER && !split || value & 0x7f == 0 {
                    bus.broken(format!("SRRCTL is set to {value:#x}"));
                }
                if value >> 31 == 0 {
                    bus.broken("a VF without DROP_EN holds up the whole port");
                }
                self.srrctl = value;
            }
            _ => self.ring.write(bus, register, value, switch),
        }
    }

    fn buffer(&self) -> usize {
        ((self.srrctl & 0x7f) as usize) << 10
    }

    /// Bytes of a frame's beginning that go into a buffer of their own. The VF splits no headers from the rest (PSRTYPE is 0), so
    /// it is as many as there is room for.
    fn beginning(&self) -> Option<usize> {
        (self.srrctl >> 25 & 7 == SPLIT).then_some((self.srrctl >> 8 & 0xf) as usize * 64)
    }

    /// Descriptors that a frame of `len` bytes takes.
    fn needed(&self, len: usize) -> usize {
        len.saturating_sub(self.beginning().unwrap_or(0)).div_ceil(self.buffer()).max(1)
    }
}

/// What a frame is, as a NIC sees it.
#[derive(Debug, Default)]
struct Seen {
    /// Packet type of the descriptor.
    kind: u64,
    /// Checksums that were looked at, and those that are wrong.
    status: u64,
    /// What RSS hashes.
    flow: Vec<u8>,
}

fn look(frame: &[u8]) -> Seen {
    let word =
        |at: usize| frame.get(at..at + 2).map_or(0, |word| usize::from(word[0]) << 8 | usize::from(word[1]));
    let mut seen = Seen::default();
    let l2 = if word(12) == 0x8100 { 18 } else { 14 };
    let (protocol, l4, length) = match word(l2 - 2) {
        0x0800 if frame.len() >= l2 + 20 => {
            let l3 = usize::from(frame[l2] & 0xf) * 4;
            seen.kind |= 1 << 4;
            seen.status |= IP_SEEN;
            if crate::work::sum(frame.get(l2..l2 + l3).unwrap_or_default(), 0) != 0xffff {
                seen.status |= IP_WRONG;
            }
            seen.flow.extend(&frame[l2 + 12..l2 + 20]);
            if word(l2 + 6) & 0x3fff != 0 {
                return seen;
            }
            (frame[l2 + 9], l2 + l3, word(l2 + 2).saturating_sub(l3))
        }
        0x86dd if frame.len() >= l2 + 40 => {
            seen.kind |= 1 << 6;
            seen.flow.extend(&frame[l2 + 8..l2 + 40]);
            (frame[l2 + 6], l2 + 40, word(l2 + 4))
        }
        _ => return seen,
    };
    let Some(packet) = frame.get(l4..l4 + length).filter(|_| matches!(protocol, 6 | 17)) else { return seen };
    seen.kind |= if protocol == 6 { 1 << 8 } else { 1 << 9 };
    seen.flow.extend(packet.get(..4).unwrap_or_default());
    // A datagram without a checksum is not looked at.
    if protocol == 17 && word(l4 + 6) == 0 {
        return seen;
    }
    seen.status |= L4_SEEN;
    let pseudo = crate::work::pseudo(frame, l2, protocol, length as u32);
    if crate::work::sum(packet, pseudo) != 0xffff {
        seen.status |= L4_WRONG;
    }
    seen
}

/// The key of Microsoft's verification suite, which PFs take by default.
const KEY: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

impl Igbvf {
    /// Whether the PF lets a frame through to the VF.
    fn passes(&self, frame: &[u8]) -> bool {
        let (Some(destination), taken) = (frame.get(..6), &self.pf.taken) else { return false };
        let tagged = frame[12..14] == [0x81, 0];
        if tagged && self.pf.filters_vlans {
            let vlan = u16::from_be_bytes([frame[14] & 0xf, frame[15]]);
            if vlan != 0 && !taken.vlans.contains(&vlan) {
                return false;
            }
        }
        let longest = taken.longest as usize + if tagged { 4 } else { 0 };
        if frame.len() + 4 > longest {
            return false;
        }
        let hash = u16::from_le_bytes([destination[4], destination[5]]) >> 4;
        match destination {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => true,
            [first, ..] if first & 1 != 0 => taken.multicast || taken.hashes.contains(&hash),
            [..] => {
                taken.unicast || destination == taken.mac || taken.more.iter().any(|more| destination == more)
            }
        }
    }

    /// A frame comes off the wire.
    pub(super) fn arrived(&mut self, bus: &mut Bus, mut frame: Vec<u8>) {
        if frame.len() < 14 || !self.pf.link || !self.passes(&frame) {
            return;
        }
        let seen = look(&frame);
        let hash = if seen.flow.is_empty() { 0 } else { toeplitz(&KEY, &seen.flow) };
        let spread = self.pf.spreads && (1..PAIRS).all(|queue| self.receive[queue].ring.is_enabled());
        let queue = if spread { hash as usize % PAIRS } else { 0 };
        let Receive { ring, missed, srrctl } = &self.receive[queue];
        if !ring.is_enabled() {
            return;
        }
        let (mut tag, bytes) = (0, frame.len());
        if self.pf.strips_tags && frame[12..14] == [0x81, 0] {
            tag = u16::from_be_bytes([frame[14], frame[15]]);
            if self.i350 {
                tag = tag.swap_bytes();
            }
            frame.drain(12..16);
        }
        let needed = self.receive[queue].needed(frame.len());
        if ring.owned() < needed {
            let (missed, _) = (missed.wrapping_add(1), srrctl);
            self.receive[queue].missed = missed;
            bus.wire.missed += 1;
            return;
        }
        let tagged = if bytes == frame.len() { 0 } else { TAGGED };
        let looped = if self.i350 { LOOPED } else { 0 };
        let first = seen.kind | u64::from(hash) << 32;
        self.fill(bus, queue, &frame, [first, seen.status | tagged | looped | u64::from(tag) << 48]);
        let counted = &mut self.counted;
        counted.received.0 = counted.received.0.wrapping_add(1);
        counted.received.1 = counted.received.1.wrapping_add(bytes as u32 + 4);
        counted.multicast = counted.multicast.wrapping_add(u32::from(frame[0] & 1));
        if self.wrong != Some(Wrong::NoInterrupt) {
            self.interrupts.received(bus, queue);
        }
    }

    fn fill(&mut self, bus: &mut Bus, queue: usize, frame: &[u8], [first, last]: [u64; 2]) {
        let buffer = self.receive[queue].buffer();
        let beginning = self.receive[queue].beginning();
        let damage = std::mem::take(&mut self.damage);
        let count = self.receive[queue].needed(frame.len());
        let (mut head, mut rest) = frame.split_at(frame.len().min(beginning.unwrap_or(0)));
        for n in 0..count {
            let Some((slot, [address, header])) = self.receive[queue].ring.take(bus) else { return };
            if address == 0 || (header == 0) != beginning.is_none() || header & 1 != 0 {
                bus.broken(format!("receive descriptor {slot} is {address:#x}, {header:#x}"));
            }
            let part;
            (part, rest) = rest.split_at(rest.len().min(buffer));
            if !part.is_empty() {
                bus.dma_write(address, part);
            }
            // HDR_LEN; SPH stays clear, for it is no header that was found.
            let mut word = (head.len() as u64) << (16 + 5);
            if !head.is_empty() {
                bus.dma_write(header, std::mem::take(&mut head));
            }
            let mut len = part.len() as u64;
            match self.wrong {
                Some(Wrong::LengthTooLong) => len = buffer as u64 + 1,
                Some(Wrong::LengthTooShort) => len = len.saturating_sub(4),
                _ => {}
            }
            let mut status = DONE;
            if n + 1 == count {
                word |= first;
                status |= END | last | u64::from(damage);
            }
            match self.wrong {
                Some(Wrong::NoReceiveReport) => status &= !DONE,
                Some(Wrong::NoEnd) => status &= !END,
                _ => {}
            }
            self.receive[queue].ring.write_back(bus, slot, [word, status | len << 32]);
        }
    }
}
