# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# A guest leaves its checksums and the cutting of long TCP frames to its NIC, and the virtio function does both: behind it
# is a tap, so that the host's kernel cuts and sums up for the far side, which takes nothing but whole frames and looks at
# every byte of them. The far side leaves its own long frames as they are, and the relay cuts them for the guest. Two queue
# pairs.
# nightly
# expect: negotiated two_pairs tcp tcp6 tcp_to_guest udp udp6 udp_to_guest every_checksum left_to_the_device
# expect: came_uncut kernel_agrees daemon_unharmed
# timeout: 200
# lab: TAPS=d0 d1
# lab: QEMU=-netdev tap,id=a0,ifname=d0,script=no,downscript=no,queues=2 -netdev tap,id=a1,ifname=d1,script=no,downscript=no,queues=2 -device virtio-net-pci,bus=pcie.0,addr=0x10,netdev=a0,mac=52:54:00:00:00:10,disable-legacy=on,iommu_platform=on,ats=off,mq=on,vectors=6 -device virtio-net-pci,bus=pcie.0,addr=0x11,netdev=a1,mac=52:54:00:00:00:11,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,guest_uso4=off,guest_uso6=off
. tests/lab/relay.sh
. tests/lab/virtio.sh
. tests/lab/offloads.sh

# Each receive queue has an interrupt of its own.
two_pairs() { [ "$(grep -c "vfio-msix.*$VF0" /proc/interrupts)" = 2 ] || { grep vfio /proc/interrupts; return 1; }; }
# The device was given far fewer frames than the two files have segments.
left_to_the_device() {
    local given segments=$((2 * size * 1048576 / 1428))
    given=$(sent)
    note "$given frames for $segments segments"
    [ "$given" -gt 0 ] && [ "$given" -lt $((segments / 2)) ]
}
received() { counter 1 vf_to_vm rx_frames; }
# The file came as fewer frames than it has segments: a sender that finds the way slow puts no more than two into one.
came_uncut() {
    local frames segments=$((size * 1048576 / 1448))
    frames=$(($(received) - $1))
    note "$frames frames for $segments segments"
    [ "$frames" -gt 0 ] && [ "$frames" -lt $((segments * 3 / 4)) ]
}

load_vfio
pair "${PAIR:-0}" vf1 10.0.0.2/24 fd00::2/64
ip link set vf1 mtu 1500
take_long_frames
printf '[[relay]]\nid = 1\nqueue-pairs = 2\n' > "$RUN/config.toml"
forwarder daemon --loglevel 8 --config "$RUN/config.toml" --enable-tso --add-pci-vf "$VF0=1" ||
    { not_ok tcp "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
head -c ${size}M /dev/urandom > "$RUN/file"
other_ends
capture
guest "$(socket 1)"
traffic > /dev/null

check negotiated negotiated
check two_pairs two_pairs
check tcp fetch "$PEER" 5004
check tcp6 fetch fd00::9 5006
check udp datagrams 10.0.0.2 9004
check udp6 datagrams fd00::2 9006
check left_to_the_device left_to_the_device
before=$(received)
check tcp_to_guest fetch_from_far
check came_uncut came_uncut "$before"
check udp_to_guest datagrams_from_far
check every_checksum every_checksum '[3-9][0-9]{3} tcp' '[4-9][0-9]{2} udp'
check kernel_agrees kernel_agrees
stop vm KILL
check daemon_unharmed unharmed daemon "$daemon"
