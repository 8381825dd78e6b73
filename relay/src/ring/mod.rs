//! The device side of a guest's virtio rings.
//!
//! [`split`] and [`packed`] know a memory layout each and nothing of Ethernet; what they have in common is the trait
//! [`queue::Virtqueue`], and what [`chain`], [`plain`], `buffer`, [`event`] and [`notify`] say. [`transmit`] and [`receive`] are the
//! two uses that a network device makes of a ring: taking frames out of it, and putting frames into it.

use std::sync::Arc;

use crate::guest::iotlb_miss::MissReporter;
use crate::guest::space::AddressSpace;

pub(crate) mod ahead;
mod buffer;
pub mod chain;
pub mod config;
pub mod event;
pub mod notify;
pub mod packed;
pub mod plain;
pub mod position;
pub mod queue;
pub mod receive;
pub mod split;
pub mod transmit;

pub use config::{RingConfig, RingError};
pub use packed::PackedRing;
pub use receive::ReceiveRing;
pub use split::SplitRing;
pub use transmit::TransmitRing;

use notify::Call;

/// A ring of either layout. The layout is decided once a burst, by [`with_ring!`].
#[derive(Debug)]
pub enum Ring {
    /// Three areas: descriptors, available, used (virtio 1.3, 2.7).
    Split(SplitRing),
    /// One area that both sides write (2.8).
    Packed(PackedRing),
}

/// Evaluates an expression with the ring inside a [`Ring`], whichever its layout.
macro_rules! with_ring {
    ($ring:expr, $name:ident => $body:expr) => {
        match $ring {
            $crate::ring::Ring::Split($name) => $body,
            $crate::ring::Ring::Packed($name) => $body,
        }
    };
}
pub(crate) use with_ring;

impl Ring {
    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        with_ring!(self, ring => ring.size())
    }

    /// Where the ring stands, in the format of `VHOST_USER_GET_VRING_BASE`.
    pub fn base(&self) -> u32 {
        with_ring!(self, ring => ring.base())
    }

    /// Replaces what descriptors are looked up in; the ring itself stays where it is.
    pub fn set_space(&mut self, space: Arc<AddressSpace>) {
        with_ring!(self, ring => ring.set_space(space));
    }

    /// Addresses that are not found are reported from now on, since they may be found later.
    pub fn report_misses(&mut self, reporter: MissReporter) {
        with_ring!(self, ring => ring.report_misses(reporter));
    }

    /// Replaces the descriptor that interrupts the guest; `None` for a guest that polls.
    pub fn set_call(&mut self, call: Option<Call>) {
        with_ring!(self, ring => ring.set_call(call));
    }

    /// Tells the driver that it need not kick.
    pub fn disable_kicks(&mut self) {
        with_ring!(self, ring => ring.disable_kicks());
    }

    /// Asks the driver to kick when it makes a chain available. Returns whether one waits already: there may be no kick for
    /// that.
    pub fn enable_kicks(&mut self) -> bool {
        with_ring!(self, ring => ring.enable_kicks())
    }

    /// Shows the guest all that was completed, and says where the ring stands. An interrupt is not due: the front end
    /// that stops a ring looks for itself.
    pub fn finish(&mut self) -> u32 {
        with_ring!(self, ring => queue::Virtqueue::publish_quietly(ring));
        self.base()
    }
}

impl From<SplitRing> for Ring {
    fn from(ring: SplitRing) -> Self {
        Self::Split(ring)
    }
}

impl From<PackedRing> for Ring {
    fn from(ring: PackedRing) -> Self {
        Self::Packed(ring)
    }
}

#[cfg(test)]
pub(crate) mod by_hand;
#[cfg(test)]
mod layouts;
#[cfg(test)]
mod operations;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod tests;
