//! A VF of an NFP with its firmware: the control BAR, the queue controller, rings in the formats of NFD3 and of NFDk.
//!
//! There is no public data sheet: what it does is what Linux's and DPDK's drivers count on, and what their headers
//! (`nfp_net_ctrl.h`, `nfd3.h`, `nfdk.h`) name. It is stricter where these leave no doubt: a bit that was not offered, a ring
//! moved while it is on, a write pointer that goes beyond its ring, pieces of a frame that disagree.

mod control;
mod receive;
mod transmit;
mod words;

use crate::bus::Bus;
use crate::config::Config;
use crate::model::{Model, Size};
use control::Enabled;
use words::Words;

pub use control::{
    CTAG_FILTER, ENABLE, GATHER, L2BC, L2MC, LIVE_ADDR, LSO, LSO2, PROMISC, RINGCFG, RSS, RSS2, RXCSUM,
    TXCSUM, TXRWB,
};

/// Bytes of one queue of the queue controller, and queues of it.
const QUEUE_SIZE: u64 = 0x800;
const QUEUES: u64 = 256;
/// Queues from one ring to the next.
const STRIDE: u64 = 4;
/// The first transmit ring's queue and the first receive ring's: not 0, so that a driver that does not ask is seen.
const FIRST_TX: u64 = 8;
const FIRST_RX: u64 = 10;
/// Interrupts: link changes, exceptions, and one a ring.
const VECTORS: u16 = 10;

/// The format of transmit descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// 16 bytes.
    Nfd3,
    /// 8 bytes, several a frame.
    Nfdk,
}

/// What firmware there is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Device id: 0x6003 or 0x3803.
    pub device: u16,
    /// Transmit descriptors.
    pub path: Path,
    /// Major number of the interface.
    pub major: u8,
    /// What it offers.
    pub cap: u32,
    /// More of that.
    pub cap_word1: u32,
    /// Rings each way.
    pub rings: u32,
    /// Largest MTU.
    pub mtu: u32,
    /// Where frames start in their buffers; 0 for right behind the metadata.
    pub rx_offset: u32,
    /// The address; none for zeros.
    pub mac: Option<[u8; 6]>,
    /// Words from `TLV_BASE` on.
    pub structures: Vec<u32>,
    /// The firmware takes no other address.
    pub mac_is_fixed: bool,
}

/// All that a driver here uses.
pub const USUAL: u32 = ENABLE
    | PROMISC
    | L2BC
    | L2MC
    | RXCSUM
    | TXCSUM
    | GATHER
    | CTAG_FILTER
    | RINGCFG
    | LSO2
    | RSS2
    | LIVE_ADDR;

impl Default for Settings {
    /// NFD3 on an NFP-6000.
    fn default() -> Self {
        Self {
            device: 0x6003,
            path: Path::Nfd3,
            major: 4,
            cap: USUAL,
            cap_word1: 0,
            rings: 4,
            mtu: 9216,
            rx_offset: 0,
            mac: Some([0x52, 0x54, 0, 0, 0, 0x77]),
            structures: Vec::new(),
            mac_is_fixed: false,
        }
    }
}

impl Settings {
    /// NFDk on an NFP-3800, with structures, and read pointers in memory.
    pub fn nfdk() -> Self {
        Self {
            device: 0x3803,
            path: Path::Nfdk,
            major: 5,
            cap: USUAL | TXRWB,
            rx_offset: 32,
            // The clock, something unknown, the mailbox elsewhere, the end.
            structures: [&[3 << 16 | 4, 633, 99 << 16 | 8, 1, 2, 4 << 16 | 32][..], &[0; 8], &[2 << 16]]
                .concat(),
            ..Self::default()
        }
    }
}

/// Ways to be wrong that a driver must survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Read pointers are not written to memory.
    NoWriteBack,
    /// The read pointer of a transmit ring is where nothing has been filled.
    ReadPointerBeyond,
    /// It reads descriptors and does not move its read pointer.
    ReadPointerStuck,
    /// Received frames are longer than their buffers.
    TooLong,
    /// Received frames are shorter than their metadata.
    TooShort,
    /// There is more metadata than there is room for.
    TooMuchMetadata,
    /// Metadata names more fields than it has.
    MetadataLies,
    /// A tag is said to be taken off.
    Stripped,
    /// Frames are written and their descriptors are not.
    NotDone,
    /// No interrupts.
    NoInterrupt,
    /// The error bit comes with every answer.
    ErrorBit,
    /// The update word is not cleared.
    NoAnswer,
    /// A bad checksum is said to be right, with nothing said to be checked.
    RightUnchecked,
}

/// The model.
#[derive(Debug)]
pub struct Nfp {
    /// What firmware it has.
    pub settings: Settings,
    /// How it is wrong.
    pub wrong: Option<Wrong>,
    /// The firmware does nothing: it does not answer and it does not send.
    pub is_dead: bool,
    /// It reads no transmit descriptors for now.
    pub holds: bool,
    words: Words,
    link: bool,
    /// Present while it is on.
    enabled: Option<Enabled>,
    /// VLANs that pass the filter.
    vlans: Vec<u16>,
    /// Interrupts that came while they were masked.
    pending: [bool; VECTORS as usize],
    /// The address that is filtered by.
    mac: [u8; 6],
    /// Updates taken over, and frames that were not for this station.
    pub updates: u64,
    /// Frames that a filter dropped.
    pub filtered: u64,
}

impl Nfp {
    /// With this firmware.
    pub fn new(settings: Settings) -> Self {
        let mut model = Self {
            settings,
            wrong: None,
            is_dead: false,
            holds: false,
            words: Words::new(),
            link: true,
            enabled: None,
            vlans: Vec::new(),
            pending: [false; VECTORS as usize],
            mac: [0; 6],
            updates: 0,
            filtered: 0,
        };
        model.load_firmware();
        model
    }

    /// Wrong in this way.
    pub fn wrong(self, wrong: Wrong) -> Self {
        Self { wrong: Some(wrong), ..self }
    }

    fn is(&self, wrong: Wrong) -> bool {
        self.wrong == Some(wrong)
    }

    /// The link goes or comes.
    pub fn set_link(&mut self, bus: &mut Bus, up: bool) {
        self.link = up;
        self.show_link();
        let vector = self.words.get8(control::LSC);
        if vector != 0xff {
            self.interrupt(bus, vector, control::ICR_LSC);
        }
    }

    /// The PF loads the firmware anew: all that the driver has written is gone, and nothing is on.
    pub fn reload(&mut self) {
        self.load_firmware();
    }

    /// The PF gives the VF another address.
    pub fn assign_mac(&mut self, mac: [u8; 6]) {
        self.settings.mac = Some(mac);
        self.mac = mac;
        self.words.put_mac(mac);
    }

    /// What stands in the word at `offset` of the control BAR.
    pub fn word(&self, offset: u64) -> u32 {
        self.words.get32(offset)
    }

    /// VLANs whose frames pass.
    pub fn vlans(&self) -> &[u16] {
        &self.vlans
    }

    /// Does what these words of a person say; whether they are known.
    pub fn command(&mut self, bus: &mut Bus, words: &str) -> bool {
        match words {
            "link down" => self.set_link(bus, false),
            "link up" => self.set_link(bus, true),
            "reload" => self.reload(),
            "lose interrupts" => bus.lose_interrupts(true),
            "keep interrupts" => bus.lose_interrupts(false),
            _ => return false,
        }
        true
    }

    /// Raises an interrupt unless its cause register masks it; then it comes when that is cleared.
    fn interrupt(&mut self, bus: &mut Bus, vector: u8, cause: u8) {
        let register = control::ICR + u64::from(vector);
        if self.is(Wrong::NoInterrupt) {
            return;
        }
        match self.pending.get_mut(usize::from(vector)) {
            None => bus.broken(format!("there is no interrupt {vector}")),
            Some(pending) if self.words.get8(register) != 0 => *pending = true,
            Some(_) => {
                self.words.put8(register, cause);
                bus.raise(u16::from(vector));
            }
        }
    }

    fn unmask(&mut self, bus: &mut Bus, vector: u64) {
        if let Some(pending) = self.pending.get_mut(vector as usize)
            && std::mem::take(pending)
        {
            self.interrupt(bus, vector as u8, control::ICR_RXTX);
        }
    }

    /// The queue at `offset` of its BAR, and the register of it; `None` where this VF has none.
    fn queue(&self, offset: u64) -> Option<(Queue, u64)> {
        let (number, register) = (offset / QUEUE_SIZE, offset % QUEUE_SIZE);
        let rings = u64::from(self.settings.rings);
        let ring_of = |first: u64| {
            let distance = number.checked_sub(first)?;
            (distance.is_multiple_of(STRIDE) && distance / STRIDE < rings)
                .then_some((distance / STRIDE) as usize)
        };
        let queue = match (ring_of(FIRST_TX), ring_of(FIRST_RX)) {
            (Some(ring), _) => Queue::Transmit(ring),
            (_, Some(ring)) => Queue::FreeList(ring),
            _ if number == FIRST_TX + 1 => Queue::Config,
            _ => return None,
        };
        Some((queue, register))
    }
}

/// What a queue of the controller is for.
#[derive(Clone, Copy, Debug)]
enum Queue {
    Transmit(usize),
    FreeList(usize),
    Config,
}

impl Model for Nfp {
    fn config(&self) -> Config {
        let bars = [0x8000, 0, QUEUES * QUEUE_SIZE, 0, 0x4000, 0];
        Config::ethernet((0x19ee, self.settings.device), bars, VECTORS, 4, 0)
    }

    fn dma_bits(&self) -> u32 {
        match (self.settings.path, self.settings.device) {
            (Path::Nfdk, 0x3803) => 48,
            _ => 40,
        }
    }

    fn read(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size) -> u64 {
        match bar {
            0 => self.words.get(offset, size.bytes()),
            2 => {
                let pointers = match self.queue(offset) {
                    Some((Queue::Transmit(ring), register)) => Some((
                        self.enabled
                            .as_ref()
                            .and_then(|on| on.transmit.get(ring)?.as_ref())
                            .map(transmit::Ring::pointers),
                        register,
                    )),
                    Some((Queue::FreeList(ring), register)) => Some((
                        self.enabled
                            .as_ref()
                            .and_then(|on| on.receive.get(ring)?.as_ref())
                            .map(receive::Ring::pointers),
                        register,
                    )),
                    _ => None,
                };
                match (pointers, size) {
                    (Some((pointers, 8)), Size::Word) => u64::from(pointers.unwrap_or_default().0),
                    (Some((pointers, 12)), Size::Word) => u64::from(pointers.unwrap_or_default().1),
                    _ => {
                        bus.broken(format!("{size:?} at {offset:#x} of the queue controller is read"));
                        0
                    }
                }
            }
            _ => 0,
        }
    }

    fn write(&mut self, bus: &mut Bus, bar: u8, offset: u64, size: Size, value: u64) {
        match (bar, self.queue(offset)) {
            (0, _) => self.write_word(bus, offset, size, value),
            (2, Some((queue, 4))) if size == Size::Word && value > 0 => match queue {
                Queue::Config if value == 1 => self.take_over(bus),
                Queue::Config => bus.broken(format!("the config queue is told {value} changes")),
                Queue::Transmit(ring) => self.fill_transmit(bus, ring, value as u32),
                Queue::FreeList(ring) => self.fill_free_list(bus, ring, value as u32),
            },
            (2, _) => bus.broken(format!("{value:#x} is written to {offset:#x} of the queue controller")),
            _ => {}
        }
    }

    fn poll(&mut self, bus: &mut Bus) {
        self.send(bus);
        self.receive(bus);
    }

    fn reset(&mut self, _bus: &mut Bus) {
        self.load_firmware();
    }
}

/// Two models with the firmware that these words describe: `nfd3` or `nfdk`, `rings=N`, `mtu=N`, `offset=N`, `3800`.
pub fn pair(words: &[&str]) -> Option<[Nfp; 2]> {
    let mut settings = Settings { rings: 2, ..Settings::default() };
    for word in words {
        match word.split_once('=') {
            None if *word == "nfd3" => {}
            None if *word == "nfdk" => settings = Settings { rings: settings.rings, ..Settings::nfdk() },
            None if *word == "write-back" => settings.cap |= TXRWB,
            Some(("rings", count)) => settings.rings = count.parse().ok()?,
            Some(("mtu", mtu)) => settings.mtu = mtu.parse().ok()?,
            Some(("offset", offset)) => settings.rx_offset = offset.parse().ok()?,
            Some(("device", device)) => settings.device = u16::from_str_radix(device, 16).ok()?,
            _ => return None,
        }
    }
    Some([1, 2].map(|last| Nfp::new(Settings { mac: Some([0x52, 0x54, 0, 0, 0, last]), ..settings.clone() })))
}
