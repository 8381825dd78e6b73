//! A vhost-user front end that sends whatever it likes, with descriptors of all kinds, over a real socket, while a worker
//! polls its rings.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use relay::driver::memory::GuestRam;
use relay::guest::connection::Connection;
use relay::guest::features::GuestOptions;
use relay::guest::session::Session;
use relay::lane::Lane;
use relay::mailbox::{Mailbox, WorkerHandle, mailbox};
use relay::relay::{Placement, Relay};
use relay::roster::{Resting, Roster};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::input::Input;

/// Guest address of memory, and where the front end says that it has it.
pub const GPA: u64 = 0x10_0000;
/// See [`GPA`].
pub const USER: u64 = 0x7f00_0000_0000;
/// Bytes of memory.
pub const RAM: u64 = 0x4_0000;
/// More steps than this show nothing new.
const STEPS: usize = 64;

/// What a step is: below this a message of that number.
pub const MESSAGES: u8 = 60;
/// Writes into guest memory.
pub const WRITE: u8 = 60;
/// Leaves the worker some time.
pub const WAIT: u8 = 61;

/// What descriptors come along: one of these for each.
pub mod kind {
    /// Guest memory.
    pub const RAM: u8 = 0;
    /// An eventfd that does not block.
    pub const EVENTFD: u8 = 1;
    /// The writing end of a pipe.
    pub const PIPE: u8 = 2;
    /// `/dev/null`.
    pub const NULL: u8 = 3;
    /// A memfd of a page.
    pub const PAGE: u8 = 4;
    /// A socket.
    pub const SOCKET: u8 = 5;
    /// An eventfd that blocks.
    pub const BLOCKING: u8 = 6;
}

/// How a payload is written down.
pub mod form {
    /// Nothing.
    pub const NONE: u8 = 0;
    /// A number of 64 bits.
    pub const NUMBER: u8 = 1;
    /// Index and value of a ring's state.
    pub const STATE: u8 = 2;
    /// Index and addresses of a ring, as places in memory.
    pub const ADDRESSES: u8 = 3;
    /// A memory region.
    pub const REGION: u8 = 4;
    /// A table of two regions.
    pub const TABLE: u8 = 5;
    /// Size and offset of a dirty log.
    pub const LOG: u8 = 6;
    /// A translation.
    pub const IOTLB: u8 = 7;
    /// Bytes.
    pub const RAW: u8 = 8;
}

/// The worker that polls all relays of this process.
fn worker() -> &'static WorkerHandle {
    static WORKER: LazyLock<WorkerHandle> = LazyLock::new(|| {
        let (handle, mailbox) = mailbox(0).expect("an eventfd");
        std::thread::spawn(move || work(&mailbox));
        handle
    });
    &WORKER
}

fn work(mailbox: &Mailbox) {
    // Nobody kicks here.
    let mut roster = Roster::new(8, false);
    while mailbox.attend(&mut roster) {
        let now = Instant::now();
        let step = |lane: &mut Box<Lane>| {
            if lane.step(now) {
                lane.worked(now);
            }
        };
        roster.awake().iter_mut().for_each(step);
        roster.dozing().iter_mut().for_each(step);
        roster.settle(now);
        if roster.is_quiet() {
            let limit = Duration::from_millis(if roster.is_asleep() { 500 } else { 1 });
            mailbox.sleep(limit, |lane| roster.wake(&lane));
        }
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("procfs").count()
}

fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
    maps.lines().filter(|line| line.contains("/memfd:")).count()
}

/// Connects, sends what the input says, and leaves.
pub fn run(data: &[u8]) {
    let worker = worker();
    // What it holds for good is no leak.
    pmd::memory::sigbus::install();
    let before = (descriptors(), mappings());
    session(worker, data);
    assert_eq!((descriptors(), mappings()), before, "descriptors or mappings are left over");
}

fn session(worker: &WorkerHandle, data: &[u8]) {
    let placement = Placement { vf_to_vm: worker.clone(), vm_to_vf: worker.clone() };
    let relay = Arc::new(Relay::new(0, placement));
    relay.reserve("loopback").expect("it is free").attach_cable();
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    theirs.set_nonblocking(true).expect("it is a socket");
    let mut front_end = FrontEnd { stream: theirs, ram: GuestRam::new(GPA, RAM).expect("memory") };
    let mut connection = Connection::new(ours).expect("it is a socket");
    let options = GuestOptions { udp_segmentation: true, ..GuestOptions::default() };
    let mut session =
        Session::new(Arc::clone(&relay), &options, None, connection.peer()).expect("an eventfd");
    let mut input = Input::new(data);
    for _ in 0..STEPS {
        if input.is_empty() || !front_end.step(&mut input) || !serve(&mut session, &mut connection) {
            break;
        }
        front_end.read_replies();
    }
    drop(session);
    relay.remove_device(None).expect("it has one");
}

/// Obeys all messages that are there; whether the session goes on.
fn serve(session: &mut Session, connection: &mut Connection) -> bool {
    while let Ok(message) = connection.receive() {
        let Some(message) = message else {
            session.look_after();
            return session.offence().is_none();
        };
        let leaks = crate::planted()
            && message.header.request as u32 == 14
            && !message.descriptors.is_empty()
            && message.payload.len() == 8;
        if leaks {
            std::mem::forget(message.descriptors[0].try_clone());
        }
        match session.handle(message) {
            Ok(Some(reply)) => {
                let descriptor = reply.descriptor.as_ref().map(AsFd::as_fd);
                if connection.send(&reply.bytes, descriptor).is_err() {
                    return false;
                }
            }
            Ok(None) => {}
            Err(_) => return false,
        }
    }
    false
}

struct FrontEnd {
    stream: UnixStream,
    ram: GuestRam,
}

impl FrontEnd {
    fn step(&mut self, input: &mut Input) -> bool {
        match input.u8() {
            request @ 0..MESSAGES => return self.send(request, input),
            WRITE => {
                let (at, len) = (u64::from(input.u16()) * 4, usize::from(input.u8()));
                let bytes = input.bytes(len);
                self.ram.write(GPA + at.min(RAM - 256), bytes);
            }
            WAIT => std::thread::sleep(Duration::from_micros(300)),
            _ => {}
        }
        true
    }

    fn descriptor(&self, kind: u8) -> OwnedFd {
        match kind % 7 {
            kind::RAM => self.ram.file().try_clone().expect("a descriptor").into(),
            kind::EVENTFD => eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd"),
            kind::PIPE => rustix::pipe::pipe().expect("a pipe").1,
            kind::NULL => File::open("/dev/null").expect("it is there").into(),
            kind::PAGE => {
                let page = memfd_create("page", MemfdFlags::CLOEXEC).expect("a memfd");
                ftruncate(&page, 4096).expect("it grows");
                page
            }
            kind::SOCKET => UnixStream::pair().expect("sockets").0.into(),
            _ => eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"),
        }
    }

    /// Sends a message; `false` when the other side has left.
    fn send(&mut self, request: u8, input: &mut Input) -> bool {
        // Bit 0: wants a reply; bits 1 and 2: number of descriptors; bit 3: header as written; bits 4 to 7: form.
        let how = input.u8();
        let kinds = input.u8();
        let descriptors: Vec<OwnedFd> =
            (0..how >> 1 & 3).map(|n| self.descriptor(kinds.rotate_right(2 * u32::from(n)) & 7)).collect();
        let payload = payload(how >> 4, input);
        let (flags, size) = match how & 8 {
            0 => (1 | u32::from(how & 1) << 3, payload.len() as u32),
            _ => (input.u32(), input.u32()),
        };
        let mut bytes = Vec::new();
        for word in [u32::from(request), flags, size] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&payload);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        if !borrowed.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).is_ok()
    }

    /// Every reply is a whole one.
    fn read_replies(&mut self) {
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(n @ 1..) = self.stream.read(&mut piece) {
            bytes.extend_from_slice(&piece[..n]);
        }
        let mut rest = &bytes[..];
        while let Some((header, behind)) = rest.split_first_chunk::<12>() {
            let (words, _) = header.as_chunks::<4>();
            assert_eq!(u32::from_ne_bytes(words[1]), 5, "a reply of version 1");
            let size = u32::from_ne_bytes(words[2]) as usize;
            rest = behind.get(size..).expect("a whole reply");
        }
        assert!(rest.is_empty(), "half a reply");
    }
}

/// A payload in one of the forms: mostly numbers that lie in memory.
fn payload(form: u8, input: &mut Input) -> Vec<u8> {
    let place = |n: u16| u64::from(n) * 16;
    let numbers: Vec<u64> = match form {
        form::NONE => Vec::new(),
        form::NUMBER => vec![input.u64()],
        form::STATE => vec![u64::from(input.u8()) | u64::from(input.u32()) << 32],
        form::ADDRESSES => {
            let index = u64::from(input.u8());
            let mut at = || USER + place(input.u16());
            vec![index, at(), at(), at(), 0]
        }
        form::REGION => [vec![0], region(input)].concat(),
        form::TABLE => [vec![2], region(input), region(input)].concat(),
        form::LOG => vec![place(input.u16()), place(input.u16())],
        form::IOTLB => {
            let (iova, size, user) = (place(input.u16()), place(input.u16()), USER + place(input.u16()));
            vec![iova, size, user, u64::from(input.u16())]
        }
        _ => {
            let len = usize::from(input.u8());
            return input.bytes(len).to_vec();
        }
    };
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn region(input: &mut Input) -> Vec<u64> {
    let mut place = || u64::from(input.u8()) * 0x1000;
    let (start, size, offset) = (place(), place(), place());
    vec![GPA + start, size, USER + start, offset]
}
