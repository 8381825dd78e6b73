//! Hugepages, and how much memory may be locked.

use super::{Item, Patient};
use crate::machine::Machine;

/// Bit of `CAP_IPC_LOCK` (capabilities(7)): VFIO does not hold its owner to the limit.
const IPC_LOCK: u32 = 14;

pub(super) fn examine(patient: &Patient) -> Vec<Item> {
    vec![hugepages(patient.machine), locked(patient)]
}

/// VMs may have them; the daemon works without, but for no-IOMMU mode, where a device finds memory by its physical address.
fn hugepages(machine: &Machine) -> Item {
    let folder = "/sys/kernel/mm/hugepages";
    let sizes = machine.names(folder).into_iter().filter_map(|name| {
        let size: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let number = |file| machine.number(format!("{folder}/{name}/{file}"));
        let (all, free) = (number("nr_hugepages")?, number("free_hugepages").unwrap_or(0));
        (all > 0).then(|| format!("{all} of {} ({free} free)", shown(size)))
    });
    let sizes: Vec<String> = sizes.collect();
    let small = format!("{folder}/hugepages-2048kB");
    if machine.noiommu_is_on() && machine.number(format!("{small}/nr_hugepages")).unwrap_or(0) == 0 {
        return Item::failure(
            "hugepages",
            "none of 2 MiB; a VF without an IOMMU needs some that follow one another",
        )
        .mended_by("at boot: hugepages=64 on the kernel line")
        .mended_by(format!("now, as long as memory is not in pieces: echo 64 > {small}/nr_hugepages"));
    }
    let mounts = machine.text("/proc/mounts").unwrap_or_default();
    let mounts: Vec<&str> = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .filter(|fields| fields.get(2) == Some(&"hugetlbfs"))
        .filter_map(|fields| fields.get(1).copied())
        .collect();
    let mounts = if mounts.is_empty() { "no hugetlbfs mount".to_owned() } else { mounts.join(", ") };
    let sizes = if sizes.is_empty() { "none, and none are needed".to_owned() } else { sizes.join(", ") };
    Item::ok("hugepages", format!("{sizes}; {mounts}"))
}

fn shown(kibibytes: u64) -> String {
    if kibibytes >= 1 << 20 { format!("{} GiB", kibibytes >> 20) } else { format!("{} MiB", kibibytes >> 10) }
}

fn locked(patient: &Patient) -> Item {
    let subject = "locked memory";
    let process = patient.met.daemon().and_then(|daemon| daemon.process);
    let Some(pid) = process else {
        return Item::ok(subject, "no daemon runs; the unit that is installed allows it any amount");
    };
    if is_capable(patient.machine, pid) {
        return Item::ok(subject, "the daemon may lock any amount (CAP_IPC_LOCK)");
    }
    match limit(patient.machine, pid).as_deref() {
        Some("unlimited") => Item::ok(subject, "the daemon may lock any amount"),
        limit => Item::warning(
            subject,
            format!(
                "the daemon may lock {} bytes; each VF takes some MiB, zero-copy all of a VM's memory",
                limit.unwrap_or("unknown")
            ),
        )
        .mended_by("in the unit: LimitMEMLOCK=infinity; in a shell: ulimit -l unlimited"),
    }
}

fn is_capable(machine: &Machine, pid: u32) -> bool {
    let status = machine.text(format!("/proc/{pid}/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    bits & 1 << IPC_LOCK != 0
}

/// The soft limit, as `/proc/PID/limits` has it.
fn limit(machine: &Machine, pid: u32) -> Option<String> {
    let limits = machine.text(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next().map(str::to_owned)
}
