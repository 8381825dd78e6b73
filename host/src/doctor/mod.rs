//! The doctor: looks at everything that has to be right, and says of what is not how it is mended. It changes nothing.

mod configuration;
mod cpus;
mod daemon;
mod functions;
mod iommu;
mod memory;
mod sockets;
mod vfio;

use std::fmt;

use serde::Serialize;

use crate::daemon::{Daemon, Plan, Relay};
use crate::inventory::Inventory;
use crate::machine::Machine;

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be, or as it may well be.
    Ok,
    /// It works, but not as well as it could, or not for long.
    Warning,
    /// A VF cannot be forwarded like this.
    Failure,
}

impl Status {
    /// The status of a process that has found this.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Warning => 1,
            Self::Failure => 2,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What: `IOMMU`, `VF 0000:01:10.0`.
    pub subject: String,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What mends it: commands, and steps that are none. Empty where nothing needs to be mended.
    pub remedy: Vec<String>,
}

impl Item {
    fn ok(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { subject: subject.into(), status: Status::Ok, found: found.into(), remedy: Vec::new() }
    }

    fn warning(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { status: Status::Warning, ..Self::ok(subject, found) }
    }

    fn failure(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self { status: Status::Failure, ..Self::ok(subject, found) }
    }

    fn mended_by(mut self, remedy: impl Into<String>) -> Self {
        self.remedy.push(remedy.into());
        self
    }
}

/// The daemon, as it was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met {
    /// It runs.
    Running(Daemon),
    /// It does not answer, for this reason.
    Silent(String),
}

impl Met {
    /// The daemon, if it runs.
    pub fn daemon(&self) -> Option<&Daemon> {
        match self {
            Self::Running(daemon) => Some(daemon),
            Self::Silent(_) => None,
        }
    }
}

/// The daemon's configuration, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Configured {
    /// It comes to this.
    Plan(Plan),
    /// It cannot be used: what is wrong with it, a line each.
    Wrong(String),
    /// It could not be asked for, for this reason.
    Unknown(String),
}

/// All that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// The worst of all.
    pub status: Status,
    /// One by one.
    pub items: Vec<Item>,
}

/// What all examinations look at.
struct Patient<'a> {
    machine: &'a Machine,
    inventory: Inventory,
    met: &'a Met,
    configured: &'a Configured,
}

impl Patient<'_> {
    /// What the configuration comes to, unless a daemon runs, which says itself what it does.
    fn plan(&self) -> Option<&Plan> {
        match (self.met, self.configured) {
            (Met::Silent(_), Configured::Plan(plan)) => Some(plan),
            _ => None,
        }
    }

    /// The relays that there are, or will be.
    fn relays(&self) -> &[Relay] {
        match (self.met, self.plan()) {
            (Met::Running(daemon), _) => &daemon.relays,
            (_, Some(plan)) => &plan.relays,
            _ => &[],
        }
    }
}

/// Looks at a machine; `version` is that of these programs.
pub fn examine(machine: &Machine, met: &Met, configured: &Configured, version: &str) -> Findings {
    let patient = Patient { machine, inventory: Inventory::of(machine, met.daemon()), met, configured };
    let items = [
        iommu::examine(&patient),
        vfio::examine(&patient),
        functions::examine(&patient),
        memory::examine(&patient),
        cpus::examine(&patient),
        sockets::examine(&patient),
        configuration::examine(&patient),
        daemon::examine(&patient, version),
    ]
    .concat();
    let status = items.iter().map(|item| item.status).max().unwrap_or(Status::Ok);
    Findings { status, items }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.items.iter().map(|item| item.subject.chars().count()).max().unwrap_or(0);
        for Item { subject, status, found, remedy } in &self.items {
            writeln!(f, "{status:<8} {subject:<width$}  {found}")?;
            for step in remedy {
                writeln!(f, "{:8} {:width$}  → {step}", "", "")?;
            }
        }
        let count = |status| self.items.iter().filter(|item| item.status == status).count();
        match (count(Status::Failure), count(Status::Warning)) {
            (0, 0) => writeln!(f, "all is well"),
            (failures, warnings) => writeln!(f, "failures: {failures}, warnings: {warnings}"),
        }
    }
}

#[cfg(test)]
mod tests;
