//! Sequences of what driver and device do with a ring, made by chance, and a model that says what must come of them,
//! whichever layout the ring has.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::chain::Access;
use super::queue::{Chain, Virtqueue};

/// What a driver does with its ring, as far as the model is concerned.
pub(crate) trait TestDriver {
    /// Puts a chain of readable buffers into the ring; `false` when there is no room for it.
    fn push(&mut self, id: u16, buffers: &[(u64, u32)], indirect: bool) -> bool;
    /// Shows the device what was pushed.
    fn publish(&mut self);
    /// Takes a used entry.
    fn pop(&mut self) -> Option<(u16, u32)>;
}

/// One step. Numbers are taken modulo what there is, so that every sequence means something.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// The driver pushes a chain with buffers of these lengths (0 included) in the ring or in an indirect table.
    Push { lengths: Vec<u32>, indirect: bool },
    /// The driver shows what it pushed.
    Show,
    /// The device looks at what waits and takes at most so many chains.
    Take(u16),
    /// The device looks at the next chain without taking it.
    Look,
    /// The device puts back the last chains it took.
    PutBack(u16),
    /// The device completes one of the chains it took, with a length.
    Complete(u16, u32),
    /// The device shows what it completed.
    Publish,
    /// The driver takes what it is shown.
    Reap,
}

pub(crate) fn returns() -> impl Strategy<Value = Returns> {
    prop_oneof![Just(Returns::AnyOrder), Just(Returns::InOrder), Just(Returns::InBatches)]
}

/// A sequence of at most `count` operations with chains of at most `longest` buffers.
pub(crate) fn operations(count: usize, longest: usize) -> impl Strategy<Value = Vec<Operation>> {
    let lengths = prop::collection::vec(prop_oneof![1 => Just(0u32), 9 => 1u32..3000], 1..=longest);
    let one = prop_oneof![
        8 => (lengths, any::<bool>()).prop_map(|(lengths, indirect)| Operation::Push { lengths, indirect }),
        4 => Just(Operation::Show),
        4 => (1u16..6).prop_map(Operation::Take),
        1 => Just(Operation::Look),
        1 => (1u16..4).prop_map(Operation::PutBack),
        8 => (any::<u16>(), any::<u32>()).prop_map(|(n, len)| Operation::Complete(n, len)),
        3 => Just(Operation::Publish),
        3 => Just(Operation::Reap),
    ];
    prop::collection::vec(one, 0..count)
}

/// What was to be seen of a ring from one side or the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The device saw a chain of this id with these pieces.
    Chain(u16, Vec<(u64, u32)>),
    /// The driver got a chain back with a length.
    Used(u16, u32),
}

/// A chain in the model.
#[derive(Clone, Debug)]
struct Posted {
    id: u16,
    /// Buffers that are not empty.
    buffers: Vec<(u64, u32)>,
    /// As its ring knows it; once it was taken.
    chain: Chain,
}

/// How chains come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Returns {
    /// In any order.
    AnyOrder,
    /// In the order in which they were taken.
    InOrder,
    /// In that order, without lengths; some, perhaps, before they are shown.
    InBatches,
}

/// What every ring does, kept beside a ring.
pub(crate) struct Model {
    /// Guest address of buffers, which the steps share: nothing is written to them.
    buffers: u64,
    free_ids: Vec<u16>,
    pushed: Vec<Posted>,
    waiting: VecDeque<Posted>,
    /// Taken, in this order; `None` where one was completed since.
    taken: VecDeque<Option<Posted>>,
    completed: Vec<(u16, u32)>,
    shown: VecDeque<(u16, u32)>,
    returns: Returns,
    /// Chains that came back to the driver.
    pub(crate) returned: usize,
    /// All that was seen, in this order.
    pub(crate) trace: Vec<Seen>,
}

impl Model {
    /// A model of an empty ring whose buffers are at guest address `buffers` and whose chains have ids from `ids`.
    pub(crate) fn new(buffers: u64, ids: impl IntoIterator<Item = u16>, returns: Returns) -> Self {
        Self {
            buffers,
            free_ids: ids.into_iter().collect(),
            pushed: Vec::new(),
            waiting: VecDeque::new(),
            taken: VecDeque::new(),
            completed: Vec::new(),
            shown: VecDeque::new(),
            returns,
            returned: 0,
            trace: Vec::new(),
        }
    }

    /// Does one operation on both sides of a ring and compares.
    pub(crate) fn step(
        &mut self,
        operation: &Operation,
        driver: &mut impl TestDriver,
        ring: &mut impl Virtqueue,
    ) {
        match operation {
            Operation::Push { lengths, indirect } => self.push(lengths, *indirect, driver),
            Operation::Show => {
                driver.publish();
                self.waiting.extend(self.pushed.drain(..));
            }
            Operation::Take(n) => {
                ring.begin_burst(*n).unwrap();
                for _ in 0..*n {
                    if ring.is_exhausted() {
                        break;
                    }
                    let Some(chain) = self.look(ring) else { break };
                    ring.take(chain);
                    let posted = self.waiting.pop_front().unwrap();
                    self.taken.push_back(Some(Posted { chain, ..posted }));
                }
            }
            Operation::Look => {
                self.look(ring);
            }
            Operation::PutBack(n) => {
                let mut slots = 0;
                for _ in 0..*n {
                    let Some(Some(posted)) = self.taken.pop_back_if(|posted| posted.is_some()) else { break };
                    slots += posted.chain.slots;
                    self.waiting.push_front(posted);
                }
                ring.put_back(slots);
            }
            Operation::Complete(n, len) => self.complete(*n, *len, ring),
            Operation::Publish => {
                assert!(!ring.publish(), "nobody to interrupt");
                self.shown.extend(self.completed.drain(..));
            }
            Operation::Reap => {
                // A batch may be shown before its burst is over.
                let mut early = self.completed.len() * usize::from(self.returns == Returns::InBatches);
                while let Some(used) = driver.pop() {
                    if self.shown.is_empty() && early > 0 {
                        self.shown.push_back(self.completed.remove(0));
                        early -= 1;
                    }
                    let expected = self.shown.pop_front().expect("it was completed");
                    assert_eq!(used, expected);
                    self.trace.push(Seen::Used(expected.0, expected.1));
                    self.free_ids.insert(0, expected.0);
                    self.returned += 1;
                }
                assert_eq!(self.shown, []);
            }
        }
    }

    /// Brings everything to its end, so that both sides are at rest.
    pub(crate) fn finish(&mut self, driver: &mut impl TestDriver, ring: &mut impl Virtqueue) {
        self.step(&Operation::Show, driver, ring);
        while !self.waiting.is_empty() || self.taken.iter().any(Option::is_some) {
            self.step(&Operation::Take(u16::MAX), driver, ring);
            while self.taken.iter().any(Option::is_some) {
                self.step(&Operation::Complete(0, 0), driver, ring);
            }
        }
        self.step(&Operation::Publish, driver, ring);
        self.step(&Operation::Reap, driver, ring);
    }

    fn push(&mut self, lengths: &[u32], indirect: bool, driver: &mut impl TestDriver) {
        let Some(id) = self.free_ids.pop() else { return };
        // Buffers that differ by their address too, whatever their order.
        let buffers: Vec<_> = lengths
            .iter()
            .enumerate()
            .map(|(n, len)| (self.buffers + u64::from(id) + 7 * n as u64, *len))
            .collect();
        if driver.push(id, &buffers, indirect) {
            let buffers = buffers.into_iter().filter(|(_, len)| *len > 0).collect();
            self.pushed.push(Posted { id, buffers, chain: Chain::default() });
        } else {
            self.free_ids.push(id);
        }
    }

    /// The next chain, which must be the one that has waited for longest.
    fn look(&mut self, ring: &mut impl Virtqueue) -> Option<Chain> {
        let mut seen = Vec::new();
        let walked = ring.next_chain(Access::Read, |piece| {
            seen.push((piece.gpa, piece.segment.len()));
            Ok(())
        });
        let Some(first) = self.waiting.front() else {
            assert_eq!(walked, None);
            return None;
        };
        let (chain, result) = walked.expect("a chain waits");
        assert_eq!((chain.id, result, &seen), (first.id, Ok(()), &first.buffers));
        self.trace.push(Seen::Chain(chain.id, seen));
        Some(chain)
    }

    fn complete(&mut self, n: u16, len: u32, ring: &mut impl Virtqueue) {
        let open: Vec<_> = (0..self.taken.len()).filter(|at| self.taken[*at].is_some()).collect();
        if open.is_empty() {
            return;
        }
        let at = if self.returns == Returns::AnyOrder { open[usize::from(n) % open.len()] } else { open[0] };
        let len = if self.returns == Returns::InBatches { 0 } else { len };
        let posted = self.taken[at].take().unwrap();
        ring.complete(posted.chain, len);
        self.completed.push((posted.id, len));
        while self.taken.front().is_some_and(Option::is_none) {
            self.taken.pop_front();
        }
    }
}
