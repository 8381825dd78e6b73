//! The command line against a served daemon, word for word.

mod common;

use common::{FakeDaemon, House};

const ADD: &str = "add --virtio-id 1 --pci-addr 02:08.0";
const REMOVE: &str = "remove --virtio-id 1 --pci-addr 02:08.0";

#[test]
fn the_walk_through_of_the_guide() {
    let house = House::new();
    for tool in ["port_control", "virtioforwarder_port_control.py"] {
        let said = house.run(tool, ADD);
        assert_eq!((said.stdout.as_str(), said.stderr.as_str(), said.code), ("status: OK\n", "", 0));
        let said = house.run("virtioforwarder_stats.py", "--include-inactive --delay 0");
        let added: Vec<_> = said.stdout.lines().filter(|line| line.contains("DPDK_ADDED")).collect();
        assert_eq!(added, ["relay_1.vf_to_vm.internal_state=DPDK_ADDED"]);
        let said = house.run(tool, REMOVE);
        assert_eq!((said.stdout.as_str(), said.stderr.as_str(), said.code), ("status: OK\n", "", 0));
    }
}

#[test]
fn errors_have_code_cause_and_remedy_on_stderr() {
    let house = House::new();
    let said = house.port_control("add --virtio-id 0 --device tap:vm1");
    assert_eq!(said.stdout, "status: ERROR\n");
    assert_eq!(said.stderr, "error 8 (relay_occupied): relay 0 already has 0000:01:10.0; remove it first\n");
    assert_eq!(said.code, 1);

    let said = house.port_control("remove --virtio-id 99");
    assert_eq!(said.code, 1);
    assert!(said.stderr.starts_with("error 1 (relay_not_found): there is no relay 99"), "{}", said.stderr);
    assert!(said.stderr.contains("0 to 3"), "{}", said.stderr);
}

#[test]
fn wrong_usage_exits_with_2() {
    let house = House::new();
    for line in [
        "",
        "add",
        "add --virtio-id 1",
        "add --virtio-id one --device null",
        "add --virtio-id 1 --device null --pci-addr 2:8.0",
        "add --virtio-id 1 --pci-addr nonsense",
        "add --virtio-id 1 --device eth0",
        "frobnicate",
        "list --loud",
    ] {
        let said = house.port_control(line);
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{line}: {said:?}");
        assert!(!said.stderr.is_empty(), "{line}");
    }
    let said = house.port_control("add --virtio-id one --device null");
    assert!(said.stderr.contains("as in --virtio-id 1"), "{}", said.stderr);
    let said = house.port_control("stats --delay 20000");
    assert!(said.code == 2 && said.stderr.contains("0..=10000"), "{}", said.stderr);
    let said = house.port_control("--version");
    assert_eq!((said.code, said.stdout), (0, format!("port_control {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn conditional_requests_succeed_when_there_is_nothing_to_do() {
    let house = House::new();
    assert_eq!(house.port_control("remove --virtio-id 1").code, 1);
    assert_eq!(house.port_control("remove --virtio-id 1 --conditional").code, 0);
    assert_eq!(house.port_control("add --virtio-id 1 --device null").code, 0);
    assert_eq!(house.port_control("add --virtio-id 1 --device null").code, 1);
    assert_eq!(house.port_control("add --virtio-id 1 --device null --conditional").code, 0);
}

#[test]
fn json_is_json_whatever_happens() {
    let house = House::new();
    for (line, path, value) in [
        ("add --virtio-id 1 --device null --json", "/relay/device/name", "null"),
        ("--json add --virtio-id 1 --device null", "/problem/code", "relay_occupied"),
        ("list --json", "/0/guest/feature_names/0", "version_1"),
        ("stats --json --delay 0", "/0/vf_to_vm/internal_state", "DPDK_READY"),
        ("query_pci --json --vhost-path /tmp/x/virtio-forwarder0.sock", "/device", "0000:01:10.0"),
        ("list --json --control-socket /nonexistent/socket", "/status", "ERROR"),
    ] {
        let said = house.port_control(line);
        let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!(json.pointer(path).and_then(|v| v.as_str()), Some(value), "{line}: {json}");
    }
}

#[test]
fn tables_are_for_people() {
    let house = House::new();
    let list = house.port_control("list").stdout;
    assert_eq!(list, include_str!("golden/list.txt"));
    let stats = house.port_control("stats --include-inactive --delay 0").stdout;
    assert_eq!(stats, include_str!("golden/stats.txt"));
    let stats = house.port_control("stats --virtio-id 1").stdout;
    assert_eq!(stats, "relay 1 is idle; --include-inactive shows it all the same\n");
    let stats = house.port_control("stats --virtio-id 0 --virtio-id 1").stdout;
    assert!(
        stats.contains("vf_to_vm")
            && stats.ends_with("relay 1 is idle; --include-inactive shows it all the same\n")
    );
    let said = house.port_control("stats --virtio-id 77");
    assert_eq!((said.code, said.stdout.as_str()), (1, "status: ERROR\n"));
    assert!(said.stderr.starts_with("error (relay_not_found): there is no relay 77"), "{}", said.stderr);
}

#[test]
fn rates_are_measured_over_the_delay() {
    let daemon = FakeDaemon { growth: 100, ..FakeDaemon::new() };
    let house = House::of(daemon, |_| {});
    let said = house.port_control("stats --virtio-id 0 --delay 100 --json");
    let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let rate = json.pointer("/0/vf_to_vm/rates/rx_packets").and_then(|v| v.as_f64()).unwrap();
    // 100 frames in 0.1 s and a little more.
    assert!((10.0..=1000.0).contains(&rate), "{rate}");
}

#[test]
fn a_daemon_that_is_not_there_is_named_with_the_remedy() {
    let house = House::new();
    let said = house.port_control("list --control-socket /nonexistent/control.sock");
    assert_eq!((said.code, said.stdout.as_str()), (1, "status: ERROR\n"));
    for word in ["/nonexistent/control.sock", "systemctl start virtio-forwarder", "No such file"] {
        assert!(said.stderr.contains(word), "{}", said.stderr);
    }
    let said = house.run("virtioforwarder_stats.py", "--control-socket /nonexistent/control.sock");
    assert_eq!(said.code, 1);
    assert!(said.stderr.contains("systemctl start"), "{}", said.stderr);
}
