//! One front end's session: what it has told us, and what follows for the rings.
//!
//! ```text
//!   SET_MEM_TABLE / ADD_MEM_REG      SET_VRING_NUM, ADDR, BASE      SET_VRING_KICK      SET_VRING_ENABLE
//!            memory        +              place          +              started     +        enabled      = running
//! ```
//!
//! A ring that has all four is built and handed to the relay. Whatever takes one away first takes the ring back from
//! the relay, whole: no worker uses it any more and no device holds its buffers when the reply goes out.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion, VhostUserU64,
    VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use super::connection::Message;
use super::features::{Features, GuestOptions, protocol};
use super::memory::{GuestMemory, MAX_REGIONS, MemoryError, RegionDescription};
use super::message;
use crate::relay::{GuestStatus, Relay};
use crate::ring::notify::{Call, check_eventfd};
use crate::ring::split::MAX_SIZE;
use crate::ring::{ReceiveRing, RingConfig, RingError, SplitRing, TransmitRing};

/// Virtqueues: one receive queue (0) and one transmit queue (1).
const QUEUES: usize = 2;
/// `SET_VRING_KICK` and its like: the ring's index is in the low byte, this bit says that no descriptor came along.
const NO_DESCRIPTOR: u64 = 1 << 8;

/// Why a message was not obeyed. The front end is told if it asked for replies; otherwise the connection ends.
#[derive(Debug, Error)]
pub enum Refusal {
    /// Memory that cannot be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A ring that cannot be started.
    #[error("ring {index}: {cause}")]
    Ring {
        /// Virtqueue index.
        index: usize,
        /// The cause.
        cause: RingError,
    },
    /// There is no such ring.
    #[error("ring {0} does not exist: this device has {QUEUES}")]
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
    Number(u64),
    State(VhostUserVringState),
}

/// What is known of one ring.
#[derive(Debug, Default)]
struct RingState {
    config: RingConfig,
    placed: bool,
    started: bool,
    /// What `SET_VRING_ENABLE` said last, if anything.
    enabled: Option<bool>,
    running: bool,
    call: Option<OwnedFd>,
    kick: Option<OwnedFd>,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Session {
    relay: Arc<Relay>,
    offered: Features,
    features: Features,
    memory: Arc<GuestMemory>,
    rings: [RingState; QUEUES],
    /// Whether a write to a call descriptor had to be ended, for each that was handed to a ring.
    dead_calls: Vec<Arc<AtomicBool>>,
}

impl Session {
    /// A session that has heard nothing yet.
    pub fn new(relay: Arc<Relay>, options: &GuestOptions, peer: Option<i32>) -> Self {
        relay.set_guest(Some(GuestStatus { peer, features: 0 }));
        let offered = Features::offered(options);
        let rings = std::array::from_fn(|_| RingState::default());
        let (features, memory, dead_calls) = (Features::default(), Arc::default(), Vec::new());
        Self { relay, offered, features, memory, rings, dead_calls }
    }

    /// Obeys a message; returns the bytes to send back, if any. An error is the reason to end the connection.
    pub fn handle(&mut self, mut message: Message) -> Result<Option<Vec<u8>>, Refusal> {
        let header = message.header;
        tracing::trace!(relay = self.relay.id(), request = ?header.request, "vhost-user");
        let acknowledge = |status: u64| {
            let wanted = header.need_reply && !header.shape.answers;
            wanted.then(|| message::reply(header.request, &status.to_ne_bytes()))
        };
        match self.obey(&mut message) {
            Ok(Answer::Done) => Ok(acknowledge(0)),
            Ok(Answer::Number(number)) => Ok(Some(message::reply(header.request, &number.to_ne_bytes()))),
            Ok(Answer::State(state)) => Ok(Some(message::reply(header.request, state.as_slice()))),
            Err(refusal) => match acknowledge(1) {
                Some(reply) => {
                    tracing::warn!("relay {}: refused {:?}: {refusal}", self.relay.id(), header.request);
                    Ok(Some(reply))
                }
                None => Err(refusal),
            },
        }
    }

    /// What the guest did since that it must not do: a reason to end the session.
    pub fn offence(&self) -> Option<&'static str> {
        if self.memory.is_poisoned() {
            return Some("the VM took away memory that it had shared");
        }
        let blocked = self.dead_calls.iter().any(|dead| dead.load(Ordering::Relaxed));
        blocked.then_some("the VM made its interrupt descriptor block")
    }

    fn call(&mut self, fd: Option<&OwnedFd>) -> Result<Option<Call>, Refusal> {
        let bad = |cause: std::io::Error| Refusal::Descriptor(format!("call descriptor: {cause}"));
        let call = fd.map(|fd| Call::new(fd.try_clone()?)).transpose().map_err(bad)?;
        // Front ends change it as often as they like; the rings keep those alive that are in use.
        self.dead_calls.retain(|dead| Arc::strong_count(dead) > 1 || dead.load(Ordering::Relaxed));
        self.dead_calls.extend(call.as_ref().map(Call::death));
        Ok(call)
    }

    fn obey(&mut self, message: &mut Message) -> Result<Answer, Refusal> {
        use FrontendReq as R;
        match message.header.request {
            R::GET_FEATURES => return Ok(Answer::Number(self.offered.0)),
            R::GET_PROTOCOL_FEATURES => return Ok(Answer::Number(protocol().bits())),
            R::GET_QUEUE_NUM => return Ok(Answer::Number(1)),
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
                self.replace_memory(memory)?;
            }
            R::ADD_MEM_REG => {
                let region: VhostUserSingleMemoryRegion = payload(message)?;
                let without = || Refusal::Descriptor("a region without its descriptor".to_owned());
                let fd = message.descriptors.pop().ok_or_else(without)?;
                self.replace_memory(self.memory.with(describe(&region), File::from(fd))?)?;
            }
            R::REM_MEM_REG => {
                let region: VhostUserSingleMemoryRegion = payload(message)?;
                self.replace_memory(self.memory.without(describe(&region))?)?;
            }
            R::SET_VRING_NUM => {
                let (index, size) = self.ring_state(message)?;
                let valid = u16::try_from(size).ok().filter(|size| *size > 0 && *size <= MAX_SIZE);
                let size = valid.ok_or(Refusal::RingSize { index, size })?;
                self.change(index, |ring| ring.config.size = size)?;
            }
            R::SET_VRING_BASE => {
                let (index, base) = self.ring_state(message)?;
                self.change(index, |ring| ring.config.base = base)?;
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
                let (index, enable) = self.ring_state(message)?;
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
                let (index, _) = self.ring_state(message)?;
                self.stop_ring(index);
                let ring = &mut self.rings[index];
                ring.started = false;
                (ring.call, ring.kick) = (None, None);
                return Ok(Answer::State(VhostUserVringState::new(index as u32, ring.config.base)));
            }
            R::RESET_OWNER | R::RESET_DEVICE => self.stop_all(true),
            // SET_OWNER; whatever else is in the table has a case above.
            _ => {}
        }
        Ok(Answer::Done)
    }

    fn set_features(&mut self, bits: u64) -> Result<(), Refusal> {
        if bits & !self.offered.0 != 0 {
            return Err(Refusal::Features(bits & !self.offered.0));
        }
        if self.features != Features(bits) {
            self.stop_all(false);
            self.features = Features(bits);
            self.relay.set_guest_features(bits);
        }
        self.start_all()
    }

    fn replace_memory(&mut self, memory: GuestMemory) -> Result<(), Refusal> {
        self.stop_all(false);
        self.memory = Arc::new(memory);
        self.start_all()
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
            self.relay.with_ring(index, |ring| ring.set_call(call));
        }
        Ok(())
    }

    fn start_all(&mut self) -> Result<(), Refusal> {
        (0..QUEUES).try_for_each(|index| self.start_ring(index))
    }

    /// Stops all rings; with `reset` they are as in the beginning.
    fn stop_all(&mut self, reset: bool) {
        for index in 0..QUEUES {
            self.stop_ring(index);
            if reset {
                self.rings[index] = RingState::default();
            }
        }
    }

    /// Starts a ring if all that it needs is there.
    fn start_ring(&mut self, index: usize) -> Result<(), Refusal> {
        let features = self.features;
        let ring = &mut self.rings[index];
        let enabled = ring.enabled.unwrap_or(!features.rings_begin_disabled());
        if ring.running || !enabled || !ring.started || !ring.placed || ring.config.size == 0 {
            return Ok(());
        }
        // Between a removed region and the next message a ring may be without its memory. It waits.
        if self.memory.is_empty() {
            return Ok(());
        }
        ring.config.indirect = features.indirect();
        let fd = ring.call.take();
        let call = self.call(fd.as_ref())?;
        let ring = &mut self.rings[index];
        ring.call = fd;
        let split = SplitRing::new(&ring.config, &self.memory, call)
            .map_err(|cause| Refusal::Ring { index, cause })?;
        ring.running = true;
        tracing::debug!(relay = self.relay.id(), index, size = ring.config.size, "ring started");
        if index == 0 {
            self.relay.attach_receive(ReceiveRing::new(split, features.header(), features.mergeable()));
        } else {
            self.relay.attach_transmit(TransmitRing::new(split, features.header()));
        }
        Ok(())
    }

    fn stop_ring(&mut self, index: usize) {
        if !std::mem::take(&mut self.rings[index].running) {
            return;
        }
        if let Some(next) = self.relay.detach_ring(index) {
            self.rings[index].config.base = u32::from(next);
            tracing::debug!(relay = self.relay.id(), index, next, "ring stopped");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop_all(true);
        self.relay.set_guest(None);
    }
}

impl Session {
    /// Index and value of a message whose payload is a ring's state.
    fn ring_state(&self, message: &Message) -> Result<(usize, u32), Refusal> {
        let state: VhostUserVringState = payload(message)?;
        Ok((ring_index(u64::from(state.index))?, state.num))
    }
}

fn ring_index(index: u64) -> Result<usize, Refusal> {
    usize::try_from(index).ok().filter(|index| *index < QUEUES).ok_or(Refusal::NoSuchRing(index))
}

/// Ring index and descriptor of `SET_VRING_KICK`, `CALL` and `ERR`.
fn ring_descriptor(message: &mut Message) -> Result<(usize, Option<OwnedFd>), Refusal> {
    let value = number(message)?;
    let index = ring_index(value & 0xff)?;
    let fd = message.descriptors.pop();
    if value & !(NO_DESCRIPTOR | 0xff) != 0 || (value & NO_DESCRIPTOR == 0) != fd.is_some() {
        return Err(Refusal::Descriptor(format!(
            "value {value:#x} contradicts the descriptor that came along"
        )));
    }
    Ok((index, fd))
}

fn payload<T: ByteValued>(message: &Message) -> Result<T, Refusal> {
    let mut value = T::zeroed();
    let bytes = value.as_mut_slice();
    let from = message.payload.get(..bytes.len()).ok_or(Refusal::Payload("the payload is too short"))?;
    bytes.copy_from_slice(from);
    Ok(value)
}

fn number(message: &Message) -> Result<u64, Refusal> {
    Ok(payload::<VhostUserU64>(message)?.value)
}

fn describe(region: &VhostUserMemoryRegion) -> RegionDescription {
    RegionDescription {
        gpa: region.guest_phys_addr,
        size: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

fn memory_table(bytes: &[u8]) -> Result<Vec<RegionDescription>, Refusal> {
    let (head, rows) =
        bytes.split_at_checked(size_of::<VhostUserMemory>()).ok_or(Refusal::Payload("no table"))?;
    let mut table = VhostUserMemory::default();
    table.as_mut_slice().copy_from_slice(head);
    let (rows, rest) = rows.as_chunks::<{ size_of::<VhostUserMemoryRegion>() }>();
    if !rest.is_empty() || rows.len() != table.num_regions as usize {
        return Err(Refusal::Payload("the memory table has another length than it says"));
    }
    let read = |row: &[u8; size_of::<VhostUserMemoryRegion>()]| {
        let mut region = VhostUserMemoryRegion::default();
        region.as_mut_slice().copy_from_slice(row);
        describe(&region)
    };
    Ok(rows.iter().map(read).collect())
}
