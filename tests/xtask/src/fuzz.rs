//! The fuzz targets (`tests/fuzz`): built with the toolchain that is there, run two at a time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::Context;
use crate::tools;

/// The targets: file names in `tests/fuzz/fuzz_targets`, folders in `tests/fuzz/corpus`.
const TARGETS: &[&str] = &["split_ring", "packed_ring", "vhost_user", "net_header", "control_json"];
/// So many run at the same time.
const AT_ONCE: usize = 2;
/// In so many seconds a planted fault must be found; it takes a few, that of vhost_user up to a minute.
const PLANTED: u64 = 120;

/// Builds all targets. The folder's own cargo configuration has the flags.
pub fn build(context: &Context) -> Result<()> {
    let mut command = crate::sets::cargo(context, &["build", "--release", "--locked", "--bins"]);
    command.current_dir(context.root.join("tests/fuzz")).env("CARGO_TARGET_DIR", folder(context));
    tools::logged(&mut command, &context.logs("fuzz").join("build.log"))
}

/// Cargo's target folder for what is compiled with a sanitizer.
fn folder(context: &Context) -> PathBuf {
    context.target.join("fuzz")
}

/// Runs each target for so long, and shows first that the fuzzer would find something: each has a fault that only
/// unusual input brings out, which is switched on by a variable.
pub fn run(context: &Context, each: Duration, logs: &Path) -> Result<Vec<String>> {
    build(context)?;
    let mut failures = two_at_a_time(|target| planted(context, target, logs));
    failures.extend(two_at_a_time(|target| fuzz(context, target, each, logs)));
    Ok(failures)
}

fn two_at_a_time(run: impl Fn(&str) -> Result<Option<String>> + Sync) -> Vec<String> {
    let mut failures = Vec::new();
    for targets in TARGETS.chunks(AT_ONCE) {
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = targets.iter().map(|target| scope.spawn(|| run(target))).collect();
            threads.into_iter().map(std::thread::ScopedJoinHandle::join).collect()
        });
        for (target, result) in targets.iter().zip(results) {
            match result {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(failure))) => failures.push(format!("{target}: {failure}")),
                Ok(Err(error)) => failures.push(format!("{target}: {error:#}")),
                Err(_) => failures.push(format!("{target}: the run itself failed")),
            }
        }
    }
    failures
}

/// A run of a target that begins with `seeds` and keeps what it finds in `logs`.
fn command(context: &Context, target: &str, seconds: u64, logs: &Path) -> Result<Command> {
    let corpus = logs.join("corpus");
    std::fs::create_dir_all(&corpus).with_context(|| format!("cannot create {}", corpus.display()))?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut command = Command::new(folder(context).join(triple).join("release").join(target));
    command
        .current_dir(logs)
        .args([&format!("-max_total_time={seconds}"), "-timeout=20", "-rss_limit_mb=4096", "-max_len=4096"])
        .args(["-print_final_stats=1", &format!("-artifact_prefix={}/", logs.display())])
        .arg(corpus)
        .arg(context.root.join("tests/fuzz/corpus").join(target));
    Ok(command)
}

fn fuzz(context: &Context, target: &str, each: Duration, logs: &Path) -> Result<Option<String>> {
    let logs = logs.join(target);
    let log = logs.join("run.log");
    // What earlier runs found is kept and gone on from.
    let result = tools::logged(&mut command(context, target, each.as_secs(), &logs)?, &log);
    let text = std::fs::read(&log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    match result {
        Ok(()) => {
            let stat = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
            let runs = stat("stat::number_of_executed_units:").unwrap_or("?");
            println!("   {target}: ok, {runs} inputs in {} s", each.as_secs());
            Ok(None)
        }
        Err(error) => Ok(Some(format!("{error:#}"))),
    }
}

fn planted(context: &Context, target: &str, logs: &Path) -> Result<Option<String>> {
    let logs = logs.join("planted").join(target);
    if logs.exists() {
        std::fs::remove_dir_all(&logs).with_context(|| format!("cannot remove {}", logs.display()))?;
    }
    let start = Instant::now();
    let mut command = command(context, target, PLANTED, &logs)?;
    command.env("FUZZ_PLANTED", "1");
    match tools::logged(&mut command, &logs.join("run.log")) {
        Ok(()) => Ok(Some(format!("the planted fault was not found in {PLANTED} s"))),
        Err(_) => {
            let found = std::fs::read_dir(&logs)?
                .filter_map(Result::ok)
                .any(|entry| entry.file_name().to_string_lossy().starts_with("crash-"));
            println!("   {target}: planted fault found in {:.0} s", start.elapsed().as_secs_f64());
            Ok((!found).then(|| "it ended without an input that shows the planted fault".to_owned()))
        }
    }
}
