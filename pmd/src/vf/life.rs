//! The life of a VF, the same for all families: states, what is told once, quiet at the end.

use std::sync::Arc;
use std::time::Instant;

use super::driver::{Agreed, Rung, VfDriver};
use super::setup::Place;
use super::watchdog::Watchdog;
use crate::device::{
    Device, DeviceError, DeviceEvent, DeviceStatistics, Identity, Link, Queues, TransmitQueue,
};
use crate::memory::{DmaMap, Kept};
use crate::pci::PciFunction;

/// Calls of `service` between two looks at the counters, which must not wrap in between: about 1 s.
const COUNTERS_EVERY: u32 = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No queues; the next start begins with a hand-shake.
    Stopped,
    /// No queues; the PF knows us.
    Ready,
    /// Queues are out.
    Running,
    /// Queues are out, and dead.
    Dead,
    /// The device has left.
    Gone,
}

/// A VF with the driver of its family.
#[derive(Debug)]
pub struct Vf<D: VfDriver> {
    driver: D,
    function: Arc<dyn PciFunction>,
    identity: Identity,
    state: State,
    /// What the hand-shake told the operator last.
    notices: Vec<String>,
    link: Option<Link>,
    /// Told by the next `service`.
    events: Vec<DeviceEvent>,
    /// What the device last counted.
    statistics: DeviceStatistics,
    calls: u32,
    /// Nothing has been asked of it since it was made quiet, or was found to have left.
    at_rest: bool,
    /// Over the transmit queues that are out.
    watchdog: Watchdog,
}

impl<D: VfDriver> Vf<D> {
    /// Takes a VF over, and has `driver` shake hands with its PF.
    pub fn open(function: Arc<dyn PciFunction>, place: &Place, driver: D) -> Result<Self, DeviceError> {
        let identity = Identity {
            name: place.to_string(),
            driver: D::NAME,
            mac: None,
            max_frame: 0,
            filters_by_mac: true,
            at_pf: place.pf.as_ref().map(|_| place.at_pf()),
        };
        let mut device = Self {
            driver,
            function,
            identity,
            state: State::Stopped,
            notices: Vec::new(),
            link: None,
            events: Vec::new(),
            statistics: DeviceStatistics::default(),
            calls: 0,
            at_rest: false,
            watchdog: Watchdog::default(),
        };
        device.agree()?;
        if D::RUNG < Rung::ForeignModel {
            let name = &device.identity.name;
            let text = format!("{name}: the driver '{}' is not proven on silicon; {}", D::NAME, D::RUNG);
            device.events.push(DeviceEvent::Notice(text));
        }
        Ok(device)
    }

    /// The driver, for tests that look behind the scenes.
    pub fn driver(&self) -> &D {
        &self.driver
    }

    fn agree(&mut self) -> Result<(), DeviceError> {
        self.at_rest = false;
        let Agreed { mac, max_frame, filters_by_mac, notices } = self.driver.agree()?;
        if self.identity.mac.is_some_and(|old| old != mac) {
            self.events.push(DeviceEvent::MacChanged(mac));
        }
        let new = notices.iter().filter(|notice| !self.notices.contains(notice));
        self.events.extend(new.cloned().map(DeviceEvent::Notice));
        self.notices = notices;
        self.identity = Identity { mac: Some(mac), max_frame, filters_by_mac, ..self.identity.clone() };
        self.state = State::Ready;
        Ok(())
    }

    /// Whether the device certainly does no DMA any more.
    fn quiesce(&mut self) -> bool {
        if self.at_rest {
            return true;
        }
        let mut quiet = self.driver.quiesce();
        // A function that cannot be reset either is kept from the bus.
        if !quiet {
            match self.function.reset().or_else(|_| self.function.set_bus_master(false)) {
                Ok(()) => quiet = true,
                Err(cause) => {
                    tracing::debug!(device = %self.identity.name, %cause, "neither reset nor kept from the bus");
                }
            }
        }
        if let Err(cause) = self.function.interrupts(0) {
            tracing::trace!(device = %self.identity.name, %cause, "interrupts not switched off");
        }
        if self.state != State::Gone {
            self.state = State::Stopped;
        }
        // One that has left cannot be made any quieter.
        self.at_rest = quiet || self.state == State::Gone;
        quiet
    }

    /// Gives up what a device was given. With nothing between it and the machine's memory, a device that is not known to be
    /// quiet must never write into memory that has another owner: then it is lost.
    fn give_up<T>(&self, memory: T, quiet: bool) {
        if quiet || self.state == State::Gone || !self.function.is_physical() {
            return drop(memory);
        }
        tracing::error!(
            "{}: it does not stop its DMA, and there is no IOMMU that would: its memory is lost until the daemon ends; restart the machine",
            self.identity.name
        );
        std::mem::forget(memory);
    }

    fn count(&mut self) {
        if self.state != State::Gone {
            self.statistics = self.driver.statistics();
        }
    }

    fn is_alive(&self) -> bool {
        matches!(self.state, State::Ready | State::Running)
    }

    fn gone(&mut self, reason: String) {
        self.state = State::Gone;
        self.events.push(DeviceEvent::Gone { reason });
    }

    /// Asks the watchdog; a device that has stalled is dead from here on.
    fn is_stalled(&mut self, has_link: bool) -> bool {
        let Some(limit) = self.driver.stall_limit() else { return false };
        let Some(queue) = self.watchdog.stalled(Instant::now(), has_link, limit) else { return false };
        self.driver.has_stalled();
        self.state = State::Dead;
        let name = &self.identity.name;
        self.events.push(DeviceEvent::ResetNeeded {
            reason: format!(
                "{name}: transmit queue {queue} has finished none of its frames for {} ms, although the link is up",
                limit.as_millis()
            ),
        });
        true
    }

    fn look_around(&mut self) {
        let name = &self.identity.name;
        if self.function.removal_requested() {
            return self.gone(format!("{name} is about to be removed from the machine"));
        }
        if !self.driver.is_present() {
            return self.gone(format!("{name} does not answer any more: it has left the machine"));
        }
        // A dead VF has its hand-shake before it; what is said until then is about the same reset.
        if !self.is_alive() {
            return;
        }
        let mut heard = Vec::new();
        self.driver.listen(&mut heard);
        for event in heard {
            match event {
                DeviceEvent::Gone { reason } => return self.gone(reason),
                DeviceEvent::ResetNeeded { .. } if self.state == State::Running => {
                    self.state = State::Dead;
                    self.events.push(event);
                }
                DeviceEvent::ResetNeeded { .. } if self.state == State::Ready => self.state = State::Stopped,
                DeviceEvent::ResetNeeded { .. } => {}
                DeviceEvent::MacChanged(mac) => {
                    self.identity.mac = Some(mac);
                    self.events.push(event);
                }
                event => self.events.push(event),
            }
        }
    }
}

impl<D: VfDriver> Device for Vf<D> {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn start(&mut self) -> Result<Queues, DeviceError> {
        let name = self.identity.name.clone();
        match self.state {
            State::Gone => return Err(DeviceError::NotFound(format!("{name} has left the machine"))),
            State::Running | State::Dead => {
                return Err(DeviceError::Busy(format!("{name} is started; stop it first")));
            }
            State::Stopped => self.agree()?,
            State::Ready => {}
        }
        self.at_rest = false;
        self.function.set_bus_master(true).map_err(|cause| {
            DeviceError::Failed(format!("{name}: cannot allow it DMA: {cause}; see dmesg"))
        })?;
        let mut kept = Kept::default();
        match self.driver.enable(&mut kept) {
            Ok(queues) => {
                self.state = State::Running;
                self.watchdog = Watchdog::over(queues.transmit.iter().filter_map(TransmitQueue::progress));
                Ok(queues)
            }
            Err(cause) => {
                let quiet = self.quiesce();
                self.give_up(kept, quiet);
                Err(cause)
            }
        }
    }

    fn stop(&mut self, queues: Queues) {
        // One that has died may take its time to answer, and still do DMA meanwhile.
        if self.state == State::Running {
            self.count();
        }
        let quiet = self.quiesce();
        self.give_up(queues, quiet);
    }

    fn service(&mut self) -> Vec<DeviceEvent> {
        // Every read of a device that has left costs a time-out of the bus.
        if self.state != State::Gone {
            self.look_around();
        }
        let mut link = if self.is_alive() { self.driver.link() } else { Link::Down };
        if self.state == State::Running && self.is_stalled(link != Link::Down) {
            link = Link::Down;
        }
        if self.link.replace(link) != Some(link) {
            self.events.push(DeviceEvent::Link(link));
        }
        self.calls = self.calls.wrapping_add(1);
        if self.calls.is_multiple_of(COUNTERS_EVERY) {
            self.count();
        }
        std::mem::take(&mut self.events)
    }

    fn statistics(&mut self) -> DeviceStatistics {
        self.count();
        self.statistics
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        if self.state == State::Gone { Vec::new() } else { self.driver.counters() }
    }

    fn guest_dma(&self) -> Result<Arc<dyn DmaMap>, String> {
        if !D::SENDS_FROM_GUEST_MEMORY {
            return Err(format!("{} copies what it sends", self.identity.name));
        }
        if self.function.is_physical() {
            return Err(format!(
                "{} has no IOMMU, which would confine it to the guest's memory",
                self.identity.name
            ));
        }
        if self.function.shares_address_space() {
            return Err(format!(
                "{} shares its IOMMU group, and so its IO address space, with another device in use",
                self.identity.name
            ));
        }
        Ok(Arc::clone(&self.function) as Arc<dyn DmaMap>)
    }
}

impl<D: VfDriver> Drop for Vf<D> {
    fn drop(&mut self) {
        self.quiesce();
    }
}
