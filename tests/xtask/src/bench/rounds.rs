//! Rounds, and what is made of them: medians of pairs, with the disturbed ones thrown away by rule.

use serde::{Deserialize, Serialize};

/// A round counts only if each of the two sides is within this factor of its own median, up or down. Otherwise both
/// halves are thrown away.
pub const OFF: f64 = 1.3;
/// Neither does a round in which a program waited for its CPU for more than this share of its slot: something else ran.
pub const WAITED: f64 = 0.05;
/// A cell with fewer pairs left, or less than half of them, is not settled.
pub const FEWEST: usize = 3;

/// Values of some rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// Of these values; none of nothing.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median =
            if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 };
        Some(Self { median, min, max })
    }

    fn is_near(&self, value: f64) -> bool {
        value <= self.median * OFF && value >= self.median / OFF
    }
}

/// Two sides, round by round.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// Rounds that were kept.
    pub kept: usize,
    /// Rounds that there were.
    pub rounds: usize,
    /// The first side, in the rounds that were kept.
    pub ours: Spread,
    /// The second one.
    pub theirs: Spread,
    /// First by second, in each round.
    pub ratio: Spread,
    /// First minus second, in each round.
    pub difference: Spread,
}

impl Pair {
    /// Compares two sides; a value that is missing (NaN) is far off. None when no round is left.
    pub fn of(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let there =
            |values: &[f64]| values.iter().copied().filter(|value| value.is_finite()).collect::<Vec<_>>();
        let (mid_ours, mid_theirs) = (Spread::of(&there(ours))?, Spread::of(&there(theirs))?);
        let kept: Vec<_> = ours
            .iter()
            .zip(theirs)
            .filter(|(ours, theirs)| mid_ours.is_near(**ours) && mid_theirs.is_near(**theirs))
            .map(|(ours, theirs)| (*ours, *theirs))
            .collect();
        let spread = |value: fn(&(f64, f64)) -> f64| Spread::of(&kept.iter().map(value).collect::<Vec<_>>());
        Some(Self {
            kept: kept.len(),
            rounds: ours.len().min(theirs.len()),
            ours: spread(|pair| pair.0)?,
            theirs: spread(|pair| pair.1)?,
            ratio: spread(|pair| pair.0 / pair.1)?,
            difference: spread(|pair| pair.0 - pair.1)?,
        })
    }

    /// Whether enough rounds are left to say something.
    pub fn is_settled(&self) -> bool {
        self.kept >= FEWEST && 2 * self.kept >= self.rounds
    }
}

/// The order of the sides in a round: there and back, so that none is always measured first.
pub fn order(sides: usize, round: usize) -> Vec<usize> {
    if round.is_multiple_of(2) { (0..sides).collect() } else { (0..sides).rev().collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_an_even_number_is_between() {
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(&[4.0, 2.0]).unwrap().median, 3.0);
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn both_halves_of_a_disturbed_round_go() {
        let ours = [20.0, 21.0, 2.0, 20.0, 22.0];
        let theirs = [10.0, 10.0, 10.0, 4.0, 11.0];
        let pair = Pair::of(&ours, &theirs).unwrap();
        assert_eq!((pair.kept, pair.rounds), (3, 5));
        assert_eq!(pair.ratio, Spread { median: 2.0, min: 2.0, max: 2.1 });
        assert_eq!(pair.ours.min, 20.0);
        assert_eq!(pair.theirs.min, 10.0);
        assert!(pair.is_settled());
    }

    #[test]
    fn the_ratio_is_that_of_rounds_and_not_of_medians() {
        // The machine became slower between rounds: each pair says 2, however slow it was.
        let pair = Pair::of(&[20.0, 18.0, 24.0], &[10.0, 9.0, 12.0]).unwrap();
        assert_eq!((pair.ratio.min, pair.ratio.max), (2.0, 2.0));
    }

    #[test]
    fn what_is_left_of_a_restless_machine_is_not_settled() {
        let pair = Pair::of(&[1.0, 10.0, 11.0, 100.0, 9.0], &[1.0, 10.0, 1.0, 10.0, 10.0]).unwrap();
        assert_eq!(pair.kept, 2);
        assert!(!pair.is_settled());
        assert!(Pair::of(&[f64::NAN], &[1.0]).is_none());
        let pair = Pair::of(&[f64::NAN, 1.0, 1.0, 1.0], &[1.0; 4]).unwrap();
        assert_eq!(pair.kept, 3);
    }

    #[test]
    fn sides_take_turns_at_being_first() {
        assert_eq!(order(3, 0), [0, 1, 2]);
        assert_eq!(order(3, 1), [2, 1, 0]);
    }
}
