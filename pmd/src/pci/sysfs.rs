//! What sysfs says about a PCI function, and whether VFIO can take it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Address;
use crate::device::DeviceError;

/// Name of the kernel driver that hands a function to user space.
const VFIO_PCI: &str = "vfio-pci";
/// Class code of a PCI bridge without its programming interface (PCI Code and ID Assignment, base class 06h).
const PCI_BRIDGE: u32 = 0x0604;
/// Drivers beside vfio-pci that do no DMA into memory of others (`vfio_dev_driver_allowed` and the drivers that set
/// `driver_managed_dma` in the kernel).
const HARMLESS: [&str; 2] = ["pci-stub", "pcieport"];
/// Name of the groups that VFIO makes for functions without an IOMMU (`vfio_noiommu_group_alloc`).
const NO_IOMMU_GROUP: &str = "vfio-noiommu";
/// VFIO's switch for such groups, which kernels have that were built with CONFIG_VFIO_NOIOMMU.
const NO_IOMMU_SWITCH: &str = "module/vfio/parameters/enable_unsafe_noiommu_mode";

/// Vendor and device id (configuration space 00h and 02h).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ids {
    /// PCI-SIG vendor.
    pub vendor: u16,
    /// The vendor's number for the device.
    pub device: u16,
}

impl fmt::Display for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

impl fmt::Debug for Ids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A function that VFIO can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Vendor and device id.
    pub ids: Ids,
    /// Number of its IOMMU group.
    pub group: u32,
    /// Other functions of that group which vfio-pci holds: whoever opens one of them must be this process too.
    pub companions: Vec<Address>,
    /// The group is VFIO's own: nothing confines the function's DMA.
    pub no_iommu: bool,
}

/// A sysfs tree: the machine's, or one recorded for a test.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// The tree below `root`, which stands for `/sys`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The function's own folder.
    pub fn device(&self, address: Address) -> PathBuf {
        self.root.join("bus/pci/devices").join(address.to_string())
    }

    /// Vendor and device id; an error where there is no such function.
    pub fn ids(&self, address: Address) -> Result<Ids, DeviceError> {
        let read = |name| self.hexadecimal(address, name).and_then(|id| u16::try_from(id).ok());
        match (read("vendor"), read("device")) {
            (Some(vendor), Some(device)) => Ok(Ids { vendor, device }),
            _ => Err(DeviceError::NotFound(format!(
                "there is no PCI device {address}; list those of this machine: lspci -D"
            ))),
        }
    }

    /// Vendor of the board or, for a model, of who wrote it (configuration space 2Ch).
    pub fn subsystem_vendor(&self, address: Address) -> Option<u16> {
        self.hexadecimal(address, "subsystem_vendor")?.try_into().ok()
    }

    /// The kernel driver that holds the function.
    pub fn driver(&self, address: Address) -> Option<String> {
        self.link_name(address, "driver")
    }

    /// Number of the function's IOMMU group.
    pub fn group(&self, address: Address) -> Option<u32> {
        self.link_name(address, "iommu_group")?.parse().ok()
    }

    /// Name of the physical function of a VF.
    pub fn physical_function(&self, address: Address) -> Option<Address> {
        self.link_name(address, "physfn")?.parse().ok()
    }

    /// Kernel name of the network interface on a function that a network driver holds: `eth2`.
    pub fn network_interface(&self, address: Address) -> Option<String> {
        let entry = fs::read_dir(self.device(address).join("net")).ok()?.next()?.ok()?;
        entry.file_name().into_string().ok()
    }

    /// How an operator addresses a VF through its PF: PF interface and number of the VF, as in `ip link set PF vf N`.
    pub fn place_on_pf(&self, address: Address) -> Option<(String, u32)> {
        let pf = self.physical_function(address)?;
        let interface = self.network_interface(pf)?;
        for entry in fs::read_dir(self.device(pf)).ok()?.flatten() {
            let name = entry.file_name();
            let Some(number) = name.to_str().and_then(|name| name.strip_prefix("virtfn")) else { continue };
            if target_name(&entry.path()).as_deref() == Some(&address.to_string()) {
                return Some((interface, number.parse().ok()?));
            }
        }
        None
    }

    /// Functions of an IOMMU group, in order.
    pub fn members(&self, group: u32) -> io::Result<Vec<Address>> {
        let folder = self.root.join(format!("kernel/iommu_groups/{group}/devices"));
        let mut members: Vec<Address> = fs::read_dir(folder)?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        members.sort();
        Ok(members)
    }

    /// Checks all that VFIO will ask of a function, so that what is missing can be said with its remedy.
    pub fn ready(&self, address: Address) -> Result<Ready, DeviceError> {
        let ids = self.ids(address)?;
        let Some(group) = self.group(address) else { return Err(self.no_group(address)) };
        match self.driver(address) {
            Some(driver) if driver == VFIO_PCI => {}
            driver => return Err(self.wrong_driver(address, driver)),
        }
        let members = self.members(group).map_err(|cause| {
            DeviceError::Failed(format!("cannot list IOMMU group {group} of {address}: {cause}; see dmesg"))
        })?;
        let others = members.into_iter().filter(|member| *member != address);
        let drivers: BTreeMap<Address, Option<String>> =
            others.map(|member| (member, self.driver(member))).collect();
        for (member, driver) in &drivers {
            if let Some(driver) = driver.as_deref().filter(|driver| !self.harmless(*member, driver)) {
                return Err(DeviceError::NotReady(format!(
                    "{address} shares IOMMU group {group} with {member}, which driver {driver} holds, and VFIO gives \
                     a group out whole; hand that one over too: {}",
                    rebind(*member, true)
                )));
            }
        }
        let companions = drivers
            .into_iter()
            .filter(|(_, driver)| driver.as_deref() == Some(VFIO_PCI))
            .map(|(a, _)| a)
            .collect();
        Ok(Ready { ids, group, companions, no_iommu: self.is_without_iommu(group) })
    }

    /// Whether a group was made by VFIO for a function without an IOMMU.
    fn is_without_iommu(&self, group: u32) -> bool {
        let name = fs::read_to_string(self.root.join(format!("kernel/iommu_groups/{group}/name")));
        name.is_ok_and(|name| name.trim() == NO_IOMMU_GROUP)
    }

    fn no_group(&self, address: Address) -> DeviceError {
        let switch = fs::read_to_string(self.root.join(NO_IOMMU_SWITCH));
        if switch.as_deref().is_ok_and(|value| value.trim() == "Y") {
            // VFIO makes its group when vfio-pci takes the function.
            return self.wrong_driver(address, self.driver(address));
        }
        let without = if switch.is_ok() {
            format!("echo 1 > /sys/{NO_IOMMU_SWITCH} and hand it to vfio-pci anew")
        } else {
            "that takes a kernel with CONFIG_VFIO_NOIOMMU".to_owned()
        };
        DeviceError::NotReady(format!(
            "{address} has no IOMMU group, so its DMA cannot be confined; switch VT-d or AMD-Vi on in the firmware and boot \
             with intel_iommu=on iommu=pt (on AMD iommu=pt alone); a machine that has no IOMMU can do without, at the price \
             that the device reaches all memory: {without}"
        ))
    }

    fn harmless(&self, member: Address, driver: &str) -> bool {
        let bridge = self.hexadecimal(member, "class").is_some_and(|class| class >> 8 == PCI_BRIDGE);
        driver == VFIO_PCI || HARMLESS.contains(&driver) || bridge
    }

    fn wrong_driver(&self, address: Address, driver: Option<String>) -> DeviceError {
        if !self.root.join("bus/pci/drivers").join(VFIO_PCI).exists() {
            let held = driver.map_or_else(|| "no driver".to_owned(), |driver| format!("driver {driver}"));
            return DeviceError::NotReady(format!(
                "{address} is with {held} and the kernel has no vfio-pci; load it, then hand the device over: \
                 modprobe vfio-pci; {}",
                rebind(address, held != "no driver")
            ));
        }
        DeviceError::NotReady(match driver {
            Some(driver) => format!(
                "{address} is with driver {driver} instead of vfio-pci; hand it over: {}",
                rebind(address, true)
            ),
            None => format!("{address} has no driver; give it to vfio-pci: {}", rebind(address, false)),
        })
    }

    fn hexadecimal(&self, address: Address, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.device(address).join(name)).ok()?;
        u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    }

    fn link_name(&self, address: Address, name: &str) -> Option<String> {
        target_name(&self.device(address).join(name))
    }
}

fn target_name(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

/// The shell lines that move a function to vfio-pci.
fn rebind(address: Address, held: bool) -> String {
    let device = format!("/sys/bus/pci/devices/{address}");
    let unbind = if held { format!("echo {address} > {device}/driver/unbind; ") } else { String::new() };
    format!("echo vfio-pci > {device}/driver_override; {unbind}echo {address} > /sys/bus/pci/drivers_probe")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const VF: &str = "0000:01:10.0";
    const OTHER: &str = "0000:01:10.2";
    const PORT: &str = "0000:00:02.0";

    struct Tree {
        folder: tempfile::TempDir,
        sysfs: Sysfs,
    }

    impl Tree {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let sysfs = Sysfs::at(folder.path());
            let tree = Self { folder, sysfs };
            tree.driver(VFIO_PCI);
            tree
        }

        fn driver(&self, name: &str) -> PathBuf {
            let path = self.folder.path().join("bus/pci/drivers").join(name);
            fs::create_dir_all(&path).unwrap();
            path
        }

        fn function(&self, address: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
            let device = self.sysfs.device(address.parse().unwrap());
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("vendor"), "0x8086\n").unwrap();
            fs::write(device.join("device"), "0x10ca\n").unwrap();
            fs::write(device.join("class"), format!("{class}\n")).unwrap();
            if let Some(driver) = driver {
                symlink(self.driver(driver), device.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let members = self.folder.path().join(format!("kernel/iommu_groups/{group}"));
                fs::create_dir_all(members.join("devices")).unwrap();
                symlink(&members, device.join("iommu_group")).unwrap();
                symlink(&device, members.join("devices").join(address)).unwrap();
            }
        }

        fn ready(&self) -> Result<Ready, String> {
            self.sysfs.ready(VF.parse().unwrap()).map_err(|error| error.to_string())
        }

        fn refused(&self, words: &[&str]) {
            let error = self.ready().unwrap_err();
            for word in words {
                assert!(error.contains(word), "no '{word}' in: {error}");
            }
        }
    }

    const NIC: &str = "0x020000";

    #[test]
    fn a_function_alone_in_its_group_is_ready() {
        let tree = Tree::new();
        tree.function(VF, NIC, Some("vfio-pci"), Some(7));
        let ids = Ids { vendor: 0x8086, device: 0x10ca };
        assert_eq!(tree.ready(), Ok(Ready { ids, group: 7, companions: vec![], no_iommu: false }));
        assert_eq!(ids.to_string(), "8086:10ca");
    }

    #[test]
    fn no_such_function() {
        Tree::new().refused(&[VF, "lspci -D"]);
    }

    #[test]
    fn without_iommu() {
        let tree = Tree::new();
        tree.function(VF, NIC, Some("vfio-pci"), None);
        tree.refused(&[VF, "intel_iommu=on", "CONFIG_VFIO_NOIOMMU"]);
    }

    /// VFIO's switch for functions without an IOMMU, as the kernel shows it.
    fn no_iommu_switch(tree: &Tree, value: &str) {
        let switch = tree.folder.path().join(NO_IOMMU_SWITCH);
        fs::create_dir_all(switch.parent().unwrap()).unwrap();
        fs::write(switch, value).unwrap();
    }

    #[test]
    fn no_iommu_mode_is_named_where_the_kernel_has_it() {
        let tree = Tree::new();
        tree.function(VF, NIC, Some("igbvf"), None);
        no_iommu_switch(&tree, "N\n");
        tree.refused(&[VF, "echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode"]);
        no_iommu_switch(&tree, "Y\n");
        tree.refused(&["driver igbvf instead of vfio-pci", "drivers_probe"]);
    }

    #[test]
    fn a_group_of_vfios_own_has_no_iommu() {
        let tree = Tree::new();
        tree.function(VF, NIC, Some("vfio-pci"), Some(7));
        no_iommu_switch(&tree, "Y\n");
        assert!(!tree.ready().unwrap().no_iommu, "it has an IOMMU, whatever is allowed for others");
        fs::write(tree.folder.path().join("kernel/iommu_groups/7/name"), "vfio-noiommu\n").unwrap();
        assert!(tree.ready().unwrap().no_iommu);
    }

    #[test]
    fn another_driver_or_none() {
        let tree = Tree::new();
        tree.function(VF, NIC, Some("igbvf"), Some(7));
        tree.refused(&[
            VF,
            "igbvf",
            "echo vfio-pci > /sys/bus/pci/devices/0000:01:10.0/driver_override",
            "driver/unbind",
            "drivers_probe",
        ]);
        let tree = Tree::new();
        tree.function(VF, NIC, None, Some(7));
        tree.refused(&["has no driver", "drivers_probe"]);
        assert!(!tree.ready().unwrap_err().contains("unbind"));
    }

    #[test]
    fn vfio_pci_is_not_loaded() {
        let tree = Tree::new();
        fs::remove_dir(tree.driver(VFIO_PCI)).unwrap();
        tree.function(VF, NIC, Some("igbvf"), Some(7));
        tree.refused(&["modprobe vfio-pci", "driver/unbind"]);
    }

    #[test]
    fn a_member_of_the_group_with_another_driver_is_named() {
        let tree = Tree::new();
        tree.function(VF, NIC, Some("vfio-pci"), Some(7));
        tree.function(OTHER, NIC, Some("igbvf"), Some(7));
        tree.refused(&["group 7", OTHER, "igbvf", "devices/0000:01:10.2/driver/unbind"]);
    }

    #[test]
    fn bridges_and_idle_members_do_not_matter_and_companions_are_listed() {
        let tree = Tree::new();
        tree.function(VF, NIC, Some("vfio-pci"), Some(7));
        tree.function(OTHER, NIC, Some("vfio-pci"), Some(7));
        tree.function("0000:01:10.4", NIC, None, Some(7));
        tree.function("0000:01:10.6", NIC, Some("pci-stub"), Some(7));
        tree.function(PORT, "0x060400", Some("pcieport"), Some(7));
        assert_eq!(tree.ready().unwrap().companions, [OTHER.parse().unwrap()]);
    }

    #[test]
    fn a_vf_knows_its_place_on_its_pf() {
        let tree = Tree::new();
        let pf = "0000:01:00.0";
        tree.function(pf, NIC, Some("igb"), Some(6));
        tree.function(VF, NIC, Some("vfio-pci"), Some(7));
        let (vf, pf): (Address, Address) = (VF.parse().unwrap(), pf.parse().unwrap());
        assert_eq!(tree.sysfs.place_on_pf(vf), None);
        fs::create_dir_all(tree.sysfs.device(pf).join("net/eth2")).unwrap();
        symlink(tree.sysfs.device(pf), tree.sysfs.device(vf).join("physfn")).unwrap();
        symlink(tree.sysfs.device(vf), tree.sysfs.device(pf).join("virtfn3")).unwrap();
        assert_eq!(tree.sysfs.place_on_pf(vf), Some(("eth2".to_owned(), 3)));
    }
}
