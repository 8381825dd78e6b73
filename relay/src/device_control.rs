//! The control thread of a device: the only one that calls [`pmd::Device`].
//!
//! It starts the device when the guest's rings run and stops it when the guest leaves, looks after it every 50 ms, and
//! brings it back when it was reset. All of that may wait for hardware; neither a worker nor the guest's session ever
//! waits for this thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use pmd::{Device, DeviceEvent, MacAddress};

use crate::relay::Relay;
use crate::zero_copy::{Mapper, Step, ZeroCopy};

/// How often a device is looked after.
const SERVICE_INTERVAL: Duration = Duration::from_millis(50);
/// How often its counters are read.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);
/// Pause before a device that was stopped, or did not start, is started again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// How often the failure of such attempts is logged.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// A message to a device's control thread.
#[derive(Debug)]
pub(crate) enum ToDevice {
    /// A ring of the guest started or stopped.
    GuestChanged,
    /// A queue was disabled to take frames back: bring the device up anew.
    Restart,
    /// The guest's memory is another.
    MemoryChanged,
    /// Stop the device, close it, answer, and end.
    Remove(Sender<()>),
}

/// Starts the control thread of `device`, which belongs to `relay` from now on.
pub(crate) fn start(relay: Arc<Relay>, device: Box<dyn Device>) -> std::io::Result<Sender<ToDevice>> {
    let (sender, receiver) = unbounded();
    let name = format!("vf-{}", relay.id());
    std::thread::Builder::new().name(name).stack_size(256 * 1024).spawn(move || {
        let mapper = Mapper::default();
        Control { relay, device, mapper, running: false, next_start: None, complained: None, warned: None }
            .run(&receiver);
    })?;
    Ok(sender)
}

/// Whether the device is still in the machine.
#[derive(PartialEq, Eq)]
enum Presence {
    There,
    /// It must be let go of: the kernel waits for that.
    Gone,
}

struct Control {
    relay: Arc<Relay>,
    device: Box<dyn Device>,
    mapper: Mapper,
    running: bool,
    /// Not before then is a failed start tried again.
    next_start: Option<Instant>,
    complained: Option<Instant>,
    /// The guest's address that was warned about last.
    warned: Option<(MacAddress, Instant)>,
}

impl Control {
    fn run(mut self, messages: &Receiver<ToDevice>) {
        let mut next_service = Instant::now();
        let mut next_statistics = next_service;
        loop {
            // A guest's memory is mapped piece by piece, so that whoever wants something meanwhile is heard.
            let until = if self.follow_memory() == Step::MoreToDo { Instant::now() } else { next_service };
            match messages.recv_deadline(until) {
                Ok(ToDevice::MemoryChanged) => {}
                Ok(ToDevice::GuestChanged) => self.follow_guest(),
                Ok(ToDevice::Restart) => {
                    tracing::warn!(
                        "relay {}: {} held on to frames of the guest; it is restarted",
                        self.relay.id(),
                        self.name()
                    );
                    self.stop();
                    self.follow_guest();
                }
                Ok(ToDevice::Remove(reply)) => {
                    self.close();
                    let _ = reply.send(());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => {
                    self.close();
                    return;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            // However many messages there are: a guest that stops and starts its rings without end must not keep us from
            // noticing that the device is to go.
            if Instant::now() >= next_service {
                next_service = Instant::now() + SERVICE_INTERVAL;
                if self.service() == Presence::Gone {
                    self.close();
                    return;
                }
                self.follow_guest();
                if Instant::now() >= next_statistics {
                    next_statistics = Instant::now() + STATISTICS_INTERVAL;
                    self.publish_statistics();
                }
            }
        }
    }

    fn name(&self) -> String {
        self.device.identity().name.clone()
    }

    /// Stops the device, lets go of it, and frees the relay's place: when this returns the hardware is quiet.
    fn close(mut self) {
        self.stop();
        let Self { relay, device, mapper, .. } = self;
        // Whatever is mapped keeps the device open.
        drop(mapper);
        drop(device);
        relay.clear_place(&mut relay.lock());
    }

    fn follow_guest(&mut self) {
        let wanted = self.relay.guest_wants_device(self.running);
        if self.running && !wanted {
            self.stop();
            // The next guest's frames may wait for it: it is well, and starts when that guest is there.
            self.relay.await_device();
        } else if wanted && !self.running && self.next_start.is_none_or(|at| Instant::now() >= at) {
            self.start();
        }
    }

    fn follow_memory(&mut self) -> Step {
        if self.relay.zero_copy() == ZeroCopy::Off {
            return Step::Done;
        }
        self.mapper.follow(&self.relay, &*self.device, self.running)
    }

    fn start(&mut self) {
        match self.device.start() {
            Ok(queues) => {
                self.running = true;
                (self.next_start, self.complained) = (None, None);
                self.mapper.forget_queues();
                self.relay.attach_queues(queues, self.device.identity().max_frame);
                self.publish_identity();
                tracing::info!("relay {}: {} runs", self.relay.id(), self.name());
            }
            Err(error) => {
                self.relay.stop_awaiting_device();
                let now = Instant::now();
                self.next_start = Some(now + RETRY_INTERVAL);
                if self.complained.is_none_or(|at| now.duration_since(at) >= COMPLAINT_INTERVAL) {
                    self.complained = Some(now);
                    tracing::warn!(
                        "relay {}: {} does not start, trying on: {error}",
                        self.relay.id(),
                        self.name()
                    );
                }
            }
        }
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            let queues = self.relay.detach_queues();
            self.device.stop(queues);
            // A guest may restart its rings as often as it likes; the PF's mailbox is not its toy.
            self.next_start = Some(Instant::now() + RETRY_INTERVAL);
            tracing::info!("relay {}: {} stopped", self.relay.id(), self.name());
        }
    }

    fn service(&mut self) -> Presence {
        for event in self.device.service() {
            let (relay, name) = (self.relay.id(), self.name());
            match event {
                DeviceEvent::Link(link) => {
                    tracing::info!("relay {relay}: link of {name} is {link}");
                    if let Some(slot) = &mut self.relay.lock().device {
                        slot.status.link = Some(link);
                    }
                }
                DeviceEvent::ResetNeeded { reason } => {
                    tracing::warn!("relay {relay}: {name} was reset ({reason}); it is brought up anew");
                    self.stop();
                }
                DeviceEvent::Gone { reason } => {
                    tracing::error!("relay {relay}: {name} is gone ({reason}); the relay waits for a device");
                    return Presence::Gone;
                }
                DeviceEvent::MacChanged(mac) => {
                    tracing::info!("relay {relay}: {name} has address {mac} now");
                    self.publish_identity();
                }
                DeviceEvent::Notice(notice) => tracing::warn!("relay {relay}: {notice}"),
            }
        }
        self.check_guest_address();
        Presence::There
    }

    /// A VF that filters by address never receives for a guest that uses another one; say so, once for each address.
    fn check_guest_address(&mut self) {
        let identity = self.device.identity();
        let (true, Some(own)) = (identity.filters_by_mac && self.running, identity.mac) else { return };
        let Some(guest) = self.relay.counters().vm_to_vf.source() else { return };
        let recent = |(mac, at): (MacAddress, Instant)| mac == guest || at.elapsed() < COMPLAINT_INTERVAL;
        if guest == own || !guest.is_valid_unicast() || self.warned.is_some_and(recent) {
            return;
        }
        self.warned = Some((guest, Instant::now()));
        tracing::warn!(
            "relay {}: the guest sends from {guest}, but {} only receives for {own}: give the guest that address, or \
             the VF the guest's: ip link set {} mac {guest}",
            self.relay.id(),
            identity.name,
            identity.at_pf.as_deref().unwrap_or("PF vf N")
        );
    }

    fn publish_identity(&self) {
        if let Some(slot) = &mut self.relay.lock().device {
            slot.status.identity = Some(self.device.identity().clone());
        }
    }

    fn publish_statistics(&mut self) {
        let (statistics, counters) = (self.device.statistics(), self.device.counters());
        if let Some(slot) = &mut self.relay.lock().device {
            slot.status.statistics = statistics;
            slot.status.counters = counters;
        }
    }
}
