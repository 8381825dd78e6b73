//! 64 relays on one worker, by the rate that the first of them, or all together, have.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::contender::{Contender, Forwarder, Generator};
use super::results::{Measure, Target};
use super::stage::{Stage, loopbacks, sides};

/// Relays of a daemon, as many as there are sockets by default.
pub const RELAYS: usize = 64;
/// Bytes of a frame.
const SIZE: usize = 64;
/// Frames under way of the one busy guest.
const WINDOW: usize = 512;
/// Frames under way of each of 64 busy guests: 4096 in all.
const SMALL_WINDOW: usize = 64;

/// One busy guest of 64 that are connected, against one alone.
pub fn one_busy(stage: &Stage) -> Result<Vec<Measure>> {
    compare(stage, &format!("{RELAYS} relays, one busy"), 1, WINDOW, Target::RatioAtLeast(0.95))
}

/// 64 busy guests, all together, against one alone.
pub fn all_busy(stage: &Stage) -> Result<Vec<Measure>> {
    compare(stage, &format!("{RELAYS} relays, all busy"), RELAYS, SMALL_WINDOW, Target::RatioAtLeast(0.85))
}

fn compare(stage: &Stage, name: &str, busy: usize, window: usize, target: Target) -> Result<Vec<Measure>> {
    let mut contenders = vec![
        contender(stage, name, "many", RELAYS, busy, window)?,
        contender(stage, "1 relay", "one", 1, 1, WINDOW)?,
    ];
    let samples = stage.interleave(&mut contenders)?;
    let rate = sides(&contenders, &samples, |sample| Some(sample.rate / 1e6));
    let mut rate = Measure::new("frames a second", "M/s", rate, Some(target));
    rate.empty = samples[0].iter().filter_map(|sample| sample.empty).collect();
    let cycles =
        Measure::new("cycles a frame", "", sides(&contenders, &samples, |sample| sample.cycles), None);
    Ok(vec![rate, cycles])
}

fn contender(
    stage: &Stage,
    name: &str,
    short: &str,
    relays: usize,
    busy: usize,
    window: usize,
) -> Result<Contender> {
    let daemon = stage.daemon(short, relays, &loopbacks(0..relays))?;
    let words = ["load".to_owned(), daemon.sockets()].into_iter();
    let words: Vec<_> = words.chain([relays, busy, window, SIZE].map(|number| number.to_string())).collect();
    let guests = stage.guests(&format!("{short}-guests"), &words)?;
    let begin = Instant::now();
    while daemon.guests()? < relays {
        ensure!(begin.elapsed() < Duration::from_secs(10), "not all of {relays} guests are ready");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Contender::new(name, Forwarder::Daemon(daemon), Generator::Guests(guests)))
}
