//! Who uses a function: a relay, a VM, a network interface that is up, a mounted disk.

use std::fmt;
use std::fs;
use std::path::Path;

use pmd::Address;

use crate::daemon::Daemon;
use crate::inventory::VFIO_PCI;
use crate::machine::Machine;

/// A reason not to take a function away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Use {
    /// A relay of the daemon has it.
    Relay(u32),
    /// A process has it open through VFIO: a VM, or the daemon.
    Process {
        /// Its number.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// The default route goes through its interface.
    DefaultRoute(String),
    /// Its interface belongs to a bond or a bridge.
    Member {
        /// The interface.
        interface: String,
        /// The bond or bridge.
        of: String,
    },
    /// Its interface is up.
    Up(String),
    /// Its driver is one for networks, and the interface is in no network namespace that can be seen from here.
    ElsewhereInNamespace(String),
    /// A file system on it is mounted.
    Mounted {
        /// The disk or partition.
        disk: String,
        /// Where.
        on: String,
    },
    /// Something else stands on its disk: swap, RAID, LVM, encryption.
    Storage {
        /// The disk or partition.
        disk: String,
        /// What.
        by: String,
    },
}

/// What it is, and what ends it.
impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Relay(id) => {
                write!(f, "relay {id} of the daemon has it (port_control remove --virtio-id {id})")
            }
            Self::Process { pid, name } => {
                write!(
                    f,
                    "process {pid} ({name}) has it open through VFIO (end it, or take the device out of its VM)"
                )
            }
            Self::DefaultRoute(interface) => {
                write!(f, "the default route goes through its interface {interface} (ip route)")
            }
            Self::Member { interface, of } => {
                write!(f, "its interface {interface} belongs to {of} (ip link set {interface} nomaster)")
            }
            Self::Up(interface) => {
                write!(
                    f,
                    "its interface {interface} is up (ip link set {interface} down, if nobody needs it)"
                )
            }
            Self::ElsewhereInNamespace(driver) => write!(
                f,
                "its driver {driver} has given its interface to another network namespace, such as a container's (end \
                 that, or take the interface back)"
            ),
            Self::Mounted { disk, on } => write!(f, "its disk {disk} is mounted on {on} (umount {on})"),
            Self::Storage { disk, by } => {
                write!(
                    f,
                    "its disk {disk} is in use by {by} (swapon, lsblk, dmsetup ls, btrfs filesystem show and zpool status show more)"
                )
            }
        }
    }
}

impl Machine {
    /// Why the kernel, or whoever uses the kernel's driver, needs this function.
    pub(crate) fn kernel_use(&self, address: Address) -> Option<Use> {
        let interfaces = self.names(Self::device(address, "net"));
        let routes = self.default_routes();
        if let Some(interface) = interfaces.iter().find(|name| routes.contains(name)) {
            return Some(Use::DefaultRoute(interface.clone()));
        }
        for interface in &interfaces {
            if let Some(of) = self.target(format!("/sys/class/net/{interface}/master")) {
                return Some(Use::Member { interface: interface.clone(), of });
            }
        }
        if let Some(interface) = interfaces.iter().find(|name| self.is_up(name)) {
            return Some(Use::Up(interface.clone()));
        }
        // The folder is there as long as there is an interface, and shows only those of this namespace.
        if interfaces.is_empty() && self.is_network(address) && self.exists(Self::device(address, "net")) {
            let driver = self.sysfs().driver(address).unwrap_or_default();
            return Some(Use::ElsewhereInNamespace(driver));
        }
        self.storage_use(address)
    }

    /// Who has it through VFIO.
    pub(crate) fn user_space_use(&self, address: Address, daemon: Option<&Daemon>) -> Option<Use> {
        if let Some(relay) = daemon.and_then(|daemon| daemon.relay_of(address)) {
            return Some(Use::Relay(relay.id));
        }
        (self.sysfs().driver(address).as_deref() == Some(VFIO_PCI)).then_some(())?;
        let mut nodes = self.names(Self::device(address, "vfio-dev"));
        nodes.iter_mut().for_each(|node| *node = format!("/dev/vfio/devices/{node}"));
        if let Some(group) = self.sysfs().group(address) {
            nodes.extend([format!("/dev/vfio/{group}"), format!("/dev/vfio/noiommu-{group}")]);
        }
        self.process_with_open(&nodes)
    }

    /// Any of both.
    pub(crate) fn any_use(&self, address: Address, daemon: Option<&Daemon>) -> Option<Use> {
        self.user_space_use(address, daemon).or_else(|| self.kernel_use(address))
    }

    fn process_with_open(&self, nodes: &[String]) -> Option<Use> {
        self.names("/proc").iter().find_map(|pid| {
            let number: u32 = pid.parse().ok()?;
            let files = self.names(format!("/proc/{pid}/fd"));
            files.iter().find(|file| {
                let target = fs::read_link(self.file(format!("/proc/{pid}/fd/{file}")));
                target.is_ok_and(|target| nodes.iter().any(|node| target == Path::new(node)))
            })?;
            let name = self.text(format!("/proc/{pid}/comm")).unwrap_or_default();
            Some(Use::Process { pid: number, name })
        })
    }

    /// Interfaces with a default route, of either IP.
    fn default_routes(&self) -> Vec<String> {
        let v4 = self.text("/proc/net/route").unwrap_or_default();
        let v4 = v4.lines().filter_map(|line| {
            // Iface Destination Gateway Flags RefCnt Use Metric Mask
            let fields: Vec<&str> = line.split_whitespace().collect();
            (fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000"))
                .then(|| fields[0].to_owned())
        });
        let v6 = self.text("/proc/net/ipv6_route").unwrap_or_default();
        let v6 = v6.lines().filter_map(|line| {
            // Destination, its prefix length, … , interface. Without any other the kernel lists one through `lo`.
            let fields: Vec<&str> = line.split_whitespace().collect();
            let default = fields.first()?.bytes().all(|byte| byte == b'0') && fields.get(1) == Some(&"00");
            fields.last().filter(|name| default && **name != "lo").map(|name| (*name).to_owned())
        });
        v4.chain(v6).collect()
    }

    fn storage_use(&self, address: Address) -> Option<Use> {
        let disks = self.disks(address);
        let mounts = self.text("/proc/self/mountinfo").unwrap_or_default();
        let swaps = self.text("/proc/swaps").unwrap_or_default();
        disks.into_iter().find_map(|disk| {
            let number = self.text(format!("/sys/class/block/{disk}/dev"));
            let node = format!("/dev/{disk}");
            // ID, parent, major:minor, root, mount point, …, a dash, kind, source. Btrfs has a number of its own there, but
            // names a disk as the source.
            let mount = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| {
                let source =
                    fields.iter().position(|field| *field == "-").and_then(|dash| fields.get(dash + 2));
                fields.len() > 4
                    && (number.is_some() && fields.get(2).copied() == number.as_deref()
                        || source.is_some_and(|source| **source == *node))
            });
            if let Some(fields) = mount {
                return Some(Use::Mounted { disk, on: fields[4].to_owned() });
            }
            if swaps.lines().any(|line| line.split_whitespace().next() == Some(&node)) {
                return Some(Use::Storage { disk, by: "swap".to_owned() });
            }
            if let Some(by) = self.names(format!("/sys/class/block/{disk}/holders")).into_iter().next() {
                return Some(Use::Storage { disk, by });
            }
            // A further disk of a btrfs, ZFS, another mount namespace: no file says so.
            let claimed = self.kernel().claims(&self.file(&node));
            claimed.then(|| Use::Storage { disk, by: "a file system or volume of the kernel's".to_owned() })
        })
    }

    /// Disks and partitions of a function.
    fn disks(&self, address: Address) -> Vec<String> {
        let Ok(device) = self.sysfs().device(address).canonicalize() else { return Vec::new() };
        let controllers = self.names(Self::device(address, "nvme"));
        let is_its = |disk: &String| {
            let block = self.file(format!("/sys/class/block/{disk}"));
            // The disk of an NVMe controller with multipath is not below the controller, but carries the number of one in
            // the same subsystem.
            let of_subsystem = controllers.iter().any(|controller| {
                let subsystem = self.target(Self::device(address, &format!("nvme/{controller}/subsystem")));
                let Ok(block) = block.canonicalize() else { return false };
                subsystem.is_some_and(|name| {
                    name.starts_with("nvme-subsys") && block.iter().any(|part| part == name.as_str())
                })
            });
            of_subsystem || block.canonicalize().is_ok_and(|block| block.starts_with(&device))
        };
        self.names("/sys/class/block").into_iter().filter(is_its).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::{Recorded, address};

    const NIC: &str = "0000:03:00.0";

    fn used(recorded: &Recorded) -> String {
        recorded.machine().kernel_use(address(NIC)).map(|by| by.to_string()).unwrap_or_default()
    }

    fn nic() -> Recorded {
        Recorded::new().function(NIC, "8086:1521", "igb", Some(9)).interface("eno1", Some(NIC))
    }

    #[test]
    fn an_interface_that_nobody_needs_is_no_reason() {
        assert_eq!(used(&nic()), "");
    }

    #[test]
    fn every_use_of_an_interface_is_named_with_what_ends_it() {
        assert!(used(&nic().up("eno1")).contains("ip link set eno1 down"));
        let table = "Iface Destination Gateway Flags RefCnt Use Metric Mask\neno1 00000000 0101A8C0 0003 0 0 0 00000000 0 0 0\n";
        assert!(used(&nic().up("eno1").with("/proc/net/route", table)).contains("default route"));
        let zeros = "0".repeat(32);
        let table = format!("{zeros} 00 {zeros} 00 {zeros} 00000400 1 0 00000003 eno1\n");
        assert!(used(&nic().with("/proc/net/ipv6_route", &table)).contains("default route"));
        let unreachable = table.replace("eno1", "lo");
        assert_eq!(used(&nic().with("/proc/net/ipv6_route", &unreachable)), "");
        assert!(
            used(&nic().link("/sys/class/net/eno1/master", "/sys/class/net/bond0"))
                .contains("belongs to bond0")
        );
        let moved = Recorded::new()
            .function(NIC, "8086:1521", "igb", Some(9))
            .folder(&format!("/sys/bus/pci/devices/{NIC}/net"));
        assert!(used(&moved).contains("another network namespace"));
    }

    #[test]
    fn every_use_of_a_disk_is_named() {
        let disk = || Recorded::new().disk(NIC, "nvme0n1", "259:0").disk(NIC, "nvme0n1p1", "259:1");
        assert_eq!(used(&disk()), "");
        let mounts = "22 1 259:1 / /srv/data rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n";
        assert!(
            used(&disk().with("/proc/self/mountinfo", mounts)).contains("nvme0n1p1 is mounted on /srv/data")
        );
        let btrfs = "22 1 0:45 /@ /srv/data rw,relatime shared:1 - btrfs /dev/nvme0n1p1 rw,subvol=/@\n";
        assert!(
            used(&disk().with("/proc/self/mountinfo", btrfs)).contains("nvme0n1p1 is mounted on /srv/data")
        );
        assert!(
            used(&disk().claimed("nvme0n1p1")).contains("nvme0n1p1 is in use by a file system or volume")
        );
        let swaps = "Filename Type Size Used Priority\n/dev/nvme0n1p1 partition 1 0 -2\n";
        assert!(used(&disk().with("/proc/swaps", swaps)).contains("swap"));
        assert!(used(&disk().folder("/sys/class/block/nvme0n1/holders/dm-0")).contains("dm-0"));
    }

    #[test]
    fn a_process_that_has_the_group_open_is_named() {
        let recorded = Recorded::new()
            .function(NIC, "8086:1520", VFIO_PCI, Some(9))
            .link("/proc/77/fd/5", "/dev/vfio/9")
            .with("/proc/77/comm", "qemu-system-x86\n");
        let by = recorded.machine().user_space_use(address(NIC), None);
        assert_eq!(by, Some(Use::Process { pid: 77, name: "qemu-system-x86".to_owned() }));
    }
}
