//! Whether the VMs' processes reach the vhost-user sockets.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Item, Patient};
use crate::machine::Machine;

/// Where the sockets are unless the daemon says otherwise.
const DIRECTORY: &str = "/tmp/virtio-forwarder";
/// Users that libvirt runs VMs as, on Debian and on Red Hat.
const VM_USERS: [&str; 2] = ["libvirt-qemu", "qemu"];

pub(super) fn examine(patient: &Patient) -> Vec<Item> {
    let machine = patient.machine;
    let sockets: Vec<&PathBuf> = patient.relays().iter().filter_map(|relay| relay.socket.as_ref()).collect();
    let directory = match patient.plan() {
        Some(plan) => &plan.directory,
        None => sockets.first().and_then(|socket| socket.parent()).unwrap_or(Path::new(DIRECTORY)),
    };
    let directory = directory.to_owned();
    let Some(user) = VM_USERS.iter().find_map(|name| User::named(machine, name)) else {
        return vec![Item::ok(
            "socket directory",
            format!(
                "{}; there is no user {}: VMs are started otherwise",
                directory.display(),
                VM_USERS.join(" or ")
            ),
        )];
    };
    let mut items = vec![permissions(machine, &directory, sockets.first().copied(), &user)];
    items.extend(app_armor(machine, &directory));
    items.extend(selinux(machine));
    items
}

/// A user of the machine.
struct User {
    name: String,
    uid: u32,
    gids: Vec<u32>,
}

impl User {
    fn named(machine: &Machine, name: &str) -> Option<Self> {
        let passwd = machine.text("/etc/passwd")?;
        let mut fields = passwd.lines().find(|line| line.split(':').next() == Some(name))?.split(':').skip(2);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let groups = machine.text("/etc/group").unwrap_or_default();
        let mut gids: Vec<u32> = groups
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(':').collect();
                let member = fields.get(3)?.split(',').any(|member| member == name);
                fields.get(2)?.parse().ok().filter(|_| member)
            })
            .collect();
        gids.push(gid);
        Some(Self { name: name.to_owned(), uid, gids })
    }

    /// Whether one of `bits` (of 7) of a file's mode is this user's.
    fn may(&self, owner: u32, group: u32, mode: u32, bits: u32) -> bool {
        let shift = match () {
            () if owner == self.uid => 6,
            () if self.gids.contains(&group) => 3,
            () => 0,
        };
        self.uid == 0 || mode >> shift & bits == bits
    }
}

fn permissions(machine: &Machine, directory: &Path, socket: Option<&PathBuf>, user: &User) -> Item {
    let subject = "socket directory";
    let Ok(metadata) = fs::metadata(machine.file(directory)) else {
        return Item::ok(subject, format!("{} is made when the daemon starts", directory.display()));
    };
    let mode = |metadata: &fs::Metadata| {
        format!("{}:{} {:o}", metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    let mut found = format!("{} ({})", directory.display(), mode(&metadata));
    // To reach a file one must be allowed to search its folder, to connect to a socket to write to it.
    let mut reached = user.may(metadata.uid(), metadata.gid(), metadata.mode(), 1);
    for folder in directory.ancestors().skip(1).filter(|folder| folder.parent().is_some()) {
        if let Ok(metadata) = fs::metadata(machine.file(folder))
            && !user.may(metadata.uid(), metadata.gid(), metadata.mode(), 1)
        {
            return Item::failure(
                subject,
                format!(
                    "{found} is below {} ({}), which is closed to {}, who runs the VMs",
                    folder.display(),
                    mode(&metadata),
                    user.name
                ),
            )
            .mended_by(format!(
                "another directory: VIRTIOFWD_SOCKET_DIR={DIRECTORY} in /etc/default/virtioforwarder"
            ));
        }
    }
    if let Some((socket, metadata)) =
        socket.and_then(|path| Some((path, fs::metadata(machine.file(path)).ok()?)))
    {
        found = format!("{found}, {} ({})", socket.display(), mode(&metadata));
        reached &= user.may(metadata.uid(), metadata.gid(), metadata.mode(), 2);
    }
    match reached {
        true => Item::ok(subject, format!("{found}: open to {}", user.name)),
        false => Item::failure(subject, format!("{found}: closed to {}, who runs the VMs", user.name)).mended_by(format!(
            "VIRTIOFWD_SOCKET_OWNER={} in /etc/default/virtioforwarder, then systemctl restart virtio-forwarder; or chown -R {} {}",
            user.name,
            user.name,
            directory.display()
        )),
    }
}

fn app_armor(machine: &Machine, directory: &Path) -> Option<Item> {
    let subject = "AppArmor";
    if machine.text("/sys/module/apparmor/parameters/enabled").as_deref() != Some("Y") {
        return None;
    }
    let profile = machine.text("/etc/apparmor.d/abstractions/libvirt-qemu")?;
    let local = "/etc/apparmor.d/local/abstractions/libvirt-qemu";
    let allowed = |text: &str| {
        let rules = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        rules.into_iter().any(|line| line.contains(&*directory.to_string_lossy()))
    };
    if allowed(&profile) || machine.text(local).is_some_and(|text| allowed(&text)) {
        return Some(Item::ok(subject, format!("on; VMs of libvirt may use {}", directory.display())));
    }
    let found = format!(
        "on, and no rule for {} is known: VMs of libvirt may be kept from their sockets",
        directory.display()
    );
    Some(Item::warning(subject, found).mended_by(format!(
        "mkdir -p {} && echo '  {}/* rw,' >> {local} && systemctl reload apparmor",
        Path::new(local).parent().unwrap_or(Path::new("/")).display(),
        directory.display()
    )))
}

fn selinux(machine: &Machine) -> Option<Item> {
    let subject = "SELinux";
    if machine.text("/sys/fs/selinux/enforce")? != "1" {
        return Some(Item::ok(subject, "permissive"));
    }
    let stores = machine.names("/var/lib/selinux");
    let permissive = stores.iter().any(|store| {
        let modules = format!("/var/lib/selinux/{store}/active/modules");
        machine
            .names(&modules)
            .iter()
            .any(|priority| machine.exists(format!("{modules}/{priority}/permissive_svirt_t")))
    });
    Some(match permissive {
        true => Item::ok(subject, "enforcing; VMs of libvirt (svirt_t) are permissive"),
        false => Item::warning(subject, "enforcing: VMs of libvirt (svirt_t) may be kept from their sockets")
            .mended_by("ausearch -m avc -c qemu-kvm shows whether they are; semanage permissive -a svirt_t lets them"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_those_of_the_first_class_that_fits() {
        let user = User { name: "qemu".to_owned(), uid: 107, gids: vec![36, 107] };
        for (owner, group, mode, reached) in [
            (107, 0, 0o200, true),
            (107, 36, 0o060, false),
            (0, 36, 0o060, true),
            (0, 0, 0o770, false),
            (0, 0, 0o002, true),
        ] {
            assert_eq!(user.may(owner, group, mode, 2), reached, "{owner}:{group} {mode:o}");
        }
        assert!(User { uid: 0, ..user }.may(1, 1, 0, 2));
    }
}
