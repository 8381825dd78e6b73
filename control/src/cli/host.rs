//! Commands about this machine. They need no daemon; one that runs is asked which VFs are its own.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use host::bind::{Moved, Outcome, Target};
use host::daemon::Relay as HostRelay;
use host::doctor::Met;
use host::inventory::Inventory;
use host::kernel::VfChange;
use host::persist::Lasting;
use host::vfs::{Changed, Create, PfName};
use host::{Address, Daemon, HostError, Machine, bind, doctor, noiommu, persist, rebind, vfs};
use pmd::MacAddress;
use rustix::net::sockopt::socket_peercred;
use serde::Serialize;

use crate::client::{Client, ClientError};

/// What can be asked of the machine.
#[derive(Subcommand)]
pub(super) enum HostVerb {
    /// Examine this machine, and say what mends it. Exits 0 clean, 1 with warnings, 2 with failures. Changes nothing.
    Doctor,
    /// Make VFs, remove them, and have their PF set something for them.
    #[command(subcommand)]
    Vfs(Vfs),
    /// Hand PCI functions to vfio-pci.
    Bind {
        /// Functions: 0000:02:08.0 or 02:08.0; or all VFs of an interface, or the first of them: NETDEV, NETDEV:COUNT.
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<Target>,
    },
    /// Give PCI functions back to the driver that they were taken from.
    Unbind {
        /// Functions, as for bind.
        #[arg(required = true, value_name = "DEVICE")]
        devices: Vec<Target>,
        /// To this driver instead.
        #[arg(long, value_name = "NAME")]
        driver: Option<String>,
    },
    /// Hand to vfio-pci what a file lists for this node: lines NODE DOMAIN:BUS:DEVICE.FUNCTION, with DEFAULT for every
    /// node.
    Rebind {
        /// The file. Default: /etc/sysconfig/vfio-pci-devices, or /etc/sysconfig/vfio-pci-device.
        file: Option<PathBuf>,
    },
    /// VFIO without an IOMMU: every VF then reaches all memory of the machine.
    #[command(subcommand)]
    Noiommu(Noiommu),
}

/// What can be done with VFs.
#[derive(Subcommand)]
pub(super) enum Vfs {
    /// Show PFs, their VFs, and what holds them.
    List,
    /// Give a PF so many VFs.
    Create {
        #[command(flatten)]
        pf: Pf,
        /// How many.
        count: u32,
        #[command(flatten)]
        force: Force,
        /// Bring the PF's interface up: VFs have no link before.
        #[arg(long)]
        up: bool,
        /// Keep kernel drivers off the new VFs.
        #[arg(long)]
        no_drivers: bool,
        /// Wait up to so many seconds for the PF to appear.
        #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=3600))]
        wait: u64,
    },
    /// Take all VFs of a PF away.
    Remove {
        #[command(flatten)]
        pf: Pf,
        #[command(flatten)]
        force: Force,
    },
    /// Have its PF set something for a VF.
    Set {
        /// The VF: 0000:02:08.0 or 02:08.0.
        #[arg(value_name = "VF")]
        vf: Address,
        /// Its Ethernet address.
        #[arg(long, value_name = "MAC")]
        mac: Option<MacAddress>,
        /// VLAN that the PF puts its frames into, and their priority: VLAN or VLAN:PRIORITY; 0: none.
        #[arg(long, value_name = "VLAN", value_parser = vlan)]
        vlan: Option<(u32, u32)>,
        /// Whether it may ask for promiscuous mode and the like.
        #[arg(long)]
        trust: Option<Switch>,
        /// Whether frames with another source address are dropped.
        #[arg(long)]
        spoofchk: Option<Switch>,
    },
    /// Write a systemd unit that makes so many VFs at every boot, set as they are now.
    Persist {
        #[command(flatten)]
        pf: Pf,
        /// How many.
        count: u32,
    },
    /// Remove that unit.
    Forget {
        #[command(flatten)]
        pf: Pf,
    },
}

#[derive(Args)]
pub(super) struct Pf {
    /// The PF: its interface, or 0000:02:00.0 or 02:00.0.
    #[arg(value_name = "PF")]
    name: PfName,
}

#[derive(Args)]
pub(super) struct Force {
    /// Even if a VF of it is in use.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Switch {
    On,
    Off,
}

impl Switch {
    fn is_on(self) -> bool {
        matches!(self, Self::On)
    }
}

/// What can be done with no-IOMMU mode.
#[derive(Subcommand)]
pub(super) enum Noiommu {
    /// Turn it on.
    Enable {
        /// After every boot, too.
        #[arg(long)]
        persist: bool,
    },
    /// Turn it off.
    Disable,
    /// Show how it stands.
    Status,
}

fn vlan(text: &str) -> Result<(u32, u32), String> {
    let (vlan, priority) = text.split_once(':').unwrap_or((text, "0"));
    let wrong = |_| "a VLAN is written 100, or 100:3 with a priority; 0 is none".to_owned();
    Ok((vlan.parse().map_err(wrong)?, priority.parse().map_err(wrong)?))
}

/// What came of it: for people, for programs, and for whoever started it.
struct Told<'a, T> {
    text: String,
    value: &'a T,
    code: u8,
}

/// Runs a command on this machine, and tells what came of it.
pub(super) fn run(verb: HostVerb, socket: &Path, json: bool) -> ExitCode {
    let result = run_on(&Machine::default(), verb, socket, json);
    ExitCode::from(result.unwrap_or_else(|error| {
        if json {
            print(&(super::report::json(&Refused { status: "ERROR", detail: error.to_string() })));
        } else {
            print("status: ERROR\n");
        }
        complain(&error);
        1
    }))
}

/// JSON of what was not done.
#[derive(Serialize)]
struct Refused {
    status: &'static str,
    detail: String,
}

fn run_on(machine: &Machine, verb: HostVerb, socket: &Path, json: bool) -> Result<u8, HostError> {
    let daemon = || met(socket);
    match verb {
        HostVerb::Doctor => {
            let findings =
                doctor::examine(machine, &met(socket), &super::configured::ask(), env!("CARGO_PKG_VERSION"));
            let code = findings.status.exit_code();
            tell(json, &Told { text: findings.to_string(), value: &findings, code })
        }
        HostVerb::Vfs(Vfs::List) => {
            let inventory = Inventory::of(machine, daemon().daemon());
            tell(json, &Told { text: inventory.to_string(), value: &inventory, code: 0 })
        }
        HostVerb::Vfs(Vfs::Create { pf, count, force, up, no_drivers, wait }) => {
            vfs::wait_for(machine, &pf.name, Duration::from_secs(wait));
            let how = Create { force: force.force, no_drivers, up };
            changed(json, &vfs::create(machine, &pf.name, count, how, daemon().daemon())?)
        }
        HostVerb::Vfs(Vfs::Remove { pf, force }) => {
            changed(json, &vfs::remove(machine, &pf.name, force.force, daemon().daemon())?)
        }
        HostVerb::Vfs(Vfs::Set { vf, mac, vlan, trust, spoofchk }) => {
            let change = VfChange {
                mac,
                vlan,
                trust: trust.map(Switch::is_on),
                spoof_check: spoofchk.map(Switch::is_on),
            };
            let now = vfs::set(machine, vf, &change)?;
            tell(json, &Told { text: format!("{vf}: {}\n", vfs::describe(&now)), value: &now, code: 0 })
        }
        HostVerb::Vfs(Vfs::Persist { pf, count }) => {
            // Whoever is at /proc/self/exe will be there at the next boot, too; else where packages put it.
            let program = std::env::current_exe().unwrap_or_else(|_| "/usr/bin/port_control".into());
            lasting(json, &persist::persist(machine, &pf.name, count, &program)?)
        }
        HostVerb::Vfs(Vfs::Forget { pf }) => lasting(json, &persist::forget(machine, &pf.name)?),
        HostVerb::Bind { devices } => {
            let functions = bind::resolve(machine, &devices)?;
            moved(json, &bind::bind(machine, &functions, &Default::default())?)
        }
        HostVerb::Unbind { devices, driver } => {
            let functions = bind::resolve(machine, &devices)?;
            moved(json, &bind::unbind(machine, &functions, driver.as_deref(), daemon().daemon())?)
        }
        HostVerb::Rebind { file } => {
            let failures = rebind::rebind(machine, file.as_deref(), &mut Journal)?;
            Ok(u8::from(failures > 0))
        }
        HostVerb::Noiommu(verb) => {
            let status = match verb {
                Noiommu::Enable { persist } => {
                    let _ = writeln!(io::stderr(), "{}", noiommu::WARNING);
                    noiommu::enable(machine, persist)?
                }
                Noiommu::Disable => noiommu::disable(machine)?,
                Noiommu::Status => noiommu::status(machine),
            };
            let now = match status.enabled {
                Some(true) => "ON: VFs reach all memory of this machine",
                Some(false) => "off",
                None => "not there: this kernel has none, or the module vfio is not loaded",
            };
            let later = if status.persistent { "; on after every boot" } else { "" };
            let text = format!("no-IOMMU mode is {now}{later}\n");
            tell(json, &Told { text, value: &status, code: 0 })
        }
    }
}

fn changed(json: bool, changed: &Changed) -> Result<u8, HostError> {
    let name = changed.pf.name();
    let mut text = match (changed.before, changed.pf.num_vfs) {
        (before, now) if before == now => format!("{name} has {now} VFs, as before\n"),
        (before, now) => format!("{name} has {now} VFs now, {before} before\n"),
    };
    for vf in &changed.pf.vfs {
        let driver = vf.function.driver.as_deref().unwrap_or("no driver");
        text.push_str(&format!("{}  {driver}\n", vf.function.address));
    }
    tell(json, &Told { text, value: changed, code: 0 })
}

fn lasting(json: bool, lasting: &Lasting) -> Result<u8, HostError> {
    let Lasting { unit, present, was_present } = lasting;
    let text = match (present, was_present) {
        (true, false) => format!("wrote and enabled {unit}\n"),
        (true, true) => format!("wrote {unit} anew\n"),
        (false, true) => format!("removed {unit}; the VFs that are there stay\n"),
        (false, false) => format!("there is no {unit}\n"),
    };
    tell(json, &Told { text, value: lasting, code: 0 })
}

/// JSON of a function that was not moved, among those that were.
#[derive(Serialize)]
struct NotMoved {
    pci_addr: String,
    error: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum JsonOutcome<'a> {
    Moved(&'a Moved),
    NotMoved(NotMoved),
}

fn moved(json: bool, outcomes: &[Outcome]) -> Result<u8, HostError> {
    let mut text = String::new();
    let mut value = Vec::new();
    let mut code = 0;
    for Outcome { address, result } in outcomes {
        match result {
            Ok(moved) => {
                let name = |driver: &Option<String>| driver.clone().unwrap_or_else(|| "no driver".to_owned());
                let (from, to) = (name(&moved.from), name(&moved.to));
                text.push_str(&match moved.is_unchanged() {
                    true => format!("{address} is with {to} already\n"),
                    false => format!("{address} taken from {from}, now with {to}\n"),
                });
                value.push(JsonOutcome::Moved(moved));
            }
            Err(error) => {
                code = 1;
                complain(error);
                let error = error.to_string();
                value.push(JsonOutcome::NotMoved(NotMoved { pci_addr: address.to_string(), error }));
            }
        }
    }
    if code != 0 {
        text.push_str("status: ERROR\n");
    }
    tell(json, &Told { text, value: &value, code })
}

/// A line for each reason.
fn complain(error: &HostError) {
    for line in error.to_string().lines() {
        // If even stderr is gone, there is nobody to tell.
        let _ = writeln!(io::stderr(), "error: {line}");
    }
}

fn tell<T: Serialize>(json: bool, told: &Told<'_, T>) -> Result<u8, HostError> {
    match json {
        true => print(&super::report::json(told.value)),
        false => print(&told.text),
    }
    Ok(told.code)
}

/// A reader that has seen enough is no error.
fn print(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
}

/// The journal of the rebind service: both streams, in order.
struct Journal;

impl rebind::Report for Journal {
    fn say(&mut self, line: fmt::Arguments<'_>) {
        print(&format!("{line}\n"));
    }

    fn complain(&mut self, line: fmt::Arguments<'_>) {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// Asks the daemon for what the host's side wants to know.
fn met(socket: &Path) -> Met {
    match ask(socket) {
        Ok(daemon) => Met::Running(daemon),
        Err(error) => Met::Silent(error.to_string()),
    }
}

fn ask(socket: &Path) -> Result<Daemon, ClientError> {
    let client = Client::new(socket);
    let relays = client.relays()?;
    let relay = |relay: crate::api::Relay| HostRelay {
        id: relay.id,
        function: relay.device.and_then(|device| device.pci_addr?.to_string().parse().ok()),
        socket: relay.socket.map(PathBuf::from),
        cpus: [relay.cpus.vf_to_vm, relay.cpus.vm_to_vf].into_iter().flatten().collect(),
    };
    Ok(Daemon {
        version: client.version()?.version,
        process: process(socket),
        relays: relays.into_iter().map(relay).collect(),
    })
}

/// Who listens on the socket.
fn process(socket: &Path) -> Option<u32> {
    let stream = std::os::unix::net::UnixStream::connect(socket).ok()?;
    socket_peercred(&stream).ok()?.pid.as_raw_nonzero().get().try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vlan_may_have_a_priority() {
        assert_eq!((vlan("100"), vlan("7:3"), vlan("0")), (Ok((100, 0)), Ok((7, 3)), Ok((0, 0))));
        for bad in ["", "x", "1:", ":1", "-1"] {
            assert!(vlan(bad).is_err(), "{bad}");
        }
    }
}
