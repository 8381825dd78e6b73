//! Where a device has its configuration structures: vendor-specific capabilities in its configuration space (virtio 1.3,
//! 4.1.4).
//!
//! ```text
//!   id 9, next, length, cfg_type, bar, id, 2 × padding, offset 32, length 32    [, notify_off_multiplier 32]
//! ```

use std::sync::Arc;

use super::registers::COMMON_BYTES;
use crate::device::DeviceError;
use crate::pci::PciFunction;
use crate::registers::{Caching, Registers};

/// Where the list begins, and whether there is one (PCI Local Bus 3.0, 6.7).
const STATUS: usize = 6;
const STATUS_LIST: u8 = 1 << 4;
const LIST: usize = 0x34;
const VENDOR: u8 = 9;
/// Types of structures.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;
/// BARs that a function can have; other numbers are reserved.
const BARS: u8 = 6;
/// Fewest bytes of the device's own structure: MAC and status.
const NET_BYTES: u32 = 8;
/// Most bytes that are mapped of any structure; notification areas can be larger than anybody needs.
const MOST: u32 = 4 << 20;

/// A structure in a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    bar: u8,
    offset: u32,
    len: u32,
}

/// All that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structures {
    common: Structure,
    notify: Structure,
    device: Structure,
    /// Bytes between the notification addresses of two queues.
    pub multiplier: u32,
}

/// The structures, mapped.
#[derive(Debug)]
pub struct Mapped {
    /// Common configuration.
    pub common: Arc<dyn Registers>,
    /// Notification area, and its length in bytes.
    pub notify: (Arc<dyn Registers>, u32),
    /// The device's own configuration, and its length in bytes.
    pub device: (Arc<dyn Registers>, u32),
    /// Bytes between the notification addresses of two queues.
    pub multiplier: u32,
}

impl Structures {
    /// Reads them off the first 256 bytes of a configuration space; `Err` with the name of a structure that is not there.
    /// The first usable one of a type counts, as the device orders them by its preference (4.1.4.1).
    pub fn of(config: &[u8; 256]) -> Result<Self, &'static str> {
        let (mut common, mut notify, mut device) = (None, None, None);
        let mut at = usize::from(config[LIST] & !3);
        // A list that bites its tail ends, too.
        for _ in 0..config.len() / 4 {
            if config[STATUS] & STATUS_LIST == 0 || at < 0x40 || at + 16 > config.len() {
                break;
            }
            let word = |n: usize| {
                let bytes = config.get(at + n..at + n + 4).and_then(|bytes| bytes.try_into().ok());
                bytes.map_or(0, u32::from_le_bytes)
            };
            let (len, kind, bar) = (config[at + 2], config[at + 3], config[at + 4]);
            let structure = Structure { bar, offset: word(8), len: word(12).min(MOST) };
            let usable = config[at] == VENDOR && len >= 16 && bar < BARS;
            match kind {
                COMMON if usable && structure.len >= COMMON_BYTES => common = common.or(Some(structure)),
                NOTIFY if usable && len >= 20 && structure.len >= 2 => {
                    notify = notify.or(Some((structure, word(16))));
                }
                DEVICE if usable && structure.len >= NET_BYTES => device = device.or(Some(structure)),
                _ => {}
            }
            at = usize::from(config[at + 1] & !3);
        }
        let common = common.ok_or("common configuration")?;
        let (notify, multiplier) = notify.ok_or("notification")?;
        let device = device.ok_or("device configuration")?;
        Ok(Self { common, notify, device, multiplier })
    }

    /// Maps them; each must lie in its BAR.
    pub fn map(&self, function: &Arc<dyn PciFunction>) -> Result<Mapped, DeviceError> {
        let map = |at: Structure| {
            Arc::clone(function).bar(at.bar, at.offset.into(), at.len as usize, Caching::Uncached)
        };
        Ok(Mapped {
            common: map(self.common)?,
            notify: (map(self.notify)?, self.notify.len),
            device: (map(self.device)?, self.device.len),
            multiplier: self.multiplier,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(config: &mut [u8; 256], at: usize, next: u8, kind: u8, bar: u8, offset: u32, len: u32) {
        config[at..at + 5].copy_from_slice(&[VENDOR, next, 20, kind, bar]);
        config[at + 8..at + 12].copy_from_slice(&offset.to_le_bytes());
        config[at + 12..at + 16].copy_from_slice(&len.to_le_bytes());
        config[at + 16] = 4;
    }

    fn config() -> [u8; 256] {
        let mut config = [0; 256];
        (config[STATUS], config[LIST]) = (STATUS_LIST, 0x40);
        put(&mut config, 0x40, 0x54, COMMON, 4, 0, 0x1000);
        put(&mut config, 0x54, 0x68, DEVICE, 4, 0x2000, 0x1000);
        put(&mut config, 0x68, 0, NOTIFY, 4, 0x3000, 0x1000);
        config
    }

    #[test]
    fn structures_are_found_where_the_capabilities_say() {
        let found = Structures::of(&config()).unwrap();
        assert_eq!(found.multiplier, 4);
        assert_eq!(found.device, Structure { bar: 4, offset: 0x2000, len: 0x1000 });
    }

    #[test]
    fn the_first_that_can_be_used_counts() {
        let mut config = config();
        config[0x6b] = COMMON;
        assert_eq!(Structures::of(&config), Err("notification"));
        put(&mut config, 0x68, 0x80, NOTIFY, 7, 0x3000, 0x1000);
        put(&mut config, 0x80, 0, NOTIFY, 2, 0x5000, 0x10);
        assert_eq!(Structures::of(&config).unwrap().notify, Structure { bar: 2, offset: 0x5000, len: 0x10 });
        put(&mut config, 0x40, 0x54, COMMON, 4, 0, 0x10);
        assert_eq!(Structures::of(&config), Err("common configuration"));
        config[STATUS] = 0;
        assert!(Structures::of(&config).is_err());
    }

    proptest! {
        #[test]
        fn any_configuration_space_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 256)) {
            let mut config: [u8; 256] = bytes.try_into().unwrap();
            config[STATUS] |= STATUS_LIST;
            let _ = Structures::of(&config);
        }
    }
}
