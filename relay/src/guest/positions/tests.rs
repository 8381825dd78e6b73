//! Positions over the end of their process, and files that are not what they should be.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

const RING: RingIdentity = RingIdentity { device: 1, inode: 2, offset: 0x3000, size: 256, packed: false };

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
    ring.store(9);
    ring.count(2, 1);
    ring.count(3, 3);
    drop((ring, positions));
    assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);

    let mut positions = Positions::open(&path).unwrap();
    let (ring, found) = positions.claim(3, RING, 8);
    let expected = Predecessor { position: 9, intended: None, base: 7, chains: 5, frames: 4 };
    assert_eq!(found, Some(expected));
    drop((ring, positions));
    let (mut ring, found) = Positions::open(&path).unwrap().claim(3, RING, 8);
    assert_eq!(found, Some(Predecessor { base: 8, ..expected }), "this one stored nothing");
    ring.intend(12);
    drop(ring);
    let (_, found) = Positions::open(&path).unwrap().claim(3, RING, 8);
    assert_eq!(found.map(|found| (found.position, found.intended)), Some((9, Some(12))));
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
        RingIdentity { packed: true, ..RING },
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
    ring.store(2);
    positions.release(RINGS);
    RingPosition::none().store(1);
}

#[test]
fn a_position_that_the_ring_cannot_have_is_none() {
    let (_directory, path) = scene();
    let mut positions = Positions::open(&path).unwrap();
    let packed = RingIdentity { packed: true, size: 0x100, ..RING };
    for (identity, position, good) in [
        (RING, 0xffff, true),
        (RING, 0x1_0000, false),
        (packed, 0x80ff_80ff, true),
        (packed, 0x80ff_8100, false),
        (packed, 0x8100_80ff, false),
    ] {
        positions.claim(0, identity, 0).0.store(position);
        assert_eq!(positions.claim(0, identity, 0).1.is_some(), good, "{position:#x}");
        let (mut ring, _) = positions.claim(0, identity, 0);
        ring.store(0);
        ring.intend(position);
        assert_eq!(positions.claim(0, identity, 0).1.is_some(), good, "{position:#x} intended");
        positions.release(0);
    }
}

#[test]
fn what_is_no_file_of_ours_is_replaced() {
    let (directory, path) = scene();
    let fresh = |what: &str| {
        let mut positions = Positions::open(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(positions.claim(0, RING, 0).1, None, "{what}");
        positions.claim(0, RING, 0).0.store(4);
        drop(positions);
        assert!(Positions::open(&path).unwrap().claim(0, RING, 0).1.is_some(), "after {what}");
    };
    fresh("nothing");
    std::fs::write(&path, "short").unwrap();
    fresh("a short file");
    let good = || OpenOptions::new().write(true).open(&path).unwrap();
    good().write_all_at(&2u32.to_ne_bytes(), 8).unwrap();
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
            let position = (2 * n + k) as u32;
            handle.intend(position);
            handle.store(position);
            handle.count(1, 1);
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
            assert_eq!((found.position % 2, found.intended.unwrap_or(k) % 2, found.base), (k, k, k));
            let one_step = [found.position + 2, k];
            assert!(found.intended.is_none_or(|next| one_step.contains(&next)), "{found:?}");
        }
        positions.release(0);
    }
    assert!(found_running > 0);
    println!("running in {found_running} of 24 rounds");
}
