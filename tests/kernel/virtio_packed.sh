# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Linux's virtio_net drives our model of a virtio-net function, with packed rings.
# expect: mac carrier ping tcp rings vlan jumbo link reload content dmesg
# timeout: 300
# lab: MODEL=virtio packed event_idx
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh
. tests/lib/virtio_driver.sh
accept_virtio
