//! Sessions that are told things in an order which front ends seldom choose, message by message.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;
use crate::driver::memory::GuestRam;
use crate::driver::split::{Descriptor, DriverRing, write_descriptor};
use crate::guest::iotlb::Permission;
use crate::guest::message::Header;
use crate::mailbox::{WorkerHandle, mailbox};
use crate::relay::{Placement, Relay};
use crate::roster::Roster;

/// Virtqueue index of a transmit queue.
const TRANSMIT: usize = 1;
const RAM: u64 = 0x1_0000;
/// `VIRTIO_F_VERSION_1`, `VIRTIO_F_ACCESS_PLATFORM`, and those of vhost-user.
const VERSION_1: u64 = 1 << 32;
const TRANSLATED: u64 = 1 << 33;
const LOG_ALL: u64 = 1 << 26;

/// A guest at address 0 with one transmit ring, the session that it is told about in, and a worker.
struct Scene {
    session: Option<Session>,
    ram: GuestRam,
    ring: DriverRing,
    worker: (WorkerHandle, Option<JoinHandle<()>>),
}

impl Scene {
    fn new() -> Self {
        let (handle, inbox) = mailbox(0).unwrap();
        let thread = std::thread::spawn(move || {
            let mut roster = Roster::new(8, false);
            while inbox.attend(&mut roster) {
                for lane in roster.awake() {
                    lane.step(Instant::now());
                }
                std::thread::yield_now();
            }
        });
        let placement = Placement { vf_to_vm: handle.clone(), vm_to_vf: handle.clone() };
        let relay = Arc::new(Relay::new(0, placement));
        let session = Session::new(relay, &GuestOptions::default(), None, None).unwrap();
        let mut ram = GuestRam::new(0, RAM).unwrap();
        let ring = DriverRing::new(&mut ram, 16).unwrap();
        Self { session: Some(session), ram, ring, worker: (handle, Some(thread)) }
    }

    fn session(&mut self) -> &mut Session {
        self.session.as_mut().unwrap()
    }

    /// Sends a message that is to be acknowledged; what came back.
    fn ask(&mut self, request: FrontendReq, payload: &[u8], fds: Vec<OwnedFd>) -> Result<Vec<u8>, Refusal> {
        let mut header = [0; message::HEADER];
        for (slot, word) in header.chunks_mut(4).zip([request as u32, 1 | 8, payload.len() as u32]) {
            slot.copy_from_slice(&word.to_ne_bytes());
        }
        let header = Header::parse(header).unwrap();
        let message = Message { header, payload: payload.to_vec(), descriptors: fds };
        let reply = self.session().handle(message)?;
        Ok(reply.map_or_else(Vec::new, |reply| reply.bytes[message::HEADER..].to_vec()))
    }

    /// Sends a message that must be obeyed.
    fn tell(&mut self, request: FrontendReq, words: &[u64], fds: Vec<OwnedFd>) {
        let reply = self.ask(request, &bytes(words), fds).unwrap();
        assert!(reply.is_empty() || shape_answers(request) || reply == [0; 8], "{request:?} was refused");
    }

    fn share_memory(&mut self) {
        let (user, file) = (self.ram.user(), OwnedFd::from(self.ram.file().try_clone().unwrap()));
        self.tell(FrontendReq::SET_MEM_TABLE, &[1, 0, RAM, user, 0], vec![file]);
    }

    /// The transmit ring is at these addresses plus `offset`.
    fn place_ring(&mut self, offset: u64) {
        let index = TRANSMIT as u64;
        let [descriptors, available, used] =
            [self.ring.descriptors, self.ring.available, self.ring.used].map(|at| at + offset);
        self.tell(FrontendReq::SET_VRING_NUM, &[u64::from(self.ring.size) << 32 | index], vec![]);
        self.tell(FrontendReq::SET_VRING_BASE, &[index], vec![]);
        self.tell(FrontendReq::SET_VRING_ADDR, &[index, descriptors, used, available, 0], vec![]);
    }

    fn start_ring(&mut self) {
        self.tell(FrontendReq::SET_VRING_KICK, &[1 << 8 | TRANSMIT as u64], vec![]);
        self.tell(FrontendReq::SET_VRING_ENABLE, &[1 << 32 | TRANSMIT as u64], vec![]);
    }

    fn runs(&mut self) -> bool {
        self.session().rings[TRANSMIT].running
    }

    fn iotlb(&mut self, kind: u8, iova: u64, size: u64, user: u64) {
        let permission = u64::from(kind) << 8 | Permission::ReadWrite as u64;
        self.tell(FrontendReq::IOTLB_MSG, &[iova, size, user, permission], vec![]);
    }

    /// A guest behind a virtual IOMMU; returns the front end's side of the channel.
    fn behind_iommu(&mut self) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        self.tell(FrontendReq::SET_FEATURES, &[VERSION_1 | TRANSLATED | 1 << 30], vec![]);
        self.ask(FrontendReq::SET_BACKEND_REQ_FD, &[], vec![ours.into()]).unwrap();
        self.share_memory();
        self.place_ring(0);
        theirs
    }

    /// Has the device take a chain from the ring whose memory begins at `base`, and waits until the used index there is
    /// `index`.
    fn send(&mut self, base: u64, index: u16) {
        let chain = Descriptor { addr: 0x3000, len: 72, flags: 0, next: 0 };
        write_descriptor(&self.ram, base + self.ring.descriptors, chain);
        self.ram.write(base + self.ring.available + 2, &index.to_le_bytes());
        let start = Instant::now();
        let mut used = [0; 2];
        while u16::from_le_bytes(used) != index {
            assert!(start.elapsed() < Duration::from_secs(10), "chain {index} was not used at {base:#x}");
            std::thread::yield_now();
            self.ram.read(base + self.ring.used + 2, &mut used);
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.session = None;
        self.worker.0.stop();
        let _ = self.worker.1.take().unwrap().join();
    }
}

const UPDATE: u8 = 2;

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn shape_answers(request: FrontendReq) -> bool {
    message::shape(request).unwrap().answers
}

/// How many misses wait in the channel.
fn misses(channel: &mut UnixStream) -> usize {
    let mut bytes = [0; 4096];
    channel.read(&mut bytes).unwrap_or(0) / 44
}

#[test]
fn translations_of_rings_that_have_stopped_are_not_those_of_rings_that_start() {
    let mut scene = Scene::new();
    let mut channel = scene.behind_iommu();
    scene.start_ring();
    assert!(!scene.runs() && misses(&mut channel) > 0, "nothing is translated yet");
    let user = scene.ram.user();
    scene.iotlb(UPDATE, 0, RAM, user);
    assert!(scene.runs());
    scene.send(0, 1);
    // The guest is reset. From here on its front end does not say what becomes of its addresses.
    scene.tell(FrontendReq::GET_VRING_BASE, &[TRANSMIT as u64], vec![]);
    // This one answers what was asked for before.
    scene.iotlb(UPDATE, 0, RAM, user);
    scene.start_ring();
    assert!(!scene.runs() && misses(&mut channel) > 0, "translations from before are used");
    scene.iotlb(UPDATE, 0, RAM, user);
    assert!(scene.runs());
}

#[test]
fn a_ring_follows_a_translation_of_its_areas_that_changes() {
    let mut scene = Scene::new();
    let _channel = scene.behind_iommu();
    let user = scene.ram.user();
    scene.start_ring();
    scene.iotlb(UPDATE, 0, RAM / 2, user);
    scene.send(0, 1);
    // The same addresses are other memory, to which the driver has moved its ring.
    let mut whole = vec![0; RAM as usize / 2];
    scene.ram.read(0, &mut whole);
    scene.ram.write(RAM / 2, &whole);
    scene.iotlb(UPDATE, 0, RAM / 2, user + RAM / 2);
    scene.send(RAM / 2, 2);
}

#[test]
fn a_log_that_is_no_longer_written_to_does_not_keep_memory_from_growing() {
    let mut scene = Scene::new();
    let features = VERSION_1 | 1 << 30;
    scene.tell(FrontendReq::SET_FEATURES, &[features], vec![]);
    scene.share_memory();
    let log = || OwnedFd::from(crate::guest::memory::tests::memfd(0x1000));
    let region = |gpa: u64| bytes(&[0, gpa, 0x1000, gpa + (1 << 40), 0]);
    let add =
        |scene: &mut Scene, gpa| scene.ask(FrontendReq::ADD_MEM_REG, &region(gpa), vec![log()]).unwrap();
    // One bit for each page of memory.
    scene.tell(FrontendReq::SET_LOG_BASE, &[RAM / 0x1000 / 8, 0], vec![log()]);
    scene.tell(FrontendReq::SET_FEATURES, &[features | LOG_ALL], vec![]);
    assert_eq!(add(&mut scene, RAM), [1, 0, 0, 0, 0, 0, 0, 0], "without a bit for it");
    // The migration is given up, and then memory is plugged in.
    scene.tell(FrontendReq::SET_FEATURES, &[features], vec![]);
    assert_eq!(add(&mut scene, RAM), [0; 8]);
    scene.tell(FrontendReq::SET_LOG_BASE, &[0x1000, 0], vec![log()]);
    scene.tell(FrontendReq::SET_FEATURES, &[features | LOG_ALL], vec![]);
}

#[test]
fn a_ring_waits_for_a_region_that_is_taken_away_and_comes_back() {
    let mut scene = Scene::new();
    scene.tell(FrontendReq::SET_FEATURES, &[VERSION_1 | 1 << 30], vec![]);
    scene.share_memory();
    let other = OwnedFd::from(crate::guest::memory::tests::memfd(0x1000));
    scene.tell(FrontendReq::ADD_MEM_REG, &[0, 1 << 30, 0x1000, 1 << 50, 0], vec![other]);
    let user = scene.ram.user();
    scene.place_ring(user);
    scene.start_ring();
    scene.send(0, 1);
    scene.tell(FrontendReq::REM_MEM_REG, &[0, 0, RAM, user, 0], vec![]);
    assert!(!scene.runs());
    let file = OwnedFd::from(scene.ram.file().try_clone().unwrap());
    scene.tell(FrontendReq::ADD_MEM_REG, &[0, 0, RAM, user, 0], vec![file]);
    assert!(scene.runs());
    scene.send(0, 2);
}

#[test]
fn a_device_that_was_reset_has_no_status() {
    let mut scene = Scene::new();
    scene.tell(FrontendReq::SET_STATUS, &[0xf], vec![]);
    assert_eq!(scene.ask(FrontendReq::GET_STATUS, &[], vec![]).unwrap(), bytes(&[0xf]));
    scene.tell(FrontendReq::RESET_DEVICE, &[], vec![]);
    assert_eq!(scene.ask(FrontendReq::GET_STATUS, &[], vec![]).unwrap(), bytes(&[0]));
}
