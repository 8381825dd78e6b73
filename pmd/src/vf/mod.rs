//! Virtual functions: opening one by its address with the driver of its family, and the life that all of them share.
//!
//! ```text
//!   open_vf ──▶ the table of drivers ──▶ Vf<D>: states, events, quiet at the end     (life)
//!                                          └── D: VfDriver: hand-shake, rings, what it hears   (one folder a family)
//! ```

mod bell;
mod driver;
mod life;
mod setup;
pub mod watchdog;

pub use bell::{Bell, Poke};
pub use driver::{Agreed, Rung, VfDriver};
pub use life::Vf;
pub use setup::{Place, Wishes};
pub use watchdog::Progress;

use std::sync::Arc;

use crate::device::{Device, DeviceError};
use crate::ena::{self, Ena};
use crate::iavf::{self, Iavf};
use crate::igbvf::{self, Igbvf};
use crate::ixgbevf::{self, Ixgbevf};
use crate::nfp::{self, Nfp};
use crate::pci::{Address, Ids, PciFunction, Sysfs};
use crate::vfio::{Access, Function, VfToken};
use crate::virtio::{self, Virtio};

/// How to open a VF.
#[derive(Clone, Debug, Default)]
pub struct VfOptions {
    /// Where PCI functions are described; `/sys` by default.
    pub sysfs: Sysfs,
    /// What is wanted of it.
    pub wishes: Wishes,
    /// By which of the kernel's ways.
    pub access: Access,
    /// What the kernel is shown when it asks for a VF token, because the PF is held by VFIO, too.
    pub token: Option<VfToken>,
}

/// What a driver is opened with.
struct Found {
    function: Arc<dyn PciFunction>,
    place: Place,
    ids: Ids,
    /// The model is QEMU's, not the silicon.
    is_qemu: bool,
    wishes: Wishes,
}

/// A driver, the devices that it knows, and how it takes one over.
struct Driver {
    name: &'static str,
    ids: &'static [Ids],
    open: fn(Found) -> Result<Box<dyn Device>, DeviceError>,
}

/// Every driver.
const DRIVERS: &[Driver] = &[
    Driver {
        name: "virtio",
        ids: &virtio::IDS,
        open: |found| {
            let setup = virtio::Setup {
                place: found.place,
                wishes: found.wishes,
                patience: virtio::Patience::default(),
            };
            Ok(Box::new(Virtio::open(found.function, setup)?))
        },
    },
    Driver {
        name: "igbvf",
        ids: &igbvf::IDS,
        open: |found| {
            let setup = igbvf::Setup {
                place: found.place,
                ids: found.ids,
                wishes: found.wishes,
                patience: igbvf::Patience::default(),
                hashed_groups: found.is_qemu,
            };
            Ok(Box::new(Igbvf::open(found.function, setup)?))
        },
    },
    Driver {
        name: "ixgbevf",
        ids: &ixgbevf::IDS,
        open: |found| {
            let setup = ixgbevf::Setup {
                place: found.place,
                ids: found.ids,
                wishes: found.wishes,
                patience: ixgbevf::Patience::default(),
            };
            Ok(Box::new(Ixgbevf::open(found.function, setup)?))
        },
    },
    Driver {
        name: "ena",
        ids: &ena::IDS,
        open: |found| {
            let patience = ena::Patience::default();
            let setup = ena::Setup { place: found.place, wishes: found.wishes, patience };
            Ok(Box::new(Ena::open(found.function, setup)?))
        },
    },
    Driver {
        name: "nfp",
        ids: &nfp::IDS,
        open: |found| {
            let setup = nfp::Setup {
                place: found.place,
                ids: found.ids,
                wishes: found.wishes,
                patience: nfp::Patience::default(),
            };
            Ok(Box::new(Nfp::open(found.function, setup)?))
        },
    },
    Driver {
        name: "iavf",
        ids: &iavf::IDS,
        open: |found| {
            let setup =
                iavf::Setup { place: found.place, wishes: found.wishes, patience: iavf::Patience::default() };
            Ok(Box::new(Iavf::open(found.function, setup)?))
        },
    },
];

/// Subsystem vendor that QEMU's models carry unless they are told another.
const QEMU: u16 = 0x1af4;

/// Opens the VF at `address` with the driver that knows it.
///
/// ```no_run
/// use pmd::{VfOptions, open_vf};
///
/// let mut device = open_vf("0000:02:08.0".parse()?, &VfOptions::default())?;
/// let queues = device.start()?;
/// println!("{:?}", device.identity());
/// device.stop(queues);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The text of an error names the VF, the cause, and the command that helps. What stands in the way for now
/// ([`DeviceError::NotReady`], [`DeviceError::Busy`]) can be tried again.
pub fn open_vf(address: Address, options: &VfOptions) -> Result<Box<dyn Device>, DeviceError> {
    let sysfs = &options.sysfs;
    let ids = sysfs.ids(address)?;
    // Told before the binding is checked: nobody should rebind a device that will not be served.
    let driver =
        DRIVERS.iter().find(|driver| driver.ids.contains(&ids)).ok_or_else(|| unsupported(address, ids))?;
    let ready = sysfs.ready(address)?;
    let function = Function::open(sysfs, address, &ready, options.access, options.token.as_ref())?;
    (driver.open)(Found {
        function,
        place: Place { address, pf: sysfs.place_on_pf(address) },
        ids,
        is_qemu: sysfs.subsystem_vendor(address) == Some(QEMU),
        wishes: options.wishes.clone(),
    })
}

fn unsupported(address: Address, ids: Ids) -> DeviceError {
    let of = |driver: &Driver| driver.ids.iter().map(|ids| format!("{ids} ({})", driver.name)).collect();
    let known: Vec<String> = DRIVERS.iter().flat_map(|driver| -> Vec<String> { of(driver) }).collect();
    DeviceError::Unsupported(format!(
        "no driver here knows {address}, which is {ids}; known are {}; check the address: lspci -nn -s {address}",
        known.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn an_unknown_device_is_named_with_what_is_known() {
        let folder = tempfile::tempdir().unwrap();
        let options = VfOptions { sysfs: Sysfs::at(folder.path()), ..VfOptions::default() };
        let address: Address = "0000:02:08.0".parse().unwrap();
        let device = options.sysfs.device(address);
        assert!(matches!(open_vf(address, &options), Err(DeviceError::NotFound(_))));
        fs::create_dir_all(&device).unwrap();
        fs::write(device.join("vendor"), "0x1af4\n").unwrap();
        fs::write(device.join("device"), "0x1000\n").unwrap();
        let Err(DeviceError::Unsupported(text)) = open_vf(address, &options) else { panic!() };
        assert!(
            text.contains("1af4:1000") && text.contains("8086:10ca") && text.contains("8086:1520"),
            "{text}"
        );
    }
}
