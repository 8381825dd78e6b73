//! What needs no privilege. With interfaces: `tests/interop/software_devices.sh`.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use super::receive::LONG_FRAMES;
use super::socket::Ring;
use super::*;
use crate::device::{Armed, ReceiveQueue};
use crate::frame::{BURST_FRAMES, Burst, Token, gather};
use crate::offload::{Checksum, Segmentation};

const SLOT: usize = 2048;
/// Where the kernel puts a frame: behind `tpacket2_hdr`, `sockaddr_ll` and the virtio-net header.
const AT: usize = 76;

/// The receiving side, and the kernel's side of its ring, which a test plays.
struct Played {
    queue: PacketReceive,
    faulty: Arc<AtomicU64>,
    /// The other end of what the queue takes for a packet socket.
    long: UnixDatagram,
    head: u32,
}

impl Played {
    fn new() -> Self {
        let (long, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let bytes: libc::c_int = 16 << 20;
        // SAFETY: the option is an `int` that lives through the call.
        let status = unsafe {
            libc::setsockopt(
                long.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUF,
                (&raw const bytes).cast(),
                4,
            )
        };
        assert_eq!(status, 0);
        long.set_nonblocking(true).unwrap();
        let faulty = Arc::<AtomicU64>::default();
        let ring = Ring::by_hand(OwnedFd::from(theirs), SLOT);
        Self { queue: PacketReceive::new(ring, Arc::clone(&faulty)).unwrap(), faulty, long, head: 0 }
    }

    /// Whether the kernel may fill the next slot.
    fn has_room(&self) -> bool {
        self.queue.ring.status(self.head).load(Ordering::Acquire) == libc::TP_STATUS_KERNEL
    }

    /// Fills the next slot with as much of `frame` as there is room for.
    fn fill(&mut self, header: [u8; VNET_HEADER], frame: &[u8], status: u32) {
        assert!(self.has_room());
        let here = frame.len().min(SLOT - AT);
        let slot = self.queue.ring.slot(self.head);
        // SAFETY: the slot is the kernel's, which is played here, and all that is written lies in it.
        unsafe {
            let mut head: libc::tpacket2_hdr = std::mem::zeroed();
            (head.tp_len, head.tp_snaplen, head.tp_mac) = (frame.len() as u32, here as u32, AT as u16);
            slot.cast().write(head);
            slot.add(AT - VNET_HEADER).cast().write(header);
            std::ptr::copy_nonoverlapping(frame.as_ptr(), slot.add(AT).as_ptr(), here);
        }
        self.queue.ring.status(self.head).store(libc::TP_STATUS_USER | status, Ordering::Release);
        self.head += 1;
    }

    /// A frame that a slot is too short for: the kernel queues it whole, too.
    fn fill_long(&mut self, header: [u8; VNET_HEADER], frame: &[u8]) {
        self.long.send(&[&header, frame].concat()).unwrap();
        self.fill(header, frame, libc::TP_STATUS_COPY);
    }

    /// What a poll brings.
    fn receive(&mut self) -> Vec<(Token, Vec<u8>)> {
        let mut burst = Burst::new();
        self.queue.receive(&mut burst);
        let bytes = |(frame, segments): (&crate::Frame, _)| {
            let mut bytes = vec![0; frame.len() as usize];
            assert_eq!(gather(segments, &mut bytes), bytes.len());
            (frame.token(), bytes)
        };
        burst.frames().iter().map(bytes).collect()
    }
}

/// A frame of `len` bytes that is like no other.
fn numbered(number: u32, len: usize) -> Vec<u8> {
    number.to_be_bytes().into_iter().cycle().take(len).collect()
}

const PLAIN: [u8; VNET_HEADER] = [0; VNET_HEADER];

#[test]
fn a_slot_is_the_kernels_again_only_when_its_frame_is_given_back() {
    let mut played = Played::new();
    let slots = played.queue.ring.slots();
    assert!(played.receive().is_empty());
    let mut lent = VecDeque::new();
    for number in 0..slots {
        played.fill(PLAIN, &numbered(number, 60 + number as usize % 1400), 0);
        if number % 20 == 19 || number == slots - 1 {
            lent.extend(played.receive());
        }
    }
    assert_eq!(lent.len(), slots as usize);
    assert!(!played.has_room() && played.receive().is_empty(), "all slots are lent, and none is found twice");
    for (number, (_, bytes)) in lent.iter().enumerate() {
        assert!(*bytes == numbered(number as u32, 60 + number % 1400), "frame {number}");
    }
    // Not in the order in which they came.
    played.queue.release(lent.remove(1).unwrap().0);
    assert!(!played.has_room(), "the kernel waits for the slot whose turn it is");
    played.queue.release(lent.pop_front().unwrap().0);
    for number in [1000, 1001] {
        played.fill(PLAIN, &numbered(number, 99), 0);
    }
    assert!(!played.has_room());
    let [(_, first), (_, second)] = &played.receive()[..] else { unreachable!() };
    assert!(*first == numbered(1000, 99) && *second == numbered(1001, 99));
}

#[test]
fn it_rings_for_the_next_frame_unless_one_waits() {
    let mut played = Played::new();
    assert!(played.queue.arm() == Armed::Rings && played.queue.bell().is_some());
    played.fill(PLAIN, &numbered(0, 60), 0);
    assert_eq!(played.queue.arm(), Armed::Ready);
    let lent = played.receive();
    assert!(lent.len() == 1 && played.queue.arm() == Armed::Rings);
}

#[test]
fn a_burst_takes_no_more_than_it_has_room_for() {
    let mut played = Played::new();
    for number in 0..BURST_FRAMES as u32 + 8 {
        played.fill(PLAIN, &numbered(number, 60), 0);
    }
    assert_eq!((played.receive().len(), played.receive().len()), (BURST_FRAMES, 8));
}

#[test]
fn frames_longer_than_a_slot_come_whole_and_in_their_turn() {
    let mut played = Played::new();
    let lengths = [60, 9000, 61, 65_535 + 14, SLOT - AT, SLOT - AT + 1];
    // TCP over IPv4 in segments of 1448 bytes.
    let tso = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0];
    for (number, len) in (0..).zip(lengths) {
        let frame = numbered(number, len);
        if len > SLOT - AT { played.fill_long(tso, &frame) } else { played.fill(PLAIN, &frame, 0) }
    }
    let mut burst = Burst::new();
    played.queue.receive(&mut burst);
    for (number, (frame, segments)) in (0..).zip(burst.frames().iter()) {
        let mut bytes = vec![0; frame.len() as usize];
        gather(segments, &mut bytes);
        assert!(bytes == numbered(number, lengths[number as usize]), "frame {number}");
        let is_long = bytes.len() > SLOT - AT;
        assert_eq!(frame.offload().segmentation == Segmentation::TcpV4, is_long);
        let checksum = Checksum::Partial { start: 34, offset: 16 };
        assert_eq!(frame.offload().checksum == checksum, is_long);
    }
    assert_eq!((burst.len(), played.faulty.load(Ordering::Relaxed)), (lengths.len(), 0));
}

#[test]
fn long_frames_wait_for_a_buffer_and_nothing_passes_them() {
    let mut played = Played::new();
    let mut lent = Vec::new();
    for number in 0..=LONG_FRAMES {
        played.fill_long(PLAIN, &numbered(number, 3000));
        lent.extend(played.receive());
    }
    played.fill(PLAIN, &numbered(7, 60), 0);
    assert_eq!(lent.len(), LONG_FRAMES as usize);
    assert!(played.receive().is_empty(), "there is no buffer for the first of those that wait");
    played.queue.release(lent.swap_remove(9).0);
    let rest = played.receive();
    assert!(rest.len() == 2 && rest[0].1 == numbered(LONG_FRAMES, 3000) && rest[1].1 == numbered(7, 60));
}

#[test]
fn what_does_not_add_up_is_counted_and_its_slot_given_back() {
    let mut played = Played::new();
    played.fill(PLAIN, &numbered(1, 13), 0);
    // A checksum behind the frame's end.
    played.fill([1, 0, 0, 0, 0, 0, 60, 0, 16, 0], &numbered(2, 60), 0);
    // Another long frame than the slot says.
    played.long.send(&[0; 2500]).unwrap();
    played.fill(PLAIN, &numbered(3, 3000), libc::TP_STATUS_COPY);
    assert!(played.receive().is_empty());
    assert_eq!(played.faulty.load(Ordering::Relaxed), 3);
    // Too many long frames: this one is not queued.
    played.fill(PLAIN, &numbered(4, 3000), 0);
    // Queued, it is said, and is not there.
    played.fill(PLAIN, &numbered(5, 3000), libc::TP_STATUS_COPY);
    played.fill(PLAIN, &numbered(6, 60), 0);
    let [(_, good)] = &played.receive()[..] else { unreachable!() };
    assert!(*good == numbered(6, 60));
    assert_eq!(played.faulty.load(Ordering::Relaxed), 3);
    let free = |number| played.queue.ring.status(number).load(Ordering::Relaxed) == libc::TP_STATUS_KERNEL;
    assert!((0..5).all(free) && !free(5));
    assert_eq!(played.queue.ring.socket.missed(), 2);
}

#[test]
fn an_interface_that_cannot_be_used_is_refused_with_the_reason() {
    let refused = |name| Packet::open(name).unwrap_err();
    let error = refused("no-such-link");
    assert!(matches!(error, DeviceError::NotFound(_)) && error.to_string().contains("no-such-link"));
    assert!(matches!(refused("lo"), DeviceError::Unsupported(_)));
}

#[test]
fn the_cause_says_what_to_do() {
    for (errno, remedy) in
        [(libc::EPERM, "CAP_NET_RAW"), (libc::EAFNOSUPPORT, "modprobe"), (libc::ENOPROTOOPT, "4.20")]
    {
        let text = no_socket("eth0", &io::Error::from_raw_os_error(errno)).to_string();
        assert!(text.contains("eth0") && text.contains(remedy), "{text}");
    }
}
