//! The hosts of the guides, made from what their listings show.

use super::Recorded;

/// A bare host with a NIC that could have VFs, as a distribution leaves it: no IOMMU, no vfio.
pub(crate) fn bare() -> Recorded {
    Recorded::new()
        .with("/proc/cpuinfo", "vendor_id\t: GenuineIntel\n")
        .with("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro quiet\n")
        .with("/etc/os-release", "ID=debian\n")
        .loadable(&["vfio-pci"])
        .function("0000:01:00.0", "8086:10c9", "igb", None)
        .interface("eth0", Some("0000:01:00.0"))
        .firmware("eth0", "igb", "")
        .sriov(
            "0000:01:00.0",
            7,
            &["0000:01:10.0", "0000:01:10.2", "0000:01:10.4"],
            "8086:10ca",
            Some("igbvf"),
        )
        .macs("eth0", &["00:00:00:00:00:00"; 3])
}

/// What a host with an IOMMU and VFIO has beside its NICs.
pub(crate) fn prepared() -> Recorded {
    Recorded::new()
        .with("/proc/cpuinfo", "vendor_id\t: GenuineIntel\n")
        .with("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro intel_iommu=on iommu=pt\n")
        .with("/proc/interrupts", " 24:  0  IR-PCI-MSI 409600-edge  eth0\n")
        .with("/etc/os-release", "ID=ubuntu\nID_LIKE=debian\n")
        .folder("/sys/class/iommu/dmar0")
        .loaded("vfio")
        .loaded("vfio_iommu_type1")
        .loaded("vfio-pci")
        .with("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "N\n")
        .bridge("0000:00:01.0", 1)
}

/// Agilio CX (NFP 4000): two ports behind one PF, VFs at 05:08.
pub(crate) fn nfp() -> Recorded {
    let pf = "0000:05:00.0";
    prepared()
        .function(pf, "19ee:4000", "nfp", Some(40))
        .interface("p4p1", Some(pf))
        .interface("p4p2", Some(pf))
        .up("p4p1")
        .up("p4p2")
        .firmware("p4p1", "nfp", "0.0.3.5 0.25 sriov-2.1.14 nic")
        .sriov(
            pf,
            64,
            &["0000:05:08.0", "0000:05:08.1", "0000:05:08.2", "0000:05:08.3"],
            "19ee:6003",
            Some("nfp_netvf"),
        )
        .vfs(pf, 4)
        .function("0000:05:08.0", "19ee:6003", "nfp_netvf", Some(41))
        .function("0000:05:08.1", "19ee:6003", "vfio-pci", Some(42))
        .function("0000:05:08.2", "19ee:6003", "vfio-pci", Some(43))
        .function("0000:05:08.3", "19ee:6003", "", Some(44))
        .without("/sys/bus/pci/devices/0000:05:08.3/driver")
}

/// I350: one PF a port, the VFs of port 0 in use.
pub(crate) fn i350() -> Recorded {
    let pf = "0000:03:00.0";
    prepared()
        .function(pf, "8086:1521", "igb", Some(30))
        .interface("eno1", Some(pf))
        .up("eno1")
        .firmware("eno1", "igb", "1.63, 0x800009fa")
        .sriov(pf, 7, &["0000:03:10.0", "0000:03:10.4", "0000:03:11.0"], "8086:1520", Some("igbvf"))
        .vfs(pf, 2)
        .function("0000:03:10.0", "8086:1520", "vfio-pci", Some(31))
        .function("0000:03:10.4", "8086:1520", "igbvf", Some(32))
        .interface("eno1v1", Some("0000:03:10.4"))
        .macs("eno1", &["52:54:00:00:00:10", "52:54:00:00:00:11"])
        .function("0000:03:00.1", "8086:1521", "igb", Some(33))
        .interface("eno2", Some("0000:03:00.1"))
        .sriov("0000:03:00.1", 7, &["0000:03:10.1"], "8086:1520", Some("igbvf"))
}

/// X550 behind a bridge without access control: both VFs in one group, and one of them with the kernel.
pub(crate) fn x550() -> Recorded {
    let pf = "0000:01:00.0";
    prepared()
        .function(pf, "8086:1563", "ixgbe", Some(49))
        .interface("ens1f0", Some(pf))
        .up("ens1f0")
        .with("/sys/class/net/ens1f0/carrier", "0\n")
        .firmware("ens1f0", "ixgbe", "0x80000aee, 1.1876.0")
        .sriov(pf, 63, &["0000:01:10.0", "0000:01:10.2"], "8086:1565", Some("ixgbevf"))
        .vfs(pf, 2)
        .function("0000:01:10.0", "8086:1565", "vfio-pci", Some(50))
        .function("0000:01:10.2", "8086:1565", "ixgbevf", Some(50))
        .macs("ens1f0", &["00:00:00:00:00:00", "00:00:00:00:00:00"])
}

/// An instance in a cloud: ENA VFs of a PF that nobody sees, no IOMMU, no-IOMMU mode.
pub(crate) fn ena() -> Recorded {
    Recorded::new()
        .with("/proc/cpuinfo", "vendor_id\t: GenuineIntel\n")
        .with("/proc/cmdline", "root=UUID=1 console=ttyS0\n")
        .with("/etc/os-release", "ID=\"amzn\"\nID_LIKE=\"centos rhel fedora\"\n")
        .loaded("vfio")
        .loaded("vfio_iommu_type1")
        .with("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "Y\n")
        .function("0000:00:05.0", "1d0f:ec20", "ena", None)
        .interface("ens5", Some("0000:00:05.0"))
        .up("ens5")
        .with(
            "/proc/net/route",
            "Iface Destination Gateway Flags RefCnt Use Metric Mask\nens5 00000000 01001FAC 0003 0 0 512 00000000 0 0 0\n",
        )
        .function("0000:00:06.0", "1d0f:ec20", "vfio-pci", Some(0))
        .with("/sys/kernel/iommu_groups/0/name", "vfio-noiommu\n")
}
