//! The daemon as a forwarder to be measured: the release build, with one worker.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::process::Process;
use crate::tools;

const START: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_micros(200);

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    folder: PathBuf,
    cpu: usize,
    /// From the start of the program until all sockets listened.
    pub start: Duration,
}

/// Figures of the worker since it started. `None` where this build has none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Cycles of the time stamp counter in polls that found work.
    pub cycles: Option<f64>,
    /// Frames moved.
    pub frames: Option<f64>,
    /// Rounds over all relays.
    pub polls: Option<f64>,
    /// Those that found nothing.
    pub empty_polls: Option<f64>,
}

impl Work {
    /// TSC cycles of a frame, since `before`.
    pub fn cycles_since(&self, before: &Self) -> Option<f64> {
        let frames = self.frames? - before.frames?;
        (frames > 0.0).then_some((self.cycles? - before.cycles?) / frames)
    }

    /// Share of polls that found nothing, since `before`.
    pub fn empty_since(&self, before: &Self) -> Option<f64> {
        let (polls, empty) = (self.polls? - before.polls?, self.empty_polls? - before.empty_polls?);
        (polls > 0.0).then_some(empty / polls)
    }
}

impl Daemon {
    /// Starts it with one worker and `relays` relays, and waits until all their sockets listen. Its files are in
    /// `RUN/NAME`, its log in `LOGS/NAME.log`.
    pub fn start(
        binaries: &Path,
        run: &Path,
        logs: &Path,
        name: &str,
        cpu: usize,
        relays: usize,
        more: &[String],
    ) -> Result<Self> {
        let folder = run.join(name);
        std::fs::create_dir_all(&folder)?;
        let text = |path: &Path| path.display().to_string();
        let mut words = vec![text(&binaries.join("virtio-forwarder"))];
        words.extend(["--cpus".to_owned(), cpu.to_string(), "--relays".to_owned(), relays.to_string()]);
        words.extend(["--vhost-path".to_owned(), text(&folder.join("vhost"))]);
        words.extend(["--control-socket".to_owned(), text(&folder.join("control.sock"))]);
        words.push("--enable-mrgbuf".to_owned());
        words.extend_from_slice(more);
        let begin = Instant::now();
        let mut process = Process::start(logs, name, &words, true)?;
        let vhost = folder.join("vhost");
        while listening(&std::fs::read_to_string("/proc/net/unix")?, &vhost) < relays {
            if begin.elapsed() > START {
                bail!("the daemon's {relays} sockets do not listen after {} s", START.as_secs());
            }
            process.wait_for(0, START, "its sockets listen", |_| Some(()))?;
            std::thread::sleep(LOOK);
        }
        let start = begin.elapsed();
        let daemon = Self { process, folder, cpu, start };
        daemon.wait_for_control()?;
        Ok(daemon)
    }

    fn wait_for_control(&self) -> Result<()> {
        let begin = Instant::now();
        while let Err(error) = self.metrics() {
            if begin.elapsed() > START {
                return Err(error);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The socket of a relay.
    pub fn socket(&self, relay: usize) -> String {
        self.folder.join("vhost").join(format!("virtio-forwarder{relay}.sock")).display().to_string()
    }

    /// The folder of the relays' sockets.
    pub fn sockets(&self) -> String {
        self.folder.join("vhost").display().to_string()
    }

    fn metrics(&self) -> Result<String> {
        let socket = self.folder.join("control.sock");
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "10", "--unix-socket"]).arg(socket).arg("http://localhost/metrics");
        tools::output(&mut curl)
    }

    /// The worker's figures.
    pub fn work(&self) -> Result<Work> {
        Ok(parse_work(&self.metrics()?, self.cpu))
    }

    /// How many relays have a guest whose rings run.
    pub fn guests(&self) -> Result<usize> {
        let ready = |line: &&str| line.starts_with("virtio_forwarder_guest_ready{") && line.ends_with(" 1");
        Ok(self.metrics()?.lines().filter(ready).count())
    }

    /// The program.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// Sockets in `folder` that listen, by the kernel's table (`/proc/net/unix`: the fourth column has bit 16 of `__SO_ACCEPTCON`).
fn listening(table: &str, folder: &Path) -> usize {
    let prefix = format!("{}/", folder.display());
    let listens = |line: &&str| {
        let mut words = line.split_whitespace();
        words.nth(3) == Some("00010000") && words.last().is_some_and(|path| path.starts_with(&prefix))
    };
    table.lines().filter(listens).count()
}

fn parse_work(metrics: &str, cpu: usize) -> Work {
    let value = |name: &str| -> Option<f64> {
        let of_name = format!("virtio_forwarder_worker_{name}_total{{");
        let of_cpu = format!("cpu=\"{cpu}\"");
        let line = metrics.lines().find(|line| line.starts_with(&of_name) && line.contains(&of_cpu))?;
        line.split_whitespace().last()?.parse().ok()
    };
    Work {
        cycles: value("busy_cycles"),
        frames: value("frames"),
        polls: value("polls"),
        empty_polls: value("empty_polls"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_worker_are_read_from_the_metrics() {
        let text = "virtio_forwarder_worker_busy_cycles_total{cpu=\"2\"} 7\n\
                    virtio_forwarder_worker_busy_cycles_total{cpu=\"1\"} 1000\n\
                    virtio_forwarder_worker_frames_total{cpu=\"1\"} 40\n\
                    virtio_forwarder_worker_polls_total{cpu=\"1\"} 4\n\
                    virtio_forwarder_worker_empty_polls_total{cpu=\"1\"} 1\n";
        let work = parse_work(text, 1);
        assert_eq!(
            work.cycles_since(&parse_work(&text.replace("1000", "0").replace("} 40", "} 0"), 1)),
            Some(25.0)
        );
        let nothing = Work { polls: Some(0.0), empty_polls: Some(0.0), ..work };
        assert_eq!(work.empty_since(&nothing), Some(0.25));
    }

    #[test]
    fn a_build_without_figures_has_no_cycles() {
        let work = parse_work("virtio_forwarder_guest_ready{relay=\"0\"} 1\n", 1);
        assert_eq!(work, Work::default());
        assert_eq!(work.cycles_since(&work), None);
        assert_eq!(work.empty_since(&work), None);
    }

    #[test]
    fn only_sockets_that_listen_are_counted() {
        let table = "Num       RefCount Protocol Flags    Type St Inode Path\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 111 /run/x/virtio-forwarder0.sock\n\
                     0000000000000000: 00000003 00000000 00000000 0001 03 112 /run/x/virtio-forwarder1.sock\n\
                     0000000000000000: 00000002 00000000 00010000 0001 01 113 /run/y/virtio-forwarder0.sock\n\
                     0000000000000000: 00000003 00000000 00000000 0001 03 114\n";
        assert_eq!(listening(table, Path::new("/run/x")), 1);
    }
}
