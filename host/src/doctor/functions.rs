//! PFs and VFs.

use super::{Item, Patient};
use crate::inventory::{PhysicalFunction, VFIO_PCI, VirtualFunction};
use crate::machine::Machine;
use crate::tree::{driver, link, named};
use crate::vfs::describe;

pub(super) fn examine(patient: &Patient) -> Vec<Item> {
    let inventory = &patient.inventory;
    let mut items = Vec::new();
    for pf in &inventory.physical_functions {
        items.push(physical(pf));
        items.extend(pf.vfs.iter().map(|vf| virtual_function(patient.machine, vf)));
    }
    items.extend(inventory.others.iter().map(|vf| virtual_function(patient.machine, vf)));
    items.push(summary(patient));
    items
}

fn physical(pf: &PhysicalFunction) -> Item {
    let subject = format!("PF {}", named(&pf.function));
    let firmware = pf.firmware.as_ref().map(|version| format!(" (firmware {version})")).unwrap_or_default();
    let found = format!(
        "{} {}{firmware}, {} of {} VFs",
        pf.function.ids,
        driver(&pf.function),
        pf.num_vfs,
        pf.total_vfs
    );
    let Some(interface) = pf.function.interfaces.first() else { return Item::ok(subject, found) };
    let found = format!("{found}, link {}", link(pf));
    match (pf.num_vfs, pf.up, pf.carrier) {
        (0, ..) | (_, true, true) => Item::ok(subject, found),
        (_, false, _) => {
            Item::warning(subject, format!("{found}: its VFs get no answer from it, and have no link"))
                .mended_by(format!("ip link set {interface} up"))
        }
        (_, true, false) => Item::warning(subject, format!("{found}: nor have its VFs one"))
            .mended_by(format!("look at cable, transceiver and switch port: ethtool {interface}")),
    }
}

fn virtual_function(machine: &Machine, vf: &VirtualFunction) -> Item {
    let function = &vf.function;
    let address = function.address;
    let subject = format!("VF {}", named(function));
    let mut words = vec![format!("{} {}", function.ids, driver(function))];
    words.push(match (function.group, function.companions.as_slice()) {
        (None, _) => "no IOMMU group".to_owned(),
        (Some(group), []) => format!("alone in group {group}"),
        (Some(group), others) => {
            let others: Vec<String> = others.iter().map(ToString::to_string).collect();
            format!("in group {group} with {}", others.join(", "))
        }
    });
    words.extend(vf.settings.as_ref().map(describe));
    words.extend(vf.relay.map(|relay| format!("relay {relay}")));
    let found = words.join(", ");
    if function.driver.as_deref() != Some(VFIO_PCI) {
        return Item::ok(subject, found);
    }
    if let Err(error) = machine.sysfs().ready(address) {
        let item = Item::failure(subject, format!("{found}: {error}"));
        return match function.group {
            // VFIO makes one in no-IOMMU mode, for those that it gets from then on.
            None if machine.noiommu_is_on() => {
                item.mended_by(format!("port_control unbind {address} && port_control bind {address}"))
            }
            None => item.mended_by("see IOMMU above"),
            Some(_) => item.mended_by(format!("port_control bind {}", texts(function))),
        };
    }
    match &vf.settings {
        Some(settings) if !settings.has_mac() => Item::warning(
            subject,
            format!("{found}: without an address of its own it gets another one each time"),
        )
        .mended_by(format!("port_control vfs set {address} --mac 52:54:00:XX:XX:XX (one of yours)")),
        _ => Item::ok(subject, found),
    }
}

fn texts(function: &crate::inventory::Function) -> String {
    let all = std::iter::once(&function.address).chain(&function.companions);
    all.map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Whether there is a VF to forward at all.
fn summary(patient: &Patient) -> Item {
    let inventory = &patient.inventory;
    let subject = "VFs for relays";
    let vfs: Vec<&VirtualFunction> = inventory.vfs().map(|(_, vf)| vf).collect();
    let ready = vfs.iter().filter(|vf| vf.function.driver.as_deref() == Some(VFIO_PCI)).count();
    if ready > 0 {
        return Item::ok(subject, format!("{ready} of {} VFs are with vfio-pci", vfs.len()));
    }
    if let Some(vf) = vfs.first() {
        return Item::warning(subject, format!("none of {} VFs is with vfio-pci", vfs.len()))
            .mended_by(format!("port_control bind {}", vf.function.address));
    }
    match inventory.physical_functions.iter().find(|pf| pf.total_vfs > 0) {
        Some(pf) => Item::warning(subject, "there are none yet").mended_by(format!(
            "port_control vfs create {} {} --up",
            pf.name(),
            pf.total_vfs.min(2)
        )),
        None => Item::warning(subject, "no function of this machine has VFs or can have any")
            .mended_by("turn SR-IOV on in the firmware (BIOS setup) and in the NIC's own configuration"),
    }
}
