//! Plain chains that are handled together, against the same chains walked, taken and completed one by one.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::PlainChains;
use crate::ring::by_hand::{BUFFERS, Kind, Memory, Posted, Queue, changed};
use crate::ring::chain::Access;
use crate::ring::queue::{Chain, Virtqueue};
use crate::ring::{Ring, with_ring};

/// One round of a driver and a device.
#[derive(Clone, Debug)]
struct Round {
    /// What the driver posts, as far as there is room.
    chains: Vec<Posted>,
    /// As many plain chains are looked for.
    wanted: usize,
    /// Of those that are found, so many parts of 8 are taken.
    eighths: usize,
    /// What is taken is completed in two runs, not in one.
    in_two: bool,
    /// Chains that are taken one by one after that.
    singly: usize,
    /// The driver is shown what was completed.
    shows: bool,
}

fn round(longest: u16) -> impl Strategy<Value = Round> {
    let chain = (Kind::any(longest), 1u32..3000).prop_map(|(kind, len)| Posted { kind, len });
    (
        prop::collection::vec(chain, 0..40),
        prop_oneof![4 => Just(32usize), 1 => 0usize..32],
        prop_oneof![4 => Just(8usize), 1 => 0usize..8],
        any::<bool>(),
        0usize..4,
        prop::bool::weighted(0.8),
    )
        .prop_map(|(chains, wanted, eighths, in_two, singly, shows)| Round {
            chains,
            wanted,
            eighths,
            in_two,
            singly,
            shows,
        })
}

/// A queue, its device side and their memory.
struct Bench {
    memory: Memory,
    queue: Queue,
    ring: Ring,
}

impl Bench {
    fn new(packed: bool, size: u16, start: u16, access: Access, logged: bool) -> Self {
        let (memory, queue) = Memory::new(logged, |ram| Queue::new(ram, packed, size, start, access));
        let ring = queue.device(&memory.ram, &memory.space);
        Self { memory, queue, ring }
    }

    fn post(&mut self, chains: &[Posted]) -> usize {
        let mut posted = 0;
        for chain in chains {
            let at = BUFFERS + 64 * posted as u64;
            if !self.queue.post(&self.memory.ram, chain, at) {
                break;
            }
            posted += 1;
        }
        self.queue.publish(&self.memory.ram);
        posted
    }
}

/// A chain as a walk finds it: what it is known by, and its pieces, if all is well with it.
type Found = (Chain, Option<Vec<(*mut u8, u32)>>);

fn walk(ring: &mut impl Virtqueue, access: Access) -> Option<Found> {
    let mut pieces = Vec::new();
    let (chain, walked) = ring.next_chain(access, |piece| {
        pieces.push((piece.segment.as_ptr(), piece.segment.len()));
        Ok(())
    })?;
    Some((chain, walked.is_ok().then_some(pieces)))
}

/// What is found together is what walks find, up to the first that is no plain chain.
fn find(
    ring: &mut impl Virtqueue,
    access: Access,
    wanted: usize,
    waiting: &[Posted],
) -> Result<PlainChains, TestCaseError> {
    let mut found = PlainChains::new();
    ring.begin_burst(wanted as u16).unwrap();
    let is_other = ring.plain_chains(access, wanted, &mut found);
    let expected = waiting.iter().take(wanted).take_while(|chain| chain.kind.is_plain()).count();
    prop_assert_eq!(found.len(), expected, "as many as were posted before another kind");
    let mut slots = 0;
    for (plain, posted) in found.iter().zip(waiting) {
        let (chain, pieces) = walk(ring, access).expect("a chain waits");
        prop_assert_eq!(chain, plain.chain());
        prop_assert_eq!(pieces, Some(vec![(plain.segment.as_ptr(), plain.segment.len())]));
        prop_assert_eq!(plain.segment.len(), posted.len);
        ring.take(chain);
        slots += chain.slots;
    }
    let next = if found.len() < wanted { walk(ring, access) } else { None };
    prop_assert_eq!(is_other, next.is_some(), "whether one waits that is to be walked");
    ring.put_back(slots);
    Ok(found)
}

fn taken_together(ring: &mut impl Virtqueue, found: &[super::PlainChain], in_two: bool) {
    let len = |plain: &super::PlainChain| (plain.id, plain.segment.len() / 2);
    let (first, second) = found.split_at(if in_two { found.len() / 2 } else { found.len() });
    ring.take_plain(first.len() as u16);
    ring.complete_run(first.iter().map(len));
    ring.take_plain(second.len() as u16);
    ring.complete_run(second.iter().map(len));
}

/// Takes and completes chains one by one.
fn taken_singly(ring: &mut impl Virtqueue, access: Access, n: usize) {
    for _ in 0..n {
        let Some((chain, pieces)) = walk(ring, access) else { return };
        ring.take(chain);
        let len = pieces.map_or(0, |pieces| pieces.iter().map(|(_, len)| len).sum::<u32>() / 2);
        ring.complete(chain, len);
    }
}

fn compare(
    packed: bool,
    size: u16,
    start: u16,
    access: Access,
    logged: bool,
    rounds: &[Round],
) -> TestCaseResult {
    let [mut together, mut singly] = [(); 2].map(|()| Bench::new(packed, size, start, access, logged));
    let mut waiting: Vec<Posted> = Vec::new();
    let mut unmarked = Vec::new();
    for round in rounds {
        let posted = together.post(&round.chains);
        prop_assert_eq!(singly.post(&round.chains), posted);
        waiting.extend_from_slice(&round.chains[..posted]);
        let written = together.memory.rings();

        let found = with_ring!(&mut together.ring, ring => find(ring, access, round.wanted, &waiting))?;
        let n = found.len() * round.eighths / 8;
        with_ring!(&mut together.ring, ring => {
            taken_together(ring, &found[..n], round.in_two);
            taken_singly(ring, access, round.singly);
            if round.shows {
                ring.publish();
            }
        });
        with_ring!(&mut singly.ring, ring => {
            ring.begin_burst(32).unwrap();
            taken_singly(ring, access, n + round.singly);
            if round.shows {
                ring.publish();
            }
        });
        waiting.drain(..(n + round.singly).min(waiting.len()));

        prop_assert_eq!(together.ring.base(), singly.ring.base());
        let after = together.memory.rings();
        prop_assert!(after == singly.memory.rings(), "the same in memory");
        let marked = together.memory.marked();
        prop_assert_eq!(&marked, &singly.memory.marked(), "the same in the dirty log");
        // What the driver does not see yet may be marked with what shows it.
        unmarked.extend(changed(&written, &after));
        unmarked.retain(|page| !marked.contains(page));
        if logged && round.shows {
            prop_assert_eq!(&unmarked, &[0; 0], "pages that were written and not marked");
        }
        prop_assert_eq!(together.queue.reap(&together.memory.ram), singly.queue.reap(&singly.memory.ram));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn plain_chains_are_what_walks_find_and_are_completed_as_one_by_one(
        (packed, size) in prop_oneof![
            prop::sample::select(vec![2u16, 4, 32, 256, 512]).prop_map(|size| (false, size)),
            prop::sample::select(vec![2u16, 3, 5, 32, 33, 256, 300, 511]).prop_map(|size| (true, size)),
        ],
        start: u16,
        writes: bool,
        logged: bool,
        rounds in prop::collection::vec(round(3), 1..12),
    ) {
        let access = if writes { Access::Write } else { Access::Read };
        compare(packed, size, start, access, logged, &rounds)?;
    }
}

#[test]
fn a_run_that_wraps_is_marked_at_both_ends_of_a_packed_ring() {
    // 300 descriptors lie on two pages.
    for start in 270..300 {
        let chains = vec![Posted { kind: Kind::Plain, len: 100 }; 32];
        let round = Round { chains, wanted: 32, eighths: 8, in_two: false, singly: 0, shows: true };
        compare(true, 300, start, Access::Write, true, &[round]).unwrap();
    }
}
