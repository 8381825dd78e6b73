//! Positions over the end of their process, and files that are not what they should be.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

const RING: RingIdentity = RingIdentity { device: 1, inode: 2, offset: 0x3000, size: 256 };

fn at(slot: u16) -> Position {
    Position { slot, wrap: true }
}

fn scene() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("relay-0");
    (directory, path)
}

#[test]
fn a_ring_that_ran_when_its_daemon_died_is_found_where_it_stood() {
    let (_directory, path) = scene();
    let mut positions = Positions::open(&path).unwrap();
    let (mut ring, nothing) = positions.claim(3, RING, 7);
    assert_eq!(nothing, None);
    ring.publish(at(9));
    drop((ring, positions));
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);

    let then = |act: fn(&mut RingPosition)| {
        let (mut ring, found) = Positions::open(&path).unwrap().claim(3, RING, 8);
        act(&mut ring);
        found.unwrap()
    };
    const FIRST: First = First { id: 5, len: 1514 };
    let published = Progress::at(at(9));
    let found = then(|_| {});
    assert_eq!((found.progress, found.base), (published, 7));
    let found = then(|ring| ring.hold(FIRST, at(11)));
    assert_eq!((found.progress, found.base), (published, 8), "the one before stored nothing");
    let held = Progress { written: at(11), writing: at(11), ..published };
    let found = then(|ring| ring.write(at(12)));
    assert_eq!((found.progress, found.first), (held, FIRST));
    assert_eq!(then(|ring| ring.write(at(13))).progress, Progress { writing: at(12), ..held });
    let found = then(|ring| ring.publish(at(13)));
    assert_eq!(found.progress, Progress { written: at(12), writing: at(13), ..held });
    assert_eq!(then(|_| {}).progress, Progress::at(at(13)));
}

#[test]
fn a_ring_that_was_stopped_or_is_another_has_no_predecessor() {
    let (_directory, path) = scene();
    let mut positions = Positions::open(&path).unwrap();
    for other in [
        RingIdentity { device: 9, ..RING },
        RingIdentity { inode: 9, ..RING },
        RingIdentity { offset: 9, ..RING },
        RingIdentity { size: 512, ..RING },
    ] {
        positions.claim(0, RING, 5);
        assert!(positions.claim(0, RING, 5).1.is_some());
        assert_eq!(positions.claim(1, RING, 5).1, None, "another slot");
        positions.release(1);
        assert_eq!(positions.claim(0, other, 1).1, None, "{other:?}");
        assert_eq!(positions.claim(0, RING, 1).1, None, "the slot has the other now");
    }
    positions.release(0);
    assert_eq!(positions.claim(0, RING, 1).1, None);
    let (mut ring, nothing) = positions.claim(RINGS, RING, 1);
    assert_eq!(nothing, None);
    ring.publish(at(2));
    positions.release(RINGS);
    RingPosition::none().publish(at(1));
}

#[test]
fn a_position_that_the_ring_cannot_have_is_none() {
    let (_directory, path) = scene();
    let mut positions = Positions::open(&path).unwrap();
    for (slot, good) in [(0, true), (255, true), (256, false), (0x7fff, false)] {
        positions.claim(0, RING, 0).0.publish(at(slot));
        assert_eq!(positions.claim(0, RING, 0).1.is_some(), good, "{slot}");
        positions.claim(0, RING, 0).0.write(at(slot));
        assert_eq!(positions.claim(0, RING, 0).1.is_some(), good, "{slot} being written");
        positions.release(0);
    }
}

#[test]
fn what_is_no_file_of_ours_is_replaced() {
    let (directory, path) = scene();
    let fresh = |what: &str| {
        let mut positions = Positions::open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(positions.claim(0, RING, 0).1, None, "{what}");
        positions.claim(0, RING, 0).0.publish(at(4));
        drop(positions);
        assert!(Positions::open(&path).unwrap().claim(0, RING, 0).1.is_some(), "after {what}");
    };
    fresh("nothing");
    std::fs::write(&path, "short").unwrap();
    fresh("a short file");
    let good = || OpenOptions::new().write(true).open(&path).unwrap();
    good().write_all_at(&1u32.to_ne_bytes(), 8).unwrap();
    fresh("another version");
    good().set_len(2 * LENGTH as u64).unwrap();
    fresh("a long file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    fresh("a file that others can read");
    let target = directory.path().join("target");
    std::fs::rename(&path, &target).unwrap();
    std::os::unix::fs::symlink(&target, &path).unwrap();
    fresh("a link");
    assert!(target.exists());
    std::fs::remove_file(&target).unwrap();
    std::fs::hard_link(&path, &target).unwrap();
    fresh("a file with another name");
    std::fs::remove_file(&path).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    fresh("a FIFO");
    std::fs::write(path.with_extension("new"), "left behind").unwrap();
    std::fs::write(&path, "short").unwrap();
    fresh("what another left half done");
}

#[test]
fn a_file_that_another_daemon_uses_and_a_directory_are_left_alone() {
    let (directory, path) = scene();
    let _first = Positions::open(&path).unwrap();
    assert_eq!(Positions::open(&path).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(Positions::open(directory.path()).is_err());
}

/// Positions of ring k are odd for odd k, so that a mixture shows.
fn ring(k: u64) -> RingIdentity {
    RingIdentity { inode: k, offset: k << 12, device: k, ..RING }
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn the_child_that_is_killed() {
    let Some(path) = std::env::var_os("POSITIONS_OF_CHILD") else { return };
    let mut positions = Positions::open(Path::new(&path)).unwrap();
    println!("\nready");
    for round in 0u64.. {
        let k = round % 2;
        let (mut handle, found) = positions.claim(0, ring(k), k as u32);
        assert_eq!(found, None);
        for n in 0..50 {
            let slot = (2 * n + k) as u16;
            handle.hold(First { id: slot, len: u32::from(slot) }, at(slot));
            handle.write(at(slot));
            handle.publish(at(slot));
        }
        if round % 3 == 0 {
            positions.release(0);
        }
    }
}

#[test]
fn wherever_the_daemon_is_killed_its_file_tells_the_truth() {
    let (_directory, path) = scene();
    let mut found_running = 0;
    for round in 0..24 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "guest::positions::tests::the_child_that_is_killed", "--nocapture"])
            .env("POSITIONS_OF_CHILD", &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"));
        std::thread::sleep(Duration::from_micros(137 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut positions = Positions::open(&path).unwrap();
        let found = [0, 1].map(|k| positions.shared.slot(0).unwrap().predecessor(&ring(k)));
        assert!(found.iter().flatten().count() <= 1, "{found:?}");
        for (k, found) in (0..).zip(&found) {
            let Some(found) = found else { continue };
            found_running += 1;
            let Progress { published, written, writing, .. } = found.progress;
            // A slot that was just claimed is at the beginning, whichever ring it is.
            let odd = [published, written, writing].map(|position| u32::from(position.slot) % 2);
            assert!(published == Position::START || odd == [k; 3], "{found:?}");
            assert_eq!(found.base, k);
            assert!(writing.slot.abs_diff(published.slot) <= 2 || writing.slot <= 1, "{found:?}");
        }
        positions.release(0);
    }
    assert!(found_running > 0);
    println!("running in {found_running} of 24 rounds");
}

#[test]
fn a_front_end_keeps_positions_in_memory_that_we_gave_it() {
    let (mut positions, file) = Positions::for_front_end().unwrap();
    positions.claim(1, RING, 0).0.publish(at(77));
    drop(positions);
    let keep = || file.try_clone().unwrap();
    let found = Positions::from_front_end(keep(), LENGTH as u64, 0).unwrap().claim(1, RING, 0).1;
    assert_eq!(found.map(|found| found.progress), Some(Progress::at(at(77))));
    file.write_all_at(b"by another back end", 0).unwrap();
    assert_eq!(Positions::from_front_end(keep(), LENGTH as u64, 0).unwrap().claim(1, RING, 0).1, None);
    for (size, offset) in
        [(0, 0), (LENGTH as u64 - 1, 0), (LENGTH as u64 + 1, 0), (LENGTH as u64, u64::MAX), (u64::MAX, 1)]
    {
        assert!(Positions::from_front_end(keep(), size, offset).is_err(), "{size} bytes at {offset}");
    }
    file.set_len(2 * LENGTH as u64).unwrap();
    assert!(Positions::from_front_end(keep(), LENGTH as u64, 1).is_err(), "in the middle of a page");
    let disk = File::open("/proc/self/exe").unwrap();
    assert!(Positions::from_front_end(disk, LENGTH as u64, 0).is_err());
}

#[test]
fn a_ring_that_was_claimed_and_not_kept_is_where_it_began() {
    let (_directory, path) = scene();
    let base = u32::from(at(9).bits());
    for base in [base, base << 16 | base] {
        let other = RingIdentity { offset: u64::from(base), ..RING };
        drop(Positions::open(&path).unwrap().claim(3, other, base));
        let (_, found) = Positions::open(&path).unwrap().claim(3, other, base);
        assert_eq!(found.unwrap().progress, Progress::at(at(9)));
    }
}
