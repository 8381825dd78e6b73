//! Making VFs, removing them, and what their PF sets for them.

use std::fs;
use std::io;
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use pmd::Address;
use serde::Serialize;

use crate::daemon::Daemon;
use crate::error::HostError;
use crate::inventory::PhysicalFunction;
use crate::kernel::{VfChange, VfSettings};
use crate::machine::Machine;

/// Highest VLAN (IEEE 802.1Q §9.6: 4095 is reserved).
pub const MAX_VLAN: u32 = 4094;
/// Time for a PF's wire after it was brought up.
const CARRIER: Duration = Duration::from_secs(10);

/// A PF as people name it: by its interface or by its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PfName {
    /// `0000:01:00.0`.
    Address(Address),
    /// `eth0`.
    Interface(String),
}

impl FromStr for PfName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(address) => Ok(Self::Address(address)),
            Err(error) if text.contains(':') => Err(error.to_string()),
            Err(_) => Ok(Self::Interface(text.to_owned())),
        }
    }
}

/// How VFs are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Create {
    /// Even if VFs are in use that have to go first.
    pub force: bool,
    /// No kernel driver takes the new VFs by itself.
    pub no_drivers: bool,
    /// The PF's interface is brought up.
    pub up: bool,
}

/// What has become of a PF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Changed {
    /// How many VFs it had.
    pub before: u32,
    /// The PF as it is now.
    pub pf: PhysicalFunction,
}

/// The PF with this name; an error where it is none.
pub fn find(machine: &Machine, name: &PfName) -> Result<PhysicalFunction, HostError> {
    let address = match name {
        PfName::Address(address) => *address,
        PfName::Interface(interface) => machine.function_of(interface)?,
    };
    machine.function(address)?;
    if let Some(pf) = machine.sysfs().physical_function(address) {
        return HostError::refused(format!("{address} is itself a VF, of {pf}; name its PF"));
    }
    match machine.physical_function(address, None) {
        Some(pf) if pf.total_vfs > 0 => Ok(pf),
        _ => HostError::refused(format!(
            "{address} can have no VFs: it has no SR-IOV, or SR-IOV is off in the NIC's own configuration or in the \
             firmware of the machine (turn it on there: BIOS setup, or the vendor's tool)"
        )),
    }
}

/// Gives a PF `count` VFs. The kernel changes the number only by way of none.
pub fn create(
    machine: &Machine,
    name: &PfName,
    count: u32,
    how: Create,
    daemon: Option<&Daemon>,
) -> Result<Changed, HostError> {
    let pf = find(machine, name)?;
    if count == 0 {
        return HostError::refused(format!(
            "no VF is no number to create; port_control vfs remove {}",
            pf.name()
        ));
    }
    if count > pf.total_vfs {
        return HostError::refused(format!(
            "{count} VFs are wanted of {}, and it can have {} at most; some NICs can be set up for more, with the vendor's \
             tool",
            pf.name(),
            pf.total_vfs
        ));
    }
    if count != pf.num_vfs {
        may_change(machine, &pf, how.force, daemon)?;
    }
    machine.need_root()?;
    let address = pf.function.address;
    if count != pf.num_vfs {
        let switch = Machine::device(address, "sriov_drivers_autoprobe");
        let before = machine.text(&switch);
        if how.no_drivers {
            machine.write(&switch, "0")?;
        }
        if let Err(error) = change(machine, &pf, count) {
            if let Some(before) = before.filter(|_| how.no_drivers) {
                let _ = machine.write(&switch, &before);
            }
            return Err(error);
        }
    }
    if how.up {
        bring_up(machine, &pf)?;
    }
    changed(machine, &pf, daemon)
}

/// Takes all VFs of a PF away.
pub fn remove(
    machine: &Machine,
    name: &PfName,
    force: bool,
    daemon: Option<&Daemon>,
) -> Result<Changed, HostError> {
    let pf = find(machine, name)?;
    if pf.num_vfs > 0 {
        may_change(machine, &pf, force, daemon)?;
        machine.need_root()?;
        change(machine, &pf, 0)?;
    }
    changed(machine, &pf, daemon)
}

fn changed(machine: &Machine, pf: &PhysicalFunction, daemon: Option<&Daemon>) -> Result<Changed, HostError> {
    match machine.physical_function(pf.function.address, daemon) {
        Some(now) => Ok(Changed { before: pf.num_vfs, pf: now }),
        None => Err(HostError::Failed(format!("{} has gone meanwhile; dmesg says why", pf.function.address))),
    }
}

/// The VFs that are there will go.
fn may_change(
    machine: &Machine,
    pf: &PhysicalFunction,
    force: bool,
    daemon: Option<&Daemon>,
) -> Result<(), HostError> {
    if force {
        return Ok(());
    }
    for vf in &pf.vfs {
        let address = vf.function.address;
        if let Some(by) = machine.any_use(address, daemon) {
            return HostError::refused(format!(
                "the VFs of {} cannot be taken away: {address} is in use: {by}; --force takes them away all the same",
                pf.name()
            ));
        }
    }
    Ok(())
}

fn change(machine: &Machine, pf: &PhysicalFunction, count: u32) -> Result<(), HostError> {
    let file = Machine::device(pf.function.address, "sriov_numvfs");
    if pf.num_vfs > 0 {
        take_away(machine, pf, &file)?;
    }
    if count == 0 {
        return Ok(());
    }
    let written = machine.write(&file, &count.to_string());
    let Err(error) = written else { return Ok(()) };
    // As it was, so that a wish that cannot be had costs only that VFs were made anew.
    let restored = pf.num_vfs > 0 && machine.write(&file, &pf.num_vfs.to_string()).is_ok();
    let now = match (pf.num_vfs, restored) {
        (0, _) => "it has none, as before".to_owned(),
        (before, true) => format!("it has {before} again"),
        (_, false) => "it has none now".to_owned(),
    };
    Err(HostError::Failed(format!(
        "{} could not be given {count} VFs; {now}: {error}; where memory or bus numbers are short, pci=realloc and \
         pci=assign-busses on the kernel line, or fewer VFs, may help",
        pf.name()
    )))
}

/// With --force somebody may still hold a VF; then the kernel waits until it is let go.
fn take_away(machine: &Machine, pf: &PhysicalFunction, file: &str) -> Result<(), HostError> {
    let written = machine.kernel().write_in_time(&machine.file(file), "0", machine.patience());
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(HostError::Failed(format!(
            "the VFs of {} did not go within {} s: somebody holds one (port_control vfs list), and the kernel goes on \
             waiting for whoever it is; end that, and look again",
            pf.name(),
            machine.patience().as_secs()
        ))),
        Err(error) => Err(HostError::writing(&machine.file(file), &error)),
    }
}

/// A PF that is down answers no VF, and addresses are best set after its link is there.
fn bring_up(machine: &Machine, pf: &PhysicalFunction) -> Result<(), HostError> {
    for interface in &pf.function.interfaces {
        machine.kernel().set_up(interface).map_err(|cause| {
            HostError::Failed(format!(
                "cannot bring {interface} up: {cause}; ip link set {interface} up; dmesg says why"
            ))
        })?;
        let end = Instant::now() + CARRIER;
        while !machine.has_carrier(interface) && Instant::now() < end {
            thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Has the PF of a VF set something for it, and reads back whether it did.
pub fn set(machine: &Machine, vf: Address, change: &VfChange) -> Result<VfSettings, HostError> {
    machine.function(vf)?;
    if machine.sysfs().physical_function(vf).is_none() {
        return HostError::refused(format!(
            "{vf} is no VF of a PF of this machine, so nobody here sets anything for it (port_control vfs list)"
        ));
    }
    let Some((pf, index)) = machine.sysfs().place_on_pf(vf) else {
        return HostError::refused(format!(
            "the PF of {vf} has no network interface, through which VFs are set; its driver must be loaded (port_control \
             vfs list)"
        ));
    };
    if let Some(mac) = change.mac.filter(|mac| !mac.is_valid_unicast()) {
        return HostError::refused(format!(
            "{mac} is no address that a NIC can have; take one like 52:54:00:00:00:01"
        ));
    }
    if let Some((vlan, qos)) = change.vlan.filter(|(vlan, qos)| *vlan > MAX_VLAN || *qos > 7) {
        return HostError::refused(format!(
            "VLAN {vlan} with priority {qos} is none: 0 (none) to {MAX_VLAN}, 0 to 7"
        ));
    }
    if change.is_empty() {
        return HostError::refused(
            "nothing is to be set; give --mac, --vlan, --trust or --spoofchk".to_owned(),
        );
    }
    machine.need_root()?;
    let refused = change.settings().into_iter().filter_map(|setting| {
        let cause = machine.kernel().set_vf(&pf, index, setting).err()?;
        Some(format!("{setting} ({cause})"))
    });
    let refused: Vec<String> = refused.collect();
    let now = machine.kernel().vf_settings(&pf).unwrap_or_default();
    let Some(now) = now.into_iter().find(|settings| settings.index == index) else {
        return Err(HostError::Failed(format!(
            "{pf} no longer shows its VF {index} ({vf}); dmesg may say why"
        )));
    };
    if !refused.is_empty() {
        return Err(HostError::Failed(format!(
            "{pf} did not take {} for its VF {index} ({vf}), which has now: {}; its driver may not know this setting, or want \
             the VF without a driver, or {pf} up",
            refused.join(" and "),
            describe(&now)
        )));
    }
    let kept = change.mac.is_none_or(|mac| mac.to_string() == now.mac)
        && change.vlan.is_none_or(|vlan| vlan == (now.vlan, now.qos))
        && (change.trust.is_none() || change.trust == now.trust)
        && (change.spoof_check.is_none() || change.spoof_check == now.spoof_check);
    match kept {
        true => Ok(now),
        false => Err(HostError::Failed(format!(
            "{pf} said yes and shows something else for its VF {index} ({vf}): {}; its driver does not know this setting, or \
             wants {pf} up first",
            describe(&now)
        ))),
    }
}

/// `MAC …, VLAN …, spoof check …, trust …`.
pub fn describe(settings: &VfSettings) -> String {
    let VfSettings { mac, vlan, qos, spoof_check, trust, .. } = settings;
    let switch = |on: Option<bool>| match on {
        Some(true) => "on",
        Some(false) => "off",
        None => "unknown",
    };
    let mac = if settings.has_mac() { mac.as_str() } else { "not set" };
    let vlan = match (vlan, qos) {
        (0, _) => "none".to_owned(),
        (vlan, 0) => vlan.to_string(),
        (vlan, qos) => format!("{vlan} with priority {qos}"),
    };
    format!("MAC {mac}, VLAN {vlan}, spoof check {}, trust {}", switch(*spoof_check), switch(*trust))
}

impl VfSettings {
    /// Whether the PF has set an address.
    pub fn has_mac(&self) -> bool {
        self.mac.bytes().any(|byte| !matches!(byte, b'0' | b':'))
    }
}

/// Waits until a PF is there: at boot its driver may come late.
pub fn wait_for(machine: &Machine, name: &PfName, limit: Duration) {
    let end = Instant::now() + limit;
    while find(machine, name).is_err() && Instant::now() < end {
        thread::sleep(Duration::from_millis(200));
    }
}

pub(crate) fn remove_file(machine: &Machine, path: &str) -> Result<bool, HostError> {
    let file = machine.file(path);
    match fs::remove_file(&file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(HostError::writing(&file, &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::Relay;
    use crate::recorded::{Recorded, address, hosts};

    const PF: &str = "0000:01:00.0";
    const VF: &str = "0000:01:10.0";
    const NUMBER: &str = "/sys/bus/pci/devices/0000:01:00.0/sriov_numvfs";

    fn name(text: &str) -> PfName {
        text.parse().unwrap()
    }

    /// Refused with these words, and nothing was changed.
    fn refused(recorded: &Recorded, result: Result<Changed, HostError>, words: &[&str]) {
        let error = result.unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "no '{word}' in: {error}");
        }
        assert_eq!(recorded.written(), [""; 0], "{error}");
    }

    #[test]
    fn vfs_come_in_one_step_from_none_and_over_none_from_some() {
        let recorded = hosts::bare();
        let machine = recorded.machine();
        let changed = create(&machine, &name("eth0"), 2, Create::default(), None).unwrap();
        assert_eq!((changed.before, changed.pf.num_vfs, changed.pf.vfs.len()), (0, 2, 2));
        let changed = create(&machine, &name(PF), 3, Create::default(), None).unwrap();
        assert_eq!((changed.before, changed.pf.num_vfs), (2, 3));
        assert_eq!(recorded.written(), [format!("{NUMBER} 2"), format!("{NUMBER} 0"), format!("{NUMBER} 3")]);
        let changed = remove(&machine, &name(PF), false, None).unwrap();
        assert_eq!((changed.before, changed.pf.num_vfs), (3, 0));
    }

    #[test]
    fn as_many_as_there_are_is_success_without_a_change() {
        let recorded = hosts::bare().vfs(PF, 2);
        create(&recorded.machine(), &name("eth0"), 2, Create::default(), None).unwrap();
        assert_eq!(recorded.written(), [""; 0]);
        let recorded = hosts::bare();
        remove(&recorded.machine(), &name("eth0"), false, None).unwrap();
        assert_eq!(recorded.written(), [""; 0]);
    }

    #[test]
    fn vfs_may_be_kept_from_kernel_drivers_and_the_pf_brought_up() {
        let recorded = hosts::bare();
        let how = Create { no_drivers: true, up: true, force: false };
        let changed = create(&recorded.machine(), &name("eth0"), 1, how, None).unwrap();
        assert!(changed.pf.up && changed.pf.carrier);
        assert_eq!(changed.pf.vfs[0].function.driver, None);
    }

    #[test]
    fn wishes_that_cannot_be_had_change_nothing() {
        let bare = hosts::bare();
        let create = |recorded: &Recorded, pf: &str, count| {
            super::create(&recorded.machine(), &name(pf), count, Create::default(), None)
        };
        refused(&bare, create(&bare, "eth0", 8), &["8 VFs", "7 at most"]);
        refused(&bare, create(&bare, "eth0", 0), &["vfs remove eth0"]);
        refused(&bare, create(&bare, "eth9", 1), &["no network interface 'eth9'", "ip link"]);
        refused(&bare, create(&bare, "0000:77:00.0", 1), &["no PCI device 0000:77:00.0", "lspci -D"]);
        let no_sriov = Recorded::new().function("0000:02:00.0", "8086:100e", "e1000", None);
        refused(&no_sriov, create(&no_sriov, "0000:02:00.0", 1), &["no SR-IOV", "BIOS"]);
        let user = hosts::bare().without_root();
        refused(&user, create(&user, "eth0", 1), &["only root", "sudo"]);
        let with_vf = hosts::bare().vfs(PF, 1);
        refused(&with_vf, create(&with_vf, VF, 1), &["is itself a VF, of 0000:01:00.0"]);
        let read_only = hosts::bare().read_only();
        refused(&read_only, create(&read_only, "eth0", 1), &["sriov_numvfs", "read-only", "remount,rw"]);
        assert!("0000:77:00.9".parse::<PfName>().unwrap_err().contains("not a PCI address"));
    }

    #[test]
    fn a_vf_in_use_keeps_all_of_them_unless_forced() {
        let daemon = Daemon {
            relays: vec![Relay { id: 3, function: Some(address(VF)), ..Relay::default() }],
            ..Daemon::default()
        };
        let relay = hosts::bare().vfs(PF, 2);
        let result = super::create(&relay.machine(), &name("eth0"), 3, Create::default(), Some(&daemon));
        refused(&relay, result, &[VF, "relay 3", "--virtio-id 3", "--force"]);
        let up = hosts::bare().vfs(PF, 2).interface("eth0v0", Some(VF)).up("eth0v0");
        refused(&up, remove(&up.machine(), &name("eth0"), false, None), &[VF, "eth0v0 is up", "--force"]);
        let vm = hosts::bare()
            .vfs(PF, 2)
            .function(VF, "8086:10ca", "vfio-pci", Some(12))
            .link("/proc/4711/fd/9", "/dev/vfio/12")
            .with("/proc/4711/comm", "qemu-system-x86\n");
        refused(&vm, remove(&vm.machine(), &name("eth0"), false, None), &["process 4711 (qemu-system-x86)"]);
        let changed = remove(&up.machine(), &name("eth0"), true, None).unwrap();
        assert_eq!(changed.pf.num_vfs, 0);
    }

    #[test]
    fn vfs_that_somebody_holds_though_forced_are_waited_for_no_longer_than_the_limit() {
        let recorded = hosts::bare().vfs(PF, 1).stubborn("0000:01:00.0");
        let error = remove(&recorded.machine(), &name("eth0"), true, None).unwrap_err().to_string();
        assert!(error.contains("did not go within") && error.contains("vfs list"), "{error}");
    }

    #[test]
    fn a_number_that_the_kernel_refuses_leaves_as_many_as_before() {
        let recorded = hosts::bare().vfs(PF, 1).room_for(1);
        let result = create(&recorded.machine(), &name("eth0"), 2, Create::default(), None);
        let error = result.unwrap_err().to_string();
        assert!(error.contains("2 VFs; it has 1 again") && error.contains("pci=realloc"), "{error}");
        assert_eq!(recorded.text(NUMBER).unwrap(), "1\n");
        let how = Create { no_drivers: true, ..Create::default() };
        create(&recorded.machine(), &name("eth0"), 2, how, None).unwrap_err();
        let autoprobe = recorded.text("/sys/bus/pci/devices/0000:01:00.0/sriov_drivers_autoprobe").unwrap();
        assert_eq!(autoprobe.trim(), "1");
    }

    #[test]
    fn settings_are_set_and_read_back() {
        let recorded = hosts::bare().vfs(PF, 2);
        let change = VfChange {
            mac: Some("52:54:00:00:00:aa".parse().unwrap()),
            vlan: Some((100, 3)),
            trust: Some(true),
            spoof_check: Some(false),
        };
        let now = set(&recorded.machine(), address("0000:01:10.2"), &change).unwrap();
        assert_eq!(
            describe(&now),
            "MAC 52:54:00:00:00:aa, VLAN 100 with priority 3, spoof check off, trust on"
        );
        assert_eq!(now.index, 1);
    }

    #[test]
    fn one_setting_that_the_driver_does_not_know_does_not_keep_the_others() {
        let recorded = hosts::bare().vfs(PF, 1).without_trust();
        let change = VfChange {
            mac: Some("52:54:00:00:00:01".parse().unwrap()),
            trust: Some(true),
            spoof_check: Some(false),
            ..VfChange::default()
        };
        let error = set(&recorded.machine(), address(VF), &change).unwrap_err().to_string();
        assert!(
            error.contains("eth0 did not take --trust on (") && error.contains("not supported"),
            "{error}"
        );
        assert!(
            error.contains("which has now: MAC 52:54:00:00:00:01, VLAN none, spoof check off"),
            "{error}"
        );
    }

    #[test]
    fn settings_that_cannot_be_are_refused_and_those_not_kept_are_told() {
        let recorded = hosts::bare().vfs(PF, 1);
        let machine = recorded.machine();
        let mac = |text: &str| VfChange { mac: Some(text.parse().unwrap()), ..VfChange::default() };
        let vlan = VfChange { vlan: Some((4095, 0)), ..VfChange::default() };
        for (vf, change, words) in [
            (VF, mac("01:00:5e:00:00:01"), "no address that a NIC can have"),
            (VF, vlan, "0 (none) to 4094"),
            (VF, VfChange::default(), "--mac"),
            (PF, mac("52:54:00:00:00:01"), "no VF of a PF"),
            ("0000:09:00.0", mac("52:54:00:00:00:01"), "lspci -D"),
        ] {
            let error = set(&machine, address(vf), &change).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let recorded = hosts::bare().vfs(PF, 1).forgetful();
        let error = set(&recorded.machine(), address(VF), &mac("52:54:00:00:00:01")).unwrap_err().to_string();
        assert!(error.contains("shows something else") && error.contains("MAC not set"), "{error}");
        let recorded = hosts::bare().vfs(PF, 1).without_root();
        let error = set(&recorded.machine(), address(VF), &mac("52:54:00:00:00:01")).unwrap_err().to_string();
        assert!(error.contains("sudo"), "{error}");
    }
}
