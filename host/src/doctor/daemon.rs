//! The daemon itself.

use super::{Item, Met, Patient};

const SUBJECT: &str = "daemon";

pub(super) fn examine(patient: &Patient, version: &str) -> Vec<Item> {
    vec![match patient.met {
        Met::Running(daemon) if daemon.version == version => {
            let vfs = daemon.relays.iter().filter(|relay| relay.function.is_some()).count();
            Item::ok(
                SUBJECT,
                format!("version {version} runs, {vfs} of {} relays have a VF", daemon.relays.len()),
            )
        }
        Met::Running(daemon) => Item::warning(
            SUBJECT,
            format!("version {} runs, and these tools are version {version}", daemon.version),
        )
        .mended_by("systemctl restart virtio-forwarder"),
        Met::Silent(cause) => {
            Item::warning(SUBJECT, cause).mended_by("systemctl enable --now virtio-forwarder")
        }
    }]
}
