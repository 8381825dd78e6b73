//! `igbvf`: VFs of Intel's 82576 (8086:10ca) and I350 (8086:1520), one queue pair.
//!
//! Proven on rung L3 of the ladder: the driver works in a machine on a model that others wrote (QEMU's 82576, through
//! VFIO and a VT-d IOMMU, against the PF and VF drivers of Linux). The I350 VF differs by its id alone here, and has
//! not been tried.
//!
//! What it does not do: checksum and segmentation offloads, VLAN filters (a PF lets tagged frames through only for
//! VLANs that it configured), interrupts but for received frames while a worker sleeps, the second queue pair of the 82576.

mod handshake;
mod mailbox;
mod registers;
mod rx;
mod statistics;
mod tx;

#[cfg(test)]
mod double;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

pub use mailbox::Patience;
pub use rx::IgbvfReceive;
pub use tx::IgbvfTransmit;

use crate::device::{
    Device, DeviceError, DeviceEvent, DeviceStatistics, Identity, Link, Queues, Receive, Transmit,
};
use crate::intel::descriptor;
use crate::memory::{BUFFER_SIZE, BufferPool, DmaMap, DmaMemory, DmaSlice};
use crate::pci::{Address, Ids, PciFunction};
use crate::registers::{ALL_ONES, Registers};
use handshake::{Agreed, Disagreement, Wishes};
use mailbox::{Mailbox, MailboxError, PfNotice};
use registers::*;
use rx::ReceiveCounters;
use statistics::Statistics;
use tx::TransmitCounters;

/// Devices that this driver knows.
pub const IDS: [Ids; 2] = [Ids { vendor: 0x8086, device: 0x10ca }, Ids { vendor: 0x8086, device: 0x1520 }];
/// The BAR with the registers, and how many bytes of it are mapped.
pub const REGISTERS: (u32, usize) = (registers::BAR, registers::BAR_SIZE);

/// Bytes of both rings together with all buffers: three huge pages.
const MEMORY: usize = 6 << 20;
const RING_BYTES: usize = RING as usize * descriptor::SIZE;
const TRANSMIT_BYTES: usize = RING as usize * BUFFER_SIZE as usize;
/// Receive buffers get the rest; they must fill the ring and leave as many for frames on their way to the guest.
const RECEIVE_BYTES: usize = MEMORY - 2 * RING_BYTES - TRANSMIT_BYTES;
const _: () = assert!(RECEIVE_BYTES / BUFFER_SIZE as usize > 3 * RING as usize / 2);

/// Looks at a queue that is being enabled, and the time between two: 100 ms.
const ENABLE_LOOKS: u32 = 100;
const ENABLE_INTERVAL: Duration = Duration::from_millis(1);
/// Looks at a queue that is being disabled, and the time between two: 10 ms.
const DISABLE_LOOKS: u32 = 100;
const DISABLE_INTERVAL: Duration = Duration::from_micros(100);
/// Calls of `service` between two looks at the counters, which must not wrap in between: about 1 s.
const COUNTERS_EVERY: u32 = 20;

/// What is known about a VF beside its registers.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it sits.
    pub address: Address,
    /// Interface of its PF and the VF's number there, for messages.
    pub place: Option<(String, u32)>,
    /// How long to wait for the PF.
    pub patience: Patience,
    /// Receive multicast groups by hash instead of asking for all of them, for a device that grants all and then
    /// delivers none, as QEMU's model does. Only groups that everybody uses, and those of IPv6 addresses made of the
    /// VF's MAC or of low numbers, arrive then.
    pub hashed_groups: bool,
}

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

/// The slow side of a VF.
#[derive(Debug)]
pub struct Igbvf {
    identity: Identity,
    place: Option<(String, u32)>,
    function: Arc<dyn PciFunction>,
    registers: Arc<dyn Registers>,
    mailbox: Mailbox,
    wishes: Wishes,
    agreed: Option<Agreed>,
    state: State,
    link: Option<Link>,
    /// Told by the next `service`.
    events: Vec<DeviceEvent>,
    statistics: Statistics,
    receive: Arc<ReceiveCounters>,
    transmit: Arc<TransmitCounters>,
    calls: u32,
}

impl Igbvf {
    /// Takes a VF over, and shakes hands with its PF.
    pub fn open(
        function: Arc<dyn PciFunction>,
        registers: Arc<dyn Registers>,
        setup: Setup,
    ) -> Result<Self, DeviceError> {
        let identity = Identity {
            name: setup.address.to_string(),
            driver: "igbvf",
            mac: None,
            max_frame: 0,
            filters_by_mac: true,
            at_pf: setup.place.as_ref().map(|(interface, number)| format!("{interface} vf {number}")),
        };
        let mut device = Self {
            identity,
            place: setup.place,
            function,
            mailbox: Mailbox::new(Arc::clone(&registers), setup.patience),
            registers,
            wishes: Wishes { random_mac: None, hashed_groups: setup.hashed_groups },
            agreed: None,
            state: State::Stopped,
            link: None,
            events: Vec::new(),
            statistics: Statistics::new(),
            receive: Arc::default(),
            transmit: Arc::default(),
            calls: 0,
        };
        device.shake()?;
        Ok(device)
    }

    fn shake(&mut self) -> Result<(), DeviceError> {
        let agreed = handshake::shake(&*self.registers, &mut self.mailbox, self.wishes)
            .map_err(|cause| self.disagreement(cause))?;
        self.statistics.rebase(&*self.registers);
        if self.identity.mac.is_some_and(|mac| mac != agreed.mac) {
            self.events.push(DeviceEvent::MacChanged(agreed.mac));
        }
        if self.agreed != Some(agreed) {
            self.events.extend(self.notices(&agreed).into_iter().map(DeviceEvent::Notice));
        }
        self.identity.mac = Some(agreed.mac);
        self.identity.max_frame = agreed.max_frame;
        self.identity.filters_by_mac = !agreed.unicast_promiscuous;
        self.wishes.random_mac = agreed.random_mac.then_some(agreed.mac);
        self.agreed = Some(agreed);
        self.state = State::Ready;
        Ok(())
    }

    /// `PF vf N` as operators write it.
    fn place(&self) -> String {
        self.identity.at_pf.clone().unwrap_or("PF vf N".to_owned())
    }

    fn disagreement(&self, cause: Disagreement) -> DeviceError {
        let name = &self.identity.name;
        let pf = self.place.as_ref().map_or("PF", |(interface, _)| interface);
        match cause {
            Disagreement::Mailbox(MailboxError::Gone) => DeviceError::NotFound(format!(
                "{name} does not answer: it has left the machine, or its memory is disabled; see dmesg"
            )),
            Disagreement::Mailbox(cause) => DeviceError::NotReady(format!(
                "{name}: {cause}; its interface must be up, with the kernel's driver: ip link set {pf} up"
            )),
            Disagreement::MacRefused(mac) => DeviceError::NotReady(format!(
                "{name}: the PF gave the VF no address and refuses {mac}; give it one: ip link set {} mac {mac}",
                self.place()
            )),
        }
    }

    fn notices(&self, agreed: &Agreed) -> Vec<String> {
        let (name, place, mac) = (&self.identity.name, self.place(), agreed.mac);
        let mut notices = Vec::new();
        if agreed.random_mac {
            notices.push(format!(
                "{name}: the PF gave the VF no address; it uses {mac}, drawn by lot, until it is opened anew; \
                 set one: ip link set {place} mac {mac}"
            ));
        }
        if !agreed.unicast_promiscuous {
            notices.push(format!(
                "{name}: the PF refuses promiscuous mode, so only frames for {mac} and for groups arrive; give the VM \
                 that address, or the VF the VM's: ip link set {place} mac MAC; PF drivers that let trusted VFs see \
                 everything need: ip link set {place} trust on"
            ));
        }
        if !agreed.multicast_promiscuous && !self.wishes.hashed_groups {
            notices.push(format!(
                "{name}: the PF refuses to deliver all multicast groups, so only common ones and those of IPv6 \
                 addresses made of {mac} arrive; PF drivers that let trusted VFs see everything need: \
                 ip link set {place} trust on"
            ));
        }
        if self.wishes.hashed_groups {
            notices.push(format!(
                "{name} is QEMU's model, which does not deliver all multicast groups when asked to: only common ones \
                 and those of IPv6 addresses made of {mac} or of low numbers arrive"
            ));
        }
        notices
    }

    /// Programs both rings and switches them on.
    fn enable(&self, receive: &DmaSlice, transmit: &DmaSlice) -> Result<(), DeviceError> {
        let write = |offset, value| self.registers.write(offset, value);
        let base = |low, high, ring: &DmaSlice| {
            write(low, ring.iova() as u32);
            write(high, (ring.iova() >> 32) as u32);
        };
        write(RXDCTL, 0);
        base(RDBAL, RDBAH, receive);
        write(RDLEN, RING_BYTES as u32);
        write(SRRCTL, SRRCTL_ONE_BUFFER | SRRCTL_DROP | (BUFFER_SIZE / SRRCTL_UNIT));
        write(RDH, 0);
        write(RDT, 0);
        write(RXDCTL, DCTL_ENABLE | RXDCTL_THRESHOLDS);
        self.wait_enabled(RXDCTL, "receive")?;

        write(TXDCTL, 0);
        base(TDBAL, TDBAH, transmit);
        write(TDLEN, RING_BYTES as u32);
        write(TDH, 0);
        write(TDT, 0);
        write(TXDCTL, DCTL_ENABLE | TXDCTL_THRESHOLDS);
        self.wait_enabled(TXDCTL, "transmit")
    }

    /// Gives the receive queue an interrupt, which stays masked until the queue asks for it. Without, the queue is polled.
    fn interrupt(&self) -> Option<OwnedFd> {
        match self.function.interrupt() {
            Ok(bell) => {
                self.registers.write(EIMC, VECTOR_0);
                self.registers.write(IVAR, IVAR_RECEIVE_0);
                self.registers.write(EIAC, VECTOR_0);
                self.registers.write(EIAM, VECTOR_0);
                Some(bell)
            }
            Err(cause) => {
                tracing::debug!(device = %self.identity.name, %cause, "no interrupt");
                None
            }
        }
    }

    fn wait_enabled(&self, dctl: u32, which: &str) -> Result<(), DeviceError> {
        for _ in 0..ENABLE_LOOKS {
            match self.registers.read(dctl) {
                ALL_ONES => break,
                value if value & DCTL_ENABLE != 0 => return Ok(()),
                _ => thread::sleep(ENABLE_INTERVAL),
            }
        }
        Err(DeviceError::Failed(format!(
            "{}: the {which} queue does not start; unbind the VF from vfio-pci and bind it again",
            self.identity.name
        )))
    }

    /// Ends all DMA of the queues.
    fn quiesce(&mut self) {
        let quiet = [RXDCTL, TXDCTL].map(|dctl| disable(&*self.registers, dctl));
        // A function that cannot be reset either is kept from the bus.
        if quiet.contains(&false)
            && let Err(cause) = self.function.reset().or_else(|_| self.function.set_bus_master(false))
        {
            tracing::debug!(device = %self.identity.name, %cause, "neither reset nor kept from the bus");
        }
        if self.state != State::Gone {
            self.state = State::Stopped;
        }
    }

    fn count(&mut self) {
        if self.state != State::Gone {
            self.statistics.update(&*self.registers);
        }
    }

    fn gone(&mut self, reason: String) -> DeviceEvent {
        self.state = State::Gone;
        DeviceEvent::Gone { reason }
    }

    fn reset_noticed(&mut self) -> Option<DeviceEvent> {
        let running = self.state == State::Running;
        self.state = if running { State::Dead } else { State::Stopped };
        let reason = format!("{}: the PF was reset, or has reset the VF", self.identity.name);
        running.then_some(DeviceEvent::ResetNeeded { reason })
    }

    fn read_link(&self) -> Link {
        if !matches!(self.state, State::Ready | State::Running) {
            return Link::Down;
        }
        let status = self.registers.read(STATUS);
        if status & STATUS_LU == 0 {
            return Link::Down;
        }
        let speed = match status >> STATUS_SPEED_SHIFT & 3 {
            0 => 10,
            1 => 100,
            _ => 1000,
        };
        Link::Up { speed: Some(speed) }
    }

    fn look_around(&mut self) -> Option<DeviceEvent> {
        let name = self.identity.name.clone();
        if self.function.removal_requested() {
            return Some(self.gone(format!("{name} is about to be removed from the machine")));
        }
        if self.registers.read(STATUS) == ALL_ONES {
            return Some(self.gone(format!("{name} does not answer any more: it has left the machine")));
        }
        // A dead VF has its hand-shake before it; what the PF says until then is about the same reset.
        if !matches!(self.state, State::Ready | State::Running) {
            return None;
        }
        match self.mailbox.listen() {
            PfNotice::Nothing | PfNotice::Ping => None,
            PfNotice::Reset => self.reset_noticed(),
            PfNotice::Gone => {
                Some(self.gone(format!("{name} does not answer any more: it has left the machine")))
            }
        }
    }
}

impl Device for Igbvf {
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
            State::Stopped => self.shake()?,
            State::Ready => {}
        }
        let map = Arc::clone(&self.function) as Arc<dyn DmaMap>;
        let memory = DmaMemory::new(map, MEMORY, &format!("igbvf {name}"))?;
        tracing::debug!(device = %name, bytes = memory.len(), huge = memory.is_huge(), "DMA memory");
        let [receive, transmit, receive_buffers, transmit_buffers] =
            memory.carve([RING_BYTES, RING_BYTES, RECEIVE_BYTES, TRANSMIT_BYTES])?;
        let enabled = self
            .function
            .set_bus_master(true)
            .map_err(|cause| DeviceError::Failed(format!("{name}: cannot allow it DMA: {cause}; see dmesg")))
            .and_then(|()| self.enable(&receive, &transmit));
        if let Err(cause) = enabled {
            self.quiesce();
            return Err(cause);
        }
        let receive = IgbvfReceive::new(
            Arc::clone(&self.registers),
            receive,
            BufferPool::new(receive_buffers),
            Arc::clone(&self.receive),
        );
        let receive = receive.with_bell(self.interrupt());
        let transmit = IgbvfTransmit::new(
            Arc::clone(&self.registers),
            transmit,
            transmit_buffers,
            self.identity.max_frame,
            Arc::clone(&self.transmit),
        );
        self.state = State::Running;
        Ok(Queues { receive: vec![Receive::Igbvf(receive)], transmit: vec![Transmit::Igbvf(transmit)] })
    }

    fn stop(&mut self, queues: Queues) {
        self.count();
        self.quiesce();
        drop(queues);
    }

    fn service(&mut self) -> Vec<DeviceEvent> {
        // Every read of a device that has left costs a time-out of the bus.
        let mut link = Link::Down;
        if self.state != State::Gone {
            let event = self.look_around();
            self.events.extend(event);
            link = self.read_link();
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

    fn guest_dma(&self) -> Result<Arc<dyn DmaMap>, String> {
        if self.function.shares_address_space() {
            return Err(format!(
                "{} shares its IOMMU group, and so its IO address space, with another device in use",
                self.identity.name
            ));
        }
        Ok(Arc::clone(&self.function) as Arc<dyn DmaMap>)
    }

    fn statistics(&mut self) -> DeviceStatistics {
        self.count();
        DeviceStatistics {
            rx_errors: self.receive.errors.load(Ordering::Relaxed),
            tx_errors: self.transmit.errors.load(Ordering::Relaxed),
            ..self.statistics.read()
        }
    }
}

impl Drop for Igbvf {
    fn drop(&mut self) {
        self.quiesce();
    }
}

/// Switches the queue with the control register `dctl` off; whether the device confirmed it within 10 ms.
fn disable(registers: &dyn Registers, dctl: u32) -> bool {
    let value = registers.read(dctl);
    if value == ALL_ONES {
        return false;
    }
    registers.write(dctl, value & !DCTL_ENABLE);
    for _ in 0..DISABLE_LOOKS {
        if registers.read(dctl) & DCTL_ENABLE == 0 {
            return true;
        }
        thread::sleep(DISABLE_INTERVAL);
    }
    false
}

#[cfg(test)]
mod tests;
