//! What every driver is told about its VF.

use std::fmt;
use std::num::NonZero;

use crate::mac::MacAddress;
use crate::pci::Address;

/// Where a VF sits, as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its PCI address.
    pub address: Address,
    /// The interface of its PF and the VF's number there; `None` where the PF has no interface here.
    pub pf: Option<(String, u32)>,
}

impl Place {
    /// How `ip link set` names it: `eth0 vf 3`; `PF vf N` where that is not known.
    pub fn at_pf(&self) -> String {
        self.pf.as_ref().map_or_else(|| "PF vf N".to_owned(), |(pf, number)| format!("{pf} vf {number}"))
    }

    /// The PF's interface; `PF` where it is not known.
    pub fn pf(&self) -> &str {
        self.pf.as_ref().map_or("PF", |(pf, _)| pf)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

/// What the operator wants of a VF, as far as device and PF grant it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// Queues each way; fewer where the VF has fewer, which a notice says.
    pub queue_pairs: NonZero<u16>,
    /// The address to take; the PF's choice where there is none.
    pub mac: Option<MacAddress>,
    /// VLANs whose tagged frames are to pass, for PFs that filter them.
    pub vlans: Vec<u16>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self { queue_pairs: NonZero::<u16>::MIN, mac: None, vlans: Vec::new() }
    }
}
