//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::layer::{Layer, Notice, Origin, Sourced};

/// Forwards Ethernet frames between SR-IOV virtual functions and virtual machines (vhost-user).
#[derive(Clone, Debug, Parser)]
#[command(
    name = "virtio-forwarder",
    version,
    disable_version_flag = true,
    args_conflicts_with_subcommands = true,
    args_override_self = true
)]
pub struct CommandLine {
    /// How to run the daemon.
    #[command(flatten)]
    pub options: Options,
    /// What to do instead.
    #[command(subcommand)]
    pub command: Option<Command>,
    #[arg(short = 'v', long, action = clap::ArgAction::Version, help = "Print version")]
    version: Option<bool>,
}

/// What the program does other than serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show the forwarder at work on this machine: no root, no NIC, no hugepages needed.
    Demo {
        /// How long.
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
    /// Print what the configuration comes to, as JSON: workers, relays, devices at start. Exits with 78, and the mistakes, where
    /// it cannot be used.
    Config {
        /// As for the daemon.
        #[command(flatten)]
        options: Box<Options>,
    },
    /// Print what makes a shell complete the words of this command; packages install it.
    #[command(hide = true)]
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Hand what the configuration lists (bind-vfio-pci) to vfio-pci, and end. The daemon does so, too; in a unit that may
    /// not write to /sys this goes before it.
    Bind {
        /// As for the daemon.
        #[command(flatten)]
        options: Box<Options>,
    },
}

/// The daemon's options, as written. [`Config::load`](super::Config::load) gives them their meaning.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Files")]
pub struct Options {
    /// TOML file with settings; an option here goes before one there. Default: /etc/virtio-forwarder/config.toml, if
    /// it exists.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// File of VIRTIOFWD_ variables; the TOML file goes before it. Default: /etc/default/virtioforwarder, if it exists.
    #[arg(long, value_name = "FILE")]
    pub defaults: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    obsolete: Obsolete,
}

/// The options that lie over the files. Their text is checked where that of the files is.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Settings")]
struct Settings {
    /// Worker CPUs: 1,2 or 1-3 or 0x6. Default: all that the process may use, but the first.
    #[arg(short = 'C', long, value_name = "CPUS")]
    cpus: Option<String>,
    /// Directory of the vhost-user sockets. Default: /tmp/virtio-forwarder.
    #[arg(short = 'V', long, value_name = "DIR")]
    vhost_path: Option<String>,
    /// Name of the vhost-user sockets; %u stands for the relay. Default: virtio-forwarder%u.sock.
    #[arg(short = 'S', long, value_name = "NAME")]
    vhost_socket: Option<String>,
    /// Owner of the vhost-user sockets; without a value: the user that the daemon runs as. Default: libvirt-qemu where it
    /// exists and the daemon runs as root.
    #[arg(short = 'u', long, value_name = "USER", num_args = 0..=1, default_missing_value = "")]
    vhost_username: Option<String>,
    /// Group of the vhost-user sockets; without a value: the group that the daemon runs as. Default: kvm where it exists
    /// and the daemon runs as root.
    #[arg(short = 'g', long, value_name = "GROUP", num_args = 0..=1, default_missing_value = "")]
    vhost_groupname: Option<String>,
    /// The VMs make the sockets and the daemon connects to them, as soon and as often as they are there.
    #[arg(short = 'i', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    vhostuser_client: Option<bool>,
    /// Make no sockets at start. They cannot be made later in this version.
    #[arg(short = 'd', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dynamic_sockets: Option<bool>,
    /// Number of relays, and so of sockets. Default: 64.
    #[arg(long, value_name = "N")]
    relays: Option<String>,
    /// Hand PCI functions to vfio-pci at start: ADDRESS, NETDEV (all its VFs) or NETDEV:COUNT; may be repeated or joined by
    /// ','.
    #[arg(long, value_name = "DEVICE")]
    bind_vfio_pci: Vec<String>,
    /// Give a relay a VF at start; may be repeated.
    #[arg(short = 'P', long, value_name = "ADDRESS=ID")]
    add_pci_vf: Vec<String>,
    /// Give a relay any device at start (loopback=1, tap:vm1=2, 0000:02:08.0=3); may be repeated.
    #[arg(long, value_name = "DEVICE=ID")]
    add_device: Vec<String>,
    /// Pin a relay to worker CPUs: the first for VF to VM, the second for VM to VF; may be repeated or joined by ';'.
    #[arg(short = 'c', long, value_name = "ID:CPU[,CPU]")]
    virtio_cpu: Vec<String>,
    /// Offer mergeable receive buffers to VMs: a long frame may lie in several.
    #[arg(short = 'R', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_mrgbuf: Option<bool>,
    /// No effect: jumbo frames are carried wherever the VF can.
    #[arg(short = 'J', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_jumbo: Option<bool>,
    /// Offer segmentation of TCP to VMs: frames of up to 64 KiB, which are cut in software where the device cannot.
    #[arg(short = 'T', long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_tso: Option<bool>,
    /// Token (UUID) for VFs whose PF is held by VFIO, too; 0: the one that DPDK's documentation uses. It is
    /// shown to the kernel only when that asks.
    #[arg(short = 't', long, value_name = "UUID")]
    vfio_vf_token: Option<String>,
    /// How much to log, from 0 (least) to 7. Default: 6.
    #[arg(short = 'l', long, value_name = "0-7")]
    loglevel: Option<String>,
    /// Control socket. Default: /run/virtio-forwarder/control.sock.
    #[arg(long, value_name = "PATH")]
    control_socket: Option<String>,
    /// Group that may use the control socket, beside root and the daemon's user.
    #[arg(long, value_name = "GROUP")]
    control_group: Option<String>,
    /// Serve metrics for Prometheus at this address, too (/metrics, nothing else).
    #[arg(long, value_name = "IP:PORT")]
    metrics_listen: Option<String>,
    /// What workers do when there is nothing to do: adaptive (sleep until something rings) or poll.
    #[arg(long, value_name = "HOW")]
    idle: Option<String>,
}

/// Options of the C daemon that have no meaning here. They are taken, so that old command lines work.
#[derive(Args, Clone, Debug, Default)]
struct Obsolete {
    #[arg(short = 'M', long, hide = true)]
    master_lcore: Option<String>,
    #[arg(short = 'n', long, hide = true, num_args = 0..=1, default_missing_value = "")]
    nodaemon: Option<String>,
    #[arg(short = 'p', long, hide = true)]
    pid_path: Option<String>,
    #[arg(short = 'H', long, hide = true)]
    huge_dir: Option<String>,
    #[arg(short = 'O', long, hide = true)]
    ovsdb_sock: Option<String>,
    #[arg(short = 'I', long, hide = true)]
    ipc: bool,
    #[arg(short = 'Y', long, hide = true, num_args = 0..=1, default_missing_value = "")]
    zmq_config_ep: Option<String>,
    #[arg(short = 'Z', long, hide = true, num_args = 0..=1, default_missing_value = "")]
    zmq_port_control_ep: Option<String>,
    #[arg(short = 'z', long, hide = true, num_args = 0..=1, default_missing_value = "")]
    zmq_stats_ep: Option<String>,
    #[arg(short = 's', long, hide = true, num_args = 0..=1, default_missing_value = "")]
    zmq_core_sched_ep: Option<String>,
    #[arg(short = '0', long, hide = true)]
    zero_copy: bool,
    #[arg(short = 'a', long, hide = true)]
    same_numa: bool,
}

impl Options {
    pub(super) fn layer(&self) -> Layer {
        fn one<T: Clone>(value: &Option<T>, flag: &'static str) -> Option<Sourced<T>> {
            value.clone().map(|value| Sourced::new(value, Origin::Flag(flag)))
        }
        fn several(values: &[String], flag: &'static str) -> Option<Vec<Sourced<String>>> {
            let list =
                || values.iter().map(|value| Sourced::new(value.clone(), Origin::Flag(flag))).collect();
            (!values.is_empty()).then(list)
        }
        let given = &self.settings;
        Layer {
            cpus: one(&given.cpus, "--cpus"),
            vhost_path: one(&given.vhost_path, "--vhost-path"),
            vhost_socket: one(&given.vhost_socket, "--vhost-socket"),
            vhost_username: one(&given.vhost_username, "--vhost-username"),
            vhost_groupname: one(&given.vhost_groupname, "--vhost-groupname"),
            vhostuser_client: one(&given.vhostuser_client, "--vhostuser-client"),
            dynamic_sockets: one(&given.dynamic_sockets, "--dynamic-sockets"),
            relays: one(&given.relays, "--relays"),
            bind_vfio_pci: several(&given.bind_vfio_pci, "--bind-vfio-pci"),
            add_pci_vf: several(&given.add_pci_vf, "--add-pci-vf"),
            add_device: several(&given.add_device, "--add-device"),
            virtio_cpu: several(&given.virtio_cpu, "--virtio-cpu"),
            enable_mrgbuf: one(&given.enable_mrgbuf, "--enable-mrgbuf"),
            enable_jumbo: one(&given.enable_jumbo, "--enable-jumbo"),
            enable_tso: one(&given.enable_tso, "--enable-tso"),
            vfio_vf_token: one(&given.vfio_vf_token, "--vfio-vf-token"),
            loglevel: one(&given.loglevel, "--loglevel"),
            control_socket: one(&given.control_socket, "--control-socket"),
            control_group: one(&given.control_group, "--control-group"),
            metrics_listen: one(&given.metrics_listen, "--metrics-listen"),
            idle: one(&given.idle, "--idle"),
            relay: None,
        }
    }

    /// One line for each obsolete option that was given.
    pub(super) fn notices(&self) -> impl Iterator<Item = Notice> {
        let old = &self.obsolete;
        let zmq = "ZeroMQ services are replaced by the control socket";
        let given = [
            ("--master-lcore", old.master_lcore.is_some(), "there is no main worker"),
            ("--pid-path", old.pid_path.is_some(), "no PID file is written"),
            ("--huge-dir", old.huge_dir.is_some(), "hugepages are taken from the kernel without a mount"),
            ("--ovsdb-sock", old.ovsdb_sock.is_some(), "OVSDB is not watched"),
            ("--ipc", old.ipc, "the control socket replaces it"),
            ("--zmq-config-ep", old.zmq_config_ep.is_some(), zmq),
            ("--zmq-port-control-ep", old.zmq_port_control_ep.is_some(), zmq),
            ("--zmq-stats-ep", old.zmq_stats_ep.is_some(), zmq),
            ("--zmq-core-sched-ep", old.zmq_core_sched_ep.is_some(), zmq),
            (
                "--zero-copy",
                old.zero_copy,
                "it is set relay by relay, in config.toml: zero-copy = \"tx\" in a [[relay]]",
            ),
            ("--same-numa", old.same_numa, "no memory is reserved in advance"),
        ];
        given
            .into_iter()
            .filter(|(_, given, _)| *given)
            .map(|(flag, _, why)| Notice::Info(format!("{flag} has no effect: {why}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> CommandLine {
        CommandLine::try_parse_from(["virtio-forwarder"].into_iter().chain(line.split_whitespace())).unwrap()
    }

    #[test]
    fn the_definition_of_the_options_is_sound() {
        use clap::CommandFactory;
        CommandLine::command().debug_assert();
    }

    #[test]
    fn old_command_lines_are_taken() {
        let line = "-C1,2 --nodaemon=log_syslog -l6 -M0 -p/var/run -H/dev/hugepages -O/x \
            --zmq-config-ep=ipc:///a --zmq-port-control-ep=ipc:///b --zmq-stats-ep --zmq-core-sched-ep=ipc:///d --ipc \
            -ulibvirt-qemu -gkvm --vhost-path=/tmp/x --vhost-socket=a%u.sock -J --enable-mrgbuf --vhostuser-client \
            --zero-copy --enable-tso --dynamic-sockets --same-numa -c0:1,1 -c1:1,2 --vfio-vf-token=0 -P05:08.1=1 -n";
        let options = parse(line).options;
        let layer = options.layer();
        assert_eq!(layer.cpus.unwrap().value, "1,2");
        assert_eq!(layer.vhost_username.unwrap().value, "libvirt-qemu");
        assert_eq!(layer.virtio_cpu.unwrap().len(), 2);
        assert!(layer.enable_jumbo.unwrap().value && layer.vhostuser_client.unwrap().value);
        assert_eq!(options.notices().count(), 11);
    }

    #[test]
    fn optional_values_and_switches_that_are_turned_off() {
        let layer = parse("--vhost-username --enable-jumbo=false").options.layer();
        assert_eq!(layer.vhost_username.unwrap().value, "");
        assert!(!layer.enable_jumbo.unwrap().value);
        assert_eq!(layer.cpus, None);
    }

    #[test]
    fn binding_alone_takes_the_options_of_the_daemon() {
        let Some(Command::Bind { options }) = parse("bind --config /x --bind-vfio-pci eth0:2").command else {
            panic!("no such command");
        };
        assert_eq!(options.config.as_deref(), Some(std::path::Path::new("/x")));
        assert_eq!(options.layer().bind_vfio_pci.unwrap()[0].value, "eth0:2");
    }

    #[test]
    fn the_demonstration_is_a_command_of_its_own() {
        assert!(matches!(parse("demo --seconds 5").command, Some(Command::Demo { seconds: 5 })));
        assert!(CommandLine::try_parse_from(["virtio-forwarder", "demo", "--seconds", "0"]).is_err());
        assert!(CommandLine::try_parse_from(["virtio-forwarder", "--frob"]).is_err());
    }
}
