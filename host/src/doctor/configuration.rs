//! Whether the daemon can use its configuration.

use super::{Configured, Item, Met, Patient};

const SUBJECT: &str = "configuration";

pub(super) fn examine(patient: &Patient) -> Vec<Item> {
    vec![match patient.configured {
        Configured::Plan(plan) => {
            let cpus: Vec<String> = plan.cpus.iter().map(ToString::to_string).collect();
            let vfs = plan.relays.iter().filter(|relay| relay.function.is_some()).count();
            let relays = plan.relays.len();
            Item::ok(
                SUBJECT,
                format!("workers on CPUs {}, {relays} relays, {vfs} VFs at start", cpus.join(",")),
            )
        }
        Configured::Wrong(mistakes) => {
            let found = mistakes.lines().map(str::trim).collect::<Vec<_>>().join("; ");
            let item = match patient.met {
                Met::Running(_) => {
                    Item::warning(SUBJECT, format!("the daemon will not start again: {found}"))
                }
                Met::Silent(_) => Item::failure(SUBJECT, found),
            };
            item.mended_by("mend it there; virtio-forwarder config shows what it comes to")
        }
        Configured::Unknown(why) => Item::ok(SUBJECT, format!("not known: {why}")),
    }]
}
