//! Where workers and VFs are: isolated CPUs, NUMA nodes.

use std::collections::BTreeSet;

use super::{Item, Patient};
use crate::daemon::Relay;
use crate::inventory::{Function, VFIO_PCI};
use crate::machine::Machine;

pub(super) fn examine(patient: &Patient) -> Vec<Item> {
    let mut items = vec![isolated(patient)];
    items.push(placement(patient));
    items
}

/// CPUs of the workers: those that there are, or will be.
fn workers(patient: &Patient) -> BTreeSet<u32> {
    match patient.plan() {
        Some(plan) => plan.cpus.iter().copied().collect(),
        None => patient.relays().iter().flat_map(|relay| relay.cpus.clone()).collect(),
    }
}

fn isolated(patient: &Patient) -> Item {
    let subject = "CPUs";
    let isolated = patient.machine.text("/sys/devices/system/cpu/isolated").unwrap_or_default();
    let online = patient.machine.text("/sys/devices/system/cpu/online").unwrap_or_default();
    let workers = workers(patient);
    let said = if isolated.is_empty() { "none isolated".to_owned() } else { format!("isolated {isolated}") };
    let who = if workers.is_empty() {
        "no workers known".to_owned()
    } else {
        format!("workers on {}", list(&workers))
    };
    let found = format!("online {online}, {said}, {who}");
    let reserved = numbers(&isolated);
    let outside: BTreeSet<u32> = workers.difference(&reserved).copied().collect();
    // Whoever isolates CPUs means them for somebody; without, workers share, which is how machines are delivered.
    if reserved.is_empty() || outside.is_empty() {
        return Item::ok(subject, found);
    }
    Item::warning(subject, format!("{found}: {} are workers' and not isolated", list(&outside))).mended_by(
        format!(
            "give the daemon the isolated ones: VIRTIOFWD_CPU_MASK={isolated} in /etc/default/virtioforwarder"
        ),
    )
}

fn placement(patient: &Patient) -> Item {
    let subject = "NUMA";
    let machine = patient.machine;
    let nodes: Vec<(u32, BTreeSet<u32>)> = machine
        .names("/sys/devices/system/node")
        .iter()
        .filter_map(|name| {
            let node = name.strip_prefix("node")?.parse().ok()?;
            Some((node, cpus_of(machine, node)))
        })
        .collect();
    if nodes.len() < 2 {
        return Item::ok(subject, "one node");
    }
    let workers = workers(patient);
    let mut wrong = Vec::new();
    let mut remedies = Vec::new();
    for (_, vf) in patient.inventory.vfs() {
        let Function { address, numa_node: Some(node), driver, .. } = &vf.function else { continue };
        let Some((_, near)) = nodes.iter().find(|(number, _)| number == node) else { continue };
        match patient.relays().iter().find(|relay| relay.function == Some(*address)) {
            Some(Relay { id, cpus, .. }) if cpus.iter().any(|cpu| !near.contains(cpu)) => {
                let cpus = list(&cpus.iter().copied().collect());
                wrong.push(format!(
                    "VF {address} of relay {id} is on node {node}, its workers on CPUs {cpus} are not"
                ));
                let near = list(near);
                remedies.push(format!(
                    "workers among CPUs {near}: VIRTIOFWD_CPU_MASK, and VIRTIOFWD_CPU_PINS={id}:CPU"
                ));
            }
            // Nobody has it yet, and whoever gets it will be far away.
            None if driver.as_deref() == Some(VFIO_PCI)
                && !workers.is_empty()
                && workers.is_disjoint(near) =>
            {
                let cpus = list(&workers);
                wrong.push(format!("VF {address} is on node {node}, all workers, on CPUs {cpus}, are not"));
                remedies.push(format!("a worker among CPUs {}: VIRTIOFWD_CPU_MASK", list(near)));
            }
            _ => {}
        }
    }
    if wrong.is_empty() {
        return Item::ok(subject, format!("{} nodes; VFs are near their workers", nodes.len()));
    }
    remedies.dedup();
    remedies.into_iter().fold(Item::warning(subject, wrong.join("; ")), Item::mended_by)
}

fn cpus_of(machine: &Machine, node: u32) -> BTreeSet<u32> {
    numbers(&machine.text(format!("/sys/devices/system/node/node{node}/cpulist")).unwrap_or_default())
}

/// The numbers of `0-3,8`.
fn numbers(list: &str) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for range in list.split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        if let (Ok(first), Ok(last)) = (first.parse(), last.parse::<u32>()) {
            numbers.extend(first..=last);
        }
    }
    numbers
}

fn list(numbers: &BTreeSet<u32>) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
