#![forbid(unsafe_code)]
//! `virtio-forwarder`: the daemon, and its demonstration.

use std::path::PathBuf;

use clap::Parser;
use forwarder::service::{Setup, run};

#[derive(Parser)]
struct Cli {
    #[arg(long, value_delimiter = ',')]
    cpus: Vec<usize>,
    #[arg(long)]
    vhost_path: PathBuf,
    #[arg(long)]
    control_socket: PathBuf,
    #[arg(long, default_value_t = 64)]
    relays: u32,
    #[arg(long)]
    enable_mrgbuf: bool,
    #[arg(long)]
    add_device: Vec<String>,
    #[arg(long)]
    add_pci_vf: Vec<String>,
}

fn main() -> anyhow::Result<()> {
    if std::env::args().nth(1).as_deref() == Some("demo") {
        let cpu = core_affinity::get_core_ids().unwrap_or_default().last().map_or(0, |core| core.id);
        let s = forwarder::demo::run(std::time::Duration::from_secs(5), cpu)?;
        std::process::exit(i32::from(!s.is_clean()));
    }
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    let cli = Cli::parse();
    let devices = cli
        .add_device
        .iter()
        .chain(&cli.add_pci_vf)
        .map(|text| {
            let (device, id) = text.rsplit_once('=').ok_or_else(|| anyhow::anyhow!("DEVICE=ID"))?;
            Ok((id.parse()?, device.parse()?))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    run(Setup {
        cpus: cli.cpus,
        idle: Default::default(),
        relays: cli.relays,
        vhost_path: cli.vhost_path,
        socket_pattern: "virtio-forwarder%u.sock".to_owned(),
        sockets: true,
        owner: Default::default(),
        guest: relay::guest::features::GuestOptions { mergeable: cli.enable_mrgbuf },
        pins: Default::default(),
        devices,
        vf_options: Default::default(),
        control: control::server::ServerConfig::new(cli.control_socket),
    })
}
