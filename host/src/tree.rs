//! `vfs list` for people: PF, its VFs, and what holds them.

use std::fmt;

use crate::inventory::{Function, Inventory, PhysicalFunction, VirtualFunction};

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.physical_functions.is_empty() && self.others.is_empty() {
            return writeln!(f, "no function of this machine can have VFs, and it has none");
        }
        for pf in &self.physical_functions {
            writeln!(f, "{}", head(pf))?;
            for (number, vf) in pf.vfs.iter().enumerate() {
                let branch = if number + 1 == pf.vfs.len() { "└─" } else { "├─" };
                writeln!(f, "{branch} {}", leaf(vf))?;
            }
        }
        for vf in &self.others {
            writeln!(f, "{}  (no PF in this machine)", leaf(vf))?;
        }
        Ok(())
    }
}

fn head(pf: &PhysicalFunction) -> String {
    let mut words = vec![named(&pf.function), driver(&pf.function)];
    words.push(format!("{} of {} VFs", pf.num_vfs, pf.total_vfs));
    if !pf.function.interfaces.is_empty() {
        words.push(link(pf).to_owned());
    }
    words.join("  ")
}

pub(crate) fn link(pf: &PhysicalFunction) -> &'static str {
    match (pf.up, pf.carrier) {
        (false, _) => "down",
        (true, false) => "no carrier",
        (true, true) => "up",
    }
}

fn leaf(vf: &VirtualFunction) -> String {
    let mut words = vec![named(&vf.function)];
    words.extend(vf.index.map(|index| format!("vf {index}")));
    words.push(driver(&vf.function));
    words.push(match vf.function.group {
        Some(group) => format!("group {group}"),
        None => "no group".to_owned(),
    });
    words.extend(vf.settings.as_ref().map(|settings| settings.mac.clone()));
    words.push(match vf.relay {
        Some(relay) => format!("relay {relay}"),
        None => "no relay".to_owned(),
    });
    words.join("  ")
}

/// Address and interfaces.
pub(crate) fn named(function: &Function) -> String {
    let interfaces = function.interfaces.join(",");
    format!("{} {interfaces}", function.address).trim_end().to_owned()
}

pub(crate) fn driver(function: &Function) -> String {
    function.driver.clone().unwrap_or_else(|| "no driver".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::{Daemon, Relay};
    use crate::recorded::{Recorded, address, hosts};

    #[test]
    fn the_hosts_of_the_guides() {
        let daemon = Daemon {
            relays: vec![Relay { id: 1, function: Some(address("0000:05:08.1")), ..Relay::default() }],
            ..Daemon::default()
        };
        let list = |recorded: Recorded| Inventory::of(&recorded.machine(), Some(&daemon)).to_string();
        assert_eq!(
            list(hosts::nfp()),
            "0000:05:00.0 p4p1,p4p2  nfp  4 of 64 VFs  up\n\
             ├─ 0000:05:08.0  vf 0  nfp_netvf  group 41  no relay\n\
             ├─ 0000:05:08.1  vf 1  vfio-pci  group 42  relay 1\n\
             ├─ 0000:05:08.2  vf 2  vfio-pci  group 43  no relay\n\
             └─ 0000:05:08.3  vf 3  no driver  group 44  no relay\n"
        );
        assert_eq!(
            list(hosts::i350()),
            "0000:03:00.0 eno1  igb  2 of 7 VFs  up\n\
             ├─ 0000:03:10.0  vf 0  vfio-pci  group 31  52:54:00:00:00:10  no relay\n\
             └─ 0000:03:10.4 eno1v1  vf 1  igbvf  group 32  52:54:00:00:00:11  no relay\n\
             0000:03:00.1 eno2  igb  0 of 7 VFs  down\n"
        );
        assert_eq!(
            list(hosts::x550()),
            "0000:01:00.0 ens1f0  ixgbe  2 of 63 VFs  no carrier\n\
             ├─ 0000:01:10.0  vf 0  vfio-pci  group 50  00:00:00:00:00:00  no relay\n\
             └─ 0000:01:10.2  vf 1  ixgbevf  group 50  00:00:00:00:00:00  no relay\n"
        );
        assert_eq!(
            list(hosts::ena()),
            "0000:00:05.0 ens5  ena  no group  no relay  (no PF in this machine)\n\
             0000:00:06.0  vfio-pci  group 0  no relay  (no PF in this machine)\n"
        );
        assert_eq!(list(Recorded::new()), "no function of this machine can have VFs, and it has none\n");
    }
}
