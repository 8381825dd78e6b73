# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The same as virtio_ping behind virtio-iommu: 39 address bits, and no interrupt remapping.
# expect: started.split ping.split ping_1514.split ping_9000.split ping6.split link.split stopped.split no_errors.split
# expect: started.packed ping.packed ping_1514.packed ping_9000.packed ping6.packed link.packed stopped.packed no_errors.packed
# timeout: 240
# lab: IOMMU=virtio
# lab: VIRTIO=host_mtu=9000 packed=on
. tests/lab/responder.sh
. tests/lab/virtio.sh

every_kind 1000
