//! A single frame there and back, by our own guest against all back ends: the same prober for everyone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::daemon::Daemon;
use super::load::{Load, Ring};
use super::process::{Process, Schedule};
use super::results::{Measure, Side, Target};
use super::rounds;
use super::stage::{FORWARDER_CPU, OURS, Stage, loopbacks};
use super::testpmd::Testpmd;

/// Pause before a frame that counts as the first after idle. It grows by up to half.
const GAP: Duration = Duration::from_millis(5);
/// Fewer frames than this say nothing about the 99th percentile.
const FEWEST: u64 = 100;

/// Times of a slot, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Times {
    p50: f64,
    p99: f64,
    /// Seconds that the prober waited for its CPU; of a slot, the share of it that both sides waited.
    waited: f64,
}

/// Someone who sends frames back.
struct Echo {
    name: String,
    socket: String,
    back_end: BackEnd,
}

enum BackEnd {
    Daemon(Daemon),
    Testpmd(Testpmd),
}

impl Echo {
    fn daemon(stage: &Stage, name: &str, short: &str, more: &[&str]) -> Result<Self> {
        let arguments: Vec<_> =
            loopbacks(0..1).into_iter().chain(more.iter().map(|&word| word.to_owned())).collect();
        let daemon = stage.daemon(short, 1, &arguments)?;
        daemon.process().hold();
        Ok(Self { name: name.to_owned(), socket: daemon.socket(0), back_end: BackEnd::Daemon(daemon) })
    }

    fn process(&self) -> &Process {
        match &self.back_end {
            BackEnd::Daemon(daemon) => daemon.process(),
            BackEnd::Testpmd(testpmd) => testpmd.process(),
        }
    }

    fn slot(&self, stage: &Stage, gap: Duration) -> Result<Times> {
        self.process().go_on();
        let (before, begin) = (Schedule::of(self.process().id())?, Instant::now());
        let times = times(stage, gap, "probe", &self.socket);
        let (after, slot) = (Schedule::of(self.process().id())?, begin.elapsed());
        self.process().hold();
        let times = times.with_context(|| self.name.clone())?;
        let waited = times.waited + (after.waited - before.waited).as_secs_f64();
        Ok(Times { waited: waited / slot.as_secs_f64(), ..times })
    }
}

/// What `bench_guest WHAT WHOM` finds in a slot.
fn times(stage: &Stage, gap: Duration, what: &str, whom: &str) -> Result<Times> {
    let seconds = stage.time.as_secs_f64().to_string();
    let words = [what.to_owned(), whom.to_owned(), seconds, gap.as_micros().to_string()];
    let mut guest = stage.guests(what, &words)?;
    guest.wait_for_end(stage.time + Duration::from_secs(15))?;
    parse_times(&guest.log_from(0))
}

/// Ours against testpmd.
pub fn round_trip(stage: &Stage) -> Result<Vec<Measure>> {
    let mut echoes = vec![Echo::daemon(stage, OURS, "ours", &[])?];
    let load = Load { ring: Ring::Split, size: 64, pairs: 1 };
    for (n, build) in stage.builds.iter().enumerate() {
        let socket = stage.run.join(format!("testpmd{n}.sock")).display().to_string();
        let sockets = std::slice::from_ref(&socket);
        let testpmd =
            Testpmd::forwarder(build, &stage.logs, &format!("testpmd{n}"), FORWARDER_CPU, sockets, &load)?;
        testpmd.process().hold();
        echoes.push(Echo { name: build.name.clone(), socket, back_end: BackEnd::Testpmd(testpmd) });
    }
    let times = interleave(stage, &echoes, Duration::ZERO, || Ok(()))?;
    let target = Some(Target::RatioAtMost(1.0));
    Ok(vec![
        Measure::new(
            "round trip of one frame, median",
            "µs",
            sides(&echoes, &times, |times| times.p50),
            target,
        ),
        Measure::new("the same, 99th percentile", "µs", sides(&echoes, &times, |times| times.p99), target),
    ])
}

/// A worker that may sleep against one that polls all the time; and in the same rounds a thread on its CPU that does nothing but
/// sleep until it is woken, which is the machine's share.
pub fn first_frame(stage: &Stage) -> Result<Vec<Measure>> {
    let echoes = [
        Echo::daemon(stage, "adaptive", "adaptive", &["--idle", "adaptive"])?,
        Echo::daemon(stage, "poll", "poll", &["--idle", "poll"])?,
    ];
    let mut woken = Vec::new();
    let samples = interleave(stage, &echoes, GAP, || {
        woken.push(times(stage, GAP, "wake", &FORWARDER_CPU.to_string())?);
        Ok(())
    })?;
    let p99 = sides(&echoes, &samples, |times| times.p99);
    let p50 = sides(&echoes, &samples, |times| times.p50);
    let bare = |figure: fn(&Times) -> f64| {
        vec![Side::new("a bare thread", woken.iter().map(|times| Some(figure(times))))]
    };
    Ok(vec![
        Measure::new("first frame after idle, 99th percentile", "µs", p99, Some(Target::OverAtMost(100.0))),
        Measure::new("the same, median", "µs", p50, None),
        Measure::new("waking a thread that sleeps, 99th percentile", "µs", bare(|times| times.p99), None),
        Measure::new("the same, median", "µs", bare(|times| times.p50), None),
    ])
}

/// All echoes in each round, and then what else a round has.
fn interleave(
    stage: &Stage,
    echoes: &[Echo],
    gap: Duration,
    mut end_round: impl FnMut() -> Result<()>,
) -> Result<Vec<Vec<Times>>> {
    let mut times = vec![Vec::new(); echoes.len()];
    for round in 0..stage.rounds {
        for side in rounds::order(echoes.len(), round) {
            times[side].push(echoes[side].slot(stage, gap)?);
        }
        end_round()?;
    }
    Ok(times)
}

fn sides(echoes: &[Echo], times: &[Vec<Times>], figure: fn(&Times) -> f64) -> Vec<Side> {
    let side = |(echo, times): (&Echo, &Vec<Times>)| {
        let waited = times.iter().map(|times| times.waited).collect();
        Side { waited, ..Side::new(&echo.name, times.iter().map(|times| Some(figure(times)))) }
    };
    echoes.iter().zip(times).map(side).collect()
}

/// The last line of a prober: `SAMPLES LOST P50 P99 MAX WAITED`.
fn parse_times(text: &str) -> Result<Times> {
    let line = text.lines().last().unwrap_or_default();
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [samples, lost, p50, p99, _, waited] = numbers[..] else { anyhow::bail!("the prober said '{line}'") };
    ensure!(lost == 0, "{lost} frames of {} were lost", samples + lost);
    ensure!(samples >= FEWEST, "only {samples} frames came back");
    Ok(Times { p50: p50 as f64 / 1e3, p99: p99 as f64 / 1e3, waited: waited as f64 / 1e9 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prober_that_lost_frames_measured_nothing() {
        let times = Times { p50: 2.5, p99: 9.0, waited: 0.5 };
        assert_eq!(parse_times("ready\n1000 0 2500 9000 100000 500000000\n").unwrap(), times);
        assert!(parse_times("ready\n1000 1 2500 9000 100000 0\n").is_err());
        assert!(parse_times("ready\n10 0 2500 9000 100000 0\n").is_err());
        assert!(parse_times("ready\n").is_err());
    }
}
