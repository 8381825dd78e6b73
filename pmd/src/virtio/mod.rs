//! `virtio`: network functions that speak virtio 1.x over PCI (1af4:1041), be they VFs of a NIC or functions that a
//! hypervisor makes up; split and packed rings, as many queue pairs as the device has.
//!
//! ```text
//!   capabilities   where the registers are            ring/      a virtqueue of either layout, the driver's side
//!   transport      status, features, queues           control    what is asked of a running device
//!   features       what is taken of what is offered   rx, tx     the queues of workers
//!   terms          what the device is then            health     what queues tell the slow side
//! ```
//!
//! A device must translate its addresses (`VIRTIO_F_ACCESS_PLATFORM`): one that does not reaches past the IOMMU for whatever
//! has the same physical address. Received frames may be left to be cut and summed up by their taker; frames to be sent are
//! copied behind a virtio-net header.
//!
//! Proven on rung L3: it works in a machine on functions that QEMU makes up, through VFIO and a VT-d IOMMU, against Linux's
//! `virtio_net` (`tests/lab/jobs/virtio_*.sh`), and on L2 against our own model (`tests/models/tests/virtio.rs`), which
//! Linux's driver accepts (`tests/kernel/virtio_*.sh`) and which has what QEMU's does not: notifications with data, receive-side
//! scaling, devices that use their rings in any order, and wrong ones. It was never on a NIC.
//!
//! What it does not do: it borrows no frames; it asks for no interrupt of its configuration, which is looked at every 50 ms.

mod capabilities;
mod control;
mod features;
mod health;
mod registers;
mod ring;
mod rx;
mod terms;
mod transport;
mod tx;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use rx::VirtioReceive;
pub use tx::VirtioTransmit;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues, Receive, Transmit};
use crate::mac::MacAddress;
use crate::memory::{DmaMap, DmaMemory, DmaSlice, Kept, SlotBuffers};
use crate::pci::{Ids, PciFunction};
use crate::vf::watchdog::STALL;
use crate::vf::{Agreed, Place, Rung, Vf, VfDriver, Wishes};
use capabilities::Structures;
use control::{Answer, Command, Control};
use features::*;
use health::{Counters, Health};
use registers::*;
use ring::{Layout, Ring};
use rx::Parts;
use terms::Terms;
use transport::{Refusal, Transport};

/// Devices that this driver knows.
pub const IDS: [Ids; 1] = [Ids { vendor: 0x1af4, device: 0x1041 }];

/// Most descriptors of a queue.
const MOST_DESCRIPTORS: u16 = 1024;
/// Buffers of a receive queue beyond those that its ring holds: frames on their way to the guest.
const SPARE_BUFFERS: usize = 512;
/// How long the driver waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the end of a reset before the device is used.
    pub reset: Duration,
    /// For the end of the one after that.
    pub quiet: Duration,
    /// For the answer to a command.
    pub control: Duration,
    /// For a queue in which nothing moves although frames are to be sent and the link is up.
    pub stall: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            reset: Duration::from_secs(2),
            quiet: Duration::from_millis(90),
            control: Duration::from_secs(1),
            stall: STALL,
        }
    }
}

/// What the driver is told about a function.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it sits.
    pub place: Place,
    /// What is wanted of it.
    pub wishes: Wishes,
    /// How long to wait for it.
    pub patience: Patience,
}

/// The slow side of a virtio-net function.
#[derive(Debug)]
pub struct Virtio {
    setup: Setup,
    function: Arc<dyn PciFunction>,
    transport: Transport,
    /// As of the last hand-shake.
    terms: Option<Terms>,
    /// The address that was drawn by lot, which is kept.
    random_mac: Option<MacAddress>,
    /// It has refused, when it ran, to receive frames for all stations.
    refused_promiscuous: bool,
    control: Option<Control>,
    health: Arc<Health>,
    /// Queues are out.
    running: bool,
    /// What a running device has refused: told by the next `listen`, and what was told before.
    notices: Vec<String>,
    told: Vec<String>,
    received: Arc<Counters>,
    sent: Arc<Counters>,
}

/// One queue's place in memory.
struct Memory {
    ring: DmaSlice,
    buffers: DmaSlice,
}

impl Virtio {
    /// Takes a function over, and agrees with it on features.
    pub fn open(function: Arc<dyn PciFunction>, setup: Setup) -> Result<Vf<Self>, DeviceError> {
        let place = setup.place.clone();
        let mut config = [0; 256];
        function.read_config(0, &mut config).map_err(|cause| {
            DeviceError::Failed(format!(
                "{place}: its configuration space cannot be read: {cause}; see dmesg"
            ))
        })?;
        let structures = Structures::of(&config).map_err(|missing| {
            DeviceError::Unsupported(format!(
                "{place} has no {missing} structure, so it is no virtio 1.x device; see lspci -vv -s {place}; in QEMU, \
                 such devices have disable-modern=off"
            ))
        })?;
        if let Some(fault) = structures.misplaced() {
            return Err(DeviceError::Unsupported(format!(
                "{place} cannot be used: {fault}; update its firmware, or the hypervisor"
            )));
        }
        let driver = Self {
            transport: Transport::new(structures.map(&function)?),
            function: Arc::clone(&function),
            terms: None,
            random_mac: None,
            refused_promiscuous: false,
            control: None,
            health: Arc::default(),
            running: false,
            notices: Vec::new(),
            told: Vec::new(),
            received: Arc::default(),
            sent: Arc::default(),
            setup,
        };
        Vf::open(function, &place, driver)
    }

    fn refusal(&self, cause: Refusal) -> DeviceError {
        let place = &self.setup.place;
        match cause {
            Refusal::Gone => DeviceError::NotFound(format!(
                "{place} does not answer: it has left the machine, or its memory is disabled; see dmesg"
            )),
            Refusal::InReset => DeviceError::NotReady(format!(
                "{place} does not come out of its reset; unbind it from vfio-pci and bind it again"
            )),
            Refusal::Features => DeviceError::Failed(format!(
                "{place} does not accept the features that it offered; update its firmware, or the hypervisor"
            )),
        }
    }

    fn features(&self) -> Features {
        self.terms.map_or_else(Features::default, |terms| terms.features)
    }

    fn failed(&self, what: &str) -> DeviceError {
        let place = &self.setup.place;
        DeviceError::Failed(format!("{place} {what}; unbind it from vfio-pci and bind it again"))
    }

    /// What queue `queue` gets: as many descriptors as it has, at most [`MOST_DESCRIPTORS`].
    fn layout(&self, queue: u16, filled: u32) -> Result<Layout, DeviceError> {
        let most = self.transport.most_descriptors(queue).min(MOST_DESCRIPTORS);
        let size = most.checked_ilog2().map_or(0, |bits| 1u16 << bits);
        if size < 2 {
            return Err(self.failed(&format!("has no queue {queue}, or one of {most} descriptors")));
        }
        Ok(Layout { size, features: self.features(), filled })
    }

    /// Switches queue `queue` on; whether it has the interrupt `vector`.
    fn switch_on(
        &self,
        queue: u16,
        layout: Layout,
        memory: DmaSlice,
        vector: u16,
        counters: &Arc<Counters>,
    ) -> Result<(Parts, bool), DeviceError> {
        let ring = Ring::new(memory, layout);
        let doorbell = self
            .transport
            .doorbell(queue, self.features())
            .map_err(|cause| self.failed(&format!("wants queue {queue} to be notified {cause}")))?;
        let interrupts = self.transport.enable(queue, layout.size, &ring, vector);
        let (counters, health) = (Arc::clone(counters), Arc::clone(&self.health));
        Ok((Parts { ring, size: layout.size, doorbell, counters, health }, interrupts))
    }

    fn interrupts(&self, count: u16) -> Vec<OwnedFd> {
        self.function.interrupts(count.into()).unwrap_or_else(|cause| {
            tracing::debug!(device = %self.setup.place, %cause, "no interrupts");
            Vec::new()
        })
    }

    /// Tells the device what it can only be told while it runs; how many queue pairs it uses.
    fn ask(&mut self, terms: &Terms, pairs: u16) -> Result<u16, DeviceError> {
        let place = self.setup.place.clone();
        let silent = || {
            DeviceError::NotReady(format!(
                "{place}: its control queue does not answer; wait for its PF or hypervisor, or reset it there"
            ))
        };
        let Some(control) = &mut self.control else { return Ok(1) };
        let mut granted = |command| match control.ask(command) {
            Answer::Granted => Ok(true),
            Answer::Refused => Ok(false),
            Answer::Silent => Err(silent()),
        };
        let mut notices = Vec::new();
        let refused_address = terms.tell_mac && !granted(Command::Address(terms.mac))?;
        self.refused_promiscuous = terms.features.has(CTRL_RX) && !granted(Command::Promiscuous)?;
        if self.refused_promiscuous {
            notices.push(terms::promiscuous_notice(&place, terms.mac));
            if !granted(Command::AllMulticast)? {
                notices.push(format!(
                    "{place}: the device refuses to deliver all multicast groups: IPv6 neighbours may not be found"
                ));
            }
        }
        for vlan in self.setup.wishes.vlans.iter().filter(|_| terms.features.has(CTRL_VLAN)) {
            if !granted(Command::Vlan(*vlan))? {
                notices.push(format!("{place}: the device refuses VLAN {vlan}"));
            }
        }
        let mut used = 1;
        if pairs > 1 {
            let hashed = match &terms.hash {
                Some(hash) => granted(Command::Hash(hash))?,
                None => false,
            };
            if hashed || granted(Command::Pairs(pairs))? {
                used = pairs;
            } else {
                notices.push(format!("{place}: the device refuses to use {pairs} queue pairs; it uses one"));
            }
        }
        notices.retain(|notice| !self.told.contains(notice));
        self.told.extend_from_slice(&notices);
        self.notices.extend(notices);
        if refused_address {
            let mac = terms.mac;
            return Err(DeviceError::NotReady(format!(
                "{place}: the device refuses the address {mac}; ask for another, or set it where the device is made: \
                 ip link set {} mac {mac}",
                place.at_pf()
            )));
        }
        Ok(used)
    }

    fn status_of_link(&self) -> (u16, u32) {
        self.transport.configuration(|config| (config.half(NET_STATUS), config.word(NET_SPEED)))
    }
}

impl VfDriver for Virtio {
    const NAME: &'static str = "virtio";
    const RUNG: Rung = Rung::ForeignModel;

    fn agree(&mut self) -> Result<Agreed, DeviceError> {
        self.transport.reset(self.setup.patience.reset).map_err(|cause| self.refusal(cause))?;
        let Setup { place, wishes, .. } = &self.setup;
        let offered = self.transport.offered();
        terms::check(offered, place, self.function.is_physical())?;
        let Wishes { queue_pairs, vlans, .. } = wishes;
        let features = offered.taken(queue_pairs.get() > 1, !vlans.is_empty());
        self.transport.take(features).map_err(|cause| self.refusal(cause))?;
        let terms = Terms::read(&self.transport, features, wishes, &mut self.random_mac);
        tracing::debug!(device = %place, offered = %format_args!("{:#x}", offered.0), ?terms, "agreed");
        self.terms = Some(terms);
        Ok(Agreed {
            mac: terms.mac,
            max_frame: terms.max_frame,
            filters_by_mac: self.refused_promiscuous || !features.has(CTRL_RX),
            notices: terms.notices(place, wishes),
        })
    }

    fn enable(&mut self, kept: &mut Kept) -> Result<Queues, DeviceError> {
        let terms = self.terms.ok_or_else(|| self.failed("was not agreed with"))?;
        let Terms { features, max_frame, pairs: most_pairs, .. } = terms;
        let pairs = self.setup.wishes.queue_pairs.get().min(most_pairs);
        self.health = Arc::default();

        let mut layouts = Vec::new();
        let mut sizes = Vec::new();
        for pair in 0..pairs {
            let (receive, transmit) = (self.layout(2 * pair, terms.buffer())?, self.layout(2 * pair + 1, 0)?);
            let slots = transmit.size.max(tx::FEWEST_SLOTS);
            sizes.extend([
                receive.bytes(),
                (usize::from(receive.size) + SPARE_BUFFERS) * terms.buffer() as usize,
            ]);
            sizes.extend([transmit.bytes(), SlotBuffers::bytes(slots)]);
            layouts.extend([receive, transmit]);
        }
        let control = features.has(CTRL_VQ).then_some(if features.has(MQ) { 2 * most_pairs } else { 2 });
        if let Some(queue) = control {
            let layout = self.layout(queue, 0)?;
            sizes.extend([layout.bytes(), control::BYTES]);
            layouts.push(layout);
        }
        let map = Arc::clone(&self.function) as Arc<dyn DmaMap>;
        let memory = DmaMemory::new(map, DmaMemory::needed(&sizes), &format!("virtio {}", self.setup.place))?;
        tracing::debug!(device = %self.setup.place, bytes = memory.len(), huge = memory.is_huge(), "DMA memory");
        let mut slices = kept.carve_all(memory, &sizes)?.into_iter();
        let mut memories: Vec<Memory> = Vec::with_capacity(layouts.len());
        while let (Some(ring), Some(buffers)) = (slices.next(), slices.next()) {
            memories.push(Memory { ring, buffers });
        }

        let mut bells: Vec<Option<OwnedFd>> = self.interrupts(pairs).into_iter().map(Some).collect();
        let mut parts = Vec::with_capacity(layouts.len());
        for ((queue, layout), memory) in (0u16..).zip(layouts).zip(memories) {
            let receives = queue < 2 * pairs && queue % 2 == 0;
            let bell = usize::from(queue / 2);
            let vector = if receives && bell < bells.len() { queue / 2 } else { NO_VECTOR };
            let number = if queue < 2 * pairs { queue } else { control.unwrap_or(queue) };
            let counters = if receives { &self.received } else { &self.sent };
            let (part, interrupts) = self.switch_on(number, layout, memory.ring, vector, counters)?;
            if let Some(bell) = bells.get_mut(bell).filter(|_| receives && !interrupts) {
                *bell = None;
            }
            parts.push((part, memory.buffers));
        }
        if control.is_some()
            && let Some((part, buffers)) = parts.pop()
        {
            let patience = self.setup.patience.control;
            self.control = Some(Control::new(part.ring, part.size, part.doorbell, buffers, patience));
        }
        self.transport.driver_ok();
        let used = self.ask(&terms, pairs)?;

        let mut queues = Queues::default();
        let mut parts = parts.into_iter();
        let mut bells = bells.into_iter();
        for _ in 0..used {
            let (Some((receive, pool)), Some((transmit, slots))) = (parts.next(), parts.next()) else {
                break;
            };
            let bell = bells.next().flatten();
            let merged = features.has(MRG_RXBUF);
            let receive = VirtioReceive::new(receive, pool, terms.buffer(), merged, bell);
            queues.receive.push(Receive::Virtio(receive));
            let count = transmit.size.max(tx::FEWEST_SLOTS);
            let transmit = VirtioTransmit::new(transmit, slots, count, max_frame, features.capabilities());
            queues.transmit.push(Transmit::Virtio(transmit));
        }
        self.running = true;
        Ok(queues)
    }

    fn quiesce(&mut self) -> bool {
        self.running = false;
        let quiet = self.transport.reset(self.setup.patience.quiet).is_ok();
        self.control = None;
        quiet
    }

    fn stall_limit(&self) -> Option<Duration> {
        Some(self.setup.patience.stall)
    }

    fn is_present(&self) -> bool {
        self.transport.status() != NO_STATUS
    }

    fn listen(&mut self, events: &mut Vec<DeviceEvent>) {
        let place = &self.setup.place;
        events.extend(self.notices.drain(..).map(DeviceEvent::Notice));
        let status = self.transport.status();
        let expected = if self.running { FEATURES_OK | DRIVER_OK } else { FEATURES_OK };
        let reason = if status == NO_STATUS {
            return events.push(DeviceEvent::Gone {
                reason: format!("{place} does not answer any more: it has left the machine"),
            });
        } else if status & NEEDS_RESET != 0 {
            Some("says that it has to be reset")
        } else if status & expected != expected {
            Some("was reset by its PF, or by its hypervisor")
        } else {
            self.health.complaint().map(health::Complaint::words)
        };
        let announce = reason.is_none()
            && self.running
            && self.features().has(GUEST_ANNOUNCE)
            && self.status_of_link().0 & ANNOUNCE != 0;
        let unheard = announce
            && self.control.as_mut().is_some_and(|control| control.ask(Command::Announced) == Answer::Silent);
        if let Some(what) = reason.or(unheard.then_some("does not answer through its control queue")) {
            events.push(DeviceEvent::ResetNeeded { reason: format!("{} {what}", self.setup.place) });
        }
    }

    fn link(&mut self) -> Link {
        let (status, speed) = self.status_of_link();
        let up = !self.features().has(STATUS) || status & LINK_UP != 0;
        // The upper half of the range is reserved (5.1.4).
        let known = self.features().has(SPEED_DUPLEX) && speed != SPEED_UNKNOWN && speed <= i32::MAX as u32;
        if up { Link::Up { speed: known.then_some(speed) } } else { Link::Down }
    }

    fn statistics(&mut self) -> DeviceStatistics {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        DeviceStatistics {
            rx_frames: load(&self.received.frames),
            rx_bytes: load(&self.received.bytes),
            rx_errors: self.received.errors(),
            tx_frames: load(&self.sent.frames),
            tx_bytes: load(&self.sent.bytes),
            tx_errors: self.sent.errors(),
            // The device counts nothing that it would tell.
            rx_missed: 0,
        }
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        vec![
            ("rx_length_errors", load(&self.received.length_errors)),
            ("rx_header_errors", load(&self.received.header_errors)),
            ("rx_ring_errors", load(&self.received.ring_errors)),
            ("tx_length_errors", load(&self.sent.length_errors)),
            ("tx_ring_errors", load(&self.sent.ring_errors)),
        ]
    }
}

#[cfg(test)]
mod tests;
