//! Opening a VF by its address: the checks, the choice of the driver.

use std::sync::Arc;

use crate::device::{Device, DeviceError};
use crate::igbvf::{self, Igbvf, Patience, Setup};
use crate::pci::{Address, Ids, PciFunction, Sysfs};
use crate::registers::Registers;
use crate::vfio::{Bar, Function};

/// How to open a VF.
#[derive(Clone, Debug, Default)]
pub struct VfOptions {
    /// Where PCI functions are described; `/sys` by default.
    pub sysfs: Sysfs,
}

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
    if !igbvf::IDS.contains(&ids) {
        return Err(unsupported(address, ids));
    }
    let ready = sysfs.ready(address)?;
    let function = Function::open(sysfs, address, &ready)?;
    let (bar, len) = igbvf::REGISTERS;
    let registers: Arc<dyn Registers> = Arc::new(Bar::map(&function, bar, len)?);
    let setup = Setup {
        address,
        place: sysfs.place_on_pf(address),
        patience: Patience::default(),
        hashed_groups: sysfs.subsystem_vendor(address) == Some(QEMU),
    };
    Ok(Box::new(Igbvf::open(function as Arc<dyn PciFunction>, registers, setup)?))
}

fn unsupported(address: Address, ids: Ids) -> DeviceError {
    let known: Vec<String> = igbvf::IDS.iter().map(|ids| format!("{ids} (igbvf)")).collect();
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
        let options = VfOptions { sysfs: Sysfs::at(folder.path()) };
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
