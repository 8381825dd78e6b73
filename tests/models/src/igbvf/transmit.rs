//! What is sent: data descriptors, the contexts that they refer to, and what is done to frames by them (7.2).

use super::ring::{Ring, Switch};
use super::{Counted, Wrong};
use crate::bus::Bus;
use crate::work::{Lengths, cut_tcp, fill_ipv4, fill_over_partial, pseudo};

/// Command of a data descriptor: DTYP, EOP, IFCS, RS, DEXT, VLE, TSE, and the length.
const COMMAND_BITS: u32 = 0xffff | 3 << 20 | END | FCS | REPORT | ADVANCED | TAG | CUT;
const END: u32 = 1 << 24;
const FCS: u32 = 1 << 25;
const REPORT: u32 = 1 << 27;
const ADVANCED: u32 = 1 << 29;
const TAG: u32 = 1 << 30;
const CUT: u32 = 1 << 31;
/// Options of a data descriptor: IDX, IXSM, TXSM, PAYLEN.
const OPTION_BITS: u32 = 1 << 4 | IPV4_CHECKSUM | L4_CHECKSUM | 0x3_ffff << 14;
const IPV4_CHECKSUM: u32 = 1 << 8;
const L4_CHECKSUM: u32 = 1 << 9;
/// Most data descriptors of a frame: 40 - WTHRESH - 2.
const MOST_PIECES: usize = 37;
/// Longest frame in bytes without FCS.
const LONGEST: usize = 9724;

/// A context.
#[derive(Clone, Copy, Debug)]
struct Context {
    lengths: Lengths,
    tag: u16,
    ipv4: bool,
    protocol: u8,
    segment: usize,
}

impl Context {
    fn of([first, second]: [u64; 2], bus: &mut Bus) -> Self {
        let (lengths, kind, sizes) = (first as u32, second as u32, (second >> 32) as u32);
        if first >> 32 != 0 || kind & !(7 << 10 | 2 << 20 | ADVANCED) != 0 || sizes & 0xef != 0 {
            bus.broken(format!("reserved bits of a context: {first:#x}, {second:#x}"));
        }
        Self {
            lengths: Lengths {
                l2: (lengths >> 9 & 0x7f) as usize,
                l3: (lengths & 0x1ff) as usize,
                l4: (sizes >> 8 & 0xff) as usize,
            },
            tag: (lengths >> 16) as u16,
            ipv4: kind >> 10 & 1 != 0,
            protocol: [17, 6, 132, 0][(kind >> 11 & 3) as usize],
            segment: (sizes >> 16) as usize,
        }
    }

    /// What is wrong with it for a frame.
    fn contradiction(&self, frame: &[u8], cut: bool) -> Option<&'static str> {
        let Lengths { l2, l3, l4 } = self.lengths;
        let at = |at: usize| frame.get(at).copied().unwrap_or(0);
        let ethertype = [at(l2.saturating_sub(2)), at(l2.saturating_sub(1))];
        let wrong = |wrong: bool, text| if wrong { Some(text) } else { None };
        wrong(l2 < 14 || ethertype != if self.ipv4 { [8, 0] } else { [0x86, 0xdd] }, "MACLEN")
            .or(wrong(at(l2) >> 4 != if self.ipv4 { 4 } else { 6 }, "TUCMD.IPV4"))
            .or(wrong(self.ipv4 && usize::from(at(l2) & 0xf) * 4 != l3, "IPLEN"))
            .or(wrong(at(l2 + if self.ipv4 { 9 } else { 6 }) != self.protocol, "TUCMD.L4T"))
            .or(wrong(cut && (self.protocol != 6 || usize::from(at(l2 + l3 + 12) >> 4) * 4 != l4), "L4LEN"))
            .or(wrong(cut && (self.segment == 0 || l2 + l3 + l4 + self.segment > LONGEST), "MSS"))
    }
}

/// A frame whose descriptors are being read.
#[derive(Debug, Default)]
struct Open {
    bytes: Vec<u8>,
    pieces: usize,
    command: u32,
    options: u32,
}

/// TXCTL, among a transmit queue's registers, and its bits: CPUID, what of the traffic may pass other traffic, and DCA. After
/// a reset the first three may.
const TXCTL: u64 = 0x14;
const TXCTL_BITS: u32 = 0xff << 24 | 1 << 5 | TXCTL_RESET;
const TXCTL_RESET: u32 = 1 << 13 | 1 << 11 | 1 << 9;

/// A transmit queue.
#[derive(Debug)]
pub struct Transmit {
    pub ring: Ring,
    txctl: u32,
    contexts: [Option<Context>; 2],
    pub contexts_written: usize,
    open: Open,
}

impl Default for Transmit {
    fn default() -> Self {
        Self {
            ring: Ring::default(),
            txctl: TXCTL_RESET,
            contexts: [None; 2],
            contexts_written: 0,
            open: Open::default(),
        }
    }
}

impl Transmit {
    /// A read of register `register`.
    pub fn read(&self, bus: &mut Bus, register: u64) -> u32 {
        if register == TXCTL { self.txctl } else { self.ring.read(bus, register) }
    }

    /// A write to register `register`.
    pub fn write(&mut self, bus: &mut Bus, register: u64, value: u32, switch: Switch) {
        if register != TXCTL {
            return self.ring.write(bus, register, value, switch);
        }
        if value & !TXCTL_BITS != 0 || self.ring.is_enabled() {
            bus.broken(format!("TXCTL is set to {value:#x}"));
        }
        self.txctl = value;
    }

    /// Sends what is in the ring; whether it reported anything.
    pub fn run(&mut self, bus: &mut Bus, counted: &mut Counted, wrong: Option<Wrong>, lenient: bool) -> bool {
        let mut reported = false;
        while let Some((slot, [first, second])) = self.ring.take(bus) {
            let (command, options) = (second as u32, (second >> 32) as u32);
            match (command >> 20 & 0xf, command & ADVANCED != 0) {
                (2, true) if self.open.pieces > 0 => bus.broken("a context in the middle of a frame"),
                (2, true) => {
                    let context = Context::of([first, second], bus);
                    self.contexts_written += 1;
                    self.contexts[(options >> 4 & 1) as usize] = Some(context);
                }
                (3, true) => {
                    self.add(bus, first, command, options);
                    if command & END != 0 {
                        let open = std::mem::take(&mut self.open);
                        let tag = self.tag(bus, &open);
                        for mut frame in self.finish(bus, open, lenient) {
                            if let Some(tag) = tag {
                                frame.splice(12..12, tag);
                            }
                            frame.resize(frame.len().max(60), 0);
                            counted.sent.0 = counted.sent.0.wrapping_add(1);
                            counted.sent.1 = counted.sent.1.wrapping_add(frame.len() as u32 + 4);
                            bus.wire.send(frame);
                        }
                    }
                    if command & REPORT != 0 && wrong != Some(Wrong::NoTransmitReport) {
                        self.ring.write_back(bus, slot, [0, 1 << 32]);
                        reported = true;
                    }
                }
                (kind, _) => bus.broken(format!("a transmit descriptor of type {kind}")),
            }
        }
        reported
    }

    fn add(&mut self, bus: &mut Bus, address: u64, command: u32, options: u32) {
        if command & !COMMAND_BITS != 0 || options & !OPTION_BITS != 0 || command & FCS == 0 {
            bus.broken(format!("bits of a data descriptor: {command:#x}, {options:#x}"));
        }
        let length = (command & 0xffff) as usize;
        if length == 0 {
            bus.broken("an empty transmit buffer");
        }
        let open = &mut self.open;
        let common = command & !(0xffff | END | REPORT);
        if open.pieces == 0 {
            (open.command, open.options) = (common, options);
        } else if (open.command, open.options) != (common, options) {
            bus.broken("descriptors of one frame differ");
        }
        open.pieces += 1;
        if open.pieces == MOST_PIECES + 1 {
            bus.broken("a frame in more than 37 descriptors");
        }
        open.bytes.extend(bus.dma_get(address, length));
    }

    /// What is put into each frame behind the addresses.
    fn tag(&self, bus: &mut Bus, open: &Open) -> Option<[u8; 4]> {
        if open.command & TAG == 0 {
            return None;
        }
        let Some(context) = self.contexts[(open.options >> 4 & 1) as usize] else {
            bus.broken("a tag without a context descriptor");
            return None;
        };
        let [high, low] = context.tag.to_be_bytes();
        Some([0x81, 0, high, low])
    }

    /// The frames that leave.
    fn finish(&self, bus: &mut Bus, open: Open, lenient: bool) -> Vec<Vec<u8>> {
        let Open { bytes: mut frame, command, options, .. } = open;
        let cut = command & CUT != 0;
        let paylen = (options >> 14) as usize;
        if !cut && options & (IPV4_CHECKSUM | L4_CHECKSUM) == 0 {
            if frame.len() != paylen || !(17..=LONGEST).contains(&paylen) {
                bus.broken(format!("PAYLEN {paylen} of a frame of {} bytes", frame.len()));
            }
            return vec![frame];
        }
        let Some(mut context) = self.contexts[(options >> 4 & 1) as usize] else {
            bus.broken("a missing context descriptor");
            return Vec::new();
        };
        if lenient && !cut && options & IPV4_CHECKSUM == 0 {
            context.ipv4 |= frame.get(context.lengths.l2).is_some_and(|first| first >> 4 == 4);
        }
        if let Some(field) = context.contradiction(&frame, cut) {
            bus.broken(format!("{field} of a context is not that of the frame: {context:?}"));
            return Vec::new();
        }
        let Lengths { l2, l3, l4 } = context.lengths;
        let (transport, headers) = (l2 + l3, l2 + l3 + l4);
        let offset = if context.protocol == 6 { 16 } else { 6 };
        let word = |frame: &[u8], at: usize| {
            frame.get(at..at + 2).map_or(0, |word| u16::from(word[0]) << 8 | u16::from(word[1]))
        };
        if cut {
            if frame.len() != headers + paylen || paylen == 0 {
                bus.broken(format!("PAYLEN {paylen} of {} bytes behind headers of {headers}", frame.len()));
                return Vec::new();
            }
            let (length, ip_sum) = if context.ipv4 {
                (word(&frame, l2 + 2), word(&frame, l2 + 10))
            } else {
                (word(&frame, l2 + 4), 0)
            };
            if length != 0 || ![0, 0xffff].contains(&ip_sum) {
                bus.broken("length or checksum of the IP header is not 0 in a frame to be cut");
            }
            if options & L4_CHECKSUM == 0 || context.ipv4 != (options & IPV4_CHECKSUM != 0) {
                bus.broken("TCP is cut without checksums");
            }
            // 0 and 0xffff are the same.
            if word(&frame, transport + offset) % 0xffff != pseudo(&frame, l2, 6, 0) % 0xffff {
                bus.broken("the sum of the pseudo header is not one without a length");
            }
            return cut_tcp(&frame, context.lengths, context.segment);
        }
        if frame.len() != paylen || paylen > LONGEST {
            bus.broken(format!("PAYLEN {paylen} of a frame of {} bytes", frame.len()));
        }
        if options & IPV4_CHECKSUM != 0 {
            fill_ipv4(&mut frame, l2, l3);
        }
        if options & L4_CHECKSUM != 0 {
            let length = if context.ipv4 {
                u32::from(word(&frame, l2 + 2)).saturating_sub(l3 as u32)
            } else {
                (u32::from(word(&frame, l2 + 4)) + 40).saturating_sub(l3 as u32)
            };
            if word(&frame, transport + offset) % 0xffff
                != pseudo(&frame, l2, context.protocol, length) % 0xffff
            {
                bus.broken("the sum of the pseudo header is wrong");
            }
            fill_over_partial(&mut frame, transport, offset, context.protocol == 17);
        }
        vec![frame]
    }
}
