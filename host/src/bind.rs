//! Handing functions to vfio-pci, and giving them back.
//!
//! By `driver_override`, which concerns one function. vfio-pci's `new_id` would take every card of the kind.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::str::FromStr;

use pmd::Address;
use serde::Serialize;

use crate::daemon::Daemon;
use crate::error::HostError;
use crate::inventory::{Function, VFIO_PCI};
use crate::machine::Machine;

/// Where it is kept which driver a function was taken from, until the next boot.
const TAKEN: &str = "/run/port_control/taken";
/// Longest name of a network interface (`IFNAMSIZ` without the end).
const INTERFACE_NAME: usize = 15;
/// Drivers beside vfio-pci that do no DMA, so that they may hold members of a group.
const HARMLESS: [&str; 3] = [VFIO_PCI, "pci-stub", "pcieport"];

/// What a word on the command line means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `0000:02:08.0` or `02:08.0`.
    Function(Address),
    /// `NETDEV` or `NETDEV:COUNT`: VFs of a PF, the first of them or all.
    VfsOf {
        /// The PF's interface.
        interface: String,
        /// How many; `None`: all.
        count: Option<usize>,
    },
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "'{text}' is neither a PCI address (0000:02:08.0 or 02:08.0; lspci -D lists them) nor a network interface \
                 with VFs (NETDEV or NETDEV:COUNT)"
            )
        };
        if let Ok(address) = text.parse() {
            return Ok(Self::Function(address));
        }
        let (interface, count) = match text.split_once(':') {
            Some((interface, count)) => (interface, Some(count)),
            None => (text, None),
        };
        let name = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':';
        if !(1..=INTERFACE_NAME).contains(&interface.len()) || !interface.chars().all(name) {
            return Err(wrong());
        }
        let plain = |count: &&str| count.bytes().all(|byte| byte.is_ascii_digit());
        let count = match count {
            None => None,
            Some(count) => match Some(count).filter(plain).and_then(|count| count.parse().ok()) {
                Some(0) | None => return Err(wrong()),
                count => count,
            },
        };
        Ok(Self::VfsOf { interface: interface.to_owned(), count })
    }
}

/// What has become of a function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// The function.
    #[serde(rename = "pci_addr", serialize_with = "crate::inventory::as_text")]
    pub address: Address,
    /// The driver that it was taken from.
    pub from: Option<String>,
    /// The driver that has it now.
    pub to: Option<String>,
}

impl Moved {
    /// Whether there was nothing to do.
    pub fn is_unchanged(&self) -> bool {
        self.from == self.to
    }

    fn unchanged(function: &Function) -> Self {
        let Function { address, driver, .. } = function;
        Self { address: *address, from: driver.clone(), to: driver.clone() }
    }
}

/// What came of one function of several: a failure of one does not keep the others from being moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The function.
    pub address: Address,
    /// What has become of it.
    pub result: Result<Moved, HostError>,
}

impl Outcome {
    fn of(function: &Function, result: Result<Moved, HostError>) -> Self {
        Self { address: function.address, result }
    }
}

/// All of them, or every refusal at once.
fn all<T>(results: impl IntoIterator<Item = Result<T, HostError>>) -> Result<Vec<T>, HostError> {
    let mut good = Vec::new();
    let mut refusals = Vec::new();
    for result in results {
        match result {
            Ok(value) => good.push(value),
            Err(error) => refusals.push(error.to_string()),
        }
    }
    if refusals.is_empty() { Ok(good) } else { HostError::refused(refusals.join("\n")) }
}

/// The functions that the words mean, in their order, each once. What is not there is named, all of it, a line each.
pub fn resolve(machine: &Machine, targets: &[Target]) -> Result<Vec<Address>, HostError> {
    let mut functions = Vec::new();
    let meant = all(targets.iter().map(|target| match target {
        Target::Function(address) => machine.function(*address).map(|function| vec![function.address]),
        Target::VfsOf { interface, count } => vfs_of(machine, interface, *count),
    }))?;
    for address in meant.into_iter().flatten() {
        if !functions.contains(&address) {
            functions.push(address);
        }
    }
    Ok(functions)
}

fn vfs_of(machine: &Machine, interface: &str, count: Option<usize>) -> Result<Vec<Address>, HostError> {
    let pf = machine.function_of(interface)?;
    let vfs: Vec<Address> = machine.vfs_of(pf).into_iter().map(|(_, vf)| vf).collect();
    if vfs.is_empty() {
        return HostError::refused(format!(
            "the network interface '{interface}' ({pf}) has no VFs; make some: port_control vfs create {interface} N; the \
             function itself is named by its address"
        ));
    }
    match count {
        Some(count) if count > vfs.len() => HostError::refused(format!(
            "{count} VFs of '{interface}' are wanted, and it has {}; make more: port_control vfs create {interface} {count}",
            vfs.len()
        )),
        Some(count) => Ok(vfs[..count].to_vec()),
        None => Ok(vfs),
    }
}

/// Hands functions to vfio-pci. All of them are looked at before the first is moved, as are the members of their groups,
/// which may be among `functions` or `together`: those that will be handed over in the same breath. An error, with a line
/// for each reason, where something speaks against it; then nothing was moved. What the kernel refuses later concerns one
/// function, and the others are moved all the same.
pub fn bind(
    machine: &Machine,
    functions: &[Address],
    together: &BTreeSet<Address>,
) -> Result<Vec<Outcome>, HostError> {
    let mut together = together.clone();
    together.extend(functions);
    let functions = all(functions.iter().map(|address| machine.function(*address)))?;
    let free = functions.iter().filter(|function| !is_taken(function));
    all(free.map(|function| may_be_taken(machine, function, &together)))?;
    if !functions.iter().all(is_taken) {
        machine.need_root()?;
        load_vfio_pci(machine)?;
    }
    Ok(functions.iter().map(|function| Outcome::of(function, take(machine, function))).collect())
}

fn is_taken(function: &Function) -> bool {
    function.driver.as_deref() == Some(VFIO_PCI)
}

/// Whatever speaks against it.
fn may_be_taken(
    machine: &Machine,
    function: &Function,
    together: &BTreeSet<Address>,
) -> Result<(), HostError> {
    let address = function.address;
    if machine.is_bridge(address) {
        return HostError::refused(format!(
            "{address} is a bridge; only endpoints can be handed to vfio-pci"
        ));
    }
    if let Some(vfs) = machine.number(Machine::device(address, "sriov_numvfs")).filter(|vfs| *vfs > 0) {
        return HostError::refused(format!(
            "{address} is a PF with {vfs} live VFs, which would go with its driver; name VFs, or remove them first: \
             port_control vfs remove {address}"
        ));
    }
    if let Some(by) = machine.kernel_use(address) {
        return HostError::refused(format!("{address} is in use: {by}"));
    }
    if function.group.is_none() && !machine.noiommu_is_on() {
        return HostError::refused(format!(
            "{address} has no IOMMU group, so its DMA cannot be confined; port_control doctor says how the IOMMU is turned \
             on, and what port_control noiommu enable gives up where there is none"
        ));
    }
    for member in &function.companions {
        let driver = machine.sysfs().driver(*member);
        let foreign = driver.as_deref().filter(|driver| !HARMLESS.contains(driver));
        if let Some(driver) = foreign.filter(|_| !together.contains(member)) {
            return HostError::refused(format!(
                "{address} shares IOMMU group {} with {member}, which driver {driver} holds, and VFIO gives a group out \
                 whole; name both: port_control bind {address} {member}",
                function.group.unwrap_or_default()
            ));
        }
    }
    Ok(())
}

fn load_vfio_pci(machine: &Machine) -> Result<(), HostError> {
    if machine.exists(format!("/sys/bus/pci/drivers/{VFIO_PCI}")) {
        return Ok(());
    }
    let loaded = machine.kernel().load_module(VFIO_PCI);
    if loaded.is_ok() && machine.exists(format!("/sys/bus/pci/drivers/{VFIO_PCI}")) {
        return Ok(());
    }
    let cause = loaded.err().unwrap_or_else(|| "it was loaded, and there is no such driver".to_owned());
    HostError::refused(format!(
        "the kernel module vfio-pci cannot be loaded ({cause}); install the modules of the running kernel, which some \
         distributions keep in a package of their own (linux-modules-extra, kernel-modules-extra), or boot the kernel \
         whose modules are there"
    ))
}

fn take(machine: &Machine, function: &Function) -> Result<Moved, HostError> {
    if is_taken(function) {
        return Ok(Moved::unchanged(function));
    }
    let Function { address, driver, .. } = function;
    hand_over(machine, *address, driver.as_deref(), VFIO_PCI)?;
    // Only a convenience of `unbind`, which finds a driver without it.
    let _ = machine.create(format!("{TAKEN}/{address}"), driver.as_deref().unwrap_or_default());
    Ok(Moved { address: *address, from: driver.clone(), to: Some(VFIO_PCI.to_owned()) })
}

/// Moves a function from a driver to another. If that fails it is with the first one again, as far as that will have it.
fn hand_over(machine: &Machine, address: Address, from: Option<&str>, to: &str) -> Result<(), HostError> {
    let wish = Machine::device(address, "driver_override");
    // Before the driver lets go: nobody else may take it meanwhile.
    machine.write(&wish, to)?;
    if let Some(from) = from
        && let Err(error) = let_go(machine, address, from)
    {
        let _ = machine.write(&wish, "\n");
        return Err(error);
    }
    let probed = machine.write("/sys/bus/pci/drivers_probe", &address.to_string());
    if machine.sysfs().driver(address).as_deref() == Some(to) {
        return Ok(());
    }
    let cause = match probed {
        Err(error) => error.to_string(),
        Ok(()) => format!("driver {to} refused it (dmesg says why)"),
    };
    let back = from.is_some_and(|from| {
        let _ = machine.write(&wish, from);
        let _ = machine.write("/sys/bus/pci/drivers_probe", &address.to_string());
        machine.sysfs().driver(address).as_deref() == Some(from)
    });
    let _ = machine.write(&wish, "\n");
    let now = match (from, back) {
        (Some(from), true) => format!("driver {from} has it again"),
        _ => "it has no driver now".to_owned(),
    };
    Err(HostError::Failed(format!("{address} could not be handed to {to}: {cause}; {now}")))
}

fn let_go(machine: &Machine, address: Address, driver: &str) -> Result<(), HostError> {
    let file = machine.file(Machine::device(address, "driver/unbind"));
    let limit = machine.patience();
    match machine.kernel().write_in_time(&file, &address.to_string(), limit) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(HostError::Failed(format!(
            "driver {driver} has not let go of {address} within {} s; whoever uses the device must end first (dmesg and \
             port_control doctor say more); the kernel goes on trying, so look at the device before anything else is done \
             with it",
            limit.as_secs()
        ))),
        // A process that writes for us has no more to say.
        Err(_) if machine.sysfs().driver(address).is_none() => Ok(()),
        Err(error) => Err(HostError::writing(&file, &error)),
    }
}

/// Gives functions that vfio-pci has back to the driver that they were taken from; to `driver` if that is given. A
/// function that vfio-pci does not have is left as it is. As with [`bind`] either nothing is moved, or whatever can be.
pub fn unbind(
    machine: &Machine,
    functions: &[Address],
    driver: Option<&str>,
    daemon: Option<&Daemon>,
) -> Result<Vec<Outcome>, HostError> {
    let functions = all(functions.iter().map(|address| machine.function(*address)))?;
    let taken = || functions.iter().filter(|function| is_taken(function));
    all(taken().map(|function| match machine.user_space_use(function.address, daemon) {
        Some(by) => HostError::refused(format!("{} is in use: {by}", function.address)),
        None => Ok(()),
    }))?;
    if taken().next().is_some() {
        machine.need_root()?;
    }
    Ok(functions.iter().map(|function| Outcome::of(function, give_back(machine, function, driver))).collect())
}

fn give_back(machine: &Machine, function: &Function, driver: Option<&str>) -> Result<Moved, HostError> {
    let address = function.address;
    if !is_taken(function) {
        return Ok(Moved::unchanged(function));
    }
    let record = format!("{TAKEN}/{address}");
    let alias = || machine.kernel().module_for(&machine.text(Machine::device(address, "modalias"))?);
    let to = match (driver, machine.text(&record)) {
        (Some(driver), _) => Some(driver.to_owned()),
        // It had none.
        (None, Some(driver)) => Some(driver).filter(|driver| !driver.is_empty()),
        (None, None) => alias(),
    };
    match &to {
        Some(to) => {
            if !machine.exists(format!("/sys/bus/pci/drivers/{to}")) {
                // A module of another name than its driver shows itself below.
                let _ = machine.kernel().load_module(to);
            }
            if !machine.exists(format!("/sys/bus/pci/drivers/{to}")) {
                return HostError::refused(format!(
                    "{address} cannot go back to driver {to}: the kernel has no such driver, and modprobe {to} finds none; \
                     name another: port_control unbind --driver NAME {address}"
                ));
            }
            hand_over(machine, address, function.driver.as_deref(), to)?;
        }
        // It had none, or nobody knows one: it harms nobody so.
        None => let_go(machine, address, VFIO_PCI)?,
    }
    machine.write(Machine::device(address, "driver_override"), "\n")?;
    let _ = fs::remove_file(machine.file(record));
    Ok(Moved { address, from: function.driver.clone(), to })
}

#[cfg(test)]
mod tests;
