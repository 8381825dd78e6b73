# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# A guest that leaves its checksums and the cutting of long TCP frames to its NIC; the VF does neither, so the daemon does.
# The guest is a kernel's IP stack (in a namespace) that writes frames of up to 20000 bytes, and DPDK's virtio driver, which
# hands them on as `csum` and `tso` tell it to: without checksums, to be cut. On the far side the kernel's igbvf hands
# every frame to one who verifies all checksums in its bytes; the kernel verifies them again.
# expect: negotiated tcp tcp6 udp udp6 every_checksum cut kernel_agrees daemon_unharmed
# timeout: 120
. tests/lab/relay.sh
lib=tests/lib
size=2 # MiB of each transfer

# The machine may be shared: the namespace has a name of its own.
ip netns add offloads
in_guest() { ip netns exec offloads "$@"; }
guest() {
    local TESTPMD_UNDER=(ip netns exec offloads) TESTPMD_EAL=(--log-level=pmd.net.virtio.init:debug)
    local device=net_virtio_user0,path=$1,queues=1,mac=52:54:00:00:00:10
    # 1428 bytes of payload are what IPv6 and timestamps leave of 1500. Without `mac-swap off` the frames would get other
    # addresses. Long ones are chains of buffers.
    printf '%s\n' 'csum set tcp hw 0' 'csum set udp hw 0' 'tso set 1428 0' 'csum mac-swap off 0' 'csum mac-swap off 1' \
        'port config 0 tx_offload multi_segs on' 'port config 1 rx_offload scatter on' 'port start all' > "$OUT/commands"
    testpmd vm 0 "$device net_tap0,iface=eth0,mac=52:54:00:00:00:10" --forward-mode=csum --disable-device-start \
        --cmdline-file="$OUT/commands"
    within 30 says vm 'packet forwarding.* - ports=2'
    ip -n offloads link set eth0 mtu 20000 up
    ip -n offloads addr add "$PEER/24" dev eth0
    ip -n offloads -6 addr add fd00::9/64 dev eth0 nodad
}
# The guest's TCP writes frames as long as the other end says that it takes.
take_long_frames() {
    ip route change 10.0.0.0/24 dev vf1 proto kernel scope link src 10.0.0.2 advmss 19000
    ip -6 route change fd00::/64 dev vf1 proto kernel metric 256 advmss 19000
}

negotiated() {
    local features
    features=$(sed -n 's/.*features after negotiate = \([0-9a-f]*\).*/\1/p' "$OUT/vm.log" | tail -1)
    note "$features"
    # CSUM, HOST_TSO4, HOST_TSO6
    [ $((0x${features:-0} & 0x1801)) = $((0x1801)) ] || { echo "features ${features:-unknown}"; return 1; }
}
# The other ends of the transfers, all at once: python takes a second to start here.
other_ends() {
    local port
    for port in 5004 5006; do spawn "$port" ip netns exec offloads "$lib/tcp_file.py" send "$port" "$RUN/file"; done
    for port in 9004 9006; do spawn "$port" "$lib/udp_numbered.py" receive "$port" 200; done
    for port in 9004 9006; do within 20 says "$port" ready; done
}
fetch() { # HOST PORT
    local sum start
    now_ms; start=$NOW
    sum=$(timeout 60 "$lib/tcp_file.py" fetch "$1:$2" - | sha256sum)
    now_ms; note "$size MiB in $((NOW - start)) ms"
    [ "$sum" = "$(sha256sum < "$RUN/file")" ] || { echo "the sums differ"; return 1; }
}
datagrams() { # HOST PORT
    in_guest "$lib/udp_numbered.py" send "$1" "$2" 200
    within 20 gone "$2"
    stop "$2"
    [ "$STATUS" = 0 ] || { cat "$OUT/$2.log"; return 1; }
}
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
