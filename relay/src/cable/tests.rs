//! The short way of a cable against the general one: the same frames, the same used entries, the same counters.
//!
//! The general way is forced by a dirty log, with which every frame takes the longest path there is: each chain is walked,
//! each piece is copied and marked by itself.

use std::time::{Duration, Instant};

use pmd::Capabilities;
use pmd::frame::BURST_BYTES;
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::counters::{DirectionCounters, DropReason};
use crate::ends::{Cable, Ends, RelayCounters};
use crate::lane::Lane;
use crate::ring::by_hand::{BUFFERS, GPA, Kind, MIDDLE, Memory, Posted, Queue, RAM, changed};
use crate::ring::chain::Access;
use crate::ring::receive::ReceiveRules;
use crate::ring::transmit::TransmitRules;
use crate::ring::{ReceiveRing, TransmitRing};

/// Frames lie from here on; receive buffers lie before.
const FRAMES: u64 = MIDDLE + 0x1000;

/// What both rings and their rules are like.
#[derive(Clone, Debug)]
struct Setup {
    packed: [bool; 2],
    sizes: [u16; 2],
    starts: [u16; 2],
    from: TransmitRules,
    to: ReceiveRules,
}

fn capabilities() -> impl Strategy<Value = Capabilities> {
    (any::<[bool; 5]>()).prop_map(|[checksum, tcp_v4, tcp_v6, ecn, udp]| Capabilities {
        checksum,
        tcp_v4: checksum && tcp_v4,
        tcp_v6: checksum && tcp_v6,
        ecn: checksum && ecn,
        udp: checksum && udp,
        ..Capabilities::NONE
    })
}

fn cable() -> impl Strategy<Value = Setup> {
    let header = || prop_oneof![3 => Just(12u32), 1 => Just(10u32)];
    (
        any::<[bool; 2]>(),
        prop::sample::select(vec![[2u16, 2], [4, 32], [32, 4], [64, 64], [256, 256]]),
        any::<[u16; 2]>(),
        (header(), prop::option::of(capabilities()), any::<bool>()),
        (header(), any::<bool>(), capabilities()),
    )
        .prop_map(
            |(packed, sizes, starts, (header, offloads, in_order), (to_header, mergeable, to_offloads))| {
                // Offloads and mergeable buffers come with the longer header.
                let header = if offloads.is_some() { 12 } else { header };
                let plain = to_header == 10;
                Setup {
                    packed,
                    sizes,
                    starts,
                    from: TransmitRules { header, offloads, in_order },
                    to: ReceiveRules {
                        header: to_header,
                        mergeable: mergeable && !plain,
                        offloads: if plain { Capabilities::NONE } else { to_offloads },
                    },
                }
            },
        )
}

/// A chain of the transmit ring, and the header in it.
#[derive(Clone, Debug)]
struct Sent {
    chain: Posted,
    header: [u8; 12],
}

fn header() -> impl Strategy<Value = [u8; 12]> {
    let field = || prop_oneof![8 => 0u16..80, 1 => any::<u16>()];
    let asks =
        (0u8..4, prop::sample::select(vec![0u8, 0, 0, 1, 4, 5, 0x81, 9]), field(), field(), field(), field())
            .prop_map(|(flags, gso, length, size, start, offset)| {
                let mut header = [0; 12];
                (header[0], header[1]) = (flags, gso);
                for (at, field) in [(2, length), (4, size), (6, start), (8, offset)] {
                    header[at..at + 2].copy_from_slice(&field.to_le_bytes());
                }
                header
            });
    prop_oneof![6 => Just([0; 12]), 3 => asks, 1 => any::<[u8; 12]>()]
}

fn sent() -> impl Strategy<Value = Sent> {
    let len = prop_oneof![
        16 => 60u32..1600,
        // No header, half a header, no frame behind it, the shortest frame.
        2 => 1u32..40,
        1 => 1600u32..10_000,
        1 => BURST_BYTES - 50..BURST_BYTES + 50,
    ];
    (Kind::any(3), len, header()).prop_map(|(kind, len, header)| Sent { chain: Posted { kind, len }, header })
}

fn posted() -> impl Strategy<Value = Posted> {
    let len = prop_oneof![
        12 => Just(2048u32),
        4 => 60u32..1600,
        2 => 1u32..40,
        1 => 5000u32..20_000,
        1 => Just(BURST_BYTES + 100),
    ];
    (Kind::any(3), len).prop_map(|(kind, len)| Posted { kind, len })
}

/// What the two drivers do before the lane has its turns.
#[derive(Clone, Debug)]
struct Round {
    sent: Vec<Sent>,
    posted: Vec<Posted>,
}

fn round() -> impl Strategy<Value = Round> {
    (prop::collection::vec(sent(), 0..50), prop::collection::vec(posted(), 0..50))
        .prop_map(|(sent, posted)| Round { sent, posted })
}

/// Two guests and the lane between them.
struct Bench {
    memories: [Memory; 2],
    queues: [Queue; 2],
    lane: Lane,
    counters: RelayCounters,
    now: Instant,
}

impl Bench {
    fn new(cable: &Setup, logged: bool) -> Self {
        let make = |n: usize, access| {
            Memory::new(logged, |ram| {
                Queue::new(ram, cable.packed[n], cable.sizes[n], cable.starts[n], access)
            })
        };
        let (from_memory, from) = make(0, Access::Read);
        let (to_memory, to) = make(1, Access::Write);
        let mut ends = Ends::default();
        ends.cable = Some(Cable::Loopback);
        let ring = from.device(&from_memory.ram, &from_memory.space);
        ends.near.transmit[0] = Some(TransmitRing::new(ring, 0, cable.from));
        let ring = to.device(&to_memory.ram, &to_memory.space);
        ends.near.receive[0] = Some(ReceiveRing::new(ring, 0, cable.to));
        let counters = RelayCounters::default();
        let lane = ends.lanes(0, &counters).pop().unwrap();
        let now = Instant::now();
        Self { memories: [from_memory, to_memory], queues: [from, to], lane, counters, now }
    }

    /// The drivers' part; what finds no room is left out.
    fn post(&mut self, round: &Round) {
        let [from, to] = &mut self.memories;
        let mut at = FRAMES;
        for Sent { chain, header } in &round.sent {
            let end = at + u64::from(chain.len);
            if end > GPA + RAM - 16 || !self.queues[0].post(&from.ram, chain, at) {
                break;
            }
            let n = header.len().min(chain.len as usize);
            from.ram.write(at, &header[..n]);
            at = end;
        }
        let mut at = BUFFERS;
        for chain in &round.posted {
            let end = at + u64::from(chain.len);
            if end > MIDDLE - 16 || !self.queues[1].post(&to.ram, chain, at) {
                break;
            }
            at = end;
        }
        self.queues[0].publish(&from.ram);
        self.queues[1].publish(&to.ram);
    }

    /// Turns of the lane until there is nothing more to do. No time passes, so nothing is dropped for want of a buffer.
    fn run(&mut self) {
        let mut idle = 0;
        while idle < 3 {
            idle = if self.lane.step(self.now) { 0 } else { idle + 1 };
            // A packed ring leaves a driver a moment to write on.
            std::thread::sleep(Duration::from_micros(2));
        }
    }

    fn reap(&mut self) -> [Vec<(u32, u32)>; 2] {
        let [from, to] = &mut self.queues;
        [from.reap(&self.memories[0].ram), to.reap(&self.memories[1].ram)]
    }

    fn counted(&self) -> Vec<(&'static str, u64)> {
        let block = |counters: &DirectionCounters| {
            let DirectionCounters { rx_frames, rx_bytes, tx_frames, tx_bytes, .. } = counters;
            let of = |reason: &DropReason| (reason.name(), counters.dropped(*reason));
            let mut all: Vec<_> = DropReason::ALL.iter().map(of).collect();
            let rest = [("rx", rx_frames), ("rx bytes", rx_bytes), ("tx", tx_frames), ("tx bytes", tx_bytes)];
            all.extend(rest.map(|(name, counter)| (name, counter.get())));
            all
        };
        [block(&self.counters.vm_to_vf), block(&self.counters.vf_to_vm)].concat()
    }
}

fn compare(cable: &Setup, rounds: &[Round]) -> TestCaseResult {
    let mut short = Bench::new(cable, false);
    let mut general = Bench::new(cable, true);
    for round in rounds {
        short.post(round);
        general.post(round);
        let before = general.memories[1].bytes();
        general.memories[1].marked();
        short.run();
        general.run();
        prop_assert!(short.memories[0].rings() == general.memories[0].rings(), "the same at the sender");
        let after = general.memories[1].bytes();
        prop_assert!(short.memories[1].bytes() == after, "the same at the receiver");
        prop_assert_eq!(short.counted(), general.counted());
        let marked = general.memories[1].marked();
        let changed = changed(&before, &after);
        let missing: Vec<_> = changed.into_iter().filter(|page| !marked.contains(page)).collect();
        prop_assert_eq!(missing, [0; 0], "pages that were written and not marked");
        prop_assert_eq!(short.reap(), general.reap());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_short_way_of_a_cable_leaves_what_the_general_one_does(
        cable in cable(),
        rounds in prop::collection::vec(round(), 1..5),
    ) {
        compare(&cable, &rounds)?;
    }
}
