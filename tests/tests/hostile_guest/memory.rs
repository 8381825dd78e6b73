//! The memory that a front end shares, and what it does to it afterwards.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forwarder_tests::flows::Flows;
use forwarder_tests::frames::{exchange, frame};
use forwarder_tests::messages::{Answer, Wire, message, request, words};
use forwarder_tests::process::Holdings;
use forwarder_tests::scene::{Scene, TRANSMIT, drops, post, take_back};
use forwarder_tests::wait::{eventually, within};
use relay::counters::DropReason;
use relay::driver::memory::GuestRam;
use relay::driver::nic::{GuestNic, NicOptions};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

/// A guest with a second region right behind the first, by guest address and by user address, but from another file.
pub struct TwoRegions {
    second: GuestRam,
    /// Guest addresses: where the first begins, where the second does, where that ends.
    edges: [u64; 3],
}

impl TwoRegions {
    pub fn bring_up(scene: &Scene, options: NicOptions) -> (GuestNic, Self) {
        let mut nic = scene.hostile(NicOptions { memory_slots: true, ..options });
        let start = nic.ram().gpa();
        let seam = start + nic.ram().size();
        let second = GuestRam::new(seam, 0x2000).unwrap();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: seam,
            memory_size: second.size(),
            userspace_addr: nic.ram().user() + nic.ram().size(),
            mmap_offset: 0,
            mmap_handle: second.file().as_raw_fd(),
        };
        nic.frontend().add_mem_region(&region).unwrap();
        let edges = [start, seam, seam + second.size()];
        (nic, Self { second, edges })
    }

    pub fn boundaries(&self) -> [u64; 3] {
        self.edges
    }

    pub fn size_of_both(&self) -> u64 {
        self.edges[2] - self.edges[0]
    }

    /// Whether all bytes are in the same region.
    pub fn in_one(&self, at: u64, len: u64) -> bool {
        self.edges.windows(2).any(|edge| edge[0] <= at && at + len <= edge[1])
    }

    /// Fills the edges with bytes that are nowhere the same.
    pub fn fill(&self, nic: &GuestNic) {
        for edge in self.edges {
            let bytes: Vec<u8> = (0..512).map(|n| ((n * 31) >> 3) as u8 ^ (edge >> 12) as u8).collect();
            self.write(nic, edge - 256, &bytes);
        }
    }

    /// Writes what is inside of these bytes.
    pub fn write(&self, nic: &GuestNic, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            match self.edges {
                [start, seam, _] if (start..seam).contains(&at) => nic.ram().write(at, &[*byte]),
                [_, seam, end] if (seam..end).contains(&at) => self.second.write(at, &[*byte]),
                _ => {}
            }
        }
    }

    /// The bytes, if all are inside.
    pub fn bytes(&self, nic: &GuestNic, at: u64, len: u32) -> Option<Vec<u8>> {
        let [start, seam, end] = self.edges;
        let inside = start <= at && at + u64::from(len) <= end;
        inside.then(|| {
            let byte = |at: u64| {
                let mut byte = [0];
                if at < seam {
                    nic.ram().read(at, &mut byte)
                } else {
                    self.second.read(at, &mut byte)
                }
                byte[0]
            };
            (at..at + u64::from(len)).map(byte).collect()
        })
    }
}

fn memfd(size: u64, flags: MemfdFlags) -> OwnedFd {
    let fd = memfd_create("hostile", MemfdFlags::CLOEXEC | flags).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

/// DPDK's fix 970e569b85: a mapping that failed was used.
#[test]
fn memory_that_cannot_be_mapped_is_refused_and_the_guest_keeps_what_it_has() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions { memory_slots: true, ..NicOptions::default() });
    let mut flows = Flows::new(1, &[60, 1514]);
    flows.exchange(&mut nic, 100);
    let (own_gpa, own_user) = (nic.ram().gpa(), nic.ram().user());
    let sealed = memfd(0x2000, MemfdFlags::ALLOW_SEALING);
    fcntl_add_seals(&sealed, SealFlags::WRITE).unwrap();
    let future = memfd(0x2000, MemfdFlags::ALLOW_SEALING);
    fcntl_add_seals(&future, SealFlags::FUTURE_WRITE).unwrap();
    // Where this test was built there is a disk.
    let disk = tempfile::tempfile_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    disk.set_len(0x1000).unwrap();
    let good = || memfd(0x2000, MemfdFlags::empty());
    let (gpa, user) = (0x100_0000_0000u64, 0x7000_0000_0000u64);
    let bad: Vec<(&str, [u64; 4], OwnedFd)> = vec![
        ("size 0", [gpa, 0, user, 0], good()),
        ("longer than its file", [gpa, 0x3000, user, 0], good()),
        ("behind the end of its file", [gpa, 0x1000, user, 0x2000], good()),
        ("an offset that is no page's", [gpa, 0x1000, user, 1], good()),
        ("an offset that is no page's", [gpa, 0x1000, user, 0x800], good()),
        ("offset and size overflow", [gpa, 0x1000, user, u64::MAX - 0xfff], good()),
        ("guest address and size overflow", [u64::MAX - 0xfff, 0x2000, user, 0], good()),
        ("user address and size overflow", [gpa, 0x2000, u64::MAX - 0xfff, 0], good()),
        ("all there is", [0, u64::MAX, 0, 0], good()),
        ("over the guest's own", [own_gpa + 0x1000, 0x1000, user, 0], good()),
        ("sealed against writing", [gpa, 0x2000, user, 0], sealed),
        ("sealed against more writing", [gpa, 0x2000, user, 0], future),
        ("a file on a disk", [gpa, 0x1000, user, 0], disk.into()),
        (
            "a file that cannot be written",
            [gpa, 0x1000, user, 0],
            File::open("/proc/self/exe").unwrap().into(),
        ),
        ("no file", [gpa, 0x1000, user, 0], std::io::pipe().unwrap().0.into()),
        ("a device", [gpa, 0x1000, user, 0], File::open("/dev/zero").unwrap().into()),
        ("a directory", [gpa, 0x1000, user, 0], File::open("/tmp").unwrap().into()),
    ];
    let mut wire = Wire::of(&mut nic).unwrap();
    for (what, [gpa, size, user, offset], fd) in &bad {
        let payload = words(&[0, *gpa, *size, *user, *offset]);
        assert_eq!(wire.ask(request::ADD_MEM_REG, &payload, &[fd.as_fd()]), Answer::Refused, "{what}");
        let table = words(&[1, *gpa, *size, *user, *offset]);
        if *what != "over the guest's own" {
            assert_eq!(wire.ask(request::SET_MEM_TABLE, &table, &[fd.as_fd()]), Answer::Refused, "{what}");
        }
        flows.exchange(&mut nic, 20);
    }
    assert_eq!(wire.ask(request::ADD_MEM_REG, &words(&[0, gpa, 0x1000, user, 0]), &[]), Answer::Refused);
    let two = words(&[2, gpa, 0x1000, user, 0, gpa, 0x1000, user, 0x1000]);
    let file = good();
    assert_eq!(
        wire.ask(request::SET_MEM_TABLE, &two, &[file.as_fd(), file.as_fd()]),
        Answer::Refused,
        "overlap"
    );
    assert_eq!(wire.ask(request::SET_MEM_TABLE, &two, &[file.as_fd()]), Answer::Refused, "too few files");
    let lie = words(&[8, gpa, 0x1000, user, 0]);
    assert_eq!(wire.ask(request::SET_MEM_TABLE, &lie, &[file.as_fd()]), Answer::Refused, "too few rows");
    for other in [[0, gpa, 0x1000, user, 0], [0, own_gpa, 0x1000, own_user, 0], [0, own_gpa, 0, 0, 0]] {
        assert_eq!(wire.ask(request::REM_MEM_REG, &words(&other), &[]), Answer::Refused, "not there");
    }
    flows.exchange(&mut nic, 100);
    scene.neighbour_goes_on();
}

#[test]
fn more_regions_than_there_are_slots_are_refused() {
    let mut scene = Scene::new();
    let mut nic = scene.hostile(NicOptions { memory_slots: true, ..NicOptions::default() });
    let slots = nic.frontend().get_max_mem_slots().unwrap();
    let file = memfd(0x1000, MemfdFlags::empty());
    let mut wire = Wire::of(&mut nic).unwrap();
    let mut add = |n: u64| {
        let region = words(&[0, 0x100_0000_0000 + (n << 20), 0x1000, 0x7000_0000_0000 + (n << 20), 0]);
        wire.ask(request::ADD_MEM_REG, &region, &[file.as_fd()])
    };
    // One is the guest's own.
    for n in 1..slots {
        assert_eq!(add(n), Answer::Done, "region {n} of {slots}");
    }
    assert_eq!([add(slots), add(slots + 1)], [Answer::Refused; 2]);
    exchange(&mut nic, 0, 300);
    scene.neighbour_goes_on();
}

/// Pages that are taken away while frames are copied from them: SIGBUS in the worker. The rings are in the part of the
/// memory that stays, so that the driver goes on.
#[test]
fn memory_that_is_truncated_in_the_middle_of_traffic_costs_its_guest_alone() {
    let mut scene = Scene::new();
    for packed in [false, true] {
        let mut nic = scene.hostile(NicOptions { packed, ..NicOptions::default() });
        // Behind all rings and receive buffers.
        let at = nic.allocate(0x1000).unwrap();
        nic.ram().write(at + 12, &frame(0));
        let file = nic.ram().file().try_clone().unwrap();
        let rest = at - nic.ram().gpa();
        let mut sent = 0;
        let gone = within(Duration::from_secs(10), || {
            post(&mut nic, TRANSMIT, &[(at, 72, 0)]);
            let gone = || scene.stand.relay(0).status().guest.is_none();
            let back = within(Duration::from_secs(5), || take_back(&mut nic, TRANSMIT) == 1 || gone());
            nic.receive(64, |_| ());
            sent += 1;
            if sent == 500 {
                file.set_len(rest).unwrap();
            }
            !back || gone()
        });
        assert!(gone && sent >= 500, "{sent} frames");
        eventually("the guest is disconnected", || scene.stand.relay(0).status().guest.is_none());
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

#[test]
fn the_same_memory_shared_again_under_traffic_loses_no_frame() {
    let mut scene = Scene::new();
    for packed in [false, true] {
        let mut nic = scene.hostile(NicOptions { packed, ..NicOptions::default() });
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: nic.ram().gpa(),
            memory_size: nic.ram().size(),
            userspace_addr: nic.ram().user(),
            mmap_offset: 0,
            mmap_handle: nic.ram().file().as_raw_fd(),
        };
        let frontend = nic.frontend().clone();
        let stop = AtomicBool::new(false);
        let before = Holdings::now();
        std::thread::scope(|scope| {
            let tables = scope.spawn(|| {
                for _ in 0..500 {
                    frontend.set_mem_table(&[region]).unwrap();
                }
                stop.store(true, Ordering::Relaxed);
            });
            let mut flows = Flows::new(2, &[60, 1514, 508]);
            while !tables.is_finished() && !stop.load(Ordering::Relaxed) {
                flows.exchange(&mut nic, 50);
            }
        });
        assert!(Holdings::now().is_about(&before), "{:?}, before {before:?}", Holdings::now());
        assert_eq!((drops(scene.from_guest()), drops(scene.to_guest())), (vec![], vec![]));
        scene.neighbour_goes_on();
        drop((nic, frontend));
        scene.relay_is_free_again();
    }
}

#[test]
fn a_region_that_is_removed_is_not_read_any_more() {
    let mut scene = Scene::new();
    for packed in [false, true] {
        let (mut nic, two) = TwoRegions::bring_up(&scene, NicOptions { packed, ..NicOptions::default() });
        let [_, seam, end] = two.boundaries();
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: seam,
            memory_size: end - seam,
            userspace_addr: nic.ram().user() + nic.ram().size(),
            mmap_offset: 0,
            mmap_handle: two.second.file().as_raw_fd(),
        };
        let before = scene.to_guest().tx_frames.get();
        post(&mut nic, TRANSMIT, &[(seam, 100, 0)]);
        eventually("a frame comes of it", || scene.to_guest().tx_frames.get() == before + 1);
        nic.frontend().remove_mem_region(&region).unwrap();
        eventually("its chain is back", || take_back(&mut nic, TRANSMIT) == 1);
        let bad = scene.from_guest().dropped(DropReason::BadAddress);
        post(&mut nic, TRANSMIT, &[(seam, 100, 0)]);
        eventually("it is dropped", || scene.from_guest().dropped(DropReason::BadAddress) == bad + 1);
        scene.neighbour_goes_on();
        drop(nic);
        scene.relay_is_free_again();
    }
}

/// Has all writes logged in all of `log`, which has 1 MiB.
fn log_to(nic: &mut GuestNic, log: &OwnedFd) {
    let mut wire = Wire::of(nic).unwrap();
    wire.write_with(&message(request::SET_LOG_BASE, &words(&[1 << 20, 0])), &[log.as_fd()]).unwrap();
    assert_eq!(wire.reply().unwrap(), (request::SET_LOG_BASE, vec![]));
}

/// CVE-2020-10722: size and offset of the log were added without looking, and its bits were written wherever that was.
#[test]
fn a_dirty_log_that_overflows_is_empty_or_is_too_small_is_refused() {
    let mut scene = Scene::new();
    let log = memfd(1 << 20, MemfdFlags::empty());
    for [size, offset] in [
        [0, 0],
        [0x1000, u64::MAX],
        [0x1000, u64::MAX - 0xfff],
        [u64::MAX, 0x1000],
        [u64::MAX, u64::MAX],
        [1 << 63, 1 << 63],
        [1 << 20, 1],
        [(1 << 20) + 1, 0],
        // 0x4000_0000 and what is there needs 32 KiB and some.
        [1, 0],
        [0x8000, 0],
    ] {
        let mut nic = scene.hostile(NicOptions::default());
        exchange(&mut nic, 0, 10);
        let mut wire = Wire::of(&mut nic).unwrap();
        let answer = wire.ask(request::SET_LOG_BASE, &words(&[size, offset]), &[log.as_fd()]);
        assert_eq!(answer, Answer::Closed, "{size:#x} bytes at {offset:#x}");
        scene.neighbour_goes_on();
        eventually("it is disconnected", || scene.stand.relay(0).status().guest.is_none());
    }
    let mut nic = scene.hostile(NicOptions::default());
    log_to(&mut nic, &log);
    // Memory that the log has no bits for cannot come later either.
    let far = GuestRam::new(1 << 40, 0x1000).unwrap();
    let mut wire = Wire::of(&mut nic).unwrap();
    let payload = words(&[0, far.gpa(), far.size(), far.user(), 0]);
    assert_eq!(wire.ask(request::ADD_MEM_REG, &payload, &[far.file().as_fd()]), Answer::Refused);
    exchange(&mut nic, 0, 100);
}

#[test]
fn a_dirty_log_that_is_truncated_costs_its_guest_alone() {
    let mut scene = Scene::new();
    for packed in [false, true] {
        let mut nic = scene.hostile(NicOptions { packed, ..NicOptions::default() });
        let log = memfd(1 << 20, MemfdFlags::empty());
        log_to(&mut nic, &log);
        let status = scene.stand.relay(0).status();
        nic.frontend().set_features(status.guest.unwrap().features | 1 << 26).unwrap();
        exchange(&mut nic, 0, 100);
        ftruncate(&log, 0).unwrap();
        for number in 0..50 {
            nic.send(&frame(number));
        }
        nic.flush();
        scene.neighbour_goes_on();
        scene.relay_is_free_again();
    }
}
