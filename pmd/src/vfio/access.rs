//! By which of the kernel's ways a function is opened.
//!
//! ```text
//!   device file   /dev/vfio/devices/vfioN, bound to /dev/iommu      kernels with CONFIG_VFIO_DEVICE_CDEV (since 6.6)
//!   group         /dev/vfio/N, put into /dev/vfio/vfio               every kernel
//!   no IOMMU      /dev/vfio/noiommu-N, put into /dev/vfio/vfio       where an operator has allowed it
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::Access as Permission;

use crate::device::DeviceError;
use crate::pci::{Address, Ready, Sysfs};

/// Which way is wished for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// The device file where the kernel has it and this process may open it, the group otherwise.
    #[default]
    Auto,
    /// By group and container.
    Group,
    /// By device file and iommufd.
    DeviceFile,
}

/// The way that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Group { node: PathBuf },
    DeviceFile { node: PathBuf, iommu: PathBuf },
    NoIommu { node: PathBuf },
}

impl Way {
    /// Chooses for the function at `address`. `dev` stands for `/dev`.
    pub(super) fn choose(
        sysfs: &Sysfs,
        dev: &Path,
        address: Address,
        ready: &Ready,
        wish: Access,
    ) -> Result<Self, DeviceError> {
        if ready.no_iommu {
            return Ok(Self::NoIommu { node: dev.join(format!("vfio/noiommu-{}", ready.group)) });
        }
        let group = Self::Group { node: dev.join(format!("vfio/{}", ready.group)) };
        let iommu = dev.join("iommu");
        let node = device_file(sysfs, dev, address).filter(|node| node.exists() && iommu.exists());
        match (wish, node) {
            (Access::DeviceFile, Some(node)) => Ok(Self::DeviceFile { node, iommu }),
            (Access::DeviceFile, None) => Err(DeviceError::NotReady(format!(
                "{address} has no device file below /dev/vfio/devices, or there is no /dev/iommu; the kernel needs \
                 CONFIG_VFIO_DEVICE_CDEV and CONFIG_IOMMUFD (load it: modprobe iommufd), or let the daemon use groups"
            ))),
            (Access::Auto, Some(node)) if [&node, &iommu].into_iter().all(|node| may_open(node)) => {
                Ok(Self::DeviceFile { node, iommu })
            }
            _ => Ok(group),
        }
    }

    /// The file that stands for the function, or for its group.
    pub(super) fn node(&self) -> &Path {
        match self {
            Self::Group { node } | Self::DeviceFile { node, .. } | Self::NoIommu { node } => node,
        }
    }
}

/// The node of a function's device file: sysfs says its name, whether or not there is one.
fn device_file(sysfs: &Sysfs, dev: &Path, address: Address) -> Option<PathBuf> {
    let entry = fs::read_dir(sysfs.device(address).join("vfio-dev")).ok()?.next()?.ok()?;
    Some(dev.join("vfio/devices").join(entry.file_name()))
}

fn may_open(node: &Path) -> bool {
    rustix::fs::access(node, Permission::READ_OK | Permission::WRITE_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Ids;

    /// A machine with the function at 0000:01:10.0 in group 7, whose device file is vfio3.
    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new(nodes: &[&str]) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(machine.sysfs().device(address()).join("vfio-dev/vfio3")).unwrap();
            for node in nodes {
                let node = machine.dev().join(node);
                fs::create_dir_all(node.parent().unwrap()).unwrap();
                fs::write(node, "").unwrap();
            }
            machine
        }

        fn sysfs(&self) -> Sysfs {
            Sysfs::at(self.0.path().join("sys"))
        }

        fn dev(&self) -> PathBuf {
            self.0.path().join("dev")
        }

        fn way(&self, wish: Access, no_iommu: bool) -> Result<String, String> {
            let ids = Ids { vendor: 0x8086, device: 0x10ca };
            let ready = Ready { ids, group: 7, companions: vec![], no_iommu };
            let way = Way::choose(&self.sysfs(), &self.dev(), address(), &ready, wish);
            let name = |way: Way| way.node().strip_prefix(self.dev()).unwrap().to_str().unwrap().to_owned();
            way.map(name).map_err(|error| error.to_string())
        }
    }

    fn address() -> Address {
        "0000:01:10.0".parse().unwrap()
    }

    const NEW: [&str; 3] = ["vfio/7", "vfio/devices/vfio3", "iommu"];

    #[test]
    fn the_device_file_is_taken_where_the_kernel_has_it() {
        let machine = Machine::new(&NEW);
        assert_eq!(machine.way(Access::Auto, false).unwrap(), "vfio/devices/vfio3");
        assert_eq!(machine.way(Access::Group, false).unwrap(), "vfio/7");
        assert_eq!(machine.way(Access::DeviceFile, false).unwrap(), "vfio/devices/vfio3");
    }

    #[test]
    fn without_device_file_or_iommufd_it_is_the_group() {
        for nodes in [&["vfio/7"][..], &["vfio/7", "iommu"], &["vfio/7", "vfio/devices/vfio3"]] {
            let machine = Machine::new(nodes);
            assert_eq!(machine.way(Access::Auto, false).unwrap(), "vfio/7");
            let error = machine.way(Access::DeviceFile, false).unwrap_err();
            assert!(error.contains("CONFIG_IOMMUFD") && error.contains("0000:01:10.0"), "{error}");
        }
    }

    #[test]
    fn without_an_iommu_there_is_one_way_alone() {
        for wish in [Access::Auto, Access::Group, Access::DeviceFile] {
            assert_eq!(Machine::new(&NEW).way(wish, true).unwrap(), "vfio/noiommu-7");
        }
    }
}
