//! What the daemon costs before anything moves: memory, the time to start, CPU time.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::process::Schedule;
use super::relays::RELAYS;
use super::results::{Measure, Side, Target};
use super::stage::{OURS, Stage, loopbacks};

/// Busy relays whose memory is measured together.
const BUSY: usize = 8;

/// Memory of a daemon with 64 relays that have neither device nor guest.
pub fn empty_memory(stage: &Stage) -> Result<Vec<Measure>> {
    let daemon = stage.daemon("empty", RELAYS, &[])?;
    let memory = memory(daemon.process().id())?;
    let what = format!("memory with {RELAYS} empty relays");
    Ok(vec![Measure::new(&what, "MiB", vec![Side::new(OURS, [Some(memory)])], Some(Target::AtMost(32.0)))])
}

/// Memory that each busy relay adds.
pub fn busy_memory(stage: &Stage) -> Result<Vec<Measure>> {
    let daemon = stage.daemon("busy", RELAYS, &loopbacks(0..BUSY))?;
    let before = memory(daemon.process().id())?;
    let words = ["load".to_owned(), daemon.sockets()].into_iter();
    let words: Vec<_> = words.chain([BUSY, BUSY, 64, 64].map(|number| number.to_string())).collect();
    let _guests = stage.guests("busy-guests", &words)?;
    std::thread::sleep(stage.time);
    let each = (memory(daemon.process().id())? - before) / BUSY as f64;
    let side = Side::new(OURS, [Some(each)]);
    Ok(vec![Measure::new("memory of each busy relay", "MiB", vec![side], Some(Target::AtMost(4.0)))])
}

/// Time from the start of the program until all 64 sockets listen.
pub fn start(stage: &Stage) -> Result<Vec<Measure>> {
    let mut values = Vec::new();
    for round in 0..stage.rounds {
        let daemon = stage.daemon(&format!("start{round}"), RELAYS, &[])?;
        values.push(Some(daemon.start.as_secs_f64() * 1e3));
    }
    let what = format!("start until {RELAYS} sockets listen");
    Ok(vec![Measure::new(&what, "ms", vec![Side::new(OURS, values)], Some(Target::AtMost(100.0)))])
}

/// CPU time of all threads, with 64 guests that are connected and silent.
pub fn idle_cpu(stage: &Stage) -> Result<Vec<Measure>> {
    let daemon = stage.daemon("idle", RELAYS, &loopbacks(0..RELAYS))?;
    let words = ["silent".to_owned(), daemon.sockets(), RELAYS.to_string()];
    let _guests = stage.guests("idle-guests", &words)?;
    std::thread::sleep(Duration::from_secs(1));
    ensure!(daemon.guests()? == RELAYS, "{} of {RELAYS} guests are ready", daemon.guests()?);
    let mut values = Vec::new();
    for _ in 0..stage.rounds {
        let before = Schedule::of(daemon.process().id())?.ran;
        std::thread::sleep(stage.time);
        let used = Schedule::of(daemon.process().id())?.ran.saturating_sub(before);
        values.push(Some(100.0 * used.as_secs_f64() / stage.time.as_secs_f64()));
    }
    let what = format!("CPU with {RELAYS} silent guests");
    Ok(vec![Measure::new(&what, "% of a core", vec![Side::new(OURS, values)], Some(Target::AtMost(2.0)))])
}

/// Memory of a process in MiB: its own pages, huge ones, and its memfds and files in tmpfs; not the guests'.
fn memory(pid: u32) -> Result<f64> {
    let read = |name: &str| {
        let path = format!("/proc/{pid}/{name}");
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let kib = |text: &str, key: &str| -> u64 {
        let value = |line: &str| line.strip_prefix(key)?.split_whitespace().next()?.parse::<u64>().ok();
        text.lines().filter_map(value).sum()
    };
    let status = read("status")?;
    let all = kib(&status, "RssAnon:") + kib(&status, "HugetlbPages:") + shared_of_its_own(&read("smaps")?);
    Ok(all as f64 / 1024.0)
}

/// KiB that are resident of memory shared by files without a disk, other than guests' memory.
fn shared_of_its_own(smaps: &str) -> u64 {
    let mut sum = 0;
    let mut counts = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some(key) = first.strip_suffix(':') {
            if counts && key == "Rss" {
                sum += words.next().and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
            }
        } else {
            // A mapping: addresses, access, offset, device, inode, name.
            let name = words.nth(4).unwrap_or_default();
            let guest = ["/memfd:guest-ram", "/memfd:nohuge", "/memfd:memory-backend"];
            counts = name.starts_with("/memfd:") && !guest.iter().any(|guest| name.starts_with(guest))
                || name.contains("/state/relay-");
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_guests_is_not_the_daemons() {
        let mapping = |name: &str, kib: u64| {
            format!(
                "7f0000000000-7f0000200000 rw-s 00000000 00:01 17    {name} (deleted)\nSize: 99999 kB\nRss: {kib} kB\n\
                 Anonymous: 7 kB\nVmFlags: rd wr sh\n"
            )
        };
        let smaps = [
            mapping("/memfd:guest-ram", 1000),
            mapping("/memfd:nohuge", 1000),
            mapping("/memfd:dma", 30),
            mapping("/run/x/state/relay-0", 4),
            mapping("/usr/lib/libc.so.6", 1000),
            "7f0000000000-7f0000200000 rw-p 00000000 00:00 0\nRss: 1000 kB\n".to_owned(),
        ];
        assert_eq!(shared_of_its_own(&smaps.concat()), 34);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(memory(std::process::id()).unwrap() > 0.1);
    }
}
