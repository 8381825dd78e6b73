//! The doctor on recorded machines.

use super::*;
use crate::daemon::Relay;
use crate::recorded::{Recorded, address, hosts};

const VERSION: &str = "0.1.0";

fn silent() -> Met {
    Met::Silent("no daemon answers".to_owned())
}

fn running(relays: Vec<Relay>) -> Met {
    Met::Running(Daemon { version: VERSION.to_owned(), process: Some(9), relays })
}

fn examine_(recorded: &Recorded, met: &Met) -> Findings {
    examine_with(recorded, met, &Configured::Unknown("there is no virtio-forwarder".to_owned()))
}

fn examine_with(recorded: &Recorded, met: &Met, configured: &Configured) -> Findings {
    let findings = examine(&recorded.machine(), met, configured, VERSION);
    assert_eq!(recorded.written(), [""; 0], "the doctor changes nothing");
    for item in &findings.items {
        assert_eq!(item.remedy.is_empty(), item.status == Status::Ok, "what is wrong has a remedy: {item:?}");
    }
    findings
}

fn item<'a>(findings: &'a Findings, subject: &str) -> &'a Item {
    findings.items.iter().find(|item| item.subject.starts_with(subject)).unwrap()
}

/// The item is of this status, and these words are in what was found or in the remedy.
fn says(findings: &Findings, subject: &str, status: Status, words: &[&str]) {
    let item = item(findings, subject);
    assert_eq!(item.status, status, "{item:?}");
    let text = format!("{} | {}", item.found, item.remedy.join(" | "));
    for word in words {
        assert!(text.contains(word), "no '{word}' in: {text}");
    }
}

#[test]
fn a_bare_host_fails_with_the_advice_that_helps() {
    let findings = examine_(&hosts::bare(), &silent());
    assert_eq!(findings.status.exit_code(), 2);
    says(
        &findings,
        "IOMMU",
        Status::Failure,
        &["VT-d", "intel_iommu=on iommu=pt", "/etc/default/grub", "update-grub"],
    );
    says(&findings, "VFIO modules", Status::Failure, &["vfio_pci", "modprobe vfio-pci"]);
    says(&findings, "PF 0000:01:00.0 eth0", Status::Ok, &["8086:10c9 igb, 0 of 7 VFs, link down"]);
    says(&findings, "VFs for relays", Status::Warning, &["none yet", "port_control vfs create eth0 2 --up"]);
    says(
        &findings,
        "daemon",
        Status::Warning,
        &["no daemon answers", "systemctl enable --now virtio-forwarder"],
    );
    assert!(findings.to_string().ends_with("failures: 2, warnings: 2\n"), "{findings}");
}

#[test]
fn a_host_that_is_ready_is_clean() {
    let vf = address("0000:03:10.0");
    let relay = Relay { id: 1, function: Some(vf), cpus: vec![2], ..Relay::default() };
    let recorded =
        hosts::i350().with("/proc/9/status", "Name:\tvirtio-forwarder\nCapEff:\t000001ffffffffff\n");
    let findings = examine_(&recorded, &running(vec![relay]));
    assert_eq!(findings.status.exit_code(), 0, "{findings}");
    says(&findings, "IOMMU", Status::Ok, &["on (dmar0)", "groups", "intel_iommu=on iommu=pt"]);
    says(&findings, "interrupt remapping", Status::Ok, &["on"]);
    says(
        &findings,
        "PF 0000:03:00.0 eno1",
        Status::Ok,
        &["igb (firmware 1.63, 0x800009fa), 2 of 7 VFs, link up"],
    );
    says(
        &findings,
        "VF 0000:03:10.0",
        Status::Ok,
        &[
            "8086:1520 vfio-pci, alone in group 31",
            "MAC 52:54:00:00:00:10",
            "VLAN none",
            "spoof check on",
            "trust off",
            "relay 1",
        ],
    );
    says(&findings, "locked memory", Status::Ok, &["CAP_IPC_LOCK"]);
    assert!(findings.to_string().ends_with("all is well\n"), "{findings}");
}

#[test]
fn the_nfp_of_the_guide() {
    let findings = examine_(&hosts::nfp(), &silent());
    assert_eq!(findings.status, Status::Warning, "{findings}");
    says(
        &findings,
        "PF 0000:05:00.0 p4p1,p4p2",
        Status::Ok,
        &["0.0.3.5 0.25 sriov-2.1.14 nic", "4 of 64 VFs", "link up"],
    );
    says(&findings, "VF 0000:05:08.3", Status::Ok, &["no driver"]);
    says(&findings, "VFs for relays", Status::Ok, &["2 of 4"]);
}

#[test]
fn a_group_that_is_shared_with_the_kernel_fails() {
    let findings = examine_(&hosts::x550(), &silent());
    assert_eq!(findings.status, Status::Failure);
    says(
        &findings,
        "VF 0000:01:10.0",
        Status::Failure,
        &["in group 50 with 0000:01:10.2", "ixgbevf", "port_control bind 0000:01:10.0 0000:01:10.2"],
    );
    says(&findings, "PF 0000:01:00.0", Status::Warning, &["no carrier", "ethtool ens1f0"]);
}

#[test]
fn a_vf_without_an_address_is_told() {
    let recorded = hosts::i350().macs("eno1", &["00:00:00:00:00:00", "52:54:00:00:00:11"]);
    let findings = examine_(&recorded, &running(vec![]));
    says(&findings, "VF 0000:03:10.0", Status::Warning, &["MAC not set", "vfs set 0000:03:10.0 --mac"]);
}

#[test]
fn a_cloud_instance_in_no_iommu_mode_is_warned_of_it() {
    let findings = examine_(&hosts::ena(), &silent());
    says(&findings, "IOMMU", Status::Warning, &["no-IOMMU mode", "all memory"]);
    says(&findings, "no-IOMMU mode", Status::Warning, &["ON"]);
    says(&findings, "hugepages", Status::Failure, &["follow one another", "hugepages=64", "echo 64 >"]);
    says(&findings, "VF 0000:00:06.0", Status::Ok, &["1d0f:ec20 vfio-pci, alone in group 0"]);
    let paged = hosts::ena().with("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "64\n");
    assert_eq!(examine_(&paged, &silent()).status, Status::Warning);
}

#[test]
fn a_vf_that_vfio_had_before_no_iommu_mode_was_on_has_to_be_bound_again() {
    let recorded = hosts::ena().function("0000:00:07.0", "1d0f:ec20", "vfio-pci", None);
    let findings = examine_(&recorded, &silent());
    says(
        &findings,
        "VF 0000:00:07.0",
        Status::Failure,
        &["unbind 0000:00:07.0 && port_control bind 0000:00:07.0"],
    );
}

#[test]
fn interrupts_that_are_not_remapped() {
    let without = || hosts::i350().with("/proc/interrupts", " 24: 0 PCI-MSI eth0\n");
    says(
        &examine_(&without(), &silent()),
        "interrupt remapping",
        Status::Failure,
        &["allow_unsafe_interrupts"],
    );
    let told = without().with("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
    says(&examine_(&told, &silent()), "interrupt remapping", Status::Warning, &["any interrupt"]);
}

#[test]
fn the_kernel_line_is_changed_as_the_distribution_has_it() {
    let advice = |release: &str, cpu: &str| {
        let recorded = hosts::bare().with("/etc/os-release", release).with("/proc/cpuinfo", cpu);
        item(&examine_(&recorded, &silent()), "IOMMU").remedy.join("\n")
    };
    let intel = "vendor_id : GenuineIntel";
    assert!(
        advice("ID=\"rhel\"\nID_LIKE=\"fedora\"\n", intel)
            .contains("grubby --update-kernel=ALL --args=\"intel_iommu=on iommu=pt\"")
    );
    assert!(advice("ID=\"rhcos\"\n", intel).contains("100-worker-vfiopci.yaml"));
    assert!(advice("ID=opensuse\n", "vendor_id : AuthenticAMD").contains("&iommu=pt /"));
    let told = hosts::bare().with("/proc/cmdline", "ro intel_iommu=on iommu=pt\n");
    says(&examine_(&told, &silent()), "IOMMU", Status::Failure, &["turn it on in the firmware"]);
}

/// Two nodes; the VF that vfio-pci has is on the second.
fn two_nodes() -> Recorded {
    hosts::i350()
        .with("/sys/devices/system/node/node0/cpulist", "0-3\n")
        .with("/sys/devices/system/node/node1/cpulist", "4-7\n")
        .with("/sys/devices/system/cpu/isolated", "2-3\n")
        .with("/sys/bus/pci/devices/0000:03:10.0/numa_node", "1\n")
}

/// Two workers and their relays in turn; the VF is given to relay `vf`, if to any.
fn plan(cpus: [u32; 2], vf: Option<u32>) -> Configured {
    let relay = |id| Relay {
        id,
        function: Some(address("0000:03:10.0")).filter(|_| vf == Some(id)),
        cpus: vec![cpus[id as usize % 2]],
        ..Relay::default()
    };
    Configured::Plan(Plan {
        cpus: cpus.to_vec(),
        directory: "/srv/sockets".into(),
        relays: (0..4).map(relay).collect(),
    })
}

#[test]
fn workers_that_will_be_far_from_their_vf_are_told_before_there_is_a_daemon() {
    let numa = |configured| examine_with(&two_nodes(), &silent(), &configured);
    let far = numa(plan([1, 5], Some(2)));
    says(&far, "NUMA", Status::Warning, &["relay 2 is on node 1", "CPUs 1 are not", "PINS=2:CPU"]);
    says(&far, "configuration", Status::Ok, &["workers on CPUs 1,5, 4 relays, 1 VFs at start"]);
    says(&numa(plan([1, 5], Some(3))), "NUMA", Status::Ok, &["2 nodes", "near"]);
    says(&numa(plan([1, 5], None)), "NUMA", Status::Ok, &["near"]);
    let none_near = numa(plan([1, 2], None));
    says(
        &none_near,
        "NUMA",
        Status::Warning,
        &["0000:03:10.0 is on node 1, all workers, on CPUs 1,2", "among CPUs 4,5,6,7"],
    );
    says(&none_near, "CPUs", Status::Warning, &["1 are workers' and not isolated"]);
    // Whatever the files say by now, a daemon that runs says what it does.
    let relay = Relay { id: 0, function: Some(address("0000:03:10.0")), cpus: vec![5], ..Relay::default() };
    says(&examine_with(&two_nodes(), &running(vec![relay]), &plan([1, 2], Some(0))), "NUMA", Status::Ok, &[]);
}

#[test]
fn a_configuration_that_cannot_be_used_is_told_with_its_mistakes() {
    let wrong = Configured::Wrong(
        "/etc/default/virtioforwarder:3: VIRTIOFWD_CPU_MASK: CPU 9 is absent\n  another".to_owned(),
    );
    let words = ["virtioforwarder:3: VIRTIOFWD_CPU_MASK", "; another", "virtio-forwarder config"];
    says(&examine_with(&hosts::i350(), &silent(), &wrong), "configuration", Status::Failure, &words);
    let words = ["will not start again"];
    says(&examine_with(&hosts::i350(), &running(vec![]), &wrong), "configuration", Status::Warning, &words);
    says(&examine_(&hosts::i350(), &silent()), "configuration", Status::Ok, &["not known"]);
}

#[test]
fn the_directory_of_the_sockets_is_the_configured_one() {
    let libvirt = hosts::i350().with("/etc/passwd", "libvirt-qemu:x:64055:108::/:/sbin/nologin\n");
    let findings = examine_with(&libvirt, &silent(), &plan([1, 2], None));
    says(&findings, "socket directory", Status::Ok, &["/srv/sockets is made when the daemon starts"]);
}

#[test]
fn workers_far_from_their_vf_are_told() {
    let recorded = two_nodes();
    let relay =
        |cpu| Relay { id: 5, function: Some(address("0000:03:10.0")), cpus: vec![cpu], ..Relay::default() };
    let findings = examine_(&recorded, &running(vec![relay(2)]));
    says(
        &findings,
        "NUMA",
        Status::Warning,
        &["relay 5 is on node 1", "CPUs 2", "among CPUs 4,5,6,7", "PINS=5:CPU"],
    );
    says(&findings, "CPUs", Status::Ok, &["isolated 2-3", "workers on 2"]);
    let findings = examine_(&recorded, &running(vec![relay(5)]));
    says(&findings, "NUMA", Status::Ok, &["near their workers"]);
    says(&findings, "CPUs", Status::Warning, &["5 are workers' and not isolated", "VIRTIOFWD_CPU_MASK=2-3"]);
}

#[test]
fn memory_is_described() {
    let recorded = hosts::i350()
        .with("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "1375\n")
        .with("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "375\n")
        .with("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "2\n")
        .with("/proc/mounts", "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n")
        .with("/proc/9/status", "CapEff:\t0000000000000000\n")
        .with(
            "/proc/9/limits",
            "Max locked memory         8388608              8388608              bytes\n",
        );
    let findings = examine_(&recorded, &running(vec![]));
    says(
        &findings,
        "hugepages",
        Status::Ok,
        &["2 of 1 GiB (0 free)", "1375 of 2 MiB (375 free)", "/dev/hugepages"],
    );
    says(&findings, "locked memory", Status::Warning, &["8388608 bytes", "LimitMEMLOCK=infinity"]);
}

#[test]
fn what_keeps_vms_from_their_sockets_is_told() {
    let socket = "/tmp/virtio-forwarder/virtio-forwarder0.sock";
    let relay = || Relay { socket: Some(socket.into()), ..Relay::default() };
    let libvirt = hosts::i350()
        .with("/etc/passwd", "root:x:0:0::/:/bin/sh\nlibvirt-qemu:x:64055:108::/:/sbin/nologin\n")
        .with("/etc/group", "kvm:x:108:\n")
        .with(socket, "");
    let findings = examine_(&libvirt, &running(vec![relay()]));
    says(
        &findings,
        "socket directory",
        Status::Failure,
        &["closed to libvirt-qemu", "VIRTIOFWD_SOCKET_OWNER=libvirt-qemu"],
    );
    let armoured = libvirt.with("/sys/module/apparmor/parameters/enabled", "Y\n").with(
        "/etc/apparmor.d/abstractions/libvirt-qemu",
        "  # /tmp/virtio-forwarder/* rw,\n  /dev/kvm rw,\n",
    );
    let findings = examine_(&armoured, &running(vec![relay()]));
    says(
        &findings,
        "AppArmor",
        Status::Warning,
        &["/tmp/virtio-forwarder/* rw,", "systemctl reload apparmor"],
    );
    let allowed =
        armoured.with("/etc/apparmor.d/local/abstractions/libvirt-qemu", "  /tmp/virtio-forwarder/* rw,\n");
    says(&examine_(&allowed, &running(vec![relay()])), "AppArmor", Status::Ok, &["may use"]);
    let enforcing = allowed.with("/sys/fs/selinux/enforce", "1");
    says(&examine_(&enforcing, &silent()), "SELinux", Status::Warning, &["semanage permissive -a svirt_t"]);
    let permissive = enforcing.folder("/var/lib/selinux/targeted/active/modules/400/permissive_svirt_t");
    says(&examine_(&permissive, &silent()), "SELinux", Status::Ok, &["svirt_t"]);
}

#[test]
fn a_daemon_of_another_version_is_told() {
    let met = Met::Running(Daemon { version: "0.0.9".to_owned(), ..Daemon::default() });
    says(&examine_(&hosts::i350(), &met), "daemon", Status::Warning, &["0.0.9", VERSION, "restart"]);
}

#[test]
fn the_findings_are_json_too() {
    let json = serde_json::to_value(examine_(&hosts::bare(), &silent())).unwrap();
    assert_eq!(json.pointer("/status").unwrap(), "failure");
    assert_eq!(json.pointer("/items/0/subject").unwrap(), "IOMMU");
    assert!(json.pointer("/items/0/remedy/0").unwrap().is_string());
}
