//! The C daemon's tools by their names: output byte for byte, as measured on the C daemon.

mod common;

use common::House;

#[test]
fn statistics_are_those_of_the_c_tool() {
    let house = House::new();
    let stats = |line: &str| house.run("virtioforwarder_stats.py", line);
    assert_eq!(stats("").stdout, include_str!("golden/stats-flat.txt"));
    assert_eq!(stats("-z").stdout, include_str!("golden/stats-flat-nonzero.txt"));
    assert_eq!(stats("--output-format protobuf").stdout, include_str!("golden/stats-protobuf.txt"));
    let said = stats("--include-inactive --delay 1 --stats-ep ipc:///var/run/virtio-forwarder/stats");
    assert_eq!(said.stdout, include_str!("golden/stats-flat-inactive.txt"));
    assert_eq!((said.stderr.as_str(), said.code), ("", 0));
    assert_eq!(stats("--output-format xml").code, 2);
}

#[test]
fn port_control_errors_are_those_of_the_c_tool() {
    let house = House::new();
    let add = |code| {
        format!("status: ERROR\nerror_code: {code}\nerror_code_source: \"virtio_forwarder_add_vf2()\"\n\n")
    };
    let remove = |code| {
        format!("status: ERROR\nerror_code: {code}\nerror_code_source: \"virtio_forwarder_remove_vf2()\"\n\n")
    };
    for (line, expected) in [
        ("add --virtio-id 0 --pci-addr 0000:01:10.1", add(8)),
        ("add --virtio-id 1 --pci-addr 0000:01:10.0", add(4)),
        ("add --virtio-id 1 --pci-addr 0000:99:00.0", add(2)),
        ("add --virtio-id 99 --pci-addr 0000:01:10.0", add(1)),
        ("remove --virtio-id 99 --pci-addr 0000:01:10.0", remove(1)),
        ("remove --virtio-id 0 --pci-addr 0000:01:10.4", remove(3)),
        ("remove --virtio-id 0", remove(3)),
        ("remove --virtio-id 1", remove(4)),
        ("remove --virtio-id 1 --pci-addr 0000:01:10.0", remove(4)),
        (
            "query_pci --vhost-path /tmp/x/nosuch",
            "status: ERROR\nerror_code: 2\nerror_code_source: \"virtio_query_pci()\"\n\n".to_owned(),
        ),
    ] {
        let said = house.run("virtioforwarder_port_control.py", line);
        assert_eq!((said.stdout, said.code), (expected, 1), "{line}");
        // What the C tool did not tell: the cause, for people.
        assert!(said.stderr.starts_with("error ") && said.stderr.contains("): "), "{line}: {}", said.stderr);
    }
}

#[test]
fn port_control_requests_that_are_wrong_in_themselves_have_no_number() {
    let house = House::new();
    for (line, cause) in [
        ("add --virtio-id 2", "--pci-addr is missing"),
        ("add --pci-addr 2:8.0", "--virtio-id is missing"),
        ("add --virtio-id 1 --pci-addr nonsense", "Badly formatted PCI address"),
        ("add --virtio-id 1 --pci-addr 2:8.0 --pci-addr 2:8.1 --name net_bonding0 --mode 1", "bonds"),
        ("add --virtio-id 1 --pci-addr 2:8.0 --send-garbage", "ZeroMQ"),
        ("add_sock --vhost-path /tmp/x --pci-addr 2:8.0", "run time"),
        ("query_pci", "--vhost-path is missing"),
    ] {
        let said = house.run("virtioforwarder_port_control.py", line);
        assert_eq!((said.stdout.as_str(), said.code), ("status: ERROR\n\n", 1), "{line}");
        assert!(said.stderr.contains(cause), "{line}: {}", said.stderr);
    }
    assert_eq!(house.run("virtioforwarder_port_control.py", "frobnicate").code, 2);
    assert_eq!(house.run("virtioforwarder_port_control.py", "add --mode 7").code, 2);
}

#[test]
fn port_control_takes_the_options_of_the_c_tool() {
    let house = House::new();
    let said = house.run(
        "virtioforwarder_port_control.py",
        "add --virtio-id 1 --pci-addr 0000:af:00.0 --conditional --mode 1 --zmq_ep ipc:///x/port_control",
    );
    assert_eq!((said.stdout.as_str(), said.code), ("status: OK\n", 0));
    let said =
        house.run("virtioforwarder_port_control.py", "query_pci --vhost-path /tmp/x/virtio-forwarder1.sock");
    assert_eq!((said.stdout.as_str(), said.code), ("0000:AF:00.0\n", 0));
    house.port_control("add --virtio-id 2 --device tap:vm_a");
    let said =
        house.run("virtioforwarder_port_control.py", "query_pci --vhost-path /tmp/x/virtio-forwarder2.sock");
    assert_eq!((said.stdout.as_str(), said.code), ("tap:vm_a\n", 0));
}

#[test]
fn tools_that_are_not_here_say_so() {
    let house = House::new();
    for name in
        ["virtioforwarder_core_pinner.py", "virtioforwarder_monitor_load.py", "virtioforwarder_config.py"]
    {
        let said = house.run(name, "--anything at all");
        assert_eq!((said.stdout.as_str(), said.code), ("status: ERROR\n\n", 1));
        assert_eq!(said.stderr, format!("error: {name} is not available in this version\n"));
    }
}
