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

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues, Receive, Transmit};
use crate::intel::descriptor;
use crate::memory::{BUFFER_SIZE, BufferPool, DmaMap, DmaMemory, DmaSlice};
use crate::pci::{Ids, PciFunction};
use crate::registers::{ALL_ONES, Caching, Registers};
use crate::vf::{Agreed, Place, Rung, Vf, VfDriver};
use handshake::{Disagreement, Grant, Wishes};
use mailbox::{Mailbox, MailboxError, PfNotice};
use registers::*;
use rx::ReceiveCounters;
use statistics::Statistics;
use tx::TransmitCounters;

/// Devices that this driver knows.
pub const IDS: [Ids; 2] = [Ids { vendor: 0x8086, device: 0x10ca }, Ids { vendor: 0x8086, device: 0x1520 }];

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

/// What the driver is told about a VF.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it sits.
    pub place: Place,
    /// How long to wait for the PF.
    pub patience: Patience,
    /// Receive multicast groups by hash instead of asking for all of them, for a device that grants all and then
    /// delivers none, as QEMU's model does. Only groups that everybody uses, and those of IPv6 addresses made of the
    /// VF's MAC or of low numbers, arrive then.
    pub hashed_groups: bool,
}

/// The slow side of an 82576 or I350 VF.
#[derive(Debug)]
pub struct Igbvf {
    place: Place,
    function: Arc<dyn PciFunction>,
    registers: Arc<dyn Registers>,
    mailbox: Mailbox,
    wishes: Wishes,
    max_frame: u32,
    statistics: Statistics,
    receive: Arc<ReceiveCounters>,
    transmit: Arc<TransmitCounters>,
}

impl Igbvf {
    /// Takes a VF over, and shakes hands with its PF.
    pub fn open(function: Arc<dyn PciFunction>, setup: Setup) -> Result<Vf<Self>, DeviceError> {
        let registers =
            Arc::clone(&function).bar(registers::BAR, 0, registers::BAR_SIZE, Caching::Uncached)?;
        let driver = Self {
            place: setup.place.clone(),
            function: Arc::clone(&function),
            mailbox: Mailbox::new(Arc::clone(&registers), setup.patience),
            registers,
            wishes: Wishes { random_mac: None, hashed_groups: setup.hashed_groups },
            max_frame: 0,
            statistics: Statistics::new(),
            receive: Arc::default(),
            transmit: Arc::default(),
        };
        Vf::open(function, &setup.place, driver)
    }

    fn disagreement(&self, cause: Disagreement) -> DeviceError {
        let place = &self.place;
        match cause {
            Disagreement::Mailbox(MailboxError::Gone) => DeviceError::NotFound(format!(
                "{place} does not answer: it has left the machine, or its memory is disabled; see dmesg"
            )),
            Disagreement::Mailbox(cause) => DeviceError::NotReady(format!(
                "{place}: {cause}; its interface must be up, with the kernel's driver: ip link set {} up",
                place.pf()
            )),
            Disagreement::MacRefused(mac) => DeviceError::NotReady(format!(
                "{place}: the PF gave the VF no address and refuses {mac}; give it one: ip link set {} mac {mac}",
                place.at_pf()
            )),
        }
    }

    fn notices(&self, grant: &Grant) -> Vec<String> {
        let (name, place, mac) = (&self.place, self.place.at_pf(), grant.mac);
        let mut notices = Vec::new();
        if grant.random_mac {
            notices.push(format!(
                "{name}: the PF gave the VF no address; it uses {mac}, drawn by lot, until it is opened anew; \
                 set one: ip link set {place} mac {mac}"
            ));
        }
        if !grant.unicast_promiscuous {
            notices.push(format!(
                "{name}: the PF refuses promiscuous mode, so only frames for {mac} and for groups arrive; give the VM \
                 that address, or the VF the VM's: ip link set {place} mac MAC; PF drivers that let trusted VFs see \
                 everything need: ip link set {place} trust on"
            ));
        }
        if !grant.multicast_promiscuous && !self.wishes.hashed_groups {
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
    fn switch_on(&self, receive: &DmaSlice, transmit: &DmaSlice) -> Result<(), DeviceError> {
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
        match self.function.interrupts(1) {
            Ok(bells) => {
                self.registers.write(EIMC, VECTOR_0);
                self.registers.write(IVAR, IVAR_RECEIVE_0);
                self.registers.write(EIAC, VECTOR_0);
                self.registers.write(EIAM, VECTOR_0);
                bells.into_iter().next()
            }
            Err(cause) => {
                tracing::debug!(device = %self.place, %cause, "no interrupt");
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
            self.place
        )))
    }
}

impl VfDriver for Igbvf {
    const NAME: &'static str = "igbvf";
    const RUNG: Rung = Rung::ForeignModel;
    const SENDS_FROM_GUEST_MEMORY: bool = true;

    fn agree(&mut self) -> Result<Agreed, DeviceError> {
        let grant = handshake::shake(&*self.registers, &mut self.mailbox, self.wishes)
            .map_err(|cause| self.disagreement(cause))?;
        self.statistics.rebase(&*self.registers);
        self.wishes.random_mac = grant.random_mac.then_some(grant.mac);
        self.max_frame = grant.max_frame;
        Ok(Agreed {
            mac: grant.mac,
            max_frame: grant.max_frame,
            filters_by_mac: !grant.unicast_promiscuous,
            notices: self.notices(&grant),
        })
    }

    fn enable(&mut self) -> Result<Queues, DeviceError> {
        let map = Arc::clone(&self.function) as Arc<dyn DmaMap>;
        let memory = DmaMemory::new(map, MEMORY, &format!("igbvf {}", self.place))?;
        tracing::debug!(device = %self.place, bytes = memory.len(), huge = memory.is_huge(), "DMA memory");
        let [receive, transmit, receive_buffers, transmit_buffers] =
            memory.carve([RING_BYTES, RING_BYTES, RECEIVE_BYTES, TRANSMIT_BYTES])?;
        self.switch_on(&receive, &transmit)?;
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
            self.max_frame,
            Arc::clone(&self.transmit),
        );
        Ok(Queues { receive: vec![Receive::Igbvf(receive)], transmit: vec![Transmit::Igbvf(transmit)] })
    }

    fn quiesce(&mut self) -> bool {
        [RXDCTL, TXDCTL].map(|dctl| disable(&*self.registers, dctl)) == [true, true]
    }

    fn is_present(&self) -> bool {
        self.registers.read(STATUS) != ALL_ONES
    }

    fn listen(&mut self, events: &mut Vec<DeviceEvent>) {
        let place = &self.place;
        match self.mailbox.listen() {
            PfNotice::Nothing | PfNotice::Ping => {}
            PfNotice::Reset => events.push(DeviceEvent::ResetNeeded {
                reason: format!("{place}: the PF was reset, or has reset the VF"),
            }),
            PfNotice::Gone => events.push(DeviceEvent::Gone {
                reason: format!("{place} does not answer any more: it has left the machine"),
            }),
        }
    }

    fn link(&mut self) -> Link {
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

    fn statistics(&mut self) -> DeviceStatistics {
        self.statistics.update(&*self.registers);
        DeviceStatistics {
            rx_errors: self.receive.errors.load(Ordering::Relaxed),
            tx_errors: self.transmit.errors.load(Ordering::Relaxed),
            ..self.statistics.read()
        }
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
