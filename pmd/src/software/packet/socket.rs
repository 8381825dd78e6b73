//! The packet socket (packet(7)) and the receive ring that it shares with the kernel (`packet_mmap`, TPACKET_V2).

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Bytes of the receive ring, which the kernel holds for us.
const RING: usize = 4 << 20;
/// Bytes of the pieces that the kernel takes memory in.
const BLOCK: usize = 64 << 10;
/// Bytes of a slot before the frame: `tpacket2_hdr`, `sockaddr_ll` and the virtio-net header, generously.
const SLOT_HEAD: usize = 128;
/// Bytes of a slot at most; longer frames are read from the socket.
const LONGEST_SLOT: usize = 16 << 10;
/// Bytes of long frames that may wait in the socket, as the kernel counts them (with what it needs itself).
const LONG_FRAMES: c_int = 8 << 20;

/// Status of a slot whose frame is lent: not the kernel's, and with nothing new for us. The kernel does not use this bit.
const KEPT: u32 = 1 << 27;

/// A packet socket of one interface.
#[derive(Debug)]
pub(super) struct Socket {
    descriptor: OwnedFd,
    /// Frames that the kernel had no slot for, as far as it was asked.
    missed: AtomicU64,
}

impl Socket {
    /// A socket that receives from nowhere. Needs CAP_NET_RAW.
    pub(super) fn new() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let descriptor = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        Ok(Self { descriptor, missed: AtomicU64::new(0) })
    }

    pub(super) fn raw(&self) -> c_int {
        self.descriptor.as_raw_fd()
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Gives it a ring for frames of at most `max_frame` bytes and binds it to the interface `index`, all of whose frames
    /// it receives from then on, but those that are sent from here.
    pub(super) fn open(index: c_int, max_frame: u32) -> io::Result<(Arc<Self>, Ring)> {
        let socket = Self::new()?;
        socket.set(libc::PACKET_VERSION, &(libc::tpacket_versions::TPACKET_V2 as c_int))?;
        socket.set(libc::PACKET_VNET_HDR, &1)?;
        socket.set(libc::PACKET_IGNORE_OUTGOING, &1)?;
        // Frames that a slot is too small for are queued whole as well.
        socket.set(libc::PACKET_COPY_THRESH, &1)?;
        // More than a user may have needs CAP_NET_ADMIN; without, fewer long frames can wait.
        if socket.set_at(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &LONG_FRAMES).is_err() {
            socket.set_at(libc::SOL_SOCKET, libc::SO_RCVBUF, &LONG_FRAMES)?;
        }
        let slot = (max_frame as usize + SLOT_HEAD).next_power_of_two().clamp(2048, LONGEST_SLOT);
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: (RING / BLOCK) as u32,
            tp_frame_size: slot as u32,
            tp_frame_nr: (RING / slot) as u32,
        };
        socket.set(libc::PACKET_RX_RING, &request)?;
        let socket = Arc::new(socket);
        let ring = Ring::map(Arc::clone(&socket), slot, libc::MAP_SHARED)?;
        let everything = libc::packet_mreq {
            mr_ifindex: index,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        socket.set(libc::PACKET_ADD_MEMBERSHIP, &everything)?;
        socket.bind(index)?;
        // An interface that is down leaves an error behind, which is none: it may come up later.
        socket.forget_error();
        Ok((socket, ring))
    }

    fn bind(&self, index: c_int) -> io::Result<()> {
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address lives through the call and has the length that is said.
        let status = unsafe {
            libc::bind(self.raw(), (&raw const address).cast(), size_of::<libc::sockaddr_ll>() as u32)
        };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn set<T>(&self, option: c_int, value: &T) -> io::Result<()> {
        self.set_at(libc::SOL_PACKET, option, value)
    }

    fn set_at<T>(&self, level: c_int, option: c_int, value: &T) -> io::Result<()> {
        // SAFETY: `value` lives through the call, and the kernel reads no more than its size.
        let status = unsafe {
            libc::setsockopt(self.raw(), level, option, (&raw const *value).cast(), size_of::<T>() as u32)
        };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Fills `value`; false when the kernel does not.
    fn get<T>(&self, level: c_int, option: c_int, value: &mut T) -> bool {
        let mut len = size_of::<T>() as u32;
        // SAFETY: both live through the call, and the kernel writes no more than `len`.
        unsafe { libc::getsockopt(self.raw(), level, option, (&raw mut *value).cast(), &raw mut len) == 0 }
    }

    /// Takes the error that the kernel keeps for the next call: a link that was down, say, and is up again.
    pub(super) fn forget_error(&self) {
        let mut error: c_int = 0;
        self.get(libc::SOL_SOCKET, libc::SO_ERROR, &mut error);
    }

    /// Counts frames that there was no room for.
    pub(super) fn count_missed(&self, frames: u64) {
        self.missed.fetch_add(frames, Ordering::Relaxed);
    }

    /// Frames so far that there was no room for. For one thread at a time: the kernel's counter begins anew with each
    /// look.
    pub(super) fn missed(&self) -> u64 {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        if self.get(libc::SOL_PACKET, libc::PACKET_STATISTICS, &mut statistics) {
            self.count_missed(u64::from(statistics.tp_drops));
        }
        self.missed.load(Ordering::Relaxed)
    }
}

/// The receive ring: slots of one size, which the kernel fills in turn. Never seen as a slice: frames that are on their
/// way to the guest lie in it.
#[derive(Debug)]
pub(super) struct Ring {
    /// The socket must outlive no mapping, but whoever has the ring reads from the socket too.
    pub(super) socket: Arc<Socket>,
    start: NonNull<u8>,
    slot: usize,
}

// SAFETY: the mapping belongs to this value alone and ends with it, on whichever thread that is.
unsafe impl Send for Ring {}

/// What the kernel says of a frame in a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filled {
    /// Where the frame begins in the slot; the virtio-net header is just before.
    pub(super) at: usize,
    /// Bytes that the frame has.
    pub(super) len: u32,
    /// Bytes of it that are in the slot.
    pub(super) here: u32,
    /// Whether the whole frame is queued at the socket, too.
    pub(super) queued: bool,
    /// The VLAN tag that was taken out behind the addresses, as it is on the wire.
    pub(super) tag: Option<[u8; 4]>,
}

impl Ring {
    fn map(socket: Arc<Socket>, slot: usize, flags: c_int) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), RING, libc::PROT_READ | libc::PROT_WRITE, flags, socket.raw(), 0)
        };
        match NonNull::new(start.cast()).filter(|_| start != libc::MAP_FAILED) {
            Some(start) => Ok(Self { socket, start, slot }),
            None => Err(io::Error::last_os_error()),
        }
    }

    /// A ring that no kernel fills, whose longer frames are datagrams of `descriptor`.
    #[cfg(test)]
    pub(super) fn by_hand(descriptor: OwnedFd, slot: usize) -> Self {
        let socket = Arc::new(Socket { descriptor, missed: AtomicU64::new(0) });
        Self::map(socket, slot, libc::MAP_SHARED | libc::MAP_ANONYMOUS).unwrap()
    }

    /// Number of slots, a power of two.
    pub(super) fn slots(&self) -> u32 {
        (RING / self.slot) as u32
    }

    /// Bytes of a slot.
    pub(super) fn slot_size(&self) -> usize {
        self.slot
    }

    /// Where slot `number` begins (modulo their number).
    pub(super) fn slot(&self, number: u32) -> NonNull<u8> {
        let offset = (number & (self.slots() - 1)) as usize * self.slot;
        // SAFETY: slots are within the mapping.
        unsafe { self.start.add(offset) }
    }

    pub(super) fn status(&self, number: u32) -> &AtomicU32 {
        // SAFETY: a slot begins with `tp_status` (`tpacket2_hdr`), aligned, which both sides only access as a whole.
        unsafe { self.slot(number).cast::<AtomicU32>().as_ref() }
    }

    /// What is in slot `number`, if the kernel has filled it.
    #[inline]
    pub(super) fn filled(&self, number: u32) -> Option<Filled> {
        let status = self.status(number).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the slot begins with this header, aligned; the kernel has written it and leaves it alone now.
        let head = unsafe { self.slot(number).cast::<libc::tpacket2_hdr>().read() };
        let [tci_high, tci_low] = head.tp_vlan_tci.to_be_bytes();
        let [tpid_high, tpid_low] = match status & libc::TP_STATUS_VLAN_TPID_VALID {
            0 => (libc::ETH_P_8021Q as u16).to_be_bytes(),
            _ => head.tp_vlan_tpid.to_be_bytes(),
        };
        Some(Filled {
            at: usize::from(head.tp_mac),
            len: head.tp_len,
            here: head.tp_snaplen,
            queued: status & libc::TP_STATUS_COPY != 0,
            tag: (status & libc::TP_STATUS_VLAN_VALID != 0)
                .then_some([tpid_high, tpid_low, tci_high, tci_low]),
        })
    }

    /// Notes that the frame in slot `number` is lent, so that it is not found again.
    #[inline]
    pub(super) fn keep(&self, number: u32) {
        self.status(number).store(KEPT, Ordering::Relaxed);
    }

    /// Lets the kernel fill slot `number` again.
    #[inline]
    pub(super) fn give_back(&self, number: u32) {
        self.status(number).store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this length, and whoever drops the ring uses it no more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), RING) };
    }
}
