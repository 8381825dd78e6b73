//! A daemon of the mind, on a real socket, and the real tools against it.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use control::Daemon;
use control::api::{
    AddDevice, Counters, Cpus, Device, DeviceSpec, DeviceState, DirectionStatistics, Guest, GuestState, Link,
    Problem, ProblemCode, Relay, RelayStatistics, RemoveDevice, Version, Worker, drops,
};
use control::server::{RunningServer, Server, ServerConfig};
use tempfile::TempDir;

/// Relays in memory.
pub struct FakeDaemon {
    pub relays: Mutex<Vec<Relay>>,
    /// Frames counted; grows with every look.
    pub frames: Mutex<u64>,
    /// How much it grows.
    pub growth: u64,
    /// How long adding takes.
    pub slowness: Duration,
}

impl FakeDaemon {
    /// Relay 0 carries frames, 1 is empty, 2 has a VM and no device, 3 has no socket.
    pub fn new() -> Self {
        let relay =
            |id| Relay { id, socket: Some(format!("/tmp/x/virtio-forwarder{id}.sock")), ..Relay::default() };
        let vf = Device {
            name: "0000:01:10.0".to_owned(),
            pci_addr: "0000:01:10.0".parse().ok(),
            driver: "igbvf".to_owned(),
            mac: Some("52:54:00:00:00:01".to_owned()),
            link: Link { up: true, speed: Some(1000) },
            max_frame: 9234,
            ..Device::default()
        };
        let guest = Some(Guest::new(1 << 32, 1, None));
        let relays = vec![
            Relay {
                active: true,
                guest_state: GuestState::Ready,
                device_state: DeviceState::Ready,
                guest: guest.clone(),
                device: Some(vf),
                cpus: Cpus { vf_to_vm: Some(1), vm_to_vf: Some(1) },
                ..relay(0)
            },
            relay(1),
            Relay {
                guest_state: GuestState::Ready,
                guest,
                cpus: Cpus { vf_to_vm: None, vm_to_vf: Some(2) },
                ..relay(2)
            },
            Relay { socket: None, ..relay(3) },
        ];
        Self { relays: Mutex::new(relays), frames: Mutex::new(1003), growth: 0, slowness: Duration::ZERO }
    }

    fn with<T>(&self, id: u32, work: impl FnOnce(&mut Relay) -> Result<T, Problem>) -> Result<T, Problem> {
        let mut relays = self.relays.lock().unwrap();
        let count = relays.len() as u32;
        work(relays.get_mut(id as usize).ok_or_else(|| Problem::no_relay(id, count))?)
    }
}

impl Daemon for FakeDaemon {
    fn relays(&self) -> Result<Vec<Relay>, Problem> {
        Ok(self.relays.lock().unwrap().clone())
    }

    fn relay(&self, id: u32) -> Result<Relay, Problem> {
        self.with(id, |relay| Ok(relay.clone()))
    }

    fn add_device(&self, id: u32, request: &AddDevice) -> Result<(), Problem> {
        std::thread::sleep(self.slowness);
        let name = request.device.to_string();
        let in_use = self.relays()?.iter().any(|relay| relay.device.as_ref().is_some_and(|d| d.name == name));
        self.with(id, |relay| {
            let pci_addr = match request.device {
                DeviceSpec::Vf(address) if address.bus == 0x99 => {
                    return Err(Problem::new(
                        ProblemCode::DeviceNotFound,
                        format!("there is no device {name}"),
                    ));
                }
                DeviceSpec::Vf(address) => Some(address),
                _ => None,
            };
            if let Some(device) = &relay.device {
                if request.conditional && device.name == name {
                    return Ok(());
                }
                let detail = format!("relay {id} already has {}", device.name);
                return Err(Problem::new(ProblemCode::RelayOccupied, detail).with_remedy("remove it first"));
            }
            if in_use {
                return Err(Problem::new(
                    ProblemCode::DeviceInUse,
                    format!("{name} belongs to another relay"),
                ));
            }
            relay.device = Some(Device { name, pci_addr, driver: "fake".to_owned(), ..Device::default() });
            relay.device_state = DeviceState::Added;
            Ok(())
        })
    }

    fn remove_device(&self, id: u32, request: &RemoveDevice) -> Result<(), Problem> {
        self.with(id, |relay| {
            match (&relay.device, &request.device) {
                (None, _) if request.conditional => return Ok(()),
                (None, _) => {
                    return Err(Problem::new(ProblemCode::NoDevice, format!("relay {id} has no device")));
                }
                (Some(present), Some(named)) if present.name != named.to_string() => {
                    let detail = format!("relay {id} has {}, not {named}", present.name);
                    return Err(Problem::new(ProblemCode::DeviceMismatch, detail));
                }
                _ => {}
            }
            relay.device = None;
            relay.device_state = DeviceState::Uninit;
            Ok(())
        })
    }

    fn statistics(&self, ids: &[u32], include_inactive: bool) -> Result<Vec<RelayStatistics>, Problem> {
        let frames = {
            let mut frames = self.frames.lock().unwrap();
            *frames += self.growth;
            *frames
        };
        let relays = self.relays()?.into_iter();
        let wanted = relays
            .filter(|relay| ids.is_empty() || ids.contains(&relay.id))
            .filter(|relay| include_inactive || relay.active);
        Ok(wanted.map(|relay| statistics(relay, frames)).collect())
    }

    fn workers(&self) -> Result<Vec<Worker>, Problem> {
        let worker =
            Worker { cpu: 1, relays: vec![0], cycles: 100, busy_cycles: 50, frames: 2, ..Worker::default() };
        Ok(vec![worker.with_shares()])
    }

    fn version(&self) -> Result<Version, Problem> {
        Ok(Version { name: "virtio-forwarder".to_owned(), version: "1.2.3".to_owned() })
    }

    fn metrics_text(&self) -> Result<String, Problem> {
        Ok("# TYPE relays gauge\nrelays 4\n# EOF\n".to_owned())
    }
}

fn statistics(relay: Relay, frames: u64) -> RelayStatistics {
    let counters = |packets, bytes| Counters {
        rx_packets: packets,
        rx_bytes: bytes,
        tx_packets: packets,
        tx_bytes: bytes,
    };
    let from_device = relay.device_state.is_active();
    let from_guest = relay.guest_state.is_active();
    let own = |(reason, count): (&str, u64)| (reason.to_owned(), count);
    // A direction of which nobody has taken a frame yet counts zeros.
    let carried = u64::from(relay.active);
    RelayStatistics {
        id: relay.id,
        active: relay.active,
        socket: relay.socket,
        device: relay.device.as_ref().map(|device| device.name.clone()),
        pci_addr: relay.device.as_ref().and_then(|device| device.pci_addr),
        numa_node: Some(0),
        cpus: relay.cpus,
        vf_to_vm: DirectionStatistics {
            active: from_device,
            internal_state: relay.device_state,
            counters: from_device.then(|| counters(frames * carried, 98218 * carried)),
            drops: [(drops::GUEST_QUEUE_FULL, 0), ("too_long", 5)]
                .into_iter()
                .filter(|_| from_device)
                .map(own)
                .collect(),
            rates: None,
        },
        vm_to_vf: DirectionStatistics {
            active: from_guest,
            internal_state: relay.guest_state,
            counters: from_guest.then(|| counters(1002 * carried, 98158 * carried)),
            drops: [(drops::VF_NOT_CONNECTED, 17 * (1 - carried))]
                .into_iter()
                .filter(|_| from_guest)
                .map(own)
                .collect(),
            rates: None,
        },
        device_statistics: None,
    }
}

/// A served daemon with a directory of its own.
pub struct House {
    pub directory: TempDir,
    pub socket: PathBuf,
    pub server: Option<RunningServer>,
}

/// What a tool printed, and its exit code.
#[derive(Debug, PartialEq)]
pub struct Said {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl House {
    pub fn new() -> Self {
        Self::of(FakeDaemon::new(), |_| {})
    }

    pub fn of(daemon: FakeDaemon, configure: impl FnOnce(&mut ServerConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("control.sock");
        let mut config = ServerConfig::new(&socket);
        configure(&mut config);
        let server = Server::bind(&config).unwrap().spawn(Arc::new(daemon)).unwrap();
        Self { directory, socket, server: Some(server) }
    }

    /// Runs the tool `name` on the words of `line`.
    pub fn run(&self, name: &str, line: &str) -> Said {
        let link = self.directory.path().join(name);
        if !link.exists() {
            symlink(env!("CARGO_BIN_EXE_port_control"), &link).unwrap();
        }
        let output = Command::new(link)
            .args(line.split_whitespace())
            .env("VIRTIOFWD_CONTROL_SOCKET", &self.socket)
            .output()
            .unwrap();
        said(&output)
    }

    pub fn port_control(&self, line: &str) -> Said {
        self.run("port_control", line)
    }

    /// Sends bytes, closes the sending side, and reads until the server closes.
    pub fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // The server may have seen enough before the end.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        String::from_utf8_lossy(&reply).into_owned()
    }

    /// One request as curl sends it; status and body of the reply.
    pub fn request(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let reply = self.raw(request.as_bytes());
        let status = reply.get(9..12).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = reply.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        (status, body)
    }
}

fn said(output: &Output) -> Said {
    Said {
        stdout: String::from_utf8(output.stdout.clone()).unwrap(),
        stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        code: output.status.code().unwrap_or(-1),
    }
}
