//! What was measured, as it is kept in `target/bench/results.json`: enough to draw the page and the chart again.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::rounds::{Pair, Spread, WAITED};
use crate::tools;

/// From this share of empty polls on, the generator is the limit.
pub const IDLE_POLLS: f64 = 0.15;

/// All that is known.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Results {
    /// Where it was measured.
    pub machine: Machine,
    /// Versions of the peers, by the names of their sides.
    pub peers: Vec<(String, String)>,
    /// Cells in the order of the table.
    pub cells: Vec<Cell>,
}

/// A machine, as the page names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// `model name` of its CPUs.
    pub cpu: String,
    /// How many there are.
    pub cpus: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Whether it is a virtual machine.
    pub virtual_machine: bool,
}

/// A cell and what became of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Cell {
    /// Its name.
    pub name: String,
    /// The daemon that was measured: a commit.
    pub commit: String,
    /// Seconds of a slot.
    pub seconds: f64,
    /// What was measured; or why nothing was.
    pub outcome: Result<Vec<Measure>, String>,
}

/// One figure of a cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measure {
    /// What it is: a row's name.
    pub what: String,
    /// Its unit.
    pub unit: String,
    /// The first is what is judged, the second what it is judged by.
    pub sides: Vec<Side>,
    /// What it has to be.
    pub target: Option<Target>,
    /// Share of the worker's passes that found nothing, by rounds, where the generator may be the limit.
    #[serde(default)]
    pub empty: Vec<f64>,
    /// Frames under way at the end of the rounds, smallest, of all sides.
    #[serde(default)]
    pub in_flight: Option<u64>,
}

/// Values of one side, round by round.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Side {
    /// Who.
    pub name: String,
    /// Values; null where there is none.
    pub values: Vec<Option<f64>>,
    /// For each value, the share of its slot for which a program waited since others had its CPU.
    #[serde(default)]
    pub waited: Vec<f64>,
}

/// What a figure has to be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// First side by second, at most.
    RatioAtMost(f64),
    /// First side by second, at least.
    RatioAtLeast(f64),
    /// First side, at most.
    AtMost(f64),
    /// First side minus second, at most.
    OverAtMost(f64),
}

/// Whether a figure is what it has to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// It has no target.
    Stated,
    /// It is.
    Met,
    /// It is not.
    Missed,
    /// The worker waited for the generator for this share of its passes: the cycles decide.
    GeneratorLimits(f64),
    /// Too few rounds are left.
    Unsettled,
    /// There is no figure.
    Missing,
}

impl Side {
    /// Of these values.
    pub fn new(name: &str, values: impl IntoIterator<Item = Option<f64>>) -> Self {
        Self { name: name.to_owned(), values: values.into_iter().collect(), waited: Vec::new() }
    }

    /// Values with NaN for those that are missing or that others disturbed.
    fn numbers(&self) -> Vec<f64> {
        let disturbed = |n: usize| self.waited.get(n).is_some_and(|waited| *waited > WAITED);
        let number = |(n, value): (usize, &Option<f64>)| value.filter(|_| !disturbed(n)).unwrap_or(f64::NAN);
        self.values.iter().enumerate().map(number).collect()
    }

    /// How many rounds others disturbed.
    fn disturbed(&self) -> usize {
        self.waited.iter().filter(|waited| **waited > WAITED).count()
    }
}

impl Measure {
    /// A figure with one side or more.
    pub fn new(what: &str, unit: &str, sides: Vec<Side>, target: Option<Target>) -> Self {
        Self {
            what: what.to_owned(),
            unit: unit.to_owned(),
            sides,
            target,
            empty: Vec::new(),
            in_flight: None,
        }
    }

    /// The first side beside another.
    pub fn pair(&self, other: usize) -> Option<Pair> {
        Pair::of(&self.sides.first()?.numbers(), &self.sides.get(other)?.numbers())
    }

    /// The first side alone.
    pub fn alone(&self) -> Option<Spread> {
        Spread::of(&self.sides.first()?.values.iter().flatten().copied().collect::<Vec<_>>())
    }

    /// Slots of all sides in which others had the CPUs.
    pub fn disturbed(&self) -> usize {
        self.sides.iter().map(Side::disturbed).sum()
    }

    /// Whether it is what it has to be.
    pub fn verdict(&self) -> Verdict {
        let Some(target) = self.target else { return Verdict::Stated };
        let (value, met): (_, fn(f64, f64) -> bool) = match target {
            Target::AtMost(limit) => match self.alone() {
                Some(alone) => ((alone.median, limit), |value, limit| value <= limit),
                None => return Verdict::Missing,
            },
            Target::RatioAtMost(limit) | Target::RatioAtLeast(limit) | Target::OverAtMost(limit) => {
                let Some(pair) = self.pair(1) else {
                    return if self.disturbed() > 0 { Verdict::Unsettled } else { Verdict::Missing };
                };
                if !pair.is_settled() {
                    return Verdict::Unsettled;
                }
                match target {
                    Target::RatioAtLeast(_) => ((pair.ratio.median, limit), |value, limit| value >= limit),
                    Target::OverAtMost(_) => ((pair.difference.median, limit), |value, limit| value <= limit),
                    _ => ((pair.ratio.median, limit), |value, limit| value <= limit),
                }
            }
        };
        let is_rate = matches!(target, Target::RatioAtLeast(_));
        match Spread::of(&self.empty) {
            _ if met(value.0, value.1) => Verdict::Met,
            Some(empty) if is_rate && empty.median >= IDLE_POLLS => Verdict::GeneratorLimits(empty.median),
            _ => Verdict::Missed,
        }
    }
}

impl Results {
    /// What was kept, or nothing yet.
    pub fn read(path: &Path) -> Result<Self> {
        match std::fs::read(path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).with_context(|| format!("cannot read {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Keeps it.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Puts a cell in the place of an earlier one of its name.
    pub fn put(&mut self, cell: Cell) {
        match self.cells.iter_mut().find(|known| known.name == cell.name) {
            Some(known) => *known = cell,
            None => self.cells.push(cell),
        }
    }
}

impl Machine {
    /// This one.
    pub fn this() -> Result<Self> {
        let text = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
        let value = |key: &str| {
            let line = text.lines().find(|line| line.split(':').next().map(str::trim) == Some(key))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let (family, model) = (value("cpu family"), value("model"));
        let cpu = value("model name").unwrap_or_default();
        let flags = value("flags").unwrap_or_default();
        Ok(Self {
            cpu: format!("{cpu}, family {} model {}", family.unwrap_or_default(), model.unwrap_or_default()),
            cpus: std::thread::available_parallelism()?.get(),
            kernel: tools::output(Command::new("uname").arg("-r"))?.trim().to_owned(),
            virtual_machine: flags.split_whitespace().any(|flag| flag == "hypervisor"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(ours: f64, theirs: f64, target: Target) -> Measure {
        let side = |name, value| Side::new(name, [Some(value); 3]);
        Measure::new("x", "y", vec![side("ours", ours), side("theirs", theirs)], Some(target))
    }

    #[test]
    fn targets_are_judged_by_the_median() {
        assert_eq!(measure(4.0, 10.0, Target::RatioAtMost(0.4)).verdict(), Verdict::Met);
        assert_eq!(measure(5.0, 10.0, Target::RatioAtMost(0.4)).verdict(), Verdict::Missed);
        assert_eq!(measure(13.0, 10.0, Target::RatioAtLeast(1.3)).verdict(), Verdict::Met);
        assert_eq!(measure(12.0, 10.0, Target::RatioAtLeast(1.3)).verdict(), Verdict::Missed);
        assert_eq!(measure(110.0, 20.0, Target::OverAtMost(100.0)).verdict(), Verdict::Met);
        assert_eq!(measure(130.0, 20.0, Target::OverAtMost(100.0)).verdict(), Verdict::Missed);
        assert_eq!(measure(3.0, 0.0, Target::AtMost(2.0)).verdict(), Verdict::Missed);
    }

    #[test]
    fn where_the_worker_waits_the_generator_is_the_limit() {
        let mut rate = measure(12.0, 10.0, Target::RatioAtLeast(1.3));
        rate.empty = vec![0.2, 0.3, 0.1];
        assert_eq!(rate.verdict(), Verdict::GeneratorLimits(0.2));
        rate.empty = vec![0.1; 3];
        assert_eq!(rate.verdict(), Verdict::Missed);
        let mut cycles = measure(12.0, 10.0, Target::RatioAtMost(0.4));
        cycles.empty = vec![0.9; 3];
        assert_eq!(cycles.verdict(), Verdict::Missed, "no excuse for cycles");
    }

    #[test]
    fn nothing_is_judged_by_one_round() {
        let mut rate = measure(20.0, 10.0, Target::RatioAtLeast(1.3));
        rate.sides.iter_mut().for_each(|side| side.values.truncate(1));
        assert_eq!(rate.verdict(), Verdict::Unsettled);
        rate.sides[0].values[0] = None;
        assert_eq!(rate.verdict(), Verdict::Missing);
        rate.target = None;
        assert_eq!(rate.verdict(), Verdict::Stated);
    }

    #[test]
    fn rounds_that_others_disturbed_do_not_count() {
        let mut rate = measure(20.0, 10.0, Target::RatioAtLeast(1.3));
        rate.sides.iter_mut().for_each(|side| side.values = vec![side.values[0]; 5]);
        rate.sides[1].waited = vec![0.0, 0.5, 0.01, 0.9, 0.0];
        let pair = rate.pair(1).unwrap();
        assert_eq!((pair.kept, pair.rounds, rate.disturbed()), (3, 5, 2));
        rate.sides[0].waited = vec![1.0; 5];
        assert_eq!(rate.verdict(), Verdict::Unsettled);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let path = std::env::temp_dir().join(format!("xtask-results-{}.json", std::process::id()));
        let mut results = Results::default();
        let cell = |outcome| Cell { name: "a".to_owned(), commit: "c".to_owned(), seconds: 3.0, outcome };
        results.put(cell(Err("not built".to_owned())));
        results.put(cell(Ok(vec![measure(1.0, 2.0, Target::AtMost(1.0))])));
        results.write(&path).unwrap();
        let again = Results::read(&path).unwrap();
        assert_eq!(again.cells.len(), 1);
        assert_eq!(again.cells[0].outcome.as_ref().unwrap()[0].sides[1].values, [Some(2.0); 3]);
        std::fs::remove_file(&path).unwrap();
        assert!(Results::read(&path).unwrap().cells.is_empty());
    }
}
