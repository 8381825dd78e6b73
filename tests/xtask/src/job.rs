//! Scenarios: bash scripts that announce their checks at their head and report each on a line of its own (see
//! `tests/lib/check.sh`). Here they are read and judged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A scenario as its head describes it.
pub struct Job {
    /// Name of the file without `.sh`.
    pub name: String,
    /// The script.
    pub path: PathBuf,
    /// `# expect:` names of the checks.
    pub expected: Vec<String>,
    /// `# timeout:` seconds.
    pub timeout: u64,
    /// `# lab:` lines: jobs with the same ones can share a machine.
    pub machine: Vec<String>,
    /// `# nightly`: too long for every day.
    pub nightly: bool,
}

impl Job {
    fn parse(path: &Path, text: &str) -> Result<Self> {
        let head: Vec<_> = text.lines().take_while(|line| line.is_empty() || line.starts_with('#')).collect();
        let values = |key: &str| -> Vec<&str> {
            let prefix = format!("# {key}:");
            head.iter().filter_map(|line| line.strip_prefix(&prefix)).map(str::trim).collect()
        };
        let expected: Vec<_> =
            values("expect").iter().flat_map(|line| line.split_whitespace()).map(str::to_owned).collect();
        if expected.is_empty() {
            bail!(
                "{}: no line '# expect: NAME...'; a scenario without checks proves nothing",
                path.display()
            );
        }
        let timeout = match values("timeout").last() {
            Some(seconds) => seconds.parse().with_context(|| format!("{}: '# timeout:'", path.display()))?,
            None => 120,
        };
        let mut machine: Vec<_> = values("lab").iter().map(|line| (*line).to_owned()).collect();
        machine.sort();
        Ok(Self {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            path: path.to_owned(),
            expected,
            timeout,
            machine,
            nightly: head.contains(&"# nightly"),
        })
    }

    /// What is wrong with a run of the scenario; nothing when it printed exactly what it announced, all of it good,
    /// and ended well.
    pub fn judge(&self, output: &str, ended_well: bool) -> Vec<String> {
        let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
        let mut failures = Vec::new();
        for line in output.lines() {
            if let Some(rest) = line.strip_prefix("not ok ") {
                *seen.entry(name(rest)).or_default() += 1;
                failures.push(rest.to_owned());
            } else if let Some(rest) = line.strip_prefix("ok ") {
                *seen.entry(name(rest)).or_default() += 1;
            }
        }
        for expected in &self.expected {
            match seen.remove(expected.as_str()) {
                None => failures.push(format!("{expected}: not reported")),
                Some(1) => {}
                Some(times) => failures.push(format!("{expected}: reported {times} times")),
            }
        }
        failures.extend(seen.keys().map(|name| format!("{name}: reported but not announced in the head")));
        if failures.is_empty() && !ended_well {
            failures.push("the script failed although all its checks are good".to_owned());
        }
        failures
    }
}

/// The name in `NAME - remark`, `NAME: why` and `NAME`.
fn name(rest: &str) -> &str {
    rest.split([' ', ':']).next().unwrap_or(rest)
}

/// The scenarios of a folder, in the order of their names.
pub fn read_folder(folder: &Path) -> Result<Vec<Job>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sh") {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| Job::parse(path, &std::fs::read_to_string(path)?)).collect()
}

/// The jobs that can share a machine, together.
pub fn by_machine(jobs: Vec<Job>) -> Vec<Vec<Job>> {
    let mut groups: BTreeMap<Vec<String>, Vec<Job>> = BTreeMap::new();
    for job in jobs {
        groups.entry(job.machine.clone()).or_default().push(job);
    }
    groups.into_values().collect()
}

/// Whether the lab came to this job.
pub fn was_started(console: &str, job: &str) -> bool {
    console.contains(&format!("# job {job}\n"))
}

/// What one job of several printed on the lab's console, and whether it ended with status 0.
pub fn section<'a>(console: &'a str, job: &str) -> (&'a str, bool) {
    let start = format!("# job {job}\n");
    let end = format!("# job {job} ended with status ");
    let Some((_, rest)) = console.split_once(&start) else { return ("", false) };
    match rest.split_once(&end) {
        Some((output, status)) => (output, status.lines().next() == Some("0")),
        None => (rest, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        let head = "# About.\n# expect: a b\n# expect: c\n# timeout: 7\n# lab: MEM=1\n\necho\n# expect: no\n";
        Job::parse(Path::new("x/some.sh"), head).unwrap()
    }

    #[test]
    fn the_head_is_read_and_nothing_after_it() {
        let job = job();
        assert_eq!(job.name, "some");
        assert_eq!(job.expected, ["a", "b", "c"]);
        assert_eq!(job.timeout, 7);
        assert_eq!(job.machine, ["MEM=1"]);
        assert!(!job.nightly);
        assert!(Job::parse(Path::new("x.sh"), "echo ok\n").is_err());
    }

    #[test]
    fn only_what_was_announced_and_all_of_it_is_good() {
        let job = job();
        assert_eq!(job.judge("ok a\n# note\nok b - 3 ms\nok c\n", true), [""; 0]);
        assert_eq!(job.judge("ok a\nnot ok b: no\nok c\n", false), ["b: no"]);
        assert_eq!(job.judge("ok a\nok c\n", true), ["b: not reported"]);
        assert_eq!(job.judge("ok a\nok a\nok b\nok c\n", true), ["a: reported 2 times"]);
        assert_eq!(
            job.judge("ok a\nok b\nok c\nok d\n", true),
            ["d: reported but not announced in the head"]
        );
        assert_eq!(job.judge("ok a\nok b\nok c\n", false).len(), 1);
        assert_eq!(job.judge("", true).len(), 3);
    }

    #[test]
    fn jobs_of_one_machine_are_told_apart() {
        let console = "# job a\nok x\n# job a ended with status 0\n# job b\nok y\n";
        assert_eq!(section(console, "a"), ("ok x\n", true));
        assert_eq!(section(console, "b"), ("ok y\n", false));
        assert_eq!(section(console, "c"), ("", false));
        assert!(was_started(console, "b") && !was_started(console, "c"));
    }
}
