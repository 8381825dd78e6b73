//! Instruction counts as a gate: what a frame costs, counted by valgrind, against the figures that were accepted.
//!
//! ```text
//!   tests/benches/counts.rs ── gungraun, callgrind ──▶ instructions ÷ frames ──▶ compared with tests/counts.toml
//! ```
//!
//! Counts do not depend on what else a machine does, so a few per cent mean something. They depend on the compiler and on
//! which copy functions glibc chooses: the file says for which compiler its figures are, and the benches choose the functions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::{Context, packages, sets, tools};

/// A figure may be so many per cent above the accepted one.
const LIMIT: f64 = 3.0;
/// Frames, or passes, of each measurement: `forwarder_tests::bed::FRAMES`.
const FRAMES: f64 = 256.0;
/// The version of the `gungraun` crate that the benches are written for; its runner must be the same.
const VERSION: &str = "0.20.0";
const FILE: &str = "tests/counts.toml";
const HEAD: &str = "# Instructions a frame (of idle_pass: a pass), as `cargo xtask counts --accept` found them. What they mean: tests/README.md.\n";

/// What to do with the figures.
#[derive(Args)]
pub struct Options {
    /// Make the figures that are found the accepted ones (tests/counts.toml)
    #[arg(long)]
    accept: bool,
}

/// Figures by the names of their benches.
type Figures = BTreeMap<String, f64>;

/// What was accepted.
#[derive(Deserialize)]
struct Accepted {
    /// The compiler that these figures are for, as `rustc --version` says it.
    compiler: String,
    figures: Figures,
}

/// What is to be said of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// Within the limit.
    Same,
    /// Less than it may be: worth accepting.
    Less,
    /// More than it may be.
    More,
    /// Not accepted yet.
    New,
    /// Accepted, and not found.
    Gone,
}

#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    found: Option<f64>,
    accepted: Option<f64>,
}

impl Row {
    /// Difference to the accepted figure in per cent.
    fn difference(&self) -> Option<f64> {
        let accepted = self.accepted?;
        Some((self.found? - accepted) / accepted * 100.0)
    }

    fn verdict(&self) -> Verdict {
        match (self.found, self.difference()) {
            (None, _) => Verdict::Gone,
            (_, None) => Verdict::New,
            (_, Some(difference)) if difference > LIMIT => Verdict::More,
            (_, Some(difference)) if difference < -LIMIT => Verdict::Less,
            // What is no number is no figure either.
            (_, Some(difference)) if difference.is_nan() => Verdict::More,
            _ => Verdict::Same,
        }
    }

    /// What is wrong.
    fn failure(&self) -> Option<String> {
        let Self { name, .. } = self;
        let (found, accepted) = (self.found.unwrap_or_default(), self.accepted.unwrap_or_default());
        match self.verdict() {
            Verdict::Same | Verdict::Less => None,
            Verdict::More => Some(format!("{name}: {found:.1} instructions, accepted were {accepted:.1}")),
            Verdict::New => Some(format!("{name}: {found:.1} instructions, and no figure in {FILE}")),
            Verdict::Gone => Some(format!("{name}: is in {FILE} and was not measured")),
        }
    }
}

fn rows(found: &Figures, accepted: &Figures) -> Vec<Row> {
    let names = found.keys().chain(accepted.keys().filter(|name| !found.contains_key(*name)));
    let row = |name: &String| Row {
        name: name.clone(),
        found: found.get(name).copied(),
        accepted: accepted.get(name).copied(),
    };
    names.map(row).collect()
}

fn print(rows: &[Row]) {
    let number = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.1}"));
    println!("   {:<44} {:>10} {:>10} {:>8}", "instructions a frame", "found", "accepted", "");
    for row in rows {
        let difference = row.difference().map_or(String::new(), |by| format!("{by:+.1} %"));
        let remark = match row.verdict() {
            Verdict::Same => "",
            Verdict::Less => "  less: accept it",
            Verdict::More => "  MORE",
            Verdict::New => "  NEW",
            Verdict::Gone => "  GONE",
        };
        let (found, accepted) = (number(row.found), number(row.accepted));
        println!("   {:<44} {found:>10} {accepted:>10} {difference:>8}{remark}", row.name);
    }
}

/// `cargo xtask counts`; whether all is well.
pub fn run(context: &Context, options: &Options) -> Result<bool> {
    if options.accept {
        let found = measure(context)?;
        let accepted = read(context).map_or_else(|_| Figures::new(), |accepted| accepted.figures);
        print(&rows(&found, &accepted));
        write(context, &found)?;
        return Ok(true);
    }
    let failures = gate(context)?;
    failures.iter().for_each(|failure| println!("   FAILED {failure}"));
    Ok(failures.is_empty())
}

/// Measures, prints the table, and says which figures are not what was accepted.
pub fn gate(context: &Context) -> Result<Vec<String>> {
    let accepted = read(context)?;
    let found = measure(context)?;
    let rows = rows(&found, &accepted.figures);
    print(&rows);
    let mut failures: Vec<_> = rows.iter().filter_map(Row::failure).collect();
    if let Some(why) = not_comparable(&accepted)? {
        println!("   NOT JUDGED: {why}");
        return Ok(Vec::new());
    }
    if !failures.is_empty() {
        failures.push(
            "if that is what the change is worth: 'cargo xtask counts --accept', and say why in the commit"
                .to_owned(),
        );
    }
    Ok(failures)
}

/// Why these figures cannot be compared with the accepted ones, if they cannot.
fn not_comparable(accepted: &Accepted) -> Result<Option<String>> {
    let compiler = compiler()?;
    if compiler != accepted.compiler {
        return Ok(Some(format!(
            "{FILE} is for {}, this is {compiler}; go back to where it is true and 'cargo xtask counts --accept' there",
            accepted.compiler
        )));
    }
    let processor = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has_avx2 = processor.split_ascii_whitespace().any(|word| word == "avx2");
    Ok((!has_avx2).then(|| "the accepted figures are for processors with AVX2, and this has none".to_owned()))
}

fn compiler() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or("rustc".into());
    Ok(tools::output(Command::new(rustc).arg("--version"))?.trim().to_owned())
}

fn read(context: &Context) -> Result<Accepted> {
    let path = context.root.join(FILE);
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {FILE}; 'cargo xtask counts --accept' writes it"))?;
    toml::from_str(&text).with_context(|| format!("{} is not understood", path.display()))
}

fn write(context: &Context, figures: &Figures) -> Result<()> {
    std::fs::write(context.root.join(FILE), written(&compiler()?, figures))
        .with_context(|| format!("cannot write {FILE}"))
}

fn written(compiler: &str, figures: &Figures) -> String {
    let lines = figures.iter().map(|(name, figure)| format!("\"{name}\" = {figure:.1}\n"));
    format!("{HEAD}compiler = \"{compiler}\"\n\n[figures]\n{}", lines.collect::<String>())
}

/// Runs the benches; instructions a frame by their names.
fn measure(context: &Context) -> Result<Figures> {
    if !tools::installed("valgrind") {
        packages::install()?;
    }
    let runner = runner(context)?;
    sets::build_binaries(context)?;
    let logs = context.logs("counts");
    // Counts of earlier benches would be taken for those of this run.
    let home = logs.join("gungraun");
    if home.exists() {
        std::fs::remove_dir_all(&home).with_context(|| format!("cannot remove {}", home.display()))?;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = runner.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
    let mut command = Command::new(context.target.join("release/examples/counts"));
    command
        .current_dir(&context.root)
        .arg("--bench")
        .env("PATH", std::env::join_paths(folders)?)
        .env("GUNGRAUN_WORKSPACE_ROOT", &context.root)
        .env("GUNGRAUN_HOME", &home);
    let log = logs.join("run.log");
    tools::logged(&mut command, &log)?;
    let mut figures = Figures::new();
    collect(&home, &mut figures)?;
    ensure!(!figures.is_empty(), "the benches left no counts; log: {}", log.display());
    Ok(figures)
}

/// Reads what callgrind left for each bench, in folders of their names: `FUNCTION.ID/callgrind.FUNCTION.ID.out`.
fn collect(folder: &Path, figures: &mut Figures) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, figures)?;
            continue;
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(name) = file.strip_prefix("callgrind.").and_then(|file| file.strip_suffix(".out")) else {
            continue;
        };
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let Some(count) = instructions(&text) else { bail!("{} has no count", path.display()) };
        figures.insert(name.to_owned(), (count as f64 / FRAMES * 10.0).round() / 10.0);
    }
    Ok(())
}

/// The number of instructions in a file of callgrind's, whose only event they are.
fn instructions(text: &str) -> Option<u64> {
    let total = text.lines().find_map(|line| line.strip_prefix("summary:"))?;
    total.split_ascii_whitespace().next()?.parse().ok().filter(|count| *count > 0)
}

/// Gungraun's runner, which is installed beside what cargo builds if it is missing.
fn runner(context: &Context) -> Result<PathBuf> {
    let root = context.target.join("tools");
    let runner = root.join("bin/gungraun-runner");
    let is_there = runner.is_file()
        && tools::output(Command::new(&runner).arg("--version"))
            .is_ok_and(|text| text.trim().ends_with(VERSION));
    if !is_there {
        println!("   installing gungraun-runner {VERSION}");
        // It only starts valgrind: optimising it would cost minutes.
        let mut install = sets::cargo(context, &["install", "--locked", "--force", "--debug", "--root"]);
        install.arg(&root).args(["gungraun-runner", "--version", VERSION]);
        tools::logged(&mut install, &context.logs("counts").join("install.log"))?;
    }
    Ok(runner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(figures: &[(&str, f64)]) -> Figures {
        figures.iter().map(|(name, figure)| ((*name).to_owned(), *figure)).collect()
    }

    fn verdicts(found: &[(&str, f64)], accepted: &[(&str, f64)]) -> Vec<Verdict> {
        rows(&figures(found), &figures(accepted)).iter().map(Row::verdict).collect()
    }

    #[test]
    fn more_than_three_per_cent_above_fails_and_below_is_worth_accepting() {
        let accepted = [("a", 100.0), ("b", 100.0), ("c", 100.0), ("d", 100.0), ("e", 100.0)];
        let found = [("a", 103.0), ("b", 103.1), ("c", 97.0), ("d", 96.9), ("e", 100.0)];
        assert_eq!(
            verdicts(&found, &accepted),
            [Verdict::Same, Verdict::More, Verdict::Same, Verdict::Less, Verdict::Same]
        );
        let failures: Vec<_> =
            rows(&figures(&found), &figures(&accepted)).iter().filter_map(Row::failure).collect();
        assert_eq!(failures, ["b: 103.1 instructions, accepted were 100.0"]);
    }

    #[test]
    fn a_bench_without_a_figure_fails_and_so_does_a_figure_without_a_bench() {
        assert_eq!(verdicts(&[("new", 1.0)], &[("old", 1.0)]), [Verdict::New, Verdict::Gone]);
        assert!(
            rows(&figures(&[("new", 1.0)]), &figures(&[("old", 1.0)]))
                .iter()
                .all(|row| row.failure().is_some())
        );
        assert_eq!(verdicts(&[("none", 0.0)], &[("none", 0.0)]), [Verdict::More], "no figure at all");
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let figures = figures(&[("cable.packed_64", 61.2), ("idle_pass.split", 40.0)]);
        let read: Accepted = toml::from_str(&written("rustc 1.0.0 (x 2026-01-01)", &figures)).unwrap();
        assert_eq!((read.compiler.as_str(), read.figures), ("rustc 1.0.0 (x 2026-01-01)", figures));
    }

    #[test]
    fn the_count_is_what_callgrind_sums_up() {
        let text = "version: 1\nevents: Ir\n\nfn=(1) main\n0 12\nsummary: 25600\n\ntotals: 25600\n";
        assert_eq!(instructions(text), Some(25600));
        assert_eq!(instructions("events: Ir\n"), None);
        assert_eq!(instructions("summary: 0\n"), None, "nothing was counted");
    }
}
