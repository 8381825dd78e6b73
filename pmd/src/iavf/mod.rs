//! `iavf`: VFs of Intel's 700 and 800 series (8086:1889, and 8086:154c of XL710, X710 and XXV710), up to 16 queue pairs.
//!
//! Proven on rung L2 of the ladder: the driver works against our model of the device (`tests/models/tests/iavf.rs`: traffic,
//! checksums, cutting of TCP, VLANs, several queues, both formats of receive descriptors, faults and devices that are wrong
//! on purpose), and Linux's own driver accepts that model (`tests/kernel/iavf.sh`: the 800 series). It has never been on
//! silicon.
//!
//! ```text
//!   admin queue (admin) ──▶ questions and answers (channel) ──▶ virtchnl ──▶ what is agreed (handshake)
//!   rings (rx, tx, descriptor) ── tails and interrupts (registers)
//! ```
//!
//! Receive descriptors have 32 bytes, legacy or flexible as the PF offers. Frames that are sent are copied once. What it
//! does not do: zero-copy, VLAN tags in descriptors, flow rules, more than 16 queue pairs, request of more queues.
//!
//! Linux's PFs grant promiscuous mode to VFs that they do not trust, and then do nothing (`i40e_virtchnl_pf.c`,
//! `ice_virtchnl.c`: unprivileged VFs). So a VF is taken to filter by its address even where the PF grants it all.

mod admin;
mod channel;
mod descriptor;
mod handshake;
mod registers;
mod rx;
mod statistics;
mod told;
mod tx;
mod virtchnl;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use admin::Patience;
pub use rx::IavfReceive;
pub use tx::IavfTransmit;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues, Receive, Transmit};
use crate::intel::tag::TAG;
use crate::mac::MacAddress;
use crate::memory::{BUFFER_SIZE, BufferPool, DmaMap, DmaMemory, DmaSlice, Kept};
use crate::pci::{Ids, PciFunction};
use crate::registers::{ALL_ONES, Caching, Registers};
use crate::vf::{Agreed, Bell, Place, Poke, Rung, Vf, VfDriver, Wishes};
use admin::{AdminError, AdminQueue};
use channel::{Channel, ChannelError};
use handshake::{Grant, Request};
use registers::*;
use rx::{ReceiveCounters, ReceiveMemory};
use statistics::Statistics;
use tx::TransmitCounters;
use virtchnl::{Event, Pair, capability, verb};

/// Devices that this driver knows.
pub const IDS: [Ids; 2] = [Ids { vendor: 0x8086, device: 0x1889 }, Ids { vendor: 0x8086, device: 0x154c }];

/// Bytes of a pair's rings together with its buffers: three huge pages.
const MEMORY: usize = 6 << 20;
const RECEIVE_RING: usize = RING as usize * descriptor::RECEIVE_SIZE;
const TRANSMIT_RING: usize = RING as usize * descriptor::TRANSMIT_SIZE;
const TRANSMIT_BYTES: usize = RING as usize * BUFFER_SIZE as usize;
/// Receive buffers get the rest; they must fill the ring and leave as many for frames on their way to the guest.
const BUFFERS: usize =
    (MEMORY - RECEIVE_RING - TRANSMIT_RING - TRANSMIT_BYTES) / (BUFFER_SIZE as usize + TAG);
const _: () = assert!(BUFFERS > 3 * RING as usize / 2);

/// For the PF to switch queues off, or for a reset that it has announced to begin and end; twice that, and what firmware
/// takes, is less than the 100 ms that a device may take to be quiet.
const QUIET: Duration = Duration::from_millis(40);
/// For the PF to say what it has counted; what comes later comes with the next question.
const COUNTED: Duration = Duration::from_millis(20);
/// Time between the write-back of descriptors without interrupts, in units of 2 µs.
const WRITE_BACK_INTERVAL: u32 = 2;

/// What the driver is told about a VF.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it sits.
    pub place: Place,
    /// What is wanted of it.
    pub wishes: Wishes,
    /// How long to wait for firmware and PF.
    pub patience: Patience,
}

/// How finished descriptors come back although nobody takes interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WriteBack {
    /// By the timer of each pair's interrupt.
    Timer,
    /// By interrupt 0, which goes on by itself; there is no idle mode then.
    Polling,
    /// By interrupts that are let through again now and then.
    Interrupts,
}

/// The slow side of a VF.
#[derive(Debug)]
pub struct Iavf {
    place: Place,
    function: Arc<dyn PciFunction>,
    registers: Arc<dyn Registers>,
    channel: Channel,
    wishes: Wishes,
    random_mac: Option<MacAddress>,
    grant: Option<Grant>,
    /// The PF may have queues on.
    enabled: bool,
    /// The PF has said that it will reset the VF, or go.
    announced: bool,
    /// It was told that the PF does not answer.
    told_silent: bool,
    link: Link,
    statistics: Statistics,
    receive: Arc<ReceiveCounters>,
    transmit: Arc<TransmitCounters>,
}

impl Iavf {
    /// Takes a VF over, and agrees with its PF.
    pub fn open(function: Arc<dyn PciFunction>, setup: Setup) -> Result<Vf<Self>, DeviceError> {
        let registers =
            Arc::clone(&function).bar(registers::BAR, 0, registers::BAR_SIZE, Caching::Uncached)?;
        let map = Arc::clone(&function) as Arc<dyn DmaMap>;
        let name = format!("iavf {} admin", setup.place);
        let admin = AdminQueue::new(Arc::clone(&registers), map, &name, setup.patience)?;
        let driver = Self {
            place: setup.place.clone(),
            function: Arc::clone(&function),
            channel: Channel::new(admin, Arc::clone(&registers)),
            registers,
            wishes: setup.wishes,
            random_mac: None,
            grant: None,
            enabled: false,
            announced: false,
            told_silent: false,
            link: Link::Down,
            statistics: Statistics::default(),
            receive: Arc::default(),
            transmit: Arc::default(),
        };
        Vf::open(function, &setup.place, driver)
    }

    fn agreement(&self) -> Result<&Grant, DeviceError> {
        self.grant
            .as_ref()
            .ok_or_else(|| DeviceError::Failed(format!("{}: nothing was agreed with the PF", self.place)))
    }

    fn write_back(grant: &Grant) -> WriteBack {
        let has = |capability| grant.resources.capabilities & capability != 0;
        match (has(capability::WRITE_BACK), has(capability::POLLING)) {
            (true, _) if grant.resources.vectors > 1 => WriteBack::Timer,
            (_, true) => WriteBack::Polling,
            _ => WriteBack::Interrupts,
        }
    }

    /// What the interrupts of pairs hold while nobody sleeps.
    fn polled(grant: &Grant) -> u32 {
        let interval = WRITE_BACK_INTERVAL << DYN_CTL_INTERVAL_SHIFT;
        match Self::write_back(grant) {
            WriteBack::Timer => DYN_CTL_WRITE_BACK | interval,
            WriteBack::Polling | WriteBack::Interrupts => DYN_CTL_ENABLE | interval,
        }
    }

    /// Interrupts and the pairs that they serve.
    fn interrupt_map(grant: &Grant) -> Vec<(u16, u16)> {
        match Self::write_back(grant) {
            WriteBack::Polling => vec![(0, ((1u32 << grant.pairs) - 1) as u16)],
            _ => (0..grant.pairs).map(|pair| (pair + 1, 1 << pair)).collect(),
        }
    }

    /// Lets the device write descriptors back.
    fn let_write_back(&self, grant: &Grant) {
        for (vector, _) in Self::interrupt_map(grant) {
            let register = vector.checked_sub(1).map_or(VFINT_DYN_CTL01, Self::control);
            self.registers.write(register, Self::polled(grant));
        }
    }

    /// The control register of the interrupt of a pair.
    fn control(pair: u16) -> u32 {
        VFINT_DYN_CTLN1 + 4 * u32::from(pair)
    }

    /// An event for each pair's interrupt, where there are such.
    fn events(&self, grant: &Grant) -> Vec<Option<OwnedFd>> {
        let pairs = usize::from(grant.pairs);
        if Self::write_back(grant) == WriteBack::Polling {
            return (0..pairs).map(|_| None).collect();
        }
        match self.function.interrupts(pairs + 1) {
            Ok(events) => events.into_iter().skip(1).map(Some).collect(),
            Err(cause) => {
                tracing::debug!(device = %self.place, %cause, "no interrupts");
                (0..pairs).map(|_| None).collect()
            }
        }
    }

    fn ask(&mut self, verb: u32, data: &[u8]) -> Result<Vec<u8>, DeviceError> {
        self.channel.ask(verb, data).map_err(|cause| told::error(&self.place, cause))
    }

    fn select(&self, pairs: u16) -> Vec<u8> {
        virtchnl::select(self.grant.as_ref().map_or(0, |grant| grant.resources.vsi), pairs)
    }

    /// Takes what has been said about counters.
    fn count(&mut self, answer: Option<Vec<u8>>) -> bool {
        let counters = answer.and_then(|answer| virtchnl::read_counters(&answer));
        if let Some(counters) = counters {
            self.statistics.update(counters);
        }
        counters.is_some()
    }

    fn hear(&mut self, event: Event, events: &mut Vec<DeviceEvent>) {
        let place = &self.place;
        let reason = match event {
            Event::Link(link) => {
                self.link = link;
                return;
            }
            Event::ResetImpending => format!("{place}: the PF is about to reset the VF"),
            Event::PfCloses => format!("{place}: the driver of the PF {} goes away", place.pf()),
        };
        self.announced = true;
        self.link = Link::Down;
        events.push(DeviceEvent::ResetNeeded { reason });
    }
}

/// The memory of one pair.
struct PairMemory {
    receive: ReceiveMemory,
    transmit: DmaSlice,
    transmit_buffers: DmaSlice,
}

impl PairMemory {
    fn new(map: Arc<dyn DmaMap>, name: &str, kept: &mut Kept) -> Result<Self, DeviceError> {
        let sizes =
            [RECEIVE_RING, TRANSMIT_RING, BUFFERS * BUFFER_SIZE as usize, TRANSMIT_BYTES, BUFFERS * TAG];
        let [ring, transmit, buffers, transmit_buffers, tags] =
            kept.carve(DmaMemory::new(map, MEMORY, name)?, sizes)?;
        let receive = ReceiveMemory { ring, pool: BufferPool::new(buffers), tags };
        Ok(Self { receive, transmit, transmit_buffers })
    }
}

impl VfDriver for Iavf {
    const NAME: &'static str = "iavf";
    const RUNG: Rung = Rung::KernelAcceptsModel;

    fn agree(&mut self) -> Result<Agreed, DeviceError> {
        // Messages travel by DMA.
        self.function.set_bus_master(true).map_err(|cause| {
            DeviceError::Failed(format!("{}: cannot allow it DMA: {cause}; see dmesg", self.place))
        })?;
        (self.link, self.enabled, self.announced, self.told_silent) = (Link::Down, false, false, false);
        let request = Request { wishes: &self.wishes, random_mac: self.random_mac };
        let grant = match handshake::shake(&mut self.channel, request) {
            Ok(grant) => grant,
            Err(cause) => {
                if !cause.is_gone() {
                    self.channel.close();
                }
                return Err(told::error(&self.place, cause));
            }
        };
        self.random_mac = grant.random_mac.then_some(grant.mac);
        let agreed = Agreed {
            mac: grant.mac,
            max_frame: grant.resources.longest_frame - FCS,
            filters_by_mac: true,
            notices: told::notices(&self.place, &self.wishes, &grant),
        };
        self.grant = Some(grant);
        let request = self.select(0);
        let now = self.channel.counters(COUNTED, &request);
        self.statistics.rebase(now.and_then(|now| virtchnl::read_counters(&now)).unwrap_or_default());
        Ok(agreed)
    }

    fn enable(&mut self, kept: &mut Kept) -> Result<Queues, DeviceError> {
        let grant = self.agreement()?.clone();
        let vsi = grant.resources.vsi;
        let mut memories = Vec::new();
        for pair in 0..grant.pairs {
            let map = Arc::clone(&self.function) as Arc<dyn DmaMap>;
            memories.push(PairMemory::new(map, &format!("iavf {} {pair}", self.place), kept)?);
        }
        let pairs: Vec<Pair> = memories
            .iter()
            .map(|memory| Pair { transmit: memory.transmit.iova(), receive: memory.receive.ring.iova() })
            .collect();
        let negotiated = grant.resources.capabilities & capability::FORMATS != 0;
        let format = if negotiated { grant.format.id() } else { 0 };
        let queues = virtchnl::queues(vsi, &pairs, BUFFER_SIZE, grant.resources.longest_frame, format);
        self.ask(verb::CONFIG_VSI_QUEUES, &queues)?;
        self.ask(verb::CONFIG_IRQ_MAP, &virtchnl::interrupts(vsi, &Self::interrupt_map(&grant)))?;

        let mut queues = Queues::default();
        let events = self.events(&grant);
        for ((pair, memory), event) in (0..).zip(memories).zip(events) {
            let bell = event.map(|event| Bell {
                event,
                registers: Arc::clone(&self.registers),
                allow: Poke::Word(Self::control(pair), DYN_CTL_ENABLE | DYN_CTL_NO_INTERVAL),
                mask: Poke::Word(Self::control(pair), Self::polled(&grant)),
            });
            let receive = IavfReceive::new(
                Arc::clone(&self.registers),
                pair,
                grant.format,
                memory.receive,
                Arc::clone(&self.receive),
            );
            queues.receive.push(Receive::Iavf(receive.with_bell(bell)));
            queues.transmit.push(Transmit::Iavf(IavfTransmit::new(
                Arc::clone(&self.registers),
                pair,
                memory.transmit,
                memory.transmit_buffers,
                grant.resources.longest_frame - FCS,
                grant.resources.capabilities & capability::L2 != 0,
                Arc::clone(&self.transmit),
            )));
        }
        self.enabled = true;
        let pairs = self.select(grant.pairs);
        self.ask(verb::ENABLE_QUEUES, &pairs)?;
        self.let_write_back(&grant);
        Ok(queues)
    }

    fn quiesce(&mut self) -> bool {
        if !self.is_present() {
            return false;
        }
        let enabled = std::mem::take(&mut self.enabled);
        let request = self.select(self.grant.as_ref().map_or(0, |grant| grant.pairs));
        self.grant = None;
        let announced = std::mem::take(&mut self.announced);
        let reset = announced && self.channel.wait_for_reset_to_begin(QUIET).is_ok();
        let quiet = match self.channel.listen() {
            // A reset switches all queues off before it is over.
            Err(ChannelError::Admin(AdminError::Reset)) => self.channel.wait_for_reset(QUIET).is_ok(),
            Err(_) => false,
            Ok(_) if reset || announced => false,
            Ok(_) => !enabled || self.channel.ask_within(QUIET, verb::DISABLE_QUEUES, &request).is_ok(),
        };
        self.channel.close();
        quiet
    }

    fn stall_limit(&self) -> Option<Duration> {
        Some(self.channel.patience().stall)
    }

    fn is_present(&self) -> bool {
        self.registers.read(VFGEN_RSTAT) != ALL_ONES
    }

    fn listen(&mut self, events: &mut Vec<DeviceEvent>) {
        let place = &self.place;
        match self.channel.listen() {
            Ok(heard) => {
                for event in heard {
                    self.hear(event, events);
                }
            }
            Err(cause) if cause.is_gone() => events.push(DeviceEvent::Gone {
                reason: format!("{place} does not answer any more: it has left the machine"),
            }),
            Err(ChannelError::Admin(AdminError::Reset)) => events.push(DeviceEvent::ResetNeeded {
                reason: format!("{place}: the PF was reset, or has reset the VF"),
            }),
            Err(cause) => events.push(DeviceEvent::ResetNeeded { reason: format!("{place}: {cause}") }),
        }
        if self.channel.is_silent() && !std::mem::replace(&mut self.told_silent, true) {
            events.push(DeviceEvent::Notice(format!(
                "{}: the PF does not answer any more; frames still pass, but counters stand still and changes of the \
                 link are not seen; see dmesg for what the driver of the PF {} says",
                self.place,
                self.place.pf()
            )));
        }
        if let Some(grant) =
            self.grant.as_ref().filter(|grant| Self::write_back(grant) == WriteBack::Interrupts)
        {
            self.let_write_back(grant);
        }
    }

    fn link(&mut self) -> Link {
        self.link
    }

    fn statistics(&mut self) -> DeviceStatistics {
        let request = self.select(0);
        if self.grant.is_some() && !self.announced {
            let answer = self.channel.counters(COUNTED, &request);
            self.count(answer);
        }
        let device = self.statistics.read();
        DeviceStatistics {
            rx_errors: self.receive.sum(),
            tx_errors: device.tx_errors + self.transmit.sum(),
            ..device
        }
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (strays, overflows) = self.channel.oddities();
        let own = [
            ("rx_dropped_damaged", read(&self.receive.damaged)),
            ("rx_dropped_impossible", read(&self.receive.impossible)),
            ("rx_dropped_two_tags", read(&self.receive.torn)),
            ("tx_dropped_length", read(&self.transmit.length)),
            ("tx_dropped_headers", read(&self.transmit.headers)),
            ("admin_unasked_messages", strays),
            ("admin_overflows", overflows),
        ];
        self.statistics.counters().chain(own).collect()
    }
}

#[cfg(test)]
mod tests;
