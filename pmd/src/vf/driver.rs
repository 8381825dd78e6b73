//! What is particular to one family of VFs: its hand-shake, its rings, what it hears.

use std::fmt;
use std::time::Duration;

use crate::device::{DeviceError, DeviceEvent, DeviceStatistics, Link, Queues};
use crate::mac::MacAddress;
use crate::memory::Kept;

/// How far a driver is proven. Each rung includes those below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// L0: descriptors and messages are tested on their own.
    Codecs,
    /// L1: it works against our own model of the device.
    Model,
    /// L2: the Linux kernel's own driver accepts that model, too.
    KernelAcceptsModel,
    /// L3: it works in a machine on a model that others wrote, through VFIO and an IOMMU.
    ForeignModel,
    /// L4: it works on the silicon.
    Silicon,
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Codecs => "L0: its descriptors and messages were tested alone",
            Self::Model => "L1: it was tested against our own model of the device",
            Self::KernelAcceptsModel => "L2: it was tested against a model that Linux's own driver accepts",
            Self::ForeignModel => "L3: it was tested against an independent model in a machine with an IOMMU",
            Self::Silicon => "L4: it was tested on the silicon",
        })
    }
}

/// What a VF and its PF (or its firmware) agreed on after a reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The VF's address.
    pub mac: MacAddress,
    /// Longest frame in bytes, without FCS, a VLAN tag included.
    pub max_frame: u32,
    /// Whether only frames from and for `mac` pass.
    pub filters_by_mac: bool,
    /// What the operator should know (a refused promiscuous mode, an address drawn by lot): whole sentences that name the
    /// device and what to do.
    pub notices: Vec<String>,
}

/// The slow side of one family of VFs. [`Vf`](super::Vf) makes a device of it: it keeps the states, so that none of these
/// is called out of turn.
///
/// ```text
///            agree                  enable
///   stopped ───────▶ ready ─────────────────────▶ running ──┐ listen: ResetNeeded
///      ▲               │ quiesce                     │       ▼
///      └───────────────┴──────────── quiesce ────────┴──── dead           listen: Gone ──▶ gone
/// ```
pub trait VfDriver: Send + fmt::Debug {
    /// `igbvf`, `ena`: as in [`Identity::driver`](crate::Identity::driver).
    const NAME: &'static str;
    /// How far it is proven.
    const RUNG: Rung;
    /// Whether its transmit queues send from memory of the guest
    /// ([`set_guest_memory`](crate::TransmitQueue::set_guest_memory)).
    const SENDS_FROM_GUEST_MEMORY: bool = false;

    /// Resets the VF and agrees with its PF on all that has to be known before it is used. No queue runs then. Fails with
    /// a sentence that names the device, the cause and the remedy; may be called again.
    fn agree(&mut self) -> Result<Agreed, DeviceError>;

    /// Gets memory, programs the rings and switches them on. Follows an [`agree`](Self::agree) with nothing in between;
    /// the function may do DMA. [`quiesce`](Self::quiesce) follows an error, and the memory, all of which is cut with `kept`, goes
    /// after that.
    fn enable(&mut self, kept: &mut Kept) -> Result<Queues, DeviceError>;

    /// Ends all DMA of the queues, within 100 ms; whether the device confirmed that. The function is reset where it did not.
    /// Called in any state, also on a device that has left.
    fn quiesce(&mut self) -> bool;

    /// How long a transmit queue may have frames and get nowhere before the device is reset
    /// ([`watchdog`](super::watchdog)); `None` for any time. A family without a time of its own says
    /// [`STALL`](super::watchdog::STALL). Asked every 50 ms.
    fn stall_limit(&self) -> Option<Duration>;

    /// The device is about to be reset because a transmit queue gets nowhere.
    fn has_stalled(&mut self) {}

    /// Whether registers answer: one cheap read.
    fn is_present(&self) -> bool;

    /// Adds what the device has said since the last call (a reset, a changed address, a failure) to `events`. Called every
    /// 50 ms between `agree` and `quiesce`, so that a driver can keep its watchdogs there. Link changes are not told here, nor
    /// that nothing is sent.
    fn listen(&mut self, events: &mut Vec<DeviceEvent>);

    /// The state of the wire. Called every 50 ms between `agree` and `quiesce`.
    fn link(&mut self) -> Link;

    /// Counters since the VF was opened; called at least once a second, so that narrow registers can be summed up. Never
    /// called on a device that has left: the last answer is kept.
    fn statistics(&mut self) -> DeviceStatistics;

    /// All that the device counts beside [`statistics`](Self::statistics), by the names of its specification
    /// (`rx_overruns`, `bw_in_allowance_exceeded`). The order and the names never change.
    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
