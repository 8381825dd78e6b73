#![forbid(unsafe_code)]
//! Project tasks: `cargo xtask test` installs what the tests need and runs all of them; `cargo xtask counts` and
//! `cargo xtask bench` measure.

mod bench;
mod counts;
mod fuzz;
mod job;
mod mutants;
mod packages;
mod report;
mod sets;
mod tools;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use sets::{NIGHTLY, SETS, Set};

/// Project tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the tests need, if it is missing (Debian 12, root)
    Setup,
    /// Install what the tests need and run them all
    Test {
        /// Run these sets only (the binaries are built where scenarios need them)
        #[arg(long, value_name = "SET", value_delimiter = ',')]
        only: Vec<String>,
        /// Run only the scenarios whose name contains this
        #[arg(long, value_name = "TEXT")]
        scenario: Option<String>,
        /// List the sets and their scenarios and run nothing
        #[arg(long)]
        list: bool,
    },
    /// Run the long sets that `test` leaves out
    Nightly {
        /// Run these sets only
        #[arg(long, value_name = "SET", value_delimiter = ',')]
        only: Vec<String>,
        /// Run only the scenarios whose name contains this
        #[arg(long, value_name = "TEXT")]
        scenario: Option<String>,
    },
    /// Count the instructions that frames cost, and compare with those that were accepted
    Counts(counts::Options),
    /// Measure the daemon beside DPDK's testpmd and write docs/performance.md (two CPUs that nobody else uses)
    Bench(bench::Options),
}

/// Where things are, and what was asked for.
pub struct Context {
    /// The checkout.
    root: PathBuf,
    /// Cargo's target folder.
    target: PathBuf,
    /// Part of the names of the scenarios to run.
    scenario: Option<String>,
}

impl Context {
    fn new(scenario: Option<String>) -> Self {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap_or(Path::new("/")).to_owned();
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        Self { root, target, scenario }
    }

    /// The folder for the logs of a set.
    fn logs(&self, set: &str) -> PathBuf {
        self.target.join("tests").join(set)
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup => sets::setup(&Context::new(None), true).map(|()| true),
        Task::Test { list: true, scenario, .. } => sets::list(&Context::new(scenario)).map(|()| true),
        Task::Test { only, scenario, .. } => {
            select(SETS, &only).and_then(|sets| run(&Context::new(scenario), sets))
        }
        Task::Nightly { only, scenario } => {
            select(NIGHTLY, &only).and_then(|sets| run(&Context::new(scenario), sets))
        }
        Task::Counts(options) => counts::run(&Context::new(None), &options),
        Task::Bench(options) => bench::run(&Context::new(None), &options).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The sets of these names, or all; the builds of the later ones are in the first, so that it is always there.
fn select(sets: &'static [Set], only: &[String]) -> anyhow::Result<Vec<&'static Set>> {
    for name in only {
        if !sets.iter().any(|set| set.name == name) {
            let names: Vec<_> = sets.iter().map(|set| set.name).collect();
            anyhow::bail!("no set '{name}'; the sets are {}", names.join(", "));
        }
    }
    Ok(sets.iter().filter(|set| only.is_empty() || only.iter().any(|name| name == set.name)).collect())
}

/// Runs the sets, prints the table; whether all is well.
fn run(context: &Context, sets: Vec<&Set>) -> anyhow::Result<bool> {
    let sets = sets::with_something_to_run(context, sets)?;
    let builds = sets.iter().any(|set| set.builds);
    let scenarios = sets.iter().any(|set| sets::has_scenarios(set.name));
    if builds || scenarios {
        let mut emulator = false;
        for set in &sets {
            emulator |= sets::needs_emulator(context, set.name)?;
        }
        sets::setup(context, emulator)?;
    }
    if scenarios && !builds {
        sets::build_binaries(context)?;
    }
    let mut results = Vec::new();
    for set in sets {
        results.push(report::run_set(context, set));
    }
    report::print_table(&results);
    Ok(results.iter().all(|result| result.failures.is_empty()))
}
