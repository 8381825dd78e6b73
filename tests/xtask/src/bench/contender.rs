//! A forwarder and the guests that load it, measured in slots: while one contender's programs run, those of the others are
//! held by SIGSTOP. All are up for the whole of a cell, so a slot costs no start, and slots can be short: the machines that
//! this runs on change their speed within a minute, and what is compared has to be close in time.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::daemon::Daemon;
use super::process::{Process, Schedule};
use super::testpmd::Testpmd;

/// Time that programs have to get going again before anything is counted.
const SETTLE: Duration = Duration::from_millis(200);

/// What forwards.
#[derive(Debug)]
pub enum Forwarder {
    /// Ours.
    Daemon(Daemon),
    /// DPDK's `net_vhost`.
    Testpmd(Testpmd),
}

/// What sends.
#[derive(Debug)]
pub enum Generator {
    /// DPDK's `virtio_user`, with this many ports.
    Testpmd(Testpmd, usize),
    /// `bench_guest load`.
    Guests(Process),
}

/// A forwarder with its generator.
#[derive(Debug)]
pub struct Contender {
    /// What it is called in tables.
    pub name: String,
    // The generator ends first: it would otherwise see its forwarder go.
    generator: Generator,
    forwarder: Forwarder,
}

/// What was measured in a slot.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Frames a second that came back to the guests; of two guests, those of one direction.
    pub rate: f64,
    /// TSC cycles of the forwarder for each frame, of rounds in which frames came.
    pub cycles: Option<f64>,
    /// Share of the worker's passes that found nothing.
    pub empty: Option<f64>,
    /// Frames under way at the end, as the generator counts them.
    pub in_flight: Option<u64>,
    /// Share of the slot for which a program waited since others had its CPU.
    pub waited: f64,
}

impl Contender {
    /// Holds both at once; their first slot lets them go on.
    pub fn new(name: &str, forwarder: Forwarder, generator: Generator) -> Self {
        let contender = Self { name: name.to_owned(), generator, forwarder };
        contender.hold();
        contender
    }

    fn processes(&self) -> [&Process; 2] {
        let forwarder = match &self.forwarder {
            Forwarder::Daemon(daemon) => daemon.process(),
            Forwarder::Testpmd(testpmd) => testpmd.process(),
        };
        let generator = match &self.generator {
            Generator::Testpmd(testpmd, _) => testpmd.process(),
            Generator::Guests(process) => process,
        };
        [forwarder, generator]
    }

    /// The generator first: what is under way then comes to rest in its rings, and nothing waits too long in between.
    fn hold(&self) {
        let [forwarder, generator] = self.processes();
        generator.hold();
        std::thread::sleep(Duration::from_millis(20));
        forwarder.hold();
    }

    /// Lets both run for a slot, and measures.
    pub fn slot(&mut self, time: Duration) -> Result<Sample> {
        let [forwarder, generator] = self.processes();
        forwarder.go_on();
        generator.go_on();
        std::thread::sleep(SETTLE);
        let (before, begin) = (self.waited(), Instant::now());
        let sample = self.measure(time).with_context(|| self.name.clone());
        let (after, slot) = (self.waited(), begin.elapsed());
        self.hold();
        let waited = (after? - before?).as_secs_f64() / slot.as_secs_f64();
        sample.map(|sample| Sample { waited, ..sample })
    }

    fn waited(&self) -> Result<Duration> {
        let [forwarder, generator] = self.processes();
        Ok(Schedule::of(forwarder.id())?.waited + Schedule::of(generator.id())?.waited)
    }

    fn measure(&mut self, time: Duration) -> Result<Sample> {
        let before = match &mut self.forwarder {
            Forwarder::Daemon(daemon) => Some(daemon.work()?),
            Forwarder::Testpmd(testpmd) => testpmd.clear_cycles().map(|()| None)?,
        };
        let (rate, in_flight) = match &mut self.generator {
            Generator::Testpmd(testpmd, ports) => {
                testpmd.statistics()?;
                std::thread::sleep(time);
                let after = testpmd.statistics()?;
                (after.rate / *ports as f64, Some(after.sent.saturating_sub(after.received)))
            }
            Generator::Guests(process) => {
                let begin = process.logged();
                std::thread::sleep(time);
                (parse_rate(&process.log_from(begin)).context("the guests report nothing")?, None)
            }
        };
        let (cycles, empty) = match &mut self.forwarder {
            Forwarder::Daemon(daemon) => {
                let (after, before) = (daemon.work()?, before.unwrap_or_default());
                (after.cycles_since(&before), after.empty_since(&before))
            }
            Forwarder::Testpmd(testpmd) => (testpmd.cycles()?, None),
        };
        Ok(Sample { rate, cycles, empty, in_flight, waited: 0.0 })
    }
}

/// Frames a second between the first and the last whole line `NANOSECONDS FRAMES`.
fn parse_rate(text: &str) -> Option<f64> {
    let mut lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n')).filter_map(|line| {
        let (time, frames) = line.trim().split_once(' ')?;
        Some((time.parse::<f64>().ok()?, frames.parse::<f64>().ok()?))
    });
    let first = lines.next()?;
    let last = lines.next_back()?;
    Some((last.1 - first.1) / (last.0 - first.0) * 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_between_whole_lines() {
        assert_eq!(parse_rate("1000 10\n2000 20\n3000 40\n40"), Some(30.0 / 2000.0 * 1e9));
        assert_eq!(parse_rate("1000 10\n"), None);
        assert_eq!(parse_rate(""), None);
    }
}
