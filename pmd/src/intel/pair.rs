//! A queue pair: its memory, and its registers while it is switched on and off.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::descriptor;
use super::family::{ENABLE, Family, IVAR_VALID, RING, VECTORS, ring};
use super::rx::{IntelReceive, ReceiveCounters, ReceiveMemory};
use super::tag::TAG;
use super::tx::{IntelTransmit, TransmitCounters};
use crate::device::{DeviceError, Queues, Receive, Transmit};
use crate::memory::{BUFFER_SIZE, BufferPool, DmaMap, DmaMemory, DmaSlice, Kept, SlotBuffers};
use crate::pci::PciFunction;
use crate::registers::{ALL_ONES, Registers};
use crate::vf::{Bell, Place, Poke};

/// Bytes of both rings together with all buffers: three huge pages.
const MEMORY: usize = 6 << 20;
const RING_BYTES: usize = RING as usize * descriptor::SIZE;
const TRANSMIT_BYTES: usize = SlotBuffers::bytes(RING);
/// Receive buffers get the rest; they must fill the ring and leave as many for frames on their way to the guest.
const BUFFERS: usize = (MEMORY - 2 * RING_BYTES - TRANSMIT_BYTES) / (BUFFER_SIZE as usize + TAG);
const _: () = assert!(BUFFERS > 3 * RING as usize / 2);

/// Looks at a queue that is being enabled, and the time between two: 100 ms.
const ENABLE_LOOKS: u32 = 100;
const ENABLE_INTERVAL: Duration = Duration::from_millis(1);
/// From when a receive queue reads as off until its buffers are let go: the 82599 and its successors need 100 µs
/// (data sheet, 4.6.7.1).
const AFTER_DISABLE: Duration = Duration::from_micros(200);
/// Time that a queue has to be disabled, and between two looks at it.
const DISABLE_TIME: Duration = Duration::from_millis(10);
const DISABLE_INTERVAL: Duration = Duration::from_micros(100);

/// The memory of a queue pair.
#[derive(Debug)]
pub struct PairMemory {
    /// Of the receive queue.
    pub receive: ReceiveMemory,
    /// The transmit ring: room for [`RING`] descriptors.
    pub transmit: DmaSlice,
    /// A buffer for each of its slots.
    pub transmit_buffers: DmaSlice,
}

impl PairMemory {
    /// Memory that a device reaches through `map`. `name` is seen in `/proc/PID/maps`.
    pub fn new(map: Arc<dyn DmaMap>, name: &str, kept: &mut Kept) -> Result<Self, DeviceError> {
        let memory = DmaMemory::new(map, MEMORY, name)?;
        tracing::debug!(name, bytes = memory.len(), huge = memory.is_huge(), "DMA memory");
        let sizes = [RING_BYTES, RING_BYTES, BUFFERS * BUFFER_SIZE as usize, TRANSMIT_BYTES, BUFFERS * TAG];
        let [ring, transmit, buffers, transmit_buffers, tags] = kept.carve(memory, sizes)?;
        let receive = ReceiveMemory { ring, pool: BufferPool::new(buffers), tags };
        Ok(Self { receive, transmit, transmit_buffers })
    }
}

/// What all queue pairs of a VF have in common.
#[derive(Debug)]
pub struct Pairs<'a> {
    /// For messages.
    pub device: &'a Place,
    /// The driver, for `/proc/PID/maps`.
    pub driver: &'static str,
    /// What it reaches memory through, and what interrupts.
    pub function: &'a Arc<dyn PciFunction>,
    /// Its registers.
    pub registers: &'a Arc<dyn Registers>,
    /// Its kind.
    pub family: &'static Family,
    /// Longest frame in bytes, without FCS.
    pub max_frame: u32,
    /// What the receive queues count.
    pub received: &'a Arc<ReceiveCounters>,
    /// What the transmit queues count.
    pub transmitted: &'a Arc<TransmitCounters>,
}

impl Pairs<'_> {
    /// Gets memory for `count` queue pairs and switches them on.
    pub fn start(&self, count: u16, kept: &mut Kept) -> Result<Queues, DeviceError> {
        let mut memories = Vec::new();
        for queue in 0..count {
            let map = Arc::clone(self.function) as Arc<dyn DmaMap>;
            let memory = PairMemory::new(map, &format!("{} {} {queue}", self.driver, self.device), kept)?;
            self.switch_on(queue, &memory)?;
            memories.push(memory);
        }
        let mut queues = Queues::default();
        for ((queue, memory), bell) in (0..).zip(memories).zip(self.bells(count)) {
            let PairMemory { receive, transmit, transmit_buffers } = memory;
            let registers = || Arc::clone(self.registers);
            let counters = Arc::clone(self.received);
            let receive = IntelReceive::new(registers(), self.family, queue, receive, counters);
            queues.receive.push(Receive::Intel(receive.with_bell(bell)));
            let transmit = IntelTransmit::new(
                registers(),
                self.family,
                queue,
                [transmit, transmit_buffers],
                self.max_frame,
                Arc::clone(self.transmitted),
            );
            queues.transmit.push(Transmit::Intel(transmit.of(Arc::clone(self.function))));
        }
        Ok(queues)
    }

    /// Programs both rings of a queue pair and switches them on.
    fn switch_on(&self, queue: u16, memory: &PairMemory) -> Result<(), DeviceError> {
        let start = |first: u32, slice: &DmaSlice, settings: &[(u32, u32)], control: u32| {
            let write = |register: u32, value| self.registers.write(first + register, value);
            write(ring::CONTROL, 0);
            write(ring::BASE_LOW, slice.iova() as u32);
            write(ring::BASE_HIGH, (slice.iova() >> 32) as u32);
            write(ring::LENGTH, RING_BYTES as u32);
            for (register, value) in settings {
                write(*register, *value);
            }
            write(ring::HEAD, 0);
            write(ring::TAIL, 0);
            write(ring::CONTROL, ENABLE | control);
            wait_enabled(&**self.registers, first + ring::CONTROL)
        };
        let family = self.family;
        let failed = |direction| {
            DeviceError::Failed(format!(
                "{}: {direction} queue {queue} does not start; unbind the VF from vfio-pci and bind it again",
                self.device
            ))
        };
        let receive = family.receive_at(queue, 0);
        if !start(receive, &memory.receive.ring, family.receive_settings, family.rxdctl) {
            return Err(failed("receive"));
        }
        let transmit = family.transmit_at(queue, 0);
        if !start(transmit, &memory.transmit, family.transmit_settings, family.txdctl) {
            return Err(failed("transmit"));
        }
        Ok(())
    }

    /// Gives the receive queues an interrupt each, as far as there are any, which stays masked until its queue asks for it.
    /// Without, a queue is polled.
    fn bells(&self, pairs: u16) -> Vec<Option<Bell>> {
        let first = self.family.first_vector;
        let count = pairs.min(VECTORS - first);
        let mut bells: Vec<Option<Bell>> = (0..pairs).map(|_| None).collect();
        match self.function.interrupts(usize::from(first + count)) {
            Ok(rung) => {
                let vectors = ((1 << count) - 1) << first;
                self.registers.write(self.family.eimc, vectors);
                for queue in (0..u32::from(count)).step_by(2) {
                    let entry = |queue: u32| {
                        if queue < count.into() { IVAR_VALID | (u32::from(first) + queue) } else { 0 }
                    };
                    self.registers.write(self.family.ivar + 2 * queue, entry(queue) | entry(queue + 1) << 16);
                }
                self.registers.write(self.family.eiac, vectors);
                self.registers.write(self.family.eiam, vectors);
                for ((vector, event), entry) in (0..).zip(rung).skip(first.into()).zip(&mut bells) {
                    *entry = Some(Bell {
                        event,
                        registers: Arc::clone(self.registers),
                        allow: Poke::Word(self.family.eims, 1 << vector),
                        mask: Poke::Word(self.family.eimc, 1 << vector),
                    });
                }
            }
            Err(cause) => tracing::debug!(device = %self.device, %cause, "no interrupts"),
        }
        bells
    }
}

fn wait_enabled(registers: &dyn Registers, control: u32) -> bool {
    for _ in 0..ENABLE_LOOKS {
        match registers.read(control) {
            ALL_ONES => return false,
            value if value & ENABLE != 0 => return true,
            _ => thread::sleep(ENABLE_INTERVAL),
        }
    }
    false
}

/// Switches queue pairs `0..queues` off; whether the device confirmed it, for which it has 10 ms in all.
pub fn switch_off(registers: &dyn Registers, family: &Family, queues: u16) -> bool {
    let controls = (0..queues).flat_map(|queue| {
        [family.receive_at(queue, ring::CONTROL), family.transmit_at(queue, ring::CONTROL)]
    });
    disable(registers, controls)
}

/// Switches the queues with these control registers off; whether the device confirmed it within 10 ms.
pub fn disable(registers: &dyn Registers, controls: impl Iterator<Item = u32> + Clone) -> bool {
    for control in controls.clone() {
        let value = registers.read(control);
        if value == ALL_ONES {
            return false;
        }
        registers.write(control, value & !ENABLE);
    }
    let deadline = Instant::now() + DISABLE_TIME;
    loop {
        // The time is taken before the look: whoever was kept from running meanwhile looks once more.
        let late = Instant::now() > deadline;
        if controls.clone().all(|control| registers.read(control) & ENABLE == 0) {
            thread::sleep(AFTER_DISABLE);
            return true;
        }
        if late {
            return false;
        }
        thread::sleep(DISABLE_INTERVAL);
    }
}
