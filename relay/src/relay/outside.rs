//! The outside end of a relay: how a device or a cable comes and goes.

use std::io;
use std::sync::Arc;

use crossbeam::channel::Sender;
use pmd::{Link, Queues};

use super::{Borrowed, DeviceState, DeviceStatus, GuestPort, Occupied, Relay, RemoveError, State};
use crate::counters::DropReason;
use crate::device_control::ToDevice;
use crate::ends::{Cable, Side};
use crate::guest::endpoint::Endpoint;

/// A relay's place for a device, or for a cable.
#[derive(Debug)]
pub(crate) struct DeviceSlot {
    pub(crate) state: DeviceState,
    pub(crate) status: DeviceStatus,
    pub(super) attached: Attached,
}

/// What is in a relay's place for a device.
#[derive(Debug)]
pub(super) enum Attached {
    /// Nothing: it is just being opened or removed.
    Nothing,
    /// A device, with the way to its control thread.
    Device(Sender<ToDevice>),
    /// A cable from the guest to itself.
    Loopback,
    /// A cable to another guest, which connects here.
    Guest(Endpoint),
}

impl Relay {
    /// A device is on its way: what the guest sends waits for it in the guest's rings, instead of being dropped as long
    /// as there is no device. That lasts until the device runs, or its first start fails, or the attempt to add it.
    pub fn await_device(&self) {
        self.set_awaited(&mut self.lock(), true);
    }

    /// No device is on its way any more.
    pub fn stop_awaiting_device(&self) {
        self.set_awaited(&mut self.lock(), false);
    }

    fn set_awaited(&self, state: &mut State, awaited: bool) {
        if state.ends.device_awaited != awaited {
            self.rebuild(state, Borrowed::Keep, |ends| ends.device_awaited = awaited);
        }
    }

    /// The place for a device is empty.
    pub(crate) fn clear_place(&self, state: &mut State) {
        state.device = None;
        self.set_awaited(state, false);
    }

    /// Sets the relay's place for a device aside while that is being opened.
    pub fn reserve(self: &Arc<Self>, name: &str) -> Result<Reservation, Occupied> {
        let mut state = self.lock();
        if let Some(device) = &state.device {
            return Err(Occupied { relay: self.id, device: device.status.name.clone() });
        }
        let status = DeviceStatus { name: name.to_owned(), ..DeviceStatus::default() };
        state.device = Some(DeviceSlot { state: DeviceState::Uninit, status, attached: Attached::Nothing });
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
        match std::mem::replace(&mut device.attached, Attached::Nothing) {
            Attached::Nothing => return Err(RemoveError::Busy { relay: self.id, device: actual }),
            Attached::Device(control) => {
                device.state = DeviceState::Removing;
                drop(state);
                let (reply, answer) = crossbeam::channel::bounded(1);
                // The control thread ends after this message, and with it the slot.
                if control.send(ToDevice::Remove(reply)).is_ok() {
                    let _ = answer.recv();
                }
            }
            Attached::Loopback => self.unplug(&mut state),
            Attached::Guest(endpoint) => {
                device.state = DeviceState::Removing;
                drop(state);
                // The session of the far guest ends in its own thread, and takes the rings with it.
                drop(endpoint);
                self.unplug(&mut self.lock());
            }
        }
        tracing::info!("relay {}: removed {actual}", self.id);
        Ok(())
    }

    fn unplug(&self, state: &mut State) {
        self.rebuild(state, Borrowed::TakeBack, |ends| ends.cable = None);
        self.clear_place(state);
    }

    /// Whether the guest wants its device to run: from when rings run both ways until none does.
    pub(crate) fn guest_wants_device(&self, running: bool) -> bool {
        let state = self.lock();
        match running {
            // Not before all that belongs together has changed.
            _ if state.held > 0 => running,
            true => state.near.running != 0,
            false => state.near.runs_both_ways(),
        }
    }

    /// The device has been started: its queues go to the workers.
    pub(crate) fn attach_queues(&self, queues: Queues, max_frame: u32) {
        let mut state = self.lock();
        self.rebuild(&mut state, Borrowed::Keep, |ends| {
            ends.put_device(queues.receive, queues.transmit, max_frame);
        });
        if let Some(mac) = state.near.announce {
            self.announce(&mut state, Side::Near, mac);
        }
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
            counters.count_drop(0, DropReason::Aborted, lost.frames);
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

impl State {
    pub(super) fn set_device_state(&mut self, new: DeviceState) {
        if let Some(device) = &mut self.device
            && device.state != DeviceState::Removing
        {
            device.state = new;
        }
    }

    pub(super) fn tell_device(&self, message: impl FnOnce() -> ToDevice) {
        if let Some(DeviceSlot { attached: Attached::Device(control), .. }) = &self.device {
            // A control thread that has ended has no more use for news.
            let _ = control.send(message());
        }
    }

    /// A cable is ready, and has a carrier, when whoever is at its ends is.
    pub(super) fn cable_follows_guests(&mut self) {
        let far = match &self.ends.cable {
            None => return,
            Some(Cable::Loopback) => true,
            Some(Cable::Guest(_)) => self.far.runs_both_ways(),
        };
        let ready = far && self.near.runs_both_ways();
        self.set_device_state(if ready { DeviceState::Ready } else { DeviceState::Added });
        if let Some(device) = &mut self.device {
            device.status.link = Some(if far { Link::Up { speed: None } } else { Link::Down });
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
    pub fn attach(mut self, device: Box<dyn pmd::Device>) -> io::Result<()> {
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
                    slot.attached = Attached::Device(control);
                }
                relay.set_awaited(&mut state, true);
                state.guest_changed();
                Ok(())
            }
            Err(error) => {
                relay.clear_place(&mut state);
                Err(error)
            }
        }
    }

    /// Puts a cable in, which sends the guest's frames back to it.
    pub fn attach_cable(mut self) {
        let Some(relay) = self.relay.take() else { return };
        let mut state = relay.lock();
        relay.rebuild(&mut state, Borrowed::TakeBack, |ends| ends.cable = Some(Cable::Loopback));
        state.plugged_in(relay.id, Attached::Loopback);
    }

    /// Puts a cable in that leads to another guest. `serve` starts the endpoint that it connects to; it must not use the
    /// relay but through the port that it gets.
    pub fn attach_guest(mut self, serve: impl FnOnce(GuestPort) -> io::Result<Endpoint>) -> io::Result<()> {
        let Some(relay) = self.relay.take() else { return Ok(()) };
        // Locked first: the guest must find its place when it connects.
        let mut state = relay.lock();
        match serve(GuestPort::far(Arc::clone(&relay))) {
            Ok(endpoint) => {
                let cable = Some(Cable::Guest(Box::default()));
                relay.rebuild(&mut state, Borrowed::TakeBack, |ends| ends.cable = cable);
                state.plugged_in(relay.id, Attached::Guest(endpoint));
                Ok(())
            }
            Err(error) => {
                relay.clear_place(&mut state);
                Err(error)
            }
        }
    }
}

impl State {
    fn plugged_in(&mut self, relay: u32, attached: Attached) {
        if let Some(slot) = &mut self.device {
            slot.state = DeviceState::Added;
            slot.attached = attached;
            tracing::info!("relay {relay}: added {}", slot.status.name);
        }
        self.guest_changed();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.clear_place(&mut relay.lock());
        }
    }
}
