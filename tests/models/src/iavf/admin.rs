//! The admin queue, and the firmware that works on it.

use std::collections::VecDeque;

use super::{Iavf, Wrong, register};
use crate::bus::Bus;

const ENABLE: u32 = 1 << 31;
const OVERFLOW: u32 = 1 << 29;
const CRITICAL: u32 = 1 << 30;
const VF_ERROR: u32 = 1 << 28;
const COUNT: u32 = 0x3ff;

const DONE: u16 = 1;
const COMPLETE: u16 = 1 << 1;
const LARGE: u16 = 1 << 9;
const READ: u16 = 1 << 10;
const BUFFER: u16 = 1 << 12;
/// Flags that a driver may set: those above, no interrupt, interrupt on error.
const KNOWN: u16 = LARGE | READ | BUFFER | 1 << 13 | 1 << 14;
/// Bytes from which a buffer is a large one; the largest.
const USUAL: usize = 512;
const LARGEST: usize = 4096;

/// One half of it.
#[derive(Clone, Copy, Debug, Default)]
struct Ring {
    low: u32,
    high: u32,
    length: u32,
    head: u32,
    tail: u32,
}

impl Ring {
    fn count(self) -> u32 {
        if self.length & ENABLE != 0 { self.length & COUNT } else { 0 }
    }

    fn descriptor(self, index: u32) -> u64 {
        (u64::from(self.high) << 32 | u64::from(self.low)) + 32 * u64::from(index)
    }

    fn next(self) -> u32 {
        (self.head + 1) % self.count().max(1)
    }
}

/// A message on its way to the VF.
#[derive(Debug)]
struct Message {
    verb: u32,
    status: i32,
    data: Vec<u8>,
}

/// Both halves.
#[derive(Debug, Default)]
pub struct Admin {
    send: Ring,
    receive: Ring,
    waiting: VecDeque<Message>,
}

impl Admin {
    fn field(&mut self, offset: u64) -> Option<&mut u32> {
        let Self { send, receive, .. } = self;
        Some(match offset {
            register::ATQBAL => &mut send.low,
            register::ATQBAH => &mut send.high,
            register::ATQLEN => &mut send.length,
            register::ATQH => &mut send.head,
            register::ATQT => &mut send.tail,
            register::ARQBAL => &mut receive.low,
            register::ARQBAH => &mut receive.high,
            register::ARQLEN => &mut receive.length,
            register::ARQH => &mut receive.head,
            register::ARQT => &mut receive.tail,
            _ => return None,
        })
    }

    /// A register of its.
    pub fn read(&mut self, offset: u64) -> Option<u32> {
        self.field(offset).map(|field| *field)
    }

    /// Writes a register of its; whether it is one.
    pub fn write(&mut self, bus: &mut Bus, offset: u64, value: u32) -> bool {
        let sends = matches!(
            offset,
            register::ATQBAL | register::ATQBAH | register::ATQLEN | register::ATQH | register::ATQT
        );
        let ring = if sends { self.send } else { self.receive };
        let Some(field) = self.field(offset) else { return false };
        let on = ring.length & ENABLE != 0;
        match offset {
            register::ATQT | register::ARQT if on && value >= ring.count() => {
                bus.broken(format!("admin tail {value} of a ring of {}", ring.count()));
                return true;
            }
            register::ATQLEN | register::ARQLEN => {
                let count = value & COUNT;
                let known = COUNT | ENABLE | OVERFLOW | CRITICAL | VF_ERROR;
                if value & !known != 0 || (value & ENABLE != 0 && count == 0) {
                    bus.broken(format!("admin ring length {value:#x}"));
                }
            }
            // Linux's driver sets a base after the length that enables; work begins at the first tail.
            register::ATQBAL | register::ARQBAL if value & 63 != 0 => {
                bus.broken(format!("admin ring at {value:#x}, which is not aligned to 64 bytes"));
            }
            register::ATQH | register::ARQH if on && value != 0 => {
                bus.broken("the head of an admin ring is moved");
                return true;
            }
            _ => {}
        }
        *field = value;
        true
    }

    /// Says that the admin queue has failed.
    pub fn fail(&mut self) {
        self.send.length |= CRITICAL;
    }

    /// Says that messages were lost.
    pub fn overflow(&mut self) {
        self.receive.length |= OVERFLOW;
    }
}

fn word16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

impl Iavf {
    /// Firmware takes what the VF sends, and brings what the PF has said.
    pub(super) fn take_messages(&mut self, bus: &mut Bus) {
        while !self.firmware_silent
            && self.admin.send.length & CRITICAL == 0
            && self.admin.send.count() > 0
            && self.admin.send.head != self.admin.send.tail
        {
            self.take_message(bus);
        }
        self.bring_messages(bus);
    }

    fn take_message(&mut self, bus: &mut Bus) {
        let ring = self.admin.send;
        let at = ring.descriptor(ring.head);
        let mut bytes = bus.dma_get(at, 32);
        let (flags, opcode, length) = (word16(&bytes, 0), word16(&bytes, 2), usize::from(word16(&bytes, 4)));
        let address = u64::from(word32(&bytes, 24)) << 32 | u64::from(word32(&bytes, 28));
        let complain = |bus: &mut Bus, what: &str| bus.broken(format!("admin message {opcode:#x} {what}"));
        if flags & !KNOWN != 0 {
            complain(bus, &format!("has flags {flags:#x}"));
        }
        if (length > 0) != (flags & BUFFER != 0) || length > LARGEST {
            complain(bus, &format!("has a buffer of {length} bytes and flags {flags:#x}"));
        }
        if (length > USUAL) != (flags & LARGE != 0) || (length > 0 && flags & READ == 0) {
            complain(bus, &format!("of {length} bytes has flags {flags:#x}"));
        }
        if word16(&bytes, 6) != 0 || word32(&bytes, 12) != 0 {
            complain(bus, "brings a result");
        }
        let data = if length > 0 { bus.dma_get(address, length.min(LARGEST)) } else { Vec::new() };
        let verb = word32(&bytes, 8);
        bytes[..2].copy_from_slice(&(flags | DONE | COMPLETE).to_le_bytes());
        bus.dma_write(at, &bytes[..8]);
        self.admin.send.head = ring.next();
        match opcode {
            0x0801 => self.hear(bus, verb, &data),
            0x0003 => {}
            _ => complain(bus, "is none for a VF"),
        }
    }

    /// The PF says something.
    pub(super) fn tell(&mut self, bus: &mut Bus, verb: u32, status: i32, data: Vec<u8>) {
        self.admin.waiting.push_back(Message { verb, status, data });
        self.bring_messages(bus);
    }

    fn bring_messages(&mut self, bus: &mut Bus) {
        while let Some(message) = self.admin.waiting.pop_front() {
            let ring = self.admin.receive;
            if ring.count() == 0 {
                continue;
            }
            if ring.head == ring.tail {
                self.admin.overflow();
                continue;
            }
            self.bring_message(bus, ring, message);
        }
    }

    fn bring_message(&mut self, bus: &mut Bus, ring: Ring, message: Message) {
        let Message { mut verb, status, mut data } = message;
        if self.is(Wrong::AnswerBit) && verb != 17 {
            verb |= 1 << 16;
        }
        if self.is(Wrong::ShortAnswer) && data.len() > 2 {
            data.truncate(data.len() - 2);
        }
        let at = ring.descriptor(ring.head);
        let mut bytes = bus.dma_get(at, 32);
        let (flags, room) = (word16(&bytes, 0), usize::from(word16(&bytes, 4)));
        if flags & !LARGE != BUFFER || (room > USUAL) != (flags & LARGE != 0) || room > LARGEST {
            bus.broken(format!("an admin receive descriptor has flags {flags:#x} and {room} bytes"));
        }
        let address = u64::from(word32(&bytes, 24)) << 32 | u64::from(word32(&bytes, 28));
        if data.len() > room {
            bus.broken(format!("an admin receive buffer of {room} bytes for {}", data.len()));
            data.truncate(room);
        }
        bus.dma_write(address, &data);
        let done = if self.is(Wrong::UndoneMessage) { 0 } else { DONE | COMPLETE };
        bytes[..2].copy_from_slice(&(flags | done).to_le_bytes());
        bytes[2..4].copy_from_slice(&0x0802u16.to_le_bytes());
        bytes[4..6].copy_from_slice(&(data.len() as u16).to_le_bytes());
        bytes[8..12].copy_from_slice(&verb.to_le_bytes());
        bytes[12..16].copy_from_slice(&status.to_le_bytes());
        bus.dma_write(at + 8, &bytes[8..16]);
        bus.dma_write(at, &bytes[..8]);
        self.admin.receive.head = ring.next();
        if !self.is(Wrong::NoInterrupt) {
            self.interrupts.message(bus);
        }
    }

    /// The admin queue does no work any more.
    pub fn break_admin(&mut self) {
        self.admin.fail();
    }

    /// The PF has said more than there were buffers for.
    pub fn lose_messages(&mut self) {
        self.admin.overflow();
    }
}
