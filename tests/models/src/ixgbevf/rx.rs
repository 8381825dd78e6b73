//! Receive queues (82599 data sheet, chapter 7.1): advanced descriptors with one buffer.

use super::Wrong;
use super::registers::*;
use super::ring::{Given, Ring, State};
use crate::bus::Bus;
use crate::rss::Flow;
use crate::work::{pseudo, sum};

const DD: u32 = 1;
const EOP: u32 = 1 << 1;
const VP: u32 = 1 << 3;
const L4CS: u32 = 1 << 5;
const IPCS: u32 = 1 << 6;
/// Any error of the MAC.
const RXE: u32 = 1 << 29;
const L4E: u32 = 1 << 30;
const IPE: u32 = 1 << 31;

/// A receive queue.
#[derive(Debug)]
pub struct Receive {
    pub ring: Ring,
    pub buffers: u32,
    pub coalescing: u32,
}

/// What becomes of a frame in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is in the driver's memory.
    Delivered,
    /// It found too few descriptors, or no queue that works.
    Missed,
    /// It is too long for the queue.
    TooLong,
}

impl Receive {
    pub fn new(number: usize) -> Self {
        Self {
            ring: Ring::new(format!("receive queue {number}"), DCA_RX_DEFAULT),
            buffers: 0x402,
            coalescing: 0,
        }
    }

    pub fn reset(&mut self) {
        self.ring.reset(DCA_RX_DEFAULT);
        (self.buffers, self.coalescing) = (0x402, 0);
    }

    pub fn read(&mut self, register: u32) -> Option<u32> {
        match register {
            SRRCTL => Some(self.buffers),
            RSCCTL => Some(self.coalescing),
            _ => self.ring.read(register),
        }
    }

    /// Writes a register; whether there is such a one. `limits` says whether the part limits lengths by queue.
    pub fn write(&mut self, bus: &mut Bus, register: u32, value: u32, limits: bool) -> bool {
        match register {
            TAIL => self.ring.give(bus, value),
            SRRCTL => {
                if self.ring.state != State::Off {
                    bus.broken(format!("{}: SRRCTL is written while it is enabled", self.ring.name));
                }
                self.buffers = value;
            }
            RSCCTL => {
                if value & 1 != 0 {
                    bus.broken(format!("{}: this model coalesces nothing (RSCCTL.RSCEN)", self.ring.name));
                }
                self.coalescing = value;
            }
            DCTL => self.control(bus, value, limits),
            _ => return self.ring.write(bus, register, value),
        }
        true
    }

    fn control(&mut self, bus: &mut Bus, value: u32, limits: bool) {
        let ring = &mut self.ring;
        ring.control = value;
        if !limits && value & (RLPML_EN | RLPML) != 0 {
            bus.broken(format!("{}: RXDCTL = {value:#x}: the 82599 has no length there", ring.name));
        }
        if value & ENABLE == 0 {
            if ring.works() {
                ring.state = State::Stopping(1);
            } else {
                ring.state = State::Off;
            }
            return;
        }
        if ring.state == State::Off {
            let mut must = |right: bool, rule: &str| {
                if !right {
                    bus.broken(format!("{} is enabled: {rule}", ring.name));
                }
            };
            must(self.buffers & DESCTYPE == ONE_BUFFER, "SRRCTL.DESCTYPE is not that with one buffer");
            must((1..=16).contains(&(self.buffers & 31)), "SRRCTL.BSIZEPACKET is not 1 to 16 KiB");
            must(self.buffers & DROP_EN != 0, "SRRCTL.DROP_EN is clear, so that it can stop the port");
            must(ring.dca & DCA_MUST_BE_ZERO == 0, "bit 12 of DCA_RXCTRL is set and must be 0");
        }
        ring.start(bus);
    }

    /// Receives a frame: `prefix` is the lower word of the last descriptor (RSS type and hash).
    pub fn receive(
        &mut self,
        bus: &mut Bus,
        frame: &[u8],
        hash: (u32, u32),
        bad: bool,
        wrong: Option<Wrong>,
    ) -> Received {
        if !self.ring.works() {
            return Received::Missed;
        }
        let tag = match frame.get(12..16) {
            Some(&[0x81, 0, high, low]) => Some(u16::from_be_bytes([high, low])),
            _ => None,
        };
        let longest = (self.ring.control & RLPML) as usize + if tag.is_some() { 4 } else { 0 };
        if self.ring.control & RLPML_EN != 0 && frame.len() + 4 > longest {
            return Received::TooLong;
        }
        let mut stripped = Vec::new();
        let bytes = if tag.is_some() && self.ring.control & VME != 0 {
            stripped.extend_from_slice(&frame[..12]);
            stripped.extend_from_slice(&frame[16..]);
            &stripped[..]
        } else {
            frame
        };
        let size = (self.buffers & 31) as usize * 1024;
        let parts = bytes.chunks(size.max(1));
        if parts.len() > self.ring.given.len() {
            return Received::Missed;
        }
        let mut status = verdict(frame) | if tag.is_some() { VP } else { 0 };
        if bad {
            status |= RXE;
        }
        let last = parts.len() - 1;
        for (n, part) in parts.enumerate() {
            let Some(Given { slot, words: [buffer, _] }) = self.ring.take(bus) else { break };
            bus.dma_write(buffer, part);
            let mut len = part.len() as u16;
            let mut state = DD;
            let mut lower = 0;
            let mut vlan = 0;
            if n == last {
                state |= EOP | status;
                lower = u64::from(hash.0) | packet_type(frame) | u64::from(hash.1) << 32;
                vlan = tag.unwrap_or(0);
            }
            match wrong {
                Some(Wrong::ShortLength) => len -= 4,
                Some(Wrong::LongLength) => len = 0xffff,
                Some(Wrong::NoEnd) => state &= !EOP,
                Some(Wrong::NotDone) => state &= !DD,
                Some(Wrong::NoLength) => len = 0,
                _ => {}
            }
            let upper = u64::from(state) | u64::from(len) << 32 | u64::from(vlan) << 48;
            self.ring.write_back(bus, slot, [lower, upper]);
        }
        Received::Delivered
    }
}

/// What the frame is (packet type): IPv4 or IPv6, TCP or UDP.
fn packet_type(frame: &[u8]) -> u64 {
    let Some(flow) = Flow::of(frame) else { return 0 };
    let ip = if flow.version == 4 { 1 << 4 } else { 1 << 6 };
    let transport = match flow.protocol {
        _ if flow.ports.is_empty() => 0,
        6 => 1 << 8,
        _ => 1 << 9,
    };
    ip | transport
}

/// Which checksums were looked at, and which are wrong.
fn verdict(frame: &[u8]) -> u32 {
    let Some(flow) = Flow::of(frame) else { return 0 };
    let mut ip = 14;
    while matches!(frame.get(ip - 2..ip), Some([0x81, 0x00] | [0x88, 0xa8])) {
        ip += 4;
    }
    let mut status = 0;
    let word = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let (transport, end) = if flow.version == 4 {
        let header = usize::from(frame[ip] & 15) * 4;
        status |= IPCS;
        if frame.get(ip..ip + header).is_none_or(|header| sum(header, 0) != 0xffff) {
            return status | IPE;
        }
        (ip + header, ip + word(ip + 2))
    } else {
        (ip + 40, ip + 40 + word(ip + 4))
    };
    // Only what is whole, and of a protocol that it knows.
    let Some(segment) = frame.get(transport..end).filter(|_| !flow.ports.is_empty()) else { return status };
    let unused = flow.protocol == 17 && flow.version == 4 && segment.get(6..8) == Some(&[0, 0]);
    if unused {
        return status;
    }
    let start = pseudo(frame, ip, flow.protocol, segment.len() as u32);
    status | L4CS | if sum(segment, start) == 0xffff { 0 } else { L4E }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets::{Ip, Transport, packet, partial};

    #[test]
    fn verdicts() {
        for (ip, checked) in [(Ip::V4, IPCS | L4CS), (Ip::V6, L4CS)] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let mut good = packet(ip, transport, 5, b"payload");
                assert_eq!(verdict(&good), checked);
                assert_eq!(verdict(&partial(ip, transport, 5, b"payload")), checked | L4E);
                good.splice(12..12, [0x81, 0, 0, 1]);
                assert_eq!(verdict(&good), checked);
                if ip == Ip::V4 {
                    good[18 + 8] ^= 1;
                    assert_eq!(verdict(&good), IPCS | IPE);
                }
            }
        }
        assert_eq!(verdict(&[0; 60]), 0);
    }
}
