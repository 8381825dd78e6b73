# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# 100 000 numbered frames each way between the virtio driver and the kernel's virtio_net, of all lengths from 60 to 1514 bytes,
# and jumbo frames: each arrives once, in order, as it was sent; with split rings and packed ones.
# nightly
# expect: numbered.split jumbo.split numbered.packed jumbo.packed
# timeout: 240
# lab: VIRTIO=host_mtu=9000 packed=on
. tests/lab/responder.sh
. tests/lab/virtio.sh

every_frame "${COUNT:-100000}"
