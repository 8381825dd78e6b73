//! The page: how it was measured, where, and the tables.

use std::fmt::Write as _;

use super::results::{Cell, IDLE_POLLS, Measure, Results, Target, Verdict};
use super::rounds::{FEWEST, OFF, Spread, WAITED};
use super::testpmd::IN_FLIGHT;

/// A cell as lines for the terminal.
pub fn lines(cell: &Cell) -> Vec<String> {
    let measures = match &cell.outcome {
        Ok(measures) => measures,
        Err(reason) => return vec![format!("not measured: {reason}")],
    };
    let mut lines = Vec::new();
    for measure in measures {
        for other in 1..measure.sides.len().max(2) {
            let row = Row::of(measure, other);
            let first = other == 1;
            let theirs = row.theirs.map_or(String::new(), |theirs| format!(" | {} {theirs}", row.name));
            let ratio = row.ratio.map_or(String::new(), |ratio| format!(" | ratio {ratio}"));
            let rounds = row.rounds.map_or(String::new(), |rounds| format!(" | {rounds} rounds"));
            let verdict = if first { format!(" | {}", row.verdict) } else { String::new() };
            lines.push(format!("{}: {}{theirs}{ratio}{rounds}{verdict}", measure.what, row.ours));
        }
        if let Some(empty) = Spread::of(&measure.empty) {
            lines.push(format!("polls that found nothing: {}", percent(empty.median)));
        }
        if measure.disturbed() > 0 {
            lines.push(format!("slots in which other programs had the CPUs: {}", measure.disturbed()));
        }
        if let Some(in_flight) = measure.in_flight {
            lines.push(format!("frames under way: {in_flight}"));
        }
    }
    lines
}

/// The page, from what was measured and what people wrote.
pub fn page(results: &Results, notes: &str) -> String {
    let mut page = String::from(HEAD);
    method(&mut page, results);
    page.push_str("\n## Figures\n");
    if results.cells.is_empty() {
        page.push_str("\nNothing was measured yet: `cargo xtask bench` fills this in.\n");
    } else {
        page.push_str("\n![Frames a second, ours by testpmd's](performance.svg)\n");
        for (prefix, title) in SECTIONS {
            let cells: Vec<_> = results.cells.iter().filter(|cell| cell.name.starts_with(prefix)).collect();
            if !cells.is_empty() {
                let _ = write!(page, "\n### {title}\n\n");
                table(&mut page, &cells);
            }
        }
    }
    page.push('\n');
    page.push_str(notes);
    page
}

const HEAD: &str = "<!-- Written by `cargo xtask bench`; what people write goes into performance-notes.md. -->
# Performance

How fast the daemon is beside DPDK's `testpmd` with its `net_vhost` driver, whose vhost library most user-space back ends are
built on, doing the same work on the same CPU in the same minute.
";

const SECTIONS: &[(&str, &str)] = &[
    ("loop.", "A guest gets back what it sends (`loopback`)"),
    ("vm-to-vm.", "Two guests send to each other (`vhost-user:SOCKET`); rates are those of one direction"),
    ("relays.", "Many relays on one worker"),
    ("memory.", "Memory"),
    ("start", "Start"),
    ("idle.", "Idle"),
    ("latency.", "Latency"),
    (
        "drivers",
        "VF drivers against the models of their devices, in one process (the models' own work is in the rates, not in the cycles)",
    ),
    ("lab.", "VF and guest, in the lab"),
];

fn method(page: &mut String, results: &Results) {
    let mut add = |text: String| {
        page.push_str(&text);
        page.push('\n');
    };
    add("\n## Method\n".to_owned());
    if !results.cells.is_empty() {
        let machine = &results.machine;
        let kind = if machine.virtual_machine { " (a virtual machine)" } else { "" };
        add(format!("- Machine: {}, {} CPUs{kind}, Linux {}.", machine.cpu, machine.cpus, machine.kernel));
        let mut commits: Vec<_> = results.cells.iter().map(|cell| cell.commit.as_str()).collect();
        commits.sort_unstable();
        commits.dedup();
        add(format!("- virtio-forwarder: release build of {}.", commits.join(", ")));
        for (name, version) in &results.peers {
            add(format!("- {name}: {version}."));
        }
        let slots = results.cells.iter().map(|cell| cell.seconds);
        if let Some(slots) = Spread::of(&slots.collect::<Vec<_>>()) {
            add(format!("- Slots: {}.", spread(&slots, "s")));
        }
    }
    add(format!(
        "- The forwarder has CPU 1: our one worker, or all of testpmd (`--forward-mode=io`). The guests have CPU 0: testpmd with\n  \
         `virtio_user`, the same build for everyone, rings of 1024, bursts of 32, mergeable buffers. All memory is of 4 KiB\n  \
         pages (`--no-huge`), on both sides.\n\
         - A closed loop: each queue pair has {IN_FLIGHT} frames under way, put there once (`start tx_first 16`) and sent again as they\n  \
         come back. Nothing can be lost without being missed from then on, so the smallest number that was under way at the end\n  \
         of a round is in the table.\n\
         - A row's name is RING.SIZE.PAIRS: split or packed with IN_ORDER, which is DPDK's default, or without (`any-order`, as\n  \
         Linux has it); bytes of a frame without FCS; queue pairs.\n\
         - Rounds are interleaved: all sides are up for the whole of a cell, and while one runs for its slot the others are held by\n  \
         SIGSTOP. The order turns round each time.\n\
         - What is shown are medians, with the smallest and the largest in brackets. Ratios are formed within a round, and their\n  \
         median is taken.\n\
         - **The rule for disturbed rounds**: one in which either side is off its own median by more than a factor of {OFF}, or\n  \
         in which the programs waited more than {} of the slot for CPUs that others had (`/proc/PID/task/*/schedstat`), is thrown\n  \
         away, both halves of it, before anything is computed. `7/9` are rounds kept and rounds run. With fewer than {FEWEST}, or less\n  \
         than half, left a row is not settled and meets no target.\n\
         - Cycles are TSC ticks of the forwarder's rounds in which frames came, by frames forwarded: testpmd's\n  \
         `--record-core-cycles`, our worker's `virtio_forwarder_worker_busy_cycles_total` and `…_frames_total`. Rounds that found\n  \
         nothing are on neither side. A frame that goes round counts once.\n\
         - Where our worker found nothing in {} of its polls or more, the generator is the limit, not the daemon: the row says\n  \
         so, and the cycles decide.\n\
         - Many relays, memory and latency are measured with our own guests (`tests/src/bin/bench_guest.rs`), which do little\n  \
         more than move rings on. One busy guest has 512 frames under way, each of 64 busy ones 64. The prober that measures single\n  \
         frames is the same against every back end; it polls.\n\
         - In the lab everything is emulated, the NIC too, on a machine with two CPUs (`tests/lab/rates.sh`), so the rates\n  \
         mean nothing beyond their ratio. Each side has a VF of its own on the same NIC, or a virtio function on a wire of its own,\n  \
         and testpmd as forwarder drives its with DPDK's driver. Frames to the wire are counted by the NIC (of virtio functions by\n  \
         each side's driver, as taken by the device), frames to the VM by the VM; the sender at the far end, a function too, has the\n  \
         VM's CPU. Nothing is sent again here: what a forwarder does not keep up with is lost, and not counted. Inside\n  \
         that machine nobody can see what the host's other programs took, so only the first half of the rule is applied.",
        percent(WAITED),
        percent(IDLE_POLLS)
    ));
}

/// A row of a table, as text.
struct Row {
    name: String,
    ours: String,
    theirs: Option<String>,
    ratio: Option<String>,
    rounds: Option<String>,
    verdict: String,
}

impl Row {
    fn of(measure: &Measure, other: usize) -> Self {
        let name = measure.sides.get(other).map(|side| side.name.clone()).unwrap_or_default();
        let unit = &measure.unit;
        let verdict = describe(measure);
        match measure.pair(other) {
            Some(pair) => Self {
                name,
                ours: spread(&pair.ours, unit),
                theirs: Some(spread(&pair.theirs, unit)),
                ratio: Some(match measure.target {
                    Some(Target::OverAtMost(_)) => format!("{} more", spread(&pair.difference, unit)),
                    _ => spread(&pair.ratio, ""),
                }),
                rounds: Some(format!("{}/{}", pair.kept, pair.rounds)),
                verdict,
            },
            None => Self {
                name,
                ours: measure.alone().map_or("—".to_owned(), |alone| spread(&alone, unit)),
                theirs: measure.sides.get(other).and_then(|side| {
                    let values: Vec<_> = side.values.iter().flatten().copied().collect();
                    Spread::of(&values).map(|alone| spread(&alone, unit))
                }),
                ratio: None,
                rounds: None,
                verdict,
            },
        }
    }
}

fn table(page: &mut String, cells: &[&Cell]) {
    let mut empty = true;
    for cell in cells {
        let measures = match &cell.outcome {
            Ok(measures) => measures,
            Err(_) => continue,
        };
        if empty {
            page.push_str(
                "| | | first | second | first ÷ second | rounds | target |\n|---|---|---|---|---|---|---|\n",
            );
            empty = false;
        }
        let shown = cell.name.split_once('.').map_or(cell.name.as_str(), |(_, rest)| rest);
        for measure in measures {
            for other in 1..measure.sides.len().max(2) {
                let row = Row::of(measure, other);
                let dash = || "—".to_owned();
                let first = measure.sides.first().map_or("", |side| side.name.as_str());
                let theirs = row.theirs.map_or_else(dash, |theirs| format!("{}: {theirs}", row.name));
                let verdict = if other == 1 { row.verdict } else { String::new() };
                let _ = writeln!(
                    page,
                    "| {shown} | {}{} | {first}: {} | {theirs} | {} | {} | {verdict} |",
                    measure.what,
                    remarks(measure),
                    row.ours,
                    row.ratio.unwrap_or_else(dash),
                    row.rounds.unwrap_or_else(dash),
                );
            }
        }
    }
    for cell in cells {
        if let Err(reason) = &cell.outcome {
            // Logs and paths are for the terminal.
            let reason = reason.split(" (log:").next().unwrap_or(reason);
            let _ = write!(page, "\n{} was not measured: {reason}.\n", cell.name);
        }
    }
}

fn remarks(measure: &Measure) -> String {
    let in_flight = measure.in_flight.map(|frames| format!("{frames} under way"));
    let empty = Spread::of(&measure.empty).map(|empty| format!("{} of polls empty", percent(empty.median)));
    let remarks: Vec<_> = in_flight.into_iter().chain(empty).collect();
    if remarks.is_empty() { String::new() } else { format!(" ({})", remarks.join(", ")) }
}

fn describe(measure: &Measure) -> String {
    let target = match measure.target {
        None => return "—".to_owned(),
        Some(Target::RatioAtMost(limit)) => format!("≤ {limit}"),
        Some(Target::RatioAtLeast(limit)) => format!("≥ {limit}"),
        Some(Target::AtMost(limit)) => format!("≤ {limit} {}", measure.unit),
        Some(Target::OverAtMost(limit)) => format!("≤ {limit} {} more", measure.unit),
    };
    let verdict = match measure.verdict() {
        Verdict::Stated => String::new(),
        Verdict::Met => "met".to_owned(),
        Verdict::Missed => "**missed**".to_owned(),
        Verdict::Unsettled => "not settled".to_owned(),
        Verdict::Missing => "no figure".to_owned(),
        Verdict::GeneratorLimits(empty) => {
            format!("the generator is the limit ({} of polls empty)", percent(empty))
        }
    };
    format!("{target}: {verdict}")
}

/// `median (min–max) unit`; one value stands alone.
fn spread(spread: &Spread, unit: &str) -> String {
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    let [median, min, max] = [spread.median, spread.min, spread.max].map(number);
    if min == max { format!("{median}{unit}") } else { format!("{median} ({min}–{max}){unit}") }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        value_abs if value_abs >= 100.0 => format!("{value:.0}"),
        value_abs if value_abs >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0} %", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::super::results::Side;
    use super::*;

    fn results() -> Results {
        let side = |name, values: [f64; 3]| Side::new(name, values.map(Some));
        let sides = vec![
            side("virtio-forwarder", [20.0, 21.0, 22.0]),
            side("testpmd", [10.0; 3]),
            side("newer", [11.0; 3]),
        ];
        let mut rate = Measure::new("frames a second", "M/s", sides, Some(Target::RatioAtLeast(1.3)));
        rate.in_flight = Some(512);
        let missing = vec![Side::new("virtio-forwarder", [None; 3]), side("testpmd", [300.0; 3])];
        let cycles = Measure::new("cycles a frame", "", missing, Some(Target::RatioAtMost(0.4)));
        let mut results = Results::default();
        let cell = |name: &str, outcome| Cell {
            name: name.to_owned(),
            commit: "abc".to_owned(),
            seconds: 1.0,
            outcome,
        };
        results.put(cell("loop.split.64.1", Ok(vec![rate, cycles])));
        results.put(cell("vm-to-vm.split.64.1", Err("not built (log: /x/y)".to_owned())));
        results
    }

    #[test]
    fn the_page_has_a_row_for_each_peer_and_names_what_is_missing() {
        let page = page(&results(), "## Notes\n\nKept.\n");
        let rate = "| split.64.1 | frames a second (512 under way) | virtio-forwarder: 21.0 (20.0–22.0) M/s | testpmd: 10.0 M/s \
                    | 2.10 (2.00–2.20) | 3/3 | ≥ 1.3: met |";
        assert!(page.contains(rate), "{page}");
        assert!(page.contains("| newer: 11.0 M/s | 1.91 (1.82–2.00) | 3/3 |  |"), "{page}");
        assert!(
            page.contains(
                "| cycles a frame | virtio-forwarder: — | testpmd: 300 | — | — | ≤ 0.4: no figure |"
            ),
            "{page}"
        );
        assert!(page.contains("vm-to-vm.split.64.1 was not measured: not built."), "{page}");
        assert!(page.ends_with("## Notes\n\nKept.\n"));
    }

    #[test]
    fn a_page_without_figures_has_the_method() {
        let page = page(&Results::default(), "");
        assert!(page.contains("## Method") && page.contains("Nothing was measured yet"));
        assert!(!page.contains("Machine:"));
    }

    #[test]
    fn the_terminal_shows_the_same() {
        let lines = lines(&results().cells[0]);
        assert_eq!(
            lines[0],
            "frames a second: 21.0 (20.0–22.0) M/s | testpmd 10.0 M/s | ratio 2.10 (2.00–2.20) | 3/3 rounds | ≥ 1.3: met"
        );
        assert!(lines[1].contains("newer") && lines[2] == "frames under way: 512", "{lines:?}");
    }
}
