//! The kernel modules that hand devices out.

use super::{Item, Patient};
use crate::inventory::VFIO_PCI;
use crate::machine::Machine;
use crate::noiommu;

const SUBJECT: &str = "VFIO modules";

pub(super) fn examine(patient: &Patient) -> Vec<Item> {
    vec![modules(patient.machine), no_iommu(patient.machine)]
}

fn modules(machine: &Machine) -> Item {
    let wanted = ["vfio", "vfio_iommu_type1", "vfio_pci"];
    let built_in = machine.exists(format!("/sys/bus/pci/drivers/{VFIO_PCI}"));
    let missing: Vec<&str> = wanted.into_iter().filter(|name| !machine.has_module(name)).collect();
    if built_in {
        let mut found = vec!["loaded or built in".to_owned()];
        for (module, parameter) in [
            ("vfio_iommu_type1", "allow_unsafe_interrupts"),
            ("vfio_iommu_type1", "dma_entry_limit"),
            ("vfio_pci", "disable_idle_d3"),
            ("vfio_pci", "enable_sriov"),
            // Of packaging/vfio-wc.
            ("vfio_pci_core", "wc_devices"),
        ] {
            if let Some(value) = machine.text(format!("/sys/module/{module}/parameters/{parameter}")) {
                found.push(format!("{module}.{parameter}={value}"));
            }
        }
        return Item::ok(SUBJECT, found.join(", "));
    }
    let item = Item::failure(SUBJECT, format!("not loaded: {}", missing.join(", ")));
    let release = machine.text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let list = machine.text(format!("/lib/modules/{release}/modules.dep"));
    if list.is_some_and(|list| !list.contains("/vfio-pci.ko")) {
        return item.mended_by(format!(
            "install the modules of the running kernel {release} that are missing (linux-modules-extra-{release}, \
             kernel-modules-extra)"
        ));
    }
    item.mended_by("modprobe vfio-pci (port_control bind does that)")
        .mended_by("at every boot: echo vfio-pci > /etc/modules-load.d/vfio-pci.conf")
}

fn no_iommu(machine: &Machine) -> Item {
    let subject = "no-IOMMU mode";
    match noiommu::status(machine).enabled {
        None => Item::ok(subject, "this kernel has none, or the module vfio is not loaded"),
        Some(false) => Item::ok(subject, "off"),
        Some(true) => {
            Item::warning(subject, "ON: a VF, and whoever may open /dev/vfio/noiommu-*, reaches all memory")
                .mended_by("if the machine has an IOMMU: port_control noiommu disable")
        }
    }
}
