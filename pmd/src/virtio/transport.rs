//! A virtio device on PCI, seen through its registers: status, features, queues, notifications (virtio 1.3, 3.1 and 4.1.4).

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::capabilities::Mapped;
use super::features::{Features, NOTIFICATION_DATA};
use super::registers::*;
use super::ring::Ring;
use crate::registers::Registers;

/// Why nothing was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not answer.
    Gone,
    /// It does not come out of its reset.
    InReset,
    /// It does not accept features that it has offered.
    Features,
}

/// Why a queue cannot be notified: the end of a sentence about it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum NoDoorbell {
    /// There is no such place.
    #[error("at {offset:#x} of a notification area of {len:#x} bytes")]
    Outside {
        /// Bytes from the area's start.
        offset: u64,
        /// Bytes of the area.
        len: u32,
    },
    /// A notification would not be aligned there.
    #[error("at {at:#x} of the BAR, which is no multiple of the {size} bytes that are written")]
    Misaligned {
        /// Bytes from the start of the BAR.
        at: u64,
        /// Bytes of a notification.
        size: u32,
    },
}

/// A device.
#[derive(Debug)]
pub struct Transport {
    places: Mapped,
}

impl Transport {
    /// A device whose structures are these.
    pub fn new(places: Mapped) -> Self {
        Self { places }
    }

    fn common(&self) -> &dyn Registers {
        &*self.places.common
    }

    /// The device's status; [`NO_STATUS`] where it has left.
    pub fn status(&self) -> u8 {
        self.common().read8(DEVICE_STATUS)
    }

    fn add_status(&self, bits: u8) {
        self.common().write8(DEVICE_STATUS, self.status() | bits);
    }

    /// Resets it: no queue is used from then on, no interrupt raised. `Err` where it does not say within `patience` that it is
    /// done.
    pub fn reset(&self, patience: Duration) -> Result<(), Refusal> {
        if self.status() == NO_STATUS {
            return Err(Refusal::Gone);
        }
        self.common().write8(DEVICE_STATUS, 0);
        let deadline = Instant::now() + patience;
        loop {
            match self.status() {
                0 => return Ok(()),
                NO_STATUS => return Err(Refusal::Gone),
                _ if Instant::now() > deadline => return Err(Refusal::InReset),
                _ => thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// Says that there is a driver; what the device offers.
    pub fn offered(&self) -> Features {
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        let half = |n| {
            self.common().write(DEVICE_FEATURE_SELECT, n);
            u64::from(self.common().read(DEVICE_FEATURE))
        };
        Features(half(0) | half(1) << 32)
    }

    /// Takes `features` of the offered ones.
    pub fn take(&self, features: Features) -> Result<(), Refusal> {
        for n in 0..2 {
            self.common().write(DRIVER_FEATURE_SELECT, n);
            self.common().write(DRIVER_FEATURE, (features.0 >> (32 * n)) as u32);
        }
        self.add_status(FEATURES_OK);
        match self.status() {
            NO_STATUS => Err(Refusal::Gone),
            status if status & FEATURES_OK == 0 => Err(Refusal::Features),
            _ => Ok(()),
        }
    }

    /// The queues are ready: it may use them.
    pub fn driver_ok(&self) {
        self.add_status(DRIVER_OK);
    }

    /// Most descriptors of queue `queue`; 0 where there is no such queue.
    pub fn most_descriptors(&self, queue: u16) -> u16 {
        self.common().write16(QUEUE_SELECT, queue);
        match self.common().read16(QUEUE_SIZE) {
            // More than a ring may have (2.6): it has left.
            0x8001.. => 0,
            size => size,
        }
    }

    /// Programs queue `queue` with a ring of `size` descriptors and switches it on; whether it interrupts with `vector`.
    pub fn enable(&self, queue: u16, size: u16, ring: &Ring, vector: u16) -> bool {
        let common = self.common();
        common.write16(QUEUE_SELECT, queue);
        common.write16(QUEUE_SIZE, size);
        common.write16(QUEUE_MSIX_VECTOR, vector);
        let interrupts = vector != NO_VECTOR && common.read16(QUEUE_MSIX_VECTOR) == vector;
        for (at, area) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].into_iter().zip(ring.areas()) {
            write_halves(common, at, area);
        }
        common.write16(QUEUE_ENABLE, 1);
        interrupts
    }

    /// How queue `queue` is notified; an error where its address lies outside the notification area, or a notification there
    /// would not be aligned (4.1.4.4).
    pub fn doorbell(&self, queue: u16, features: Features) -> Result<Doorbell, NoDoorbell> {
        self.common().write16(QUEUE_SELECT, queue);
        let offset = u64::from(self.common().read16(QUEUE_NOTIFY_OFF)) * u64::from(self.places.multiplier);
        let data = features.has(NOTIFICATION_DATA);
        let (area, len, start) = &self.places.notify;
        let size = if data { 4 } else { 2 };
        if offset + u64::from(size) > u64::from(*len) {
            return Err(NoDoorbell::Outside { offset, len: *len });
        }
        let at = u64::from(*start) + offset;
        if !at.is_multiple_of(u64::from(size)) {
            return Err(NoDoorbell::Misaligned { at, size });
        }
        Ok(Doorbell::new(Arc::clone(area), offset as u32, queue, data))
    }

    /// What `read` reads of the device's own configuration, at one moment (2.5.1).
    pub fn configuration<T>(&self, read: impl Fn(&Configuration<'_>) -> T) -> T {
        let (registers, len) = &self.places.device;
        let configuration = Configuration { registers: &**registers, len: *len };
        // A device that changes it all the time is believed in the end.
        for _ in 0..100 {
            let before = self.common().read8(CONFIG_GENERATION);
            let value = read(&configuration);
            if self.common().read8(CONFIG_GENERATION) == before {
                return value;
            }
        }
        read(&configuration)
    }
}

/// The device's own configuration; zeros past its end.
#[derive(Debug)]
pub struct Configuration<'a> {
    registers: &'a dyn Registers,
    len: u32,
}

impl Configuration<'_> {
    fn has(&self, offset: u32, bytes: u32) -> bool {
        offset + bytes <= self.len
    }

    /// 8 bits.
    pub fn byte(&self, offset: u32) -> u8 {
        if self.has(offset, 1) { self.registers.read8(offset) } else { 0 }
    }

    /// 16 bits.
    pub fn half(&self, offset: u32) -> u16 {
        if self.has(offset, 2) { self.registers.read16(offset) } else { 0 }
    }

    /// 32 bits.
    pub fn word(&self, offset: u32) -> u32 {
        if self.has(offset, 4) { self.registers.read(offset) } else { 0 }
    }
}

/// How a queue is notified.
#[derive(Debug)]
pub struct Doorbell {
    area: Arc<dyn Registers>,
    offset: u32,
    queue: u16,
    /// It is also told where the next buffer goes.
    data: bool,
}

impl Doorbell {
    /// A doorbell at byte `offset` of `area`.
    pub fn new(area: Arc<dyn Registers>, offset: u32, queue: u16, data: bool) -> Self {
        Self { area, offset, queue, data }
    }

    /// There is something new in `ring`.
    #[inline]
    pub fn ring(&self, ring: &Ring) {
        if self.data {
            self.area.write(self.offset, u32::from(self.queue) | u32::from(ring.next_offset()) << 16);
        } else {
            self.area.write16(self.offset, self.queue);
        }
    }
}
