//! Queues are created: their memory, what the device is told of them, and what their workers get.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::deal::Deal;
use super::features::LlqLayout;
use super::health::Health;
use super::llq::Submissions;
use super::queues::{Direction, Pair, Plan};
use super::registers::*;
use super::rx::{self, EnaReceive};
use super::tx::{self, EnaTransmit};
use super::{Ena, PAGE, descriptor, rss};
use crate::device::{DeviceError, Receive, Transmit};
use crate::memory::{BUFFER_SIZE, BufferPool, DmaMap, DmaMemory, Kept, SlotBuffers};
use crate::registers::{Caching, Registers};

/// What memory comes in where there are huge pages.
const MEMORY_GRANULE: usize = 2 << 20;

impl Ena {
    /// A register alone.
    pub(super) fn register(&self, offset: u32) -> Result<Arc<dyn Registers>, DeviceError> {
        if !offset.is_multiple_of(4) {
            return Err(self.failed(format_args!("a queue's register is at {offset:#x}")));
        }
        Arc::clone(&self.function).bar(BAR, offset.into(), 4, Caching::Uncached)
    }

    /// The memory of a low latency queue in the device.
    pub(super) fn device_memory(
        &mut self,
        layout: &LlqLayout,
        offset: u32,
        depth: u16,
    ) -> Result<Arc<dyn Registers>, DeviceError> {
        let bytes = usize::from(depth) * usize::from(layout.entry);
        if !offset.is_multiple_of(8) {
            return Err(self.failed(format_args!("a queue's memory is at {offset:#x}")));
        }
        let function = Arc::clone(&self.function);
        let memory = function.bar(MEMORY_BAR, offset.into(), bytes, Caching::WriteCombining)?;
        if memory.caching() == Caching::Uncached && !std::mem::replace(&mut self.slow_pushes_told, true) {
            self.notices.push(format!(
                "{}: frames are pushed into the device through an uncached mapping, which is slow: for a \
                 write-combining one, the kernel must offer resource{MEMORY_BAR}_wc of the device, or its vfio-pci be \
                 Amazon's (amzn-drivers, userspace/dpdk/enav2-vfio-patch)",
                self.place
            ));
        }
        Ok(memory)
    }

    /// Gets memory for a pair of queues, and has the device create them; `number` counts from 0.
    pub(super) fn create(
        &mut self,
        deal: &Deal,
        number: u16,
        bell: Option<OwnedFd>,
        kept: &mut Kept,
    ) -> Result<(Receive, Transmit), DeviceError> {
        let [receive_depth, transmit_depth] = self.depths(deal);
        let ring = |depth: u16, size: usize| (usize::from(depth) * size).next_multiple_of(PAGE);
        let rings = [
            ring(receive_depth, descriptor::SIZE),
            ring(receive_depth, descriptor::SIZE),
            if deal.llq.is_some() { 0 } else { ring(transmit_depth, descriptor::SIZE) },
            ring(transmit_depth, descriptor::SENT_SIZE),
            SlotBuffers::bytes(transmit_depth),
        ];
        let fixed: usize = rings.iter().sum();
        // Receive buffers fill the ring and leave as many for frames on their way to the guest, and get the rest.
        let least = usize::from(receive_depth) * 3 / 2 * BUFFER_SIZE as usize;
        let len = (fixed + least).next_multiple_of(MEMORY_GRANULE);
        let map = Arc::clone(&self.function) as Arc<dyn DmaMap>;
        let memory = DmaMemory::new(map, len, &format!("ena {} {number}", self.place))?;
        let [rx, rx_done, tx, tx_done, tx_buffers] = rings;
        let sizes = [rx, rx_done, tx, tx_done, tx_buffers, len - fixed];
        let [rx, rx_done, tx, tx_done, tx_buffers, rx_buffers] = kept.carve(memory, sizes)?;
        self.reaches(rx_buffers.iova() + rx_buffers.len() as u64)?;

        let plan = Plan {
            direction: Direction::Receive,
            depth: receive_depth,
            completion_size: descriptor::SIZE,
            completions: rx_done.iova(),
            submissions: Some(rx.iova()),
            // The first is that of the admin queue.
            vector: bell.as_ref().map(|_| number + 1),
        };
        let pair = self.create_pair(&plan)?;
        let interrupt = match bell {
            Some(bell) => Some(rx::Interrupt { unmask: self.register(pair.unmask)?, bell }),
            None => None,
        };
        let health = Arc::new(Health::default());
        self.health.push(Arc::clone(&health));
        let receive = EnaReceive::new(rx::Parts {
            submissions: rx,
            completions: rx_done,
            depth: receive_depth,
            doorbell: self.register(pair.doorbell)?,
            pool: BufferPool::new(rx_buffers),
            verifies: deal.offloads.verifies(),
            keeps_reserved_bits: deal.device.keeps_reserved_bits(),
            interrupt,
            counters: Arc::clone(&self.receive),
            health,
        });

        let plan = Plan {
            direction: Direction::Transmit,
            depth: transmit_depth,
            completion_size: descriptor::SENT_SIZE,
            completions: tx_done.iova(),
            submissions: deal.llq.is_none().then(|| tx.iova()),
            vector: None,
        };
        let pair = self.create_pair(&plan)?;
        let submissions = match deal.llq {
            None => {
                let max_header = u8::try_from(deal.limits.max_header).unwrap_or(u8::MAX);
                Submissions::Host { ring: tx, max_header }
            }
            Some(layout) => Submissions::Device {
                memory: self.device_memory(&layout, pair.memory, transmit_depth)?,
                layout,
            },
        };
        let health = Arc::new(Health::default());
        self.health.push(Arc::clone(&health));
        let transmit = EnaTransmit::new(tx::Parts {
            submissions,
            completions: tx_done,
            depth: transmit_depth,
            doorbell: self.register(pair.doorbell)?,
            buffers: tx_buffers,
            max_frame: deal.max_frame,
            capabilities: Self::capabilities(deal),
            keeps_reserved_bits: deal.device.keeps_reserved_bits(),
            counters: Arc::clone(&self.transmit),
            health,
        });
        Ok((Receive::Ena(receive), Transmit::Ena(transmit)))
    }

    pub(super) fn create_pair(&mut self, plan: &Plan) -> Result<Pair, DeviceError> {
        let pair = Pair::create(&mut self.admin, &self.mmio, plan)
            .map_err(|cause| self.refused("it does not create a queue", cause))?;
        self.pairs.push(pair);
        Ok(pair)
    }

    /// Has flows spread over the receive queues.
    pub(super) fn spread(&mut self, deal: &Deal) -> Result<(), DeviceError> {
        let receives: Vec<u16> =
            self.pairs.iter().filter(|pair| pair.is_receive()).map(|pair| pair.submission).collect();
        let spread = rss::spread(&mut self.admin, &self.mmio, &deal.device, &mut self.scratch, &receives)
            .map_err(|cause| self.refused("it does not spread flows over its queues", cause))?;
        if !spread && deal.pairs > 1 {
            self.notices.push(format!(
                "{}: the device does not let flows be spread, so frames may arrive through one of its queues only",
                self.place
            ));
        }
        Ok(())
    }

    /// An eventfd for each receive queue; without, they are polled.
    pub(super) fn bells(&self, pairs: u16) -> Vec<Option<OwnedFd>> {
        match self.function.interrupts(usize::from(pairs) + 1) {
            // The first is that of the admin queue, which is looked at all the time.
            Ok(bells) => bells.into_iter().skip(1).map(Some).collect(),
            Err(cause) => {
                tracing::debug!(device = %self.place, %cause, "no interrupts");
                (0..pairs).map(|_| None).collect()
            }
        }
    }
}
