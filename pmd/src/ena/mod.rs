//! `ena`: VFs of the Elastic Network Adapter of AWS (1d0f:ec20, and 1d0f:ec21 with low latency queues).
//!
//! ```text
//!   control thread   admin queue, events, register reads through memory      mmio, admin, events
//!                    what is agreed, started, heard and reset                deal (features, host), start (queues, rss), listen, reset
//!   worker           submission ring + completion ring a queue and direction  rx, tx, llq, descriptor
//!   between them     what a queue saw that only a reset repairs               health
//! ```
//!
//! The public specification is ena-com (`amzn/amzn-drivers`, also in DPDK and FreeBSD; BSD licence).
//!
//! Proven on rung L2 of the ladder: `tests/models/tests/ena.rs` runs it against our own model of the device, with
//! descriptors in memory of the host and in the device, and Linux's own driver accepts that model
//! (`tests/kernel/ena.sh`). It has never been on silicon.
//!
//! What it does not do: send from memory of a guest, checksums and cuts behind headers longer than an entry has room for (which
//! are done for it), checksum offload on a device that has it for IPv4 alone, time stamps, the device's own notifications of
//! a poor configuration.

mod admin;
mod deal;
mod descriptor;
mod events;
mod features;
mod health;
mod host;
mod listen;
mod llq;
mod mmio;
mod queues;
mod registers;
mod reset;
mod rss;
mod rx;
mod start;
mod statistics;
mod tx;

#[cfg(test)]
mod double;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub use rx::EnaReceive;
pub use tx::EnaTransmit;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues};
use crate::memory::{DmaMap, DmaMemory, DmaSlice, Kept};
use crate::pci::{Ids, PciFunction};
use crate::registers::Caching;
use crate::vf::{Agreed, Place, Rung, Vf, VfDriver, Wishes};
use admin::{AdminError, AdminQueue};
use deal::Deal;
use events::Events;
use health::Health;
use mmio::Mmio;
use queues::Pair;
use registers::*;
use rx::ReceiveCounters;
use statistics::Statistics;
use tx::TransmitCounters;

/// Devices that this driver knows.
pub const IDS: [Ids; 2] = [Ids { vendor: 0x1d0f, device: 0xec20 }, Ids { vendor: 0x1d0f, device: 0xec21 }];

/// Rings lie on pages of their own (`ena_admin_aq_create_sq_cmd`: the base address is page aligned).
const PAGE: usize = 4096;
/// All that is done to make a device quiet takes less.
const QUIET: Duration = Duration::from_millis(80);
/// One answer of a device that is made quiet.
const QUIET_ANSWER: Duration = Duration::from_millis(15);
/// Offset of revision and class in the configuration space. VFIO makes up vendor and device, but not these: they read as ones
/// once the function has left.
const CONFIG_REVISION: u16 = 8;
/// The reason of a reset that has no number of its own, or one that only newer devices know.
const REASON_GENERIC: u8 = 13;
/// Reasons of resets (`ena_regs_reset_reason_types`).
mod reason {
    pub const NORMAL: u8 = 0;
    pub const KEEP_ALIVE: u8 = 1;
    pub const ADMIN: u8 = 2;
    pub const COMPLETION: u8 = 3;
}

/// How long the driver waits where the device does not say how long, and at most where it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Most that a reset or an admin command may take, whatever the device says.
    pub longest: Duration,
    /// A register read through memory.
    pub read: Duration,
    /// Between two keep-alives.
    pub keep_alive: Duration,
    /// Until a frame that is sent is completed.
    pub completion: Duration,
}

impl Default for Patience {
    /// The limits of Amazon's drivers.
    fn default() -> Self {
        Self {
            longest: Duration::from_millis(3100),
            read: Duration::from_millis(200),
            keep_alive: Duration::from_secs(6),
            completion: Duration::from_secs(5),
        }
    }
}

/// What the driver is told about a VF.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it sits.
    pub place: Place,
    /// What is wanted of it.
    pub wishes: Wishes,
    /// How long to wait for it.
    pub patience: Patience,
}

/// The slow side of an ENA.
#[derive(Debug)]
pub struct Ena {
    place: Place,
    wishes: Wishes,
    patience: Patience,
    function: Arc<dyn PciFunction>,
    /// Past the last address of the admin memory.
    memory_end: u64,
    mmio: Mmio,
    admin: AdminQueue,
    events: Events,
    host_page: DmaSlice,
    scratch: DmaSlice,
    deal: Option<Deal>,
    /// Bits of an address.
    width: u32,
    link: Link,
    /// When the device was heard last, and how long it may be silent; it does not say that it lives where there is none.
    alive: Instant,
    keep_alive: Option<Duration>,
    completion: Option<Duration>,
    /// What there is at the device.
    pairs: Vec<Pair>,
    /// Of all queues.
    health: Vec<Arc<Health>>,
    statistics: Statistics,
    receive: Arc<ReceiveCounters>,
    transmit: Arc<TransmitCounters>,
    /// Why the next reset is made.
    reason: u8,
    /// Told with the next events.
    notices: Vec<String>,
    slow_pushes_told: bool,
    /// Syndromes of warnings that were told.
    warnings: Vec<u16>,
}

impl Ena {
    /// Takes a VF over, and agrees with it on how it is used.
    pub fn open(function: Arc<dyn PciFunction>, setup: Setup) -> Result<Vf<Self>, DeviceError> {
        let Setup { place, wishes, patience } = setup;
        let registers = Arc::clone(&function).bar(BAR, 0, REGISTERS, Caching::Uncached)?;
        let sizes = [admin::RING_BYTES, admin::RING_BYTES, events::RING_BYTES, host::PAGE, rss::SCRATCH];
        let [commands, replies, events, host, scratch] = sizes.map(|size| size.next_multiple_of(PAGE));
        let sizes = [commands, replies, events, host, scratch, mmio::ANSWER];
        let map = Arc::clone(&function) as Arc<dyn DmaMap>;
        let memory = DmaMemory::new(map, sizes.iter().sum(), &format!("ena {place} admin"))?;
        let [commands, replies, events, host_page, scratch, answer] = memory.carve(sizes)?;
        let mut revision = [0];
        // A device of which nothing is known answers in memory, too.
        let direct = function.read_config(CONFIG_REVISION, &mut revision).is_ok()
            && revision[0] != u8::MAX
            && revision[0] & REVISION_DIRECT != 0;
        let driver = Self {
            place: place.clone(),
            wishes,
            patience,
            function: Arc::clone(&function),
            memory_end: answer.iova() + answer.len() as u64,
            mmio: Mmio::new(registers, answer, direct, patience.read),
            admin: AdminQueue::new(commands, replies),
            events: Events::new(events),
            host_page,
            scratch,
            deal: None,
            width: 0,
            link: Link::Down,
            alive: Instant::now(),
            keep_alive: None,
            completion: None,
            pairs: Vec::new(),
            health: Vec::new(),
            statistics: Statistics::default(),
            receive: Arc::default(),
            transmit: Arc::default(),
            reason: reason::NORMAL,
            notices: Vec::new(),
            slow_pushes_told: false,
            warnings: Vec::new(),
        };
        Vf::open(function, &place, driver)
    }

    fn failed(&self, what: impl std::fmt::Display) -> DeviceError {
        DeviceError::Failed(format!(
            "{}: {what}; bind the VF to vfio-pci anew, and stop and start the instance if that does not help",
            self.place
        ))
    }

    fn refused(&self, what: &str, cause: AdminError) -> DeviceError {
        self.failed(format_args!("{what}: {cause}"))
    }
}

impl VfDriver for Ena {
    const NAME: &'static str = "ena";
    const RUNG: Rung = Rung::KernelAcceptsModel;

    fn agree(&mut self) -> Result<Agreed, DeviceError> {
        if !self.is_present() {
            return Err(DeviceError::NotFound(format!(
                "{} does not answer: it has left the machine, or its memory is disabled; see dmesg",
                self.place
            )));
        }
        // The admin queue is memory, too.
        self.function
            .set_bus_master(true)
            .map_err(|cause| self.failed(format_args!("cannot allow it DMA: {cause}")))?;
        self.mmio.limit = self.patience.read;
        (self.deal, self.link) = (None, Link::Down);
        self.health.clear();
        self.reset(self.patience.longest).map_err(|what| self.failed(what))?;
        self.reaches(self.memory_end)?;
        self.check_version()?;
        self.admin.restart(&self.mmio);
        self.events.restart(&self.mmio);
        // Both are looked at all the time.
        self.mmio.write(INTERRUPT_MASK, 1);
        let deal = self.negotiate().map_err(|(what, cause)| self.refused(what, cause))?;
        self.check(&deal)?;
        self.deal = Some(deal);
        self.alive = Instant::now();
        self.events.enable(&self.mmio);
        Ok(Agreed {
            mac: deal.device.mac,
            max_frame: deal.max_frame,
            filters_by_mac: true,
            notices: self.notices(&deal),
        })
    }

    fn enable(&mut self, kept: &mut Kept) -> Result<Queues, DeviceError> {
        let deal = self.deal.ok_or_else(|| self.failed("nothing was agreed on"))?;
        let mut queues = Queues::default();
        for (number, bell) in (0..deal.pairs).zip(self.bells(deal.pairs)) {
            let (receive, transmit) = self.create(&deal, number, bell, kept)?;
            queues.receive.push(receive);
            queues.transmit.push(transmit);
        }
        self.spread(&deal)?;
        Ok(queues)
    }

    fn quiesce(&mut self) -> bool {
        self.health.clear();
        if !self.is_present() {
            return false;
        }
        let start = Instant::now();
        self.mmio.limit = self.mmio.limit.min(QUIET_ANSWER);
        self.admin.limit = self.admin.limit.min(QUIET_ANSWER);
        for pair in std::mem::take(&mut self.pairs).iter().rev() {
            let late = start.elapsed() > QUIET / 4;
            if late || pair.destroy(&mut self.admin, &self.mmio).is_err() {
                break;
            }
        }
        // Each of its two steps takes so long at most, beside the answers.
        let left = QUIET.saturating_sub(start.elapsed() + 2 * QUIET_ANSWER) / 2;
        let quiet = self.reset(left).is_ok();
        self.mmio.write_address(ANSWER_LO, ANSWER_HI, 0);
        quiet
    }

    fn stall_limit(&self) -> Option<Duration> {
        self.completion
    }

    fn has_stalled(&mut self) {
        self.reason = reason::COMPLETION;
    }

    fn is_present(&self) -> bool {
        let mut class = [0; 4];
        let read = self.function.read_config(CONFIG_REVISION, &mut class);
        read.is_err() || class != [u8::MAX; 4]
    }

    fn listen(&mut self, events: &mut Vec<DeviceEvent>) {
        if let Some((reason, what)) = self.trouble() {
            self.reason = reason;
            events.push(DeviceEvent::ResetNeeded { reason: format!("{}: {what}", self.place) });
        }
        events.extend(self.notices.drain(..).map(DeviceEvent::Notice));
    }

    fn link(&mut self) -> Link {
        self.link
    }

    fn statistics(&mut self) -> DeviceStatistics {
        // A queue that does not answer is heard of by `listen`.
        let _ = self.statistics.update(&mut self.admin, &self.mmio);
        let read = self.statistics.read();
        DeviceStatistics {
            rx_errors: self.receive.errors.load(Ordering::Relaxed),
            tx_errors: read.tx_errors.saturating_add(self.transmit.errors.load(Ordering::Relaxed)),
            ..read
        }
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        if let Some(deal) = &self.deal {
            let _ =
                self.statistics.update_allowances(&mut self.admin, &self.mmio, &deal.device, &self.scratch);
        }
        self.statistics.named()
    }
}
