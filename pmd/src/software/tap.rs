//! `tap:NAME`: a kernel tap interface, created when it is opened and gone when it is dropped (a persistent one stays).
//!
//! Sending gathers a frame's segments in the kernel (`writev`): the one copy there is. Receiving reads into a pool of
//! our own, from where a frame is copied once into the guest. Each frame comes and goes behind a virtio-net header, so
//! that checksums and segmentation are left to whoever is last, as with any virtual NIC of Linux.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::device::{
    Accepted, Armed, Completions, Device, DeviceError, DeviceEvent, DeviceStatistics, Identity, Link, Queues,
    Receive, ReceiveQueue, Transmit, TransmitQueue,
};
use crate::frame::{BURST_FRAMES, Burst, Frames, Segment, Token};
use crate::net_header::{self, LENGTH};
use crate::offload::Capabilities;
use crate::software::buffers::Buffers;

/// Longest interface name in bytes (`IFNAMSIZ` less the closing zero).
const MAX_NAME: usize = libc::IFNAMSIZ - 1;
/// Longest frame that goes as it is: a jumbo frame of 9702 bytes with its VLAN tags, rounded to cache lines.
const MAX_FRAME: u32 = 9728;
/// Room for one frame behind its header. Those that are still to be cut have up to 65535 bytes and an Ethernet header
/// with tags. Only what is used of it takes memory.
const BUFFER: usize = (LENGTH as usize + 65535 + 14 + 8).next_multiple_of(64);
/// Frames that can be on their way to the guest at once.
const BUFFERS: u32 = 256;

/// The slow side of a tap interface.
#[derive(Debug)]
pub struct Tap {
    identity: Identity,
    capabilities: Capabilities,
    file: Arc<File>,
    link: Option<Link>,
    faulty: Arc<AtomicU64>,
}

impl Tap {
    /// Creates the interface `name`, or attaches to it where it exists and is free.
    pub fn open(name: &str) -> Result<Self, DeviceError> {
        // '%' would have the kernel choose a number.
        let bad = |c: char| matches!(c, '/' | ':' | '%') || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() > MAX_NAME || name.contains(bad) || name == "." || name == ".." {
            return Err(DeviceError::Unsupported(format!(
                "'{name}' is not an interface name; give 1 to {MAX_NAME} characters without '/', ':', '%' and blanks"
            )));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open("/dev/net/tun")
            .map_err(|cause| open_error(name, &cause))?;
        attach(&file, name).map_err(|cause| attach_error(name, &cause))?;
        let capabilities = negotiate(&file).map_err(|cause| attach_error(name, &cause))?;
        let identity = Identity {
            name: format!("tap:{name}"),
            driver: "tap",
            mac: None,
            max_frame: MAX_FRAME,
            filters_by_mac: false,
            at_pf: None,
        };
        Ok(Self { identity, capabilities, file: Arc::new(file), link: None, faulty: Arc::default() })
    }

    fn interface(&self) -> &str {
        self.identity.name.strip_prefix("tap:").unwrap_or_default()
    }
}

fn open_error(name: &str, cause: &io::Error) -> DeviceError {
    let remedy = match cause.kind() {
        io::ErrorKind::NotFound => "load the module: modprobe tun",
        io::ErrorKind::PermissionDenied => "run the daemon as root or give it access to /dev/net/tun",
        _ => "see the kernel log",
    };
    DeviceError::NotReady(format!("cannot open /dev/net/tun for tap:{name}: {cause}; {remedy}"))
}

fn attach_error(name: &str, cause: &io::Error) -> DeviceError {
    match cause.raw_os_error() {
        Some(libc::EBUSY) => DeviceError::Busy(format!("interface {name} is in use by another program")),
        Some(libc::EPERM) => DeviceError::NotReady(format!(
            "no permission for interface {name}; give the daemon CAP_NET_ADMIN, or create it for its user: \
             ip tuntap add {name} mode tap user USER"
        )),
        Some(libc::EINVAL) => {
            DeviceError::Unsupported(format!("interface {name} exists and is not a tap; choose another name"))
        }
        _ => DeviceError::Failed(format!("cannot attach to interface {name}: {cause}")),
    }
}

/// `TUNSETIFF` (linux/if_tun.h), `_IOW('T', 202, int)`.
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

fn attach(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (slot, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *slot = byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the descriptor is open and `request` lives through the call; TUNSETIFF reads and writes one `ifreq`.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) };
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `TUNSETVNETHDRSZ`, `_IOW('T', 216, int)`; `TUNSETVNETLE`, `_IOW('T', 220, int)`; `TUNSETOFFLOAD`,
/// `_IOW('T', 208, unsigned int)` (linux/if_tun.h).
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
const TUNSETVNETLE: libc::c_ulong = 0x4004_54dc;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;

/// `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6`, `TUN_F_TSO_ECN`; `TUN_F_USO4` and `TUN_F_USO6` since Linux 6.2.
const TCP_OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04 | 0x08;
const UDP_OFFLOADS: libc::c_ulong = 0x20 | 0x40;

/// Agrees with the kernel on the header before each frame, and on what may be left to us; returns what may be left to the
/// kernel.
fn negotiate(file: &File) -> io::Result<Capabilities> {
    let set = |request, value: libc::c_int| {
        // SAFETY: the descriptor is open, and both requests read one `int`, which lives through the call.
        let status = unsafe { libc::ioctl(file.as_raw_fd(), request, &raw const value) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    set(TUNSETVNETHDRSZ, LENGTH as libc::c_int)?;
    set(TUNSETVNETLE, 1)?;
    let offer = |offloads: libc::c_ulong| {
        // SAFETY: the descriptor is open; the request takes its argument by value.
        let status = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, offloads) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // Kernels that do not know UDP say so, and neither send nor take such frames.
    let udp = offer(TCP_OFFLOADS | UDP_OFFLOADS).is_ok();
    if !udp {
        offer(TCP_OFFLOADS)?;
    }
    Ok(Capabilities { udp, ..Capabilities::ALL })
}

/// `TUNGETIFF` (linux/if_tun.h), `_IOR('T', 210, unsigned int)`.
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;

/// The present name of the interface behind an attached descriptor; it may have been renamed. `EBADFD` when the
/// interface is no more.
fn interface_of(file: &File) -> io::Result<String> {
    // SAFETY: `ifreq` is plain data for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open and `request` lives through the call; TUNGETIFF writes one `ifreq`.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNGETIFF, &mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).collect();
    String::from_utf8(name).map_err(io::Error::other)
}

impl Device for Tap {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn start(&mut self) -> Result<Queues, DeviceError> {
        Ok(Queues {
            receive: vec![Receive::Tap(TapReceive {
                file: Arc::clone(&self.file),
                pool: Buffers::new(BUFFERS, BUFFER + 1)
                    .ok_or_else(|| DeviceError::Failed("no memory for receive buffers".to_owned()))?,
                free: (0..BUFFERS).collect(),
                faulty: Arc::clone(&self.faulty),
            })],
            transmit: vec![Transmit::Tap(TapTransmit {
                file: Arc::clone(&self.file),
                capabilities: self.capabilities,
            })],
        })
    }

    fn stop(&mut self, queues: Queues) {
        drop(queues);
    }

    fn service(&mut self) -> Vec<DeviceEvent> {
        let name = match interface_of(&self.file) {
            Ok(name) => name,
            Err(cause) => {
                let reason = format!("interface {} was deleted: {cause}", self.interface());
                return vec![DeviceEvent::Gone { reason }];
            }
        };
        let state = std::fs::read_to_string(format!("/sys/class/net/{name}/operstate"));
        // An interface that another network namespace owns cannot be seen here; it is taken to be up.
        let link = match state.as_deref().map(str::trim) {
            Ok("down") => Link::Down,
            _ => Link::Up { speed: None },
        };
        if self.link.replace(link) == Some(link) { Vec::new() } else { vec![DeviceEvent::Link(link)] }
    }

    /// Frames that do not fit a buffer or contradict their header count as errors; the kernel counts the rest.
    fn statistics(&mut self) -> DeviceStatistics {
        DeviceStatistics { rx_errors: self.faulty.load(Ordering::Relaxed), ..DeviceStatistics::default() }
    }
}

/// Sends with one `writev` a frame.
#[derive(Debug)]
pub struct TapTransmit {
    file: Arc<File>,
    capabilities: Capabilities,
}

/// Pieces of one frame, its header among them, that one `writev` takes (`UIO_MAXIOV` is 1024).
const MAX_PIECES: usize = crate::frame::BURST_SEGMENTS + 1;

impl TransmitQueue for TapTransmit {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn transmit(&mut self, frames: Frames<'_>) -> Accepted {
        for (sent, (frame, segments)) in frames.iter().enumerate() {
            let mut header = net_header::write(frame.offload(), 0);
            let mut pieces = arrayvec::ArrayVec::<libc::iovec, MAX_PIECES>::new();
            pieces.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() });
            for segment in segments.iter().take(MAX_PIECES - 1) {
                pieces
                    .push(libc::iovec { iov_base: segment.as_ptr().cast(), iov_len: segment.len() as usize });
            }
            // SAFETY: the first piece is the local header, every other a segment, mapped until its frame completes; the
            // kernel only reads them, and answers EFAULT where a mapping has lost its pages.
            let status =
                unsafe { libc::writev(self.file.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
            if status < 0 {
                let cause = io::Error::last_os_error().kind();
                return match sent {
                    // A tap only asks to wait when its queue is full. It refuses for good when it is down (EIO).
                    0 if cause != io::ErrorKind::WouldBlock && cause != io::ErrorKind::Interrupted => {
                        Accepted::Refused(1)
                    }
                    // What comes after the frames that were sent is looked at when it is offered again.
                    _ => Accepted::Copied(sent),
                };
            }
        }
        Accepted::Copied(frames.len())
    }

    fn reclaim(&mut self, _done: &mut Completions) {}

    fn outstanding(&self) -> usize {
        0
    }

    fn abort(&mut self, _done: &mut Completions) {}
}

/// Receives with one `read` a frame, until there is none.
#[derive(Debug)]
pub struct TapReceive {
    file: Arc<File>,
    /// Each has room for one byte more than a frame may have, so that a longer one is noticed.
    pool: Buffers,
    free: Vec<u32>,
    faulty: Arc<AtomicU64>,
}

impl ReceiveQueue for TapReceive {
    fn receive(&mut self, burst: &mut Burst) {
        // Faulty frames take no room, and may come as fast as they are read.
        for _ in 0..BURST_FRAMES {
            if burst.room() == 0 {
                return;
            }
            let Some(&number) = self.free.last() else { return };
            let buffer = self.pool.buffer(number);
            // SAFETY: the buffer has so many bytes, is on the free list, and so nobody else has a pointer into it.
            let len = unsafe { libc::read(self.file.as_raw_fd(), buffer.as_ptr().cast(), self.pool.size()) };
            if len <= 0 {
                return;
            }
            // SAFETY: the buffer is off the free list until `release`, and the pool lives as long as the queue.
            let whole = unsafe { Segment::new(buffer, len as u32) };
            let frame = whole.part(LENGTH, u32::MAX);
            let mut header = [0; LENGTH as usize];
            whole.copy_to(&mut header);
            let offload = net_header::parse_of_device(&header, frame.len());
            let Some(offload) = offload.ok().filter(|_| frame.len() > 0 && len as usize <= BUFFER) else {
                self.faulty.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            if burst.push_segment(frame).is_ok() && burst.finish_frame_with(Token(number), offload) {
                self.free.pop();
            }
        }
    }

    fn release(&mut self, token: Token) {
        debug_assert!(token.0 < BUFFERS && !self.free.contains(&token.0));
        self.free.push(token.0);
    }

    fn bell(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    /// A tap rings for each frame anyway.
    fn arm(&mut self) -> Armed {
        let mut file = [PollFd::new(&*self.file, PollFlags::IN)];
        match poll(&mut file, Some(&Timespec::default())) {
            Ok(1..) if file[0].revents().contains(PollFlags::IN) => Armed::Ready,
            _ => Armed::Rings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_change_are_refused() {
        for name in ["", "a/b", "wtr%d", "a b", "a:b", "sixteen-letters-", ".", ".."] {
            assert!(matches!(Tap::open(name), Err(DeviceError::Unsupported(_))), "{name}");
        }
    }

    fn queue(source: File) -> TapReceive {
        TapReceive {
            file: Arc::new(source),
            pool: Buffers::new(BUFFERS, BUFFER + 1).unwrap(),
            free: (0..BUFFERS).collect(),
            faulty: Arc::default(),
        }
    }

    #[test]
    fn it_rings_for_the_next_frame_unless_one_waits() {
        let (source, mut wire) = std::io::pipe().unwrap();
        let mut queue = queue(File::from(std::os::fd::OwnedFd::from(source)));
        assert_eq!(queue.arm(), Armed::Rings);
        io::Write::write_all(&mut wire, &[0; 72]).unwrap();
        assert_eq!(queue.arm(), Armed::Ready);
        assert!(queue.bell().is_some());
    }

    #[test]
    fn faulty_frames_do_not_keep_a_worker() {
        // Each read brings more than a frame may have.
        let source = File::from(rustix::fs::memfd_create("frames", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let mut queue = queue(source.try_clone().unwrap());
        source.set_len(queue.pool.size() as u64 * 10 * BURST_FRAMES as u64).unwrap();
        let mut burst = Burst::new();
        queue.receive(&mut burst);
        assert!(burst.is_empty() && queue.faulty.load(Ordering::Relaxed) == BURST_FRAMES as u64);
    }
}
