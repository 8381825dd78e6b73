//! A VF of Intel's 700 and 800 series with the PF and the firmware behind it.
//!
//! From Intel's published `virtchnl.h`, `iavf_register.h`, `iavf_adminq_cmd.h` and `iavf_type.h`, and the data sheets of
//! XL710 and E810. Where the two series differ, it does what is harder for a driver: the lower bits of receive tails are
//! ignored (E810), finished descriptors wait for company unless an interrupt or a timer fetches them (XL710), and a frame in
//! too many pieces or with too small segments stops the queue (both).

mod admin;
mod frames;
mod interrupts;
mod pf;
mod rx;
mod tx;

pub use pf::{Promiscuous, granted};

use crate::bus::Bus;
use crate::config::Config;
use crate::fault::Fault;
use crate::model::{Model, Size};
use admin::Admin;
use interrupts::Interrupts;
use pf::{Stage, Vf};
use rx::Receive;
use tx::Transmit;

/// Most queue pairs of a VF.
const MOST_PAIRS: usize = 16;
/// Bytes of the BAR with registers, and of that with the MSI-X table.
const REGISTERS: u64 = 0x10000;
const TABLE: u64 = 0x4000;

/// Registers, by their names in `iavf_register.h`.
mod register {
    pub const QTX_TAIL: u64 = 0x0000;
    pub const QRX_TAIL: u64 = 0x2000;
    pub const ITRN: u64 = 0x2800;
    pub const DYN_CTLN: u64 = 0x3800;
    pub const ICR0: u64 = 0x4800;
    pub const ITR0: u64 = 0x4c00;
    pub const ICR0_ENA: u64 = 0x5000;
    pub const STAT_CTL0: u64 = 0x5400;
    pub const DYN_CTL0: u64 = 0x5c00;
    pub const ARQBAH: u64 = 0x6000;
    pub const ATQH: u64 = 0x6400;
    pub const ATQLEN: u64 = 0x6800;
    pub const ARQBAL: u64 = 0x6c00;
    pub const ARQT: u64 = 0x7000;
    pub const ARQH: u64 = 0x7400;
    pub const ATQBAH: u64 = 0x7800;
    pub const ATQBAL: u64 = 0x7c00;
    pub const ARQLEN: u64 = 0x8000;
    pub const ATQT: u64 = 0x8400;
    pub const RSTAT: u64 = 0x8800;
}

/// States of a reset as VFGEN_RSTAT tells them.
const IN_PROGRESS: u32 = 0;
const ACTIVE: u32 = 2;

/// What kind of device and PF it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The VF's address, as the PF gives it; none where it has none.
    pub mac: Option<[u8; 6]>,
    /// Device id: 0x1889, or 0x154c.
    pub device: u16,
    /// The version that the PF speaks.
    pub version: (u32, u32),
    /// What the PF grants to who asks: bits of `VIRTCHNL_VF_OFFLOAD_…`, see [`granted`].
    pub capabilities: u32,
    /// Queue pairs and interrupts of the VF.
    pub pairs: u16,
    /// See `pairs`.
    pub vectors: u16,
    /// What the PF calls the longest MTU, and is the longest frame with FCS; 0 says nothing.
    pub max_mtu: u16,
    /// Formats of receive descriptors that the PF offers, a bit each.
    pub formats: u64,
    /// What becomes of a wish to see everything.
    pub promiscuous: Promiscuous,
    /// The PF's operator has set the address, and no other one is taken.
    pub fixed_mac: bool,
    /// Several PFs share the port, and refuse all to a VF that wants to be polled, as Linux's `i40e` does.
    pub several_functions: bool,
    /// Tags are taken out of frames, and nobody can change that.
    pub keeps_stripping: bool,
    /// Tagged frames pass only for VLANs that were asked for.
    pub filters_vlans: bool,
    /// Mbit/s of the wire.
    pub speed: u32,
    /// Reads of the reset state that a reset takes.
    pub reset_reads: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mac: Some([0x52, 0x54, 0, 0, 0, 2]),
            device: 0x1889,
            version: (1, 1),
            capabilities: granted::SERIES_800,
            pairs: 4,
            vectors: 5,
            max_mtu: 0,
            formats: 1 << 1 | 1 << 2,
            promiscuous: Promiscuous::Granted,
            fixed_mac: false,
            several_functions: false,
            keeps_stripping: false,
            filters_vlans: false,
            speed: 25_000,
            reset_reads: 3,
        }
    }
}

impl Options {
    /// An XL710's VF, whose PF grants less: legacy descriptors, no write-back by timer.
    pub fn series_700() -> Self {
        Self { device: 0x154c, capabilities: granted::SERIES_700, speed: 10_000, ..Self::default() }
    }
}

/// A way to be wrong: what no silicon does, and drivers must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Transmit descriptors are never written back.
    NoWriteBack,
    /// Received lengths are larger than the buffers.
    WrongLength,
    /// The bit that says done is another one.
    WrongDone,
    /// No interrupt is raised.
    NoInterrupt,
    /// The number of each answer has a bit too many.
    AnswerBit,
    /// Answers are two bytes short.
    ShortAnswer,
    /// The PF has capabilities that nobody asked for, and more queues than there can be.
    TooGenerous,
    /// Received frames never end.
    NoEnd,
    /// Every received frame is damaged.
    Damaged,
    /// VLAN tags are taken out although nobody wants that.
    StripsTags,
    /// The head of the admin receive queue is past its end.
    WrongHead,
    /// Messages of the PF come in descriptors that are not done.
    UndoneMessage,
    /// Every frame's checksum is said to be wrong.
    WrongVerdict,
}

/// The device, its firmware and its PF.
#[derive(Debug)]
pub struct Iavf {
    /// What it is; changes count from the next reset on, except where the name says otherwise.
    pub options: Options,
    /// Wrong on purpose.
    pub wrong: Option<Wrong>,
    /// Firmware takes no messages.
    pub firmware_silent: bool,
    /// The PF takes messages and does not answer.
    pub pf_silent: bool,
    /// The PF answers messages with this number with this status, and does nothing.
    pub refuses: Option<(u32, i32)>,
    /// Resets do not end.
    pub stuck: bool,
    /// The next so many frames that arrive are damaged.
    pub damage: u32,
    /// Messages that the VF sent, by number.
    pub heard: Vec<u32>,
    admin: Admin,
    interrupts: Interrupts,
    vf: Vf,
    transmit: Vec<Transmit>,
    receive: Vec<Receive>,
    link: bool,
    state: u32,
    reads_left: u32,
    /// Register reads until a reset begins that the VF has asked for.
    asked: Option<u8>,
}

impl Iavf {
    /// As after power-on.
    pub fn new(options: Options) -> Self {
        let mut model = Self {
            admin: Admin::default(),
            interrupts: Interrupts::new(options.vectors),
            vf: Vf::default(),
            transmit: Vec::new(),
            receive: Vec::new(),
            link: true,
            state: ACTIVE,
            reads_left: 0,
            asked: None,
            options,
            wrong: None,
            firmware_silent: false,
            pf_silent: false,
            refuses: None,
            stuck: false,
            damage: 0,
            heard: Vec::new(),
        };
        model.clear();
        model
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }

    /// All that a reset of the VF clears.
    fn clear(&mut self) {
        self.admin = Admin::default();
        self.interrupts = Interrupts::new(self.options.vectors);
        // Both still know each other's version.
        let stage = self.vf.stage.min(Stage::Versioned);
        self.vf = Vf { stage, ..Vf::new(&self.options) };
        self.transmit = (0..MOST_PAIRS).map(|_| Transmit::default()).collect();
        self.receive = (0..MOST_PAIRS).map(|_| Receive::default()).collect();
    }

    /// The PF resets the VF; it takes as many looks as the options say, or until nothing is stuck any more.
    pub fn begin_reset(&mut self) {
        self.clear();
        self.asked = None;
        self.state = IN_PROGRESS;
        self.reads_left = self.options.reset_reads;
    }

    /// The VF has asked for a reset: firmware says that the message was taken, and a little later the PF does it.
    fn reset_soon(&mut self) {
        self.asked = Some(2);
    }

    /// The wire changes.
    pub fn set_link(&mut self, bus: &mut Bus, up: bool) {
        self.link = up;
        self.tell_link(bus);
    }

    /// The PF says that it will reset the VF.
    pub fn announce_reset(&mut self, bus: &mut Bus) {
        self.tell_event(bus, 2, [0; 8]);
    }

    /// The PF says that its driver goes away.
    pub fn announce_close(&mut self, bus: &mut Bus) {
        self.tell_event(bus, 3, [0; 8]);
    }

    /// What is known of the VF's queues: which are on.
    pub fn queues_on(&self) -> usize {
        self.receive.iter().filter(|queue| queue.enabled).count()
            + self.transmit.iter().filter(|queue| queue.enabled).count()
    }

    /// Whether the PF receives frames for this address for the VF.
    pub fn has_address(&self, mac: [u8; 6]) -> bool {
        self.vf.addresses.contains(&mac)
    }

    /// Does something in words; whether the words are known.
    pub fn command(&mut self, bus: &mut Bus, words: &str) -> bool {
        match words {
            "link down" => self.set_link(bus, false),
            "link up" => self.set_link(bus, true),
            "pf reset" => {
                self.announce_reset(bus);
                self.begin_reset();
            }
            "lose interrupts" => bus.lose_interrupts(true),
            "keep interrupts" => bus.lose_interrupts(false),
            _ => return false,
        }
        true
    }

    fn reset_state(&mut self) -> u32 {
        if self.state == IN_PROGRESS && !self.stuck {
            match self.reads_left.checked_sub(1) {
                Some(left) => self.reads_left = left,
                None => self.state = ACTIVE,
            }
        }
        self.state
    }
}

/// The number of the element that a register is of an array of `count` words from `base` on.
fn element(offset: u64, base: u64, count: usize) -> Option<usize> {
    let number = offset.checked_sub(base)? as usize / 4;
    (number < count).then_some(number)
}

impl Model for Iavf {
    fn config(&self) -> Config {
        let bars = [REGISTERS, 0, 0, 0, TABLE, 0];
        Config::ethernet((0x8086, self.options.device), bars, self.options.vectors, 4, 0).prefetchable(0)
    }

    fn read(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size) -> u64 {
        if bar != 0 {
            return 0;
        }
        if size != Size::Word {
            bus.fault(Fault::Access { bar, offset, size: size.bytes(), write: false });
            return u64::MAX;
        }
        match self.asked.map(|reads| reads.checked_sub(1)) {
            None => {}
            Some(None) => self.begin_reset(),
            Some(left) => self.asked = left,
        }
        let value = match offset {
            register::RSTAT => self.reset_state(),
            _ => match (self.admin.read(offset), self.interrupts.read(offset)) {
                (Some(value), _) if offset == register::ARQH && self.is(Wrong::WrongHead) => value | 0x300,
                (Some(value), _) | (None, Some(value)) => value,
                (None, None) => self.tail(offset).unwrap_or_else(|| {
                    bus.broken(format!("there is no register {offset:#x} to be read"));
                    u32::MAX
                }),
            },
        };
        value.into()
    }

    fn write(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size, value: u64) {
        if bar != 0 {
            return;
        }
        if size != Size::Word {
            return bus.fault(Fault::Access { bar, offset, size: size.bytes(), write: true });
        }
        let value = value as u32;
        if self.state == IN_PROGRESS {
            // Nobody hears it.
            return;
        }
        if let Some(number) = element(offset, register::QTX_TAIL, MOST_PAIRS) {
            self.send(bus, number, value);
        } else if let Some(number) = element(offset, register::QRX_TAIL, MOST_PAIRS) {
            self.receive[number].give(bus, number, value);
        } else if self.interrupts.write(bus, offset, value) {
            self.write_back(bus);
        } else if self.admin.write(bus, offset, value) {
            // Firmware looks when a tail is moved.
            if offset == register::ATQT {
                self.take_messages(bus);
            }
        } else {
            bus.broken(format!("there is no register {offset:#x} to be written ({value:#x})"));
        }
    }

    fn poll(&mut self, bus: &mut Bus) {
        self.receive_all(bus);
        self.write_back(bus);
    }

    fn reset(&mut self, _bus: &mut Bus) {
        self.begin_reset();
    }
}

impl Iavf {
    fn tail(&self, offset: u64) -> Option<u32> {
        element(offset, register::QTX_TAIL, MOST_PAIRS).map(|number| self.transmit[number].tail).or_else(
            || element(offset, register::QRX_TAIL, MOST_PAIRS).map(|number| self.receive[number].tail),
        )
    }

    /// Writes descriptors back that may be, and interrupts for them.
    fn write_back(&mut self, bus: &mut Bus) {
        let silent = self.is(Wrong::NoInterrupt);
        for number in 0..MOST_PAIRS {
            for (held, vector) in [
                (&mut self.receive[number].held, self.vf.vectors[number].0),
                (&mut self.transmit[number].held, self.vf.vectors[number].1),
            ] {
                if held.flush(bus, self.interrupts.fetches(vector)) && !silent {
                    self.interrupts.cause(bus, vector);
                }
            }
        }
    }
}

/// A descriptor that is finished and not written back.
#[derive(Debug)]
struct Finished {
    address: u64,
    /// What it was when it was read: until it is written back, it is the device's.
    before: Vec<u8>,
    /// What it becomes, from its first byte on.
    words: Vec<u64>,
}

/// All of them.
#[derive(Debug, Default)]
struct Held(Vec<Finished>);

impl Held {
    /// Descriptors that fill a cache line and are written back together, however long the others wait.
    const TOGETHER: usize = 4;

    fn finish(&mut self, finished: Finished) {
        self.0.push(finished);
    }

    /// Writes back: all, or only as many as do not wait for company. Whether there were any.
    fn flush(&mut self, bus: &mut Bus, all: bool) -> bool {
        let count = if all { self.0.len() } else { self.0.len() / Self::TOGETHER * Self::TOGETHER };
        for Finished { address, before, words } in self.0.drain(..count) {
            if bus.dma_get(address, before.len()) != before {
                bus.broken(format!("the descriptor at {address:#x} is written to while the device has it"));
            }
            // The second word is what drivers look at.
            for n in (0..words.len()).filter(|n| *n != 1).chain([1]) {
                if let Some(word) = words.get(n) {
                    bus.dma_write(address + 8 * n as u64, &word.to_le_bytes());
                }
            }
        }
        count > 0
    }
}

/// Two models for two ends of a wire, of which `words` say how they differ from the usual; `None` for words that mean
/// nothing.
pub fn pair(words: &[&str]) -> Option<[Iavf; 2]> {
    let mut options = Options { pairs: 2, vectors: 3, ..Options::default() };
    for word in words {
        match word.split_once('=') {
            None if *word == "700" => {
                let Options { device, capabilities, speed, .. } = Options::series_700();
                (options.device, options.capabilities, options.speed) = (device, capabilities, speed);
            }
            None if *word == "800" => {}
            None if *word == "x722" => {
                (options.device, options.capabilities) = (0x37cd, granted::SERIES_700 | granted::WRITE_BACK);
            }
            Some(("queues", count)) => {
                options.pairs = count.parse().ok()?;
                options.vectors = options.pairs + 1;
            }
            _ => return None,
        }
    }
    Some([1, 2].map(|last| {
        let mac = Some([0x52, 0x54, 0, 0, 0, last]);
        Iavf::new(Options { mac, ..options.clone() })
    }))
}
