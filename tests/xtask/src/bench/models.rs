//! VF drivers against the models of their devices, in one process: a program measures all of them, and prints each figure
//! on a line of its own.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::results::{Measure, Side};
use super::stage::{FORWARDER_CPU, OURS, Stage};
use crate::tools;

/// Frames a second, cycles and register accesses a frame of each driver at each size.
pub fn measure(stage: &Stage) -> Result<Vec<Measure>> {
    let mut command = Command::new("taskset");
    command
        .args(["-c", &FORWARDER_CPU.to_string()])
        .arg(stage.binaries.join("model_rates"))
        .args([stage.rounds.to_string(), stage.time.as_secs_f64().to_string()]);
    let measures = parse(&tools::output(&mut command)?)?;
    ensure!(!measures.is_empty(), "model_rates printed no figure");
    Ok(measures)
}

/// A driver at a size, with one row of numbers a round.
type Rows = Vec<((String, String), Vec<[f64; 4]>)>;

/// The figures of lines `rate DRIVER SIZE FRAMES_A_SECOND CYCLES READS WRITES`, the last three a frame.
fn parse(text: &str) -> Result<Vec<Measure>> {
    let mut rows: Rows = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("rate ") else { continue };
        let words: Vec<&str> = rest.split(' ').collect();
        let numbers: Vec<f64> = words.iter().skip(2).filter_map(|word| word.parse().ok()).collect();
        let numbers: [f64; 4] = numbers.try_into().ok().with_context(|| format!("no figures in '{line}'"))?;
        let name = (words[0].to_owned(), words[1].to_owned());
        match rows.iter_mut().find(|(known, _)| *known == name) {
            Some((_, rounds)) => rounds.push(numbers),
            None => rows.push((name, vec![numbers])),
        }
    }
    let mut measures = Vec::new();
    for ((driver, size), rounds) in rows {
        let mut add = |what: &str, unit: &str, column: usize, scale: f64| {
            let side = Side::new(OURS, rounds.iter().map(|row| Some(row[column] * scale)));
            measures.push(Measure::new(&format!("{driver}, {size} B: {what}"), unit, vec![side], None));
        };
        add("frames out and back", "M/s", 0, 1e-6);
        add("the driver's cycles for one of them", "", 1, 1.0);
        add("register reads a frame", "", 2, 1.0);
        add("register writes a frame", "", 3, 1.0);
    }
    Ok(measures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_driver_and_size_has_its_rows() {
        let text = "rate ena 64 2000000 90.5 0 0.0625\nrate ena 1514 1e6 200 0 0.06\nnoise\nrate ena 64 4e6 80 0 0.0625\n";
        let measures = parse(text).unwrap();
        assert_eq!(measures.len(), 8);
        assert_eq!(measures[0].what, "ena, 64 B: frames out and back");
        assert_eq!(measures[0].sides[0].values, [Some(2.0), Some(4.0)]);
        assert_eq!(measures[1].sides[0].values, [Some(90.5), Some(80.0)]);
        assert_eq!(measures[3].sides[0].values, [Some(0.0625); 2]);
        assert!(parse("rate ena 64 fast\n").is_err());
    }
}
