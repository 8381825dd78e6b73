//! Transmit queues (82599 data sheet, chapter 7.2): advanced data and context descriptors.

use super::Wrong;
use super::registers::*;
use super::ring::{Given, Ring, State};
use crate::bus::Bus;
use crate::work::{Lengths, cut_tcp, fill_ipv4, fill_over_partial, pseudo};

const EOP: u32 = 1 << 24;
const IFCS: u32 = 1 << 25;
const RS: u32 = 1 << 27;
const DEXT: u32 = 1 << 29;
const VLE: u32 = 1 << 30;
const TSE: u32 = 1 << 31;
/// Bits of the command that are reserved, or for what a VF does not do: time stamps, LinkSec, iSCSI.
const COMMAND_RESERVED: u32 = 1 << 28 | 1 << 26 | 0xf << 16;
const TYPE: u32 = 0xf << 20;
const CONTEXT: u32 = 2 << 20;
const DATA: u32 = 3 << 20;
const CC: u32 = 1 << 7;
const IXSM: u32 = 1 << 8;
const TXSM: u32 = 1 << 9;
/// STA, the upper bits of IDX, IPsec and the rest of POPTS.
const OPTIONS_RESERVED: u32 = 0xf | 6 << 4 | 0xf << 10;
/// TUCMD: an IPv4 header.
const IPV4: u32 = 1 << 10;
const DONE: u64 = 1 << 32;

/// Descriptors that the device has room for inside.
const INSIDE: u32 = 40;
/// Most bytes of headers of a frame that is cut.
const MOST_HEADERS: usize = 240;
/// Longest frame with FCS.
const LONGEST: usize = 9728;
/// Shortest frame that the device fills up to 60 bytes.
const SHORTEST: usize = 14;

/// What a context descriptor says.
#[derive(Clone, Copy, Debug)]
struct Context {
    l3: usize,
    l2: usize,
    tag: u16,
    ipv4: bool,
    /// 0 UDP, 1 TCP, 2 SCTP.
    transport: u32,
    l4: usize,
    segment: usize,
}

impl Context {
    fn of(words: [u64; 2]) -> Self {
        let (lower, command, upper) = (words[0] as u32, words[1] as u32, (words[1] >> 32) as u32);
        Self {
            l3: (lower & 0x1ff) as usize,
            l2: (lower >> 9 & 0x7f) as usize,
            tag: (lower >> 16) as u16,
            ipv4: command & IPV4 != 0,
            transport: command >> 11 & 3,
            l4: (upper >> 8 & 0xff) as usize,
            segment: (upper >> 16) as usize,
        }
    }
}

/// A frame that is being put together.
#[derive(Debug, Default)]
struct Gathered {
    bytes: Vec<u8>,
    descriptors: u32,
    command: u32,
    options: u32,
}

/// A transmit queue.
#[derive(Debug)]
pub struct Transmit {
    pub ring: Ring,
    contexts: [Option<Context>; 2],
    frame: Gathered,
    head_write_back: [u32; 2],
    /// Data and context descriptors need [`CC`] and what it refers to, as every one does where the port switches.
    pub checks_context: bool,
}

impl Transmit {
    pub fn new(number: usize, checks_context: bool) -> Self {
        Self {
            ring: Ring::new(format!("transmit queue {number}"), DCA_TX_DEFAULT),
            contexts: [None; 2],
            frame: Gathered::default(),
            head_write_back: [0; 2],
            checks_context,
        }
    }

    pub fn reset(&mut self) {
        self.ring.reset(DCA_TX_DEFAULT);
        self.forget();
        self.head_write_back = [0; 2];
    }

    fn forget(&mut self) {
        self.contexts = [None; 2];
        self.frame = Gathered::default();
        self.ring.given.clear();
    }

    pub fn read(&mut self, register: u32) -> Option<u32> {
        match register {
            HEAD_WRITE_BACK_LOW => Some(self.head_write_back[0]),
            HEAD_WRITE_BACK_HIGH => Some(self.head_write_back[1]),
            _ => self.ring.read(register),
        }
    }

    /// Writes a register; whether there is such a one.
    pub fn write(&mut self, bus: &mut Bus, register: u32, value: u32) -> bool {
        match register {
            TAIL => self.ring.give(bus, value),
            HEAD_WRITE_BACK_LOW => {
                if value & 1 != 0 {
                    bus.broken(format!("{}: this model does not write its head back", self.ring.name));
                }
                self.head_write_back[0] = value;
            }
            HEAD_WRITE_BACK_HIGH => self.head_write_back[1] = value,
            DCTL => self.control(bus, value),
            _ => return self.ring.write(bus, register, value),
        }
        true
    }

    fn control(&mut self, bus: &mut Bus, value: u32) {
        self.ring.control = value & !SWFLSH;
        if value & ENABLE == 0 {
            self.ring.state = State::Off;
            return self.forget();
        }
        if self.ring.state == State::Off {
            if self.ring.dca & DESC_WRO != 0 {
                bus.broken(format!("{} is enabled with DCA_TXCTRL.DESC_WRO", self.ring.name));
            }
            if self.threshold() + (value & 0x7f) > INSIDE {
                bus.broken(format!("{}: WTHRESH and PTHRESH are more than {INSIDE}", self.ring.name));
            }
        }
        self.ring.start(bus);
    }

    /// WTHRESH.
    fn threshold(&self) -> u32 {
        self.ring.control >> 16 & 0x7f
    }

    /// Does what is in the ring: the frames that are sent, and whether anything was written back.
    pub fn work(&mut self, bus: &mut Bus, wrong: Option<Wrong>) -> (Vec<Vec<u8>>, bool) {
        let (mut sent, mut told) = (Vec::new(), false);
        while self.ring.works() {
            let Some(Given { slot, words }) = self.ring.take(bus) else { break };
            let command = words[1] as u32;
            match command & (DEXT | TYPE) {
                kind if kind == DEXT | CONTEXT => self.context(bus, words),
                kind if kind == DEXT | DATA => self.data(bus, words, &mut sent),
                _ => bus.broken(format!(
                    "{}: descriptor {slot} is {words:x?}, which is no advanced descriptor",
                    self.ring.name
                )),
            }
            if command & RS != 0 && command & (DEXT | TYPE) == DEXT | DATA {
                let done = match wrong {
                    Some(Wrong::NoWriteBack) => continue,
                    Some(Wrong::WrongDoneBit) => DONE << 1,
                    _ => DONE,
                };
                self.ring.write_back(bus, slot, [0, done]);
                told = true;
            }
        }
        (sent, told)
    }

    fn context(&mut self, bus: &mut Bus, words: [u64; 2]) {
        let upper = (words[1] >> 32) as u32;
        let (slot, command) = ((upper >> 4 & 7) as usize, words[1] as u32);
        if self.frame.descriptors > 0 {
            bus.broken(format!("{}: a context in the middle of a frame", self.ring.name));
        }
        // IPsec and tunnels are none of this VF's, and the seed is for FCoE.
        if words[0] >> 32 != 0 || command & !(TYPE | DEXT | IPV4 | 3 << 11) != 0 || upper & 0x8f != 0 {
            bus.broken(format!("{}: context {words:x?} has reserved bits", self.ring.name));
        }
        match self.contexts.get_mut(slot) {
            Some(context) => *context = Some(Context::of(words)),
            None => bus.broken(format!("{}: there is no context {slot}", self.ring.name)),
        }
    }

    fn data(&mut self, bus: &mut Bus, words: [u64; 2], sent: &mut Vec<Vec<u8>>) {
        let (command, options) = (words[1] as u32, (words[1] >> 32) as u32);
        let len = (command & 0xffff) as usize;
        let name = &self.ring.name;
        if command & COMMAND_RESERVED != 0 {
            bus.broken(format!("{name}: command {command:#x} has reserved bits"));
        }
        if len == 0 {
            bus.broken(format!("{name}: a data descriptor without data"));
        }
        if command & RS != 0 && command & EOP == 0 {
            bus.broken(format!("{name}: RS before the end of the frame"));
        }
        if self.threshold() > 0 && command & EOP != 0 && command & RS == 0 {
            bus.broken(format!("{name}: WTHRESH is set, so every frame must end with RS"));
        }
        if self.frame.descriptors == 0 {
            if options & OPTIONS_RESERVED != 0 {
                bus.broken(format!("{name}: options {options:#x} have reserved bits"));
            }
            if command & IFCS == 0 {
                bus.broken(format!("{name}: a frame without FCS"));
            }
            (self.frame.command, self.frame.options) = (command, options);
        }
        self.frame.descriptors += 1;
        self.frame.bytes.extend(bus.dma_get(words[0], len));
        if command & EOP != 0 {
            let frame = std::mem::take(&mut self.frame);
            match self.finish(frame) {
                Ok(frames) => sent.extend(frames),
                Err(rule) => bus.broken(format!("{name}: {rule}", name = self.ring.name)),
            }
        }
    }

    /// What leaves as one gathered frame, or the rule that it breaks.
    fn finish(&self, frame: Gathered) -> Result<Vec<Vec<u8>>, String> {
        let Gathered { mut bytes, descriptors, command, options } = frame;
        let (cut, work) = (command & TSE != 0, options & (IXSM | TXSM));
        let length = (options >> 14) as usize;
        if descriptors > INSIDE - self.threshold() - 2 {
            return Err(format!("a frame of {descriptors} descriptors"));
        }
        if bytes.len() < SHORTEST {
            return Err(format!("a frame of {} bytes", bytes.len()));
        }
        let context = self.contexts[(options >> 4 & 1) as usize];
        let needs = self.checks_context || cut || work != 0 || command & VLE != 0;
        if needs && options & CC == 0 {
            return Err("CC is clear; this frame needs a context".to_owned());
        }
        let context = match context {
            Some(context) if options & CC != 0 => {
                if context.l2 < 14 || context.l2 > bytes.len() {
                    return Err(format!("MACLEN {} is not where the header ends", context.l2));
                }
                Some(context)
            }
            None if options & CC != 0 => return Err("CC refers to a context that was not given".to_owned()),
            _ => None,
        };
        let tag = context.filter(|_| command & VLE != 0).map(|context| context.tag);
        let mut frames = match context {
            Some(context) if cut => {
                let lengths = right(&bytes, context, work, true)?;
                let headers = lengths.l2 + lengths.l3 + lengths.l4;
                if length != bytes.len() - headers {
                    return Err(format!(
                        "PAYLEN {length} is not the {} behind the headers",
                        bytes.len() - headers
                    ));
                }
                cut_tcp(&bytes, lengths, context.segment)
            }
            context => {
                if length != bytes.len() {
                    return Err(format!("PAYLEN {length}, but {} bytes of data", bytes.len()));
                }
                if let Some(context) = context.filter(|_| work != 0) {
                    let lengths = right(&bytes, context, work, false)?;
                    if work & IXSM != 0 {
                        fill_ipv4(&mut bytes, lengths.l2, lengths.l3);
                    }
                    if work & TXSM != 0 {
                        let udp = context.transport == 0;
                        let start = lengths.l2 + lengths.l3;
                        fill_over_partial(&mut bytes, start, if udp { 6 } else { 16 }, udp);
                    }
                }
                vec![bytes]
            }
        };
        for frame in &mut frames {
            if let Some(tag) = tag {
                let [high, low] = tag.to_be_bytes();
                frame.splice(12..12, [0x81, 0, high, low]);
            }
            let tagged = frame.get(12..14) == Some(&[0x81, 0]);
            if frame.len() + 4 > LONGEST + if tagged { 4 } else { 0 } {
                return Err(format!("a frame of {} bytes", frame.len()));
            }
            if frame.len() < 60 {
                frame.resize(60, 0);
            }
        }
        Ok(frames)
    }
}

/// The headers where a context says they are, if they are there; what else must hold for the work that is asked for.
fn right(frame: &[u8], context: Context, work: u32, cut: bool) -> Result<Lengths, String> {
    let Context { l2, l3, .. } = context;
    let byte = |at: usize| frame.get(at).copied().unwrap_or(0);
    let word = |at: usize| u16::from_be_bytes([byte(at), byte(at + 1)]);
    let (version, ethertype) = (byte(l2) >> 4, word(l2 - 2));
    let v4 = context.ipv4;
    if (v4, version, ethertype) != (true, 4, 0x800) && (v4, version, ethertype) != (false, 6, 0x86dd) {
        return Err(format!(
            "IPV4 {v4}, but at MACLEN {l2} is version {version} of ethertype {ethertype:#x}"
        ));
    }
    if v4 && l3 != usize::from(byte(l2) & 15) * 4 || !v4 && l3 < 40 {
        return Err(format!("IPLEN {l3} is not that of the header"));
    }
    if work & IXSM != 0 && (!v4 || ![0, 0xffff].contains(&word(l2 + 10))) {
        return Err("IXSM without an IPv4 header whose checksum is 0".to_owned());
    }
    let protocol = if v4 { byte(l2 + 9) } else { byte(l2 + 6) };
    let wanted = match context.transport {
        0 => 17,
        1 => 6,
        other => return Err(format!("L4T {other} is none of this model's")),
    };
    // Behind the headers of extensions nobody looks.
    if work & TXSM != 0 && protocol != wanted && (v4 || l3 == 40) {
        return Err(format!("L4T says protocol {wanted}, the header {protocol}"));
    }
    let l4 = context.l4;
    if cut {
        let wants = TXSM | if v4 { IXSM } else { 0 };
        if work & wants != wants {
            return Err("TSE without TXSM, or without IXSM over IPv4".to_owned());
        }
        if wanted != 6 || l4 != usize::from(byte(l2 + l3 + 12) >> 4) * 4 || l4 < 20 {
            return Err(format!("TSE with L4LEN {l4}, which is not that of a TCP header"));
        }
        if l2 + l3 + l4 > MOST_HEADERS.min(frame.len()) {
            return Err(format!("TSE with {} bytes of headers", l2 + l3 + l4));
        }
        if context.segment == 0 {
            return Err("TSE with MSS 0".to_owned());
        }
        // The device adds the length of each segment; 0 and 0xffff are the same.
        let (is, should) = (word(l2 + l3 + 16), pseudo(frame, l2, 6, 0));
        if is % 0xffff != should % 0xffff {
            return Err(format!(
                "TSE with {is:#x} in the checksum, {should:#x} is that of the pseudo header"
            ));
        }
    }
    Ok(Lengths { l2, l3, l4 })
}
