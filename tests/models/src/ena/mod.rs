//! A model of the Elastic Network Adapter of AWS: registers that are read through memory, admin queue, events, queues in
//! memory of the host and in the device. By ena-com (`ena_regs_defs.h`, `ena_admin_defs.h`, `ena_eth_io_defs.h`), and
//! stricter: phases, ids, reserved bits, the layout of entries in the device, bursts, headers that a descriptor tells.

mod admin;
mod events;
mod queue;
mod receive;
mod settings;
mod transmit;

pub use settings::{Llq, Order, Settings, Troubles, Wrong};

use crate::bus::Bus;
use crate::config::Config;
use crate::fault::Fault;
use crate::model::{Model, Size};
use admin::Admin;
use events::Events;
use queue::{Completions, Line, Submissions};

/// Amazon.
const VENDOR: u16 = 0x1d0f;
/// Doorbells of submission queues; registers of completion queues: interrupt, and memory node.
const DOORBELL: u32 = 0x1000;
const UNMASK: u32 = 0x2000;
const NUMA: u32 = 0x3000;
const REGISTER_BAR: u64 = 0x4000;
/// Bytes of the widest entry.
const WIDEST: usize = 256;
/// DEV_STS.
const READY: u32 = 1;
const RESETTING: u32 = 1 << 3;
const FATAL: u32 = 1 << 5;

/// How descriptors lie in the device, as the driver chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    entry: usize,
    before_header: usize,
    per_entry: usize,
}

/// What the device counts since it was reset.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    sent: u64,
    sent_bytes: u64,
    send_drops: u64,
    received: u64,
    received_bytes: u64,
    overruns: u64,
}

/// The device.
#[derive(Debug)]
pub struct Ena {
    settings: Settings,
    /// What it does that it must not.
    pub wrong: Option<Wrong>,
    /// What goes wrong.
    pub troubles: Troubles,
    /// The order in which frames that were sent are completed.
    pub order: Order,
    /// What its network held up, and what is left of connections.
    pub allowances: [u64; 6],
    /// Resets by the driver, by their reasons.
    pub resets: Vec<u8>,
    link: bool,
    resetting: bool,
    /// Where values of registers go.
    answers: u64,
    masked: bool,
    admin: Admin,
    events: Events,
    mtu: u32,
    layout: Option<Layout>,
    submissions: Vec<Option<Submissions>>,
    completions: Vec<Option<Completions>>,
    /// Interrupts of completion queues, by vector; the first is that of the admin queue.
    lines: Vec<Line>,
    /// Frames that are to be completed: queue and id.
    waiting: Vec<(usize, u16)>,
    /// The device's memory, and which of its words were written since it took them last.
    memory: Vec<u8>,
    written: Vec<bool>,
    key: [u8; 40],
    table: Vec<u16>,
    counters: Counters,
}

impl Ena {
    /// A device of a generation.
    pub fn new(settings: Settings) -> Self {
        let queues = usize::from(settings.pairs) * 2;
        let mut ena = Self {
            wrong: None,
            troubles: Troubles::default(),
            order: Order::default(),
            allowances: [0; 6],
            resets: Vec::new(),
            link: true,
            resetting: false,
            answers: 0,
            masked: false,
            admin: Admin::default(),
            events: Events::default(),
            mtu: 1500,
            layout: None,
            submissions: (0..queues).map(|_| None).collect(),
            completions: (0..queues).map(|_| None).collect(),
            lines: vec![Line::MASKED; usize::from(settings.pairs) + 1],
            waiting: Vec::new(),
            memory: Vec::new(),
            written: Vec::new(),
            key: [0x6d; 40],
            table: Vec::new(),
            counters: Counters::default(),
            settings,
        };
        let bytes = ena.memory_bytes() as usize;
        (ena.memory, ena.written) = (vec![0; bytes], vec![false; bytes / 8]);
        ena
    }

    /// Bytes of a low latency queue.
    fn llq_bytes(&self) -> usize {
        // Wide entries are half as many.
        self.settings.llq.map_or(0, |llq| usize::from(llq.depth) * WIDEST / 2)
    }

    fn entry_bytes(&self) -> usize {
        self.layout.map_or(WIDEST, |layout| layout.entry)
    }

    fn memory_bytes(&self) -> u64 {
        ((self.llq_bytes() * self.submissions.len()) as u64).next_power_of_two().max(4096)
    }

    /// Does what a line of commands says; whether it is one.
    pub fn command(&mut self, bus: &mut Bus, words: &str) -> bool {
        match words {
            "link down" => self.set_link(bus, false),
            "link up" => self.set_link(bus, true),
            "fatal" => self.tell_fatal(bus),
            "ask for reset" => self.ask_for_reset(bus),
            "complete reversed" => self.order = Order::Reversed,
            "complete in order" => self.order = Order::InOrder,
            "no keep-alive" => self.troubles.no_keep_alive = true,
            "keep-alive" => self.troubles.no_keep_alive = false,
            "lose interrupts" => bus.lose_interrupts(true),
            "keep interrupts" => bus.lose_interrupts(false),
            _ => return false,
        }
        true
    }

    /// The link goes down, or up.
    pub fn set_link(&mut self, bus: &mut Bus, up: bool) {
        if std::mem::replace(&mut self.link, up) != up {
            self.tell_link(bus);
        }
    }

    /// Tells a fatal error.
    pub fn tell_fatal(&mut self, bus: &mut Bus) {
        self.tell(bus, 1, 0, &[]);
    }

    /// Tells a warning.
    pub fn tell_warning(&mut self, bus: &mut Bus) {
        self.tell(bus, 2, 1, &[]);
    }

    /// Wants other limits, in ms: register read, keep-alive, completion, admin command.
    pub fn tell_hints(&mut self, bus: &mut Bus, [read, keep_alive, completion, admin]: [u16; 4]) {
        let halves = |low: u16, high: u16| u32::from(low) | u32::from(high) << 16;
        self.tell(bus, 3, 2, &[halves(read, keep_alive), halves(completion, 0), halves(admin, 0)]);
    }

    /// Asks to be reset.
    pub fn ask_for_reset(&mut self, bus: &mut Bus) {
        self.tell(bus, 7, 0, &[]);
    }

    /// Has a frame that was sent be completed although it was not.
    pub fn release_all(&mut self) {
        self.waiting.clear();
    }

    fn interrupt_admin(&self, bus: &mut Bus) {
        if !self.masked {
            bus.raise(0);
        }
    }

    /// All that the driver set is forgotten.
    fn forget(&mut self) {
        self.answers = 0;
        self.masked = false;
        self.admin = Admin::default();
        self.events = self.events.after_reset();
        self.mtu = 1500;
        self.layout = None;
        self.submissions.iter_mut().for_each(|queue| *queue = None);
        self.completions.iter_mut().for_each(|queue| *queue = None);
        self.lines.fill(Line::MASKED);
        self.waiting.clear();
        self.written.fill(false);
        self.table.clear();
        self.counters = Counters::default();
    }

    fn status(&self) -> u32 {
        let resetting = self.resetting && !self.troubles.stuck_reset;
        READY | if resetting { RESETTING } else { 0 } | if self.troubles.fatal { FATAL } else { 0 }
    }

    fn register(&self, offset: u32) -> Option<u32> {
        Some(match offset {
            0x00 => 2 << 8,
            0x04 => 1 << 24 | 10 << 16 | 1,
            // A reset takes 300 ms at most, a command 500.
            0x08 => 1 | 3 << 1 | self.settings.dma_bits << 8 | 5 << 16,
            0x0c => 0,
            0x18 => self.admin.command_caps,
            0x28 => self.admin.reply_caps,
            0x34 => self.events.caps,
            0x58 => self.status(),
            _ => return None,
        })
    }

    /// The driver asks for a register through memory.
    fn read_through_memory(&mut self, bus: &mut Bus, value: u32) {
        let (sequence, offset) = (value as u16, value >> 16);
        if self.answers == 0 {
            return bus.broken("a register is asked for, and no place for its value was given");
        }
        let Some(value) = self.register(offset) else {
            return bus.fault(Fault::Access { bar: 0, offset: offset.into(), size: 4, write: false });
        };
        if self.troubles.silent_reads {
            return;
        }
        bus.dma_write(self.answers + 4, &value.to_le_bytes());
        bus.dma_write(self.answers + 2, &(offset as u16).to_le_bytes());
        bus.dma_write(self.answers, &sequence.to_le_bytes());
    }

    fn control(&mut self, bus: &mut Bus, value: u32) {
        if value & 0x00ff_fff0 != 0 {
            bus.broken(format!("reserved bits of DEV_CTL: {value:#x}"));
        }
        if self.troubles.stuck_reset {
            return;
        }
        match (value & 1 != 0, self.resetting) {
            (true, false) => {
                self.forget();
                self.resets.push((value >> 28) as u8);
                self.resetting = true;
                self.troubles.fatal = false;
            }
            (false, true) => self.resetting = false,
            _ => bus.broken(format!("DEV_CTL {value:#x} out of turn")),
        }
    }

    fn write_register(&mut self, bus: &mut Bus, offset: u32, value: u32) {
        let low = |address: &mut u64| *address = *address & !0xffff_ffff | u64::from(value);
        let high = |address: &mut u64| *address = *address & 0xffff_ffff | u64::from(value) << 32;
        let is_late = offset == 0x40 && self.events.are_late;
        if self.resetting && !is_late && !matches!(offset, 0x54 | 0x5c | 0x60 | 0x64) {
            bus.broken(format!("register {offset:#x} is written in a reset"));
        }
        match offset {
            0x10 => low(&mut self.admin.commands),
            0x14 => high(&mut self.admin.commands),
            0x18 => self.admin.command_caps = value,
            0x20 => low(&mut self.admin.replies),
            0x24 => high(&mut self.admin.replies),
            0x28 => self.admin.reply_caps = value,
            0x2c => self.commands(bus, value),
            0x34 => self.events.caps = value,
            0x38 => low(&mut self.events.base),
            0x3c => high(&mut self.events.base),
            0x40 => self.events_read(bus, value),
            0x4c => self.masked = value & 1 != 0,
            0x54 => self.control(bus, value),
            0x5c => self.read_through_memory(bus, value),
            0x60 => low(&mut self.answers),
            0x64 => high(&mut self.answers),
            _ if offset >= DOORBELL => self.write_queue_register(bus, offset, value),
            _ => bus.fault(Fault::Access { bar: 0, offset: offset.into(), size: 4, write: true }),
        }
    }

    fn write_queue_register(&mut self, bus: &mut Bus, offset: u32, value: u32) {
        let number = ((offset & 0xfff) / 4) as usize;
        let is_completions = self.completions.get(number).is_some_and(Option::is_some);
        let is_vector = self.completions.iter().flatten().any(|queue| queue.vector == Some(number as u16));
        match offset & 0xf000 {
            DOORBELL => match self.submissions.get(number).and_then(Option::as_ref) {
                Some(queue) if queue.direction == 2 => self.take_buffers(bus, number, value),
                _ => self.transmit(bus, number, value),
            },
            // All queues of a vector have this register.
            UNMASK if is_vector => {
                if value >> 30 & 1 != 0 && self.wrong != Some(Wrong::NoInterrupt) {
                    self.lines[number].unmask(bus, number as u16);
                }
            }
            NUMA if is_completions => {}
            _ => bus.fault(Fault::Access { bar: 0, offset: offset.into(), size: 4, write: true }),
        }
    }

    /// Writes a completion, and interrupts for it.
    fn write_to(&mut self, bus: &mut Bus, number: usize, entry: Vec<u8>) {
        let Some(queue) = self.completions.get_mut(number).and_then(Option::as_mut) else { return };
        queue.write(bus, entry, self.wrong);
        if let Some(vector) = queue.vector.filter(|_| self.wrong != Some(Wrong::NoInterrupt)) {
            self.lines[usize::from(vector)].happened(bus, vector);
        }
    }
}

impl Model for Ena {
    fn config(&self) -> Config {
        let settings = &self.settings;
        let bars = [REGISTER_BAR, 0, self.memory_bytes(), 0, 0x1000, 0];
        Config::ethernet((VENDOR, settings.device), bars, settings.pairs + 1, 4, 0)
            .revision(u8::from(settings.direct_reads))
            .prefetchable(2)
    }

    fn dma_bits(&self) -> u32 {
        self.settings.dma_bits
    }

    fn read(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size) -> u64 {
        let register = self.register(offset as u32).filter(|_| bar == 0 && size == Size::Word);
        match register.filter(|_| self.settings.direct_reads) {
            Some(value) => value.into(),
            None => {
                bus.fault(Fault::Access { bar, offset, size: size.bytes(), write: false });
                u64::MAX
            }
        }
    }

    fn write(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size, value: u64) {
        match (bar, size) {
            (0, Size::Word) => self.write_register(bus, offset as u32, value as u32),
            (2, Size::Double) if self.layout.is_some() => self.push(bus, offset, value),
            _ => bus.fault(Fault::Access { bar, offset, size: size.bytes(), write: true }),
        }
    }

    fn poll(&mut self, bus: &mut Bus) {
        if !self.resetting {
            self.live(bus);
        }
        self.receive(bus);
    }

    fn reset(&mut self, _bus: &mut Bus) {
        self.forget();
        self.resetting = false;
    }
}

/// Two of them, for a wire between: of a generation (`first`, `nitro`, `newest`; the last where nothing is said), with
/// `all-offloads`, `pairs=N` queues each way, and at most `keep-alive=MS` between two keep-alives.
pub fn pair(words: &[&str]) -> Option<[Ena; 2]> {
    let mut settings = Settings::newest();
    for word in words {
        settings = match (*word, word.split_once('=')) {
            ("first", _) => Settings::first(),
            ("nitro", _) => Settings::nitro(),
            ("newest", _) => Settings::newest(),
            ("all-offloads", _) => Settings { transmit_offloads: 0xff, ..settings },
            (_, Some(("pairs", count))) => Settings { pairs: count.parse().ok()?, ..settings },
            (_, Some(("keep-alive", limit))) => {
                Settings { hints: [0, limit.parse().ok()?, 0, 0], ..settings }
            }
            _ => return None,
        };
    }
    Some([1, 2].map(|last| Ena::new(Settings { mac: [0x52, 0x54, 0, 0, 0, last], ..settings.clone() })))
}
