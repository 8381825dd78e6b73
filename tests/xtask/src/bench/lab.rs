//! VF and guest, in the SR-IOV lab: a job there measures all sides in turns, and prints each figure on a line of its own.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::results::{Measure, Side, Target};
use super::stage::{OURS, Stage};
use crate::tools;

/// What forwards between wire and VM in the lab, driven by us and by DPDK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// A VF of an 82576.
    Igbvf,
    /// A virtio function of QEMU's.
    Virtio,
}

impl Function {
    /// The job that measures, seen from the folder of the project.
    fn job(self) -> &'static str {
        match self {
            Self::Igbvf => "tests/lab/jobs/vf_rates.sh",
            Self::Virtio => "tests/lab/jobs/virtio_rates.sh",
        }
    }

    /// Whether frames can be sent from where they are in the VM.
    fn has_zero_copy(self) -> bool {
        self == Self::Igbvf
    }
}

/// A job's cells, and what they measure.
const CELLS: &[(&str, &str)] = &[
    ("out.64", "VM → wire, 64 B"),
    ("out.1514", "VM → wire, 1514 B"),
    ("in.64", "wire → VM, 64 B"),
    ("in.1514", "wire → VM, 1514 B"),
];
/// Our side with `zero-copy = "tx"`, as the job calls it.
const ZERO_COPY: &str = "zero-copy";

/// Frames a second in each direction, at two sizes; with zero-copy, too, where it makes a difference.
pub fn measure(stage: &Stage, function: Function) -> Result<Vec<Measure>> {
    let yardstick = stage.builds.first().context("there is no testpmd to compare with")?;
    let mut command = Command::new("tests/lab/lab");
    command
        .current_dir(&stage.root)
        .args(["run", function.job(), "--", &stage.rounds.to_string(), &stage.time.as_secs_f64().to_string()])
        .arg(&yardstick.program)
        .env("TARGET", &stage.binaries)
        .env("LAB_OUT", &stage.logs);
    let console = stage.logs.join("console.log");
    tools::logged(&mut command, &console)?;
    let text = std::fs::read(&console).with_context(|| format!("cannot read {}", console.display()))?;
    parse(&String::from_utf8_lossy(&text), function, &yardstick.name, stage.rounds)
}

/// The figures of lines `# rate CELL ROUND SIDE FRAMES_A_SECOND`, which are in the order of the rounds.
fn parse(console: &str, function: Function, yardstick: &str, rounds: usize) -> Result<Vec<Measure>> {
    let side = |cell: &str, side: &str, name: &str| -> Result<Side> {
        let values: Vec<_> = console
            .lines()
            .filter_map(|line| {
                let words: Vec<_> = line.strip_prefix("# rate ")?.split(' ').collect();
                let [of, _, whose, rate] = words[..] else { return None };
                (of == cell && whose == side).then(|| rate.parse::<f64>().ok().map(|rate| rate / 1e3))
            })
            .collect();
        ensure!(
            values.len() == rounds,
            "the lab measured {cell} of {side} {} times, not {rounds}",
            values.len()
        );
        Ok(Side::new(name, values))
    };
    let mut measures = Vec::new();
    for (cell, what) in CELLS {
        let sides = vec![side(cell, OURS, OURS)?, side(cell, "testpmd", yardstick)?];
        measures.push(Measure::new(what, "k/s", sides, Some(Target::RatioAtLeast(0.95))));
        if cell.starts_with("out") && function.has_zero_copy() {
            let sides = vec![side(cell, ZERO_COPY, OURS)?, side(cell, "testpmd", yardstick)?];
            measures.push(Measure::new(&format!("{what}, zero-copy"), "k/s", sides, None));
        }
    }
    Ok(measures)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console() -> String {
        let mut text = "# job vf_rates\n".to_owned();
        for (cell, _) in CELLS {
            for round in 0..3 {
                for (side, rate) in [(OURS, 20_000), (ZERO_COPY, 30_000), ("testpmd", 10_000 + round)] {
                    text += &format!("# rate {cell} {round} {side} {rate}\n");
                }
            }
            text += &format!("ok {cell} - ratio to testpmd 2.00\n");
        }
        text
    }

    #[test]
    fn each_cell_is_compared_and_only_copying_is_judged() {
        let measures = parse(&console(), Function::Igbvf, "newer", 3).unwrap();
        let names: Vec<_> = measures.iter().map(|measure| measure.what.as_str()).collect();
        assert_eq!(
            names,
            [
                "VM → wire, 64 B",
                "VM → wire, 64 B, zero-copy",
                "VM → wire, 1514 B",
                "VM → wire, 1514 B, zero-copy",
                "wire → VM, 64 B",
                "wire → VM, 1514 B"
            ]
        );
        assert_eq!(measures[0].target, Some(Target::RatioAtLeast(0.95)));
        assert_eq!(measures[0].sides[0].values, [Some(20.0); 3]);
        assert_eq!(measures[0].sides[1].values[2], Some(10.002));
        assert_eq!(measures[0].sides[1].name, "newer");
        assert_eq!((measures[1].sides[0].values[0], measures[1].target), (Some(30.0), None));
        assert_eq!(parse(&console(), Function::Virtio, "newer", 3).unwrap().len(), 4);
    }

    #[test]
    fn a_round_that_is_missing_is_an_error() {
        let short = console().replace("# rate in.64 2 testpmd", "# lost");
        let error = parse(&short, Function::Igbvf, "testpmd", 3).unwrap_err().to_string();
        assert_eq!(error, "the lab measured in.64 of testpmd 2 times, not 3");
    }
}
