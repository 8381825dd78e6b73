//! `nfp`: VFs of Agilio NICs: NFP-4000, -5000 and -6000 (Netronome 19ee:6003), NFP-3800 (19ee:3803), the same ones with
//! Corigine's vendor id (1da8); with firmware that has NFD3's or NFDk's descriptors.
//!
//! Proven on rung L2 of the ladder: the driver works against a model of the virtual NIC of ours with both kinds of firmware
//! (`tests/models/tests/nfp.rs`), and Linux's own driver accepts that model (`tests/kernel/nfp.sh`, `nfp_nfdk.sh`). It has never
//! been on silicon. There is no public data sheet; the facts are those of Linux's and DPDK's headers.
//!
//! What it does: checksums (both ways) and TCP segmentation, several queues with RSS, jumbo frames, promiscuous mode and
//! groups as far as the firmware grants them, VLAN filters where it has them, its own address or one that is wished for,
//! interrupts for received frames while a worker sleeps. Tags stay in frames. What it does not do: frames sent from
//! guest memory, UDP segmentation.
//!
//! What the hot path costs: a register write for a burst sent and one for a burst received. Reading is needed only where the
//! firmware does not write its read pointers to memory (TXRWB): once when half of a transmit ring is filled, which is about
//! 500 frames with NFD3 and with NFDk.
//!
//! Memory: firmware without scatter wants buffers for whole frames, so that a queue pair takes 17 MiB where the MTU may be
//! 9216, and 5 MiB where it may be 1500.

mod arena;
mod control;
mod cut;
mod descriptor;
mod firmware;
mod metadata;
mod queue_controller;
mod registers;
mod rss;
mod rx;
mod start;
mod statistics;
mod tx;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use control::Patience;
pub use rx::NfpReceive;
pub use tx::NfpTransmit;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues, TransmitQueue};
use crate::mac::MacAddress;
use crate::memory::Kept;
use crate::pci::{Ids, PciFunction};
use crate::registers::Caching;
use crate::vf::{Agreed, Place, Progress, Rung, Vf, VfDriver, Wishes};
use control::{Control, ControlError};
use firmware::Firmware;
use queue_controller::{Queue, QueueController};
use registers::*;
use rx::ReceiveCounters;
use statistics::Statistics;
use tx::TransmitCounters;

/// NFP-3800, whose queue controller has more queues.
const NFP3800: u16 = 0x3803;
/// Devices that this driver knows: Netronome's, and those that Corigine has made since.
pub const IDS: [Ids; 4] = [
    Ids { vendor: 0x19ee, device: 0x6003 },
    Ids { vendor: 0x19ee, device: NFP3800 },
    Ids { vendor: 0x1da8, device: 0x6003 },
    Ids { vendor: 0x1da8, device: NFP3800 },
];

/// Time for a firmware to switch a NIC off.
const QUIET: Duration = Duration::from_millis(80);
/// What the driver is told about a VF.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Where it sits.
    pub place: Place,
    /// Which of [`IDS`] it is.
    pub ids: Ids,
    /// What is wanted of it.
    pub wishes: Wishes,
    /// How long to wait for the firmware.
    pub patience: Patience,
}

/// What is known of a firmware that has been asked, and where its queues are.
#[derive(Debug)]
struct Partner {
    firmware: Firmware,
    queues: QueueController,
    /// Rings each way that are used.
    rings: u32,
}

/// A transmit ring that is on: how far it had got, for the watchdog.
#[derive(Debug)]
struct Ring {
    queue: Queue,
    read_pointer: u32,
    progress: Arc<Progress>,
}

/// The slow side of an NFP's VF.
#[derive(Debug)]
pub struct Nfp {
    place: Place,
    wishes: Wishes,
    function: Arc<dyn PciFunction>,
    control: Control,
    /// Bits that number a queue of the queue controller.
    queue_bits: u32,
    /// Bits of an address that it reaches, where its descriptors hold them.
    address_bits: u32,
    partner: Option<Partner>,
    /// The address in use, and whether it was drawn by lot.
    mac: MacAddress,
    random_mac: Option<MacAddress>,
    /// It is on.
    enabled: bool,
    rings: Vec<Ring>,
    statistics: Statistics,
    receive: Arc<ReceiveCounters>,
    transmit: Arc<TransmitCounters>,
}

impl Nfp {
    /// Takes a VF over, and asks its firmware what it can do.
    pub fn open(function: Arc<dyn PciFunction>, setup: Setup) -> Result<Vf<Self>, DeviceError> {
        let registers = Arc::clone(&function).bar(CONTROL_BAR, 0, CONTROL_SIZE, Caching::Uncached)?;
        let is_3800 = setup.ids.device == NFP3800;
        let driver = Self {
            place: setup.place.clone(),
            wishes: setup.wishes,
            function: Arc::clone(&function),
            control: Control::new(registers, setup.patience),
            // `qc_idx_mask` and `dma_mask` of Linux's table of devices.
            queue_bits: if is_3800 { 9 } else { 8 },
            address_bits: if is_3800 { descriptor::ADDRESS } else { descriptor::NFD3_ADDRESS },
            partner: None,
            mac: MacAddress([0; 6]),
            random_mac: None,
            enabled: false,
            rings: Vec::new(),
            statistics: Statistics::default(),
            receive: Arc::default(),
            transmit: Arc::default(),
        };
        Vf::open(function, &setup.place, driver)
    }

    fn failed(&self, what: &str, cause: ControlError) -> DeviceError {
        let place = &self.place;
        match cause {
            ControlError::Gone => DeviceError::NotFound(format!(
                "{place} does not answer: it has left the machine, or its memory is disabled; see dmesg"
            )),
            cause => DeviceError::NotReady(format!(
                "{place}: {what}: {cause}; see that the PF's driver has loaded its firmware and that {} is up: \
                 dmesg | grep nfp; ip link set {} up",
                self.place.pf(),
                self.place.pf()
            )),
        }
    }

    /// The address to use: the one that is wished for, the firmware's, or one drawn by lot. What was refused is told.
    fn choose_mac(
        &mut self,
        queues: &QueueController,
        notices: &mut Vec<String>,
    ) -> Result<(), ControlError> {
        let (place, at_pf) = (&self.place, self.place.at_pf());
        let given = self.control.mac();
        let drawn = self.random_mac.take();
        self.mac = given;
        if let Some(wished) = self.wishes.mac.filter(|wished| *wished != given) {
            self.control.write_mac(wished);
            match self.control.update(&queues.config(), UPDATE_MACADDR, self.control.patience().answer) {
                Ok(()) => self.mac = wished,
                Err(ControlError::Refused(_)) if given.is_valid_unicast() => {
                    self.control.write_mac(given);
                    notices.push(format!(
                        "{place}: the firmware refuses the address {wished}, so {given} is kept; set it at the PF: \
                         ip link set {at_pf} mac {wished}"
                    ));
                }
                Err(cause) => return Err(cause),
            }
        } else if drawn == Some(given) || !given.is_valid_unicast() {
            self.mac = drawn.unwrap_or_else(MacAddress::random);
            self.random_mac = Some(self.mac);
            self.control.write_mac(self.mac);
            notices.push(format!(
                "{place}: the PF gave the VF no address; it uses {mac}, drawn by lot, until it is opened anew; set one: \
                 ip link set {at_pf} mac {mac}",
                mac = self.mac
            ));
        }
        Ok(())
    }

    fn notices(&self, firmware: &Firmware, rings: u32, notices: &mut Vec<String>) {
        let (place, at_pf, mac) = (&self.place, self.place.at_pf(), self.mac);
        if !firmware.has(PROMISC) {
            notices.push(format!(
                "{place}: the firmware refuses promiscuous mode, so only frames for {mac} and for groups arrive; give \
                 the VM that address, or the VF the VM's: ip link set {at_pf} mac MAC; firmware that lets trusted VFs see \
                 everything needs: ip link set {at_pf} trust on"
            ));
        }
        if !firmware.has(L2MC) {
            notices.push(format!(
                "{place}: the firmware does not deliver groups, so IPv6 does not find its neighbours; firmware that lets \
                 trusted VFs see them needs: ip link set {at_pf} trust on"
            ));
        }
        let wished = u32::from(self.wishes.queue_pairs.get());
        if rings < wished {
            notices.push(format!(
                "{place}: {rings} of the {wished} queues that are wanted each way are used: the firmware has {} and {}; \
                 load firmware that gives VFs more",
                firmware.rings,
                if firmware.spreading() == 0 { "does not spread flows over them" } else { "spreads flows over them" }
            ));
        }
        if !self.wishes.vlans.is_empty() && !firmware.has(CTAG_FILTER) {
            notices.push(format!(
                "{place}: the firmware does not filter VLANs: frames of all of them arrive; filter at the PF: \
                 ip link set {at_pf} vlan VLAN"
            ));
        }
    }

    /// Switches off and says so: after that, the firmware touches no memory.
    fn switch_off(&self, queues: &QueueController, limit: Duration) -> Result<(), ControlError> {
        let control = self.control.registers();
        control.write64(TXRS_ENABLE, 0);
        control.write64(RXRS_ENABLE, 0);
        control.write(CTRL, 0);
        control.write(CTRL_WORD1, 0);
        self.control.update(&queues.config(), UPDATE_GEN | UPDATE_RING | UPDATE_MSIX, limit)
    }

    /// What the watchdog of what is sent is told: the pointers of every transmit ring, twice 20 reads a second. Workers read
    /// them too seldom.
    fn look_at_rings(&mut self) {
        for ring in &mut self.rings {
            let (Some(read), Some(written)) = (ring.queue.read_pointer(), ring.queue.write_pointer()) else {
                return;
            };
            let before = std::mem::replace(&mut ring.read_pointer, read);
            if read != before || read != written {
                ring.progress.looked(u64::from(read != before));
            }
        }
    }

    fn drops(&self) -> [(&'static str, &AtomicU64); 5] {
        [
            ("rx_bad_length", &self.receive.bad_length),
            ("rx_bad_metadata", &self.receive.bad_metadata),
            ("rx_stripped", &self.receive.stripped),
            ("tx_bad_length", &self.transmit.bad_length),
            ("tx_bad_headers", &self.transmit.bad_headers),
        ]
    }
}

impl VfDriver for Nfp {
    const NAME: &'static str = "nfp";
    const RUNG: Rung = Rung::KernelAcceptsModel;

    fn agree(&mut self) -> Result<Agreed, DeviceError> {
        let place = self.place.clone();
        if !self.control.is_present() {
            return Err(self.failed("the control words", ControlError::Gone));
        }
        let firmware = Firmware::read(&**self.control.registers(), self.queue_bits).map_err(|cause| {
            DeviceError::Unsupported(format!(
                "{place}: {cause}; load the firmware of linux-firmware at the PF"
            ))
        })?;
        let wished = u32::from(self.wishes.queue_pairs.get());
        let rings = wished.min(if firmware.spreading() == 0 { 1 } else { firmware.rings });
        let queues = QueueController::map(&self.function, firmware.first_tx, firmware.first_rx, rings)?;
        self.switch_off(&queues, self.control.patience().answer)
            .map_err(|cause| self.failed("switching off what ran before", cause))?;
        let mut notices = Vec::new();
        self.choose_mac(&queues, &mut notices).map_err(|cause| self.failed("the address", cause))?;
        self.notices(&firmware, rings, &mut notices);
        self.statistics.rebase(&**self.control.registers(), firmware.counting);
        self.partner = Some(Partner { firmware, queues, rings });
        Ok(Agreed {
            mac: self.mac,
            max_frame: firmware.max_frame(),
            filters_by_mac: !firmware.has(PROMISC),
            notices,
        })
    }

    fn enable(&mut self, kept: &mut Kept) -> Result<Queues, DeviceError> {
        let unasked = || DeviceError::Failed(format!("{}: the firmware was not asked", self.place));
        let partner = self.partner.as_ref().ok_or_else(unasked)?;
        let (given, rings) = (self.switch_on(partner, kept)?, partner.rings);
        self.transmit.lost.store(false, Ordering::Relaxed);
        let progresses = given.transmit.iter().filter_map(TransmitQueue::progress);
        self.rings = (0..rings)
            .zip(progresses)
            .map(|(ring, progress)| Ring { queue: partner.queues.transmit(ring), read_pointer: 0, progress })
            .collect();
        self.enabled = true;
        Ok(given)
    }

    fn quiesce(&mut self) -> bool {
        self.enabled = false;
        self.rings.clear();
        let limit = QUIET.min(self.control.patience().answer);
        self.partner.as_ref().is_none_or(|partner| self.switch_off(&partner.queues, limit).is_ok())
    }

    fn stall_limit(&self) -> Option<Duration> {
        Some(self.control.patience().stall)
    }

    fn is_present(&self) -> bool {
        self.control.is_present()
    }

    fn listen(&mut self, events: &mut Vec<DeviceEvent>) {
        if !self.enabled {
            return;
        }
        let mut reset = |reason: &str| {
            events.push(DeviceEvent::ResetNeeded { reason: format!("{}: {reason}", self.place) });
        };
        if self.control.registers().read(CTRL) & ENABLE == 0 {
            return reset("its firmware was loaded anew, or the PF has reset the VF");
        }
        if self.transmit.lost.load(Ordering::Relaxed) {
            return reset("its firmware says that it has sent what it was not given");
        }
        let mac = self.control.mac();
        if mac != self.mac && mac.is_valid_unicast() {
            (self.mac, self.random_mac) = (mac, None);
            events.push(DeviceEvent::MacChanged(mac));
        }
        self.look_at_rings();
    }

    fn link(&mut self) -> Link {
        let status = self.control.registers().read(STS);
        if status & STS_LINK == 0 {
            return Link::Down;
        }
        let speed = match status >> STS_RATE_SHIFT & 0xf {
            2 => Some(1000),
            3 => Some(10_000),
            4 => Some(25_000),
            5 => Some(40_000),
            6 => Some(50_000),
            7 => Some(100_000),
            _ => None,
        };
        Link::Up { speed }
    }

    fn statistics(&mut self) -> DeviceStatistics {
        self.statistics.update(&**self.control.registers());
        let drops = |prefix| -> u64 {
            let named = self.drops();
            named
                .iter()
                .filter(|(name, _)| name.starts_with(prefix))
                .map(|(_, n)| n.load(Ordering::Relaxed))
                .sum()
        };
        let counted = self.statistics.read();
        DeviceStatistics {
            rx_errors: counted.rx_errors + drops("rx_"),
            tx_errors: counted.tx_errors + drops("tx_"),
            ..counted
        }
    }

    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        self.statistics.update(&**self.control.registers());
        let drops = self.drops().map(|(name, counter)| (name, counter.load(Ordering::Relaxed)));
        self.statistics.named().chain(drops).collect()
    }
}
