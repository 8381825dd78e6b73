//! DPDK's testpmd, in two roles: forwarder (`net_vhost`, the yardstick) and generator (`virtio_user`). Commands go to its
//! standard input, answers are read from its log.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::load::Load;
use super::process::Process;

/// Printed when it waits for a command.
const PROMPT: &str = "testpmd> ";
const ANSWER: Duration = Duration::from_secs(10);
const START: Duration = Duration::from_secs(30);
/// Frames that testpmd handles at once.
const BURST: u32 = 32;
/// Bursts that are sent first on each queue.
const BURSTS: u32 = 16;
/// Descriptors of each ring: the most that QEMU gives a guest.
const RING: u32 = 1024;

/// Frames that the generator puts into each queue pair's loop: they are under way all the time.
pub const IN_FLIGHT: u32 = BURST * BURSTS;

/// A build of testpmd.
#[derive(Clone, Debug)]
pub struct Build {
    /// What it is called in tables.
    pub name: String,
    /// The program: a path, or a name in the PATH.
    pub program: String,
}

/// A testpmd that listens to commands.
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
    ports: usize,
}

/// Counters of all ports of a generator.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PortStatistics {
    /// Frames received since it started.
    pub received: u64,
    /// Frames sent since it started.
    pub sent: u64,
    /// Frames received a second since these counters were asked for last, by testpmd's own clock.
    pub rate: f64,
}

impl Testpmd {
    fn start(
        build: &Build,
        folder: &Path,
        name: &str,
        cpu: usize,
        devices: &[String],
        load: &Load,
        more: &[&str],
    ) -> Result<Self> {
        let ports = devices.len();
        // Rings full of buffers, all frames under way, and some for caches.
        let mbufs = ports as u32 * load.pairs * (2 * RING + IN_FLIGHT) + 2048;
        // A header of 128 bytes, the headroom of 128 and the frame, in mbufs of a pool that has other overhead, too.
        let buffer = if load.size > 1518 { load.size.next_multiple_of(128) + 128 } else { 2048 + 128 };
        let memory = ((u64::from(mbufs) * u64::from(buffer + 512)) >> 20) + 64;
        // Line by line, as for a person: into a file its library would write blocks.
        let mut words: Vec<String> = ["stdbuf", "-oL", &build.program].map(str::to_owned).to_vec();
        words.extend([format!("--lcores=0@{cpu},1@{cpu}"), "-m".to_owned(), memory.to_string()]);
        words.extend(["--no-huge", "--no-pci", "--no-telemetry"].map(str::to_owned));
        words.push(format!("--file-prefix={name}{}", std::process::id()));
        words.extend(devices.iter().map(|device| format!("--vdev={device}")));
        words.extend(["--", "--interactive", "--no-mlockall", "--forward-mode=io"].map(str::to_owned));
        words.extend([format!("--total-num-mbufs={mbufs}"), format!("--mbuf-size={buffer}")]);
        words.extend([format!("--rxd={RING}"), format!("--txd={RING}")]);
        words.extend([format!("--rxq={}", load.pairs), format!("--txq={}", load.pairs)]);
        words.push(format!("--port-topology={}", if ports == 1 { "loop" } else { "paired" }));
        if load.size > 1518 {
            words.push(format!("--max-pkt-len={}", load.size + 18));
        }
        words.extend(more.iter().map(|&word| word.to_owned()));
        let process = Process::start(folder, name, &words, false)?;
        let mut testpmd = Self { process, ports };
        testpmd.process.wait_for(0, START, "its prompt", |log| log.contains(PROMPT).then_some(()))?;
        Ok(testpmd)
    }

    /// A forwarder that serves these sockets: one sends back what comes, two are joined.
    pub fn forwarder(
        build: &Build,
        folder: &Path,
        name: &str,
        cpu: usize,
        sockets: &[String],
        load: &Load,
    ) -> Result<Self> {
        let device = |(n, path): (usize, &String)| format!("net_vhost{n},iface={path},queues={}", load.pairs);
        let devices: Vec<_> = sockets.iter().enumerate().map(device).collect();
        let more = ["--record-core-cycles", "--no-flush-rx", "--disable-link-check"];
        let mut testpmd = Self::start(build, folder, name, cpu, &devices, load, &more)?;
        testpmd.ask("start")?;
        testpmd.ports_are_there()?;
        Ok(testpmd)
    }

    /// A generator that is connected to these sockets, with its frames under way.
    pub fn generator(
        build: &Build,
        folder: &Path,
        name: &str,
        cpu: usize,
        sockets: &[String],
        load: &Load,
    ) -> Result<Self> {
        let (pairs, packed, in_order) =
            (load.pairs, u8::from(load.ring.packed()), u8::from(load.ring.in_order()));
        let device = |(n, path): (usize, &String)| {
            format!(
                "net_virtio_user{n},path={path},queues={pairs},queue_size={RING},mac=52:54:00:00:00:{n:02x},\
                 packed_vq={packed},mrg_rxbuf=1,in_order={in_order}"
            )
        };
        let devices: Vec<_> = sockets.iter().enumerate().map(device).collect();
        let mut testpmd = Self::start(build, folder, name, cpu, &devices, load, &[])?;
        testpmd.ask(&format!("set txpkts {}", load.size))?;
        testpmd.ask(&format!("set burst {BURST}"))?;
        // Where a ring is full it waits: a frame that it dropped would be missing from then on.
        testpmd.ask("set burst tx delay 1 retry 10000000")?;
        testpmd.ask("set fwd io retry")?;
        testpmd.ask(&format!("start tx_first {BURSTS}"))?;
        testpmd.ports_are_there()?;
        Ok(testpmd)
    }

    /// A device that could not be made is no error for testpmd.
    fn ports_are_there(&mut self) -> Result<()> {
        let wanted = format!("ports={} ", self.ports);
        self.process.wait_for(0, ANSWER, "all its devices forward", |log| log.contains(&wanted).then_some(()))
    }

    /// Gives it a command and returns what it says until its next prompt.
    fn ask(&mut self, command: &str) -> Result<String> {
        let before = self.process.logged();
        self.process.tell(command)?;
        let complete = |log: &str| log.contains(PROMPT).then(|| log.to_owned());
        self.process.wait_for(before, ANSWER, &format!("an answer to '{command}'"), complete)
    }

    /// Counters of all its ports.
    pub fn statistics(&mut self) -> Result<PortStatistics> {
        parse_ports(&self.ask("show port stats all")?)
    }

    /// Begins to count cycles anew.
    pub fn clear_cycles(&mut self) -> Result<()> {
        self.ask("clear fwd stats all").map(|_| ())
    }

    /// TSC cycles of rounds in which frames came, for each frame forwarded; none when there was none.
    pub fn cycles(&mut self) -> Result<Option<f64>> {
        Ok(parse_cycles(&self.ask("show fwd stats all")?))
    }

    /// The program.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

fn parse_ports(text: &str) -> Result<PortStatistics> {
    let sum = |key: &str| -> Option<u64> {
        let values = text.match_indices(key).map(|(at, _)| {
            text[at + key.len()..].split_whitespace().next().and_then(|word| word.parse::<u64>().ok())
        });
        values.reduce(|sum, value| Some(sum? + value?)).flatten()
    };
    let numbers = || Some((sum("RX-packets:")?, sum("TX-packets:")?, sum("Rx-pps:")?));
    let (received, sent, rate) = numbers().context("testpmd printed no port statistics")?;
    Ok(PortStatistics { received, sent, rate: rate as f64 })
}

fn parse_cycles(text: &str) -> Option<f64> {
    let (_, rest) = text.split_once("CPU cycles/packet=")?;
    rest.split([' ', '(']).next()?.parse().ok()
}

/// The version that a build names itself by: the only thing about it that the page says, besides its name.
pub fn version(build: &Build) -> Result<String> {
    let output = std::process::Command::new("timeout")
        .args([
            "10",
            &build.program,
            "-v",
            "--in-memory",
            "-m",
            "64",
            "--no-huge",
            "--no-pci",
            "--no-telemetry",
        ])
        .args(["--", "--help"])
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", build.program))?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let Some((_, rest)) = text.split_once("RTE Version:") else {
        bail!("{} does not tell its version: {}", build.program, text.trim().replace('\n', " | "));
    };
    Ok(rest.lines().next().unwrap_or_default().trim_matches([' ', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ports_of_a_generator_are_summed_up() {
        let port = |n: u64| {
            format!(
                "  #### NIC statistics for port {n}  ####\n  RX-packets: {}    RX-missed: 0          RX-bytes:  3\n\
                 RX-errors: 0\n  RX-nombuf:  0\n  TX-packets: {}    TX-errors: 0   TX-bytes:  7\n\n\
                 Throughput (since last show)\n  Rx-pps:      {}          Rx-bps:    52\n  Tx-pps:  9  Tx-bps:  8\n",
                1000 + n,
                2000 + n,
                500 + n
            )
        };
        let text = format!("show port stats all\n{}{}testpmd> ", port(0), port(1));
        let sum = PortStatistics { received: 2001, sent: 4001, rate: 1001.0 };
        assert_eq!(parse_ports(&text).unwrap(), sum);
        assert!(parse_ports("Bad arguments\ntestpmd> ").is_err());
    }

    #[test]
    fn cycles_are_there_when_frames_were() {
        let line = "\n  CPU cycles/packet=817.22 (total cycles=2254920774 / total io packets=2759260) at 2300 MHz Clock";
        assert_eq!(parse_cycles(line), Some(817.22));
        assert_eq!(parse_cycles("RX-packets: 0"), None);
    }
}
