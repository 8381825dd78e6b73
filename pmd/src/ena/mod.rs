//! `ena`: VFs of the Elastic Network Adapter of AWS (1d0f:ec20, and 1d0f:ec21 with low latency queues).
//!
//! ```text
//!   control thread   admin queue, events, register reads through memory      mmio, admin, features, queues, events
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
//! What it does not do: send from memory of a guest, headers longer than an entry of 128 bytes has room for (where the
//! device has narrow ones), checksum offload on a device that has it for IPv4 alone, time stamps, the device's own
//! notifications of a poor configuration.

mod admin;
mod descriptor;
mod events;
mod features;
mod health;
mod host;
mod llq;
mod mmio;
mod queues;
mod registers;
mod rss;
mod rx;
mod statistics;
mod tx;

#[cfg(test)]
mod double;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

pub use rx::EnaReceive;
pub use tx::EnaTransmit;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues, Receive, Transmit};
use crate::memory::{BUFFER_SIZE, BufferPool, DmaMap, DmaMemory, DmaSlice, SlotBuffers};
use crate::offload::Capabilities;
use crate::pci::{Ids, PciFunction};
use crate::registers::{Caching, Registers};
use crate::vf::{Agreed, Place, Rung, Vf, VfDriver, Wishes};
use admin::{AdminError, AdminQueue, Opcode};
use events::{Event, Events};
use features::{Attributes, Hints, Limits, LlqLayout, Offloads};
use health::Health;
use llq::Submissions;
use mmio::{Mmio, Unanswered};
use queues::{Direction, Pair, Plan};
use registers::*;
use rx::ReceiveCounters;
use statistics::Statistics;
use tx::TransmitCounters;

/// Devices that this driver knows.
pub const IDS: [Ids; 2] = [Ids { vendor: 0x1d0f, device: 0xec20 }, Ids { vendor: 0x1d0f, device: 0xec21 }];

/// Entries of a ring, where the device has so many; a power of two.
const DEPTH: u32 = 1024;
/// The longest frame that is cut must fit into the buffers of a ring twice.
const LEAST_DEPTH: u32 = 128;
/// Rings lie on pages of their own (`ena_admin_aq_create_sq_cmd`: the base address is page aligned).
const PAGE: usize = 4096;
/// What memory comes in where there are huge pages.
const MEMORY_GRANULE: usize = 2 << 20;
/// Bytes of a frame's header that its longest packet does not count: Ethernet and a VLAN tag.
const HEADER: u32 = 18;
/// Shortest packet that every network carries (RFC 791).
const LEAST_MTU: u32 = 68;
/// Unit of the time limits in the capability register.
const LIMIT_UNIT: Duration = Duration::from_millis(100);
/// Between two looks at a reset.
const RESET_NAP: Duration = Duration::from_micros(200);
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

/// What the device offers, and what of it is used.
#[derive(Clone, Copy, Debug)]
struct Deal {
    device: Attributes,
    limits: Limits,
    offloads: Offloads,
    llq: Option<LlqLayout>,
    /// Queues each way.
    pairs: u16,
    max_frame: u32,
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

    /// Waits until the device says that it is in a reset, or is not.
    fn wait_reset(&mut self, resetting: bool, deadline: Instant) -> Result<(), &'static str> {
        loop {
            let status = self.mmio.read(DEV_STS).map_err(|Unanswered| "a register read is not answered")?;
            if (status & STS_RESETTING != 0) == resetting {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("its reset does not end");
            }
            thread::sleep(RESET_NAP);
        }
    }

    /// Resets the device: it forgets all queues, and does no DMA that it is not asked for. Takes as long as the device asks
    /// for twice, at most, and not longer than `longest` twice.
    fn reset(&mut self, longest: Duration) -> Result<(), &'static str> {
        let unanswered = |Unanswered| "a register read is not answered";
        self.admin.close();
        self.pairs.clear();
        self.mmio.place_answers();
        let status = self.mmio.read(DEV_STS).map_err(unanswered)?;
        let caps = self.mmio.read(CAPS).map_err(unanswered)?;
        if status & STS_READY == 0 {
            return Err("it is not ready");
        }
        let limit = (LIMIT_UNIT * ((caps & CAPS_RESET_LIMIT) >> CAPS_RESET_SHIFT)).min(longest);
        let reason = if self.reason > 15 { REASON_GENERIC } else { self.reason };
        self.mmio.write(DEV_CTL, CTL_RESET | u32::from(reason) << CTL_REASON_SHIFT);
        // A reset forgets it.
        self.mmio.place_answers();
        self.wait_reset(true, Instant::now() + limit)?;
        self.mmio.write(DEV_CTL, 0);
        self.wait_reset(false, Instant::now() + limit)?;
        let admin = match (caps & CAPS_ADMIN_LIMIT) >> CAPS_ADMIN_SHIFT {
            0 => Duration::from_secs(3),
            units => LIMIT_UNIT * units,
        };
        self.admin.limit = admin.min(self.patience.longest);
        self.width = (caps & CAPS_WIDTH) >> CAPS_WIDTH_SHIFT;
        self.statistics.restart();
        self.reason = reason::NORMAL;
        Ok(())
    }

    /// A controller that is older than all that ena-com drives.
    fn check_version(&mut self) -> Result<(), DeviceError> {
        let version = self.mmio.read(CONTROLLER_VERSION).unwrap_or(0);
        if version & CONTROLLER_VERSION_MASK < LEAST_CONTROLLER_VERSION {
            return Err(DeviceError::Unsupported(format!(
                "{}: the device's controller has version {version:#x}, which is too old",
                self.place
            )));
        }
        Ok(())
    }

    fn reaches(&self, end: u64) -> Result<(), DeviceError> {
        if self.width < 64 && end > 1 << self.width {
            return Err(DeviceError::Unsupported(format!(
                "{}: the device has addresses of {} bits, and its memory got longer ones; use an IOMMU",
                self.place, self.width
            )));
        }
        Ok(())
    }

    fn take_hints(&mut self, hints: Hints) {
        let time = |hint: u16| Duration::from_millis(hint.into());
        if let Some(read) = hints.read.filter(|read| *read > 0) {
            self.mmio.limit = time(read).min(self.patience.longest);
        }
        if let Some(admin) = hints.admin.filter(|admin| *admin > 0) {
            self.admin.limit = time(admin).min(self.patience.longest);
        }
        if let (Some(limit), true) = (hints.keep_alive, self.keep_alive.is_some()) {
            // Without a limit, an hour: whoever is silent for so long is no device.
            self.keep_alive = Some(if limit == 0 { Duration::from_secs(3600) } else { time(limit) });
        }
        if let Some(limit) = hints.completion {
            self.completion = (limit > 0).then(|| time(limit));
        }
    }

    /// Asks the device what it is, and tells it what is wanted.
    fn negotiate(&mut self) -> Result<Deal, (&'static str, AdminError)> {
        fn at<T>(what: &'static str, result: Result<T, AdminError>) -> Result<T, (&'static str, AdminError)> {
            result.map_err(|cause| (what, cause))
        }
        let (admin, mmio) = (&mut self.admin, &self.mmio);
        let address = self.place.address;
        at("host attributes", host::introduce(admin, mmio, &mut self.host_page, address))?;
        let attributes = features::get(admin, mmio, features::DEVICE_ATTRIBUTES, 0);
        let device = Attributes::of(&at("device attributes", attributes)?);
        let limits = at("number of queues", Limits::ask(admin, mmio, &device))?;
        let offloads = match device.has(features::OFFLOADS) {
            true => Offloads::of(&at("offloads", features::get(admin, mmio, features::OFFLOADS, 0))?),
            false => Offloads::default(),
        };
        let hints = match device.has(features::HINTS) {
            true => {
                let reply = at("time limits", features::get(admin, mmio, features::HINTS, 0))?;
                Hints::of([reply[2], reply[3], reply[4]])
            }
            false => Hints::default(),
        };
        let supported = at("events", features::get(admin, mmio, features::EVENTS, 0))?[2] & events::KNOWN;
        let set =
            features::command(Opcode::SetFeature, features::EVENTS, 0).word(features::VALUE + 1, supported);
        at("events", admin.execute(mmio, set))?;
        let llq = match device.has(features::LLQ) {
            true => at("low latency queues", LlqLayout::agree(admin, mmio))?,
            false => None,
        };
        let mtu = device.max_mtu.min(rx::MAX_FRAME - HEADER);
        if device.has(features::MTU) {
            let set = features::command(Opcode::SetFeature, features::MTU, 0).word(features::VALUE, mtu);
            at("longest packet", admin.execute(mmio, set))?;
        }
        let keeps_alive = supported >> events::group::KEEP_ALIVE & 1 != 0;
        self.keep_alive = keeps_alive.then_some(self.patience.keep_alive);
        self.completion = Some(self.patience.completion);
        self.take_hints(hints);
        let most = llq.map_or(limits.pairs, |llq| limits.pairs.min(llq.queues));
        let pairs = most.min(self.wishes.queue_pairs.get().into()) as u16;
        Ok(Deal { device, limits, offloads, llq, pairs, max_frame: mtu + HEADER })
    }

    /// What the device offers must be enough to be used at all.
    fn check(&self, deal: &Deal) -> Result<(), DeviceError> {
        let place = &self.place;
        let unusable =
            |what: String| Err(DeviceError::Unsupported(format!("{place}: {what}; it cannot be used")));
        if !deal.device.mac.is_valid_unicast() {
            return unusable(format!("the device has the address {}", deal.device.mac));
        }
        if deal.device.max_mtu < LEAST_MTU {
            return unusable(format!("the device carries packets of {} bytes", deal.device.max_mtu));
        }
        if deal.pairs == 0 || self.depths(deal).into_iter().any(|depth| u32::from(depth) < LEAST_DEPTH) {
            return unusable(format!("the device has too few queues: {:?}", deal.limits));
        }
        // A meta descriptor, a whole frame, and one more where its buffers go around the end.
        if usize::from(deal.limits.transmit_descriptors) < 3 {
            return unusable(format!("a frame has {} descriptors", deal.limits.transmit_descriptors));
        }
        Ok(())
    }

    /// Entries of receive and transmit rings.
    fn depths(&self, deal: &Deal) -> [u16; 2] {
        let transmit = deal.llq.map_or(deal.limits.transmit_depth, |llq| {
            // Completions stay in memory of the host.
            llq.depth.min(deal.limits.transmit_depth)
        });
        [deal.limits.receive_depth, transmit].map(|depth| match depth.min(DEPTH).checked_ilog2() {
            Some(log) => 1 << log,
            None => 0,
        })
    }

    fn capabilities(deal: &Deal) -> Capabilities {
        let offloads = deal.offloads;
        let cuts = usize::from(deal.limits.transmit_descriptors) >= tx::MOST_DESCRIPTORS;
        Capabilities {
            checksum: offloads.checksum(),
            tcp_v4: cuts && offloads.tcp_v4(),
            tcp_v6: cuts && offloads.tcp_v6(),
            ecn: cuts && offloads.ecn(),
            by_header: true,
            limits: tx::limits(deal.llq.as_ref(), deal.max_frame),
            ..Capabilities::NONE
        }
    }

    fn notices(&self, deal: &Deal) -> Vec<String> {
        let (name, mac) = (&self.place, deal.device.mac);
        let mut notices = vec![format!(
            "{name}: an ENA has no promiscuous mode, and its network delivers only frames for {mac} and takes only \
             frames from it; give the VM that address"
        )];
        if let Some(wish) = self.wishes.mac.filter(|wish| *wish != mac) {
            notices.push(format!(
                "{name}: the network interface has the address {mac}, which cannot be changed to {wish}; give the VM \
                 {mac}"
            ));
        }
        if deal.pairs < self.wishes.queue_pairs.get() {
            notices.push(format!(
                "{name}: {} queues each way are wanted and the device has {}; larger instances have more",
                self.wishes.queue_pairs, deal.pairs
            ));
        }
        notices
    }

    /// A register alone.
    fn register(&self, offset: u32) -> Result<Arc<dyn Registers>, DeviceError> {
        if !offset.is_multiple_of(4) {
            return Err(self.failed(format_args!("a queue's register is at {offset:#x}")));
        }
        Arc::clone(&self.function).bar(BAR, offset.into(), 4, Caching::Uncached)
    }

    /// The memory of a low latency queue in the device.
    fn device_memory(
        &mut self,
        layout: &LlqLayout,
        offset: u32,
        depth: u16,
    ) -> Result<Arc<dyn Registers>, DeviceError> {
        let bytes = usize::from(depth) * usize::from(layout.entry);
        if !offset.is_multiple_of(8) {
            return Err(self.failed(format_args!("a queue's memory is at {offset:#x}")));
        }
        let function = Arc::clone(&self.function);
        let memory = function.bar(MEMORY_BAR, offset.into(), bytes, Caching::WriteCombining)?;
        if memory.caching() == Caching::Uncached && !std::mem::replace(&mut self.slow_pushes_told, true) {
            self.notices.push(format!(
                "{}: frames are pushed into the device through an uncached mapping, which is slow: for a \
                 write-combining one, the kernel must offer resource{MEMORY_BAR}_wc of the device, or its vfio-pci be \
                 Amazon's (amzn-drivers, userspace/dpdk/enav2-vfio-patch)",
                self.place
            ));
        }
        Ok(memory)
    }

    /// Gets memory for a pair of queues, and has the device create them; `number` counts from 0.
    fn create(
        &mut self,
        deal: &Deal,
        number: u16,
        bell: Option<OwnedFd>,
    ) -> Result<(Receive, Transmit), DeviceError> {
        let [receive_depth, transmit_depth] = self.depths(deal);
        let ring = |depth: u16, size: usize| (usize::from(depth) * size).next_multiple_of(PAGE);
        let rings = [
            ring(receive_depth, descriptor::SIZE),
            ring(receive_depth, descriptor::SIZE),
            if deal.llq.is_some() { 0 } else { ring(transmit_depth, descriptor::SIZE) },
            ring(transmit_depth, descriptor::SENT_SIZE),
            SlotBuffers::bytes(transmit_depth),
        ];
        let fixed: usize = rings.iter().sum();
        // Receive buffers fill the ring and leave as many for frames on their way to the guest, and get the rest.
        let least = usize::from(receive_depth) * 3 / 2 * BUFFER_SIZE as usize;
        let len = (fixed + least).next_multiple_of(MEMORY_GRANULE);
        let map = Arc::clone(&self.function) as Arc<dyn DmaMap>;
        let memory = DmaMemory::new(map, len, &format!("ena {} {number}", self.place))?;
        let [rx, rx_done, tx, tx_done, tx_buffers] = rings;
        let sizes = [rx, rx_done, tx, tx_done, tx_buffers, len - fixed];
        let [rx, rx_done, tx, tx_done, tx_buffers, rx_buffers] = memory.carve(sizes)?;
        self.reaches(rx_buffers.iova() + rx_buffers.len() as u64)?;

        let plan = Plan {
            direction: Direction::Receive,
            depth: receive_depth,
            completion_size: descriptor::SIZE,
            completions: rx_done.iova(),
            submissions: Some(rx.iova()),
            // The first is that of the admin queue.
            vector: bell.as_ref().map(|_| number + 1),
        };
        let pair = self.create_pair(&plan)?;
        let interrupt = match bell {
            Some(bell) => Some(rx::Interrupt { unmask: self.register(pair.unmask)?, bell }),
            None => None,
        };
        let health = Arc::new(Health::default());
        self.health.push(Arc::clone(&health));
        let receive = EnaReceive::new(rx::Parts {
            submissions: rx,
            completions: rx_done,
            depth: receive_depth,
            doorbell: self.register(pair.doorbell)?,
            pool: BufferPool::new(rx_buffers),
            verifies: deal.offloads.verifies(),
            keeps_reserved_bits: deal.device.keeps_reserved_bits(),
            interrupt,
            counters: Arc::clone(&self.receive),
            health,
        });

        let plan = Plan {
            direction: Direction::Transmit,
            depth: transmit_depth,
            completion_size: descriptor::SENT_SIZE,
            completions: tx_done.iova(),
            submissions: deal.llq.is_none().then(|| tx.iova()),
            vector: None,
        };
        let pair = self.create_pair(&plan)?;
        let submissions = match deal.llq {
            None => {
                let max_header = u8::try_from(deal.limits.max_header).unwrap_or(u8::MAX);
                Submissions::Host { ring: tx, max_header }
            }
            Some(layout) => Submissions::Device {
                memory: self.device_memory(&layout, pair.memory, transmit_depth)?,
                layout,
            },
        };
        let health = Arc::new(Health::default());
        self.health.push(Arc::clone(&health));
        let transmit = EnaTransmit::new(tx::Parts {
            submissions,
            completions: tx_done,
            depth: transmit_depth,
            doorbell: self.register(pair.doorbell)?,
            buffers: tx_buffers,
            max_frame: deal.max_frame,
            capabilities: Self::capabilities(deal),
            keeps_reserved_bits: deal.device.keeps_reserved_bits(),
            counters: Arc::clone(&self.transmit),
            health,
        });
        Ok((Receive::Ena(receive), Transmit::Ena(transmit)))
    }

    fn create_pair(&mut self, plan: &Plan) -> Result<Pair, DeviceError> {
        let pair = Pair::create(&mut self.admin, &self.mmio, plan)
            .map_err(|cause| self.refused("it does not create a queue", cause))?;
        self.pairs.push(pair);
        Ok(pair)
    }

    /// Has flows spread over the receive queues.
    fn spread(&mut self, deal: &Deal) -> Result<(), DeviceError> {
        let receives: Vec<u16> =
            self.pairs.iter().filter(|pair| pair.is_receive()).map(|pair| pair.submission).collect();
        let spread = rss::spread(&mut self.admin, &self.mmio, &deal.device, &mut self.scratch, &receives)
            .map_err(|cause| self.refused("it does not spread flows over its queues", cause))?;
        if !spread && deal.pairs > 1 {
            self.notices.push(format!(
                "{}: the device does not let flows be spread, so frames may arrive through one of its queues only",
                self.place
            ));
        }
        Ok(())
    }

    /// An eventfd for each receive queue; without, they are polled.
    fn bells(&self, pairs: u16) -> Vec<Option<OwnedFd>> {
        match self.function.interrupts(usize::from(pairs) + 1) {
            // The first is that of the admin queue, which is looked at all the time.
            Ok(bells) => bells.into_iter().skip(1).map(Some).collect(),
            Err(cause) => {
                tracing::debug!(device = %self.place, %cause, "no interrupts");
                (0..pairs).map(|_| None).collect()
            }
        }
    }

    /// What the device has said; why it must be reset, if it must.
    fn hear(&mut self) -> Option<(u8, String)> {
        let mut trouble = None;
        for event in self.events.read(&self.mmio) {
            // Whatever it says, it lives.
            self.alive = Instant::now();
            match event {
                Event::Link(false) => self.link = Link::Down,
                Event::Link(true) => self.link = Link::Up { speed: self.speed() },
                Event::Hints(hints) => self.take_hints(hints),
                Event::KeepAlive => {}
                Event::Fatal(syndrome) => {
                    let text = format!("the device reports a fatal error, syndrome {syndrome}");
                    trouble = Some((REASON_GENERIC, text));
                }
                Event::ResetRequest(syndrome) => {
                    let text = format!("the device asks to be reset, syndrome {syndrome}");
                    trouble = Some((REASON_GENERIC, text));
                }
                Event::Warning(syndrome) => {
                    self.notices.push(format!("{}: the device warns, syndrome {syndrome}", self.place));
                }
                Event::Other(group, syndrome) => {
                    tracing::debug!(device = %self.place, group, syndrome, "unknown event");
                }
            }
        }
        trouble
    }

    /// Mbit/s, from devices that say it.
    fn speed(&mut self) -> Option<u32> {
        self.deal.filter(|deal| deal.device.has(features::LINK))?;
        let reply = features::get(&mut self.admin, &self.mmio, features::LINK, 0).ok()?;
        Some(reply[2]).filter(|speed| *speed > 0)
    }

    /// Whether something is wrong that only a reset repairs, and what.
    fn trouble(&mut self) -> Option<(u8, String)> {
        if let Some(trouble) = self.hear() {
            return Some(trouble);
        }
        if let Some(breach) = self.health.iter().find_map(|health| health.breach()) {
            return Some((breach as u8, format!("the device {}", breach.what())));
        }
        if self.admin.is_broken() {
            return Some((reason::ADMIN, "the device's admin queue does not answer".to_owned()));
        }
        if let Some(limit) = self.keep_alive.filter(|limit| self.alive.elapsed() > *limit) {
            return Some((
                reason::KEEP_ALIVE,
                format!("the device has not said for {limit:?} that it lives"),
            ));
        }
        match self.mmio.read(DEV_STS) {
            Ok(status) if status & STS_FATAL != 0 => {
                Some((REASON_GENERIC, "the device is in a state that only a reset ends".to_owned()))
            }
            Ok(_) => None,
            Err(Unanswered) => Some((REASON_GENERIC, "the device does not answer register reads".to_owned())),
        }
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

    fn enable(&mut self) -> Result<Queues, DeviceError> {
        let deal = self.deal.ok_or_else(|| self.failed("nothing was agreed on"))?;
        let mut queues = Queues::default();
        for (number, bell) in (0..deal.pairs).zip(self.bells(deal.pairs)) {
            let (receive, transmit) = self.create(&deal, number, bell)?;
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
