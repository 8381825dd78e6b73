# shellcheck shell=bash disable=SC2034,SC2154 source-path=SCRIPTDIR/../.. # names that jobs use, and names of relay.sh
# For jobs about checksums and segmentation, behind relay.sh: a guest that is a kernel's IP stack in a namespace, with
# DPDK's virtio driver between it and the relay, which leaves checksums and the cutting of TCP to its NIC.
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
# The other way: the far side sends, the guest takes.
fetch_from_far() {
    local sum
    spawn far "$lib/tcp_file.py" send 5008 "$RUN/file"
    sum=$(in_guest timeout 60 "$lib/tcp_file.py" fetch 10.0.0.2:5008 - | sha256sum)
    [ "$sum" = "$(sha256sum < "$RUN/file")" ] || { echo "the sums differ"; return 1; }
}
datagrams_from_far() {
    spawn 9008 ip netns exec offloads "$lib/udp_numbered.py" receive 9008 200
    within 20 says 9008 ready
    "$lib/udp_numbered.py" send "$PEER" 9008 200
    within 20 gone 9008
    stop 9008
    [ "$STATUS" = 0 ] || { cat "$OUT/9008.log"; return 1; }
}
