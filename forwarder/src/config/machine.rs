//! What the machine has: CPUs, and the accounts of libvirt's VMs. And the CPUs that are asked for.

use std::collections::BTreeSet;
use std::fs;

use nix::unistd::{Group, User};
use rustix::thread::{CpuSet, sched_getaffinity};

/// The CPUs that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Online CPUs.
    pub online: BTreeSet<usize>,
    /// Those that this process may use.
    pub allowed: BTreeSet<usize>,
    /// The user that libvirt's VMs run as, if there is one and this process may give it files.
    pub vm_user: Option<u32>,
    /// The group likewise.
    pub vm_group: Option<u32>,
}

/// Accounts of libvirt's VMs on Debian and Ubuntu; the C daemon gave its sockets to these, too.
const VM_USER: &str = "libvirt-qemu";
const VM_GROUP: &str = "kvm";

impl Machine {
    /// This machine.
    pub fn this() -> Self {
        let allowed: BTreeSet<usize> = match sched_getaffinity(None) {
            Ok(set) => (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect(),
            // Never seen; CPU 0 is as good as anything.
            Err(_) => BTreeSet::from([0]),
        };
        let online = fs::read_to_string("/sys/devices/system/cpu/online").ok();
        let online = online.and_then(|list| parse(list.trim()).ok()).unwrap_or_else(|| allowed.clone());
        let root = rustix::process::geteuid().is_root();
        let vm_user = User::from_name(VM_USER).ok().flatten().filter(|_| root).map(|user| user.uid.as_raw());
        let vm_group =
            Group::from_name(VM_GROUP).ok().flatten().filter(|_| root).map(|group| group.gid.as_raw());
        Self { online, allowed, vm_user, vm_group }
    }

    /// Worker CPUs when nobody says which: all but the first, which is left to everything else; a machine with one CPU
    /// has no choice.
    pub(super) fn default_workers(&self) -> BTreeSet<usize> {
        match self.allowed.len() {
            0 | 1 => self.allowed.clone(),
            _ => self.allowed.iter().copied().skip(1).collect(),
        }
    }

    /// Checks the worker CPUs that are asked for.
    pub(super) fn workers(&self, text: &str) -> Result<BTreeSet<usize>, String> {
        let cpus = parse(text)?;
        let absent: BTreeSet<usize> = cpus.difference(&self.online).copied().collect();
        if !absent.is_empty() {
            let (which, online) = (list(&absent), list(&self.online));
            return Err(format!("CPU {which} is absent or offline; online are {online}"));
        }
        let forbidden: BTreeSet<usize> = cpus.difference(&self.allowed).copied().collect();
        if !forbidden.is_empty() {
            let (which, allowed) = (list(&forbidden), list(&self.allowed));
            return Err(format!(
                "this process may not use CPU {which}, only {allowed}; change that (systemd: CPUAffinity=, \
                 AllowedCPUs=) or choose among these"
            ));
        }
        Ok(cpus)
    }
}

/// `1,2`, `1-3,8` or `0x6`.
fn parse(text: &str) -> Result<BTreeSet<usize>, String> {
    let wrong = || format!("'{text}' is no list of CPUs; write 1,2 or 1-3 or the bit mask 0x6");
    let cpus = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(mask) => bits(mask).ok_or_else(wrong)?,
        None => {
            let mut cpus = BTreeSet::new();
            for range in text.split(',') {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let number = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
                cpus.extend((number(first)?..=number(last)?).map(usize::from));
            }
            cpus
        }
    };
    if cpus.is_empty() { Err(wrong()) } else { Ok(cpus) }
}

/// The bits of a hexadecimal number of any length.
fn bits(mask: &str) -> Option<BTreeSet<usize>> {
    let mut set = BTreeSet::new();
    for (index, digit) in mask.chars().rev().enumerate() {
        let digit = digit.to_digit(16)?;
        set.extend((0..4).filter(|bit| digit & (1 << bit) != 0).map(|bit| index * 4 + bit));
    }
    Some(set)
}

/// `0-3,8`.
pub(super) fn list(cpus: &BTreeSet<usize>) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let text = |(first, last): &(usize, usize)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            online: (0..8).collect(),
            allowed: (0..4).collect(),
            vm_user: Some(64055),
            vm_group: Some(108),
        }
    }

    #[test]
    fn lists_and_masks() {
        for (text, expected) in
            [("1,2", "1-2"), ("2", "2"), ("1-3, 0", "0-3"), ("0x6", "1-2"), ("0xA", "1,3"), ("3,3", "3")]
        {
            assert_eq!(list(&machine().workers(text).unwrap()), expected, "{text}");
        }
        assert_eq!(list(&parse("0x10000000000000000").unwrap()), "64");
        for bad in ["", "x", "1,", "1;2", "0x", "0x0", "0xg", "-1", "3-1", "99999999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn absent_and_forbidden_cpus_are_named() {
        let error = machine().workers("1,9-10").unwrap_err();
        assert_eq!(error, "CPU 9-10 is absent or offline; online are 0-7");
        let error = machine().workers("1,5").unwrap_err();
        assert!(error.starts_with("this process may not use CPU 5, only 0-3"), "{error}");
    }

    #[test]
    fn the_first_cpu_is_left_to_others_unless_it_is_the_only_one() {
        assert_eq!(list(&machine().default_workers()), "1-3");
        let one =
            Machine { online: [0, 1].into(), allowed: [1].into(), vm_user: Some(64055), vm_group: Some(108) };
        assert_eq!(list(&one.default_workers()), "1");
        assert!(!Machine::this().allowed.is_empty());
    }
}
