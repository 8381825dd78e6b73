//! A queue pair: its memory, and its registers while it is switched on and off.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::descriptor;
use super::family::{ENABLE, Family, RING, ring};
use super::rx::{ReceiveMemory, TAG};
use crate::device::DeviceError;
use crate::memory::{BUFFER_SIZE, BufferPool, DmaMap, DmaMemory, DmaSlice, SlotBuffers};
use crate::registers::{ALL_ONES, Registers};

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
/// Looks at a queue that is being disabled, and the time between two: 10 ms.
const DISABLE_LOOKS: u32 = 100;
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
    pub fn new(map: Arc<dyn DmaMap>, name: &str) -> Result<Self, DeviceError> {
        let memory = DmaMemory::new(map, MEMORY, name)?;
        tracing::debug!(name, bytes = memory.len(), huge = memory.is_huge(), "DMA memory");
        let [ring, transmit, buffers, transmit_buffers, tags] = memory.carve([
            RING_BYTES,
            RING_BYTES,
            BUFFERS * BUFFER_SIZE as usize,
            TRANSMIT_BYTES,
            BUFFERS * TAG,
        ])?;
        let receive = ReceiveMemory { ring, pool: BufferPool::new(buffers), tags };
        Ok(Self { receive, transmit, transmit_buffers })
    }
}

/// A queue that does not start, as a part of a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotStarted {
    /// `receive` or `transmit`.
    pub direction: &'static str,
    /// Its number.
    pub queue: u16,
}

/// Programs both rings of queue pair `queue` and switches them on.
pub fn switch_on(
    registers: &dyn Registers,
    family: &Family,
    queue: u16,
    memory: &PairMemory,
) -> Result<(), NotStarted> {
    let start = |first: u32, slice: &DmaSlice, extra: Option<(u32, u32)>, control: u32| {
        let write = |register: u32, value| registers.write(first + register, value);
        write(ring::CONTROL, 0);
        write(ring::BASE_LOW, slice.iova() as u32);
        write(ring::BASE_HIGH, (slice.iova() >> 32) as u32);
        write(ring::LENGTH, RING_BYTES as u32);
        if let Some((register, value)) = extra {
            write(register, value);
        }
        write(ring::HEAD, 0);
        write(ring::TAIL, 0);
        write(ring::CONTROL, ENABLE | control);
        wait_enabled(registers, first + ring::CONTROL)
    };
    let receive = family.receive_at(queue, 0);
    let extra = Some((family.srrctl, family.srrctl_value));
    if !start(receive, &memory.receive.ring, extra, family.rxdctl) {
        return Err(NotStarted { direction: "receive", queue });
    }
    if !start(family.transmit_at(queue, 0), &memory.transmit, None, family.txdctl) {
        return Err(NotStarted { direction: "transmit", queue });
    }
    Ok(())
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
    for _ in 0..DISABLE_LOOKS {
        if controls.clone().all(|control| registers.read(control) & ENABLE == 0) {
            return true;
        }
        thread::sleep(DISABLE_INTERVAL);
    }
    false
}
