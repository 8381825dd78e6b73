//! The rebind service: functions that a file gives to vfio-pci, node by node.
//!
//! One file for all nodes of a cluster, with lines `NODE DOMAIN:BUS:DEVICE.FUNCTION`; `DEFAULT` is every node. Comments
//! (`#`) and blank lines are passed over.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use pmd::Address;

use crate::bind::bind;
use crate::error::HostError;
use crate::machine::Machine;

/// Where the file is unless it is named: the guide has both spellings.
pub const FILES: [&str; 2] = ["/etc/sysconfig/vfio-pci-devices", "/etc/sysconfig/vfio-pci-device"];
/// The node that means all of them.
const EVERY_NODE: &str = "DEFAULT";

/// A line that asks for something.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    node: String,
    address: Address,
}

/// Where the report goes, as it comes to be: what was done, and what went wrong.
pub trait Report {
    /// A line of the journal.
    fn say(&mut self, line: fmt::Arguments<'_>);
    /// What went wrong.
    fn complain(&mut self, line: fmt::Arguments<'_>);
}

/// Binds what the file has for this node. Goes on after a failure; returns how many there were. An error where there is no
/// file to read.
pub fn rebind(machine: &Machine, file: Option<&Path>, report: &mut dyn Report) -> Result<usize, HostError> {
    let (path, text) = read(machine, file)?;
    let hostname = machine.hostname();
    report.say(format_args!("Hostname is '{hostname}'"));
    let lines: Vec<(usize, Result<Line, String>)> = lines(&text);
    // Members of one IOMMU group may stand on several lines, in any order.
    let ours: BTreeSet<Address> = lines
        .iter()
        .filter_map(|(_, line)| line.as_ref().ok())
        .filter(|line| is_here(&line.node, &hostname))
        .map(|line| line.address)
        .collect();
    let mut failures = 0;
    for (number, line) in lines {
        let line = match line {
            Ok(line) => line,
            Err(cause) => {
                failures += 1;
                report.complain(format_args!("{}:{number}: {cause}", path.display()));
                continue;
            }
        };
        let address = line.address;
        if !is_here(&line.node, &hostname) {
            report.say(format_args!("No host match, skip binding of {address}"));
            continue;
        }
        report.say(format_args!("binding: {address}"));
        let bound = bind(machine, &[address], &ours);
        match bound.and_then(|outcomes| outcomes.into_iter().try_for_each(|one| one.result.map(drop))) {
            Ok(()) => report.say(format_args!("{address} successfully bound to vfio-pci")),
            Err(error) => {
                failures += 1;
                report.complain(format_args!("{address} was not bound to vfio-pci: {error}"));
            }
        }
    }
    Ok(failures)
}

fn read(machine: &Machine, file: Option<&Path>) -> Result<(PathBuf, String), HostError> {
    let candidates: Vec<PathBuf> = match file {
        Some(file) => vec![file.to_owned()],
        None => FILES.iter().map(PathBuf::from).collect(),
    };
    for path in &candidates {
        // A file that is named is where its user says, whatever machine is looked at.
        let place = if file.is_some() { path.clone() } else { machine.file(path) };
        match std::fs::read(&place) {
            Ok(bytes) => return Ok((path.clone(), String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => {}
            Err(error) => {
                return HostError::refused(format!(
                    "cannot read the list of devices '{}': {error}",
                    path.display()
                ));
            }
        }
    }
    HostError::refused(format!(
        "there is no list of devices: neither {} nor {}; write one with lines like 'DEFAULT 0000:03:00.1', or name another \
         file",
        FILES[0], FILES[1]
    ))
}

/// The lines that say something, with their numbers from 1.
fn lines(text: &str) -> Vec<(usize, Result<Line, String>)> {
    let mut lines = Vec::new();
    // Editors of other systems put a mark at the beginning.
    for (number, line) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
        let said = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = said.split_whitespace().collect();
        let result = match words[..] {
            [] => continue,
            [node, address] => match address.parse() {
                Ok(address) => Ok(Line { node: node.to_owned(), address }),
                Err(error) => Err(error.to_string()),
            },
            _ => Err(format!(
                "'{}' is not understood; a line is NODE DOMAIN:BUS:DEVICE.FUNCTION, as in 'worker-0 0000:03:00.1', with \
                 DEFAULT for every node",
                said.trim()
            )),
        };
        lines.push((number, result));
    }
    lines
}

/// Whether a line of `node` is for this host. A node may be named with or without its domain.
fn is_here(node: &str, hostname: &str) -> bool {
    let short = hostname.split('.').next().unwrap_or(hostname);
    node == EVERY_NODE || node.eq_ignore_ascii_case(hostname) || node.eq_ignore_ascii_case(short)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::{Recorded, hosts};

    #[derive(Default)]
    struct Journal(Vec<String>);

    impl Report for Journal {
        fn say(&mut self, line: fmt::Arguments<'_>) {
            self.0.push(line.to_string());
        }
        fn complain(&mut self, line: fmt::Arguments<'_>) {
            self.0.push(format!("! {line}"));
        }
    }

    fn run(recorded: &Recorded) -> (Vec<String>, Result<usize, HostError>) {
        let mut journal = Journal::default();
        let result = rebind(&recorded.machine(), None, &mut journal);
        (journal.0, result)
    }

    fn worker() -> Recorded {
        hosts::prepared()
            .function("0000:03:00.1", "8086:1520", "igbvf", Some(7))
            .function("0000:03:00.2", "8086:1520", "igbvf", Some(8))
            .function("0000:03:00.3", "8086:1520", "", Some(9))
    }

    const LIST: &str = "\
# devices of the cluster
worker-0 0000:03:00.1

worker-1 0000:03:00.2
DEFAULT 0000:03:00.3   # all nodes
";

    #[test]
    fn the_journal_of_the_guide() {
        for file in FILES {
            let recorded = worker().with(file, LIST);
            for _ in 0..2 {
                let (journal, result) = run(&recorded);
                assert_eq!(
                    journal,
                    [
                        "Hostname is 'worker-0'",
                        "binding: 0000:03:00.1",
                        "0000:03:00.1 successfully bound to vfio-pci",
                        "No host match, skip binding of 0000:03:00.2",
                        "binding: 0000:03:00.3",
                        "0000:03:00.3 successfully bound to vfio-pci",
                    ]
                );
                assert_eq!(result, Ok(0));
            }
            assert_eq!(recorded.driver_of("0000:03:00.1").as_deref(), Some("vfio-pci"));
            assert_eq!(recorded.driver_of("0000:03:00.2").as_deref(), Some("igbvf"));
        }
    }

    #[test]
    fn it_goes_on_after_a_failure_and_counts_it() {
        let list = "worker-0 0000:03:00\nworker-0\nDEFAULT 0000:77:00.0\nworker-0 0000:03:00.1 0000:03:00.2\nworker-0 03:00.3\n";
        let (journal, result) = run(&worker().with(FILES[0], list));
        assert_eq!(result, Ok(4));
        let start = |line: &str| line.starts_with("! /etc/sysconfig/vfio-pci-devices:");
        assert!(
            start(&journal[1]) && journal[1].contains(":1: '0000:03:00' is not a PCI address"),
            "{journal:?}"
        );
        assert!(journal[2].contains(":2: 'worker-0' is not understood"), "{journal:?}");
        assert!(
            journal[4].contains("0000:77:00.0 was not bound") && journal[4].contains("lspci -D"),
            "{journal:?}"
        );
        assert!(journal[5].contains(":4: "), "{journal:?}");
        assert_eq!(journal[7], "0000:03:00.3 successfully bound to vfio-pci");
    }

    #[test]
    fn files_from_other_systems_are_understood() {
        let (journal, result) =
            run(&worker().with(FILES[0], "\u{feff}DEFAULT\t0000:03:00.1\r\n\r\nworker-0 03:00.2\r\n"));
        assert_eq!((result, journal.len()), (Ok(0), 5), "{journal:?}");
    }

    #[test]
    fn members_of_one_group_on_several_lines_go_together() {
        let recorded = hosts::prepared().function("0000:03:00.1", "8086:1520", "igbvf", Some(7)).function(
            "0000:03:00.2",
            "8086:1520",
            "igbvf",
            Some(7),
        );
        let (journal, result) = run(&recorded.with(FILES[0], "DEFAULT 03:00.1\nDEFAULT 03:00.2\n"));
        assert_eq!((result, journal.len()), (Ok(0), 5), "{journal:?}");
    }

    #[test]
    fn a_node_may_be_named_with_or_without_its_domain() {
        for (node, hostname, here) in [
            ("worker-0", "worker-0", true),
            ("Worker-0", "worker-0.example.com", true),
            ("worker-0.example.com", "worker-0.example.com", true),
            ("worker-0.example.com", "worker-0", false),
            ("worker-0", "worker-01", false),
            ("DEFAULT", "anything", true),
        ] {
            assert_eq!(is_here(node, hostname), here, "{node} on {hostname}");
        }
    }

    #[test]
    fn no_file_is_an_error_that_shows_a_line() {
        let (journal, result) = run(&worker());
        let error = result.unwrap_err().to_string();
        assert!(journal.is_empty() && error.contains("'DEFAULT 0000:03:00.1'"), "{error}");
        let mut journal = Journal::default();
        let error =
            rebind(&worker().machine(), Some(Path::new("/nonexistent/list")), &mut journal).unwrap_err();
        assert!(error.to_string().contains("'/nonexistent/list': No such file"), "{error}");
    }
}
