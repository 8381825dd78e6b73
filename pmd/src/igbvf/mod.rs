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
//! The first receive queue has vector 1, not 0: see [`registers`].
//!
//! Proven on rung L3 of the ladder: the driver works in a machine on a model that others wrote (QEMU's 82576, through
//! VFIO and a VT-d IOMMU, against the PF and VF drivers of Linux); on L2, for Linux's own driver works against our model
//! (`tests/kernel/igbvf*.sh`), which is stricter, and with which ours is examined (`tests/models/tests/igbvf.rs`). An I350 is on L2.
//! Never on silicon: both.

mod handshake;
pub(crate) mod registers;
mod statistics;

#[cfg(test)]
pub(crate) mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use crate::intel::mailbox::Patience;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues};
use crate::intel::Family;
use crate::intel::agreement;
use crate::intel::mailbox::Mailbox;
use crate::intel::pair::{self, Pairs};
use crate::intel::rx::ReceiveCounters;
use crate::intel::tx::TransmitCounters;
use crate::mac::MacAddress;
use crate::memory::Kept;
use crate::pci::{Ids, PciFunction};
use crate::registers::{ALL_ONES, Caching, Registers};
use crate::vf::{Agreed, Place, Rung, Vf, VfDriver, Wishes};
use handshake::{Grant, Wanted};
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
    /// How long to wait for PF and device.
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

    fn notices(&self, grant: &Grant) -> Vec<String> {
        let (name, place, mac) = (&self.place, self.place.at_pf(), grant.address.mac);
        let mut notices = agreement::notices(&self.place, &grant.address, &grant.refused_vlans);
        let wished = self.wishes.queue_pairs.get();
        if std::ptr::eq(self.family, &RINGS_I350) {
            let rung = Rung::KernelAcceptsModel;
            notices.push(format!("{name}: the driver '{}' is not proven on an I350; {rung}", Self::NAME));
        }
        if wished > self.most_pairs {
            let most = self.most_pairs;
            notices.push(format!("{name}: of the {wished} queue pairs wished for it has {most}"));
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
}

impl VfDriver for Igbvf {
    const NAME: &'static str = "igbvf";
    const RUNG: Rung = Rung::ForeignModel;
    const SENDS_FROM_GUEST_MEMORY: bool = true;

    fn agree(&mut self) -> Result<Agreed, DeviceError> {
        let wanted = Wanted {
            wishes: &self.wishes,
            random_mac: self.random_mac,
            hashed_groups: self.hashed_groups,
            longest_frame: self.family.longest_frame,
        };
        let grant = handshake::shake(&*self.registers, &mut self.mailbox, &wanted)
            .map_err(|cause| agreement::explain(&self.place, cause))?;
        self.statistics.rebase(&*self.registers);
        self.random_mac = grant.address.random.then_some(grant.address.mac);
        self.max_frame = grant.max_frame;
        Ok(Agreed {
            mac: grant.address.mac,
            max_frame: grant.max_frame,
            filters_by_mac: !grant.unicast_promiscuous,
            notices: self.notices(&grant),
        })
    }

    fn enable(&mut self, kept: &mut Kept) -> Result<Queues, DeviceError> {
        let pairs = Pairs {
            device: &self.place,
            driver: Self::NAME,
            function: &self.function,
            registers: &self.registers,
            family: self.family,
            max_frame: self.max_frame,
            received: &self.receive,
            transmitted: &self.transmit,
        };
        pairs.start(self.pairs(), kept)
    }

    fn quiesce(&mut self) -> bool {
        pair::switch_off(&*self.registers, self.family, self.most_pairs)
    }

    fn stall_limit(&self) -> Option<Duration> {
        Some(self.mailbox.patience().stall)
    }

    fn is_present(&self) -> bool {
        self.registers.read(STATUS) != ALL_ONES
    }

    fn listen(&mut self, events: &mut Vec<DeviceEvent>) {
        events.extend(agreement::event(&self.place, self.mailbox.listen()));
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
