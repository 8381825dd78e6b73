//! The tools of the C daemon under their own names, for scripts that call them.
//!
//! Standard output is what the C tools printed, byte for byte. They printed an error's number and no more: here a
//! sentence with the cause and the remedy goes to standard error beside it, whether the error has a number or not.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use super::report::Style;
use super::verb::Verb;
use super::{Invocation, Refusal};
use crate::api::{AddDevice, DEFAULT_SOCKET, DeviceSpec, PciAddress, RemoveDevice};

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
enum PortOperation {
    Add,
    Remove,
    AddSock,
    RemoveSock,
    QueryPci,
}

/// Port control of virtio-forwarder, with the options of the C daemon's tool of this name.
#[derive(Parser)]
#[command(name = "virtioforwarder_port_control.py", disable_version_flag = true)]
struct PortControl {
    /// Port control operation.
    #[arg(value_name = "OP")]
    op: PortOperation,
    /// Path of a vhost-user socket.
    #[arg(long)]
    vhost_path: Option<PathBuf>,
    /// Number of the relay.
    #[arg(long)]
    virtio_id: Option<u32>,
    /// PCI address, e.g. 0000:11:22.3.
    #[arg(long)]
    pci_addr: Vec<String>,
    /// Name of a bond; bonds are not supported.
    #[arg(long)]
    name: Option<String>,
    /// Mode of a bond; bonds are not supported.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=6))]
    mode: u32,
    /// ZeroMQ endpoint: accepted and ignored, VIRTIOFWD_CONTROL_SOCKET names the socket.
    #[arg(long = "zmq_ep")]
    zmq_ep: Option<String>,
    /// Succeed if there is nothing to do.
    #[arg(long)]
    conditional: bool,
    /// A test of the C daemon's ZeroMQ service; refused.
    #[arg(long)]
    crash_after_send: bool,
    /// A test of the C daemon's ZeroMQ service; refused.
    #[arg(long)]
    send_garbage: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    Flat,
    Protobuf,
}

/// Statistics of virtio-forwarder, with the options of the C daemon's tool of this name.
#[derive(Parser)]
#[command(name = "virtioforwarder_stats.py", disable_version_flag = true)]
struct Statistics {
    /// ZeroMQ endpoint: accepted and ignored, VIRTIOFWD_CONTROL_SOCKET names the socket.
    #[arg(long)]
    stats_ep: Option<String>,
    /// Include inactive relays.
    #[arg(long)]
    include_inactive: bool,
    /// Time over which rates are measured, in milliseconds.
    #[arg(long, default_value_t = 200)]
    delay: u64,
    /// Output format.
    #[arg(long, value_enum, default_value_t = Format::Flat)]
    output_format: Format,
    /// Leave counters out that are zero (flat format only).
    #[arg(short = 'z', long)]
    suppress_zero: bool,
    #[command(flatten)]
    socket: Socket,
}

#[derive(clap::Args)]
struct Socket {
    /// Control socket of the daemon.
    #[arg(long, value_name = "PATH", env = "VIRTIOFWD_CONTROL_SOCKET", default_value = DEFAULT_SOCKET)]
    control_socket: PathBuf,
}

pub(super) fn port_control(args: &[OsString]) -> Result<Invocation, Refusal> {
    let args = PortControl::try_parse_from(args)?;
    let style = Style::Compatible;
    let verb = verb(&args).map_err(|reason| Refusal::Reason(reason, style))?;
    Ok(Invocation::Daemon { socket: args.socket.control_socket, verb, style })
}

fn verb(args: &PortControl) -> Result<Verb, String> {
    // Checked here, as there, before the daemon is asked.
    let addresses: Vec<PciAddress> = args
        .pci_addr
        .iter()
        .map(|text| text.parse().map_err(|error| format!("Badly formatted PCI address: {error}")))
        .collect::<Result<_, _>>()?;
    if args.crash_after_send || args.send_garbage {
        return Err(
            "--crash-after-send and --send-garbage test the C daemon's ZeroMQ service, which is not here"
                .to_owned(),
        );
    }
    if args.name.is_some() || addresses.len() > 1 {
        return Err("bonds are not supported: give one --pci-addr and no --name".to_owned());
    }
    let device = addresses.first().copied().map(DeviceSpec::Vf);
    let id = || args.virtio_id.ok_or_else(|| "--virtio-id is missing".to_owned());
    let conditional = args.conditional;
    match (args.op, device) {
        (PortOperation::Add, Some(device)) => {
            Ok(Verb::Add { id: id()?, request: AddDevice { device, conditional } })
        }
        (PortOperation::Add, None) => Err("--pci-addr is missing".to_owned()),
        (PortOperation::Remove, device @ Some(_)) => {
            Ok(Verb::Remove { id: id()?, request: RemoveDevice { device, conditional } })
        }
        (PortOperation::Remove, None) => Ok(Verb::RemoveNothing { id: id()?, conditional }),
        (PortOperation::QueryPci, _) => {
            let vhost_path = args.vhost_path.clone().ok_or("--vhost-path is missing")?;
            Ok(Verb::QueryPci { vhost_path })
        }
        (PortOperation::AddSock | PortOperation::RemoveSock, _) => {
            Err("sockets cannot be added and removed at run time; --relays says how many there are"
                .to_owned())
        }
    }
}

pub(super) fn statistics(args: &[OsString]) -> Result<Invocation, Refusal> {
    let args = Statistics::try_parse_from(args)?;
    let style = match args.output_format {
        Format::Flat => Style::Flat { suppress_zero: args.suppress_zero },
        Format::Protobuf => Style::Protobuf,
    };
    let verb = Verb::Statistics {
        relays: Vec::new(),
        include_inactive: args.include_inactive,
        delay: Duration::from_millis(args.delay),
    };
    Ok(Invocation::Daemon { socket: args.socket.control_socket, verb, style })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_options_is_sound() {
        use clap::CommandFactory;
        PortControl::command().debug_assert();
        Statistics::command().debug_assert();
    }
}
