//! Programs that are measured: started with a log, stopped and continued by signals, and ended by their number whatever
//! happens.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How often a log is looked at for an answer.
const LOOK: Duration = Duration::from_millis(2);
/// A program that was asked to end is killed after this time.
const END: Duration = Duration::from_secs(5);

/// A running program. It ends when this is dropped, and when xtask does.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    polite: bool,
}

impl Process {
    /// Starts a program, with its output in `FOLDER/NAME.log`. A `polite` one ends by SIGTERM, another one by SIGKILL.
    pub fn start(folder: &Path, name: &str, words: &[String], polite: bool) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // The kernel kills it when xtask dies, stopped or not.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .args(words)
            .stdin(Stdio::piped())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {}", words.join(" ")))?;
        Ok(Self { name: name.to_owned(), child, log, polite })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn signal(&self, signal: Signal) {
        // Not waited for yet, so the number is still its own.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, signal);
        }
    }

    /// Holds it; it uses no CPU until it is continued.
    pub fn hold(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Writes a line to its standard input.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let name = &self.name;
        let input = self.child.stdin.as_mut().with_context(|| format!("{name} has no standard input"))?;
        writeln!(input, "{line}").with_context(|| format!("{name} does not take commands any more"))
    }

    /// Length of its log in bytes.
    pub fn logged(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |data| data.len())
    }

    /// What it has logged behind `offset`.
    pub fn log_from(&self, offset: u64) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.seek(SeekFrom::Start(offset));
            let _ = file.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `found` finds something in what was logged behind `offset`, and returns that.
    pub fn wait_for<T>(
        &mut self,
        offset: u64,
        limit: Duration,
        what: &str,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            let ended = self.child.try_wait()?;
            if let Some(value) = found(&self.log_from(offset)) {
                return Ok(value);
            }
            if let Some(status) = ended {
                bail!("{} ended with {status} before {what}: {}", self.name, self.last_words());
            }
            if Instant::now() > end {
                bail!("{}: not within {} s: {what}: {}", self.name, limit.as_secs(), self.last_words());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the program has ended by itself.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("{} ended with {status}: {}", self.name, self.last_words());
            }
            std::thread::sleep(LOOK);
        }
        bail!("{} did not end within {} s: {}", self.name, limit.as_secs(), self.last_words())
    }

    /// The end of its log, for people.
    fn last_words(&self) -> String {
        let text = self.log_from(self.logged().saturating_sub(600));
        format!("{} (log: {})", text.trim().replace('\n', " | "), self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.go_on();
        if self.polite {
            self.signal(Signal::TERM);
            let end = Instant::now() + END;
            while Instant::now() < end {
                if let Ok(Some(_)) = self.child.try_wait() {
                    return;
                }
                std::thread::sleep(LOOK);
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time of all threads of a process, as the kernel's scheduler counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Time on a CPU.
    pub ran: Duration,
    /// Time that it was ready and others had its CPU.
    pub waited: Duration,
}

impl Schedule {
    /// Since the threads that are there now began.
    pub fn of(pid: u32) -> Result<Self> {
        let folder = format!("/proc/{pid}/task");
        let mut sum = Self::default();
        for thread in std::fs::read_dir(&folder).with_context(|| format!("cannot read {folder}"))? {
            // A thread may end between the two calls.
            let text = std::fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
            let mut times =
                text.split_whitespace().filter_map(|time| time.parse().ok().map(Duration::from_nanos));
            sum.ran += times.next().unwrap_or_default();
            sum.waited += times.next().unwrap_or_default();
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(command: &str) -> Vec<String> {
        ["sh", "-c", command].map(str::to_owned).to_vec()
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-process-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn it_answers_and_is_gone_when_dropped() {
        let folder = folder("answers");
        let mut process =
            Process::start(&folder, "echo", &words("while read -r x; do echo \"<$x>\"; done"), false)
                .unwrap();
        let id = process.id();
        process.tell("one").unwrap();
        let answer = process
            .wait_for(0, Duration::from_secs(5), "an answer", |text| text.find("<one>").map(|_| text.len()))
            .unwrap();
        assert_eq!(answer as u64, process.logged());
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_program_that_ends_early_is_an_error_with_its_last_words() {
        let folder = folder("early");
        let mut process =
            Process::start(&folder, "short", &words("echo no room >&2; exit 3"), false).unwrap();
        let error = process.wait_for(0, Duration::from_secs(5), "anything", |_| None::<()>).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("before anything") && error.contains("no room"), "{error}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn this_process_has_used_its_cpu() {
        assert!(Schedule::of(std::process::id()).unwrap().ran > Duration::ZERO);
    }

    #[test]
    fn one_that_is_held_ends_too() {
        let folder = folder("held");
        let process = Process::start(&folder, "sleep", &words("exec sleep 100"), true).unwrap();
        process.hold();
        let start = Instant::now();
        drop(process);
        assert!(start.elapsed() < END, "SIGTERM reached it");
        std::fs::remove_dir_all(folder).unwrap();
    }
}
