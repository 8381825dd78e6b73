//! No-IOMMU mode: VFIO for machines without an IOMMU, at the price of every protection that VFIO is for.

use std::fs;

use serde::Serialize;

use crate::error::HostError;
use crate::machine::Machine;

/// The kernel's switch (`drivers/vfio`, built with `CONFIG_VFIO_NOIOMMU`).
const SWITCH: &str = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
/// What makes it last over a boot.
const FILE: &str = "/etc/modprobe.d/virtio-forwarder-noiommu.conf";

/// What is given up, for people who are about to do so.
pub const WARNING: &str = "\
WARNING: no-IOMMU mode takes away what keeps a device inside its own memory.
  - A VF that is handed to user space can read and overwrite ALL memory of this machine: kernel, VMs, keys.
  - So can any process that opens /dev/vfio/noiommu-*, and any mistake of a driver in user space.
  - The kernel is tainted from the first such device on, and its vendor may refuse support.
Use it only where the machine itself is disposable and single-purpose, and where there is no IOMMU to turn on.";

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether it is on; `None`: this kernel has no such mode, or the module vfio is not loaded.
    pub enabled: Option<bool>,
    /// Whether it will be on after a boot.
    pub persistent: bool,
    /// Whether this machine has IOMMU groups, and no need of it.
    pub iommu: bool,
}

impl Machine {
    pub(crate) fn noiommu_is_on(&self) -> bool {
        status(self).enabled == Some(true)
    }

    /// Number of IOMMU groups. A device in no-IOMMU mode gets one, too, by name only.
    pub(crate) fn groups(&self) -> usize {
        let name = |group: &String| self.text(format!("/sys/kernel/iommu_groups/{group}/name"));
        let groups = self.names("/sys/kernel/iommu_groups");
        groups.iter().filter(|group| name(group).as_deref() != Some("vfio-noiommu")).count()
    }
}

/// How it stands.
pub fn status(machine: &Machine) -> Status {
    let switch = machine.text(SWITCH);
    Status {
        enabled: switch.map(|switch| switch == "Y" || switch == "1"),
        persistent: machine.exists(FILE),
        iommu: machine.groups() > 0,
    }
}

/// Turns it on; with `persist` after every boot, too.
pub fn enable(machine: &Machine, persist: bool) -> Result<Status, HostError> {
    let before = status(machine);
    if before.iommu {
        return HostError::refused(
            "this machine has an IOMMU, and VFIO uses it: no-IOMMU mode would only take protection away; leave it off \
             (port_control doctor shows what else may be missing)",
        );
    }
    machine.need_root()?;
    if !machine.has_module("vfio")
        && let Err(cause) = machine.kernel().load_module("vfio")
    {
        return HostError::refused(format!(
            "the kernel module vfio cannot be loaded ({cause}); install the modules of the running kernel"
        ));
    }
    if status(machine).enabled.is_none() {
        return HostError::refused(
            "this kernel was built without no-IOMMU mode (CONFIG_VFIO_NOIOMMU; grep NOIOMMU /boot/config-$(uname -r)); take a \
             kernel that has it, or build vfio with it",
        );
    }
    // The file first: where it cannot be written nothing has been given up yet.
    if persist {
        machine.create(
            FILE,
            "# Written by port_control noiommu enable --persist\noptions vfio enable_unsafe_noiommu_mode=1\n",
        )?;
    }
    if let Err(error) = machine.write(SWITCH, "Y") {
        if persist && !before.persistent {
            let _ = fs::remove_file(machine.file(FILE));
        }
        return Err(error);
    }
    Ok(status(machine))
}

/// Turns it off, for now and for the next boot.
pub fn disable(machine: &Machine) -> Result<Status, HostError> {
    let before = status(machine);
    if before.enabled != Some(true) && !before.persistent {
        return Ok(before);
    }
    machine.need_root()?;
    if before.persistent {
        let file = machine.file(FILE);
        fs::remove_file(&file).map_err(|cause| HostError::writing(&file, &cause))?;
    }
    if before.enabled == Some(true) {
        machine.write(SWITCH, "N")?;
    }
    Ok(status(machine))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::{Recorded, hosts};

    #[test]
    fn it_is_turned_on_made_to_last_and_turned_off_again() {
        let recorded = Recorded::new().loaded("vfio").with(SWITCH, "N\n");
        let machine = recorded.machine();
        assert_eq!(status(&machine), Status { enabled: Some(false), persistent: false, iommu: false });
        let on = enable(&machine, true).unwrap();
        assert_eq!(on, Status { enabled: Some(true), persistent: true, iommu: false });
        assert!(recorded.text(FILE).unwrap().contains("options vfio enable_unsafe_noiommu_mode=1"));
        let off = disable(&machine).unwrap();
        assert_eq!(off, Status { enabled: Some(false), persistent: false, iommu: false });
        assert_eq!(disable(&machine).unwrap(), off);
    }

    #[test]
    fn what_cannot_be_done_whole_is_not_done_at_all() {
        let read_only = Recorded::new().loaded("vfio").with(SWITCH, "N\n").read_only();
        let error = enable(&read_only.machine(), true).unwrap_err().to_string();
        assert!(error.contains("read-only") && error.contains("remount,rw /sys"), "{error}");
        assert_eq!(read_only.text(FILE), None);
        let no_folder = Recorded::new().loaded("vfio").with(SWITCH, "N\n").with("/etc/modprobe.d", "");
        let error = enable(&no_folder.machine(), true).unwrap_err().to_string();
        assert!(error.contains("/etc/modprobe.d"), "{error}");
        assert_eq!(no_folder.text(SWITCH).unwrap(), "N\n");
    }

    #[test]
    fn it_is_refused_where_it_makes_no_sense() {
        for (recorded, words) in [
            (hosts::prepared(), "has an IOMMU"),
            (Recorded::new().loaded("vfio"), "CONFIG_VFIO_NOIOMMU"),
            (Recorded::new(), "modules of the running kernel"),
            (Recorded::new().loaded("vfio").with(SWITCH, "N\n").without_root(), "sudo"),
        ] {
            let error = enable(&recorded.machine(), false).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!(recorded.written(), [""; 0]);
        }
    }
}
