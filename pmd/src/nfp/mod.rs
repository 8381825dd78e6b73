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
mod statistics;
mod tx;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use control::Patience;
pub use rx::NfpReceive;
pub use tx::NfpTransmit;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues, Receive, Transmit};
use crate::mac::MacAddress;
use crate::memory::{DmaMap, DmaMemory, DmaSlice};
use crate::offload::Capabilities;
use crate::pci::{Ids, PciFunction};
use crate::registers::Caching;
use crate::vf::{Agreed, Place, Rung, Vf, VfDriver, Wishes};
use control::{Control, ControlError};
use firmware::{DataPath, Firmware};
use queue_controller::QueueController;
use registers::*;
use rx::{Bell, ReceiveCounters};
use statistics::Statistics;
use tx::{Format, TransmitCounters};

/// NFP-3800, whose queue controller has more queues.
const NFP3800: u16 = 0x3803;
/// Devices that this driver knows: Netronome's, and those that Corigine has made since.
pub const IDS: [Ids; 4] = [
    Ids { vendor: 0x19ee, device: 0x6003 },
    Ids { vendor: 0x19ee, device: NFP3800 },
    Ids { vendor: 0x1da8, device: 0x6003 },
    Ids { vendor: 0x1da8, device: NFP3800 },
];

/// Receive buffers for each descriptor of a ring and half as many for frames on their way to the guest.
const BUFFERS: usize = rx::RING as usize * 3 / 2;
/// Bytes of a receive ring, and of the word for a read pointer.
const RECEIVE_RING_BYTES: usize = rx::RING as usize * descriptor::WORD;
const WRITE_BACK_BYTES: usize = 8;
/// Time for a firmware to switch a NIC off.
const QUIET: Duration = Duration::from_millis(80);
/// The interrupt of all that nobody wants to hear of; it stays masked. Those of the receive rings follow.
const UNHEARD: u32 = 0;

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

/// How far a transmit ring had got, for the watchdog.
#[derive(Clone, Copy, Debug)]
struct Progress {
    read_pointer: u32,
    since: Instant,
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
    partner: Option<Partner>,
    /// The address in use, and whether it was drawn by lot.
    mac: MacAddress,
    random_mac: Option<MacAddress>,
    /// It is on.
    enabled: bool,
    progress: Vec<Progress>,
    statistics: Statistics,
    receive: Arc<ReceiveCounters>,
    transmit: Arc<TransmitCounters>,
}

impl Nfp {
    /// Takes a VF over, and asks its firmware what it can do.
    pub fn open(function: Arc<dyn PciFunction>, setup: Setup) -> Result<Vf<Self>, DeviceError> {
        let registers = Arc::clone(&function).bar(CONTROL_BAR, 0, CONTROL_SIZE, Caching::Uncached)?;
        let driver = Self {
            place: setup.place.clone(),
            wishes: setup.wishes,
            function: Arc::clone(&function),
            control: Control::new(registers, setup.patience),
            // `qc_idx_mask` of Linux's table of devices.
            queue_bits: if setup.ids.device == NFP3800 { 9 } else { 8 },
            partner: None,
            mac: MacAddress([0; 6]),
            random_mac: None,
            enabled: false,
            progress: Vec::new(),
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

    /// What is switched on beside [`ENABLE`].
    fn wanted(&self, partner: &Partner) -> u32 {
        let firmware = &partner.firmware;
        let plain = PROMISC | L2BC | L2MC | RXCSUM | TXCSUM | GATHER | RINGCFG | TXRWB | MSIX_TX_OFF;
        let mut wanted = firmware.cap & plain;
        if self.cuts(firmware) {
            wanted |= firmware.segmentation();
        }
        if partner.rings > 1 {
            wanted |= firmware.spreading();
        }
        if !self.wishes.vlans.is_empty() && firmware.mailbox.is_some() {
            wanted |= firmware.cap & CTAG_FILTER;
        }
        wanted
    }

    /// Whether TCP is cut: a frame that is cut comes in pieces, and with checksums to fill in.
    fn cuts(&self, firmware: &Firmware) -> bool {
        firmware.segmentation() != 0 && firmware.has(GATHER | TXCSUM)
    }

    fn capabilities(&self, firmware: &Firmware) -> Capabilities {
        let (checksum, cuts) = (firmware.has(TXCSUM), self.cuts(firmware));
        Capabilities { checksum, tcp_v4: cuts, tcp_v6: cuts, ecn: false, udp: false, by_header: checksum }
    }

    /// Interrupts for the receive rings and one that nobody hears; none where there are too few.
    fn bells(&self, rings: u32) -> Vec<Option<Bell>> {
        let control = self.control.registers();
        control.write8(icr(UNHEARD), ICR_RXTX);
        control.write8(LSC, NO_VECTOR);
        let events = self.function.interrupts(rings as usize + 1).unwrap_or_else(|cause| {
            tracing::debug!(device = %self.place, %cause, "no interrupts");
            Vec::new()
        });
        let mut events = events.into_iter().skip(1);
        (0..rings)
            .map(|ring| {
                let bell = events.next().map(|event| Bell {
                    event,
                    registers: Arc::clone(control),
                    vector: UNHEARD + 1 + ring,
                });
                if let Some(bell) = &bell {
                    bell.mask(true);
                }
                control.write8(txr_vector(ring), UNHEARD as u8);
                control.write8(rxr_vector(ring), bell.as_ref().map_or(UNHEARD, |bell| bell.vector) as u8);
                bell
            })
            .collect()
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

    /// Has frames of the wished VLANs pass.
    fn pass_vlans(&self, partner: &Partner) -> Result<(), ControlError> {
        let Some((mailbox, _)) = partner.firmware.mailbox else { return Ok(()) };
        // Frames of VLAN 0 are taken for untagged ones.
        for vlan in self.wishes.vlans.iter().filter(|vlan| **vlan != 0) {
            self.control.pass_vlan(&partner.queues.config(), mailbox, *vlan)?;
        }
        Ok(())
    }

    /// The watchdog of what is sent: the pointers of every transmit ring, twice 20 reads a second.
    fn stalled(&mut self, has_link: bool) -> Option<u32> {
        let partner = self.partner.as_ref()?;
        let stall = self.control.patience().stall;
        for (ring, progress) in (0..).zip(&mut self.progress) {
            let queue = partner.queues.transmit(ring);
            let (read, written) = (queue.read_pointer()?, queue.write_pointer()?);
            if read != progress.read_pointer || read == written || !has_link {
                *progress = Progress { read_pointer: read, since: Instant::now() };
            } else if progress.since.elapsed() > stall {
                return Some(ring);
            }
        }
        None
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

    fn enable(&mut self) -> Result<Queues, DeviceError> {
        let unasked = || DeviceError::Failed(format!("{}: the firmware was not asked", self.place));
        let partner = self.partner.as_ref().ok_or_else(unasked)?;
        let Partner { firmware, queues, rings } = partner;
        let wanted = self.wanted(partner);
        let format = match firmware.path {
            DataPath::Nfd3 => Format::Nfd3 { gathers: firmware.has(GATHER) },
            DataPath::Nfdk => Format::Nfdk,
        };
        let buffers = BUFFERS * firmware.receive.buffer as usize;
        let each = [RECEIVE_RING_BYTES, tx::RING_BYTES, WRITE_BACK_BYTES, tx::ARENA_BYTES, buffers];
        let sizes: Vec<usize> = (0..*rings).flat_map(|_| each).collect();
        let map = Arc::clone(&self.function) as Arc<dyn DmaMap>;
        let memory = DmaMemory::new(map, DmaMemory::needed(&sizes), &format!("nfp {}", self.place))?;
        tracing::debug!(device = %self.place, bytes = memory.len(), huge = memory.is_huge(), "DMA memory");
        let slices = memory.carve_all(&sizes)?;
        let bits =
            if firmware.path == DataPath::Nfd3 { descriptor::NFD3_ADDRESS } else { descriptor::ADDRESS };
        if slices.iter().any(|slice| (slice.iova() + slice.len() as u64) >> bits != 0) {
            return Err(DeviceError::Failed(format!(
                "{}: its descriptors hold {bits} bits of an address, and its memory lies above; use an IOMMU: \
                 intel_iommu=on or amd_iommu=on on the kernel's command line",
                self.place
            )));
        }
        let mut slices = slices.into_iter();

        let control = self.control.registers();
        let mut rooms: Vec<[DmaSlice; 5]> = Vec::new();
        for ring in 0..*rings {
            let room: Vec<DmaSlice> = slices.by_ref().take(each.len()).collect();
            let Ok(room) = <[DmaSlice; 5]>::try_from(room) else { break };
            let [receive, transmit, write_back, ..] = &room;
            control.write64(rxr_addr(ring), receive.iova());
            control.write8(rxr_size(ring), rx::RING.ilog2() as u8);
            control.write64(txr_addr(ring), transmit.iova());
            control.write8(txr_size(ring), format.ring().ilog2() as u8);
            control.write64(txr_wb_addr(ring), if wanted & TXRWB == 0 { 0 } else { write_back.iova() });
            rooms.push(room);
        }
        let bells = self.bells(*rings);
        let mut update = UPDATE_GEN | UPDATE_RING | UPDATE_MSIX;
        if let Some(function) = firmware.hash.filter(|_| wanted & (RSS | RSS2) != 0) {
            rss::write(&**control, *rings, function);
            update |= UPDATE_RSS;
        }
        control.write64(TXRS_ENABLE, u64::MAX >> (64 - rings));
        control.write64(RXRS_ENABLE, u64::MAX >> (64 - rings));
        self.control.write_mac(self.mac);
        control.write(MTU, firmware.mtu);
        control.write(FLBUFSZ, firmware.receive.buffer);

        // Firmware that can is given its free lists before frames come (`nfp_net_set_config_and_enable`).
        let lists_first = firmware.cap_word1 & FREELIST_EN;
        control.write(CTRL_WORD1, lists_first);
        control.write(CTRL, if lists_first == 0 { wanted | ENABLE } else { wanted });
        let config = queues.config();
        let answer = self.control.patience().answer;
        // The memory goes when this fails: before that, the firmware lets go of it.
        let undone = |error| {
            if let Err(cause) = self.switch_off(queues, QUIET) {
                tracing::debug!(device = %self.place, %cause, "not switched off");
            }
            error
        };
        let failed = |cause| undone(self.failed("switching it on", cause));
        self.control.update(&config, update, answer).map_err(failed)?;
        let at_start = |queue: queue_controller::Queue| {
            queue.read_pointer() == Some(0) && queue.write_pointer() == Some(0)
        };
        if !(0..*rings).all(|ring| at_start(queues.transmit(ring)) && at_start(queues.free_list(ring))) {
            return Err(undone(DeviceError::Failed(format!(
                "{}: its queues do not begin at their start; unbind the VF from vfio-pci and bind it again",
                self.place
            ))));
        }
        let mut given = Queues::default();
        for (ring, ([receive, transmit, write_back, arena, buffers], bell)) in
            (0..).zip(rooms.into_iter().zip(bells))
        {
            let queue = NfpReceive::new(
                queues.free_list(ring),
                receive,
                buffers,
                firmware.receive,
                wanted & RXCSUM != 0,
                Arc::clone(&self.receive),
            );
            given.receive.push(Receive::Nfp(queue.with_bell(bell)));
            let memory =
                tx::Memory { ring: transmit, arena, write_back: (wanted & TXRWB != 0).then_some(write_back) };
            given.transmit.push(Transmit::Nfp(NfpTransmit::new(
                queues.transmit(ring),
                memory,
                format,
                self.capabilities(firmware),
                firmware.max_frame(),
                Arc::clone(&self.transmit),
            )));
        }
        if lists_first != 0 {
            control.write(CTRL, wanted | ENABLE);
            self.control.update(&config, update, answer).map_err(failed)?;
        }
        if wanted & CTAG_FILTER != 0 {
            self.pass_vlans(partner).map_err(|cause| undone(self.failed("the VLAN filter", cause)))?;
        }
        self.transmit.lost.store(false, Ordering::Relaxed);
        self.progress = vec![Progress { read_pointer: 0, since: Instant::now() }; *rings as usize];
        self.enabled = true;
        Ok(given)
    }

    fn quiesce(&mut self) -> bool {
        self.enabled = false;
        self.progress.clear();
        let limit = QUIET.min(self.control.patience().answer);
        self.partner.as_ref().is_none_or(|partner| self.switch_off(&partner.queues, limit).is_ok())
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
        let has_link = self.link() != Link::Down;
        if let Some(ring) = self.stalled(has_link) {
            let place = &self.place;
            events.push(DeviceEvent::ResetNeeded {
                reason: format!("{place}: its firmware has stopped sending from transmit ring {ring}"),
            });
        }
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
