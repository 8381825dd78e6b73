//! Resets: what the device is asked for, and what it says of itself with it.

use std::thread;
use std::time::{Duration, Instant};

use super::mmio::Unanswered;
use super::registers::*;
use super::{Ena, REASON_GENERIC, reason};
use crate::device::DeviceError;

/// Unit of the time limits in the capability register.
const LIMIT_UNIT: Duration = Duration::from_millis(100);
/// Between two looks at a reset.
const RESET_NAP: Duration = Duration::from_micros(200);

impl Ena {
    /// Waits until the device says that it is in a reset, or is not.
    pub(super) fn wait_reset(&mut self, resetting: bool, deadline: Instant) -> Result<(), &'static str> {
        loop {
            let status = self.mmio.read(DEV_STS).map_err(|Unanswered| "a register read is not answered")?;
            if (status & STS_RESETTING != 0) == resetting {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err("its reset does not end");
            }
            thread::sleep(RESET_NAP);
        }
    }

    /// Resets the device: it forgets all queues, and does no DMA that it is not asked for. Takes as long as the device asks
    /// for twice, at most, and not longer than `longest` twice.
    pub(super) fn reset(&mut self, longest: Duration) -> Result<(), &'static str> {
        let unanswered = |Unanswered| "a register read is not answered";
        self.admin.close();
        self.pairs.clear();
        self.mmio.place_answers();
        let status = self.mmio.read(DEV_STS).map_err(unanswered)?;
        let caps = self.mmio.read(CAPS).map_err(unanswered)?;
        if status & STS_READY == 0 {
            return Err("it is not ready");
        }
        let limit = (LIMIT_UNIT * ((caps & CAPS_RESET_LIMIT) >> CAPS_RESET_SHIFT)).min(longest);
        let reason = if self.reason > 15 { REASON_GENERIC } else { self.reason };
        self.mmio.write(DEV_CTL, CTL_RESET | u32::from(reason) << CTL_REASON_SHIFT);
        // A reset forgets it.
        self.mmio.place_answers();
        self.wait_reset(true, Instant::now() + limit)?;
        self.mmio.write(DEV_CTL, 0);
        self.wait_reset(false, Instant::now() + limit)?;
        let admin = match (caps & CAPS_ADMIN_LIMIT) >> CAPS_ADMIN_SHIFT {
            0 => Duration::from_secs(3),
            units => LIMIT_UNIT * units,
        };
        self.admin.limit = admin.min(self.patience.longest);
        self.width = (caps & CAPS_WIDTH) >> CAPS_WIDTH_SHIFT;
        self.statistics.restart();
        self.reason = reason::NORMAL;
        Ok(())
    }

    /// A controller that is older than all that ena-com drives.
    pub(super) fn check_version(&mut self) -> Result<(), DeviceError> {
        let version = self.mmio.read(CONTROLLER_VERSION).unwrap_or(0);
        if version & CONTROLLER_VERSION_MASK < LEAST_CONTROLLER_VERSION {
            return Err(DeviceError::Unsupported(format!(
                "{}: the device's controller has version {version:#x}, which is too old",
                self.place
            )));
        }
        Ok(())
    }

    pub(super) fn reaches(&self, end: u64) -> Result<(), DeviceError> {
        if self.width < 64 && end > 1 << self.width {
            return Err(DeviceError::Unsupported(format!(
                "{}: the device has addresses of {} bits, and its memory got longer ones; use an IOMMU",
                self.place, self.width
            )));
        }
        Ok(())
    }
}
