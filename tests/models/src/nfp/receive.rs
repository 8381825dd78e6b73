//! Receive rings: from frames on the wire to filled buffers.

use super::control::{
    CTAG_FILTER, ICR_RXTX, L2BC, L2MC, PROMISC, RSS, RSS_CTRL, RSS_ITBL, RSS_KEY, RSS2, RXCSUM, STATS,
};
use super::{Nfp, Wrong};
use crate::bus::Bus;
use crate::rss::{Flow, toeplitz};
use crate::work::{pseudo, sum};

/// A ring that is on.
#[derive(Debug)]
pub struct Ring {
    iova: u64,
    size: u32,
    vector: u8,
    read: u32,
    written: u32,
}

impl Ring {
    pub fn new(iova: u64, size: u32, vector: u8) -> Self {
        Self { iova, size, vector, read: 0, written: 0 }
    }

    pub fn pointers(&self) -> (u32, u32) {
        (self.read, self.written)
    }

    fn used(&self) -> u32 {
        self.written.wrapping_sub(self.read) & (self.size - 1)
    }
}

impl Nfp {
    /// The write pointer of a free list moves.
    pub(super) fn fill_free_list(&mut self, bus: &mut Bus, ring: usize, count: u32) {
        let there = self.enabled.as_mut().and_then(|on| on.receive.get_mut(ring)?.as_mut());
        let Some(there) = there else {
            return bus.broken(format!("receive ring {ring} is off and its write pointer moves"));
        };
        if there.used() + count >= there.size {
            return bus.broken(format!("{count} more than {} fill receive ring {ring}", there.used()));
        }
        for n in 0..count {
            let at = there.iova + 8 * u64::from((there.written + n) & (there.size - 1));
            let word = u64::from_le_bytes(bus.dma_get(at, 8).try_into().unwrap_or_default());
            if word >> 16 & 0xffff != 0 {
                bus.broken(format!("a free list descriptor {word:#x} has reserved bits"));
            }
        }
        there.written = there.written.wrapping_add(count) & (there.size - 1);
    }

    /// Receives what has arrived.
    pub(super) fn receive(&mut self, bus: &mut Bus) {
        if self.is_dead {
            return;
        }
        while let Some(frame) = bus.wire.take_arriving() {
            let on = self.enabled.as_ref().is_some_and(|on| !on.lists_only);
            if !on || !self.link || !self.passes(&frame) {
                self.filtered += 1;
                continue;
            }
            self.deliver(bus, &frame);
        }
    }

    /// Whether the filters let a frame through.
    fn passes(&self, frame: &[u8]) -> bool {
        let ctrl = self.enabled.as_ref().map_or(0, |on| on.ctrl);
        let Some(to) = frame.get(..6) else { return false };
        let wanted = match to {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => ctrl & (L2BC | PROMISC) != 0,
            [first, ..] if first & 1 != 0 => ctrl & (L2MC | PROMISC) != 0,
            to => to == self.mac || ctrl & PROMISC != 0,
        };
        let vlan = match frame.get(12..16) {
            Some([0x81, 0, high, low]) => u16::from_be_bytes([*high, *low]) & 0xfff,
            _ => 0,
        };
        wanted && (ctrl & CTAG_FILTER == 0 || vlan == 0 || self.vlans.contains(&vlan))
    }

    /// The hash of a frame, its type, and the ring that it goes to.
    fn spread(&self, frame: &[u8]) -> (Option<(u32, u32)>, usize) {
        let ctrl = self.enabled.as_ref().map_or(0, |on| on.ctrl);
        let types = self.words.get32(RSS_CTRL);
        let first =
            self.enabled.as_ref().and_then(|on| on.receive.iter().position(Option::is_some)).unwrap_or(0);
        let Some(flow) = Flow::of(frame).filter(|_| ctrl & (RSS | RSS2) != 0) else { return (None, first) };
        // Bits of the types with ports and without, and what the hash is called then.
        let (plain, tcp, udp) =
            if flow.version == 4 { ((8, 1), (10, 4), (11, 7)) } else { ((9, 2), (12, 5), (13, 8)) };
        let wanted = |bit: u32| types >> bit & 1 != 0;
        let with_ports = match flow.protocol {
            6 if wanted(tcp.0) => Some(tcp.1),
            17 if wanted(udp.0) => Some(udp.1),
            _ => None,
        };
        let (name, input) = match with_ports {
            Some(name) if !flow.ports.is_empty() => (name, [flow.addresses, flow.ports].concat()),
            _ if wanted(plain.0) => (plain.1, flow.addresses),
            _ => return (None, first),
        };
        let hash = toeplitz(self.words.slice(RSS_KEY, 40), &input);
        (Some((name, hash)), usize::from(self.words.get8(RSS_ITBL + u64::from(hash & 0x7f))))
    }

    /// The metadata of a frame.
    fn metadata(&self, hash: Option<(u32, u32)>) -> Vec<u8> {
        let be = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect();
        match (self.wrong, hash) {
            (Some(Wrong::TooMuchMetadata), _) => vec![0; 68],
            // Two fields, of which there is one.
            (Some(Wrong::MetadataLies), _) => be(&[2 << 4 | 2, 7]),
            (_, Some((name, hash))) if self.is_chained() => be(&[name << 4 | 1, hash]),
            (_, Some((name, hash))) => be(&[name, hash]),
            // Firmware marks frames now and then, too.
            (_, None) if self.is_chained() && self.updates.is_multiple_of(2) => be(&[2, 0x1234]),
            (_, None) => Vec::new(),
        }
    }

    /// What was checked of a frame, in the bits of a descriptor.
    fn checked(&self, frame: &[u8]) -> u16 {
        let ctrl = self.enabled.as_ref().map_or(0, |on| on.ctrl);
        if self.is(Wrong::RightUnchecked) {
            return 1 << 3;
        }
        let Some(flow) = Flow::of(frame).filter(|flow| ctrl & RXCSUM != 0 && !flow.ports.is_empty()) else {
            return 0;
        };
        let mut l2 = 14;
        while matches!(frame.get(l2 - 2..l2), Some([0x81, 0] | [0x88, 0xa8])) {
            l2 += 4;
        }
        let byte = |at: usize| usize::from(frame.get(at).copied().unwrap_or(0));
        let (l3, end) = match flow.version {
            4 => ((byte(l2) & 15) * 4, l2 + (byte(l2 + 2) << 8 | byte(l2 + 3))),
            _ => (40, l2 + 40 + (byte(l2 + 4) << 8 | byte(l2 + 5))),
        };
        let mut flags = 0;
        if flow.version == 4 {
            let right = sum(frame.get(l2..l2 + l3).unwrap_or_default(), 0) == 0xffff;
            flags |= 1 << 6 | u16::from(right) << 5;
        }
        let packet = frame.get(l2 + l3..end).unwrap_or_default();
        let right = sum(packet, pseudo(frame, l2, flow.protocol, packet.len() as u32)) == 0xffff;
        flags
            | if flow.protocol == 6 { 1 << 4 | u16::from(right) << 3 } else { 1 << 2 | u16::from(right) << 1 }
    }

    fn deliver(&mut self, bus: &mut Bus, frame: &[u8]) {
        let (hash, ring) = self.spread(frame);
        let metadata = self.metadata(hash);
        let offset = self.settings.rx_offset as usize;
        let start = if offset == 0 { metadata.len() } else { offset };
        let mut flags = self.checked(frame) | 1 << 7 | u16::from(hash.is_some()) << 15;
        let wrong = self.wrong;
        let Some(on) = &mut self.enabled else { return };
        let (room, mtu) = (on.buffer as usize, on.mtu as usize);
        let Some(there) = on.receive.get_mut(ring).and_then(Option::as_mut) else { return };
        if there.used() == 0 || start + frame.len() > room || frame.len() > mtu + 22 {
            bus.wire.missed += u64::from(there.used() == 0);
            return self.words.add(STATS, 1);
        }
        let at = there.iova + 8 * u64::from(there.read);
        let word = u64::from_le_bytes(bus.dma_get(at, 8).try_into().unwrap_or_default());
        let buffer = (word & 0xffff) << 32 | word >> 32;
        if metadata.len() <= start {
            bus.dma_write(buffer + (start - metadata.len()) as u64, &metadata);
        }
        bus.dma_write(buffer + start as u64, frame);
        let mut len = frame.len() + metadata.len();
        match wrong {
            Some(Wrong::TooLong) => len = room + 1,
            Some(Wrong::TooShort) => len = metadata.len().saturating_sub(1),
            Some(Wrong::Stripped) => flags |= 1,
            _ => {}
        }
        // The half that says it is done comes last.
        if wrong != Some(Wrong::NotDone) {
            bus.dma_write(at + 4, &u32::from(flags).to_le_bytes());
            bus.dma_write(at, &(len as u32 & 0xffff | (metadata.len() as u32 | 0x80) << 24).to_le_bytes());
        }
        there.read = (there.read + 1) & (there.size - 1);
        let vector = there.vector;
        self.count(frame);
        self.interrupt(bus, vector, ICR_RXTX);
    }

    fn count(&mut self, frame: &[u8]) {
        let kind = match frame.first() {
            _ if frame.starts_with(&[0xff; 6]) => 2,
            Some(first) if first & 1 != 0 => 1,
            _ => 0,
        };
        let len = frame.len() as u64;
        self.words.add(STATS + 8 * 2, len);
        self.words.add(STATS + 8 * (3 + kind), len);
        self.words.add(STATS + 8 * 6, 1);
        if kind > 0 {
            self.words.add(STATS + 8 * (6 + kind), 1);
        }
    }
}
