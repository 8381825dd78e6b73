//! What all cells need: where programs, sockets and logs are, how many rounds there are, and who takes part.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::contender::{Contender, Sample};
use super::daemon::Daemon;
use super::process::Process;
use super::results::Side;
use super::rounds;
use super::testpmd::Build;

/// The worker's CPU, and testpmd's as forwarder.
pub const FORWARDER_CPU: usize = 1;
/// The guests' CPU.
pub const GUEST_CPU: usize = 0;
/// What our side is called.
pub const OURS: &str = "virtio-forwarder";

/// Where and how a cell is measured.
#[derive(Debug)]
pub struct Stage {
    /// The folder of the project.
    pub root: PathBuf,
    /// The folder of release binaries.
    pub binaries: PathBuf,
    /// A folder with a short name, for sockets.
    pub run: PathBuf,
    /// A folder for logs.
    pub logs: PathBuf,
    /// Builds of testpmd; the first is the yardstick, and the generator for all.
    pub builds: Vec<Build>,
    /// How often each side is measured.
    pub rounds: usize,
    /// For how long each time.
    pub time: Duration,
}

impl Stage {
    /// A daemon with `relays` relays and further arguments.
    pub fn daemon(&self, name: &str, relays: usize, more: &[String]) -> Result<Daemon> {
        Daemon::start(&self.binaries, &self.run, &self.logs, name, FORWARDER_CPU, relays, more)
    }

    /// A `bench_guest` on the guests' CPU, once its guests are up.
    pub fn guests(&self, name: &str, words: &[String]) -> Result<Process> {
        let program = self.binaries.join("bench_guest").display().to_string();
        let cpu = GUEST_CPU.to_string();
        let mut all: Vec<String> = ["taskset", "-c", &cpu, &program].map(str::to_owned).to_vec();
        all.extend_from_slice(words);
        let mut process = Process::start(&self.logs, name, &all, false)?;
        let up = |log: &str| log.contains("ready\n").then_some(());
        process.wait_for(0, Duration::from_secs(30), "its guests are up", up)?;
        Ok(process)
    }

    /// Measures all contenders in each round; samples by contender.
    pub fn interleave(&self, contenders: &mut [Contender]) -> Result<Vec<Vec<Sample>>> {
        let mut samples = vec![Vec::new(); contenders.len()];
        for round in 0..self.rounds {
            for side in rounds::order(contenders.len(), round) {
                samples[side].push(contenders[side].slot(self.time)?);
            }
        }
        Ok(samples)
    }
}

/// The arguments that give a relay a loopback.
pub fn loopbacks(relays: impl Iterator<Item = usize>) -> Vec<String> {
    relays.flat_map(|relay| ["--add-device".to_owned(), format!("loopback={relay}")]).collect()
}

/// A figure of all samples, by contender.
pub fn sides(
    contenders: &[Contender],
    samples: &[Vec<Sample>],
    figure: impl Fn(&Sample) -> Option<f64>,
) -> Vec<Side> {
    let side = |(contender, samples): (&Contender, &Vec<Sample>)| {
        let waited = samples.iter().map(|sample| sample.waited).collect();
        Side { waited, ..Side::new(&contender.name, samples.iter().map(&figure)) }
    };
    contenders.iter().zip(samples).map(side).collect()
}
