//! `packet:IFNAME`: an Ethernet interface of the kernel, through a packet socket.
//!
//! Unlike a tap it is there before, with its address, its addresses of IP and its traffic, and stays when the device
//! goes. The guest receives all that the interface receives (promiscuous mode), beside the kernel, and what the guest
//! sends leaves through it.
//!
//! ```text
//!   receive    kernel ──▶ slots of a ring that is shared with it (TPACKET_V2) ──▶ lent to the burst
//!              kernel ──▶ the socket's queue ── recv ──▶ buffers of our own ────▶ lent: frames longer than a slot (GRO, TSO)
//!   transmit   frames of a burst, where they are ── sendmmsg ──▶ kernel
//! ```
//!
//! - *TPACKET_V2, not V3.* V3 hands over blocks when they are full or a timer of the kernel (1 ms at best, 4 to 10 in
//!   practice) closes them; here a frame is seen by the next poll. What V3 is better at, frames of mixed length, is done
//!   by slots as the MTU needs them and a queue for those few that are longer.
//! - *`sendmmsg`, not a transmit ring.* Both copy once and make one system call a burst. On a veth pair (Linux 6.18, CPU
//!   time a frame in bursts of 32, medians of 5) the ring took 656 ns where `sendmmsg` took 755 with 60 bytes, and 794
//!   against 802 with 1514. The ring would need slots as long as a frame to be cut (64 KiB), finishes later, and
//!   tells of a frame that cannot be sent by a status alone; `sendmmsg` gathers out of the guest's memory and stops at
//!   that very frame.
//! - *No `PACKET_QDISC_BYPASS`.* It loses silently each frame that the driver cannot cut itself
//!   (`validate_xmit_skb_list` in `__dev_direct_xmit`) and each for which the driver's queue is full. On virtual
//!   interfaces there is no queueing discipline to save.
//! - *A virtio-net header before each frame* (`PACKET_VNET_HDR`): frames of a local stack (the other end of a veth pair)
//!   come without checksums and up to 64 KiB long, and their header says what is to be done. VLAN tags, which the kernel
//!   takes out, are put back.

mod interface;
mod receive;
mod socket;
mod transmit;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{
    Device, DeviceError, DeviceEvent, DeviceStatistics, Identity, Link, Queues, Receive, Transmit,
};
use interface::{Interface, State};
pub use receive::PacketReceive;
use socket::Socket;
pub use transmit::PacketTransmit;

/// Bytes of the virtio-net header before each frame, which has no `num_buffers` here.
const VNET_HEADER: usize = crate::net_header::LEGACY_LENGTH as usize;

/// The slow side of a packet socket.
#[derive(Debug)]
pub struct Packet {
    identity: Identity,
    interface: Interface,
    link: Option<Link>,
    /// While it runs, the socket that its queues have.
    socket: Option<Arc<Socket>>,
    /// Frames that earlier sockets had no room for.
    missed: u64,
    faulty: Arc<AtomicU64>,
}

impl Packet {
    /// Opens the Ethernet interface `name` of the kernel, in the network namespace of the daemon.
    pub fn open(name: &str) -> Result<Self, DeviceError> {
        let interface = Interface::find(name).map_err(|cause| not_there(name, &cause))?;
        let state = interface.state().map_err(|cause| not_there(name, &cause))?;
        if !state.ethernet {
            return Err(DeviceError::Unsupported(format!(
                "interface {name} does not carry Ethernet frames; choose an Ethernet interface"
            )));
        }
        // To say it now and not when the guest is there.
        Socket::new().map_err(|cause| no_socket(name, &cause))?;
        let identity = Identity {
            name: format!("packet:{name}"),
            driver: "packet",
            mac: Some(state.mac),
            max_frame: state.max_frame(),
            filters_by_mac: false,
            at_pf: None,
        };
        Ok(Self { identity, interface, link: None, socket: None, missed: 0, faulty: Arc::default() })
    }

    fn name(&self) -> &str {
        self.identity.name.strip_prefix("packet:").unwrap_or_default()
    }

    /// What of `state` is another than it was.
    fn differences(&mut self, state: &State) -> Vec<DeviceEvent> {
        let mut events = Vec::new();
        if self.link.replace(state.link) != Some(state.link) {
            events.push(DeviceEvent::Link(state.link));
        }
        if self.identity.mac.replace(state.mac) != Some(state.mac) {
            events.push(DeviceEvent::MacChanged(state.mac));
        }
        if std::mem::replace(&mut self.identity.max_frame, state.max_frame()) != state.max_frame()
            && self.socket.is_some()
        {
            let reason = format!("the MTU of interface {} is {} now", self.name(), state.mtu);
            events.push(DeviceEvent::ResetNeeded { reason });
        }
        events
    }
}

fn not_there(name: &str, cause: &io::Error) -> DeviceError {
    match cause.raw_os_error() {
        Some(libc::ENODEV | libc::ENXIO) => DeviceError::NotFound(format!(
            "there is no network interface {name} here: see ip link, and in which network namespace the daemon runs"
        )),
        _ => DeviceError::Failed(format!("cannot look at interface {name}: {cause}")),
    }
}

fn no_socket(name: &str, cause: &io::Error) -> DeviceError {
    let text = |remedy| format!("cannot open a packet socket for interface {name}: {cause}; {remedy}");
    match cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            DeviceError::NotReady(text("give the daemon CAP_NET_RAW, or run it as root"))
        }
        Some(libc::EAFNOSUPPORT) => DeviceError::NotReady(text("load the module: modprobe af_packet")),
        Some(libc::ENOPROTOOPT) => DeviceError::Unsupported(text("it needs Linux 4.20 or newer")),
        _ => DeviceError::Failed(text("see the kernel log")),
    }
}

impl Device for Packet {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn start(&mut self) -> Result<Queues, DeviceError> {
        let state = self.interface.state().map_err(|cause| not_there(self.name(), &cause))?;
        self.identity.max_frame = state.max_frame();
        let (socket, ring) = Socket::open(self.interface.index(), state.max_frame())
            .map_err(|cause| no_socket(self.name(), &cause))?;
        let receive = PacketReceive::new(ring, Arc::clone(&self.faulty))
            .ok_or_else(|| DeviceError::Failed("no memory for receive buffers".to_owned()))?;
        self.socket = Some(Arc::clone(&socket));
        Ok(Queues {
            receive: vec![Receive::Packet(receive)],
            transmit: vec![Transmit::Packet(PacketTransmit { socket })],
        })
    }

    fn stop(&mut self, queues: Queues) {
        if let Some(socket) = self.socket.take() {
            self.missed += socket.missed();
        }
        drop(queues);
    }

    fn service(&mut self) -> Vec<DeviceEvent> {
        if let Some(socket) = &self.socket {
            socket.forget_error();
        }
        match self.interface.state() {
            Ok(state) => self.differences(&state),
            Err(cause) if matches!(cause.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
                let reason =
                    format!("interface {} was deleted, or moved to another network namespace", self.name());
                vec![DeviceEvent::Gone { reason }]
            }
            // A question that the kernel has no memory for is asked again.
            Err(_) => Vec::new(),
        }
    }

    /// Frames for which there was no room, and those that contradict their header; the kernel counts the rest.
    fn statistics(&mut self) -> DeviceStatistics {
        DeviceStatistics {
            rx_missed: self.missed + self.socket.as_ref().map_or(0, |socket| socket.missed()),
            rx_errors: self.faulty.load(Ordering::Relaxed),
            ..DeviceStatistics::default()
        }
    }
}

#[cfg(test)]
mod tests;
