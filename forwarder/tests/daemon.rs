//! What the control socket gets to see and do: states, codes, drops and CPUs as users know them.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use control::Daemon;
use control::api::{AddDevice, DeviceSpec, DeviceState, GuestState, ProblemCode, RemoveDevice};
use forwarder::daemon::Forwarder;
use forwarder::guests::Guests;
use forwarder::worker::{Idle, Worker};
use pmd::VfOptions;
use relay::Relay;
use relay::relay::Placement;

/// Two relays without sockets, and the worker that must outlive them.
fn forwarder() -> (Forwarder, Worker) {
    let cpu = forwarder::config::Machine::this().allowed.into_iter().next().unwrap();
    let worker = Worker::start(cpu, Idle::default()).unwrap();
    let placement = Placement { vf_to_vm: worker.handle().clone(), vm_to_vf: worker.handle().clone() };
    let relays = (0..2).map(|id| Arc::new(Relay::new(id, placement.clone()))).collect();
    let forwarder = Forwarder::new(relays, Vec::new(), VfOptions::default(), Guests::default());
    (forwarder.with_workers([&worker]), worker)
}

fn device(name: &str) -> DeviceSpec {
    name.parse().unwrap()
}

fn add(daemon: &Forwarder, id: u32, name: &str, conditional: bool) -> Result<(), ProblemCode> {
    let request = AddDevice { device: device(name), conditional };
    daemon.add_device(id, &request).map_err(|problem| problem.code)
}

fn remove(daemon: &Forwarder, id: u32, name: Option<&str>, conditional: bool) -> Result<(), ProblemCode> {
    let request = RemoveDevice { device: name.map(device), conditional };
    daemon.remove_device(id, &request).map_err(|problem| problem.code)
}

#[test]
fn a_device_is_added_seen_and_removed() {
    let (daemon, _worker) = forwarder();
    assert_eq!(daemon.relay(1).unwrap().device_state, DeviceState::Uninit);
    add(&daemon, 1, "null", false).unwrap();
    let relay = daemon.relay(1).unwrap();
    assert_eq!((relay.device_state, relay.guest_state), (DeviceState::Added, GuestState::Uninit));
    assert_eq!((relay.active, relay.cpus.vf_to_vm), (false, None));
    assert_eq!(relay.device.unwrap().driver, "null");
    remove(&daemon, 1, Some("null"), false).unwrap();
    assert!(daemon.relay(1).unwrap().device.is_none());
    daemon.stop();
}

#[test]
fn what_cannot_be_done_has_the_code_that_says_why() {
    let (daemon, _worker) = forwarder();
    assert_eq!(add(&daemon, 2, "null", false), Err(ProblemCode::RelayNotFound));
    assert_eq!(remove(&daemon, 0, None, false), Err(ProblemCode::NoDevice));
    assert_eq!(remove(&daemon, 0, None, true), Ok(()));
    add(&daemon, 0, "loopback", false).unwrap();
    assert_eq!(add(&daemon, 0, "null", false), Err(ProblemCode::RelayOccupied));
    assert_eq!(add(&daemon, 0, "null", true), Err(ProblemCode::RelayOccupied), "another device");
    assert_eq!(add(&daemon, 0, "loopback", true), Ok(()), "the same");
    assert_eq!(remove(&daemon, 0, Some("null"), true), Err(ProblemCode::DeviceMismatch));
    assert_eq!(add(&daemon, 1, "ffff:ff:1f.7", false), Err(ProblemCode::DeviceNotFound));
    let folder = tempfile::tempdir().unwrap();
    let no_capture = folder.path().join("frames");
    std::fs::write(&no_capture, "no frames at all").unwrap();
    let no_capture = format!("pcap:{}", no_capture.display());
    assert_eq!(add(&daemon, 1, &no_capture, false), Err(ProblemCode::DeviceUnsupported));
    assert_eq!(add(&daemon, 1, "null", false), Ok(()), "a device that could not be opened leaves no trace");
    daemon.stop();
    assert!(daemon.relays().unwrap().iter().all(|relay| relay.device.is_none()));
}

#[test]
fn a_cable_to_another_vm_has_a_socket_that_nobody_else_has() {
    let (daemon, _worker) = forwarder();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vm.sock");
    let name = format!("vhost-user:{}", socket.display());
    add(&daemon, 0, &name, false).unwrap();
    assert_eq!(add(&daemon, 0, &name, true), Ok(()), "the same");
    let relay = daemon.relay(0).unwrap();
    let cable = relay.device.unwrap();
    assert_eq!((relay.device_state, cable.guest_state), (DeviceState::Added, Some(GuestState::Uninit)));
    assert_eq!((cable.name.as_str(), cable.guest, cable.link.up), (name.as_str(), None, false));
    let text = daemon.metrics_text().unwrap();
    assert!(text.contains(r#"virtio_forwarder_far_guest_ready{relay="0"} 0"#), "{text}");
    assert!(!text.contains(r#"far_guest_ready{relay="1"}"#), "{text}");

    let other_spelling = format!("vhost-user:{}/./vm.sock", folder.path().display());
    assert_eq!(add(&daemon, 1, &other_spelling, false), Err(ProblemCode::DeviceInUse));
    assert_eq!(add(&daemon, 1, "vhost-user:vm.sock", false), Err(ProblemCode::DeviceNotReady));
    assert!(socket.exists());
    remove(&daemon, 0, Some(&name), false).unwrap();
    assert!(!socket.exists());
    add(&daemon, 1, &other_spelling, false).unwrap();
    daemon.stop();
    assert!(!socket.exists());
}

#[test]
fn statistics_leave_out_what_is_not_active_unless_asked() {
    let (daemon, _worker) = forwarder();
    add(&daemon, 1, "null", false).unwrap();
    assert!(daemon.statistics(&[], false).unwrap().is_empty());
    let all = daemon.statistics(&[], true).unwrap();
    assert_eq!(all.len(), 2);
    assert!(all[0].vf_to_vm.counters.is_none() && all[0].vf_to_vm.drops.is_empty());
    assert_eq!((all[1].vf_to_vm.active, all[1].vm_to_vf.active), (true, false));
    assert!(all[1].vf_to_vm.counters.is_some() && all[1].vf_to_vm.drops.contains_key("guest_queue_full"));
    assert_eq!(daemon.statistics(&[1], true).unwrap().len(), 1);
    daemon.stop();
}

#[test]
fn metrics_name_relay_direction_queue_and_reason() {
    let (daemon, _worker) = forwarder();
    let text = daemon.metrics_text().unwrap();
    let line = r#"virtio_forwarder_dropped_frames_total{relay="1",direction="vm_to_vf",queue="0",reason="vf_not_connected"} 0"#;
    assert!(text.contains(line), "{text}");
    assert!(text.trim_end().ends_with("# EOF"));
}

#[test]
fn a_worker_is_told_of_with_its_relays_and_figures() {
    let (daemon, worker) = forwarder();
    let workers = daemon.workers().unwrap();
    assert_eq!(workers.len(), 1);
    let told = &workers[0];
    assert_eq!((told.cpu as usize, &*told.relays), (worker.handle().cpu, &[0, 1][..]));
    assert!(told.cycles > 0 && told.frames == 0 && told.busy_cycles_per_frame.is_none());
    let line = format!(r#"virtio_forwarder_worker_busy_cycles_total{{cpu="{}"}} 0"#, told.cpu);
    let text = daemon.metrics_text().unwrap();
    assert!(text.contains(&line), "{text}");
}
