//! `ixgbevf`: VFs of Intel's 82599 (8086:10ed), X540 (1515), X550 (1565) and X552 (15a8; of Atom processors, 15c5).
//!
//! | | 82599, X540 | X550, X552 |
//! |---|---|---|
//! | queue pairs | as many as the PF tells of (API 1.1), at most 4: 1, 2 or 4 | the same |
//! | frames to queues | hash, key and table of the PF | of the VF's own |
//! | longest frame | 82599: what the PF has; X540: 9.5 KiB | 9.5 KiB |
//! | what it offers | checksums of TCP and UDP, TCP cut up to 64 KiB (IPv4 and IPv6) | the same |
//!
//! The rings are those of [`intel`](crate::intel); every frame names a context, for the port switches by it. PF and VF speak the
//! newest version of their language that both know, 1.5 down to 1.0. A VF has three interrupts, so a fourth queue is looked at
//! by whoever sleeps for it.
//!
//! Proven on rung L2 of the ladder, but for 8086:15c5, which differs by its id: the driver works against our model
//! (`tests/models/tests/ixgbevf.rs`), and Linux's own driver works against the same model (`tests/kernel/ixgbevf*.sh`). Never on
//! silicon: all of it.

mod handshake;
mod link;
mod message;
mod registers;
mod rss;
mod statistics;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use crate::intel::mailbox::Patience;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues};
use crate::intel::agreement;
use crate::intel::mailbox::{Mailbox, PfNotice};
use crate::intel::message::{Answer, CLEAR_TO_SEND, plain};
use crate::intel::pair::{self, Pairs};
use crate::intel::rx::ReceiveCounters;
use crate::intel::tx::TransmitCounters;
use crate::mac::MacAddress;
use crate::memory::Kept;
use crate::pci::{Ids, PciFunction};
use crate::registers::{ALL_ONES, Caching, Registers};
use crate::vf::{Agreed, Place, Rung, Vf, VfDriver, Wishes};
use handshake::Grant;
use message::{Api, Mode};
use registers::*;
use statistics::Statistics;

/// The VF of an 82599.
const IDS_82599: Ids = Ids { vendor: 0x8086, device: 0x10ed };
/// The VF of an X540.
const IDS_X540: Ids = Ids { vendor: 0x8086, device: 0x1515 };
/// Devices that this driver knows: 82599, X540, X550, X552, and X552 of Atom processors.
pub const IDS: [Ids; 5] = [
    IDS_82599,
    IDS_X540,
    Ids { vendor: 0x8086, device: 0x1565 },
    Ids { vendor: 0x8086, device: 0x15a8 },
    Ids { vendor: 0x8086, device: 0x15c5 },
];

/// Most queue pairs that are used.
const MOST_PAIRS: u16 = 4;

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
}

/// The slow side of a VF.
#[derive(Debug)]
pub struct Ixgbevf {
    place: Place,
    function: Arc<dyn PciFunction>,
    registers: Arc<dyn Registers>,
    mailbox: Mailbox,
    wishes: Wishes,
    /// Each VF of the device has an RSS of its own.
    own_rss: bool,
    api: Api,
    /// The address that was drawn by lot, which is kept.
    random_mac: Option<MacAddress>,
    /// Queue pairs: a power of two.
    pairs: u16,
    max_frame: u32,
    /// The wire was up when it was last looked at.
    was_up: bool,
    /// The PF lets the VF have a link.
    link_allowed: bool,
    statistics: Statistics,
    receive: Arc<ReceiveCounters>,
    transmit: Arc<TransmitCounters>,
}

impl Ixgbevf {
    /// Takes a VF over, and shakes hands with its PF.
    pub fn open(function: Arc<dyn PciFunction>, setup: Setup) -> Result<Vf<Self>, DeviceError> {
        let registers =
            Arc::clone(&function).bar(registers::BAR, 0, registers::BAR_SIZE, Caching::Uncached)?;
        let driver = Self {
            place: setup.place.clone(),
            function: Arc::clone(&function),
            mailbox: Mailbox::new(Arc::clone(&registers), MAILBOX, setup.patience),
            registers,
            wishes: setup.wishes,
            own_rss: !matches!(setup.ids, IDS_82599 | IDS_X540),
            api: Api::default(),
            random_mac: None,
            pairs: 1,
            max_frame: 0,
            was_up: false,
            link_allowed: true,
            statistics: Statistics::new(),
            receive: Arc::default(),
            transmit: Arc::default(),
        };
        Vf::open(function, &setup.place, driver)
    }

    fn notices(&self, grant: &Grant) -> Vec<String> {
        let (name, place, mac) = (&self.place, self.place.at_pf(), grant.address.mac);
        let trust = format!("PFs let trusted VFs see more: ip link set {place} trust on");
        let mut notices = agreement::notices(name, &grant.address, &grant.refused_vlans);
        match grant.mode {
            Mode::Promiscuous => {}
            Mode::Groups => notices.push(format!(
                "{name}: the PF refuses promiscuous mode, so only frames for {mac} and for groups arrive; give the VM that \
                 address, or the VF the VM's: ip link set {place} mac MAC; {trust}, where the PF is promiscuous itself: \
                 ip link set {} promisc on",
                self.place.pf()
            )),
            Mode::Broadcast | Mode::Hashed => notices.push(format!(
                "{name}: the PF refuses promiscuous mode and all groups, so only frames for {mac}, for common groups and \
                 for those of IPv6 addresses made of {mac} arrive; {trust}"
            )),
        }
        let wished = self.wishes.queue_pairs.get();
        if wished > self.pairs {
            notices.push(format!(
                "{name}: {} of the {wished} queue pairs wished for are used: the PF grants the VF {}, and their number is a \
                 power of two, at most {MOST_PAIRS}",
                self.pairs, grant.pairs
            ));
        }
        notices
    }

    /// Asks whether the PF lets the VF have a link (`ip link set PF vf N state disable`); where it cannot be asked, it does.
    /// Whether the PF still listens to this VF.
    fn ask_for_link(&mut self) -> bool {
        const VERB: u32 = message::verb::GET_LINK_STATE;
        if self.api < Api::V12 {
            return true;
        }
        match self.mailbox.ask(VERB, &plain(VERB)) {
            Ok((_, reply)) if reply[0] & CLEAR_TO_SEND == 0 => false,
            Ok((Answer::Granted, reply)) => {
                self.link_allowed = reply[1] != 0;
                true
            }
            // It does not say; or it says nothing at all, which the next hand-shake will find out.
            Ok(_) | Err(_) => true,
        }
    }
}

impl VfDriver for Ixgbevf {
    const NAME: &'static str = "ixgbevf";
    const RUNG: Rung = Rung::KernelAcceptsModel;
    const SENDS_FROM_GUEST_MEMORY: bool = true;

    fn agree(&mut self) -> Result<Agreed, DeviceError> {
        let grant = handshake::shake(&*self.registers, &mut self.mailbox, &self.wishes, self.random_mac)
            .map_err(|cause| agreement::explain(&self.place, cause))?;
        self.statistics.rebase(&*self.registers);
        self.random_mac = grant.address.random.then_some(grant.address.mac);
        self.max_frame = grant.max_frame;
        self.api = grant.api;
        let most = self.wishes.queue_pairs.get().min(grant.pairs).min(MOST_PAIRS);
        self.pairs = 1 << most.max(1).ilog2();
        (self.was_up, self.link_allowed) = (false, true);
        self.ask_for_link();
        tracing::debug!(device = %self.place, api = ?grant.api, pairs = self.pairs, "agreed with the PF");
        Ok(Agreed {
            mac: grant.address.mac,
            max_frame: grant.max_frame,
            filters_by_mac: grant.mode != Mode::Promiscuous,
            notices: self.notices(&grant),
        })
    }

    fn enable(&mut self, kept: &mut Kept) -> Result<Queues, DeviceError> {
        rss::spread(&*self.registers, self.pairs, self.own_rss);
        let pairs = Pairs {
            device: &self.place,
            driver: Self::NAME,
            function: &self.function,
            registers: &self.registers,
            family: &RINGS,
            max_frame: self.max_frame,
            received: &self.receive,
            transmitted: &self.transmit,
        };
        pairs.start(self.pairs, kept)
    }

    fn quiesce(&mut self) -> bool {
        pair::switch_off(&*self.registers, &RINGS, MOST_PAIRS)
    }

    fn stall_limit(&self) -> Option<Duration> {
        Some(self.mailbox.patience().stall)
    }

    fn is_present(&self) -> bool {
        self.registers.read(VFSTATUS) != ALL_ONES
    }

    fn listen(&mut self, events: &mut Vec<DeviceEvent>) {
        let mut notice = self.mailbox.listen();
        if notice == PfNotice::Ping && !self.ask_for_link() {
            notice = PfNotice::Reset;
        }
        events.extend(agreement::event(&self.place, notice));
    }

    fn link(&mut self) -> Link {
        let link = if self.link_allowed { link::link(&*self.registers, self.was_up) } else { Link::Down };
        self.was_up = link != Link::Down;
        link
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
