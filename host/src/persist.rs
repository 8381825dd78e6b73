//! Making VFs last: a systemd unit that makes them at every boot, before the daemon starts.

use std::path::Path;

use serde::Serialize;

use crate::error::HostError;
use crate::kernel::VfSettings;
use crate::machine::Machine;
use crate::vfs::{PfName, find, remove_file};

/// Where an administrator's units are.
const UNITS: &str = "/etc/systemd/system";
/// What starts it: the daemon, which wants VFs, and the machine without a daemon.
const WANTED_BY: &str = "multi-user.target.wants";

/// What was written or removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lasting {
    /// Name of the unit.
    pub unit: String,
    /// Whether it is there now.
    pub present: bool,
    /// Whether it was before.
    pub was_present: bool,
}

fn unit_name(pf: pmd::Address) -> String {
    // By address: interface names change with drivers and firmware.
    format!("virtio-forwarder-vfs-{pf}.service")
}

/// Writes the unit that gives a PF `count` VFs at every boot, with what is set for them now, and enables it. `program` is the
/// path of `port_control`.
pub fn persist(machine: &Machine, name: &PfName, count: u32, program: &Path) -> Result<Lasting, HostError> {
    let pf = find(machine, name)?;
    if count == 0 || count > pf.total_vfs {
        return HostError::refused(format!(
            "{count} VFs are wanted of {} at every boot, and it can have 1 to {}; port_control vfs forget {} ends that it \
             gets any",
            pf.name(),
            pf.total_vfs,
            pf.name()
        ));
    }
    let program = program.display().to_string();
    if !program.starts_with('/')
        || program.contains([' ', '%', '$', '"', '\'', '\\'])
        || program.contains(char::is_control)
    {
        return HostError::refused(format!(
            "a unit cannot name the program '{program}'; put port_control into /usr/bin or /usr/local/bin"
        ));
    }
    machine.need_root()?;
    let address = pf.function.address;
    let unit = unit_name(address);
    let path = format!("{UNITS}/{unit}");
    let was_present = machine.exists(&path);
    let mut settings = Vec::new();
    for vf in pf.vfs.iter().filter(|vf| vf.index.is_some_and(|index| index < count)) {
        if let Some(words) = vf.settings.as_ref().and_then(words) {
            settings.push(format!("ExecStart={program} vfs set {} {words}\n", vf.function.address));
        }
    }
    let text = format!(
        "# Written by 'port_control vfs persist'; 'port_control vfs forget {address}' removes it.\n\
         [Unit]\n\
         Description=SR-IOV virtual functions of {address}\n\
         Documentation=man:port_control(8)\n\
         After=systemd-modules-load.service systemd-udevd.service\n\
         Before=network-pre.target vfio-rebind.service virtio-forwarder.service\n\
         Wants=network-pre.target\n\
         \n\
         [Service]\n\
         Type=oneshot\n\
         RemainAfterExit=yes\n\
         ExecStart={program} vfs create {address} {count} --up --wait 30\n\
         {}\n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        settings.concat()
    );
    machine.create(&path, &text)?;
    if let Err(error) = enable(machine, &unit, &path) {
        // A unit that nobody starts would only look as if it did something.
        if !was_present {
            let _ = remove_file(machine, &path);
        }
        return Err(error);
    }
    reload(machine)?;
    Ok(Lasting { unit, present: true, was_present })
}

/// What `systemctl enable` does, which needs no systemd that runs.
fn enable(machine: &Machine, unit: &str, path: &str) -> Result<(), HostError> {
    let link = machine.file(format!("{UNITS}/{WANTED_BY}/{unit}"));
    if let Some(folder) = link.parent() {
        std::fs::create_dir_all(folder).map_err(|cause| HostError::writing(folder, &cause))?;
    }
    match std::os::unix::fs::symlink(path, &link) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(HostError::writing(&link, &error))
        }
        _ => Ok(()),
    }
}

/// Options of `vfs set` that say what is set now; `None` where nothing is.
fn words(settings: &VfSettings) -> Option<String> {
    let mut words = Vec::new();
    if settings.has_mac() {
        words.push(format!("--mac {}", settings.mac));
    }
    if settings.vlan != 0 {
        words.push(format!("--vlan {}:{}", settings.vlan, settings.qos));
    }
    // The usual way round needs no word.
    if settings.trust == Some(true) {
        words.push("--trust on".to_owned());
    }
    if settings.spoof_check == Some(false) {
        words.push("--spoofchk off".to_owned());
    }
    (!words.is_empty()).then(|| words.join(" "))
}

/// Removes the unit. The VFs that are there stay. The PF may have left the machine, if it is named by its address.
pub fn forget(machine: &Machine, name: &PfName) -> Result<Lasting, HostError> {
    let address = match name {
        PfName::Address(address) => *address,
        PfName::Interface(interface) => machine.function_of(interface)?,
    };
    let unit = unit_name(address);
    let path = format!("{UNITS}/{unit}");
    let was_present = machine.exists(&path);
    if was_present {
        machine.need_root()?;
        remove_file(machine, &format!("{UNITS}/{WANTED_BY}/{unit}"))?;
        remove_file(machine, &path)?;
        reload(machine)?;
    }
    Ok(Lasting { unit, present: false, was_present })
}

fn reload(machine: &Machine) -> Result<(), HostError> {
    machine.kernel().reload_units().map_err(|cause| {
        HostError::Failed(format!(
            "the files are written, but systemd did not read them: {cause}; systemctl daemon-reload"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::hosts;

    const UNIT: &str = "/etc/systemd/system/virtio-forwarder-vfs-0000:03:00.0.service";
    const LINK: &str =
        "/etc/systemd/system/multi-user.target.wants/virtio-forwarder-vfs-0000:03:00.0.service";

    fn persist(machine: &Machine, name: &PfName, count: u32) -> Result<Lasting, HostError> {
        super::persist(machine, name, count, Path::new("/usr/bin/port_control"))
    }

    fn eno1() -> PfName {
        "eno1".parse().unwrap()
    }

    #[test]
    fn the_unit_makes_the_vfs_and_sets_them_as_they_are_before_the_daemon_starts() {
        let recorded = hosts::i350();
        let machine = recorded.machine();
        let lasting = persist(&machine, &eno1(), 2).unwrap();
        assert_eq!((lasting.present, lasting.was_present), (true, false));
        let unit = recorded.text(UNIT).unwrap();
        for line in [
            "Before=network-pre.target vfio-rebind.service virtio-forwarder.service",
            "ExecStart=/usr/bin/port_control vfs create 0000:03:00.0 2 --up --wait 30",
            "ExecStart=/usr/bin/port_control vfs set 0000:03:10.0 --mac 52:54:00:00:00:10",
            "ExecStart=/usr/bin/port_control vfs set 0000:03:10.4 --mac 52:54:00:00:00:11",
            "WantedBy=multi-user.target",
        ] {
            assert!(unit.lines().any(|had| had == line), "no '{line}' in:\n{unit}");
        }
        assert!(machine.file(LINK).is_symlink());
        assert!(persist(&machine, &eno1(), 3).unwrap().was_present);
        assert!(recorded.text(UNIT).unwrap().contains("vfs create 0000:03:00.0 3"));
        let lasting = forget(&machine, &eno1()).unwrap();
        assert_eq!((lasting.present, lasting.was_present), (false, true));
        assert!(!machine.exists(UNIT) && !machine.file(LINK).is_symlink());
        assert!(!forget(&machine, &eno1()).unwrap().was_present);
    }

    #[test]
    fn the_unit_names_the_program_that_wrote_it_where_it_can() {
        let recorded = hosts::i350();
        super::persist(&recorded.machine(), &eno1(), 2, Path::new("/usr/local/bin/port_control")).unwrap();
        let unit = recorded.text(UNIT).unwrap();
        assert_eq!(unit.matches("ExecStart=/usr/local/bin/port_control vfs ").count(), 3, "{unit}");
        for program in ["/home/my files/port_control", "port_control", "/opt/100%/port_control"] {
            let recorded = hosts::i350();
            let error =
                super::persist(&recorded.machine(), &eno1(), 2, Path::new(program)).unwrap_err().to_string();
            assert!(error.contains(program) && error.contains("/usr/local/bin"), "{error}");
            assert_eq!((recorded.written(), recorded.text(UNIT)), (vec![], None));
        }
    }

    #[test]
    fn a_unit_that_cannot_be_enabled_is_not_left_behind() {
        // A plain file where the folder of links would be.
        let recorded = hosts::i350().with("/etc/systemd/system/multi-user.target.wants", "");
        let error = persist(&recorded.machine(), &eno1(), 2).unwrap_err().to_string();
        assert!(error.contains("multi-user.target.wants"), "{error}");
        assert_eq!(recorded.text(UNIT), None);
    }

    #[test]
    fn numbers_that_cannot_be_and_users_that_may_not_write_nothing() {
        for (recorded, count, words) in [
            (hosts::i350(), 8, "1 to 7"),
            (hosts::i350(), 0, "vfs forget eno1"),
            (hosts::i350().without_root(), 2, "sudo"),
        ] {
            let error = persist(&recorded.machine(), &eno1(), count).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
            assert_eq!((recorded.written(), recorded.text(UNIT)), (vec![], None));
        }
        let recorded = hosts::i350();
        persist(&recorded.machine(), &eno1(), 2).unwrap();
        let recorded = recorded.without_root();
        assert!(forget(&recorded.machine(), &eno1()).unwrap_err().to_string().contains("sudo"));
        assert!(recorded.text(UNIT).is_some());
    }
}
