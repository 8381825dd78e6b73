//! What every device offers: a slow side for control threads, and queues for workers.
//!
//! ```text
//!   control thread of the device              worker
//!   ─────────────────────────────             ─────────────────────────────
//!   dyn Device: service, statistics           Receive::receive / release
//!        │ start()   ──── Queues ────────▶    Transmit::transmit / reclaim
//!        │ stop(Queues) ◀─ Queues ───────
//! ```
//!
//! Queues are values. Whoever holds one is its only user, so it needs no lock; `stop` takes them all back, so that a
//! dead ring cannot be polled.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use thiserror::Error;

use crate::frame::{Burst, Frames, Token};
use crate::mac::MacAddress;
use crate::memory::{DmaMap, GuestWindows};
use crate::offload::Capabilities;
use crate::vf::Progress;

/// What is known about a device from the moment it is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Name for people and logs: `0000:02:08.0`, `tap:vm1`.
    pub name: String,
    /// Driver: `igbvf`, `tap`, `null`.
    pub driver: &'static str,
    /// The device's own address; `None` where it has none.
    pub mac: Option<MacAddress>,
    /// Longest frame that it sends and receives, in bytes without FCS.
    pub max_frame: u32,
    /// Whether it only carries frames from and for its own `mac` (a VF): guests with another address need to be told.
    pub filters_by_mac: bool,
    /// How `ip link set` names a VF at its PF: `eth0 vf 0`; `None` where that is not known, or it is no VF.
    pub at_pf: Option<String>,
}

/// State of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// No carrier.
    Down,
    /// Carrier; speed in Mbit/s, where known.
    Up {
        /// Mbit/s.
        speed: Option<u32>,
    },
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Link::Down => f.write_str("down"),
            Link::Up { speed: None } => f.write_str("up"),
            Link::Up { speed: Some(speed) } => write!(f, "up, {speed} Mbit/s"),
        }
    }
}

/// Something that [`Device::service`] noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The wire changed.
    Link(Link),
    /// The device was reset under us (by its PF, say): its queues are dead. The caller takes them from the workers and
    /// calls [`Device::stop`], then [`Device::start`] until that succeeds.
    ResetNeeded {
        /// What happened, a sentence for the log.
        reason: String,
    },
    /// The device left the machine. Nothing but [`Device::stop`] may follow.
    Gone {
        /// What happened, a sentence for the log.
        reason: String,
    },
    /// The device's own address is now another.
    MacChanged(MacAddress),
    /// Something that the operator should know once (a refused promiscuous mode, a slow mapping): a sentence that names
    /// the device.
    Notice(String),
}

/// Counters of the device itself, since it was opened. What a device does not count is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStatistics {
    /// Good frames received.
    pub rx_frames: u64,
    /// Bytes of good frames received.
    pub rx_bytes: u64,
    /// Frames that the device dropped because no receive descriptor was free.
    pub rx_missed: u64,
    /// Frames that arrived damaged and were discarded.
    pub rx_errors: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes of frames sent.
    pub tx_bytes: u64,
    /// Frames that the device could not send.
    pub tx_errors: u64,
}

/// Why a device could not be opened or started. The text names the device, the cause and what to do.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// There is no such device.
    #[error("{0}")]
    NotFound(String),
    /// It is there but not usable as it is (bound to another driver, group not viable, no permission).
    #[error("{0}")]
    NotReady(String),
    /// It is in use, by this daemon or by somebody else.
    #[error("{0}")]
    Busy(String),
    /// No driver here knows it.
    #[error("{0}")]
    Unsupported(String),
    /// It did not answer, or answered wrongly.
    #[error("{0}")]
    Failed(String),
}

/// All queues of a started device.
#[derive(Debug, Default)]
pub struct Queues {
    /// Receive queues; at least one.
    pub receive: Vec<Receive>,
    /// Transmit queues; at least one.
    pub transmit: Vec<Transmit>,
}

/// The slow side of a device. Calls may take as long as the hardware's own time limits (seconds); a control thread
/// makes them, never a worker.
///
/// Dropping a device leaves the hardware quiet: no DMA, no interrupt.
pub trait Device: Send + fmt::Debug {
    /// Name, driver, address, frame size.
    fn identity(&self) -> &Identity;

    /// Brings the rings up and hands out the queues. An error leaves the device stopped; it may be called again.
    fn start(&mut self) -> Result<Queues, DeviceError>;

    /// Quiets the rings. `queues` are those that `start` gave; frames that they still hold are lost. Borrowed frames
    /// must have been taken back before with [`TransmitQueue::abort`].
    fn stop(&mut self, queues: Queues);

    /// The regular look at the slow side; called about every 50 ms, started or not.
    fn service(&mut self) -> Vec<DeviceEvent>;

    /// Counters of the device.
    fn statistics(&mut self) -> DeviceStatistics;

    /// What the device counts beside [`statistics`](Self::statistics), by its own names, always in the same order.
    fn counters(&mut self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }

    /// Through what a guest's memory is made reachable for the device, so that it sends from there (zero-copy, see
    /// [`TransmitQueue::set_guest_memory`]); or why that cannot be, as a part of a sentence that names the device. The
    /// answer may change while the device is open.
    fn guest_dma(&self) -> Result<Arc<dyn DmaMap>, String> {
        Err(format!("{} copies what it sends", self.identity().name))
    }
}

/// What a transmit queue did with the frames it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The first `n` frames were copied: their memory is free again.
    Copied(usize),
    /// The first `n` frames are borrowed: their tokens come back from [`TransmitQueue::reclaim`] or
    /// [`TransmitQueue::abort`], each exactly once, in any order.
    Borrowed(usize),
    /// The first `n` frames cannot be sent now or later (the interface is down, say): they are lost, their memory is
    /// free again.
    Refused(usize),
}

/// Tokens of borrowed frames that came back, as many as one call returns.
pub type Completions = ArrayVec<Token, 64>;

/// The sending side of a device; owned by one worker.
///
/// The caller only passes frames of [`MIN_FRAME`](crate::frame::MIN_FRAME) to [`Identity::max_frame`] bytes (longer ones
/// where the device cuts them), and only with offloads that its [`capabilities`](TransmitQueue::capabilities) cover.
/// A queue that reads headers ([`Capabilities::by_header`]) copies the first segment of a frame that leaves something to do
/// before [`transmit`](TransmitQueue::transmit) returns, also where it borrows the rest.
pub trait TransmitQueue: Send + fmt::Debug {
    /// What frames may leave to the device; they need not be ready for the wire then.
    fn capabilities(&self) -> Capabilities {
        Capabilities::NONE
    }

    /// Takes a prefix of `frames`, possibly none, and starts sending it (with at most one doorbell).
    fn transmit(&mut self, frames: Frames<'_>) -> Accepted;

    /// Returns borrowed frames that are done, as many as `done` has room for.
    fn reclaim(&mut self, done: &mut Completions);

    /// Where it notes how it gets on, for the watchdog of its device; `None` where nobody watches.
    fn progress(&self) -> Option<Arc<Progress>> {
        None
    }

    /// Borrowed frames that have not come back.
    fn outstanding(&self) -> usize;

    /// Memory that the device reaches from now on: frames that lie there are sent from where they are, and borrowed. With
    /// frames outstanding, all windows that the queue had must be among those that it gets. Only control threads call it.
    fn set_guest_memory(&mut self, _windows: Arc<GuestWindows>) {}

    /// Takes back borrowed frames from a device that does not finish them: disables the queue so that the device
    /// cannot touch the memory again, then returns their tokens, as many as `done` has room for; called again until
    /// [`outstanding`](TransmitQueue::outstanding) is 0. Only a control thread calls it; it takes at most 20 ms. The
    /// queue sends nothing more until its device is stopped and started.
    fn abort(&mut self, done: &mut Completions);
}

/// What somebody who has nothing to do any more can count on, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Armed {
    /// A descriptor becomes readable when there is something; or there will never be anything.
    Rings,
    /// Nothing says when there is something: it must be looked for now and then.
    Silent,
    /// There seems to be something.
    Ready,
}

/// The receiving side of a device; owned by one worker.
pub trait ReceiveQueue: Send + fmt::Debug {
    /// Adds received frames to `burst`, at most [`Burst::room`]. Their memory is lent until [`ReceiveQueue::release`].
    fn receive(&mut self, burst: &mut Burst);

    /// Gives a frame's memory back to the queue.
    fn release(&mut self, token: Token);

    /// The descriptor that becomes readable, once more each time, when a frame has come after [`ReceiveQueue::arm`].
    /// Nobody reads it.
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Has [`bell`](ReceiveQueue::bell) ring for the next frame, and then looks whether one is there already.
    fn arm(&mut self) -> Armed {
        Armed::Silent
    }

    /// It need not ring any more; it may.
    fn disarm(&mut self) {}

    /// Whether its frames may wait for as long as a guest has no room for them, or is not there: nobody sends them in the
    /// meantime (a file), so none has to be dropped.
    fn can_wait(&self) -> bool {
        false
    }
}

macro_rules! transmit_kinds {
    ($($(#[$doc:meta])* $variant:ident($ty:ty),)*) => {
        /// A transmit queue of any device: the kind is decided once a burst.
        #[derive(Debug)]
        #[allow(clippy::large_enum_variant, reason = "a lane keeps its queue in place, and looks into it without an indirection")]
        pub enum Transmit {
            $($(#[$doc])* $variant($ty),)*
            /// Any other device, reached through one indirect call a burst.
            Other(Box<dyn TransmitQueue>),
        }
        impl TransmitQueue for Transmit {
            fn capabilities(&self) -> Capabilities {
                match self { $(Self::$variant(q) => q.capabilities(),)* Self::Other(q) => q.capabilities() }
            }
            #[inline]
            fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
                match self { $(Self::$variant(q) => q.transmit(frames),)* Self::Other(q) => q.transmit(frames) }
            }
            #[inline]
            fn reclaim(&mut self, done: &mut Completions) {
                match self { $(Self::$variant(q) => q.reclaim(done),)* Self::Other(q) => q.reclaim(done) }
            }
            fn progress(&self) -> Option<Arc<Progress>> {
                match self { $(Self::$variant(q) => q.progress(),)* Self::Other(q) => q.progress() }
            }
            #[inline]
            fn outstanding(&self) -> usize {
                match self { $(Self::$variant(q) => q.outstanding(),)* Self::Other(q) => q.outstanding() }
            }
            fn set_guest_memory(&mut self, windows: Arc<GuestWindows>) {
                match self {
                    $(Self::$variant(q) => q.set_guest_memory(windows),)*
                    Self::Other(q) => q.set_guest_memory(windows),
                }
            }
            fn abort(&mut self, done: &mut Completions) {
                match self { $(Self::$variant(q) => q.abort(done),)* Self::Other(q) => q.abort(done) }
            }
        }
    };
}

macro_rules! receive_kinds {
    ($($(#[$doc:meta])* $variant:ident($ty:ty),)*) => {
        /// A receive queue of any device: the kind is decided once a burst.
        #[derive(Debug)]
        #[allow(clippy::large_enum_variant, reason = "a lane keeps its queue in place, and looks into it without an indirection")]
        pub enum Receive {
            $($(#[$doc])* $variant($ty),)*
            /// Any other device, reached through one indirect call a burst.
            Other(Box<dyn ReceiveQueue>),
        }
        impl ReceiveQueue for Receive {
            #[inline]
            fn receive(&mut self, burst: &mut Burst) {
                match self { $(Self::$variant(q) => q.receive(burst),)* Self::Other(q) => q.receive(burst) }
            }
            #[inline]
            fn release(&mut self, token: Token) {
                match self { $(Self::$variant(q) => q.release(token),)* Self::Other(q) => q.release(token) }
            }
            fn bell(&self) -> Option<BorrowedFd<'_>> {
                match self { $(Self::$variant(q) => q.bell(),)* Self::Other(q) => q.bell() }
            }
            fn arm(&mut self) -> Armed {
                match self { $(Self::$variant(q) => q.arm(),)* Self::Other(q) => q.arm() }
            }
            fn disarm(&mut self) {
                match self { $(Self::$variant(q) => q.disarm(),)* Self::Other(q) => q.disarm() }
            }
            fn can_wait(&self) -> bool {
                match self { $(Self::$variant(q) => q.can_wait(),)* Self::Other(q) => q.can_wait() }
            }
        }
    };
}

transmit_kinds! {
    /// Sends into nothing.
    Null(crate::software::null::NullTransmit),
    /// Sends into a tap interface.
    Tap(crate::software::tap::TapTransmit),
    /// Sends through an interface of the kernel.
    Packet(crate::software::packet::PacketTransmit),
    /// Records into a capture file.
    Pcap(crate::software::pcap::PcapTransmit),
    /// Sends through a virtio-net function.
    Virtio(crate::virtio::VirtioTransmit),
    /// Sends through an 82576, I350, 82599, X540 or X550 VF.
    Intel(crate::intel::IntelTransmit),
    /// Sends through an ENA.
    Ena(crate::ena::EnaTransmit),
    /// Sends through an NFP's VF.
    Nfp(crate::nfp::NfpTransmit),
    /// Sends through a VF of the 700 or 800 series.
    Iavf(crate::iavf::IavfTransmit),
}

receive_kinds! {
    /// Never receives.
    Null(crate::software::null::NullReceive),
    /// Receives from a tap interface.
    Tap(crate::software::tap::TapReceive),
    /// Receives what an interface of the kernel receives.
    Packet(crate::software::packet::PacketReceive),
    /// Plays a capture file.
    Pcap(crate::software::pcap::PcapReceive),
    /// Receives from a virtio-net function.
    Virtio(crate::virtio::VirtioReceive),
    /// Receives from an 82576, I350, 82599, X540 or X550 VF.
    Intel(crate::intel::IntelReceive),
    /// Receives from an ENA.
    Ena(crate::ena::EnaReceive),
    /// Receives from an NFP's VF.
    Nfp(crate::nfp::NfpReceive),
    /// Receives from a VF of the 700 or 800 series.
    Iavf(crate::iavf::IavfReceive),
}
