//! The rings of a session: when they can run, and how they are started and stopped.

use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use super::{RINGS, Refusal, Session};
use crate::bells::Ringer;
use crate::guest::iotlb::Permission;
use crate::guest::iotlb_miss::{self, MissReports};
use crate::guest::positions::RingIdentity;
use crate::ring::notify;
use crate::ring::{PackedRing, ReceiveRing, Ring, RingConfig, RingError, SplitRing, TransmitRing};
use crate::zero_copy::ZeroCopy;

/// What is known of one ring.
#[derive(Debug, Default)]
pub(super) struct RingState {
    pub(super) config: RingConfig,
    pub(super) placed: bool,
    /// Where the front end believes that the ring stands, once that was said.
    pub(super) base: Option<u32>,
    pub(super) started: bool,
    /// What `SET_VRING_ENABLE` said last, if anything.
    pub(super) enabled: Option<bool>,
    pub(super) running: bool,
    /// It would run, but for a translation of its own areas that is missing.
    pub(super) suspended: bool,
    pub(super) call: Option<OwnedFd>,
    pub(super) kick: Option<OwnedFd>,
    /// Addresses that the running ring has no translation for.
    pub(super) misses: Option<MissReports>,
}

impl Session {
    pub(super) fn start_all(&mut self) -> Result<(), Refusal> {
        (0..RINGS).try_for_each(|index| self.start_ring(index))
    }

    /// Starts rings again after one region of memory has come or gone. A region that changes goes and comes back (QEMU), with
    /// other messages in between: rings that lie in it wait meanwhile.
    pub(super) fn start_those_with_memory(&mut self) -> Result<(), Refusal> {
        (0..RINGS).try_for_each(|index| match self.start_ring(index) {
            Err(Refusal::Ring { cause: RingError::OutsideMemory { .. }, .. }) => {
                tracing::debug!(at = %self.port, index, "ring waits for its memory");
                Ok(())
            }
            other => other,
        })
    }

    /// Stops all rings; with `reset` they are as in the beginning.
    ///
    /// Transmit queues first: on a cable their frames would go nowhere once the receive queues have stopped.
    pub(super) fn stop_all(&mut self, reset: bool) {
        let port = self.port.clone();
        let _held = port.hold();
        for index in (1..RINGS).step_by(2).chain((0..RINGS).step_by(2)) {
            self.stop_ring(index);
            if reset {
                self.rings[index] = RingState::default();
                self.forget_position(index);
            }
        }
        self.forget_translations_if_stopped();
    }

    /// Starts a ring if all that it needs is there.
    pub(super) fn start_ring(&mut self, index: usize) -> Result<(), Refusal> {
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
        ring.config.event_idx = features.event_idx();
        ring.config.batches = features.in_order() && !index.is_multiple_of(2);
        // A ring that was stopped meanwhile has another base than the front end knows.
        if ring.base.is_none() {
            let start = if features.packed() { PackedRing::START } else { 0 };
            (ring.config.base, ring.base) = (start, Some(start));
        }
        let config = ring.config;
        if features.translated() && !self.ask_for_areas(&config) {
            return Ok(());
        }
        let fd = self.rings[index].call.take();
        let call = self.call(fd.as_ref())?;
        self.rings[index].call = fd;
        let kick = self.kick(index)?;
        let ring = if features.packed() {
            PackedRing::new(&config, &self.space, call).map(|ring| Ring::from(self.resume(index, ring)))
        } else {
            SplitRing::new(&config, &self.space, call).map(Ring::from)
        };
        let mut ring = ring.map_err(|cause| Refusal::Ring { index, cause })?;
        if features.translated() {
            let (reporter, reports) = iotlb_miss::miss_report(&self.bell);
            ring.report_misses(reporter);
            self.rings[index].misses = Some(reports);
        }
        (self.rings[index].running, self.rings[index].suspended) = (true, false);
        tracing::debug!(at = %self.port, index, size = config.size, "ring started");
        let pair = (index / 2) as u8;
        if index.is_multiple_of(2) {
            self.port.attach_receive(ReceiveRing::new(ring, pair, features.receive_rules()).with_kick(kick));
        } else {
            let mut rules = features.transmit_rules();
            // Where a packed ring goes on after a death is told by what was completed last; so nothing may overtake what a
            // device has borrowed.
            rules.in_order |= features.packed() && self.port.zero_copy() != ZeroCopy::Off;
            self.port.attach_transmit(TransmitRing::new(ring, pair, rules).with_kick(kick));
        }
        Ok(())
    }

    /// The descriptor that the guest kicks ring `index` by. The front end's own stays here, for when the ring starts anew.
    fn kick(&self, index: usize) -> Result<Option<Ringer>, Refusal> {
        let kick = self.rings[index].kick.as_ref().map(|fd| notify::kick(fd.try_clone()?));
        kick.transpose().map_err(|cause| Refusal::Descriptor(format!("kick descriptor: {cause}")))
    }

    /// Has a packed ring go on where a daemon that died left it, if this is that ring, and keeps its position from now on.
    /// A split ring says by itself how far it is.
    fn resume(&self, index: usize, mut ring: PackedRing) -> PackedRing {
        let Some(positions) = &self.positions else { return ring };
        let Some((file, offset)) = self.memory.file_at(ring.guest_address()) else { return ring };
        let identity = match RingIdentity::new(file, offset, ring.size()) {
            Ok(identity) => identity,
            Err(error) => {
                tracing::warn!("{}: position of ring {index} is not kept: {error}", self.port);
                return ring;
            }
        };
        let known = self.rings[index].base.unwrap_or_default();
        let mut positions = positions.lock().unwrap_or_else(PoisonError::into_inner);
        let (position, predecessor) = positions.claim(index, identity, known);
        // A front end that gives another base than then has learned more since.
        if let Some(predecessor) = predecessor.filter(|predecessor| predecessor.base == known)
            && ring.recover(&predecessor, index.is_multiple_of(2))
        {
            tracing::info!("{}: ring {index} goes on where it was left, {ring}", self.port);
        }
        ring.keep_position(position);
        ring
    }

    /// Ring `index` has been stopped in good order.
    pub(super) fn forget_position(&self, index: usize) {
        if let Some(positions) = &self.positions {
            positions.lock().unwrap_or_else(PoisonError::into_inner).release(index);
        }
    }

    /// Whether a ring's areas are translated; asks for those that are not, once.
    fn ask_for_areas(&mut self, config: &RingConfig) -> bool {
        let mut there = true;
        for (address, len) in config.areas(self.features.packed()) {
            let Some(missing) = self.space.first_missing(address, len) else { continue };
            there = false;
            if let Some(channel) = &mut self.channel
                && !self.asked.contains(&missing)
                && channel.send_miss(missing, Permission::ReadWrite).unwrap_or(false)
            {
                self.asked.insert(missing);
            }
        }
        there
    }

    pub(super) fn stop_ring(&mut self, index: usize) {
        let ring = &mut self.rings[index];
        let (running, suspended) = (std::mem::take(&mut ring.running), std::mem::take(&mut ring.suspended));
        if !running && !suspended {
            return;
        }
        ring.misses = None;
        if let Some(base) = self.port.detach_ring(index) {
            self.rings[index].config.base = base;
            tracing::debug!(at = %self.port, index, base, "ring stopped");
        }
    }
}
