//! Packed rings whose device side dies at any instruction, and a successor that goes on.

use std::collections::VecDeque;
use std::path::PathBuf;

use proptest::prelude::*;

use super::tests::{BUFFERS, Guest, descriptor};
use super::*;
use crate::guest::positions::{Positions, RingIdentity};
use crate::ring::operations::Returns;

const RING: RingIdentity = RingIdentity { device: 1, inode: 1, offset: 0, size: 0 };

struct Scene {
    guest: Guest,
    path: PathBuf,
    _folder: tempfile::TempDir,
    /// Ids that the driver made available and has not got back, in order.
    posted: VecDeque<u16>,
    next_id: u16,
    size: u16,
}

impl Scene {
    fn new(size: u16, returns: Returns) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("relay-0");
        Self {
            guest: Guest::new(size).with(returns),
            path,
            _folder: folder,
            posted: VecDeque::new(),
            next_id: 0,
            size,
        }
    }

    /// A device side that has the positions file, as a front end starts it that only knows the beginning.
    fn device(&self, receives: bool) -> (PackedRing, Positions, bool) {
        let config = RingConfig { base: PackedRing::START, ..self.guest.config() };
        let mut ring = PackedRing::new(&config, &self.guest.space, None).unwrap();
        let mut positions = self.positions();
        let identity = RingIdentity { size: self.size, ..RING };
        let (position, predecessor) = positions.claim(0, identity, PackedRing::START);
        let resumed = predecessor.is_some_and(|predecessor| ring.recover(&predecessor, receives));
        ring.keep_position(position);
        (ring, positions, resumed)
    }

    /// Another test's child process may have the file, with its lock, for a moment after it was closed here.
    fn positions(&self) -> Positions {
        for _ in 0..1000 {
            match Positions::open(&self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
                other => return other.unwrap(),
            }
        }
        panic!("the positions file stays locked");
    }

    fn post(&mut self, slots: u16) -> bool {
        let chain = vec![descriptor(BUFFERS, 60, 0); usize::from(slots)];
        let posted = self.guest.ring.push(&self.guest.ram, self.next_id, &chain);
        self.guest.ring.publish(&self.guest.ram);
        if posted {
            self.posted.push_back(self.next_id);
            self.next_id = self.next_id.wrapping_add(1) % 1000;
        }
        posted
    }

    /// What the driver gets back must be what it posted, in order, each once.
    fn reap(&mut self) -> usize {
        let popped = self.guest.popped();
        for (id, _) in &popped {
            assert_eq!(Some(*id), self.posted.pop_front(), "chains come back in order, each once");
        }
        popped.len()
    }
}

/// As [`burst`], for chains of one slot that are looked at and completed together.
fn run(ring: &mut PackedRing, n: usize, publish: bool) {
    ring.begin_burst(32).unwrap();
    let mut found = PlainChains::new();
    ring.plain_chains(Access::Read, n, &mut found);
    ring.take_plain(found.len() as u16);
    ring.complete_run(found.iter().map(|chain| (chain.id, 0)));
    if publish {
        ring.publish();
    }
}

/// Takes and completes up to `n` chains; with `publish` the driver sees them.
fn burst(ring: &mut PackedRing, n: usize, publish: bool) {
    ring.begin_burst(32).unwrap();
    for _ in 0..n {
        let Some((chain, _)) = ring.next_chain(Access::Read, |_| Ok(())) else { break };
        ring.take(chain);
        ring.complete(chain, 0);
    }
    if publish {
        ring.publish();
    }
}

proptest! {
    /// Whatever burst the device side dies in, the driver gets every chain back once, and in order.
    #[test]
    fn a_successor_loses_nothing_and_completes_nothing_twice(
        size in prop::sample::select(vec![7u16, 16, 64, 256]),
        receives: bool,
        runs: bool,
        batches: bool,
        lives in prop::collection::vec((
            prop::collection::vec((1u16..4, 0usize..40, 0usize..12), 1..20), 0usize..12), 1..6),
    ) {
        // Only transmit queues.
        let returns = if batches && !receives { Returns::InBatches } else { Returns::InOrder };
        let mut scene = Scene::new(size, returns);
        // Those that are longer than one slot stay behind a run; the next burst that is none takes them.
        let step = |ring: &mut PackedRing, n: usize, publish: bool| {
            if runs {
                run(ring, n / 2, false);
            }
            burst(ring, n, publish);
        };
        for (rounds, unpublished) in lives {
            let (mut ring, positions, _) = scene.device(receives);
            for (slots, posts, bursts) in rounds {
                // A driver keeps its receive ring full, of chains of one descriptor.
                let slots = if receives { 1 } else { slots };
                let posts = if receives { usize::from(size) } else { posts };
                for _ in 0..posts {
                    if !scene.post(slots) {
                        break;
                    }
                }
                step(&mut ring, bursts, true);
                scene.reap();
            }
            if receives {
                while scene.post(1) {}
            }
            // Dies with a burst half done.
            step(&mut ring, unpublished, false);
            drop((ring, positions));
        }
        let (mut ring, _positions, _) = scene.device(receives);
        for _ in 0..2 * size {
            burst(&mut ring, 8, true);
            scene.reap();
        }
        prop_assert!(scene.posted.is_empty(), "{:?} did not come back", scene.posted);
    }
}

#[test]
fn a_ring_that_its_driver_began_anew_is_not_taken_for_the_old_one() {
    let kinds = [(false, Returns::InOrder), (true, Returns::InOrder), (false, Returns::InBatches)];
    for (receives, returns) in kinds {
        for used in [40, 100, 255, 256 + 5, 256 + 40, 256 + 100, 512 + 2, 512 + 5, 512 + 77, 768 + 200] {
            let mut scene = Scene::new(256, returns);
            let (mut ring, positions, _) = scene.device(receives);
            if receives {
                while scene.post(1) {}
            }
            for _ in 0..used {
                scene.post(1);
                burst(&mut ring, 1, true);
                assert_eq!(scene.reap(), 1);
            }
            drop((ring, positions));
            // The driver is reset: its ring is as if nobody had ever used it.
            let old = &scene.guest.ring;
            let zeros = vec![0; 16 * 256];
            scene.guest.ram.write(old.descriptors, &zeros);
            scene.guest.ring.begin_anew();
            scene.posted.clear();
            for _ in 0..if receives { 256 } else { 3 } {
                assert!(scene.post(1));
            }
            let (mut ring, _positions, resumed) = scene.device(receives);
            assert!(!resumed, "receives: {receives}, after {used}");
            burst(&mut ring, 2, true);
            assert_eq!(scene.reap(), 2, "receives: {receives}, after {used}");
        }
    }
}

#[test]
fn a_ring_is_resumed_wherever_a_batch_ended() {
    for batch in [2, 9, 40, 200, 256] {
        for batches in 1..60 {
            let mut scene = Scene::new(256, Returns::InBatches);
            let (mut ring, positions, _) = scene.device(false);
            for _ in 0..batches {
                (0..batch).for_each(|_| assert!(scene.post(1)));
                burst(&mut ring, batch, true);
                assert_eq!(scene.reap(), batch);
            }
            drop((ring, positions));
            let (mut ring, _positions, resumed) = scene.device(false);
            assert!(resumed, "after {batches} of {batch}");
            assert!(scene.post(1));
            burst(&mut ring, 1, true);
            assert_eq!(scene.reap(), 1);
        }
    }
}

#[test]
fn one_used_descriptor_stands_for_a_batch() {
    let mut scene = Scene::new(16, Returns::InBatches);
    let (mut ring, _positions, _) = scene.device(false);
    for slots in [1, 2, 1, 3] {
        assert!(scene.post(slots));
    }
    run(&mut ring, 1, false);
    burst(&mut ring, 2, false);
    assert_eq!(scene.reap(), 0);
    ring.publish();
    let used = |slot| Position::START.is_used(scene.guest.ring.get(&scene.guest.ram, slot).flags);
    assert_eq!((0..7).filter(|slot| used(*slot)).collect::<Vec<_>>(), [0]);
    assert_eq!(scene.guest.ring.get(&scene.guest.ram, 0).id, 2, "that of the third chain");
    assert_eq!(scene.reap(), 3);
    burst(&mut ring, 1, true);
    assert_eq!(scene.reap(), 1);
}

#[test]
fn a_batch_whose_end_was_just_being_noted_anew_is_taken_again() {
    let mut scene = Scene::new(16, Returns::InBatches);
    let (mut ring, positions, _) = scene.device(false);
    (0..2).for_each(|_| assert!(scene.post(1)));
    burst(&mut ring, 2, true);
    assert_eq!(scene.reap(), 2);
    while scene.post(1) {}
    burst(&mut ring, 3, false);
    ring.position.publish(Position::START.advanced(2, 16));
    drop((ring, positions));
    let (mut ring, _positions, resumed) = scene.device(false);
    assert!(resumed);
    burst(&mut ring, 16, true);
    assert_eq!(scene.reap(), 16);
}

#[test]
fn a_ring_is_resumed_wherever_it_was() {
    for receives in [false, true] {
        for used in (1..600).step_by(7) {
            let mut scene = Scene::new(256, Returns::InOrder);
            let (mut ring, positions, _) = scene.device(receives);
            if receives {
                while scene.post(1) {}
            }
            for _ in 0..used {
                scene.post(1);
                burst(&mut ring, 1, true);
                assert_eq!(scene.reap(), 1);
            }
            if receives {
                scene.post(1);
            }
            drop((ring, positions));
            let (_, _, resumed) = scene.device(receives);
            assert!(resumed, "receives: {receives}, after {used}");
        }
    }
}

#[test]
fn a_burst_that_the_driver_saw_before_that_was_noted_is_over() {
    for receives in [false, true] {
        for chains in 1..6 {
            let mut scene = Scene::new(16, Returns::InOrder);
            let (mut ring, positions, _) = scene.device(receives);
            while scene.post(1) {}
            burst(&mut ring, chains, false);
            // The device side dies between the two.
            ring.position = RingPosition::none();
            ring.publish();
            drop((ring, positions));
            // Until there is another, the driver uses these slots once more.
            assert_eq!(scene.reap(), chains);
            while scene.post(1) {}
            let (mut ring, _positions, resumed) = scene.device(receives);
            assert!(resumed, "receives: {receives}, after {chains}");
            burst(&mut ring, 16, true);
            scene.reap();
            assert!(scene.posted.is_empty(), "receives: {receives}, after {chains}: {:?}", scene.posted);
        }
    }
}

#[test]
fn a_run_is_gone_on_with_where_its_writer_died() {
    for held_back in [1, 2, 5] {
        for written in 0..=4 {
            let mut scene = Scene::new(16, Returns::InOrder);
            let (mut ring, positions, _) = scene.device(false);
            while scene.post(1) {}
            burst(&mut ring, held_back, false);
            let begin = ring.next_used;
            ring.position.write_run(begin.advanced(4, 16));
            for k in 0..written {
                let (at, id) = (begin.advanced(k, 16), held_back as u16 + k);
                ring.slots.second_half(at.slot).store(Used { at, id, len: 0 }.half(), Ordering::Relaxed);
            }
            drop((ring, positions));
            let (mut ring, _positions, resumed) = scene.device(false);
            assert!(resumed, "{written} behind {held_back}");
            assert_eq!(scene.reap(), held_back + usize::from(written), "the burst is published");
            burst(&mut ring, 16, true);
            scene.reap();
            assert!(scene.posted.is_empty(), "{written} behind {held_back}: {:?}", scene.posted);
        }
    }
}

#[test]
fn a_successor_may_die_while_it_takes_over() {
    for written in [false, true] {
        let mut scene = Scene::new(16, Returns::InOrder);
        let (mut ring, positions, _) = scene.device(false);
        while scene.post(1) {}
        burst(&mut ring, 3, false);
        if !written {
            // A fourth is announced, and that was that.
            let next = ring.next_used.advanced(1, 16);
            ring.position.write(next);
        }
        drop((ring, positions));
        {
            let config = RingConfig { base: PackedRing::START, ..scene.guest.config() };
            let mut ring = PackedRing::new(&config, &scene.guest.space, None).unwrap();
            let mut positions = scene.positions();
            let identity = RingIdentity { size: 16, ..RING };
            let (_, predecessor) = positions.claim(0, identity, PackedRing::START);
            assert!(ring.recover(&predecessor.unwrap(), false));
        }
        scene.reap();
        while scene.post(1) {}
        let (mut ring, _positions, resumed) = scene.device(false);
        assert!(resumed);
        burst(&mut ring, 16, true);
        scene.reap();
        assert!(scene.posted.is_empty(), "{:?}", scene.posted);
    }
}
