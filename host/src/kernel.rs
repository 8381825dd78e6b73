//! What is asked of the kernel beside reading its files.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use pmd::pci::DriverInfo;
use pmd::{Address, MacAddress};
use serde::Serialize;

use crate::devlink::{self, Version};
use crate::netlink;

/// `O_EXCL` of `fcntl.h`.
const O_EXCL: i32 = rustix::fs::OFlags::EXCL.bits().cast_signed();

/// What a PF has set for one of its VFs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct VfSettings {
    /// Number of the VF, from 0.
    pub index: u32,
    /// Its address; all zeros: none set, so that the VF chooses one at random.
    pub mac: String,
    /// VLAN that the PF puts its frames into; 0: none.
    pub vlan: u32,
    /// Priority of that VLAN's tag.
    pub qos: u32,
    /// Whether frames with another source address are dropped; `None`: the driver does not say.
    pub spoof_check: Option<bool>,
    /// Whether the VF may ask for promiscuous mode and the like; `None`: the driver does not say.
    pub trust: Option<bool>,
}

/// What shall be set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VfChange {
    /// Address.
    pub mac: Option<MacAddress>,
    /// VLAN and priority; VLAN 0: none.
    pub vlan: Option<(u32, u32)>,
    /// Trust.
    pub trust: Option<bool>,
    /// Spoof check.
    pub spoof_check: Option<bool>,
}

impl VfChange {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// One by one: a driver that does not know one may take the others.
    pub(crate) fn settings(&self) -> Vec<VfSetting> {
        let Self { mac, vlan, trust, spoof_check } = *self;
        let settings = [
            mac.map(VfSetting::Mac),
            vlan.map(|(vlan, priority)| VfSetting::Vlan(vlan, priority)),
            trust.map(VfSetting::Trust),
            spoof_check.map(VfSetting::SpoofCheck),
        ];
        settings.into_iter().flatten().collect()
    }
}

/// One of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfSetting {
    /// Address.
    Mac(MacAddress),
    /// VLAN, 0 for none, and priority.
    Vlan(u32, u32),
    /// Trust.
    Trust(bool),
    /// Spoof check.
    SpoofCheck(bool),
}

/// As it is written for `vfs set`.
impl fmt::Display for VfSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: bool| if on { "on" } else { "off" };
        match self {
            Self::Mac(mac) => write!(f, "--mac {mac}"),
            Self::Vlan(vlan, priority) => write!(f, "--vlan {vlan}:{priority}"),
            Self::Trust(on) => write!(f, "--trust {}", switch(*on)),
            Self::SpoofCheck(on) => write!(f, "--spoofchk {}", switch(*on)),
        }
    }
}

/// The kernel of a machine.
pub trait Kernel: fmt::Debug {
    /// Whether this process may change anything.
    fn is_root(&self) -> bool;

    /// Writes a file: one of sysfs, which acts at once, or a plain one, which is made if it is missing.
    fn write(&self, file: &Path, text: &str) -> io::Result<()>;

    /// The same, with `TimedOut` where the kernel has not come back after `limit`. It may still come to its end later.
    fn write_in_time(&self, file: &Path, text: &str, limit: Duration) -> io::Result<()>;

    /// Loads a module and what it needs; the error is what the loader said.
    fn load_module(&self, name: &str) -> Result<(), String>;

    /// The module that serves devices with this alias.
    fn module_for(&self, alias: &str) -> Option<String>;

    /// What the PF of network interface `pf` has set for its VFs, in order.
    fn vf_settings(&self, pf: &str) -> io::Result<Vec<VfSettings>>;

    /// Sets something for a VF of it.
    fn set_vf(&self, pf: &str, index: u32, setting: VfSetting) -> io::Result<()>;

    /// Brings a network interface up.
    fn set_up(&self, interface: &str) -> io::Result<()>;

    /// The versions that a function runs, by devlink.
    fn running_versions(&self, function: Address) -> io::Result<Vec<Version>>;

    /// Driver and firmware of a network interface, by ethtool's ioctl.
    fn driver_info(&self, interface: &str) -> io::Result<DriverInfo>;

    /// Whether the kernel itself holds this disk or partition: a file system, swap, RAID, LVM, ZFS.
    fn claims(&self, disk: &Path) -> bool;

    /// Has systemd read its units anew, where it runs.
    fn reload_units(&self) -> Result<(), String>;
}

/// The kernel that this process runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linux;

impl Kernel for Linux {
    fn is_root(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    fn write(&self, file: &Path, text: &str) -> io::Result<()> {
        fs::write(file, text)
    }

    fn write_in_time(&self, file: &Path, text: &str, limit: Duration) -> io::Result<()> {
        // A process of its own: one that is stuck in the kernel cannot be ended, and a thread would keep this one.
        let mut child = Command::new("/bin/sh")
            .args(["-c", r#"printf %s "$1" > "$2""#, "sh", text])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let end = Instant::now() + limit;
        loop {
            match child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(_) => return Err(io::Error::other("the kernel refused it")),
                None if Instant::now() >= end => return Err(io::ErrorKind::TimedOut.into()),
                None => thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn load_module(&self, name: &str) -> Result<(), String> {
        run(Command::new("modprobe").arg(name)).map(drop)
    }

    fn module_for(&self, alias: &str) -> Option<String> {
        let modules = run(Command::new("modprobe").args(["-R", alias])).ok()?;
        modules.lines().next().map(str::to_owned)
    }

    fn vf_settings(&self, pf: &str) -> io::Result<Vec<VfSettings>> {
        netlink::vf_settings(pf)
    }

    fn set_vf(&self, pf: &str, index: u32, setting: VfSetting) -> io::Result<()> {
        netlink::set_vf(pf, index, setting)
    }

    fn set_up(&self, interface: &str) -> io::Result<()> {
        netlink::set_up(interface)
    }

    fn running_versions(&self, function: Address) -> io::Result<Vec<Version>> {
        devlink::running(function)
    }

    fn driver_info(&self, interface: &str) -> io::Result<DriverInfo> {
        pmd::pci::driver_info(interface)
    }

    fn claims(&self, disk: &Path) -> bool {
        // open(2): without O_CREAT, O_EXCL on a block device fails where the kernel uses it, and harms nobody else.
        let opened = fs::OpenOptions::new().read(true).custom_flags(O_EXCL).open(disk);
        opened.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    }

    fn reload_units(&self) -> Result<(), String> {
        if !Path::new("/run/systemd/system").exists() {
            return Ok(());
        }
        run(Command::new("systemctl").arg("daemon-reload")).map(drop)
    }
}

/// Runs a program to its end, and gives what it printed; the error is what it said.
fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|cause| format!("{program}: {cause}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().last().unwrap_or_default().trim();
    Err(if said.is_empty() { format!("{program}: {}", output.status) } else { said.to_owned() })
}
