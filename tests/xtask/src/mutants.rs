//! Mutants: the code that strangers reach is changed in small ways, and some test must notice each.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::Context;
use crate::sets;
use crate::tools;

/// What is changed.
const FILES: &[&str] = &["relay/src/ring/*.rs", "relay/src/guest/*.rs"];
/// The other side of the rings and what only tests have.
const EXCEPT: &[&str] =
    &["**/tests.rs", "**/oracle.rs", "**/layouts.rs", "**/operations.rs", "**/by_hand.rs"];
/// Tells how something looks in a log: no test reads it.
const NOT: &str = "impl (fmt::)?(Debug|Display) for";
/// All of it ends after so many seconds; what was tried by then counts.
const LIMIT: u32 = 5 * 3600;

/// Runs cargo-mutants with the fast tests. Survivors are no failure: they are listed, for people to judge.
pub fn run(context: &Context) -> Result<Vec<String>> {
    let logs = context.logs("nightly-mutants");
    if !tools::installed("cargo-mutants") {
        let mut install = sets::cargo(context, &["install", "--locked", "cargo-mutants"]);
        tools::logged(&mut install, &logs.join("install.log"))?;
    }
    std::fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let mut command = Command::new("timeout");
    command.current_dir(&context.root).args(["-s", "INT", &LIMIT.to_string()]);
    command.args(["cargo", "mutants", "--package", "relay", "--no-shuffle", "--jobs", "2"]);
    command
        .args(["--timeout", "120", "--minimum-test-timeout", "60", "--exclude-re", NOT, "--output"])
        .arg(&logs);
    FILES.iter().for_each(|files| _ = command.args(["--file", files]));
    EXCEPT.iter().for_each(|files| _ = command.args(["--exclude", files]));
    command.args(["--", "--lib", "--", "ring::", "guest::"]);
    let result = tools::logged(&mut command, &logs.join("run.log"));
    let survivors = std::fs::read_to_string(logs.join("mutants.out/missed.txt"));
    match (survivors, result) {
        (Ok(survivors), _) => {
            let file = logs.join("mutants.out/missed.txt");
            println!("   {} survivors: {}", survivors.lines().count(), file.display());
            Ok(Vec::new())
        }
        (Err(_), Err(error)) => Err(error),
        (Err(error), Ok(())) => bail!("cargo-mutants left no list of survivors: {error}"),
    }
}
