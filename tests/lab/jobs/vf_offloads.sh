# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# A guest that leaves its checksums and the cutting of long TCP frames to its NIC: the VF does both.
# The guest is a kernel's IP stack (in a namespace) that writes frames of up to 20000 bytes, and DPDK's virtio driver, which
# hands them on as `csum` and `tso` tell it to: without checksums, to be cut. On the far side the kernel's igbvf hands
# every frame to one who verifies all checksums in its bytes; the kernel verifies them again.
# expect: negotiated tcp tcp6 udp udp6 every_checksum cut kernel_agrees daemon_unharmed
# timeout: 120
. tests/lab/relay.sh
. tests/lab/offloads.sh

# The guest's stack wrote far fewer frames than came out.
cut() {
    local written wire
    written=$(in_guest cat /sys/class/net/eth0/statistics/tx_packets)
    wire=$(on_the_wire)
    note "$written frames of the guest, $wire on the wire"
    [ "${wire:-0}" -gt $((2 * written)) ]
}

scene 2
take_long_frames
forwarder daemon --enable-tso --add-pci-vf "$VF0=1" || { not_ok tcp "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
head -c ${size}M /dev/urandom > "$RUN/file"
other_ends
capture
guest "$(socket 1)"
traffic > /dev/null

check negotiated negotiated
check tcp fetch "$PEER" 5004
check tcp6 fetch fd00::9 5006
check udp datagrams 10.0.0.2 9004
check udp6 datagrams fd00::2 9006
check every_checksum every_checksum '[3-9][0-9]{3} tcp' '[4-9][0-9]{2} udp'
check cut cut
check kernel_agrees kernel_agrees
stop vm KILL
check daemon_unharmed unharmed daemon "$daemon"
