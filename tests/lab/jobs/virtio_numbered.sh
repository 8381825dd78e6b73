# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# 100 000 numbered frames each way between the virtio driver and the kernel's virtio_net, of all lengths from 60 to 1514 bytes,
# and jumbo frames: each arrives once, in order, as it was sent; with split rings and packed ones.
# nightly
# expect: numbered.split jumbo.split numbered.packed jumbo.packed
# timeout: 240
# lab: QEMU=-netdev hubport,id=a0,hubid=1 -netdev hubport,id=a1,hubid=1 -netdev hubport,id=b0,hubid=2 -netdev hubport,id=b1,hubid=2 -device virtio-net-pci,bus=pcie.0,addr=0x10,netdev=a0,mac=52:54:00:00:00:10,disable-legacy=on,iommu_platform=on,ats=off,host_mtu=9000 -device virtio-net-pci,bus=pcie.0,addr=0x11,netdev=a1,mac=52:54:00:00:00:11 -device virtio-net-pci,bus=pcie.0,addr=0x12,netdev=b0,mac=52:54:00:00:00:12,disable-legacy=on,iommu_platform=on,ats=off,packed=on -device virtio-net-pci,bus=pcie.0,addr=0x13,netdev=b1,mac=52:54:00:00:00:13
. tests/lab/responder.sh
. tests/lab/virtio.sh

every_frame "${COUNT:-100000}"
