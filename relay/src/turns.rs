//! Whose turn it is: the lanes of one worker share its time, not its passes.
//!
//! A pass over a lane costs what its guests make it cost: 32 small frames, or as many long ones, or descriptors for
//! nothing. So a lane that has had more time than the one that had least, and both have work, waits until that one has
//! caught up. A lane without work saves nothing up.
//!
//! ```text
//!   time had   ├────────── A ──────────┤
//!              ├───── B ─────┤                   least: B
//!              ├───── C ───────┤
//!                            └─ slack ─┘         A is left out of this pass
//! ```

/// Ticks of the clock (see [`ticks`]) by which a lane may be ahead of another: about 10 µs, some bursts. Below that
/// lanes simply take turns.
const SLACK: u64 = 25_000;

/// A look at rings that have nothing takes less, about half a microsecond.
const IDLE: u64 = 1_500;

/// Most that one step is charged with, about 100 µs: what takes longer, the kernel took for something else.
const MOST: u64 = 250_000;

/// What a lane has had.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    spent: u64,
}

/// The bookkeeping of one worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turns {
    /// Least that a lane with work had had at the end of the last pass.
    least: u64,
    /// The same of this pass, so far; `None` while none had work.
    next: Option<u64>,
    /// No lane had work in the last pass, but for those that were left out.
    idle: bool,
}

impl Turns {
    /// Whether the lane with this account has its turn in this pass.
    #[inline]
    pub fn has_turn(&self, account: &Account) -> bool {
        self.idle || account.spent.saturating_sub(self.least) <= SLACK
    }

    /// The lane with this account took `time`; `busy` if it moved frames. What takes long without is work too: malformed
    /// chains, say.
    #[inline]
    pub fn charge(&mut self, account: &mut Account, time: u64, busy: bool) {
        if busy || time > IDLE {
            account.spent = account.spent.max(self.least).saturating_add(time.min(MOST));
            self.next = Some(self.next.map_or(account.spent, |next| next.min(account.spent)));
        }
    }

    /// The worker has slept: nobody waited for a turn.
    pub fn slept(&mut self) {
        self.idle = true;
    }

    /// All lanes had their turn or were left out.
    #[inline]
    pub fn end_pass(&mut self) {
        self.idle = self.next.is_none();
        self.least = self.next.take().unwrap_or(self.least);
    }
}

/// A clock that is cheap to read: cycles of the processor's time stamp counter, or nanoseconds where there is none.
#[inline]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 processor has the instruction, and Linux lets programs use it.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lanes whose passes cost so much, for so many passes of the worker; returns how often each had its turn.
    fn run(costs: &[u64], passes: usize, mut busy: impl FnMut(usize, usize) -> bool) -> Vec<u64> {
        let mut turns = Turns::default();
        let mut accounts = vec![Account::default(); costs.len()];
        let mut had = vec![0; costs.len()];
        for pass in 0..passes {
            for (lane, cost) in costs.iter().enumerate() {
                if turns.has_turn(&accounts[lane]) {
                    let busy = busy(lane, pass);
                    had[lane] += u64::from(busy);
                    turns.charge(&mut accounts[lane], if busy { *cost } else { 100 }, busy);
                }
            }
            turns.end_pass();
        }
        had
    }

    #[test]
    fn lanes_with_work_have_the_same_time_whatever_a_pass_of_theirs_costs() {
        let costs = [5_000, 12_000, 200_000, 7_000];
        let had = run(&costs, 100_000, |_, _| true);
        let time: Vec<u64> = had.iter().zip(costs).map(|(turns, cost)| turns * cost).collect();
        let (least, most) = (time.iter().min().unwrap(), time.iter().max().unwrap());
        assert!(most - least <= 2 * (200_000 + SLACK), "{time:?}");
    }

    #[test]
    fn a_lane_in_whose_turn_the_worker_was_interrupted_is_not_left_out_for_as_long() {
        let mut turns = Turns::default();
        let mut accounts = [Account::default(); 2];
        let mut left_out = 0;
        for pass in 0..1000 {
            for (lane, account) in accounts.iter_mut().enumerate() {
                if turns.has_turn(account) {
                    let interrupted = lane == 0 && pass == 100;
                    turns.charge(account, if interrupted { 1 << 40 } else { 5_000 }, true);
                } else {
                    left_out += 1;
                }
            }
            turns.end_pass();
        }
        assert!(left_out <= MOST / 5_000, "{left_out}");
    }

    #[test]
    fn work_that_moves_no_frame_is_charged_too() {
        let mut turns = Turns::default();
        let mut accounts = [Account::default(); 2];
        let mut had = [0u64; 2];
        for _ in 0..10_000 {
            for (lane, (account, (time, busy))) in
                accounts.iter_mut().zip([(20_000, false), (5_000, true)]).enumerate()
            {
                if turns.has_turn(account) {
                    had[lane] += time;
                    turns.charge(account, time, busy);
                }
            }
            turns.end_pass();
        }
        assert!(had[0].abs_diff(had[1]) <= 2 * SLACK, "{had:?}");
    }

    #[test]
    fn after_a_sleep_all_have_their_turn() {
        let mut turns = Turns::default();
        let mut accounts = [Account::default(); 2];
        for _ in 0..10 {
            turns.charge(&mut accounts[0], 100_000, true);
            turns.charge(&mut accounts[1], 5_000, true);
            turns.end_pass();
        }
        assert!(!turns.has_turn(&accounts[0]));
        turns.slept();
        assert!(accounts.iter().all(|account| turns.has_turn(account)));
    }

    #[test]
    fn a_lane_alone_is_never_left_out() {
        assert_eq!(run(&[200_000], 1000, |_, _| true), [1000]);
        assert_eq!(run(&[200_000, 5_000], 1000, |lane, _| lane == 0)[0], 1000, "nor beside one without work");
    }

    #[test]
    fn a_lane_that_had_no_work_has_no_credit() {
        // The second begins late: it has as many turns from then on, not all of them.
        let had = run(&[10_000, 10_000], 10_000, |lane, pass| lane == 0 || pass >= 5_000);
        assert!(had[0] >= 9_990 && had[1].abs_diff(5_000) <= 10, "{had:?}");
    }

    #[test]
    fn work_that_comes_and_goes_is_served() {
        let had = run(&[240_000, 5_000], 100_000, |lane, pass| lane == 0 || pass % 10 == 0);
        assert!(had[0] > 100 && had[1] >= 9_990, "{had:?}");
    }
}
