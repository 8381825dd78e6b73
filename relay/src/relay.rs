//! The relay: one device and one guest, brought together and apart.
//!
//! ```text
//!   device   VF absent ──add──▶ DPDK_ADDED ──guest's rings run──▶ DPDK_READY
//!                 ▲─────remove─────┘ ◀────────guest leaves──────────┘
//!   guest    VIRTIO_UNINIT ──rings run both ways──▶ VIRTIO_READY ──in one way none runs──▶ VIRTIO_UNINIT
//! ```
//!
//! Two guests are at a relay whose device is a cable to another VM; each has a [`GuestPort`], and they share all that
//! follows. Such a cable is ready when both guests are.
//!
//! Every change is made the same way, by [`Relay::rebuild`]: the lanes are recalled from their workers, taken apart,
//! changed, put together and sent out again. Meanwhile nobody polls the relay, which takes microseconds; a change that
//! takes memory away waits for a device that still holds borrowed frames, for a bounded time. Changes that belong
//! together are made while the lanes stay at home ([`Relay::hold`]).
//!
//! Three kinds of threads come here: the session of a guest, the control thread of the device, and the control socket.
//! What they wait for while they hold the relay's lock is bounded: a pass of a worker, and the taking back of borrowed
//! frames. Mailboxes, links and the start of a device are waited for without it.

mod outside;
mod port;
mod status;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pmd::MacAddress;
use pmd::memory::GuestWindows;

pub(crate) use self::outside::DeviceSlot;
pub use self::outside::Reservation;
pub use self::port::GuestPort;
use self::port::GuestSlot;
pub use self::status::{
    DeviceState, DeviceStatus, FarStatus, GuestState, GuestStatus, Occupied, RelayStatus, RemoveError,
};
use crate::device_control::ToDevice;
use crate::ends::{Cable, Ends, RelayCounters, Side, take_back_borrowed};
use crate::lane::{Direction, LaneKey};
use crate::mailbox::WorkerHandle;
use crate::zero_copy::{Shared, ZeroCopy};

/// The workers of a relay, one for each direction; often the same.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Carries frames from the device to the guest, and both ways of a cable.
    pub vf_to_vm: WorkerHandle,
    /// Carries frames from the guest to the device.
    pub vm_to_vf: WorkerHandle,
}

impl Placement {
    fn of(&self, direction: Direction) -> &WorkerHandle {
        match direction {
            Direction::VfToVm => &self.vf_to_vm,
            Direction::VmToVf => &self.vm_to_vf,
        }
    }
}

#[derive(Debug)]
pub(crate) struct State {
    placement: Placement,
    ends: Ends,
    /// How many keep the lanes at home.
    held: usize,
    /// Whether rings of a guest have changed meanwhile.
    changed: bool,
    /// Lanes that workers have.
    out: Vec<(LaneKey, WorkerHandle)>,
    /// The device's transmit queue was disabled to take frames back from it.
    queue_is_dead: bool,
    /// The relay's own guest.
    near: GuestSlot,
    /// The one at the other end of a cable.
    far: GuestSlot,
    /// The near guest's memory, as far as it matters to a device.
    shared: Shared,
    pub(crate) device: Option<DeviceSlot>,
}

/// One relay.
#[derive(Debug)]
pub struct Relay {
    id: u32,
    zero_copy: ZeroCopy,
    counters: RelayCounters,
    state: Mutex<State>,
}

/// What happens to frames that the device has borrowed from the guest when lanes are taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Borrowed {
    /// They stay where they are: both ends will be joined again.
    Keep,
    /// They come back first, since one of the ends goes away.
    TakeBack,
}

impl Relay {
    /// A relay without device and guest.
    pub fn new(id: u32, placement: Placement) -> Self {
        let state = State {
            placement,
            ends: Ends::default(),
            held: 0,
            changed: false,
            out: Vec::new(),
            queue_is_dead: false,
            near: GuestSlot::default(),
            far: GuestSlot::default(),
            shared: Shared::Nothing,
            device: None,
        };
        let counters = RelayCounters::default();
        Self { id, zero_copy: ZeroCopy::Off, counters, state: Mutex::new(state) }
    }

    /// The same relay with devices let into the guest's memory as `zero_copy` says.
    pub fn with_zero_copy(self, zero_copy: ZeroCopy) -> Self {
        Self { zero_copy, ..self }
    }

    /// How far devices are let into the guest's memory.
    pub fn zero_copy(&self) -> ZeroCopy {
        self.zero_copy
    }

    /// The virtio-id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The counters.
    pub fn counters(&self) -> &RelayCounters {
        &self.counters
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How things are.
    pub fn status(&self) -> RelayStatus {
        let state = self.lock();
        let far = matches!(state.ends.cable, Some(Cable::Guest(_)));
        RelayStatus {
            guest: state.near.status,
            guest_state: state.near.state(),
            queue_pairs: state.near.queue_pairs(),
            device: state.device.as_ref().map(|device| device.status.clone()),
            device_state: state.device.as_ref().map_or(DeviceState::Uninit, |device| device.state),
            far: far.then(|| FarStatus {
                guest: state.far.status,
                state: state.far.state(),
                queue_pairs: state.far.queue_pairs(),
            }),
            vf_to_vm_cpu: state.worker(Direction::VfToVm).cpu,
            vm_to_vf_cpu: state.worker(Direction::VmToVf).cpu,
        }
    }

    /// Takes all lanes home, lets `change` at the ends, and sends the lanes out again.
    fn rebuild<R>(&self, state: &mut State, borrowed: Borrowed, change: impl FnOnce(&mut Ends) -> R) -> R {
        Self::bring_home(state, borrowed);
        let result = change(&mut state.ends);
        if state.held == 0 {
            self.send_out(state);
        }
        result
    }

    fn bring_home(state: &mut State, borrowed: Borrowed) {
        for (key, worker) in std::mem::take(&mut state.out) {
            let Some(mut lane) = worker.recall(key) else { continue };
            if borrowed == Borrowed::TakeBack || lane.has_lent() {
                state.queue_is_dead |= !take_back_borrowed(&mut lane);
            }
            state.ends.take_apart(*lane);
        }
    }

    fn send_out(&self, state: &mut State) {
        for lane in state.ends.lanes(self.id, &self.counters) {
            let worker = state.worker(lane.key.direction).clone();
            state.out.push((lane.key, worker.clone()));
            worker.adopt(Box::new(lane));
        }
    }

    /// Keeps all lanes at home until what is returned is dropped: for several changes that belong together. Nothing of
    /// a guest is borrowed meanwhile, and a device's frames wait in the device.
    pub fn hold(&self) -> Held<'_> {
        let mut state = self.lock();
        Self::bring_home(&mut state, Borrowed::TakeBack);
        state.held += 1;
        state.revive_queue();
        Held(self)
    }

    /// Announces the address of a guest to whoever is at the other end, or keeps it until somebody is.
    fn announce(&self, state: &mut State, from: Side, mac: MacAddress) {
        let counters = &self.counters;
        let sent = self.rebuild(state, Borrowed::Keep, |ends| ends.announce(from, mac, counters));
        state.guest(from).announce = (!sent).then_some(mac);
    }

    /// The guest's memory has changed, or where its descriptors are looked up. A device does not reach it any more when this
    /// returns; its control thread lets it in again. No ring of the guest may run.
    pub fn set_memory(&self, shared: Shared) {
        let mut state = self.lock();
        // The same memory, as when only features change, is not told of again: the device may stay where it is.
        if self.zero_copy == ZeroCopy::Off || state.shared == shared {
            return;
        }
        self.rebuild(&mut state, Borrowed::TakeBack, |ends| ends.set_guest_memory(&Arc::default()));
        state.revive_queue();
        state.shared = shared;
        state.tell_device(|| ToDevice::MemoryChanged);
    }

    /// The guest's memory, as far as it matters to a device.
    pub(crate) fn shared(&self) -> Shared {
        self.lock().shared.clone()
    }

    /// Lets the device send from `windows` into `shared`; `false` when the guest has other memory meanwhile.
    pub(crate) fn let_device_in(&self, shared: &Shared, windows: &Arc<GuestWindows>) -> bool {
        let mut state = self.lock();
        let same = state.shared == *shared;
        if same {
            self.rebuild(&mut state, Borrowed::Keep, |ends| ends.set_guest_memory(windows));
        }
        same
    }

    /// Has the device copy all that it sends.
    pub(crate) fn keep_device_out(&self) {
        let mut state = self.lock();
        self.rebuild(&mut state, Borrowed::TakeBack, |ends| ends.set_guest_memory(&Arc::default()));
        state.revive_queue();
    }
}

/// Lanes that are kept at home, see [`Relay::hold`].
#[derive(Debug)]
pub struct Held<'a>(&'a Relay);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.held -= 1;
        if state.held == 0 {
            self.0.send_out(&mut state);
            if std::mem::take(&mut state.changed) {
                state.guest_changed();
            }
        }
    }
}

impl State {
    fn guest(&mut self, side: Side) -> &mut GuestSlot {
        match side {
            Side::Near => &mut self.near,
            Side::Far => &mut self.far,
        }
    }

    /// The worker for a direction. Both lanes of a cable are with one, which has the rings of both ends in its cache.
    fn worker(&self, direction: Direction) -> &WorkerHandle {
        self.placement.of(if self.ends.cable.is_some() { Direction::VfToVm } else { direction })
    }

    /// A queue that was disabled to take frames back from it is to be brought up anew.
    fn revive_queue(&mut self) {
        if std::mem::take(&mut self.queue_is_dead) {
            self.tell_device(|| ToDevice::Restart);
        }
    }

    /// A ring of a guest runs, by the index of its virtqueue.
    fn ring_runs(&mut self, side: Side, index: usize) {
        let running = &mut self.guest(side).running;
        let bit = 1 << index;
        if *running & bit == 0 {
            *running |= bit;
            self.guest_changed();
        }
    }

    fn guest_changed(&mut self) {
        if self.held > 0 {
            self.changed = true;
            return;
        }
        self.tell_device(|| ToDevice::GuestChanged);
        self.cable_follows_guests();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use pmd::{Accepted, Completions, Frames, Queues, Transmit, TransmitQueue};

    use super::*;
    use crate::guest::memory::GuestMemory;
    use crate::mailbox::mailbox;

    /// Counts how often it was given windows.
    #[derive(Debug)]
    struct Queue(Arc<AtomicUsize>);

    impl TransmitQueue for Queue {
        fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
            Accepted::Copied(frames.len())
        }

        fn reclaim(&mut self, _done: &mut Completions) {}

        fn outstanding(&self) -> usize {
            0
        }

        fn set_guest_memory(&mut self, _windows: Arc<GuestWindows>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }

        fn abort(&mut self, _done: &mut Completions) {}
    }

    /// Its control thread sees no difference, and would not let it in again.
    #[test]
    fn a_device_stays_in_memory_that_is_the_same_when_features_change() {
        let worker = mailbox(0).unwrap().0;
        let placement = Placement { vf_to_vm: worker.clone(), vm_to_vf: worker };
        let relay = Relay::new(0, placement).with_zero_copy(ZeroCopy::Transmit);
        let given = Arc::new(AtomicUsize::new(0));
        let transmit = vec![Transmit::Other(Box::new(Queue(Arc::clone(&given))))];
        relay.attach_queues(Queues { receive: Vec::new(), transmit }, 1518);
        let given = || given.load(Ordering::Relaxed);
        let memory = Shared::Memory(Arc::new(GuestMemory::default()));
        relay.set_memory(memory.clone());
        assert!(relay.let_device_in(&memory, &Arc::default()));
        let before = given();
        relay.set_memory(memory.clone());
        assert_eq!(given(), before, "nothing is taken from it");
        relay.set_memory(Shared::Memory(Arc::new(GuestMemory::default())));
        assert_eq!(given(), before + 1, "other memory is");
        assert!(!relay.let_device_in(&memory, &Arc::default()));
    }
}
