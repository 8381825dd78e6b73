//! PFs, VFs and what holds them, as sysfs and rtnetlink show them.

use pmd::Address;
use pmd::pci::Ids;
use serde::{Serialize, Serializer};

use crate::daemon::Daemon;
use crate::error::HostError;
use crate::kernel::VfSettings;
use crate::machine::Machine;

/// Where sysfs lists PCI functions.
const DEVICES: &str = "/sys/bus/pci/devices";
/// Name of the kernel driver that hands a function to user space.
pub(crate) const VFIO_PCI: &str = "vfio-pci";
/// Base class of network controllers (PCI Code and ID Assignment).
const NETWORK: u32 = 0x02;
/// Base class of bridges.
const BRIDGE: u32 = 0x06;
/// VFs whose PF no machine ever shows: the ENA of a cloud instance.
const VFS_ALONE: [Ids; 2] = [Ids { vendor: 0x1d0f, device: 0xec20 }, Ids { vendor: 0x1d0f, device: 0xec21 }];

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Function {
    /// Its address.
    #[serde(rename = "pci_addr", serialize_with = "as_text")]
    pub address: Address,
    /// Vendor and device id: `8086:10ca`.
    #[serde(serialize_with = "as_text")]
    pub ids: Ids,
    /// The kernel driver that holds it.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// The other members of that group, without bridges.
    #[serde(serialize_with = "as_texts")]
    pub companions: Vec<Address>,
    /// Its network interfaces in this network namespace.
    pub interfaces: Vec<String>,
    /// Its NUMA node, on machines with several.
    pub numa_node: Option<u32>,
}

/// A function that can have VFs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PhysicalFunction {
    /// The function itself.
    #[serde(flatten)]
    pub function: Function,
    /// How many VFs it can have (`sriov_totalvfs`).
    pub total_vfs: u32,
    /// How many it has (`sriov_numvfs`).
    pub num_vfs: u32,
    /// Whether it is a network interface that is up.
    pub up: bool,
    /// Whether that has a carrier.
    pub carrier: bool,
    /// Version of its firmware, where the driver says so.
    pub firmware: Option<String>,
    /// Its VFs, by number.
    pub vfs: Vec<VirtualFunction>,
}

/// A VF.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VirtualFunction {
    /// The function itself.
    #[serde(flatten)]
    pub function: Function,
    /// Its number on its PF; `None` where the PF is not this machine's.
    pub index: Option<u32>,
    /// What its PF has set for it, where that can be asked.
    pub settings: Option<VfSettings>,
    /// The relay that has it.
    pub relay: Option<u32>,
}

/// All of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// Functions that can have VFs, by address.
    pub physical_functions: Vec<PhysicalFunction>,
    /// VFs whose PF is another machine's, and network functions without VFs that vfio-pci has.
    pub others: Vec<VirtualFunction>,
}

pub(crate) fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn as_texts<S: Serializer>(values: &[Address], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(ToString::to_string))
}

impl Inventory {
    /// Looks at everything that has to do with VFs.
    pub fn of(machine: &Machine, daemon: Option<&Daemon>) -> Self {
        let mut inventory = Self::default();
        for address in machine.functions() {
            if let Some(pf) = machine.physical_function(address, daemon) {
                inventory.physical_functions.push(pf);
            } else if machine.sysfs().physical_function(address).is_none()
                && let Ok(function) = machine.function(address)
                && (VFS_ALONE.contains(&function.ids)
                    || function.driver.as_deref() == Some(VFIO_PCI)
                        && machine.class(address) == Some(NETWORK))
            {
                let relay = daemon.and_then(|daemon| daemon.relay_of(address)).map(|relay| relay.id);
                inventory.others.push(VirtualFunction { function, index: None, settings: None, relay });
            }
        }
        inventory
    }

    /// All VFs, with their PF where that is this machine's.
    pub fn vfs(&self) -> impl Iterator<Item = (Option<&PhysicalFunction>, &VirtualFunction)> {
        let here = self.physical_functions.iter().flat_map(|pf| pf.vfs.iter().map(move |vf| (Some(pf), vf)));
        here.chain(self.others.iter().map(|vf| (None, vf)))
    }
}

impl PhysicalFunction {
    /// What people call it: its interface if it has one, else its address.
    pub fn name(&self) -> String {
        self.function.interfaces.first().cloned().unwrap_or_else(|| self.function.address.to_string())
    }
}

impl Machine {
    /// All PCI functions, in order.
    pub(crate) fn functions(&self) -> Vec<Address> {
        let mut functions: Vec<Address> =
            self.names(DEVICES).iter().filter_map(|name| name.parse().ok()).collect();
        functions.sort();
        functions
    }

    /// Path of a function's file in sysfs.
    pub(crate) fn device(address: Address, file: &str) -> String {
        format!("{DEVICES}/{address}/{file}")
    }

    /// Base class of a function.
    fn class(&self, address: Address) -> Option<u32> {
        let class = self.text(Self::device(address, "class"))?;
        Some(u32::from_str_radix(class.strip_prefix("0x")?, 16).ok()? >> 16)
    }

    /// Whether it is a bridge, which has no driver that could do DMA.
    pub(crate) fn is_bridge(&self, address: Address) -> bool {
        self.class(address) == Some(BRIDGE)
    }

    /// Whether it is a network controller.
    pub(crate) fn is_network(&self, address: Address) -> bool {
        self.class(address) == Some(NETWORK)
    }

    /// A function; an error where there is none with this address.
    pub(crate) fn function(&self, address: Address) -> Result<Function, HostError> {
        let sysfs = self.sysfs();
        let ids = sysfs.ids(address).map_err(|error| HostError::Refused(error.to_string()))?;
        let group = sysfs.group(address);
        let mut companions = group.and_then(|group| sysfs.members(group).ok()).unwrap_or_default();
        companions.retain(|member| *member != address && !self.is_bridge(*member));
        Ok(Function {
            address,
            ids,
            driver: sysfs.driver(address),
            group,
            companions,
            interfaces: self.names(Self::device(address, "net")),
            // -1 where firmware does not say.
            numa_node: self.number(Self::device(address, "numa_node")),
        })
    }

    /// A function that can have VFs; `None` for all others.
    pub(crate) fn physical_function(
        &self,
        address: Address,
        daemon: Option<&Daemon>,
    ) -> Option<PhysicalFunction> {
        let total_vfs = self.number(Self::device(address, "sriov_totalvfs"))?;
        let function = self.function(address).ok()?;
        let interface = function.interfaces.first();
        let settings = interface.and_then(|name| self.kernel().vf_settings(name).ok()).unwrap_or_default();
        let vfs = self.vfs_of(address);
        let vfs = vfs.into_iter().filter_map(|(index, vf)| {
            Some(VirtualFunction {
                function: self.function(vf).ok()?,
                index: Some(index),
                settings: settings.iter().find(|settings| settings.index == index).cloned(),
                relay: daemon.and_then(|daemon| daemon.relay_of(vf)).map(|relay| relay.id),
            })
        });
        Some(PhysicalFunction {
            total_vfs,
            num_vfs: self.number(Self::device(address, "sriov_numvfs")).unwrap_or(0),
            up: interface.is_some_and(|name| self.is_up(name)),
            carrier: interface.is_some_and(|name| self.has_carrier(name)),
            firmware: self.firmware(&function),
            vfs: vfs.collect(),
            function,
        })
    }

    /// Version of a function's firmware. Devlink has the versions of all parts, of which `fw` stands for the whole; most
    /// drivers tell only ethtool, and that by its ioctl (ethtool's netlink family has no message for it).
    fn firmware(&self, function: &Function) -> Option<String> {
        let versions = self.kernel().running_versions(function.address).unwrap_or_default();
        if let Some(whole) = versions.iter().find(|version| version.name == "fw") {
            return Some(whole.value.clone());
        }
        let parts = versions.iter().filter(|version| version.name.starts_with("fw."));
        let parts: Vec<String> = parts.map(|part| format!("{} {}", part.name, part.value)).collect();
        if !parts.is_empty() {
            return Some(parts.join(", "));
        }
        let info = self.kernel().driver_info(function.interfaces.first()?).ok()?;
        Some(info.firmware).filter(|firmware| !firmware.is_empty())
    }

    /// VFs of a PF, by number.
    pub(crate) fn vfs_of(&self, pf: Address) -> Vec<(u32, Address)> {
        let mut vfs: Vec<(u32, Address)> = self
            .names(format!("{DEVICES}/{pf}"))
            .iter()
            .filter_map(|name| {
                let index = name.strip_prefix("virtfn")?.parse().ok()?;
                Some((index, self.target(Self::device(pf, name))?.parse().ok()?))
            })
            .collect();
        vfs.sort();
        vfs
    }

    /// The function behind a network interface.
    pub(crate) fn function_of(&self, interface: &str) -> Result<Address, HostError> {
        let link = format!("/sys/class/net/{interface}");
        // The name comes from the command line.
        if interface.is_empty()
            || interface.contains('/')
            || interface.starts_with('.')
            || !self.exists(&link)
        {
            return HostError::refused(format!(
                "there is no network interface '{interface}'; ip link shows those that there are, and a PCI address is \
                 written 0000:02:08.0"
            ));
        }
        match self.target(format!("{link}/device")).and_then(|name| name.parse().ok()) {
            Some(address) => Ok(address),
            None => HostError::refused(format!(
                "the network interface '{interface}' is no PCI function; it has no VFs and cannot be handed over"
            )),
        }
    }

    /// Whether an interface is up, with or without a carrier.
    pub(crate) fn is_up(&self, interface: &str) -> bool {
        let flags = self.text(format!("/sys/class/net/{interface}/flags")).unwrap_or_default();
        // IFF_UP of netdevice(7).
        flags.strip_prefix("0x").and_then(|flags| u32::from_str_radix(flags, 16).ok()).unwrap_or(0) & 1 != 0
    }

    pub(crate) fn has_carrier(&self, interface: &str) -> bool {
        self.number(format!("/sys/class/net/{interface}/carrier")) == Some(1)
    }
}

#[cfg(test)]
mod tests {
    use crate::recorded::{Recorded, hosts};

    use super::*;

    #[test]
    fn an_82576_with_vfs_is_seen_whole() {
        let recorded = hosts::i350();
        let inventory = Inventory::of(&recorded.machine(), None);
        let pf = &inventory.physical_functions[0];
        assert_eq!((pf.name().as_str(), pf.total_vfs, pf.num_vfs), ("eno1", 7, 2));
        assert_eq!(pf.firmware.as_deref(), Some("1.63, 0x800009fa"));
        let vf = &pf.vfs[1];
        assert_eq!((vf.index, vf.function.driver.as_deref()), (Some(1), Some("igbvf")));
        assert_eq!(vf.settings.as_ref().unwrap().mac, "52:54:00:00:00:11");
    }

    #[test]
    fn firmware_is_asked_of_devlink_first_and_of_ethtool_where_that_has_none() {
        const PF: &str = "0000:03:00.0";
        let firmware = |recorded: Recorded| {
            let inventory = Inventory::of(&recorded.machine(), None);
            inventory.physical_functions[0].firmware.clone().unwrap_or_default()
        };
        assert_eq!(firmware(hosts::i350().runs(PF, &[("asic.id", "1")])), "1.63, 0x800009fa");
        assert_eq!(
            firmware(hosts::i350().runs(PF, &[("fw.mgmt", "7.3.2"), ("fw.app", "1.3.30.0")])),
            "fw.mgmt 7.3.2, fw.app 1.3.30.0"
        );
        assert_eq!(
            firmware(hosts::i350().runs(PF, &[("fw.psid", "MT_1"), ("fw", "16.35.2000")])),
            "16.35.2000"
        );
        // Without an interface only devlink can be asked.
        let bare = hosts::i350().without("/sys/bus/pci/devices/0000:03:00.0/net");
        assert_eq!(firmware(bare.runs(PF, &[("fw", "16.35.2000")])), "16.35.2000");
    }

    #[test]
    fn a_vf_without_a_pf_is_seen_too() {
        let inventory = Inventory::of(&hosts::ena().machine(), None);
        assert!(inventory.physical_functions.is_empty());
        let names: Vec<_> = inventory.others.iter().map(|vf| vf.function.address.to_string()).collect();
        assert_eq!(names, ["0000:00:05.0", "0000:00:06.0"]);
    }

    #[test]
    fn interfaces_that_are_not_there_or_no_pci_functions_are_told_apart() {
        let machine = Recorded::new().interface("br0", None).machine();
        for (name, words) in
            [("eth7", "no network interface 'eth7'"), ("br0", "no PCI function"), ("../x", "no network")]
        {
            let error = machine.function_of(name).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
