//! Whether DMA and interrupts of a device can be confined.

use super::{Item, Patient};
use crate::machine::Machine;

const SUBJECT: &str = "IOMMU";
const INTERRUPTS: &str = "interrupt remapping";
/// Taken by VFIO in place of interrupt remapping: for groups, and for device files.
const UNSAFE_INTERRUPTS: [&str; 2] = [
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "/sys/module/iommufd/parameters/allow_unsafe_interrupts",
];

pub(super) fn examine(patient: &Patient) -> Vec<Item> {
    let machine = patient.machine;
    vec![groups(machine), interrupts(machine)]
}

fn groups(machine: &Machine) -> Item {
    let groups = machine.groups();
    let line = machine.text("/proc/cmdline").unwrap_or_default();
    let words =
        |name: &str| line.split_whitespace().filter(|word| word.starts_with(name)).collect::<Vec<_>>();
    let said = [words("intel_iommu="), words("amd_iommu="), words("iommu=")].concat();
    let said = match said.as_slice() {
        [] => "the kernel line says nothing about it".to_owned(),
        said => format!("the kernel line says {}", said.join(" ")),
    };
    if groups > 0 {
        let units = machine.names("/sys/class/iommu").join(", ");
        let units = if units.is_empty() { String::new() } else { format!(" ({units})") };
        return Item::ok(SUBJECT, format!("on{units}, {groups} groups; {said}"));
    }
    if machine.noiommu_is_on() {
        let found =
            format!("no groups; VFs are used in no-IOMMU mode instead, and can reach all memory; {said}");
        return Item::warning(SUBJECT, found).mended_by(
            "where the machine has an IOMMU, turn it on and no-IOMMU mode off: port_control noiommu disable",
        );
    }
    let asked = ["intel_iommu=on", "amd_iommu=on", "iommu=pt"];
    let item = Item::failure(SUBJECT, format!("off: there are no IOMMU groups; {said}"));
    let arguments = arguments(machine);
    if arguments.split(' ').all(|word| line.split_whitespace().any(|had| had == word))
        || !is_x86(machine) && said.contains(asked[2])
    {
        return item
            .mended_by(
                "turn it on in the firmware (BIOS setup): VT-d on Intel, AMD-Vi or IOMMU on AMD, SMMU on Arm",
            )
            .mended_by(
                "in a VM or a cloud without one: port_control noiommu enable (says what it gives up)",
            );
    }
    item.mended_by("turn VT-d (Intel), AMD-Vi (AMD) or the SMMU (Arm) on in the firmware (BIOS setup)")
        .mended_by(format!("{}; then reboot", kernel_line(machine, arguments)))
}

/// What the kernel must be told.
fn arguments(machine: &Machine) -> &'static str {
    let cpu = machine.text("/proc/cpuinfo").unwrap_or_default();
    // AMD-Vi and SMMUs are on when the firmware has them.
    if cpu.contains("GenuineIntel") { "intel_iommu=on iommu=pt" } else { "iommu=pt" }
}

/// How this distribution has it told so.
pub(super) fn kernel_line(machine: &Machine, arguments: &str) -> String {
    let release = machine.text("/etc/os-release").unwrap_or_default();
    let like = |name: &str| {
        release.lines().any(|line| {
            (line.starts_with("ID=") || line.starts_with("ID_LIKE="))
                && line.split(['=', '"', ' ']).any(|word| word == name)
        })
    };
    if like("rhcos") {
        return "apply packaging/openshift/100-worker-vfiopci.yaml (oc apply -f)".to_owned();
    }
    if like("rhel") || like("fedora") {
        return format!("grubby --update-kernel=ALL --args=\"{arguments}\"");
    }
    format!(
        "sed -i 's/^GRUB_CMDLINE_LINUX=\"/&{arguments} /' /etc/default/grub && {}",
        if like("debian") { "update-grub" } else { "grub2-mkconfig -o /boot/grub2/grub.cfg" }
    )
}

fn is_x86(machine: &Machine) -> bool {
    // Arm's cpuinfo names no vendor.
    machine.text("/proc/cpuinfo").is_some_and(|cpu| cpu.contains("vendor_id"))
}

fn interrupts(machine: &Machine) -> Item {
    if !is_x86(machine) {
        return Item::ok(INTERRUPTS, "not a matter of the IOMMU on this architecture");
    }
    // Interrupts that the IOMMU remaps have IR- before the name of their controller.
    if machine.text("/proc/interrupts").unwrap_or_default().contains("IR-") {
        return Item::ok(INTERRUPTS, "on");
    }
    if machine.groups() == 0 {
        return Item::ok(INTERRUPTS, "off, as is the IOMMU");
    }
    if UNSAFE_INTERRUPTS.iter().any(|switch| machine.text(switch).as_deref() == Some("Y")) {
        return Item::warning(
            INTERRUPTS,
            "off, and VFIO is told to do without: a VF could raise any interrupt",
        )
        .mended_by("turn x2APIC and interrupt remapping on in the firmware, where there is such a choice");
    }
    Item::failure(INTERRUPTS, "off; VFIO opens no device without it")
        .mended_by("turn x2APIC and interrupt remapping on in the firmware; no nointremap on the kernel line")
        .mended_by(format!(
            "or, if whoever uses the VFs is trusted: modprobe vfio_iommu_type1 && echo Y > {}",
            UNSAFE_INTERRUPTS[0]
        ))
}
