# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The virtio driver on functions that QEMU makes up, behind VT-d, answers the kernel's virtio_net: ARP, echo requests of
# several sizes up to an MTU of 9000, IPv6 with its neighbour discovery; with split rings and packed ones.
# expect: started.split ping.split ping_1514.split ping_9000.split ping6.split link.split stopped.split no_errors.split
# expect: started.packed ping.packed ping_1514.packed ping_9000.packed ping6.packed link.packed stopped.packed no_errors.packed
# timeout: 240
# lab: VIRTIO=host_mtu=9000 packed=on
. tests/lab/responder.sh
. tests/lab/virtio.sh

every_kind "${COUNT:-5000}"
