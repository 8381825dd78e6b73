//! Binding on recorded machines: what is taken, what is refused, and that a refusal changes nothing.

use super::*;
use crate::daemon::Relay;
use crate::recorded::{Recorded, address, hosts};

const VF: &str = "0000:03:10.0";
const OTHER: &str = "0000:03:10.2";
const PF: &str = "0000:03:00.0";

/// A VF with the kernel's driver, in a group of its own, on a host with an IOMMU.
fn host() -> Recorded {
    hosts::prepared().function(VF, "8086:1520", "igbvf", Some(31)).interface("v0", Some(VF))
}

/// The first failure of all, whether nothing was moved or something.
fn good(result: Result<Vec<Outcome>, HostError>) -> Result<Vec<Moved>, HostError> {
    result?.into_iter().map(|outcome| outcome.result).collect()
}

fn try_bind(recorded: &Recorded, functions: &[&str]) -> Result<Vec<Moved>, HostError> {
    let functions: Vec<Address> = functions.iter().map(|text| address(text)).collect();
    good(bind(&recorded.machine(), &functions, &BTreeSet::new()))
}

fn try_unbind(
    recorded: &Recorded,
    function: &str,
    driver: Option<&str>,
    daemon: Option<&Daemon>,
) -> Result<Vec<Moved>, HostError> {
    good(unbind(&recorded.machine(), &[address(function)], driver, daemon))
}

fn refused(recorded: &Recorded, functions: &[&str], words: &[&str]) {
    let error = try_bind(recorded, functions).unwrap_err();
    for word in words {
        assert!(error.to_string().contains(word), "no '{word}' in: {error}");
    }
    assert_eq!(recorded.written(), [""; 0], "{error}");
}

#[test]
fn a_function_is_taken_by_driver_override_alone_and_given_back_to_its_driver() {
    let recorded = host();
    let moved = try_bind(&recorded, &[VF]).unwrap();
    let expected =
        Moved { address: address(VF), from: Some("igbvf".to_owned()), to: Some("vfio-pci".to_owned()) };
    assert_eq!(moved, [expected]);
    let device = "/sys/bus/pci/devices/0000:03:10.0";
    assert_eq!(
        recorded.written(),
        [
            format!("{device}/driver_override vfio-pci"),
            format!("{device}/driver/unbind {VF}"),
            format!("/sys/bus/pci/drivers_probe {VF}"),
            format!("/run/port_control/taken/{VF} igbvf"),
        ]
    );
    let moved = try_unbind(&recorded, VF, None, None).unwrap();
    assert_eq!((moved[0].from.as_deref(), moved[0].to.as_deref()), (Some("vfio-pci"), Some("igbvf")));
    assert_eq!(recorded.driver_of(VF).as_deref(), Some("igbvf"));
    // Whoever probes next is free to choose.
    assert_eq!(recorded.text(&format!("{device}/driver_override")).unwrap(), "(null)");
    assert_eq!(recorded.text(&format!("/run/port_control/taken/{VF}")), None);
}

#[test]
fn already_bound_is_success_for_anybody_and_changes_nothing() {
    let recorded = hosts::prepared().function(VF, "8086:1520", "vfio-pci", Some(31)).without_root();
    assert!(try_bind(&recorded, &[VF]).unwrap()[0].is_unchanged());
    assert_eq!(recorded.written(), [""; 0]);
    let recorded = host().without_root();
    assert!(try_unbind(&recorded, VF, None, None).unwrap()[0].is_unchanged());
}

#[test]
fn the_module_is_loaded_when_it_is_needed() {
    let recorded = Recorded::new().loadable(&["vfio-pci"]).function(VF, "8086:1520", "igbvf", Some(31));
    try_bind(&recorded, &[VF]).unwrap();
    assert_eq!(recorded.driver_of(VF).as_deref(), Some("vfio-pci"));
    let recorded = Recorded::new().function(VF, "8086:1520", "igbvf", Some(31));
    refused(
        &recorded,
        &[VF],
        &["vfio-pci cannot be loaded", "not found in directory", "linux-modules-extra"],
    );
}

#[test]
fn what_is_in_use_is_not_taken() {
    let vfs = Recorded::new()
        .function(PF, "8086:1521", "igb", Some(30))
        .sriov(PF, 7, &[VF], "8086:1520", None)
        .vfs(PF, 1);
    refused(&vfs, &[PF], &["PF with 1 live VFs", "vfs remove"]);
    refused(&host().up("v0"), &[VF], &["v0 is up", "ip link set v0 down"]);
    let route =
        "Iface Destination Gateway Flags RefCnt Use Metric Mask\nv0 00000000 01 3 0 0 0 00000000 0 0 0\n";
    refused(&host().with("/proc/net/route", route), &[VF], &["default route", "v0"]);
    let disk = hosts::prepared()
        .disk("0000:04:00.1", "nvme0n1", "259:0")
        .function("0000:04:00.1", "1b36:0010", "nvme", Some(40))
        .with("/proc/self/mountinfo", "22 1 259:0 / /srv rw - ext4 /dev/nvme0n1 rw\n");
    refused(&disk, &["0000:04:00.1"], &["mounted on /srv", "umount /srv"]);
}

#[test]
fn a_group_goes_whole_or_not_at_all() {
    let both = || {
        hosts::prepared()
            .function(VF, "8086:1520", "igbvf", Some(31))
            .function(OTHER, "8086:1520", "igbvf", Some(31))
            .bridge("0000:00:02.0", 31)
    };
    refused(&both(), &[VF], &["group 31", OTHER, "igbvf", &format!("bind {VF} {OTHER}")]);
    try_bind(&both(), &[VF, OTHER]).unwrap();
    // One that stands in the way of the second keeps the first where it is.
    let busy = both().interface("v1", Some(OTHER)).up("v1");
    refused(&busy, &[VF, OTHER], &["v1 is up"]);
    let idle = both().without(&format!("/sys/bus/pci/devices/{OTHER}/driver"));
    try_bind(&idle, &[VF]).unwrap();
}

#[test]
fn without_a_group_only_in_no_iommu_mode() {
    let alone = || Recorded::new().loaded("vfio").loaded("vfio-pci").function(VF, "8086:1520", "igbvf", None);
    refused(&alone(), &[VF], &["no IOMMU group", "doctor", "noiommu enable"]);
    let on = alone().with("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n");
    try_bind(&on, &[VF]).unwrap();
}

#[test]
fn who_may_not_is_told_and_nothing_changes() {
    refused(&host().without_root(), &[VF], &["only root", "sudo"]);
    refused(&host().read_only(), &[VF], &["driver_override", "read-only", "remount,rw"]);
    refused(&host(), &["0000:99:00.0"], &["no PCI device 0000:99:00.0"]);
    refused(&host(), &["0000:00:01.0"], &["is a bridge"]);
}

#[test]
fn who_may_not_give_back_is_told_and_nothing_changes() {
    let held = || hosts::prepared().function(VF, "8086:1520", "vfio-pci", Some(31)).loadable(&["igbvf"]);
    for (recorded, words) in [
        (held().without_root(), "only root"),
        (held().read_only(), "remount,rw /sys"),
        (held().stubborn("vfio-pci"), "vfio-pci has not let go of 0000:03:10.0 within"),
    ] {
        let error = try_unbind(&recorded, VF, Some("igbvf"), None).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        let wish = recorded.text("/sys/bus/pci/devices/0000:03:10.0/driver_override").unwrap();
        assert_eq!((recorded.driver_of(VF).as_deref(), wish.trim()), (Some(VFIO_PCI), "(null)"), "{error}");
    }
}

#[test]
fn a_driver_that_does_not_let_go_is_named_after_the_time_limit() {
    let recorded = host().stubborn("igbvf");
    let error = try_bind(&recorded, &[VF]).unwrap_err().to_string();
    assert!(error.contains("driver igbvf has not let go of 0000:03:10.0 within"), "{error}");
    assert_eq!(recorded.text("/sys/bus/pci/devices/0000:03:10.0/driver_override").unwrap(), "(null)");
    assert_eq!(recorded.driver_of(VF).as_deref(), Some("igbvf"));
}

#[test]
fn a_function_that_vfio_refuses_goes_back_where_it_was() {
    let recorded = host().refusing("vfio-pci");
    let error = try_bind(&recorded, &[VF]).unwrap_err().to_string();
    assert!(error.contains("vfio-pci refused it") && error.contains("igbvf has it again"), "{error}");
    assert_eq!(recorded.driver_of(VF).as_deref(), Some("igbvf"));
    assert_eq!(recorded.text("/sys/bus/pci/devices/0000:03:10.0/driver_override").unwrap(), "(null)");
}

#[test]
fn it_is_given_back_to_the_driver_that_is_named_or_that_its_kind_has() {
    let held = || hosts::prepared().function(VF, "8086:1520", "vfio-pci", Some(31));
    let give = |recorded: &Recorded, driver| try_unbind(recorded, VF, driver, None);
    let moved = give(&held().loadable(&["uio_pci_generic"]), Some("uio_pci_generic")).unwrap();
    assert_eq!(moved[0].to.as_deref(), Some("uio_pci_generic"));
    let by_kind = held().loadable(&["igbvf"]).sriov(PF, 7, &[], "8086:1520", Some("igbvf"));
    assert_eq!(give(&by_kind, None).unwrap()[0].to.as_deref(), Some("igbvf"));
    let unknown = held();
    assert_eq!((give(&unknown, None).unwrap()[0].to.as_deref(), unknown.driver_of(VF)), (None, None));
    let had_none = held().with(&format!("/run/port_control/taken/{VF}"), "").loadable(&["igbvf"]);
    assert_eq!(give(&had_none, None).unwrap()[0].to, None);
    let error = give(&held(), Some("nosuch")).unwrap_err().to_string();
    assert!(error.contains("no such driver") && error.contains("--driver NAME"), "{error}");
}

#[test]
fn it_is_not_taken_from_a_relay_or_a_vm() {
    let daemon = Daemon {
        relays: vec![Relay { id: 1, function: Some(address(VF)), ..Relay::default() }],
        ..Daemon::default()
    };
    let held = || hosts::prepared().function(VF, "8086:1520", "vfio-pci", Some(31));
    let error = try_unbind(&held(), VF, None, Some(&daemon)).unwrap_err().to_string();
    assert!(error.contains("relay 1") && error.contains("port_control remove --virtio-id 1"), "{error}");
    let vm = held().link("/proc/12/fd/7", "/dev/vfio/31").with("/proc/12/comm", "qemu-kvm\n");
    let error = try_unbind(&vm, VF, None, None).unwrap_err().to_string();
    assert!(error.contains("process 12 (qemu-kvm)"), "{error}");
    assert_eq!(vm.written(), [""; 0]);
}

#[test]
fn every_reason_against_several_is_told_and_nothing_changes() {
    let recorded =
        host().up("v0").function(OTHER, "8086:1520", "igbvf", Some(32)).interface("v1", Some(OTHER)).up("v1");
    refused(&recorded, &[VF, OTHER], &["v0 is up", "\n", "v1 is up"]);
    let words = ["0000:99:00.0", "eth9", VF].map(|word| word.parse().unwrap());
    let error = resolve(&recorded.machine(), &words).unwrap_err().to_string();
    assert!(
        error.contains("no PCI device 0000:99:00.0")
            && error.contains("\nthere is no network interface 'eth9'"),
        "{error}"
    );
}

#[test]
fn one_that_cannot_be_moved_does_not_keep_the_others() {
    let second = || host().function(OTHER, "8086:1520", "ixgbevf", Some(32));
    let recorded = second().stubborn("igbvf");
    let outcomes = bind(&recorded.machine(), &[address(VF), address(OTHER)], &BTreeSet::new()).unwrap();
    assert!(
        outcomes[0].result.as_ref().unwrap_err().to_string().contains("igbvf has not let go of 0000:03:10.0")
    );
    assert_eq!(
        (outcomes[1].address, outcomes[1].result.as_ref().unwrap().to.as_deref()),
        (address(OTHER), Some(VFIO_PCI))
    );
    assert_eq!(recorded.driver_of(OTHER).as_deref(), Some(VFIO_PCI));

    let recorded = second();
    try_bind(&recorded, &[VF, OTHER]).unwrap();
    let recorded = recorded.refusing("igbvf");
    let outcomes = unbind(&recorded.machine(), &[address(VF), address(OTHER)], None, None).unwrap();
    assert!(outcomes[0].result.as_ref().unwrap_err().to_string().contains("igbvf refused it"));
    assert_eq!(outcomes[1].result.as_ref().unwrap().to.as_deref(), Some("ixgbevf"));
    assert_eq!(
        (recorded.driver_of(VF).as_deref(), recorded.driver_of(OTHER).as_deref()),
        (Some(VFIO_PCI), Some("ixgbevf"))
    );
}

#[test]
fn words_mean_functions_or_vfs_of_an_interface() {
    let vfs = |interface: &str, count| Target::VfsOf { interface: interface.to_owned(), count };
    for (text, target) in [
        ("0000:03:10.0", Target::Function(address(VF))),
        ("03:10.0", Target::Function(address(VF))),
        ("eth0", vfs("eth0", None)),
        ("eth0.5", vfs("eth0.5", None)),
        ("ens1f0np0:4", vfs("ens1f0np0", Some(4))),
    ] {
        assert_eq!(text.parse(), Ok(target));
    }
    for text in
        ["", "0000:03:10", "0000:03:10.9", "eth0:", "eth0:0", "eth0:+1", "eth0:x", "a/b", "an_interface_name"]
    {
        let error = text.parse::<Target>().unwrap_err();
        assert!(error.contains("0000:02:08.0") && error.contains("NETDEV:COUNT"), "{error}");
    }
}

#[test]
fn an_interface_stands_for_its_vfs() {
    let machine = hosts::i350();
    let resolve = |text: &str| resolve(&machine.machine(), &[text.parse().unwrap()]);
    assert_eq!(resolve("eno1").unwrap(), [address("0000:03:10.0"), address("0000:03:10.4")]);
    assert_eq!(resolve("eno1:1").unwrap(), [address("0000:03:10.0")]);
    for (text, words) in [
        ("eno1:3", "3 VFs of 'eno1' are wanted, and it has 2"),
        ("eno2", "has no VFs"),
        ("eth9", "no network interface 'eth9'"),
        ("0000:99:00.0", "no PCI device"),
    ] {
        let error = resolve(text).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
