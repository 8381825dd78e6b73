//! `cargo xtask bench`: how fast the daemon is beside DPDK's testpmd, in the same minute on the same CPUs.
//!
//! ```text
//!   cells        what is measured, and what it has to be
//!   throughput, relays, quiet, latency, models, lab
//!                how each kind of cell is measured
//!   stage, contender, daemon, testpmd, process, load
//!                who takes part, and how they are run in turns
//!   rounds       medians of pairs, and the rule by which rounds are thrown away
//!   results      what is kept as JSON
//!   report, chart
//!                the page and the drawing, from what is kept
//! ```

mod cells;
mod chart;
mod contender;
mod daemon;
mod lab;
mod latency;
mod load;
mod models;
mod process;
mod quiet;
mod relays;
mod report;
mod results;
mod rounds;
mod stage;
mod testpmd;
mod throughput;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{Context, packages, sets, tools};
use cells::{Cell, Kind};
use results::{Machine, Measure, Results};
use stage::{FORWARDER_CPU, GUEST_CPU, OURS, Stage};
use testpmd::Build;
use throughput::Wiring;

/// Further builds of testpmd to compare with: `NAME=PATH,...`.
const MORE: &str = "TESTPMD_MORE";

/// What to measure, and how thoroughly.
#[derive(Args)]
pub struct Options {
    /// Draw page and chart again from what was measured before, and measure nothing
    #[arg(long)]
    render: bool,
    /// A look of about a minute: few cells, short rounds, and no page
    #[arg(long)]
    quick: bool,
    /// Measure only cells whose name contains this; the others stay on the page as they were
    #[arg(long, value_name = "TEXT")]
    cell: Option<String>,
    /// How often each side is measured [default: 9, or 5 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// Seconds of a round for each side [default: 3, or 1 with --quick]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    seconds: Option<f64>,
    /// List the cells and measure nothing
    #[arg(long)]
    list: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.5..=600.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds from 0.5 to 600".to_owned()),
    }
}

/// Measures and writes the page.
pub fn run(context: &Context, options: &Options) -> Result<()> {
    let chosen = choose(options)?;
    let file = context.target.join("bench/results.json");
    if options.list {
        chosen.iter().for_each(|cell| println!("{}", cell.name));
        return Ok(());
    }
    if !options.render {
        measure(context, options, &chosen, &file)?;
        if options.quick {
            println!("a quick look: docs/performance.md is left as it is (--render draws it)");
            return Ok(());
        }
    }
    let results = Results::read(&file)?;
    let notes = context.root.join("docs/performance-notes.md");
    let notes =
        std::fs::read_to_string(&notes).with_context(|| format!("cannot read {}", notes.display()))?;
    for (name, text) in [
        ("docs/performance.md", report::page(&results, &notes)),
        ("docs/performance.svg", chart::draw(&results)),
    ] {
        std::fs::write(context.root.join(name), text).with_context(|| format!("cannot write {name}"))?;
        println!("wrote {name}");
    }
    Ok(())
}

fn choose(options: &Options) -> Result<Vec<Cell>> {
    let wanted = |cell: &Cell| match &options.cell {
        Some(part) => cell.name.contains(part.as_str()),
        None => cell.quick || !options.quick,
    };
    let chosen: Vec<_> = cells::all().into_iter().filter(wanted).collect();
    ensure!(!chosen.is_empty(), "no cell's name contains '{}'", options.cell.as_deref().unwrap_or_default());
    Ok(chosen)
}

fn measure(context: &Context, options: &Options, chosen: &[Cell], file: &Path) -> Result<()> {
    let machine = Machine::this()?;
    ensure!(machine.cpus > FORWARDER_CPU, "two CPUs are needed: one for guests, one for the forwarder");
    if chosen.iter().any(|cell| matches!(cell.kind, Kind::Lab(_))) {
        sets::setup(context, true)?
    } else {
        packages::install()?
    }
    sets::build_binaries(context)?;
    let mut results = Results::read(file)?;
    if results.machine != machine {
        // Figures of two machines do not go onto one page.
        if !results.cells.is_empty() {
            println!("what was measured on another machine ({}) is forgotten", results.machine.cpu);
        }
        results = Results { machine, ..Results::default() };
    }
    let run = tempfile::Builder::new().prefix("vf-bench.").tempdir().context("no temporary folder")?;
    let (rounds, time) = if options.quick { (5, 1.0) } else { (9, 3.0) };
    let (rounds, time) = (options.rounds.map_or(rounds, usize::from), options.seconds.unwrap_or(time));
    let builds = builds()?;
    for build in &builds {
        results.name_peer(&build.name, testpmd::version(build)?);
    }
    let commit = commit(&context.root)?;
    println!("{}: rounds of {time} s, {rounds} for each side", results.peers_line());
    for cell in chosen {
        let logs = context.target.join("bench").join(&cell.name);
        std::fs::create_dir_all(&logs)?;
        let stage = Stage {
            root: context.root.clone(),
            binaries: context.target.join("release"),
            run: run.path().join(&cell.name),
            logs,
            builds: builds.clone(),
            rounds,
            time: Duration::from_secs_f64(time),
        };
        std::fs::create_dir_all(&stage.run)?;
        let begin = Instant::now();
        let outcome = one(&stage, cell.kind).map_err(|error| format!("{error:#}"));
        let cell = results::Cell { name: cell.name.clone(), commit: commit.clone(), seconds: time, outcome };
        println!("{} ({:.0} s)", cell.name, begin.elapsed().as_secs_f64());
        report::lines(&cell).iter().for_each(|line| println!("   {line}"));
        results.put(cell);
        // After each cell: whoever stops a run keeps what it measured.
        results.sort_by(&cells::all().iter().map(|cell| cell.name.as_str()).collect::<Vec<_>>());
        results.write(file)?;
    }
    println!("kept in {}", file.display());
    Ok(())
}

fn one(stage: &Stage, kind: Kind) -> Result<Vec<Measure>> {
    match kind {
        Kind::Loop(load) => throughput::measure(stage, Wiring::Loop, &load),
        Kind::VmToVm(load) => throughput::measure(stage, Wiring::VmToVm, &load),
        Kind::OneBusy => relays::one_busy(stage),
        Kind::AllBusy => relays::all_busy(stage),
        Kind::EmptyMemory => quiet::empty_memory(stage),
        Kind::BusyMemory => quiet::busy_memory(stage),
        Kind::Start => quiet::start(stage),
        Kind::IdleCpu => quiet::idle_cpu(stage),
        Kind::FirstFrame => latency::first_frame(stage),
        Kind::RoundTrip => latency::round_trip(stage),
        Kind::Models => models::measure(stage),
        Kind::Lab(function) => lab::measure(stage, function),
    }
}

/// The yardstick, and what the environment adds to it.
fn builds() -> Result<Vec<Build>> {
    let yardstick = std::env::var("TESTPMD").unwrap_or_else(|_| "dpdk-testpmd".to_owned());
    let mut builds = vec![Build { name: "testpmd".to_owned(), program: yardstick }];
    for entry in std::env::var(MORE).unwrap_or_default().split(',').filter(|entry| !entry.is_empty()) {
        let Some((name, path)) =
            entry.split_once('=').filter(|(name, path)| !name.is_empty() && !path.is_empty())
        else {
            bail!("{MORE}: '{entry}' is not NAME=PATH");
        };
        ensure!(
            name != OURS && builds.iter().all(|build| build.name != name),
            "{MORE}: the name '{name}' is taken"
        );
        let program = PathBuf::from(path);
        ensure!(program.is_file(), "{MORE}: there is no {path}");
        builds.push(Build { name: name.to_owned(), program: path.to_owned() });
    }
    Ok(builds)
}

fn commit(root: &Path) -> Result<String> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]);
    Ok(tools::output(&mut git)?.trim().to_owned())
}

impl Results {
    fn peers_line(&self) -> String {
        let peers = self.peers.iter().map(|(name, version)| format!("{name} is {version}"));
        let peers = peers.collect::<Vec<_>>().join(", ");
        format!("forwarders on CPU {FORWARDER_CPU}, guests on CPU {GUEST_CPU}; {peers}")
    }

    /// Cells that are not measured again may have been compared with a build that is not there any more: it stays.
    fn name_peer(&mut self, name: &str, version: String) {
        self.peers.retain(|(known, _)| known != name);
        self.peers.push((name.to_owned(), version));
    }

    fn sort_by(&mut self, names: &[&str]) {
        self.cells.sort_by_key(|cell| names.iter().position(|name| *name == cell.name).unwrap_or(usize::MAX));
    }
}
