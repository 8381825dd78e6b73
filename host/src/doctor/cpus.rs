//! Where workers and VFs are: isolated CPUs, NUMA nodes.

use std::collections::BTreeSet;

use super::{Item, Patient};
use crate::machine::Machine;

pub(super) fn examine(patient: &Patient) -> Vec<Item> {
    let mut items = vec![isolated(patient)];
    items.push(placement(patient));
    items
}

fn workers(patient: &Patient) -> BTreeSet<u32> {
    patient
        .met
        .daemon()
        .iter()
        .flat_map(|daemon| &daemon.relays)
        .flat_map(|relay| relay.cpus.clone())
        .collect()
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
    let mut wrong = Vec::new();
    for relay in patient.met.daemon().iter().flat_map(|daemon| &daemon.relays) {
        let Some(function) = relay.function else { continue };
        let vf = patient.inventory.vfs().find(|(_, vf)| vf.function.address == function);
        let Some(node) = vf.and_then(|(_, vf)| vf.function.numa_node) else { continue };
        let near = nodes.iter().find(|(number, _)| *number == node).map(|(_, cpus)| cpus);
        if let Some(near) = near
            && relay.cpus.iter().any(|cpu| !near.contains(cpu))
        {
            wrong.push((relay.id, function, node, list(&relay.cpus.iter().copied().collect()), list(near)));
        }
    }
    if wrong.is_empty() {
        return Item::ok(
            subject,
            format!("{} nodes; every VF that a relay has is near its workers", nodes.len()),
        );
    }
    let found = wrong.iter().map(|(relay, vf, node, cpus, _)| {
        format!("VF {vf} of relay {relay} is on node {node}, its workers on CPUs {cpus} are not")
    });
    let mut item = Item::warning(subject, found.collect::<Vec<_>>().join("; "));
    for (relay, .., near) in &wrong {
        item = item.mended_by(format!(
            "workers among CPUs {near}: VIRTIOFWD_CPU_MASK, and VIRTIOFWD_CPU_PINS={relay}:CPU"
        ));
    }
    item
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
