# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The igbvf driver behind virtio's IOMMU, which has 39 address bits and remaps no interrupts: pings, jumbo frames, a new start,
# and what is said where interrupts must be remapped.
# (The virtio functions are for virtio_ping_virtio_iommu, with which it shares the machine.)
# expect: interrupts_not_remapped ranges_are_known ping ping_8000 ping_after_reset stopped probe
# timeout: 120
# lab: IOMMU=virtio
# lab: VIRTIO=host_mtu=9000 packed=on
. tests/lab/responder.sh

make_vfs 2
load_vfio
kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
bind_vfio "$VF0"
refused interrupts_not_remapped 'allow_unsafe_interrupts=1' timeout 20 "$RESPONDER" "$VF0" --seconds 1
echo 1 > /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts
ip link set vf1 mtu 9000
start_responder "$VF0" > /dev/null
# What the kernel lists: two ranges around the interrupts' window, of 39 bits.
check ranges_are_known said 'ranges=\[0\.\.=4276092927, 4277141504\.\.=549755813887\]'
check ping pings 300
check ping_8000 pings 100 -s 7972 -M "do"
ip link set "$PF" down
within 10 said ResetNeeded > /dev/null
ip link set "$PF" up
within 20 answers > /dev/null
check ping_after_reset pings 100
check stopped stop_responder
check probe timeout 60 "$TARGET/vf_probe" "$VF0" --igbvf
