//! A VF of Intel's 82576 or I350 with the PF behind it, from the 82576 data sheet: chapters 7.1 and 7.2 (descriptors), 7.10 (virtual
//! functions), 8.14 (registers of the VF); messages of the mailbox as Linux's PF driver answers them.
//!
//! ```text
//!   mailbox ── Pf: MAC, VLANs, longest frame, modes      receive ◀── filters, RSS of the PF ◀── wire
//!   interrupts: EICR, EIMS, EIAC, EIAM, IVAR             transmit ── contexts, checksums, TCP cut ──▶ wire
//! ```

mod interrupts;
mod mailbox;
mod receive;
mod ring;
mod transmit;

pub use mailbox::Pf;

use interrupts::Interrupts;
use mailbox::Mailbox;
use receive::Receive;
use ring::Switch;
use transmit::Transmit;

use crate::bus::Bus;
use crate::config::Config;
use crate::fault::Fault;
use crate::model::{Model, Size};

/// Queue pairs.
pub const PAIRS: usize = 2;
const CTRL: u64 = 0x0000;
const CTRL_RST: u32 = 1 << 26;
const STATUS: u64 = 0x0008;
const COUNTERS: u64 = 0x0f10;
const COUNTERS_END: u64 = 0x0f54;

/// A device that is not as its data sheet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Transmit descriptors are never written back.
    NoTransmitReport,
    /// Received descriptors are written back without DD.
    NoReceiveReport,
    /// Received frames have no last descriptor.
    NoEnd,
    /// Received frames are said to be longer than their buffers.
    LengthTooLong,
    /// Received frames are said to be 4 bytes shorter.
    LengthTooShort,
    /// There are no interrupts.
    NoInterrupt,
    /// Answers of the PF say both that it did and that it did not.
    BothAnswers,
    /// The PF answers to other messages than it was asked.
    OtherAnswer,
    /// The PF never acknowledges a message, and answers all the same.
    NoAcknowledgement,
    /// Queues never start.
    NeverEnabled,
}

/// What a VF counts (8.14, statistics registers of the VF), 32 bits wide and wrapping.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// VFGPRC, VFGORC: frames and bytes received.
    pub received: (u32, u32),
    /// VFGPTC, VFGOTC: frames and bytes sent.
    pub sent: (u32, u32),
    /// VFMPRC: multicast frames received.
    pub multicast: u32,
}

impl Counted {
    fn at(&self, offset: u64) -> u32 {
        match offset {
            0x0f10 => self.received.0,
            0x0f14 => self.sent.0,
            0x0f18 => self.received.1,
            0x0f34 => self.sent.1,
            0x0f3c => self.multicast,
            _ => 0,
        }
    }
}

/// The device.
#[derive(Debug)]
pub struct Igbvf {
    /// The PF behind the mailbox: what it grants, and how it misbehaves.
    pub pf: Pf,
    /// How the device is wrong.
    pub wrong: Option<Wrong>,
    /// What it has counted; a PF reset leaves it.
    pub counted: Counted,
    /// Errors that the next received frame is written back with, in the place that they have in a descriptor.
    pub damage: u32,
    /// The device does not look at its transmit rings.
    pub stalled: bool,
    /// It takes what Linux's driver does, which works, but is not to the letter: transmit queues whose WTHRESH is 0, against the
    /// specification update, and contexts that do not say IPV4 where nothing but the checksum of TCP or UDP is asked for.
    pub lenient: bool,
    /// It is one of an I350, with one queue pair, and all that arrives was sent by another function of its port: the tag that is
    /// taken off then has its bytes swapped.
    i350: bool,
    mailbox: Mailbox,
    interrupts: Interrupts,
    receive: [Receive; PAIRS],
    transmit: [Transmit; PAIRS],
}

impl Default for Igbvf {
    fn default() -> Self {
        Self {
            pf: Pf::default(),
            wrong: None,
            counted: Counted::default(),
            damage: 0,
            stalled: false,
            lenient: false,
            i350: false,
            mailbox: Mailbox::default(),
            interrupts: Interrupts::default(),
            receive: std::array::from_fn(|_| Receive::default()),
            transmit: std::array::from_fn(|_| Transmit::default()),
        }
    }
}

impl Igbvf {
    /// One that is wrong in one way.
    pub fn wrong(wrong: Wrong) -> Self {
        Self { wrong: Some(wrong), ..Self::default() }
    }

    /// The VF of an I350, beside another one of the same port.
    pub fn i350() -> Self {
        Self { i350: true, ..Self::default() }
    }

    /// One whose vectors are where QEMU's 82576 has those of VF `number`, and are forgotten as little.
    pub fn of_port(number: u32) -> Self {
        Self { interrupts: Interrupts::of_port(22 - 3 * number), ..Self::default() }
    }

    fn stop(&mut self) {
        self.receive = std::array::from_fn(|_| Receive::default());
        self.transmit = std::array::from_fn(|_| Transmit::default());
        self.interrupts.reset();
    }

    /// The PF begins to reset itself, and all VFs with it.
    pub fn pf_goes_down(&mut self) {
        self.stop();
        self.mailbox.reset_begins();
        self.pf.forget();
    }

    /// The PF is back.
    pub fn pf_comes_back(&mut self) {
        self.mailbox.reset_ends();
    }

    /// The PF says something on its own: with `clear_to_send` a ping, as when its link changes; without, that the VF has to
    /// begin anew.
    pub fn ping(&mut self, clear_to_send: bool) {
        self.mailbox.say(0x0100 | if clear_to_send { 1 << 29 } else { 0 });
        if !clear_to_send {
            self.pf.forget();
        }
    }

    /// Does what a script says: `link down`, `link up`, `pf reset`, `pf back`; whether it knows that.
    pub fn command(&mut self, bus: &mut Bus, words: &str) -> bool {
        match words {
            "link down" | "link up" => {
                self.pf.link = words == "link up";
                self.ping(true);
            }
            "pf reset" => self.pf_goes_down(),
            "pf back" => self.pf_comes_back(),
            _ => return false,
        }
        self.interrupts.mail(bus);
        true
    }

    /// Contexts that were written since the queues were switched on.
    pub fn contexts(&self) -> usize {
        self.transmit.iter().map(|queue| queue.contexts_written).sum()
    }

    /// Whether receive queue `queue` is on.
    pub fn is_receiving(&self, queue: usize) -> bool {
        self.receive[queue].ring.is_enabled()
    }

    /// The queue and the register of an offset among the rings' registers that begin at `first`.
    fn queue_of(&self, offset: u64, first: u64) -> Option<(usize, u64)> {
        let within = offset.checked_sub(first)?;
        let queue = (within >> 8) as usize;
        let pairs = if self.i350 { 1 } else { PAIRS };
        (queue < pairs).then_some((queue, within & 0xff))
    }

    fn status(&self) -> u32 {
        // Full duplex, 1000 Mbit/s.
        1 | 2 << 6 | if self.pf.link { 1 << 1 } else { 0 }
    }
}

/// Two VFs, whose addresses end in 1 and 2; with `lenient` they are [so](Igbvf::lenient), with `lenient-far`
/// the second alone, with `i350` those of an I350.
pub fn pair(words: &[&str]) -> Option<[Igbvf; 2]> {
    let [lenient, far, i350] = ["lenient", "lenient-far", "i350"].map(|word| words.contains(&word));
    if words.len() != [lenient, far, i350].map(usize::from).iter().sum::<usize>() {
        return None;
    }
    let with = |last| Pf { mac: Some([0x52, 0x54, 0, 0, 0, last]), ..Pf::default() };
    Some([1, 2].map(|last| Igbvf {
        pf: with(last),
        lenient: lenient || far && last == 2,
        i350,
        ..Igbvf::default()
    }))
}

impl Model for Igbvf {
    fn config(&self) -> Config {
        let device = if self.i350 { 0x1520 } else { 0x10ca };
        Config::ethernet((0x8086, device), [0x4000, 0, 0, 0, 0x4000, 0], 3, 4, 0)
    }

    fn read(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size) -> u64 {
        if bar != 0 || size != Size::Word {
            bus.fault(Fault::Access { bar, offset, size: size.bytes(), write: false });
            return u64::MAX;
        }
        let value = match offset {
            CTRL => 0,
            STATUS => self.status(),
            COUNTERS..COUNTERS_END => self.counted.at(offset),
            _ if Mailbox::has(offset) => self.mailbox.read(bus, offset),
            _ if Interrupts::has(offset) => self.interrupts.read(offset),
            0x2800.. if let Some((queue, register)) = self.queue_of(offset, 0x2800) => {
                self.receive[queue].read(bus, register)
            }
            0x3800.. if let Some((queue, register)) = self.queue_of(offset, 0x3800) => {
                self.transmit[queue].read(bus, register)
            }
            _ => {
                bus.fault(Fault::Access { bar, offset, size: 4, write: false });
                0
            }
        };
        u64::from(value)
    }

    fn write(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size, value: u64) {
        let fault = Fault::Access { bar, offset, size: size.bytes(), write: true };
        if bar != 0 || size != Size::Word {
            return bus.fault(fault);
        }
        let value = value as u32;
        match offset {
            CTRL if value & CTRL_RST != 0 => {
                self.stop();
                self.pf.forget();
            }
            CTRL => {}
            _ if Mailbox::has(offset) => {
                if self.mailbox.write(bus, offset, value, &mut self.pf, self.wrong) {
                    self.interrupts.mail(bus);
                }
            }
            _ if Interrupts::has(offset) => self.interrupts.write(bus, offset, value),
            0x2800.. if let Some((queue, register)) = self.queue_of(offset, 0x2800) => {
                let never = self.wrong == Some(Wrong::NeverEnabled);
                self.receive[queue].write(bus, register, value, Switch { never, lenient: false });
            }
            0x3800.. if let Some((queue, register)) = self.queue_of(offset, 0x3800) => {
                let never = self.wrong == Some(Wrong::NeverEnabled);
                let lenient = self.lenient;
                self.transmit[queue].write(bus, register, value, Switch { never, lenient });
            }
            _ => bus.fault(fault),
        }
    }

    fn poll(&mut self, bus: &mut Bus) {
        if !self.stalled {
            for queue in 0..PAIRS {
                if self.transmit[queue].run(bus, &mut self.counted, self.wrong, self.lenient) {
                    self.interrupts.transmitted(bus, queue);
                }
            }
        }
        while let Some(frame) = bus.wire.take_arriving() {
            self.arrived(bus, frame);
        }
    }

    fn reset(&mut self, _bus: &mut Bus) {
        self.stop();
        self.mailbox = Mailbox::default();
        self.pf.forget();
    }
}
