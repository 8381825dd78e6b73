//! Transmit rings: from descriptors to frames on the wire.

use super::control::{GATHER, ICR_RXTX, LSO, LSO2, STATS, TXCSUM};
use super::{Nfp, Path, Wrong};
use crate::bus::Bus;
use crate::work::{Lengths, cut_tcp, fill_ipv4, fill_over_partial, pseudo};

/// A ring that is on.
#[derive(Debug)]
pub struct Ring {
    iova: u64,
    size: u32,
    vector: u8,
    write_back: Option<u64>,
    read: u32,
    written: u32,
    /// What it shows of its read pointer is so much too far.
    beyond: u32,
    /// The pieces of a frame whose end has not come.
    open: Open,
    /// Bytes of frames in the NFDk block at the read pointer.
    block: u32,
}

/// A frame in pieces.
#[derive(Debug, Default)]
struct Open {
    bytes: Vec<u8>,
    pieces: u32,
    /// The second word of NFD3's descriptors.
    second: u64,
}

/// What is to be done to a frame.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
    checksum: bool,
    ipv4: bool,
    /// Segment, header length, L3 and L4 offsets.
    cut: Option<(usize, usize, usize, usize)>,
    /// Segments that there should be; NFDk says so.
    segments: Option<usize>,
    /// The transport protocol that the driver says it is; NFD3 says so.
    protocol: Option<u8>,
}

impl Ring {
    pub fn new(iova: u64, size: u32, vector: u8, write_back: Option<u64>) -> Self {
        Self {
            iova,
            size,
            vector,
            write_back,
            read: 0,
            written: 0,
            beyond: 0,
            open: Open::default(),
            block: 0,
        }
    }

    pub fn pointers(&self) -> (u32, u32) {
        (self.shown(), self.written)
    }

    fn shown(&self) -> u32 {
        (self.read + self.beyond) & (self.size - 1)
    }

    fn used(&self) -> u32 {
        self.written.wrapping_sub(self.read) & (self.size - 1)
    }
}

/// Bytes of a descriptor.
fn descriptor_size(path: Path) -> u64 {
    match path {
        Path::Nfd3 => 16,
        Path::Nfdk => 8,
    }
}

impl Nfp {
    fn transmit_ring(&mut self, ring: usize) -> Option<&mut Ring> {
        self.enabled.as_mut()?.transmit.get_mut(ring)?.as_mut()
    }

    /// The write pointer of a ring moves.
    pub(super) fn fill_transmit(&mut self, bus: &mut Bus, ring: usize, count: u32) {
        let Some(there) = self.transmit_ring(ring) else {
            return bus.broken(format!("transmit ring {ring} is off and its write pointer moves"));
        };
        // One stays empty, so that a full ring is not taken for an empty one.
        if there.used() + count >= there.size {
            return bus.broken(format!("{count} more than {} fill transmit ring {ring}", there.used()));
        }
        there.written = there.written.wrapping_add(count) & (there.size - 1);
    }

    /// Sends what is in the rings.
    pub(super) fn send(&mut self, bus: &mut Bus) {
        let rings = self.enabled.as_ref().filter(|on| !on.lists_only).map_or(0, |on| on.transmit.len());
        if self.is_dead || self.holds {
            return;
        }
        for n in 0..rings {
            // It is taken out, so that the rest of the device can be used meanwhile.
            let taken = self.enabled.as_mut().and_then(|on| on.transmit.get_mut(n)?.take());
            let Some(mut ring) = taken else { continue };
            let before = ring.read;
            while ring.used() > 0 {
                let size = descriptor_size(self.settings.path);
                let at = ring.iova + u64::from(ring.read) * size;
                match self.settings.path {
                    Path::Nfd3 => self.take_nfd3(bus, &mut ring, at),
                    Path::Nfdk => self.take_nfdk(bus, &mut ring, at),
                }
            }
            if ring.read != before {
                self.report(bus, &mut ring, before);
            }
            if let Some(place) = self.enabled.as_mut().and_then(|on| on.transmit.get_mut(n)) {
                *place = Some(ring);
            }
        }
    }

    fn report(&mut self, bus: &mut Bus, ring: &mut Ring, before: u32) {
        match self.wrong {
            Some(Wrong::ReadPointerBeyond) => ring.beyond = 17,
            // As if nothing had been read; it is not sent again.
            Some(Wrong::ReadPointerStuck) => {
                (ring.written, ring.read) = (ring.read, before);
                self.holds = true;
            }
            _ => {}
        }
        if let Some(iova) = ring.write_back
            && !self.is(Wrong::NoWriteBack)
        {
            bus.dma_write(iova, &u64::from(ring.shown()).to_le_bytes());
        }
        self.interrupt(bus, ring.vector, ICR_RXTX);
    }

    fn ctrl(&self) -> u32 {
        self.enabled.as_ref().map_or(0, |on| on.ctrl)
    }

    fn take_nfd3(&mut self, bus: &mut Bus, ring: &mut Ring, at: u64) {
        let word = |bus: &mut Bus, at| u64::from_le_bytes(bus.dma_get(at, 8).try_into().unwrap_or_default());
        let (first, second) = (word(bus, at), word(bus, at + 8));
        ring.read = (ring.read + 1) & (ring.size - 1);
        let (iova, len) = ((first & 0xff) << 32 | first >> 32, (first >> 8) as usize & 0xffff);
        let (offset, end) = (first >> 24 & 0x7f, first >> 31 & 1 != 0);
        let open = &mut ring.open;
        let mut rule = |holds: bool, what: &str| {
            if !holds {
                bus.broken(format!("a descriptor {first:#x} {second:#x} {what}"));
            }
        };
        rule(len > 0, "has no bytes");
        rule(offset == 0, "has metadata that was not agreed on");
        rule(open.pieces == 0 || open.second == second, "disagrees with the one before it");
        rule(open.pieces == 0 || self.ctrl() & GATHER != 0, "is a piece, and gathering is off");
        open.second = second;
        open.pieces += 1;
        let piece = bus.dma_get(iova, len);
        let open = &mut ring.open;
        open.bytes.extend(piece);
        if !end {
            return;
        }
        let frame = std::mem::take(open);
        let flags = (second >> 24) as u8;
        let mut rule = |holds: bool, what: &str| {
            if !holds {
                bus.broken(format!("a descriptor {first:#x} {second:#x} {what}"));
            }
        };
        rule(second >> 48 == frame.bytes.len() as u64, "ends a frame of another length");
        let checksum = flags & 0x80 != 0;
        rule(
            checksum == (flags & 0x70 != 0),
            "names a checksum and does not ask for it, or the other way round",
        );
        rule(!checksum || self.ctrl() & TXCSUM != 0, "asks for a checksum, which is off");
        rule(flags & 0x30 != 0x30 && flags & 0x0b == 0, "has flags that do not go together");
        let cut = flags & 4 != 0;
        rule(!cut || self.ctrl() & (LSO | LSO2) != 0, "asks for a cut, which is off");
        rule(!cut || checksum && flags & 0x20 != 0, "asks for a cut without checksums");
        rule(cut || second & 0xff_ffff == 0, "says how to cut what is not cut");
        let asked = Asked {
            checksum,
            ipv4: flags & 0x40 != 0,
            cut: cut.then_some(offsets(second)),
            segments: None,
            protocol: checksum.then_some(if flags & 0x20 != 0 { 6 } else { 17 }),
        };
        self.put_on_wire(bus, frame.bytes, asked);
    }

    fn take_nfdk(&mut self, bus: &mut Bus, ring: &mut Ring, at: u64) {
        const BLOCK: u32 = 32;
        let word = |bus: &mut Bus, n: u64| {
            u64::from_le_bytes(bus.dma_get(at + 8 * n, 8).try_into().unwrap_or_default())
        };
        let head = word(bus, 0);
        let in_block = BLOCK - ring.read % BLOCK;
        let kind = head >> 28 & 0xf;
        if kind == 0 {
            // The rest of the block is left out.
            let nops = (0..u64::from(in_block)).all(|n| word(bus, n) == 0);
            if !nops || ring.used() < in_block {
                bus.broken(format!("a block is left with {head:#x}, not closed with zeros to its end"));
            }
            ring.read = (ring.read + in_block.min(ring.used())) & (ring.size - 1);
            ring.block = 0;
            return;
        }
        let address = |word: u64| (word & 0xffff) << 32 | word >> 32;
        let mut bytes = bus.dma_get(address(head), (head >> 16) as usize % 4096 + 1);
        let mut count = 1;
        // The type of a simple packet is its highest bit alone.
        let mut ended = head >> 30 & 1 != 0;
        let base = kind & 0b1011;
        while !ended && count < 20 {
            let piece = word(bus, u64::from(count));
            bytes.extend(bus.dma_get(address(piece), (piece >> 16) as usize % 0x4000 + 1));
            ended = piece >> 30 & 1 != 0;
            count += 1;
        }
        let pieces = count;
        let meta = word(bus, u64::from(count));
        count += 1;
        let cut = (base == 2).then(|| word(bus, u64::from(count)));
        count += u32::from(cut.is_some());
        let mut rule = |holds: bool, what: &str| {
            if !holds {
                bus.broken(format!("a frame that begins with {head:#x} {what}"));
            }
        };
        rule(matches!(base, 1 | 2 | 8), "has a type that is none");
        rule(base != 8 || pieces == 1, "is simple, and has more than one piece");
        rule(ended && pieces <= 17, "has too many pieces, or no end");
        rule(pieces == 1 || self.ctrl() & GATHER != 0, "has pieces, and gathering is off");
        rule(count <= in_block, "reaches over the end of its block");
        rule(count <= ring.used(), "has descriptors that were not given to the device");
        rule(meta & !3 == 0, "has metadata bits that are reserved");
        rule(meta & 3 == 0 || self.ctrl() & TXCSUM != 0, "asks for a checksum, which is off");
        rule(meta & 3 != 1, "asks for the checksum of IP alone");
        rule(cut.is_none() || self.ctrl() & (LSO | LSO2) != 0, "asks for a cut, which is off");
        rule(cut.is_none_or(|cut| cut >> 48 == 0 && cut & 0xc000 == 0), "has spare bits set");
        rule(cut.is_none() || meta & 2 != 0, "asks for a cut without checksums");
        ring.block += bytes.len() as u32;
        rule(ring.block <= 0x1_0000, "has more bytes than are left in its block");
        ring.read = (ring.read + count.min(ring.used())) & (ring.size - 1);
        if ring.read.is_multiple_of(BLOCK) {
            ring.block = 0;
        }
        let asked = Asked {
            checksum: meta & 2 != 0,
            ipv4: meta & 1 != 0,
            cut: cut.map(offsets),
            segments: cut.map(|cut| (cut >> 24) as usize & 0xff),
            protocol: None,
        };
        self.put_on_wire(bus, bytes, asked);
    }

    fn put_on_wire(&mut self, bus: &mut Bus, mut frame: Vec<u8>, asked: Asked) {
        let mtu = self.enabled.as_ref().map_or(0, |on| on.mtu) as usize;
        let frames = match prepare(&mut frame, asked, mtu) {
            Err(what) => {
                self.words.add(STATS + 8 * 10, 1);
                return bus.broken(format!("a frame of {} bytes {what}", frame.len()));
            }
            Ok(None) => vec![frame],
            Ok(Some(segments)) => segments,
        };
        for mut frame in frames {
            frame.resize(frame.len().max(60), 0);
            self.words.add(STATS + 8 * 11, frame.len() as u64);
            self.words.add(STATS + 8 * 15, 1);
            if self.link {
                bus.wire.send(frame);
            }
        }
    }
}

/// Segment, header length, and where L3 and L4 are: the same in both formats.
fn offsets(word: u64) -> (usize, usize, usize, usize) {
    let byte = |at: u32| (word >> at) as usize & 0xff;
    (word as usize & 0x3fff, byte(16), byte(32), byte(40))
}

/// Does to a frame what is asked: checksums in place, or segments of it. An error says how the frame contradicts that.
fn prepare(frame: &mut [u8], asked: Asked, mtu: usize) -> Result<Option<Vec<Vec<u8>>>, &'static str> {
    if asked.cut.is_none() && frame.len() > mtu + 22 {
        return Err("is longer than the MTU");
    }
    if frame.len() < 14 {
        return Err("has no header");
    }
    if !asked.checksum {
        return Ok(None);
    }
    let mut l2 = 14;
    while l2 <= 18 && matches!(frame.get(l2 - 2..l2), Some([0x81, 0] | [0x88, 0xa8])) {
        l2 += 4;
    }
    let byte = |at: usize| frame.get(at).copied().unwrap_or(0);
    let (l3, protocol) = match frame.get(l2 - 2..l2) {
        Some([0x08, 0x00]) => (usize::from(byte(l2) & 15) * 4, byte(l2 + 9)),
        Some([0x86, 0xdd]) => (40, byte(l2 + 6)),
        _ => return Err("is no IP and wants a checksum"),
    };
    let v4 = byte(l2) >> 4 == 4;
    let start = l2 + l3;
    let (field, l4) = match protocol {
        6 => (16, usize::from(byte(start + 12) >> 4) * 4),
        17 => (6, 8),
        _ => return Err("is neither TCP nor UDP and wants a checksum"),
    };
    if asked.protocol.is_some_and(|said| said != protocol) {
        return Err("has another transport than its descriptor says");
    }
    if v4 != asked.ipv4 {
        return Err("has another version of IP than its descriptor says");
    }
    let length = match v4 {
        true => usize::from(u16::from_be_bytes([byte(l2 + 2), byte(l2 + 3)])).wrapping_sub(l3),
        false => usize::from(u16::from_be_bytes([byte(l2 + 4), byte(l2 + 5)])),
    };
    let end = start.wrapping_add(length);
    let left = u16::from_be_bytes([byte(start + field), byte(start + field + 1)]);
    if let Some((segment, headers, at_l3, at_l4)) = asked.cut {
        if protocol != 6 || (headers, at_l3, at_l4) != (start + l4, l2, start) {
            return Err("is cut at other headers than it has");
        }
        let count = frame.len().saturating_sub(headers).div_ceil(segment.max(1));
        if segment == 0 || count > 64 || headers + segment > mtu + 22 {
            return Err("is cut into impossible segments");
        }
        if asked.segments.is_some_and(|said| said != count) {
            return Err("is cut into another number of segments than its descriptor says");
        }
        return Ok(Some(cut_tcp(frame, Lengths { l2, l3, l4 }, segment)));
    }
    if end > frame.len() {
        return Err("is shorter than its IP header says");
    }
    if left != pseudo(frame, l2, protocol, length as u32) {
        return Err("has not the sum of its pseudo header where its checksum goes");
    }
    if v4 {
        fill_ipv4(frame, l2, l3);
    }
    if let Some(packet) = frame.get_mut(..end) {
        fill_over_partial(packet, start, field, protocol == 17);
    }
    Ok(None)
}
