//! The commands about this machine, as far as they can be shown on any: words, exit statuses, JSON. What they do is shown on
//! recorded machines (crate `host`) and in the lab.

mod common;

use common::House;

#[test]
fn wrong_words_exit_with_2_and_show_how_they_are_written() {
    let house = House::new();
    for (line, words) in [
        ("bind", "DEVICE"),
        ("bind 0000:01:00", "NETDEV:COUNT"),
        ("bind eth0:0", "NETDEV:COUNT"),
        ("unbind 0000:01:00.9", "0000:02:08.0"),
        ("vfs create eth0", "COUNT"),
        ("vfs create 0000:01:00.9 2", "is not a PCI address"),
        ("vfs set 0000:01:00.9 --mac 52:54:00:00:00:01", "is not a PCI address"),
        ("vfs set 0000:01:10.0 --mac 52:54", "--mac"),
        ("vfs set 0000:01:10.0 --vlan x", "a VLAN is written 100"),
        ("vfs set 0000:01:10.0 --trust maybe", "on, off"),
        ("noiommu maybe", "subcommand"),
    ] {
        let said = house.port_control(line);
        assert_eq!((said.code, said.stdout.as_str()), (2, ""), "{line}: {said:?}");
        assert!(said.stderr.contains(words), "{line}: {}", said.stderr);
    }
}

#[test]
fn what_is_not_there_exits_with_1_and_is_named() {
    let house = House::new();
    for (line, words) in [
        ("bind 0000:ff:1f.7", "no PCI device 0000:ff:1f.7"),
        ("bind nosuchnic", "no network interface 'nosuchnic'"),
        ("unbind 0000:ff:1f.7", "lspci -D"),
        ("vfs create nosuchnic 2", "ip link"),
        ("vfs set 0000:ff:1f.7 --mac 52:54:00:00:00:01", "no PCI device"),
        ("vfs persist lo 2", "no PCI function"),
        ("rebind /nonexistent/list", "cannot read the list of devices '/nonexistent/list'"),
    ] {
        let said = house.port_control(line);
        assert_eq!((said.code, said.stdout.as_str()), (1, "status: ERROR\n"), "{line}: {said:?}");
        assert!(said.stderr.starts_with("error: ") && said.stderr.contains(words), "{line}: {}", said.stderr);
        let said = house.port_control(&format!("{line} --json"));
        let json: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
        assert_eq!((said.code, json["status"].as_str()), (1, Some("ERROR")));
        assert!(json["detail"].as_str().unwrap().contains(words), "{json}");
    }
}

#[test]
fn looking_works_without_root_and_without_a_daemon() {
    let house = House::new();
    let said = house.port_control("doctor --json --control-socket /nonexistent/control.sock");
    let findings: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let expected = match findings["status"].as_str().unwrap() {
        "ok" => 0,
        "warning" => 1,
        _ => 2,
    };
    assert_eq!(said.code, expected);
    let daemon = findings["items"].as_array().unwrap().last().unwrap();
    assert_eq!((daemon["subject"].as_str(), daemon["status"].as_str()), (Some("daemon"), Some("warning")));
    let said = house.port_control("vfs list --json");
    assert!(
        serde_json::from_str::<serde_json::Value>(&said.stdout).unwrap()["physical_functions"].is_array()
    );
    assert!(house.port_control("noiommu status").stdout.starts_with("no-IOMMU mode is "));
}

#[test]
fn the_doctor_knows_the_daemon_that_runs() {
    let said = House::new().port_control("doctor --json");
    let findings: serde_json::Value = serde_json::from_str(&said.stdout).unwrap();
    let daemon = findings["items"].as_array().unwrap().last().unwrap();
    assert_eq!(daemon["subject"].as_str(), Some("daemon"));
    assert!(!daemon["found"].as_str().unwrap().contains("no daemon answers"), "{daemon}");
}
