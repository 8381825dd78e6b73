//! Recorded machines: trees of files, made by a few words each, with a kernel that reacts to what is written as Linux does.
#![allow(clippy::panic, clippy::unwrap_used, reason = "test support")]

pub(crate) mod hosts;
mod reaction;

use std::cell::{RefCell, RefMut};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use pmd::Address;
use pmd::pci::DriverInfo;
use tempfile::TempDir;

use crate::devlink::Version;
use crate::kernel::VfSettings;
use crate::machine::Machine;

pub(crate) fn address(text: &str) -> Address {
    text.parse().unwrap()
}

/// A machine, made or changed step by step.
#[derive(Clone)]
pub(crate) struct Recorded(Rc<Double>);

/// The kernel of a recorded machine.
#[derive(Debug)]
pub(crate) struct Double {
    folder: TempDir,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    not_root: bool,
    read_only: bool,
    /// Modules that can be loaded.
    modules: BTreeSet<String>,
    /// Drivers that do not let go of a device, and PFs whose VFs do not go.
    stubborn: BTreeSet<String>,
    /// Drivers that refuse every device.
    refusing: BTreeSet<String>,
    /// Where the VFs of a PF come to be, which ids they have, and which driver takes them.
    vfs: BTreeMap<Address, (Vec<Address>, &'static str, Option<&'static str>)>,
    /// More VFs than this are refused, whatever `sriov_totalvfs` says.
    room: Option<usize>,
    settings: BTreeMap<String, Vec<VfSettings>>,
    /// PFs' drivers take settings and forget them.
    forgetful: bool,
    /// They know no trust.
    no_trust: bool,
    drivers: BTreeMap<String, DriverInfo>,
    /// Disks that the kernel holds.
    claimed: BTreeSet<String>,
    /// What devlink has of a function.
    versions: BTreeMap<Address, Vec<Version>>,
    /// What was written, in order: path on the machine, and text.
    written: Vec<(String, String)>,
}

impl Recorded {
    pub(crate) fn new() -> Self {
        let double = Double { folder: tempfile::tempdir().unwrap(), state: RefCell::default() };
        Self(Rc::new(double))
            .folder("/sys/bus/pci/devices")
            .folder("/sys/bus/pci/drivers")
            .with("/proc/sys/kernel/hostname", "worker-0\n")
            .with("/proc/sys/kernel/osrelease", "6.1.0-recorded\n")
    }

    pub(crate) fn machine(&self) -> Machine {
        Machine::new(self.0.folder.path(), self.0.clone()).with_patience(Duration::from_millis(20))
    }

    fn state(&self) -> RefMut<'_, State> {
        self.0.state.borrow_mut()
    }

    /// What was written so far: `PATH TEXT` each.
    pub(crate) fn written(&self) -> Vec<String> {
        self.0.state.borrow().written.iter().map(|(path, text)| format!("{path} {}", text.trim())).collect()
    }

    pub(crate) fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.0.path(path)).ok()
    }

    pub(crate) fn driver_of(&self, function: &str) -> Option<String> {
        self.machine().sysfs().driver(address(function))
    }

    pub(crate) fn with(self, path: &str, text: &str) -> Self {
        self.0.put(path, text);
        self
    }

    pub(crate) fn folder(self, path: &str) -> Self {
        fs::create_dir_all(self.0.path(path)).unwrap();
        self
    }

    pub(crate) fn without(self, path: &str) -> Self {
        self.0.remove(path);
        self
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.0.link(path, Path::new(target));
        self
    }

    /// Not root.
    pub(crate) fn without_root(self) -> Self {
        self.state().not_root = true;
        self
    }

    pub(crate) fn read_only(self) -> Self {
        self.state().read_only = true;
        self
    }

    /// Modules that can be loaded.
    pub(crate) fn loadable(self, modules: &[&str]) -> Self {
        self.state().modules.extend(modules.iter().map(|name| (*name).to_owned()));
        self
    }

    /// A module that is loaded, with its driver.
    pub(crate) fn loaded(self, module: &str) -> Self {
        self.0.load(module);
        self
    }

    pub(crate) fn stubborn(self, driver: &str) -> Self {
        self.state().stubborn.insert(driver.to_owned());
        self
    }

    pub(crate) fn refusing(self, driver: &str) -> Self {
        self.state().refusing.insert(driver.to_owned());
        self
    }

    pub(crate) fn room_for(self, vfs: usize) -> Self {
        self.state().room = Some(vfs);
        self
    }

    pub(crate) fn forgetful(self) -> Self {
        self.state().forgetful = true;
        self
    }

    pub(crate) fn without_trust(self) -> Self {
        self.state().no_trust = true;
        self
    }

    /// A function of a NIC; `ids` as in `8086:1521`, no driver where that is empty.
    pub(crate) fn function(self, function: &str, ids: &str, driver: &str, group: Option<u32>) -> Self {
        self.0.function(address(function), "0x020000", ids, Some(driver).filter(|name| !name.is_empty()));
        if let Some(group) = group {
            self.0.group(address(function), group);
        }
        self
    }

    /// A bridge in a group.
    pub(crate) fn bridge(self, function: &str, group: u32) -> Self {
        self.0.function(address(function), "0x060400", "8086:2f04", Some("pcieport"));
        self.0.group(address(function), group);
        self
    }

    /// A network interface that is down; of a function, or of none.
    pub(crate) fn interface(self, name: &str, function: Option<&str>) -> Self {
        let folder = format!("/sys/class/net/{name}");
        let new = self.with(&format!("{folder}/flags"), "0x1002\n").with(&format!("{folder}/carrier"), "0\n");
        match function {
            Some(function) => new
                .link(&format!("{folder}/device"), &format!("/sys/bus/pci/devices/{function}"))
                .folder(&format!("/sys/bus/pci/devices/{function}/net/{name}")),
            None => new,
        }
    }

    /// An interface is up and has a carrier.
    pub(crate) fn up(self, name: &str) -> Self {
        let folder = format!("/sys/class/net/{name}");
        self.with(&format!("{folder}/flags"), "0x1003\n").with(&format!("{folder}/carrier"), "1\n")
    }

    /// A disk or a partition of an NVMe function.
    pub(crate) fn disk(self, function: &str, name: &str, number: &str) -> Self {
        self.0.function(address(function), "0x010802", "1b36:0010", Some("nvme"));
        let folder = format!("/sys/bus/pci/devices/{function}/nvme/nvme0/{name}");
        let target = self.0.path(&folder);
        self.0.link(&format!("/sys/class/block/{name}"), &target);
        self.with(&format!("{folder}/dev"), number)
    }

    /// The kernel holds a disk or a partition, and no file says what for.
    pub(crate) fn claimed(self, name: &str) -> Self {
        self.state().claimed.insert(name.to_owned());
        self
    }

    /// A function can have `total` VFs, which come to be at these addresses with these ids and this driver.
    pub(crate) fn sriov(
        self,
        pf: &str,
        total: u32,
        vfs: &[&str],
        ids: &'static str,
        driver: Option<&'static str>,
    ) -> Self {
        let vfs = vfs.iter().map(|vf| address(vf)).collect();
        self.state().vfs.insert(address(pf), (vfs, ids, driver));
        let folder = format!("/sys/bus/pci/devices/{pf}");
        self.with(&format!("{folder}/sriov_totalvfs"), &format!("{total}\n"))
            .with(&format!("{folder}/sriov_numvfs"), "0\n")
            .with(&format!("{folder}/sriov_drivers_autoprobe"), "1\n")
    }

    /// The PF has so many VFs already.
    pub(crate) fn vfs(self, pf: &str, number: usize) -> Self {
        self.0.enable_vfs(address(pf), number).unwrap();
        self
    }

    /// What a PF has set for its VFs: an address each.
    pub(crate) fn macs(self, interface: &str, macs: &[&str]) -> Self {
        let settings = macs.iter().zip(0..).map(|(mac, index)| VfSettings {
            index,
            mac: (*mac).to_owned(),
            spoof_check: Some(true),
            trust: Some(false),
            ..VfSettings::default()
        });
        self.state().settings.insert(interface.to_owned(), settings.collect());
        self
    }

    pub(crate) fn firmware(self, interface: &str, driver: &str, firmware: &str) -> Self {
        let info = DriverInfo { driver: driver.to_owned(), firmware: firmware.to_owned() };
        self.state().drivers.insert(interface.to_owned(), info);
        self
    }

    /// The driver of a function has devlink, and these parts with their versions.
    pub(crate) fn runs(self, function: &str, versions: &[(&str, &str)]) -> Self {
        let version =
            |(name, value): &(&str, &str)| Version { name: (*name).to_owned(), value: (*value).to_owned() };
        self.state().versions.insert(address(function), versions.iter().map(version).collect());
        self
    }
}

impl Double {
    fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    /// Makes a file and the folders above it.
    fn put(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path(path);
        match path.is_dir() && !path.is_symlink() {
            true => fs::remove_dir_all(path).unwrap(),
            false => drop(fs::remove_file(path)),
        }
    }

    fn link(&self, path: &str, target: &Path) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    fn function(&self, function: Address, class: &str, ids: &str, driver: Option<&str>) {
        let (vendor, device) = ids.split_once(':').unwrap();
        let folder = format!("/sys/bus/pci/devices/{function}");
        for (file, text) in [
            ("vendor", format!("0x{vendor}\n")),
            ("device", format!("0x{device}\n")),
            ("class", format!("{class}\n")),
            ("modalias", format!("pci:v0000{vendor}d0000{device}\n")),
            ("driver_override", "(null)\n".to_owned()),
            ("numa_node", "-1\n".to_owned()),
        ] {
            self.put(&format!("{folder}/{file}"), &text);
        }
        if let Some(driver) = driver {
            self.load(driver);
            self.link(&format!("{folder}/driver"), &self.path(&format!("/sys/bus/pci/drivers/{driver}")));
        }
    }

    fn group(&self, function: Address, group: u32) {
        let folder = format!("/sys/kernel/iommu_groups/{group}");
        let device = self.path(&format!("/sys/bus/pci/devices/{function}"));
        self.link(&format!("{folder}/devices/{function}"), &device);
        self.link(&format!("/sys/bus/pci/devices/{function}/iommu_group"), &self.path(&folder));
    }

    fn load(&self, module: &str) {
        fs::create_dir_all(self.path(&format!("/sys/module/{}", module.replace('-', "_")))).unwrap();
        fs::create_dir_all(self.path(&format!("/sys/bus/pci/drivers/{module}"))).unwrap();
    }
}
