//! Switching the virtual NIC on: memory, rings, interrupts, and what it is to do.

use std::sync::Arc;

use super::control::ControlError;
use super::firmware::{DataPath, Firmware};
use super::queue_controller::Queue;
use super::registers::*;
use super::rx::{self, NfpReceive};
use super::tx::{self, Format, NfpTransmit};
use super::{Nfp, Partner, QUIET, descriptor, rss};
use crate::device::{DeviceError, Queues, Receive, Transmit};
use crate::memory::{DmaMap, DmaMemory, DmaSlice, Kept};
use crate::offload::Capabilities;
use crate::vf::{Bell, Poke};

/// Receive buffers for each descriptor of a ring and half as many for frames on their way to the guest.
const BUFFERS: usize = rx::RING as usize * 3 / 2;
/// Bytes of a receive ring, and of the word for a read pointer.
const RECEIVE_RING_BYTES: usize = rx::RING as usize * descriptor::WORD;
const WRITE_BACK_BYTES: usize = 8;
/// The interrupt of all that nobody wants to hear of; it stays masked. Those of the receive rings follow.
const UNHEARD: u32 = 0;

/// Memory of a ring each way.
struct Room {
    receive: DmaSlice,
    buffers: DmaSlice,
    transmit: tx::Memory,
}

impl Nfp {
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
        Capabilities {
            checksum,
            tcp_v4: cuts,
            tcp_v6: cuts,
            by_header: checksum,
            limits: tx::limits(firmware.max_frame()),
            ..Capabilities::NONE
        }
    }

    /// Memory for the rings of one queue pair.
    fn room(&self, firmware: &Firmware, writes_back: bool, kept: &mut Kept) -> Result<Room, DeviceError> {
        let bits = if firmware.path == DataPath::Nfd3 { descriptor::NFD3_ADDRESS } else { self.address_bits };
        self.function.set_dma_bits(bits);
        let buffers = BUFFERS * firmware.receive.buffer as usize;
        let sizes = [RECEIVE_RING_BYTES, tx::RING_BYTES, WRITE_BACK_BYTES, tx::ARENA_BYTES, buffers];
        let map = Arc::clone(&self.function) as Arc<dyn DmaMap>;
        let memory = DmaMemory::new(map, DmaMemory::needed(&sizes), &format!("nfp {}", self.place))?;
        tracing::debug!(device = %self.place, bytes = memory.len(), huge = memory.is_huge(), "DMA memory");
        let slices = kept.carve(memory, sizes)?;
        if slices.iter().any(|slice| (slice.iova() + slice.len() as u64) >> bits != 0) {
            return Err(DeviceError::Failed(format!(
                "{}: its descriptors hold {bits} bits of an address, and its memory lies above; use an IOMMU: \
                 intel_iommu=on or amd_iommu=on on the kernel's command line",
                self.place
            )));
        }
        let [receive, ring, word, arena, buffers] = slices;
        let transmit = tx::Memory { ring, arena, write_back: writes_back.then_some(word) };
        Ok(Room { receive, buffers, transmit })
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
                let vector = UNHEARD + 1 + ring;
                let bell = events.next().map(|event| Bell {
                    event,
                    registers: Arc::clone(control),
                    allow: Poke::Byte(icr(vector), 0),
                    mask: Poke::Byte(icr(vector), ICR_RXTX),
                });
                Bell::disarm(bell.as_ref());
                control.write8(txr_vector(ring), UNHEARD as u8);
                control.write8(rxr_vector(ring), if bell.is_some() { vector } else { UNHEARD } as u8);
                bell
            })
            .collect()
    }

    /// Writes what the firmware is to take over, all but the control bits; what to tell it.
    fn describe(&self, partner: &Partner, wanted: u32, format: Format, rooms: &[Room]) -> u32 {
        let control = self.control.registers();
        let Partner { firmware, rings, .. } = partner;
        for (ring, room) in (0..).zip(rooms) {
            control.write64(rxr_addr(ring), room.receive.iova());
            control.write8(rxr_size(ring), rx::RING.ilog2() as u8);
            control.write64(txr_addr(ring), room.transmit.ring.iova());
            control.write8(txr_size(ring), format.ring().ilog2() as u8);
            control.write64(txr_wb_addr(ring), room.transmit.write_back.as_ref().map_or(0, DmaSlice::iova));
        }
        control.write64(TXRS_ENABLE, u64::MAX >> (64 - rings));
        control.write64(RXRS_ENABLE, u64::MAX >> (64 - rings));
        self.control.write_mac(self.mac);
        control.write(MTU, firmware.mtu);
        control.write(FLBUFSZ, firmware.receive.buffer);
        let update = UPDATE_GEN | UPDATE_RING | UPDATE_MSIX;
        match firmware.hash.filter(|_| wanted & (RSS | RSS2) != 0) {
            Some(function) => {
                rss::write(&**control, *rings, function);
                update | UPDATE_RSS
            }
            None => update,
        }
    }

    /// The queues over what the firmware has taken over; they give it their first buffers.
    fn queues(
        &self,
        partner: &Partner,
        wanted: u32,
        format: Format,
        rooms: Vec<Room>,
        bells: Vec<Option<Bell>>,
    ) -> Queues {
        let Partner { firmware, queues, .. } = partner;
        let mut given = Queues::default();
        for (ring, (Room { receive, buffers, transmit }, bell)) in (0..).zip(rooms.into_iter().zip(bells)) {
            let queue = NfpReceive::new(
                queues.free_list(ring),
                receive,
                buffers,
                firmware.receive,
                wanted & RXCSUM != 0,
                Arc::clone(&self.receive),
            );
            given.receive.push(Receive::Nfp(queue.with_bell(bell)));
            given.transmit.push(Transmit::Nfp(NfpTransmit::new(
                queues.transmit(ring),
                transmit,
                format,
                self.capabilities(firmware),
                firmware.max_frame(),
                Arc::clone(&self.transmit),
            )));
        }
        given
    }

    /// Switches the NIC on, which is off. After an error it is off again.
    pub(super) fn switch_on(&self, partner: &Partner, kept: &mut Kept) -> Result<Queues, DeviceError> {
        let Partner { firmware, queues, rings } = partner;
        let wanted = self.wanted(partner);
        let format = match firmware.path {
            DataPath::Nfd3 => Format::Nfd3 { gathers: firmware.has(GATHER) },
            DataPath::Nfdk => Format::Nfdk,
        };
        let rooms: Vec<Room> =
            (0..*rings).map(|_| self.room(firmware, wanted & TXRWB != 0, kept)).collect::<Result<_, _>>()?;
        let bells = self.bells(*rings);
        let update = self.describe(partner, wanted, format, &rooms);

        // Firmware that can is given its free lists before frames come (`nfp_net_set_config_and_enable`).
        let lists_first = firmware.cap_word1 & FREELIST_EN;
        let control = self.control.registers();
        control.write(CTRL_WORD1, lists_first);
        control.write(CTRL, if lists_first == 0 { wanted | ENABLE } else { wanted });
        let (config, answer) = (queues.config(), self.control.patience().answer);
        // The memory goes when this fails: before that, the firmware lets go of it.
        let undone = |error| {
            if let Err(cause) = self.switch_off(queues, QUIET) {
                tracing::debug!(device = %self.place, %cause, "not switched off");
            }
            error
        };
        let failed = |what: &'static str| move |cause| undone(self.failed(what, cause));
        self.control.update(&config, update, answer).map_err(failed("switching it on"))?;
        let at_start = |queue: Queue| queue.read_pointer() == Some(0) && queue.write_pointer() == Some(0);
        if !(0..*rings).all(|ring| at_start(queues.transmit(ring)) && at_start(queues.free_list(ring))) {
            return Err(undone(DeviceError::Failed(format!(
                "{}: its queues do not begin at their start; unbind the VF from vfio-pci and bind it again",
                self.place
            ))));
        }
        let given = self.queues(partner, wanted, format, rooms, bells);
        if lists_first != 0 {
            control.write(CTRL, wanted | ENABLE);
            self.control.update(&config, update, answer).map_err(failed("switching it on"))?;
        }
        if wanted & CTAG_FILTER != 0 {
            self.pass_vlans(partner).map_err(failed("the VLAN filter"))?;
        }
        Ok(given)
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
}
