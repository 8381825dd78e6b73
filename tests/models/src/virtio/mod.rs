//! A virtio-net function on PCI, as virtio 1.3 describes it: registers, split and packed rings, control queue, offloads.
//!
//! ```text
//!   mod       registers, status, features        queue    rings, the device's side
//!   net       frames out and in, control queue   wrong    how it can be made wrong, and how devices differ
//! ```
//!
//! It shares no code with our driver. What it is stricter about than QEMU's: status and queue registers have an order;
//! descriptors are looked at again when they come back; notifications must be due, in range and complete.

pub mod features;
mod net;
mod queue;
mod wrong;

use std::collections::{BTreeSet, VecDeque};

pub use features::Taken;
pub use queue::{NO_VECTOR, Queue};
pub use wrong::{Options, Wrong};

use crate::bus::Bus;
use crate::config::Config;
use crate::model::{Model, Size};
use features::*;
use queue::Chain;

/// BAR of all structures, and where they are in it.
const BAR: u8 = 4;
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MULTIPLIER: u32 = 4;

/// Status bits (2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;
const FAILED: u8 = 128;

/// What the driver has told the device through the control queue, and how often.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Frames for all stations.
    pub promiscuous: bool,
    /// Frames for all groups.
    pub all_multicast: bool,
    /// Stations and groups whose frames arrive, too.
    pub listed: Vec<[u8; 6]>,
    /// VLANs that pass.
    pub vlans: BTreeSet<u16>,
    /// Queue pairs in use.
    pub pairs: u16,
    /// Table by which flows are spread, with its key and the kinds that are hashed.
    pub table: Vec<u16>,
    /// Key of the hash.
    pub key: Vec<u8>,
    /// Announcements that were acknowledged.
    pub announced: u32,
}

/// A virtio-net function.
#[derive(Debug)]
pub struct VirtioNet {
    options: Options,
    /// Its address now.
    pub mac: [u8; 6],
    /// What the driver took.
    pub taken: Taken,
    /// What it was told.
    pub told: Told,
    queues: Vec<Queue>,
    status: u8,
    selects: [u32; 2],
    generation: u8,
    config_vector: u16,
    queue_select: u16,
    link: bool,
    announce: bool,
    /// The control queue does not answer.
    pub silent: bool,
    /// Frames that are sent stay in the ring.
    pub frozen: bool,
    /// Frames sent whose buffers have not come back.
    held: VecDeque<(usize, Chain)>,
    resets: u64,
}

impl VirtioNet {
    /// A function that is like this.
    pub fn new(options: Options) -> Self {
        Self {
            mac: options.mac,
            taken: Taken::default(),
            told: Told::default(),
            queues: Vec::new(),
            status: 0,
            selects: [0; 2],
            generation: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            link: true,
            announce: false,
            silent: false,
            frozen: false,
            held: VecDeque::new(),
            resets: 0,
            options,
        }
    }

    /// How it is, to be changed between two resets.
    pub fn options(&mut self) -> &mut Options {
        &mut self.options
    }

    /// A queue; 2n receives and 2n+1 sends.
    pub fn queue(&self, number: usize) -> Option<&Queue> {
        self.queues.get(number)
    }

    /// Does something to it, as a word says; whether it is known.
    pub fn command(&mut self, bus: &mut Bus, words: &str) -> bool {
        match words {
            "link down" => self.set_link(bus, false),
            "link up" => self.set_link(bus, true),
            "fail" => self.fail(bus),
            "announce" => self.ask_for_announcement(bus),
            "lose interrupts" => bus.lose_interrupts(true),
            "keep interrupts" => bus.lose_interrupts(false),
            _ => return false,
        }
        true
    }

    /// Whether the driver uses it.
    pub fn is_running(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// The carrier comes or goes.
    pub fn set_link(&mut self, bus: &mut Bus, up: bool) {
        self.link = up;
        self.configuration_changed(bus);
    }

    /// The device wants its link announced.
    pub fn ask_for_announcement(&mut self, bus: &mut Bus) {
        self.announce = true;
        self.configuration_changed(bus);
    }

    /// Its address is another.
    pub fn set_mac(&mut self, bus: &mut Bus, mac: [u8; 6]) {
        self.mac = mac;
        self.configuration_changed(bus);
    }

    /// The device got into a state that it does not come out of (2.1.2).
    pub fn fail(&mut self, bus: &mut Bus) {
        self.status |= NEEDS_RESET;
        self.configuration_changed(bus);
    }

    /// Whether its link is to be announced.
    pub fn wants_announcement(&self) -> bool {
        self.announce
    }

    /// The device goes on with what is in its rings.
    pub fn go_on(&mut self, bus: &mut Bus) {
        for number in 0..self.queues.len() {
            if self.queues[number].enabled {
                self.work(bus, number);
            }
        }
    }

    fn configuration_changed(&mut self, bus: &mut Bus) {
        self.generation = self.generation.wrapping_add(1);
        if self.status & DRIVER_OK != 0 && self.config_vector != NO_VECTOR {
            bus.raise(self.config_vector);
        }
    }

    fn control_queue(&self) -> usize {
        if self.taken.has(MQ) || self.taken.has(RSS) { 2 * usize::from(self.options.pairs) } else { 2 }
    }

    fn renew(&mut self) {
        let count = 2 * usize::from(self.options.pairs) + 1;
        self.queues = (0..count).map(|_| Queue::new(self.options.queue_size)).collect();
        self.held.clear();
        self.taken = Taken::default();
        self.told = Told { promiscuous: !self.options.filters, pairs: 1, ..Told::default() };
        self.status = 0;
        self.selects = [0; 2];
        self.config_vector = NO_VECTOR;
        self.queue_select = 0;
        self.announce = false;
        self.mac = self.options.mac;
        self.resets += 1;
    }

    fn selected(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    fn write_status(&mut self, bus: &mut Bus, value: u8) {
        if value == 0 {
            let endless = self.options.wrong == Some(Wrong::EndlessReset) && self.status & DRIVER_OK != 0;
            if endless {
                self.status = DRIVER_OK | FEATURES_OK;
                return;
            }
            return self.renew();
        }
        if value & self.status & !NEEDS_RESET != self.status & !NEEDS_RESET {
            bus.broken(format!("status {value:#x} takes back some of {:#x}", self.status));
        }
        for (bit, before) in [(DRIVER, ACKNOWLEDGE), (FEATURES_OK, DRIVER), (DRIVER_OK, FEATURES_OK)] {
            if value & bit != 0 && self.status & bit == 0 && self.status & before == 0 {
                bus.broken(format!("status {value:#x} follows on {:#x}", self.status));
            }
        }
        let mut value =
            value & (ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED) | self.status & NEEDS_RESET;
        if value & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            let fault = self.taken.fault(self.options.offered);
            if fault.is_some() || self.options.wrong == Some(Wrong::FeaturesRefused) {
                value &= !FEATURES_OK;
            }
            if let Some(fault) = fault {
                bus.broken(fault);
            }
        }
        let begins = value & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
        self.status = value;
        if begins {
            if !self.queues.iter().take(2).all(|queue| queue.enabled) {
                bus.broken("it is to run without its first two queues");
            }
            if self.taken.has(CTRL_VQ) && !self.queues[self.control_queue()].enabled {
                bus.broken("it is to run without its control queue");
            }
            for queue in self.queues.iter_mut().filter(|queue| queue.enabled) {
                queue.begin(bus);
            }
        }
    }

    fn read_common(&mut self, bus: &mut Bus, offset: u64, size: Size) -> u64 {
        let wrong_size = |bus: &mut Bus, wanted: Size| {
            if size != wanted {
                bus.broken(format!("the common configuration is read at {offset:#x} by {size:?}"));
            }
        };
        wrong_size(bus, common_size(offset));
        let selected = self.queue_select;
        let queue = self.queues.get(usize::from(selected));
        match offset {
            0x00 => self.selects[0].into(),
            0x04 => match self.selects[0] {
                0 => self.options.offered & 0xffff_ffff,
                1 => self.options.offered >> 32,
                _ => 0,
            },
            0x08 => self.selects[1].into(),
            0x0c => match self.selects[1] {
                0 => self.taken.0 & 0xffff_ffff,
                1 => self.taken.0 >> 32,
                _ => 0,
            },
            0x10 => self.config_vector.into(),
            0x12 => self.queues.len() as u64,
            0x14 => self.status.into(),
            0x15 => self.generation.into(),
            0x16 => selected.into(),
            0x18 => queue.map_or(0, |queue| queue.size).into(),
            0x1a => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            0x1c => queue.is_some_and(|queue| queue.enabled).into(),
            0x1e => selected.into(),
            0x20..0x38 => queue.map_or(0, |queue| {
                queue.areas[(offset - 0x20) as usize / 8] >> (8 * (offset % 8)) & 0xffff_ffff
            }),
            _ => 0,
        }
    }

    fn write_common(&mut self, bus: &mut Bus, offset: u64, size: Size, value: u64) {
        if size != common_size(offset) {
            bus.broken(format!("the common configuration is written at {offset:#x} by {size:?}"));
        }
        if (0x18..0x38).contains(&offset) {
            // Linux's driver lets go of its vectors after the reset that took them from the device already.
            let lets_go = offset == 0x1a && value == u64::from(NO_VECTOR) && self.status == 0;
            if !lets_go && (self.status & DRIVER_OK != 0 || self.status & FEATURES_OK == 0) {
                bus.broken(format!("a queue's register {offset:#x} is written in status {:#x}", self.status));
            }
            if self.selected().is_none_or(|queue| queue.enabled) {
                return bus.broken(format!(
                    "register {offset:#x} of queue {}, which is absent or enabled, is written",
                    self.queue_select
                ));
            }
        }
        let (taken, most, vectors) = (self.taken, self.options.queue_size, self.options.vectors());
        let (wrong, batches, polls) = (self.options.wrong, self.options.batches, self.options.polls);
        let vector = if value < u64::from(vectors) { value as u16 } else { NO_VECTOR };
        match offset {
            0x00 => self.selects[0] = value as u32,
            0x08 => self.selects[1] = value as u32,
            0x0c if self.status & FEATURES_OK != 0 => {
                bus.broken("features are written after they were settled")
            }
            0x0c => match self.selects[1] {
                0 => self.taken.0 = self.taken.0 & !0xffff_ffff | value,
                1 => self.taken.0 = self.taken.0 & 0xffff_ffff | value << 32,
                _ if value != 0 => bus.broken("features beyond 63"),
                _ => {}
            },
            0x10 => self.config_vector = vector,
            0x14 => self.write_status(bus, value as u8),
            0x16 => self.queue_select = value as u16,
            _ => {
                let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
                match offset {
                    0x18 => queue.size = value as u16,
                    0x1a => queue.vector = vector,
                    0x1c => {
                        queue.taken = taken;
                        (queue.wrong, queue.batches, queue.polls) = (wrong, batches, polls);
                        if value != 1 {
                            bus.broken(format!("a queue is enabled with {value}"));
                        }
                        if let Some(fault) = queue.fault(most) {
                            return bus.broken(fault);
                        }
                        queue.enabled = true;
                    }
                    0x20..0x38 => {
                        let (area, shift) = ((offset - 0x20) as usize / 8, 8 * (offset % 8));
                        let mask = 0xffff_ffffu64 << shift;
                        queue.areas[area] = queue.areas[area] & !mask | value << shift;
                    }
                    _ => bus.broken(format!("register {offset:#x} cannot be written")),
                }
            }
        }
    }

    fn read_device(&mut self, bus: &mut Bus, offset: u64, size: Size) -> u64 {
        if self.status & DRIVER == 0 {
            bus.broken("the device's configuration is read before there is a driver");
        }
        let mut bytes = [0u8; 28];
        bytes[..6].copy_from_slice(&self.mac);
        bytes[6] = u8::from(self.link) | u8::from(self.announce) << 1;
        bytes[8..10].copy_from_slice(&self.options.pairs.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.options.mtu.to_le_bytes());
        bytes[12..16].copy_from_slice(&25_000u32.to_le_bytes());
        bytes[16] = 1;
        bytes[17] = 40;
        bytes[18..20].copy_from_slice(&128u16.to_le_bytes());
        bytes[20..24].copy_from_slice(&0x3fu32.to_le_bytes());
        let wanted = match offset {
            0..6 | 16 | 17 => Size::Byte,
            6..12 | 18 => Size::Half,
            _ => Size::Word,
        };
        if size != wanted {
            bus.broken(format!("the device's configuration is read at {offset:#x} by {size:?}"));
        }
        let at = offset as usize;
        (0..size.bytes()).map(|n| u64::from(bytes.get(at + n).copied().unwrap_or(0)) << (8 * n)).sum()
    }

    fn notified(&mut self, bus: &mut Bus, offset: u64, size: Size, value: u64) {
        let number = (offset / u64::from(MULTIPLIER)) as usize;
        let data = self.taken.has(NOTIFICATION_DATA);
        if size != (if data { Size::Word } else { Size::Half })
            || !offset.is_multiple_of(u64::from(MULTIPLIER))
        {
            bus.broken(format!("a notification at {offset:#x} by {size:?}"));
        }
        if value & 0xffff != number as u64 {
            bus.broken(format!("queue {number} is notified of queue {}", value & 0xffff));
        }
        if self.status & DRIVER_OK == 0 {
            return bus.broken("a notification before the driver is ready");
        }
        if !self.is_running() {
            return;
        }
        let Some(queue) = self.queues.get_mut(number).filter(|queue| queue.enabled) else {
            return bus.broken(format!("queue {number} is notified, which is not there"));
        };
        if queue.polls {
            bus.broken("a notification that nobody wants");
        }
        queue.notified += 1;
        queue.fetch(bus);
        if data && (value >> 16) as u16 != queue.position() {
            bus.broken(format!("a notification of {:#x} at {:#x}", value >> 16, queue.position()));
        }
        self.work(bus, number);
    }

    fn work(&mut self, bus: &mut Bus, number: usize) {
        if number == self.control_queue() && self.taken.has(CTRL_VQ) {
            self.obey(bus, number);
        } else if number % 2 == 1 {
            self.send(bus, number);
        }
    }
}

/// Two functions with these options, in words: `packed`, `event_idx`, `in_order`, `pairs=2`; `None` where one is unknown.
/// Their addresses end in 1 and 2.
pub fn pair(words: &[&str]) -> Option<[VirtioNet; 2]> {
    let mut options = Options { pairs: 1, ..Options::split() };
    for word in words {
        options = match word.split_once('=') {
            None if *word == "packed" => options.with(RING_PACKED),
            None if *word == "event_idx" => options.with(EVENT_IDX),
            None if *word == "in_order" => options.with(IN_ORDER),
            Some(("pairs", count)) => Options { pairs: count.parse().ok()?, ..options },
            _ => return None,
        };
    }
    Some([1, 2].map(|last| VirtioNet::new(Options { mac: [0x52, 0x54, 0, 0, 0, last], ..options.clone() })))
}

/// How wide the register at `offset` is (4.1.4.3); 64-bit ones are accessed by halves (4.1.3.1).
fn common_size(offset: u64) -> Size {
    match offset {
        0x14 | 0x15 => Size::Byte,
        0x10 | 0x12 | 0x16..0x20 => Size::Half,
        _ => Size::Word,
    }
}

/// A capability for one of the structures.
fn capability(kind: u8, offset: u64, len: u32, more: &[u8]) -> Vec<u8> {
    let mut bytes = vec![9, 0, 16 + more.len() as u8, kind, BAR, 0, 0, 0];
    bytes.extend((offset as u32).to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(more);
    bytes
}

impl Model for VirtioNet {
    fn config(&self) -> Config {
        let vectors = self.options.vectors();
        Config::ethernet((0x1af4, 0x1041), [0x1000, 0, 0, 0, 0x4000, 0], vectors, 0, 0)
            .revision(1)
            .capability(0x40, &capability(1, COMMON, 0x38, &[]))
            .capability(0x50, &capability(3, ISR, 1, &[]))
            .capability(0x60, &capability(4, DEVICE, 28, &[]))
            .capability(0xdc, &capability(2, NOTIFY, 0x1000, &MULTIPLIER.to_le_bytes()))
    }

    fn read(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size) -> u64 {
        match offset {
            _ if bar != BAR => 0,
            COMMON..0x38 => self.read_common(bus, offset, size),
            ISR => 0,
            DEVICE..0x201c => self.read_device(bus, offset - DEVICE, size),
            _ => {
                bus.broken(format!("a read at {offset:#x}, where there is nothing"));
                0
            }
        }
    }

    fn write(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size, value: u64) {
        match offset {
            _ if bar != BAR => {}
            COMMON..0x38 => self.write_common(bus, offset, size, value),
            NOTIFY.. => self.notified(bus, offset - NOTIFY, size, value),
            _ => bus.broken(format!("a write at {offset:#x}, where there is nothing to write")),
        }
    }

    fn poll(&mut self, bus: &mut Bus) {
        if self.is_running() && self.options.polls {
            for number in 0..self.queues.len() {
                if self.queues[number].enabled {
                    self.queues[number].fetch(bus);
                    self.work(bus, number);
                }
            }
        }
        self.receive(bus);
    }

    fn reset(&mut self, _bus: &mut Bus) {
        self.renew();
    }
}

#[cfg(test)]
mod tests;
