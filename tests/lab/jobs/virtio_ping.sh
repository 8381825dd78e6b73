# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The virtio driver on functions that QEMU makes up, behind VT-d, answers the kernel's virtio_net: ARP, echo requests of
# several sizes up to an MTU of 9000, IPv6 with its neighbour discovery; with split rings and packed ones.
# expect: started.split ping.split ping_1514.split ping_9000.split ping6.split link.split stopped.split no_errors.split
# expect: started.packed ping.packed ping_1514.packed ping_9000.packed ping6.packed link.packed stopped.packed no_errors.packed
# timeout: 240
# lab: QEMU=-netdev hubport,id=a0,hubid=1 -netdev hubport,id=a1,hubid=1 -netdev hubport,id=b0,hubid=2 -netdev hubport,id=b1,hubid=2 -device virtio-net-pci,bus=pcie.0,addr=0x10,netdev=a0,mac=52:54:00:00:00:10,disable-legacy=on,iommu_platform=on,ats=off,host_mtu=9000 -device virtio-net-pci,bus=pcie.0,addr=0x11,netdev=a1,mac=52:54:00:00:00:11 -device virtio-net-pci,bus=pcie.0,addr=0x12,netdev=b0,mac=52:54:00:00:00:12,disable-legacy=on,iommu_platform=on,ats=off,packed=on -device virtio-net-pci,bus=pcie.0,addr=0x13,netdev=b1,mac=52:54:00:00:00:13
. tests/lab/responder.sh
. tests/lab/virtio.sh

every_kind "${COUNT:-5000}"
