//! The sets of tests: what each runs, and how long it may take.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::Context;
use crate::job::{self, Job};
use crate::{counts, fuzz, mutants, packages, tools};

/// What is wrong after a set was run.
type Failures = Vec<String>;

/// Tests that are run and timed together.
pub struct Set {
    /// Its name on the command line.
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// The time that it should take on two cores.
    pub budget: Duration,
    /// Whether it builds the binaries that scenarios run.
    pub builds: bool,
    /// Runs it.
    pub run: fn(&Context) -> Result<Failures>,
}

/// What `cargo xtask test` runs, in this order.
pub const SETS: &[Set] = &[
    Set {
        name: "build",
        about: "format, lints, release binaries, fuzz targets",
        budget: minutes(8),
        builds: true,
        run: build,
    },
    Set { name: "unit", about: "all that `cargo test` runs", budget: minutes(4), builds: false, run: unit },
    Set {
        name: "counts",
        about: "instructions a frame, against the accepted figures",
        budget: minutes(1),
        builds: false,
        run: counts::gate,
    },
    Set { name: "fuzz", about: "each fuzz target for a while", budget: minutes(2), builds: false, run: fuzz },
    Set {
        name: "interop",
        about: "DPDK's virtio_user as the VM",
        budget: minutes(5),
        builds: false,
        run: interop,
    },
    Set { name: "vm", about: "a Linux guest in QEMU", budget: minutes(4), builds: false, run: vm },
    Set {
        name: "lab",
        about: "VFs, VFIO and an IOMMU in a machine",
        budget: minutes(5),
        builds: false,
        run: lab,
    },
    Set {
        name: "models",
        about: "our models of NICs, driven by Linux's own drivers",
        budget: minutes(3),
        builds: false,
        run: models,
    },
];

/// What `cargo xtask nightly` runs.
pub const NIGHTLY: &[Set] = &[
    Set {
        name: "nightly-deny",
        about: "licences and sources",
        budget: minutes(15),
        builds: false,
        run: deny,
    },
    Set {
        name: "nightly-interop",
        about: "all ring features, many restarts",
        budget: minutes(40),
        builds: false,
        run: nightly_interop,
    },
    Set {
        name: "nightly-vm",
        about: "a Linux guest, many restarts",
        budget: minutes(40),
        builds: false,
        run: nightly_vm,
    },
    Set {
        name: "nightly-fuzz",
        about: "each fuzz target for longer",
        budget: minutes(20),
        builds: false,
        run: nightly_fuzz,
    },
    Set {
        name: "nightly-mutants",
        about: "whether a test notices each small change of rings and guest side",
        budget: minutes(300),
        builds: false,
        run: mutants::run,
    },
    Set { name: "nightly-lab", about: "long lab jobs", budget: minutes(60), builds: false, run: nightly_lab },
    Set {
        name: "nightly-models",
        about: "the same models as other parts and with other firmware",
        budget: minutes(15),
        builds: false,
        run: nightly_models,
    },
];

/// What needs no network once the crates are here.
const DENY: &[&str] = &["deny", "--offline", "check", "bans", "licenses", "sources"];
/// The same for the fuzz workspace, by the same rules.
const DENY_FUZZ: &[&str] = &[
    "deny",
    "--offline",
    "--manifest-path",
    "tests/fuzz/Cargo.toml",
    "--config",
    "deny.toml",
    "check",
    "bans",
    "licenses",
    "sources",
];
/// It looks at the crates for other systems, too, which no build brings here.
const FETCH: &[&[&str]] =
    &[&["fetch", "--locked"], &["fetch", "--locked", "--manifest-path", "tests/fuzz/Cargo.toml"]];

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

/// Installs what the sets need; `emulator` says whether machines are among it that take another QEMU than Debian's. Quick
/// when nothing is missing.
pub fn setup(context: &Context, emulator: bool) -> Result<()> {
    packages::install()?;
    // It returns at once when there is nothing to do, and says what is missing when it cannot.
    tools::logged(
        Command::new(context.root.join("tests/lab/lab")).arg(if emulator { "setup-model" } else { "setup" }),
        &context.logs("setup").join("lab.log"),
    )
}

/// Prints the sets and their scenarios.
pub fn list(context: &Context) -> Result<()> {
    for set in SETS.iter().chain(NIGHTLY) {
        println!("{:<16} {} ({} min)", set.name, set.about, set.budget.as_secs() / 60);
        for job in scenarios(context, set.name)? {
            println!("    {:<24} {} checks, at most {} s", job.name, job.expected.len(), job.timeout);
        }
    }
    Ok(())
}

/// Of these sets, those that have something to run: with `--scenario` only those with a scenario of such a name. None is
/// an error, because a run of nothing would look like success.
pub fn with_something_to_run<'a>(context: &Context, sets: Vec<&'a Set>) -> Result<Vec<&'a Set>> {
    let Some(part) = &context.scenario else { return Ok(sets) };
    let mut chosen = Vec::new();
    for set in sets {
        if !scenarios(context, set.name)?.is_empty() {
            chosen.push(set);
        }
    }
    if chosen.is_empty() {
        bail!("no scenario's name contains '{part}'; see 'cargo xtask test --list'");
    }
    Ok(chosen)
}

/// Where a set's scenarios are, and whether they are the nightly ones there.
fn scenario_folder(set: &str) -> Option<(&'static str, bool)> {
    match set {
        "interop" => Some(("tests/interop", false)),
        "vm" => Some(("tests/vm", false)),
        "lab" => Some(("tests/lab/jobs", false)),
        "models" => Some(("tests/kernel", false)),
        "nightly-interop" => Some(("tests/interop", true)),
        "nightly-vm" => Some(("tests/vm", true)),
        "nightly-lab" => Some(("tests/lab/jobs", true)),
        "nightly-models" => Some(("tests/kernel", true)),
        _ => None,
    }
}

/// Whether a set runs scenarios, which need packages and the release binaries.
pub fn has_scenarios(set: &str) -> bool {
    scenario_folder(set).is_some()
}

/// Whether a set boots machines that take another QEMU than Debian's: for models of NICs, or because a job wants it.
pub fn needs_emulator(context: &Context, set: &str) -> Result<bool> {
    let wants = |line: &String| line.starts_with("MODEL=") || line == "EMULATOR=newest";
    Ok(scenarios(context, set)?.iter().any(|job| job.machine.iter().any(wants)))
}

/// The scenarios of a set that were asked for.
fn scenarios(context: &Context, set: &str) -> Result<Vec<Job>> {
    let Some((folder, nightly)) = scenario_folder(set) else { return Ok(Vec::new()) };
    let mut jobs = job::read_folder(&context.root.join(folder))?;
    jobs.retain(|job| job.nightly == nightly);
    jobs.retain(|job| context.scenario.as_deref().is_none_or(|part| job.name.contains(part)));
    Ok(jobs)
}

/// Cargo in the checkout, as if called by hand.
pub fn cargo(context: &Context, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(&context.root).args(arguments);
    // What cargo tells this program about its own build is not for the programs that it starts.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PKG_"))
    {
        command.env_remove(name);
    }
    command
}

/// The binaries that the scenarios run, and what instructions are counted in: one profile for all of them, the one that users
/// get. In one go: each by itself asks for other features of what all of them are made of, so that all would be built again.
pub fn build_binaries(context: &Context) -> Result<()> {
    let packages =
        ["forwarder", "control", "forwarder-tests", "models"].map(|name| ["--package", name]).concat();
    let mut command = cargo(
        context,
        &[&["build", "--release", "--bins", "--example", "counts"][..], &packages[..]].concat(),
    );
    tools::logged(&mut command, &context.logs("build").join("release.log"))
}

fn build(context: &Context) -> Result<Failures> {
    let logs = context.logs("build");
    let mut failures = Vec::new();
    let mut step = |name: &str, run: &dyn Fn() -> Result<()>| {
        let start = Instant::now();
        match run() {
            Ok(()) => println!("   {name}: ok, {:.0} s", start.elapsed().as_secs_f64()),
            Err(error) => failures.push(format!("{name}: {error:#}")),
        }
    };
    let logged = |name: &str, mut command: Command| tools::logged(&mut command, &logs.join(name));
    let cargo = |name: &str, arguments: &[&str]| logged(name, cargo(context, arguments));
    let script = |name: &str, path: &str| {
        let mut command = Command::new("bash");
        command.current_dir(&context.root).arg(path);
        logged(name, command)
    };
    step("fmt", &|| cargo("fmt.log", &["fmt", "--all", "--check"]));
    step("fmt-fuzz", &|| {
        cargo("fmt-fuzz.log", &["fmt", "--check", "--manifest-path", "tests/fuzz/Cargo.toml"])
    });
    step("clippy", &|| {
        cargo("clippy.log", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])
    });
    step("shellcheck", &|| script("shellcheck.log", "tests/shellcheck"));
    if tools::installed("cargo-deny") {
        FETCH.iter().for_each(|fetch| step("fetch", &|| cargo("fetch.log", fetch)));
        step("deny", &|| cargo("deny.log", DENY));
        step("deny-fuzz", &|| cargo("deny-fuzz.log", DENY_FUZZ));
    } else {
        println!("   deny: cargo-deny is not installed, left to 'cargo xtask nightly'");
    }
    step("release", &|| build_binaries(context));
    if tools::installed("systemd-analyze") {
        // It looks at the binaries, too.
        step("packaging", &|| script("packaging.log", "tests/packaging/all"));
    } else {
        println!("   packaging: systemd-analyze is not installed, not checked");
    }
    step("fuzz targets", &|| fuzz::build(context));
    Ok(failures)
}

fn unit(context: &Context) -> Result<Failures> {
    let logs = context.logs("unit");
    // Not the benches: clippy has looked at them, and what they measure is not measured here.
    let tests: &[&str] = if tools::installed("cargo-nextest") {
        &[
            "nextest",
            "run",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
            "--no-tests",
            "pass",
        ]
    } else {
        &["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"]
    };
    let mut failures = Vec::new();
    for (name, arguments) in [("tests", tests), ("doc", &["test", "--workspace", "--doc"])] {
        if let Err(error) = tools::logged(&mut cargo(context, arguments), &logs.join(format!("{name}.log"))) {
            failures.push(format!("{name}: {error:#}"));
        }
    }
    Ok(failures)
}

fn fuzz(context: &Context) -> Result<Failures> {
    fuzz::run(context, Duration::from_secs(20), &context.logs("fuzz"))
}

fn nightly_fuzz(context: &Context) -> Result<Failures> {
    fuzz::run(context, Duration::from_secs(300), &context.logs("nightly-fuzz"))
}

fn deny(context: &Context) -> Result<Failures> {
    let logs = context.logs("nightly-deny");
    if !tools::installed("cargo-deny") {
        let mut install = cargo(context, &["install", "--locked", "cargo-deny"]);
        tools::logged(&mut install, &logs.join("install.log"))?;
    }
    for arguments in FETCH.iter().chain(&[DENY, DENY_FUZZ]) {
        tools::logged(&mut cargo(context, arguments), &logs.join("deny.log"))?;
    }
    // The database of advisories is fetched from the network, which not every machine has.
    match tools::logged(&mut cargo(context, &["deny", "check", "advisories"]), &logs.join("advisories.log")) {
        Err(error) if error.to_string().contains("failed to fetch advisory database") => {
            println!("   advisories: NOT CHECKED, the database cannot be reached");
        }
        result => result?,
    }
    Ok(Vec::new())
}

fn interop(context: &Context) -> Result<Failures> {
    on_this_machine(context, "interop")
}

fn vm(context: &Context) -> Result<Failures> {
    on_this_machine(context, "vm")
}

fn nightly_interop(context: &Context) -> Result<Failures> {
    on_this_machine(context, "nightly-interop")
}

fn nightly_vm(context: &Context) -> Result<Failures> {
    on_this_machine(context, "nightly-vm")
}

/// Runs the scenarios of a set one after the other on this machine.
fn on_this_machine(context: &Context, set: &str) -> Result<Failures> {
    need_root(set)?;
    let mut failures = Vec::new();
    for job in scenarios(context, set)? {
        let logs = context.logs(set).join(&job.name);
        clean(&logs)?;
        let console = logs.join("console.log");
        let start = Instant::now();
        let mut command = Command::new("timeout");
        command
            .current_dir(&context.root)
            .args(["-k", "15", &job.timeout.to_string(), "bash"])
            .arg(&job.path)
            .env("TARGET", context.target.join("release"))
            .env("SCENARIO_OUT", &logs);
        let ended_well = tools::logged(&mut command, &console).is_ok();
        let output = std::fs::read_to_string(&console).unwrap_or_default();
        failures.extend(verdict(&job, &output, ended_well, start));
    }
    Ok(failures)
}

fn lab(context: &Context) -> Result<Failures> {
    in_the_lab(context, "lab")
}

fn nightly_lab(context: &Context) -> Result<Failures> {
    in_the_lab(context, "nightly-lab")
}

fn models(context: &Context) -> Result<Failures> {
    in_the_lab(context, "models")
}

fn nightly_models(context: &Context) -> Result<Failures> {
    in_the_lab(context, "nightly-models")
}

/// What a Linux kernel says when one of its CPUs no longer schedules.
const LOCKED_UP: &str = "BUG: soft lockup";

/// Failed jobs, at most, that are worth a second look.
const SECOND_LOOK: usize = 3;

/// Runs a set's jobs. The machine is emulated on a host that others load: its own NIC driver has been seen to lose its
/// link there for half a minute. So a job or a few that failed are run once more, alone, and that is said; a fault of ours
/// fails again.
fn in_the_lab(context: &Context, set: &str) -> Result<Failures> {
    need_root(set)?;
    let mut number = 0;
    let failures = on_machines(context, set, scenarios(context, set)?, &mut number)?;
    let of = |job: &Job, failure: &String| failure.starts_with(&format!("{} / ", job.name));
    let mut again = scenarios(context, set)?;
    again.retain(|job| failures.iter().any(|failure| of(job, failure)));
    let all_are_jobs = failures.iter().all(|failure| again.iter().any(|job| of(job, failure)));
    if failures.is_empty() || !all_are_jobs || again.len() > SECOND_LOOK {
        return Ok(failures);
    }
    println!("   ONCE MORE, after:\n      {}", failures.join("\n      "));
    on_machines(context, set, again, &mut number)
}

/// Boots a machine for the jobs that can share it, and another for the next ones.
fn on_machines(context: &Context, set: &str, jobs: Vec<Job>, number: &mut usize) -> Result<Failures> {
    let mut failures = Vec::new();
    let mut hung = BTreeSet::new();
    for mut jobs in job::by_machine(jobs) {
        // A job that hangs ends its machine; those after it get a new one.
        while !jobs.is_empty() {
            let logs = context.logs(set).join(format!("machine{number}"));
            *number += 1;
            let ran = on_one_machine(context, &logs, &jobs, &mut hung, &mut failures)?;
            jobs.drain(..ran);
        }
    }
    Ok(failures)
}

/// Runs jobs on one machine and judges those that it came to: how many these are.
///
/// The emulated machine's own kernel locks up now and then while VFs are made, and ends the machine. Such a job, noted in
/// `hung`, is run once more on the next machine; the second time it has failed.
fn on_one_machine(
    context: &Context,
    logs: &Path,
    jobs: &[Job],
    hung: &mut BTreeSet<String>,
    failures: &mut Failures,
) -> Result<usize> {
    clean(logs)?;
    let console = logs.join("console.log");
    let start = Instant::now();
    let mut command = Command::new(context.root.join("tests/lab/lab"));
    command
        .current_dir(&context.root)
        .arg("run")
        .args(jobs.iter().map(|job| &job.path))
        .env("TARGET", context.target.join("release"))
        .env("LAB_OUT", logs);
    let error = tools::logged(&mut command, &console).err();
    let text = std::fs::read(&console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())?;
    if let (Some(error), false) = (error, text.contains("# job ")) {
        // It has not come to any: nor would another machine.
        failures.push(format!("the machine did not start: {error:#}"));
        return Ok(jobs.len());
    }
    let mut ran = 0;
    for job in jobs.iter().take_while(|job| job::was_started(&text, &job.name)) {
        let (output, ended_well) = job::section(&text, &job.name);
        if output.contains(LOCKED_UP) && hung.insert(job.name.clone()) {
            println!("   {}: the machine's kernel locked up, once more", job.name);
            return Ok(ran);
        }
        failures.extend(verdict(job, output, ended_well, start));
        ran += 1;
    }
    if ran == 0 {
        failures.push(format!("{}: the machine ended before it", jobs[0].name));
    }
    Ok(ran.max(1))
}

/// Judges a run, says so in one line, and names the scenario in each failure.
fn verdict(job: &Job, output: &str, ended_well: bool, start: Instant) -> Failures {
    let failures = job.judge(output, ended_well);
    let seconds = start.elapsed().as_secs_f64();
    let result = if failures.is_empty() { "ok" } else { "FAILED" };
    println!("   {}: {result}, {} checks, {seconds:.0} s", job.name, job.expected.len());
    failures.into_iter().map(|failure| format!("{} / {failure}", job.name)).collect()
}

fn need_root(set: &str) -> Result<()> {
    if tools::output(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!(
            "the set '{set}' needs root (network namespaces, taps, a machine whose root is this file system)"
        );
    }
    Ok(())
}

/// An empty folder for logs: those of an earlier run would be taken for this one's.
fn clean(folder: &Path) -> Result<()> {
    if folder.exists() {
        std::fs::remove_dir_all(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}
