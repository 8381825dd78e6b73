//! `port_control`, as its users write it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use super::host::HostVerb;
use super::report::Style;
use super::verb::Verb;
use super::{Invocation, Refusal};
use crate::api::{AddDevice, DEFAULT_SOCKET, DeviceSpec, PciAddress, RemoveDevice};

/// Adds devices to the relays of virtio-forwarder, removes them, shows what the relays do, and prepares this machine.
#[derive(Parser)]
#[command(name = "port_control", version)]
struct CommandLine {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Words,
}

#[derive(Args)]
struct Common {
    /// Control socket of the daemon.
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "VIRTIOFWD_CONTROL_SOCKET",
        default_value = DEFAULT_SOCKET
    )]
    control_socket: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Words {
    /// Give a relay a device.
    Add {
        #[command(flatten)]
        relay: RelayId,
        #[command(flatten)]
        device: NamedDevice,
        /// Succeed if the relay has this device already.
        #[arg(long)]
        conditional: bool,
    },
    /// Take a relay's device away.
    Remove {
        #[command(flatten)]
        relay: RelayId,
        #[command(flatten)]
        device: MaybeDevice,
        /// Succeed if the relay has no device.
        #[arg(long)]
        conditional: bool,
    },
    /// Print the device behind a vhost-user socket.
    #[command(name = "query_pci")]
    QueryPci {
        /// Path of the vhost-user socket.
        #[arg(long, value_name = "PATH")]
        vhost_path: PathBuf,
    },
    /// Show the relays.
    List {
        /// Only this relay.
        #[arg(long, value_name = "ID", value_parser = relay_id)]
        virtio_id: Option<u32>,
    },
    /// Show counters and rates.
    Stats {
        /// Only this relay; may be repeated.
        #[arg(long, value_name = "ID", value_parser = relay_id)]
        virtio_id: Vec<u32>,
        /// Show relays, too, through which nothing flows.
        #[arg(long)]
        include_inactive: bool,
        /// Time over which rates are measured, in milliseconds, at most 10000; 0: no rates.
        #[arg(long, value_name = "MS", default_value_t = 200, value_parser = clap::value_parser!(u64).range(0..=10_000))]
        delay: u64,
    },
    #[command(flatten)]
    Host(HostVerb),
    /// Print what makes a shell complete the words of this command; packages install it.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

#[derive(Args)]
struct RelayId {
    /// Number of the relay.
    #[arg(long, value_name = "ID", value_parser = relay_id)]
    virtio_id: u32,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct NamedDevice {
    /// VF by its PCI address: 0000:02:08.0, or 02:08.0.
    #[arg(long, value_name = "ADDRESS")]
    pci_addr: Option<PciAddress>,
    /// Device by name: loopback, null, tap:IFNAME, packet:IFNAME, pcap:FILE, vhost-user:SOCKET, or the PCI address of a VF.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceSpec>,
}

#[derive(Args)]
#[group(multiple = false)]
struct MaybeDevice {
    /// Only if it is this VF.
    #[arg(long, value_name = "ADDRESS")]
    pci_addr: Option<PciAddress>,
    /// Only if it is this device.
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceSpec>,
}

/// Which ids there are, the daemon knows.
fn relay_id(text: &str) -> Result<u32, String> {
    let wrong =
        |_| "a relay's number is expected: 0 or more, as in --virtio-id 1 ('port_control list' shows all)";
    text.parse().map_err(wrong).map_err(str::to_owned)
}

pub(super) fn parse(args: &[OsString]) -> Result<Invocation, Refusal> {
    let CommandLine { common, verb } = CommandLine::try_parse_from(args)?;
    let verb = match verb {
        Words::Add { relay, device: NamedDevice { pci_addr, device }, conditional } => {
            let device = pci_addr.map(DeviceSpec::Vf).or(device).ok_or_else(|| {
                clap::Error::raw(clap::error::ErrorKind::MissingRequiredArgument, "no device given\n")
            })?;
            Verb::Add { id: relay.virtio_id, request: AddDevice { device, conditional } }
        }
        Words::Remove { relay, device: MaybeDevice { pci_addr, device }, conditional } => {
            let device = pci_addr.map(DeviceSpec::Vf).or(device);
            Verb::Remove { id: relay.virtio_id, request: RemoveDevice { device, conditional } }
        }
        Words::Host(verb) => {
            return Ok(Invocation::Host { socket: common.control_socket, verb, json: common.json });
        }
        Words::Completions { shell } => return Ok(Invocation::Completions(completions(shell))),
        Words::QueryPci { vhost_path } => Verb::QueryPci { vhost_path },
        Words::List { virtio_id } => Verb::List { id: virtio_id },
        Words::Stats { virtio_id, include_inactive, delay } => {
            Verb::Statistics { relays: virtio_id, include_inactive, delay: Duration::from_millis(delay) }
        }
    };
    let style = if common.json { Style::Json } else { Style::Native };
    Ok(Invocation::Daemon { socket: common.control_socket, verb, style })
}

fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "port_control", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_options_is_sound() {
        CommandLine::command().debug_assert();
    }
}
