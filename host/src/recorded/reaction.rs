//! What Linux does when such files are written.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use pmd::Address;
use pmd::pci::DriverInfo;

use super::{Double, State};
use crate::devlink::Version;
use crate::kernel::{Kernel, VfSetting, VfSettings};

/// Errors of `errno.h`.
const EBUSY: i32 = 16;
const ENODEV: i32 = 19;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;

fn errno<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

impl Double {
    /// Has a driver take a function as `drivers_probe` does.
    fn probe(&self, function: Address) -> io::Result<()> {
        let folder = format!("/sys/bus/pci/devices/{function}");
        let wanted = fs::read_to_string(self.path(&format!("{folder}/driver_override")))?;
        let driver = self.path(&format!("/sys/bus/pci/drivers/{}", wanted.trim()));
        let refuses = self.state.borrow().refusing.contains(wanted.trim());
        if wanted.trim() != "(null)" && driver.exists() && !refuses {
            self.link(&format!("{folder}/driver"), &driver);
        }
        Ok(())
    }

    pub(super) fn enable_vfs(&self, pf: Address, number: usize) -> io::Result<()> {
        let (vfs, ids, driver) = self.state.borrow().vfs[&pf].clone();
        let folder = format!("/sys/bus/pci/devices/{pf}");
        let now: usize =
            fs::read_to_string(self.path(&format!("{folder}/sriov_numvfs")))?.trim().parse().unwrap();
        match (now, number) {
            (now, number) if now == number => return Ok(()),
            (1.., 1..) => return errno(EBUSY),
            _ => {}
        }
        if self.state.borrow().room.is_some_and(|room| number > room) {
            return errno(ENOSPC);
        }
        for (index, vf) in vfs.iter().take(now).enumerate() {
            self.remove(&format!("{folder}/virtfn{index}"));
            self.remove(&format!("/sys/bus/pci/devices/{vf}"));
        }
        let autoprobe = fs::read_to_string(self.path(&format!("{folder}/sriov_drivers_autoprobe")))?;
        for (index, vf) in vfs.iter().take(number).enumerate() {
            self.function(*vf, "0x020000", ids, driver.filter(|_| autoprobe.trim() == "1"));
            self.group(*vf, 1000 + index as u32);
            self.link(&format!("{folder}/virtfn{index}"), &self.path(&format!("/sys/bus/pci/devices/{vf}")));
            self.link(&format!("/sys/bus/pci/devices/{vf}/physfn"), &self.path(&folder));
        }
        self.put(&format!("{folder}/sriov_numvfs"), &format!("{number}\n"));
        Ok(())
    }
}

impl Kernel for Double {
    fn is_root(&self) -> bool {
        !self.state.borrow().not_root
    }

    fn write(&self, file: &Path, text: &str) -> io::Result<()> {
        let path = format!("/{}", file.strip_prefix(self.folder.path()).unwrap().display());
        if self.state.borrow().read_only && path.starts_with("/sys") {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.state.borrow_mut().written.push((path.clone(), text.to_owned()));
        let parts: Vec<&str> = path.trim_start_matches("/sys/bus/pci/").split('/').collect();
        match parts[..] {
            ["drivers_probe"] => self.probe(text.trim().parse().unwrap()),
            ["devices", function, "driver", "unbind"] | ["drivers", _, "unbind", function] => {
                assert_eq!(text.trim(), function);
                self.remove(&format!("/sys/bus/pci/devices/{function}/driver"));
                Ok(())
            }
            ["devices", pf, "sriov_numvfs"] => {
                self.enable_vfs(pf.parse().unwrap(), text.trim().parse().unwrap())
            }
            ["devices", function, "driver_override"] => {
                // An empty line takes the wish back.
                let wish = if text.trim().is_empty() { "(null)" } else { text.trim() };
                self.put(&format!("/sys/bus/pci/devices/{function}/driver_override"), wish);
                Ok(())
            }
            _ => fs::write(file, text),
        }
    }

    fn write_in_time(&self, file: &Path, text: &str, _limit: Duration) -> io::Result<()> {
        let driver = file.parent().and_then(|driver| driver.canonicalize().ok());
        let driver = driver.and_then(|driver| driver.file_name()?.to_str().map(str::to_owned));
        if driver.is_some_and(|driver| self.state.borrow().stubborn.contains(&driver)) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.write(file, text)
    }

    fn load_module(&self, name: &str) -> Result<(), String> {
        if !self.state.borrow().modules.contains(name) {
            return Err(format!(
                "modprobe: FATAL: Module {name} not found in directory /lib/modules/6.1.0-recorded"
            ));
        }
        self.load(name);
        Ok(())
    }

    fn module_for(&self, alias: &str) -> Option<String> {
        let ids = alias.strip_prefix("pci:v0000")?.replace("d0000", ":");
        let state = self.state.borrow();
        let (_, _, driver) = state.vfs.values().find(|(_, of, _)| *of == ids)?;
        driver.map(str::to_owned)
    }

    fn vf_settings(&self, pf: &str) -> io::Result<Vec<VfSettings>> {
        Ok(self.state.borrow().settings.get(pf).cloned().unwrap_or_default())
    }

    fn set_vf(&self, pf: &str, index: u32, setting: VfSetting) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let State { forgetful, no_trust, .. } = *state;
        let settings = state.settings.get_mut(pf);
        let Some(vf) = settings.and_then(|vfs| vfs.iter_mut().find(|vf| vf.index == index)) else {
            return errno(ENODEV);
        };
        if forgetful {
            return Ok(());
        }
        match setting {
            VfSetting::Mac(mac) => vf.mac = mac.to_string(),
            VfSetting::Vlan(vlan, priority) => (vf.vlan, vf.qos) = (vlan, priority),
            VfSetting::Trust(_) if no_trust => return errno(EOPNOTSUPP),
            VfSetting::Trust(on) => vf.trust = Some(on),
            VfSetting::SpoofCheck(on) => vf.spoof_check = Some(on),
        }
        Ok(())
    }

    fn set_up(&self, interface: &str) -> io::Result<()> {
        self.put(&format!("/sys/class/net/{interface}/flags"), "0x1003\n");
        self.put(&format!("/sys/class/net/{interface}/carrier"), "1\n");
        Ok(())
    }

    fn running_versions(&self, function: Address) -> io::Result<Vec<Version>> {
        self.state.borrow().versions.get(&function).cloned().map_or_else(|| errno(ENODEV), Ok)
    }

    fn driver_info(&self, interface: &str) -> io::Result<DriverInfo> {
        self.state.borrow().drivers.get(interface).cloned().map_or_else(|| errno(ENODEV), Ok)
    }

    fn claims(&self, disk: &Path) -> bool {
        self.state.borrow().claimed.contains(disk.file_name().unwrap().to_str().unwrap())
    }

    fn reload_units(&self) -> Result<(), String> {
        Ok(())
    }
}
