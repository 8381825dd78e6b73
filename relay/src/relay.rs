//! The relay: one device and one guest, brought together and apart.
//!
//! ```text
//!   device   VF absent ──add──▶ DPDK_ADDED ──guest's rings run──▶ DPDK_READY
//!                 ▲─────remove─────┘ ◀────────guest leaves──────────┘
//!   guest    VIRTIO_UNINIT ──rings run both ways──▶ VIRTIO_READY ──in one way none runs──▶ VIRTIO_UNINIT
//! ```
//!
//! Every change is made the same way, by [`Relay::rebuild`]: the lanes are recalled from their workers, taken apart,
//! changed, put together and sent out again. Meanwhile nobody polls the relay, which takes microseconds; a change that
//! takes memory away waits for a device that still holds borrowed frames, for a bounded time. Changes that belong
//! together are made while the lanes stay at home ([`Relay::hold`]).
//!
//! Three kinds of threads come here: the session of the guest, the control thread of the device, and the control socket.
//! What they wait for while they hold the relay's lock is bounded: a pass of a worker, and the taking back of borrowed
//! frames. Mailboxes, links and the start of a device are waited for without it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::Sender;
use pmd::memory::GuestWindows;
use pmd::{DeviceStatistics, Identity, Link, MacAddress, Queues};
use thiserror::Error;

use crate::device_control::ToDevice;
use crate::ends::{Ends, RelayCounters, take_back_borrowed};
use crate::guest::space::AddressSpace;
use crate::lane::{Direction, Lane, LaneKey};
use crate::mailbox::{Mailbox, WorkerHandle};
use crate::ring::{ReceiveRing, Ring, TransmitRing};
use crate::zero_copy::{Shared, ZeroCopy, ZeroCopyState};

/// The guest's side, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestStatus {
    /// Process id of the front end.
    pub peer: Option<i32>,
    /// Virtio features that it negotiated; 0 before.
    pub features: u64,
    /// MTU in bytes that the front end set.
    pub mtu: Option<u16>,
}

/// How far a device is. Users see the C daemon's names for these (`DPDK_ADDED` …), which the API knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// None.
    Uninit,
    /// There, and waiting for its guest.
    Added,
    /// Running.
    Ready,
    /// On its way out.
    Removing,
}

/// How far a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestState {
    /// No guest, or one whose rings do not run.
    Uninit,
    /// A receive queue runs, and a transmit queue.
    Ready,
}

/// The workers of a relay, one for each direction; often the same.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Carries frames from the device to the guest.
    pub vf_to_vm: WorkerHandle,
    /// Carries frames from the guest to the device, and both ways of a cable.
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

/// A relay seen from outside.
#[derive(Clone, Debug)]
pub struct RelayStatus {
    /// The guest's connection, if there is one.
    pub guest: Option<GuestStatus>,
    /// State of the guest's rings.
    pub guest_state: GuestState,
    /// Queue pairs of which both rings run.
    pub queue_pairs: u32,
    /// The device, if there is one.
    pub device: Option<DeviceStatus>,
    /// State of the device.
    pub device_state: DeviceState,
    /// CPU of the worker for VF to VM.
    pub vf_to_vm_cpu: usize,
    /// CPU of the worker for VM to VF.
    pub vm_to_vf_cpu: usize,
}

/// A device seen from outside.
#[derive(Clone, Debug, Default)]
pub struct DeviceStatus {
    /// Name, as in [`Identity::name`].
    pub name: String,
    /// The rest of what the device says of itself; `None` while it is being opened, and for a cable.
    pub identity: Option<Identity>,
    /// Carrier, where known.
    pub link: Option<Link>,
    /// Counters of the device, at most a second old.
    pub statistics: DeviceStatistics,
    /// Whether it sends from the guest's memory.
    pub zero_copy: ZeroCopyState,
}

/// The relay has a device already.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("relay {relay} is in use by {device}; remove that first")]
pub struct Occupied {
    /// The relay's virtio-id.
    pub relay: u32,
    /// Name of the device that it has.
    pub device: String,
}

/// Why a device was not removed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RemoveError {
    /// There is none.
    #[error("relay {0} has no device")]
    Nothing(u32),
    /// There is another.
    #[error("relay {relay} has {actual}, not {wanted}")]
    Another {
        /// The relay's virtio-id.
        relay: u32,
        /// Name of the device that it has.
        actual: String,
        /// Name of the device that was to go.
        wanted: String,
    },
    /// It is just being opened or removed.
    #[error("{device} of relay {relay} is just being added or removed; try again")]
    Busy {
        /// The relay's virtio-id.
        relay: u32,
        /// Name of the device.
        device: String,
    },
}

#[derive(Debug)]
pub(crate) struct DeviceSlot {
    pub(crate) state: DeviceState,
    pub(crate) status: DeviceStatus,
    /// How to reach the device's control thread; `None` while the device is being opened, and for a cable.
    pub(crate) control: Option<Sender<ToDevice>>,
}

/// Of all virtqueues those that receive: the even ones.
const RECEIVE_RINGS: u64 = 0x5555_5555_5555_5555;

#[derive(Debug)]
pub(crate) struct State {
    placement: Placement,
    ends: Ends,
    /// How many keep the lanes at home.
    held: usize,
    /// Whether the guest's rings have changed meanwhile.
    changed: bool,
    /// Lanes that workers have.
    out: Vec<(LaneKey, WorkerHandle)>,
    /// The guest's rings that run: bit n is virtqueue n.
    running: u64,
    /// An address that is to be announced as soon as the device runs.
    announce: Option<MacAddress>,
    /// The device's transmit queue was disabled to take frames back from it.
    queue_is_dead: bool,
    guest: Option<GuestStatus>,
    /// The guest's memory, as far as it matters to a device.
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
            running: 0,
            announce: None,
            queue_is_dead: false,
            guest: None,
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
        RelayStatus {
            guest: state.guest,
            guest_state: state.guest_state(),
            queue_pairs: (state.running & state.running >> 1 & RECEIVE_RINGS).count_ones(),
            device: state.device.as_ref().map(|device| device.status.clone()),
            device_state: state.device.as_ref().map_or(DeviceState::Uninit, |device| device.state),
            vf_to_vm_cpu: state.placement.vf_to_vm.cpu,
            vm_to_vf_cpu: state.placement.vm_to_vf.cpu,
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
            let worker = state.placement.of(lane.key.direction).clone();
            state.out.push((lane.key, worker.clone()));
            worker.adopt(Box::new(lane));
        }
    }

    /// Keeps all lanes at home until what is returned is dropped: for several changes that belong together. Nothing of
    /// the guest is borrowed meanwhile, and a device's frames wait in the device.
    pub fn hold(&self) -> Held<'_> {
        let mut state = self.lock();
        Self::bring_home(&mut state, Borrowed::TakeBack);
        state.held += 1;
        state.revive_queue();
        Held(self)
    }

    /// A front end has connected, or has gone.
    pub fn set_guest(&self, guest: Option<GuestStatus>) {
        let mut state = self.lock();
        state.guest = guest;
        if guest.is_none() {
            // It may be on another host by the time that a device runs here.
            state.announce = None;
        }
        self.counters.vm_to_vf.forget_source();
    }

    /// The front end has negotiated.
    pub fn set_guest_features(&self, features: u64) {
        if let Some(guest) = &mut self.lock().guest {
            guest.features = features;
        }
    }

    /// The front end has set the guest's MTU, in bytes.
    pub fn set_guest_mtu(&self, mtu: u16) {
        if let Some(guest) = &mut self.lock().guest {
            guest.mtu = Some(mtu);
        }
    }

    /// A receive queue of the guest runs.
    pub fn attach_receive(&self, ring: ReceiveRing) {
        let pair = usize::from(ring.pair());
        self.attach(2 * pair, |ends| ends.guest_receive[pair] = Some(ring));
    }

    /// A transmit queue of the guest runs.
    pub fn attach_transmit(&self, ring: TransmitRing) {
        let pair = usize::from(ring.pair());
        self.attach(2 * pair + 1, |ends| ends.guest_transmit[pair] = Some(ring));
    }

    fn attach(&self, index: usize, put: impl FnOnce(&mut Ends)) {
        let mut state = self.lock();
        self.rebuild(&mut state, Borrowed::Keep, put);
        let bit = 1 << index;
        if state.running & bit == 0 {
            state.running |= bit;
            state.guest_changed();
        }
    }

    /// Takes a ring of the guest away, by the index of its virtqueue (even: receive, odd: transmit). When this returns,
    /// no worker uses it and no device holds its buffers; it takes at most [`crate::ends::TAKE_BACK_TIME`] and what
    /// aborting a queue takes. Returns where the ring stands; `None` when it did not run.
    pub fn detach_ring(&self, index: usize) -> Option<u32> {
        let mut state = self.lock();
        let base = self.take_ring(&mut state, index);
        state.running &= !(1 << index);
        state.guest_changed();
        base
    }

    /// As [`detach_ring`](Self::detach_ring), for a ring that will be back in a moment: the device goes on meanwhile.
    pub fn suspend_ring(&self, index: usize) -> Option<u32> {
        self.take_ring(&mut self.lock(), index)
    }

    fn take_ring(&self, state: &mut State, index: usize) -> Option<u32> {
        let pair = index / 2;
        let receives = index.is_multiple_of(2);
        let borrowed = if receives { Borrowed::Keep } else { Borrowed::TakeBack };
        let base = self.rebuild(state, borrowed, |ends| {
            if receives {
                ends.guest_receive.get_mut(pair)?.take().map(|mut ring| ring.ring().finish())
            } else {
                ends.guest_transmit.get_mut(pair)?.take().map(|mut ring| ring.ring().finish())
            }
        });
        state.revive_queue();
        base
    }

    /// Changes a running ring of the guest in a way that takes nothing from it.
    pub fn with_ring(&self, index: usize, change: impl FnOnce(&mut Ring)) {
        let mut state = self.lock();
        self.rebuild(&mut state, Borrowed::Keep, |ends| {
            let pair = index / 2;
            let ring = if index.is_multiple_of(2) {
                ends.guest_receive[pair].as_mut().map(ReceiveRing::ring)
            } else {
                ends.guest_transmit[pair].as_mut().map(TransmitRing::ring)
            };
            if let Some(ring) = ring {
                change(ring);
            }
        });
    }

    /// Gives all running rings of the guest a new address space. With `take_back`, nothing is used that was found in the
    /// old one when this returns.
    pub fn set_space(&self, space: &Arc<AddressSpace>, take_back: bool) {
        let mut state = self.lock();
        let borrowed = if take_back { Borrowed::TakeBack } else { Borrowed::Keep };
        self.rebuild(&mut state, borrowed, |ends| {
            let receive = ends.guest_receive.iter_mut().flatten().map(ReceiveRing::ring);
            let transmit = ends.guest_transmit.iter_mut().flatten().map(TransmitRing::ring);
            receive.chain(transmit).for_each(|ring| ring.set_space(Arc::clone(space)));
        });
        state.revive_queue();
    }

    /// The guest's memory has changed, or where its descriptors are looked up. A device does not reach it any more when this
    /// returns; its control thread lets it in again. No ring of the guest may run.
    pub fn set_memory(&self, shared: Shared) {
        let mut state = self.lock();
        if self.zero_copy == ZeroCopy::Off || (&state.shared, &shared) == (&Shared::Nothing, &Shared::Nothing)
        {
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

    /// Tells the network behind the device that the guest is here now; as soon as the device runs, if it does not.
    pub fn announce(&self, mac: MacAddress) {
        let mut state = self.lock();
        let sent = self.rebuild(&mut state, Borrowed::Keep, |ends| ends.announce(mac));
        state.announce = (!sent).then_some(mac);
    }

    /// Sets the relay's place for a device aside while that is being opened.
    pub fn reserve(self: &Arc<Self>, name: &str) -> Result<Reservation, Occupied> {
        let mut state = self.lock();
        if let Some(device) = &state.device {
            return Err(Occupied { relay: self.id, device: device.status.name.clone() });
        }
        let status = DeviceStatus { name: name.to_owned(), ..DeviceStatus::default() };
        state.device = Some(DeviceSlot { state: DeviceState::Uninit, status, control: None });
        Ok(Reservation { relay: Some(Arc::clone(self)) })
    }

    /// Removes the device; with `name`, only if it is that one. Returns when it is gone.
    pub fn remove_device(&self, name: Option<&str>) -> Result<(), RemoveError> {
        let mut state = self.lock();
        let Some(device) = &mut state.device else { return Err(RemoveError::Nothing(self.id)) };
        let actual = device.status.name.clone();
        if let Some(wanted) = name.filter(|wanted| *wanted != actual) {
            return Err(RemoveError::Another { relay: self.id, actual, wanted: wanted.to_owned() });
        }
        match (device.state, device.control.take()) {
            (DeviceState::Added | DeviceState::Ready, Some(control)) => {
                device.state = DeviceState::Removing;
                drop(state);
                let (reply, answer) = crossbeam::channel::bounded(1);
                // The control thread ends after this message, and with it the slot.
                if control.send(ToDevice::Remove(reply)).is_ok() {
                    let _ = answer.recv();
                }
            }
            (DeviceState::Added | DeviceState::Ready, None) => {
                self.rebuild(&mut state, Borrowed::TakeBack, |ends| ends.cable = false);
                state.device = None;
            }
            (DeviceState::Uninit | DeviceState::Removing, control) => {
                device.control = control;
                return Err(RemoveError::Busy { relay: self.id, device: actual });
            }
        }
        tracing::info!("relay {}: removed {actual}", self.id);
        Ok(())
    }

    /// Whether the guest wants its device to run: from when rings run both ways until none does.
    pub(crate) fn guest_wants_device(&self, running: bool) -> bool {
        let state = self.lock();
        match running {
            // Not before all that belongs together has changed.
            _ if state.held > 0 => running,
            true => state.running != 0,
            false => state.runs_both_ways(),
        }
    }

    /// The device has been started: its queues go to the workers.
    pub(crate) fn attach_queues(&self, queues: Queues, max_frame: u32) {
        let mut state = self.lock();
        let mac = state.announce.take();
        let sent = self.rebuild(&mut state, Borrowed::Keep, |ends| {
            ends.put_device(queues.receive, queues.transmit, max_frame);
            mac.is_none_or(|mac| ends.announce(mac))
        });
        state.announce = mac.filter(|_| !sent);
        state.set_device_state(DeviceState::Ready);
    }

    /// The device is to be stopped: takes its queues from the workers, with no frame of the guest left in them.
    pub(crate) fn detach_queues(&self) -> Queues {
        let mut state = self.lock();
        let counters = &self.counters.vf_to_vm;
        let queues = self.rebuild(&mut state, Borrowed::TakeBack, |ends| {
            let (receive, transmit, lost) = ends.take_device();
            counters.rx_frames.add(lost.frames);
            counters.rx_bytes.add(lost.bytes);
            counters.count_drop(0, crate::counters::DropReason::Aborted, lost.frames);
            Queues { receive, transmit }
        });
        // Its queues go with it.
        state.queue_is_dead = false;
        if state.device.as_ref().is_some_and(|device| device.state == DeviceState::Ready) {
            state.set_device_state(DeviceState::Added);
        }
        queues
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
    fn guest_state(&self) -> GuestState {
        if self.runs_both_ways() { GuestState::Ready } else { GuestState::Uninit }
    }

    /// Whether a receive queue runs and a transmit queue.
    fn runs_both_ways(&self) -> bool {
        self.running & RECEIVE_RINGS != 0 && self.running & !RECEIVE_RINGS != 0
    }

    fn set_device_state(&mut self, new: DeviceState) {
        if let Some(device) = &mut self.device
            && device.state != DeviceState::Removing
        {
            device.state = new;
        }
    }

    fn tell_device(&self, message: impl FnOnce() -> ToDevice) {
        if let Some(control) = self.device.as_ref().and_then(|device| device.control.as_ref()) {
            // A control thread that has ended has no more use for news.
            let _ = control.send(message());
        }
    }

    /// A queue that was disabled to take frames back from it is to be brought up anew.
    fn revive_queue(&mut self) {
        if std::mem::take(&mut self.queue_is_dead) {
            self.tell_device(|| ToDevice::Restart);
        }
    }

    fn guest_changed(&mut self) {
        if self.held > 0 {
            self.changed = true;
            return;
        }
        self.tell_device(|| ToDevice::GuestChanged);
        let runs = self.runs_both_ways();
        if self.ends.cable {
            self.set_device_state(if runs { DeviceState::Ready } else { DeviceState::Added });
        }
    }
}

/// A relay's place for a device, held while the device is being opened; given up when dropped.
#[derive(Debug)]
pub struct Reservation {
    relay: Option<Arc<Relay>>,
}

impl Reservation {
    /// Puts an open device in. Its control thread starts here.
    pub fn attach(mut self, device: Box<dyn pmd::Device>) -> std::io::Result<()> {
        let Some(relay) = self.relay.take() else { return Ok(()) };
        let identity = device.identity().clone();
        // Locked first: the new thread must find its place filled.
        let mut state = relay.lock();
        match crate::device_control::start(Arc::clone(&relay), device) {
            Ok(control) => {
                tracing::info!("relay {}: added {} ({})", relay.id, identity.name, identity.driver);
                if let Some(slot) = &mut state.device {
                    slot.status.name.clone_from(&identity.name);
                    slot.status.identity = Some(identity);
                    slot.state = DeviceState::Added;
                    slot.control = Some(control);
                }
                state.guest_changed();
                Ok(())
            }
            Err(error) => {
                state.device = None;
                Err(error)
            }
        }
    }

    /// Puts a cable in, which sends the guest's frames back to it.
    pub fn attach_cable(mut self) {
        let Some(relay) = self.relay.take() else { return };
        let mut state = relay.lock();
        relay.rebuild(&mut state, Borrowed::TakeBack, |ends| ends.cable = true);
        if let Some(slot) = &mut state.device {
            slot.state = DeviceState::Added;
            tracing::info!("relay {}: added {}", relay.id, slot.status.name);
        }
        state.guest_changed();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.lock().device = None;
        }
    }
}

/// What a worker does with its lanes; here, next to what control does with them, so that both stay in step.
// Boxed as they come by message, so that a worker neither allocates nor moves them when they go.
#[allow(clippy::vec_box)]
#[derive(Debug)]
pub struct Lanes(Vec<Box<Lane>>);

impl Default for Lanes {
    /// With room for the lanes of 1024 relays, so that a worker does not allocate when one comes.
    fn default() -> Self {
        Self(Vec::with_capacity(2048))
    }
}

impl Lanes {
    /// Takes lanes in and hands them out, as the messages in `mailbox` say; `false` when the worker is to end.
    #[inline]
    pub fn attend(&mut self, mailbox: &Mailbox) -> bool {
        mailbox.attend(&mut self.0)
    }

    /// All lanes.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Lane> {
        self.0.iter_mut().map(Box::as_mut)
    }

    /// Number of lanes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
