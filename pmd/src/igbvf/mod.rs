//! `igbvf`: VFs of Intel's 82576 (8086:10ca) and I350 (8086:1520).
//!
//! | | 82576 | I350 |
//! |---|---|---|
//! | queue pairs | 1 or 2 | 1 |
//! | write-back threshold | 1, for an erratum | 1, which is as good |
//! | tag of a looped-back frame | as on the wire | bytes swapped, put right here |
//! | what it offers | checksums of TCP and UDP, TCP cut up to 64 KiB (IPv4 and IPv6) | the same |
//!
//! The rings are those of [`intel`](crate::intel). Two queue pairs get frames by flow where the PF does so for its VFs: its
//! hash, its key and its table count, not ours (MRQC is the PF's), and a PF that does not leaves the second one empty.
//!
//! Proven on rung L3 of the ladder: the driver works in a machine on a model that others wrote (QEMU's 82576, through
//! VFIO and a VT-d IOMMU, against the PF and VF drivers of Linux); and on L1 against our own model, which is stricter
//! (`tests/models/tests/igbvf.rs`). Never on silicon: both, and of the I350 nothing but what the model of the 82576 shows with
//! one queue pair.

mod handshake;
pub(crate) mod registers;
mod statistics;

#[cfg(test)]
pub(crate) mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use crate::intel::mailbox::Patience;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues, Receive, Transmit};
use crate::intel::mailbox::{Mailbox, MailboxError, PfNotice};
use crate::intel::pair::{self, PairMemory};
use crate::intel::rx::{Bell, ReceiveCounters};
use crate::intel::tx::TransmitCounters;
use crate::intel::{Family, IntelReceive, IntelTransmit};
use crate::mac::MacAddress;
use crate::memory::DmaMap;
use crate::pci::{Ids, PciFunction};
use crate::registers::{ALL_ONES, Caching, Registers};
use crate::vf::{Agreed, Place, Rung, Vf, VfDriver, Wishes};
use handshake::{Disagreement, Grant, Wanted};
use registers::*;
use statistics::Statistics;

/// The VF of an 82576.
const IDS_82576: Ids = Ids { vendor: 0x8086, device: 0x10ca };
/// The VF of an I350.
const IDS_I350: Ids = Ids { vendor: 0x8086, device: 0x1520 };
/// Devices that this driver knows.
pub const IDS: [Ids; 2] = [IDS_82576, IDS_I350];

/// Most queue pairs of any of them.
const MOST_PAIRS: u16 = 2;

/// What the driver is told about a VF.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it sits.
    pub place: Place,
    /// Which of [`IDS`] it has.
    pub ids: Ids,
    /// What is wanted of it.
    pub wishes: Wishes,
    /// How long to wait for the PF.
    pub patience: Patience,
    /// Receive multicast groups by hash instead of asking for all of them, for a device that grants all and then
    /// delivers none, as QEMU's model does. Only groups that everybody uses, and those of IPv6 addresses made of the
    /// VF's MAC or of low numbers, arrive then.
    pub hashed_groups: bool,
}

/// The slow side of an 82576 or I350 VF.
#[derive(Debug)]
pub struct Igbvf {
    place: Place,
    function: Arc<dyn PciFunction>,
    registers: Arc<dyn Registers>,
    family: &'static Family,
    mailbox: Mailbox,
    wishes: Wishes,
    hashed_groups: bool,
    /// The address that was drawn by lot, which is kept.
    random_mac: Option<MacAddress>,
    /// Queue pairs that the device has.
    most_pairs: u16,
    max_frame: u32,
    statistics: Statistics,
    receive: Arc<ReceiveCounters>,
    transmit: Arc<TransmitCounters>,
}

impl Igbvf {
    /// Takes a VF over, and shakes hands with its PF.
    pub fn open(function: Arc<dyn PciFunction>, setup: Setup) -> Result<Vf<Self>, DeviceError> {
        let registers =
            Arc::clone(&function).bar(registers::BAR, 0, registers::BAR_SIZE, Caching::Uncached)?;
        let (family, most_pairs) = match setup.ids {
            IDS_I350 => (&RINGS_I350, 1),
            _ => (&RINGS_82576, MOST_PAIRS),
        };
        let driver = Self {
            place: setup.place.clone(),
            function: Arc::clone(&function),
            family,
            mailbox: Mailbox::new(Arc::clone(&registers), MAILBOX, setup.patience),
            registers,
            wishes: setup.wishes,
            hashed_groups: setup.hashed_groups,
            random_mac: None,
            most_pairs,
            max_frame: 0,
            statistics: Statistics::new(family, most_pairs),
            receive: Arc::default(),
            transmit: Arc::default(),
        };
        Vf::open(function, &setup.place, driver)
    }

    fn pairs(&self) -> u16 {
        self.wishes.queue_pairs.get().min(self.most_pairs)
    }

    fn disagreement(&self, cause: Disagreement) -> DeviceError {
        let place = &self.place;
        match cause {
            Disagreement::Mailbox(MailboxError::Gone) => DeviceError::NotFound(format!(
                "{place} does not answer: it has left the machine, or its memory is disabled; see dmesg"
            )),
            Disagreement::Mailbox(cause) => DeviceError::NotReady(format!(
                "{place}: {cause}; its interface must be up, with the kernel's driver: ip link set {} up",
                place.pf()
            )),
            Disagreement::MacRefused(mac) => DeviceError::NotReady(format!(
                "{place}: the PF gave the VF no address and refuses {mac}; give it one: ip link set {} mac {mac}",
                place.at_pf()
            )),
        }
    }

    fn notices(&self, grant: &Grant) -> Vec<String> {
        let (name, place, mac) = (&self.place, self.place.at_pf(), grant.mac);
        let mut notices = Vec::new();
        if let Some(wished) = grant.refused_mac {
            notices.push(format!(
                "{name}: the PF refuses {wished} as the VF's address, which stays {mac}; set it there: \
                 ip link set {place} mac {wished}"
            ));
        }
        if !grant.refused_vlans.is_empty() {
            notices.push(format!(
                "{name}: the PF refuses VLANs {:?}, so their frames do not arrive; it may have put the VF into a VLAN of \
                 its own, which is undone by: ip link set {place} vlan 0",
                grant.refused_vlans
            ));
        }
        let wished = self.wishes.queue_pairs.get();
        if wished > self.most_pairs {
            notices.push(format!(
                "{name} has {} queue pairs, fewer than the {wished} wished for",
                self.most_pairs
            ));
        }
        if grant.random_mac {
            notices.push(format!(
                "{name}: the PF gave the VF no address; it uses {mac}, drawn by lot, until it is opened anew; \
                 set one: ip link set {place} mac {mac}"
            ));
        }
        if !grant.unicast_promiscuous {
            notices.push(format!(
                "{name}: the PF refuses promiscuous mode, so only frames for {mac} and for groups arrive; give the VM \
                 that address, or the VF the VM's: ip link set {place} mac MAC; PF drivers that let trusted VFs see \
                 everything need: ip link set {place} trust on"
            ));
        }
        if !grant.multicast_promiscuous && !self.hashed_groups {
            notices.push(format!(
                "{name}: the PF refuses to deliver all multicast groups, so only common ones and those of IPv6 \
                 addresses made of {mac} arrive; PF drivers that let trusted VFs see everything need: \
                 ip link set {place} trust on"
            ));
        }
        if self.hashed_groups {
            notices.push(format!(
                "{name} is QEMU's model, which does not deliver all multicast groups when asked to: only common ones \
                 and those of IPv6 addresses made of {mac} or of low numbers arrive"
            ));
        }
        notices
    }

    /// Gives the receive queues an interrupt each, which stays masked until its queue asks for it. Without, queues are polled.
    fn interrupts(&self) -> Vec<Option<Bell>> {
        let pairs = self.pairs();
        let mut bells: Vec<Option<Bell>> = (0..pairs).map(|_| None).collect();
        match self.function.interrupts(usize::from(pairs)) {
            Ok(rung) => {
                let vectors = (1 << pairs) - 1;
                self.registers.write(EIMC, vectors);
                self.registers.write(IVAR, ivar(pairs));
                self.registers.write(EIAC, vectors);
                self.registers.write(EIAM, vectors);
                for (queue, (entry, bell)) in bells.iter_mut().zip(rung).enumerate() {
                    *entry = Some(Bell { bell, vector: 1 << queue });
                }
            }
            Err(cause) => tracing::debug!(device = %self.place, %cause, "no interrupts"),
        }
        bells
    }
}

impl VfDriver for Igbvf {
    const NAME: &'static str = "igbvf";
    const RUNG: Rung = Rung::ForeignModel;
    const SENDS_FROM_GUEST_MEMORY: bool = true;

    fn agree(&mut self) -> Result<Agreed, DeviceError> {
        let wanted = Wanted {
            mac: self.wishes.mac,
            random_mac: self.random_mac,
            vlans: &self.wishes.vlans,
            hashed_groups: self.hashed_groups,
            longest_frame: self.family.longest_frame,
        };
        let grant = handshake::shake(&*self.registers, &mut self.mailbox, &wanted)
            .map_err(|cause| self.disagreement(cause))?;
        self.statistics.rebase(&*self.registers);
        self.random_mac = grant.random_mac.then_some(grant.mac);
        self.max_frame = grant.max_frame;
        Ok(Agreed {
            mac: grant.mac,
            max_frame: grant.max_frame,
            filters_by_mac: !grant.unicast_promiscuous,
            notices: self.notices(&grant),
        })
    }

    fn enable(&mut self) -> Result<Queues, DeviceError> {
        let mut memories = Vec::new();
        for queue in 0..self.pairs() {
            let map = Arc::clone(&self.function) as Arc<dyn DmaMap>;
            let memory = PairMemory::new(map, &format!("igbvf {} {queue}", self.place))?;
            pair::switch_on(&*self.registers, self.family, queue, &memory).map_err(|cause| {
                DeviceError::Failed(format!(
                    "{}: {} queue {} does not start; unbind the VF from vfio-pci and bind it again",
                    self.place, cause.direction, cause.queue
                ))
            })?;
            memories.push(memory);
        }
        let mut queues = Queues::default();
        for ((queue, memory), bell) in (0..).zip(memories).zip(self.interrupts()) {
            let PairMemory { receive, transmit, transmit_buffers } = memory;
            let registers = || Arc::clone(&self.registers);
            let counters = Arc::clone(&self.receive);
            let receive = IntelReceive::new(registers(), self.family, queue, receive, counters);
            queues.receive.push(Receive::Intel(receive.with_bell(bell)));
            queues.transmit.push(Transmit::Intel(IntelTransmit::new(
                registers(),
                self.family,
                queue,
                [transmit, transmit_buffers],
                self.max_frame,
                Arc::clone(&self.transmit),
            )));
        }
        Ok(queues)
    }

    fn quiesce(&mut self) -> bool {
        pair::switch_off(&*self.registers, self.family, self.most_pairs)
    }

    fn is_present(&self) -> bool {
        self.registers.read(STATUS) != ALL_ONES
    }

    fn listen(&mut self, events: &mut Vec<DeviceEvent>) {
        let place = &self.place;
        match self.mailbox.listen() {
            PfNotice::Nothing | PfNotice::Ping => {}
            PfNotice::Reset => events.push(DeviceEvent::ResetNeeded {
                reason: format!("{place}: the PF was reset, or has reset the VF"),
            }),
            PfNotice::Gone => events.push(DeviceEvent::Gone {
                reason: format!("{place} does not answer any more: it has left the machine"),
            }),
        }
    }

    fn link(&mut self) -> Link {
        let status = self.registers.read(STATUS);
        if status & STATUS_LU == 0 {
            return Link::Down;
        }
        let speed = match status >> STATUS_SPEED_SHIFT & 3 {
            0 => 10,
            1 => 100,
            _ => 1000,
        };
        Link::Up { speed: Some(speed) }
    }

    fn statistics(&mut self) -> DeviceStatistics {
        self.statistics.update(&*self.registers);
        DeviceStatistics {
            rx_errors: self.receive.errors.load(Ordering::Relaxed),
            tx_errors: self.transmit.errors.load(Ordering::Relaxed),
            ..self.statistics.read()
        }
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        self.statistics.counters()
    }
}

#[cfg(test)]
mod tests;
