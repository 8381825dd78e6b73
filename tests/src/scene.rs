//! A hostile guest beside a good one: two relays on one worker.

use forwarder::worker::Idle;
use relay::counters::{DirectionCounters, DropReason};
use relay::driver::nic::{GuestNic, NicOptions};
use relay::driver::packed::{PackedDescriptor, PackedDriver};
use relay::driver::queue::Layout;
use relay::driver::split::{DriverRing, NEXT};

use crate::frames::exchange;
use crate::stand::Stand;
use crate::wait::eventually;

/// Virtqueue index of the first receive queue.
pub const RECEIVE: usize = 0;
/// Virtqueue index of the first transmit queue.
pub const TRANSMIT: usize = 1;

/// Two relays with a cable each, on one worker.
#[derive(Debug)]
pub struct Scene {
    neighbour: GuestNic,
    exchanged: u32,
    /// Last, so that guests leave before the relays do.
    pub stand: Stand,
}

impl Scene {
    /// With a neighbour, and nobody yet on relay 0.
    ///
    /// # Panics
    /// When the neighbour cannot be brought up.
    #[allow(clippy::expect_used)]
    pub fn new() -> Self {
        // Who writes to rings by hand does not kick.
        let stand = Stand::with_idle(2, Idle::Poll);
        stand.loopback(0);
        stand.loopback(1);
        let neighbour = stand.connect(1, NicOptions::default()).expect("the neighbour is an ordinary guest");
        let mut scene = Self { neighbour, exchanged: 0, stand };
        scene.neighbour_goes_on();
        scene
    }

    /// Brings up a guest on relay 0 that will misbehave.
    ///
    /// # Panics
    /// When that fails.
    #[allow(clippy::expect_used)]
    pub fn hostile(&self, options: NicOptions) -> GuestNic {
        self.stand.connect(0, options).expect("a guest that has not misbehaved yet")
    }

    /// The neighbour exchanges some frames.
    ///
    /// # Panics
    /// When one is lost, changed or out of order.
    pub fn neighbour_goes_on(&mut self) {
        exchange(&mut self.neighbour, self.exchanged, self.exchanged + 200);
        self.exchanged += 200;
        let counters = self.stand.relay(1).counters();
        assert_eq!(counters.vm_to_vf.dropped_in_all() + counters.vf_to_vm.dropped_in_all(), 0);
    }

    /// What relay 0 counts of frames from its guest.
    pub fn from_guest(&self) -> &DirectionCounters {
        &self.stand.relay(0).counters().vm_to_vf
    }

    /// What relay 0 counts of frames to its guest.
    pub fn to_guest(&self) -> &DirectionCounters {
        &self.stand.relay(0).counters().vf_to_vm
    }

    /// Waits until the hostile guest is disconnected, and lets an ordinary one on its relay exchange frames.
    ///
    /// # Panics
    /// When either does not happen.
    pub fn relay_is_free_again(&mut self) {
        eventually("the hostile guest is gone", || self.stand.relay(0).status().guest.is_none());
        exchange(&mut self.hostile(NicOptions::default()), 0, 100);
        eventually("the ordinary guest is gone", || self.stand.relay(0).status().guest.is_none());
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

/// The split ring of a virtqueue.
///
/// # Panics
/// When it is packed.
#[allow(clippy::panic)]
pub fn split(nic: &mut GuestNic, index: usize) -> (&mut DriverRing, &relay::driver::memory::GuestRam) {
    match nic.by_hand(index) {
        (Layout::Split(ring), ram) => (ring, ram),
        (Layout::Packed(_), _) => panic!("a packed ring"),
    }
}

/// The packed ring of a virtqueue.
///
/// # Panics
/// When it is split.
#[allow(clippy::panic)]
pub fn packed(nic: &mut GuestNic, index: usize) -> (&mut PackedDriver, &relay::driver::memory::GuestRam) {
    match nic.by_hand(index) {
        (Layout::Packed(ring), ram) => (ring, ram),
        (Layout::Split(_), _) => panic!("a split ring"),
    }
}

/// A descriptor by hand: address, length, flags.
pub type Buffer = (u64, u32, u16);

/// Makes a chain of these descriptors available, in a ring of either layout. Each chain has to have been taken back
/// before the next is posted. The device is kicked, whether it wants that or not.
pub fn post(nic: &mut GuestNic, index: usize, chain: &[Buffer]) {
    match nic.by_hand(index) {
        (Layout::Split(ring), ram) => {
            for (n, (addr, len, flags)) in chain.iter().enumerate() {
                let last = n + 1 == chain.len();
                let flags = flags | if last { 0 } else { NEXT };
                let next = n as u16 + 1;
                ring.set(
                    ram,
                    n as u16,
                    relay::driver::split::Descriptor { addr: *addr, len: *len, flags, next },
                );
            }
            ring.push(ram, 0);
            ring.publish(ram);
        }
        (Layout::Packed(ring), ram) => {
            let chain: Vec<_> = chain
                .iter()
                .map(|(addr, len, flags)| PackedDescriptor { addr: *addr, len: *len, id: 0, flags: *flags })
                .collect();
            assert!(ring.push(ram, 0, &chain), "a ring with room");
            ring.publish(ram);
        }
    }
    nic.kick(index);
}

/// Takes back what the device used in a ring that is written by hand; how many chains.
pub fn take_back(nic: &mut GuestNic, index: usize) -> usize {
    let mut n = 0;
    match nic.by_hand(index) {
        (Layout::Split(ring), ram) => {
            while ring.pop(ram).is_some() {
                n += 1
            }
        }
        (Layout::Packed(ring), ram) => {
            while ring.pop(ram).is_some() {
                n += 1
            }
        }
    }
    n
}

/// Reasons for which frames were dropped, with their number.
pub fn drops(counters: &DirectionCounters) -> Vec<(DropReason, u64)> {
    let count = |reason: &DropReason| (*reason, counters.dropped(*reason));
    DropReason::ALL.iter().map(count).filter(|(_, n)| *n > 0).collect()
}
