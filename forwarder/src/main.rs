#![forbid(unsafe_code)]
//! `virtio-forwarder`: the daemon, and its demonstration.

fn main() -> anyhow::Result<()> {
    let cpu = core_affinity::get_core_ids().unwrap_or_default().last().map_or(0, |core| core.id);
    let s = forwarder::demo::run(std::time::Duration::from_secs(5), cpu)?;
    std::process::exit(i32::from(!s.is_clean()));
}
