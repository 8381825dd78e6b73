//! A guest's place at a relay: what its session changes there.

use std::fmt;
use std::sync::Arc;

use pmd::MacAddress;

use super::{Borrowed, GuestState, GuestStatus, Held, Relay, State};
use crate::counters::DirectionCounters;
use crate::ends::{GuestRings, Side};
use crate::guest::space::AddressSpace;
use crate::ring::{ReceiveRing, Ring, TransmitRing};
use crate::zero_copy::{Shared, ZeroCopy};

/// Of all virtqueues those that receive: the even ones.
const RECEIVE_RINGS: u64 = 0x5555_5555_5555_5555;

/// What a relay knows of a guest.
#[derive(Debug, Default)]
pub(super) struct GuestSlot {
    pub(super) status: Option<GuestStatus>,
    /// Its rings that run: bit n is virtqueue n.
    pub(super) running: u64,
    /// An address that is to be announced as soon as somebody is there who takes it.
    pub(super) announce: Option<MacAddress>,
}

impl GuestSlot {
    pub(super) fn state(&self) -> GuestState {
        if self.runs_both_ways() { GuestState::Ready } else { GuestState::Uninit }
    }

    /// Whether a receive queue runs and a transmit queue.
    pub(super) fn runs_both_ways(&self) -> bool {
        self.running & RECEIVE_RINGS != 0 && self.running & !RECEIVE_RINGS != 0
    }

    /// Queue pairs of which both rings run.
    pub(super) fn queue_pairs(&self) -> u32 {
        (self.running & self.running >> 1 & RECEIVE_RINGS).count_ones()
    }
}

/// A guest's place at a relay.
///
/// Most relays have one guest, the near one; where a cable leads to another VM there is a far one, too. Either has its own
/// memory and rings. What is taken from one is taken while no lane of the relay runs, and leaves the other as it is.
#[derive(Clone, Debug)]
pub struct GuestPort {
    relay: Arc<Relay>,
    side: Side,
}

impl From<Arc<Relay>> for GuestPort {
    /// The place of the relay's own guest.
    fn from(relay: Arc<Relay>) -> Self {
        Self { relay, side: Side::Near }
    }
}

impl fmt::Display for GuestPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Near => "",
            Side::Far => ", far VM",
        };
        write!(f, "relay {}{side}", self.relay.id)
    }
}

impl GuestPort {
    /// The place of the guest at the other end of a cable.
    pub(super) fn far(relay: Arc<Relay>) -> Self {
        Self { relay, side: Side::Far }
    }

    /// The relay's virtio-id.
    pub fn id(&self) -> u32 {
        self.relay.id
    }

    /// Whether the guest is the one at the other end of a cable.
    pub fn is_far(&self) -> bool {
        self.side == Side::Far
    }

    /// State of the guest's rings.
    pub fn guest_state(&self) -> GuestState {
        self.relay.lock().guest(self.side).state()
    }

    /// As [`Relay::hold`].
    pub fn hold(&self) -> Held<'_> {
        self.relay.hold()
    }

    /// A front end has connected, or has gone.
    pub fn set_guest(&self, status: Option<GuestStatus>) {
        let mut state = self.relay.lock();
        let guest = state.guest(self.side);
        guest.status = status;
        if status.is_none() {
            // It may be on another host by the time that somebody takes it.
            guest.announce = None;
        }
        self.sent().forget_source();
    }

    /// Counters of what the guest sends.
    fn sent(&self) -> &DirectionCounters {
        match self.side {
            Side::Near => &self.relay.counters.vm_to_vf,
            Side::Far => &self.relay.counters.vf_to_vm,
        }
    }

    /// The front end has negotiated.
    pub fn set_guest_features(&self, features: u64) {
        if let Some(status) = &mut self.relay.lock().guest(self.side).status {
            status.features = features;
        }
    }

    /// The front end has set the guest's MTU, in bytes.
    pub fn set_guest_mtu(&self, mtu: u16) {
        if let Some(status) = &mut self.relay.lock().guest(self.side).status {
            status.mtu = Some(mtu);
        }
    }

    /// How far devices are let into the guest's memory; never into that of a guest at the other end of a cable.
    pub fn zero_copy(&self) -> ZeroCopy {
        match self.side {
            Side::Near => self.relay.zero_copy(),
            Side::Far => ZeroCopy::Off,
        }
    }

    /// As [`Relay::set_memory`].
    pub fn set_memory(&self, shared: Shared) {
        if self.side == Side::Near {
            self.relay.set_memory(shared);
        }
    }

    /// A receive queue of the guest runs.
    pub fn attach_receive(&self, ring: ReceiveRing) {
        let pair = usize::from(ring.pair());
        let mut state = self.relay.lock();
        self.change(&mut state, Borrowed::Keep, |rings| rings.receive[pair] = Some(ring));
        // What the other guest has to say is for this one.
        let from = self.side.other();
        if let Some(mac) = state.guest(from).announce.filter(|_| state.ends.guest(from).is_some()) {
            self.relay.announce(&mut state, from, mac);
        }
        state.ring_runs(self.side, 2 * pair);
    }

    /// A transmit queue of the guest runs.
    pub fn attach_transmit(&self, ring: TransmitRing) {
        let pair = usize::from(ring.pair());
        let mut state = self.relay.lock();
        self.change(&mut state, Borrowed::Keep, |rings| rings.transmit[pair] = Some(ring));
        state.ring_runs(self.side, 2 * pair + 1);
    }

    /// Takes a ring of the guest away, by the index of its virtqueue (even: receive, odd: transmit). When this returns,
    /// no worker uses it and no device holds its buffers; it takes at most [`crate::ends::TAKE_BACK_TIME`] and what
    /// aborting a queue takes. Returns where the ring stands; `None` when it did not run.
    pub fn detach_ring(&self, index: usize) -> Option<u32> {
        let mut state = self.relay.lock();
        let base = self.take_ring(&mut state, index);
        state.guest(self.side).running &= !(1 << index);
        state.guest_changed();
        base
    }

    /// As [`detach_ring`](Self::detach_ring), for a ring that will be back in a moment: the device goes on meanwhile.
    pub fn suspend_ring(&self, index: usize) -> Option<u32> {
        self.take_ring(&mut self.relay.lock(), index)
    }

    fn take_ring(&self, state: &mut State, index: usize) -> Option<u32> {
        let borrowed = if index.is_multiple_of(2) { Borrowed::Keep } else { Borrowed::TakeBack };
        let base = self.change(state, borrowed, |rings| rings.finish(index)).flatten();
        state.revive_queue();
        base
    }

    /// Changes a running ring of the guest in a way that takes nothing from it.
    pub fn with_ring(&self, index: usize, change: impl FnOnce(&mut Ring)) {
        self.change(&mut self.relay.lock(), Borrowed::Keep, |rings| rings.ring(index).map(change));
    }

    /// Gives all running rings of the guest a new address space. With `take_back`, nothing is used that was found in the
    /// old one when this returns.
    pub fn set_space(&self, space: &Arc<AddressSpace>, take_back: bool) {
        let mut state = self.relay.lock();
        let borrowed = if take_back { Borrowed::TakeBack } else { Borrowed::Keep };
        self.change(&mut state, borrowed, |rings| {
            rings.rings().for_each(|ring| ring.set_space(Arc::clone(space)));
        });
        state.revive_queue();
    }

    /// Tells the network behind the device, or the guest at the other end of the cable, that this guest is here now; as
    /// soon as there is one that runs, if there is none.
    pub fn announce(&self, mac: MacAddress) {
        self.relay.announce(&mut self.relay.lock(), self.side, mac);
    }

    fn change<R>(
        &self,
        state: &mut State,
        borrowed: Borrowed,
        change: impl FnOnce(&mut GuestRings) -> R,
    ) -> Option<R> {
        self.relay.rebuild(state, borrowed, |ends| ends.guest(self.side).map(change))
    }
}
