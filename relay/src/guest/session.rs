//! One front end's session: what it has told us, and what follows for the rings.
//!
//! ```text
//!   SET_MEM_TABLE / ADD_MEM_REG      SET_VRING_NUM, ADDR, BASE      SET_VRING_KICK      SET_VRING_ENABLE
//!            memory        +              place          +              started     +        enabled      = running
//! ```
//!
//! A ring that has all four is built and handed to the relay. Whatever takes one away first takes the ring back from
//! the relay, whole: no worker uses it any more and no device holds its buffers when the reply goes out.

mod rings;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use pmd::MacAddress;
use thiserror::Error;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserInflight, VhostUserLog, VhostUserSingleMemoryRegion, VhostUserVringAddr,
    VhostUserVringState,
};
use vm_memory::ByteValued;

use self::rings::RingState;
use super::connection::Message;
use super::dirty_log::{DirtyLog, LogError};
use super::features::{Features, GuestOptions, protocol};
use super::iotlb::{Change, Iotlb, IotlbError};
use super::iotlb_miss::{self, BackendChannel};
use super::memory::{GuestMemory, MAX_REGIONS, MemoryError};
use super::message;
use super::payload::{
    describe, inflight, memory_table, number, payload, ring_descriptor, ring_index, ring_state,
};
use super::positions::{LENGTH, Positions};
use super::space::AddressSpace;
use crate::lane::MOST_PAIRS;
use crate::relay::{GuestPort, GuestStatus};
use crate::ring::config::MAX_SIZE;
use crate::ring::notify::{Call, check_eventfd};
use crate::ring::{RingConfig, RingError};
use crate::zero_copy::Shared;

/// Virtqueues: a receive queue (even) and a transmit queue (odd) for each queue pair.
pub(super) const RINGS: usize = 2 * MOST_PAIRS;
/// Longest frame without its Ethernet header and VLAN tag, in bytes: jumbo frames of 9702 bytes.
pub const MAX_MTU: u16 = 9702 - 18;
/// Shortest MTU that virtio-net knows (virtio 1.3, 5.1.4.1).
pub const MIN_MTU: u16 = 68;

/// Why a message was not obeyed. The front end is told if it asked for replies; otherwise the connection ends.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Memory that cannot be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A dirty log that cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A dirty log without a bit for every page of memory.
    #[error("the dirty log is too small for the guest's memory")]
    SmallLog,
    /// A translation that makes no sense.
    #[error(transparent)]
    Iotlb(#[from] IotlbError),
    /// A ring that cannot be started.
    #[error("ring {index}: {cause}")]
    Ring {
        /// Virtqueue index.
        index: usize,
        /// The cause.
        cause: RingError,
    },
    /// There is no such ring.
    #[error("ring {0} does not exist: this device has {RINGS}")]
    NoSuchRing(u64),
    /// Bits that were not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// A size no ring can have.
    #[error("ring {index} cannot have {size} descriptors")]
    RingSize {
        /// Virtqueue index.
        index: usize,
        /// The size.
        size: u32,
    },
    /// In-flight memory for another number of rings than there can be.
    #[error("in-flight memory for {0} rings: 1 to {RINGS} are possible")]
    Inflight(u16),
    /// An MTU that is not possible.
    #[error("an MTU of {mtu} bytes: {MIN_MTU} to {most} are possible here")]
    Mtu {
        /// What was asked for.
        mtu: u64,
        /// What the relay is configured for, or any relay can do.
        most: u16,
    },
    /// A descriptor that is missing, or none that can be used.
    #[error("{0}")]
    Descriptor(String),
    /// A payload that contradicts itself.
    #[error("{0}")]
    Payload(&'static str),
}

/// What to send back.
enum Answer {
    /// Nothing but the acknowledgement, if wanted.
    Done,
    /// What was sent: rust-vmm's front end wants it back, others do not look at it.
    Echo,
    Number(u64),
    State(VhostUserVringState),
    Inflight(VhostUserInflight, OwnedFd),
}

/// What goes back to the front end.
#[derive(Debug)]
pub struct Reply {
    /// The whole message.
    pub bytes: Vec<u8>,
    /// A descriptor that goes along.
    pub descriptor: Option<OwnedFd>,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    port: GuestPort,
    offered: Features,
    features: Features,
    memory: Arc<GuestMemory>,
    log: Option<Arc<DirtyLog>>,
    iotlb: Iotlb,
    /// What the rings see of all that.
    space: Arc<AddressSpace>,
    rings: Vec<RingState>,
    /// A ring whose position is in the answer that is on its way.
    told: Option<usize>,
    /// Where it is kept how far the rings are.
    positions: Option<Arc<Mutex<Positions>>>,
    /// Largest MTU that the front end may set.
    max_mtu: u16,
    /// Device status, as the driver set it (virtio 1.3, 2.1).
    status: u64,
    /// Where missing translations are asked for.
    channel: Option<BackendChannel>,
    /// Translations of rings' own areas that were asked for since some were removed.
    asked: BTreeSet<u64>,
    /// Rings ring it when they miss a translation.
    bell: Arc<OwnedFd>,
    /// Whether a write to one of the call descriptors had to be ended: none is written to any more.
    dead_calls: Arc<AtomicBool>,
}

impl Session {
    /// A session that has heard nothing yet.
    pub fn new(
        port: impl Into<GuestPort>,
        options: &GuestOptions,
        positions: Option<Arc<Mutex<Positions>>>,
        peer: Option<i32>,
    ) -> std::io::Result<Self> {
        let port = port.into();
        let bell = iotlb_miss::wake()?;
        port.set_guest(Some(GuestStatus { peer, features: 0, mtu: None }));
        Ok(Self {
            port,
            offered: Features::offered(options),
            features: Features::default(),
            memory: Arc::default(),
            log: None,
            iotlb: Iotlb::default(),
            space: Arc::default(),
            rings: (0..RINGS).map(|_| RingState::default()).collect(),
            told: None,
            positions,
            max_mtu: options.mtu.unwrap_or(MAX_MTU).min(MAX_MTU),
            status: 0,
            channel: None,
            asked: BTreeSet::new(),
            bell,
            dead_calls: Arc::default(),
        })
    }

    /// Readable when [`look_after`](Self::look_after) is due.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Passes on what rings ask for.
    pub fn look_after(&mut self) {
        iotlb_miss::quieten(&self.bell);
        let Some(channel) = &mut self.channel else { return };
        for misses in self.rings.iter().filter_map(|ring| ring.misses.as_ref()) {
            if let Some((iova, needed)) = misses.take()
                && let Err(error) = channel.send_miss(iova, needed)
            {
                tracing::warn!("{}: the channel to the front end is broken: {error}", self.port);
                self.channel = None;
                return;
            }
        }
    }

    /// Obeys a message; returns what to send back, if anything. An error is the reason to end the connection.
    pub fn handle(&mut self, mut message: Message) -> Result<Option<Reply>, Refusal> {
        let header = message.header;
        tracing::trace!(at = %self.port, request = ?header.request, "vhost-user");
        let reply =
            |payload: &[u8]| Reply { bytes: message::reply(header.request, payload), descriptor: None };
        let acknowledge = |status: u64| {
            let wanted = header.need_reply && !header.shape.answers;
            wanted.then(|| reply(&status.to_ne_bytes()))
        };
        match self.obey(&mut message) {
            Ok(Answer::Done) => Ok(acknowledge(0)),
            Ok(Answer::Echo) => Ok(Some(reply(&message.payload))),
            Ok(Answer::Number(number)) => Ok(Some(reply(&number.to_ne_bytes()))),
            Ok(Answer::State(state)) => Ok(Some(reply(state.as_slice()))),
            Ok(Answer::Inflight(inflight, descriptor)) => {
                Ok(Some(Reply { descriptor: Some(descriptor), ..reply(inflight.as_slice()) }))
            }
            Err(refusal) => match acknowledge(1) {
                Some(reply) => {
                    tracing::warn!("{}: refused {:?}: {refusal}", self.port, header.request);
                    Ok(Some(reply))
                }
                None => Err(refusal),
            },
        }
    }

    /// The front end has the last answer. What it says of a ring's position need not be kept any more.
    pub fn has_answered(&mut self) {
        if let Some(index) = self.told.take() {
            self.forget_position(index);
        }
    }

    /// What the guest did since that it must not do: a reason to end the session.
    pub fn offence(&self) -> Option<&'static str> {
        if self.memory.is_poisoned() || self.log.as_ref().is_some_and(|log| log.is_poisoned()) {
            return Some("the VM took away memory that it had shared");
        }
        let blocked = self.dead_calls.load(Ordering::Relaxed);
        blocked.then_some("the VM made its interrupt descriptor block")
    }

    /// Ends the session; whether a worker, and with it all its guests, had to wait for this one.
    pub fn end(mut self) -> bool {
        // Who leaves at once may have a worker waiting at this moment.
        self.stop_all(false);
        self.dead_calls.load(Ordering::Relaxed)
    }

    fn call(&self, fd: Option<&OwnedFd>) -> Result<Option<Call>, Refusal> {
        let bad = |cause: std::io::Error| Refusal::Descriptor(format!("call descriptor: {cause}"));
        let call = |fd: &OwnedFd| Call::new(fd.try_clone()?, Arc::clone(&self.dead_calls));
        fd.map(call).transpose().map_err(bad)
    }

    fn obey(&mut self, message: &mut Message) -> Result<Answer, Refusal> {
        use FrontendReq as R;
        match message.header.request {
            R::GET_FEATURES => return Ok(Answer::Number(self.offered.0)),
            R::GET_PROTOCOL_FEATURES => return Ok(Answer::Number(protocol().bits())),
            R::GET_QUEUE_NUM => return Ok(Answer::Number(MOST_PAIRS as u64)),
            R::GET_STATUS => return Ok(Answer::Number(self.status)),
            R::GET_MAX_MEM_SLOTS => return Ok(Answer::Number(MAX_REGIONS as u64)),
            R::SET_FEATURES => self.set_features(number(message)?)?,
            R::SET_PROTOCOL_FEATURES => match number(message)? & !protocol().bits() {
                0 => {}
                surplus => return Err(Refusal::Features(surplus)),
            },
            R::SET_MEM_TABLE => {
                let table = memory_table(&message.payload)?;
                let files = std::mem::take(&mut message.descriptors);
                if table.len() != files.len() {
                    let (regions, files) = (table.len(), files.len());
                    return Err(Refusal::Descriptor(format!("{regions} regions with {files} descriptors")));
                }
                let memory = GuestMemory::map(table.into_iter().zip(files.into_iter().map(File::from)))?;
                self.replace_memory(memory, Self::start_all)?;
            }
            R::ADD_MEM_REG => {
                let region: VhostUserSingleMemoryRegion = payload(message)?;
                let without = || Refusal::Descriptor("a region without its descriptor".to_owned());
                let fd = message.descriptors.pop().ok_or_else(without)?;
                let memory = self.memory.with(describe(&region), File::from(fd))?;
                self.replace_memory(memory, Self::start_those_with_memory)?;
            }
            R::REM_MEM_REG => {
                let region: VhostUserSingleMemoryRegion = payload(message)?;
                let memory = self.memory.without(describe(&region))?;
                self.replace_memory(memory, Self::start_those_with_memory)?;
            }
            R::SET_VRING_NUM => {
                let (index, size) = ring_state(message)?;
                let valid = u16::try_from(size).ok().filter(|size| *size > 0 && *size <= MAX_SIZE);
                let size = valid.ok_or(Refusal::RingSize { index, size })?;
                self.change(index, |ring| ring.config.size = size)?;
            }
            R::SET_VRING_BASE => {
                let (index, base) = ring_state(message)?;
                self.change(index, |ring| (ring.config.base, ring.base) = (base, Some(base)))?;
            }
            R::SET_VRING_ADDR => {
                let address: VhostUserVringAddr = payload(message)?;
                let index = ring_index(u64::from(address.index))?;
                self.change(index, |ring| {
                    ring.config.descriptors = address.descriptor;
                    ring.config.available = address.available;
                    ring.config.used = address.used;
                    ring.placed = true;
                })?;
            }
            R::SET_VRING_ENABLE => {
                let (index, enable) = ring_state(message)?;
                self.change(index, |ring| ring.enabled = Some(enable != 0))?;
            }
            R::SET_VRING_KICK => {
                let (index, fd) = ring_descriptor(message)?;
                if let Some(fd) = &fd {
                    check_eventfd(fd)
                        .map_err(|cause| Refusal::Descriptor(format!("kick descriptor: {cause}")))?;
                }
                self.change(index, |ring| (ring.kick, ring.started) = (fd, true))?;
            }
            R::SET_VRING_CALL => {
                let (index, fd) = ring_descriptor(message)?;
                self.set_call(index, fd)?;
            }
            // Errors of a ring are in our counters and log; nobody needs to be told by eventfd.
            R::SET_VRING_ERR => drop(ring_descriptor(message)?),
            R::GET_VRING_BASE => {
                let (index, _) = ring_state(message)?;
                self.stop_ring(index);
                self.told = Some(index);
                // The call descriptor stays: a front end that resets one ring does not send it again.
                let ring = &mut self.rings[index];
                (ring.started, ring.kick) = (false, None);
                let base = ring.config.base;
                ring.base = Some(base);
                self.forget_translations_if_stopped();
                return Ok(Answer::State(VhostUserVringState::new(index as u32, base)));
            }
            R::RESET_OWNER | R::RESET_DEVICE => {
                self.status = 0;
                self.stop_all(true);
            }
            R::SET_STATUS => {
                self.status = number(message)? & 0xff;
                if self.status == 0 {
                    self.stop_all(true);
                }
            }
            R::SET_LOG_BASE => {
                let VhostUserLog { mmap_size, mmap_offset } = payload(message)?;
                let without = || Refusal::Descriptor("a dirty log without its descriptor".to_owned());
                let file = File::from(message.descriptors.pop().ok_or_else(without)?);
                let log = DirtyLog::map(file, mmap_size, mmap_offset)?;
                if !log.covers(self.memory.end()) {
                    return Err(Refusal::SmallLog);
                }
                self.log = Some(Arc::new(log));
                self.renew_space(false)?;
                return Ok(Answer::Echo);
            }
            R::SEND_RARP => {
                // The address stands in the first six bytes of the payload, as in memory.
                let [a, b, c, d, e, f, _, _] = number(message)?.to_ne_bytes();
                self.port.announce(MacAddress([a, b, c, d, e, f]));
            }
            R::NET_SET_MTU => {
                let mtu = number(message)?;
                let most = self.max_mtu;
                let possible = u16::try_from(mtu).ok().filter(|mtu| (MIN_MTU..=most).contains(mtu));
                self.port.set_guest_mtu(possible.ok_or(Refusal::Mtu { mtu, most })?);
            }
            R::SET_BACKEND_REQ_FD => {
                let without = || Refusal::Descriptor("no descriptor".to_owned());
                let fd = message.descriptors.pop().ok_or_else(without)?;
                let bad = |cause| Refusal::Descriptor(format!("back-end channel: {cause}"));
                self.channel = Some(BackendChannel::new(fd).map_err(bad)?);
                self.asked.clear();
                self.start_all()?;
            }
            R::IOTLB_MSG => {
                let change = self.iotlb.apply(&message.payload)?;
                if self.channel.is_some() {
                    // The answer to what a ring asked for that has been stopped since: it is asked for again.
                    self.forget_translations_if_stopped();
                }
                if self.features.translated() {
                    self.renew_space(change == Change::Removed)?;
                }
            }
            R::GET_INFLIGHT_FD => {
                let asked = inflight(message)?;
                let (positions, file) = Positions::for_front_end().map_err(bad_inflight)?;
                self.keep_positions(positions);
                let answer = VhostUserInflight { mmap_size: LENGTH as u64, mmap_offset: 0, ..asked };
                return Ok(Answer::Inflight(answer, file.into()));
            }
            R::SET_INFLIGHT_FD => {
                let VhostUserInflight { mmap_size, mmap_offset, .. } = inflight(message)?;
                let without = || Refusal::Descriptor("in-flight memory without its descriptor".to_owned());
                let file = File::from(message.descriptors.pop().ok_or_else(without)?);
                let positions = Positions::from_front_end(file, mmap_size, mmap_offset);
                self.keep_positions(positions.map_err(bad_inflight)?);
            }
            // SET_OWNER, SET_LOG_FD (an eventfd that nobody listens to); whatever else is in the table has a case above.
            _ => {}
        }
        Ok(Answer::Done)
    }

    /// Keeps from now on in the front end's memory how far the rings are.
    fn keep_positions(&mut self, positions: Positions) {
        self.positions = Some(Arc::new(Mutex::new(positions)));
    }

    fn set_features(&mut self, bits: u64) -> Result<(), Refusal> {
        if bits & !self.offered.0 != 0 {
            return Err(Refusal::Features(bits & !self.offered.0));
        }
        let features = Features(bits);
        let port = self.port.clone();
        let _held = port.hold();
        if self.features != features {
            self.stop_all(false);
            if self.features.logs() && !features.logs() {
                // The migration was given up, and memory may outgrow its log. The next one brings its own.
                self.log = None;
            }
            self.features = features;
            self.port.set_guest_features(bits);
            self.share_memory();
            self.space = Arc::new(self.make_space());
        }
        self.start_all()
    }

    /// Stops all rings, replaces the memory that they are in, and starts them again by `start`.
    fn replace_memory(
        &mut self,
        memory: GuestMemory,
        start: fn(&mut Self) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        if self.log.as_ref().is_some_and(|log| !log.covers(memory.end())) {
            return Err(Refusal::SmallLog);
        }
        let port = self.port.clone();
        let _held = port.hold();
        self.stop_all(false);
        self.memory = Arc::new(memory);
        self.share_memory();
        self.space = Arc::new(self.make_space());
        start(self)
    }

    /// Tells the relay what a device may be let into. All rings have been stopped.
    fn share_memory(&self) {
        self.port.set_memory(match self.features.translated() {
            _ if self.memory.is_empty() => Shared::Nothing,
            true => Shared::Translated,
            false => Shared::Memory(Arc::clone(&self.memory)),
        });
    }

    fn make_space(&self) -> AddressSpace {
        let log = self.log.clone().filter(|_| self.features.logs());
        if self.features.translated() {
            AddressSpace::translated(Arc::clone(&self.memory), &self.iotlb, log)
        } else {
            AddressSpace::physical(Arc::clone(&self.memory), log)
        }
    }

    /// Forgets all translations when no ring is started. From when its rings stop until they start again, a front end
    /// does not tell what becomes of them (QEMU looks away from the IOMMU meanwhile), and a guest that begins anew uses
    /// the same addresses for other memory.
    fn forget_translations_if_stopped(&mut self) {
        if !self.iotlb.is_empty() && self.rings.iter().all(|ring| !ring.started) {
            self.iotlb.clear();
            self.asked.clear();
            self.space = Arc::new(self.make_space());
        }
    }

    /// Has all rings see translations and log as they are now. With `removed`, a ring whose own areas are no longer where
    /// they were waits until they are somewhere again.
    fn renew_space(&mut self, removed: bool) -> Result<(), Refusal> {
        let space = Arc::new(self.make_space());
        let before = std::mem::replace(&mut self.space, space);
        let port = self.port.clone();
        let _held = port.hold();
        if removed {
            self.asked.clear();
            for index in 0..RINGS {
                let ring = &self.rings[index];
                if ring.running && !self.is_in_place(&ring.config, &before) {
                    let base = self.port.suspend_ring(index);
                    let ring = &mut self.rings[index];
                    (ring.running, ring.suspended, ring.misses) = (false, true, None);
                    ring.config.base = base.unwrap_or(ring.config.base);
                }
            }
        }
        self.port.set_space(&self.space, removed);
        self.start_all()
    }

    /// Whether the areas of a ring that was started in `before` are still there, and at the same place.
    fn is_in_place(&self, config: &RingConfig, before: &AddressSpace) -> bool {
        let areas = |space: &AddressSpace| {
            config.areas(self.features.packed()).map(|(address, len)| space.area(address, len))
        };
        let now = areas(&self.space);
        now.iter().all(Option::is_some) && now == areas(before)
    }

    /// Changes what is known of a ring, with the ring stopped meanwhile.
    fn change(&mut self, index: usize, change: impl FnOnce(&mut RingState)) -> Result<(), Refusal> {
        self.stop_ring(index);
        change(&mut self.rings[index]);
        self.start_ring(index)
    }

    fn set_call(&mut self, index: usize, fd: Option<OwnedFd>) -> Result<(), Refusal> {
        let call = self.call(fd.as_ref())?;
        self.rings[index].call = fd;
        if self.rings[index].running {
            self.port.with_ring(index, |ring| ring.set_call(call));
        }
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Not as in a reset: the front end may come back to rings of which it only knows where they were at first.
        self.stop_all(false);
        self.port.set_memory(Shared::Nothing);
        self.port.set_guest(None);
    }
}

fn bad_inflight(cause: std::io::Error) -> Refusal {
    Refusal::Descriptor(format!("in-flight memory: {cause}"))
}

#[cfg(test)]
mod tests;
