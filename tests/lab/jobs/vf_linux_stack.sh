# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# A kernel's IP stack as the guest (behind DPDK's virtio_user, in a network namespace): IPv6 with neighbour discovery,
# which comes by multicast; TCP with many frames in flight; and a guest whose MAC is not the VF's. The Linux PF driver
# grants a VF no promiscuous mode, so frames to another MAC do not arrive until the PF is told: the log says how.
# expect: promiscuous_refused_and_said ping6 tcp_to_guest tcp_from_guest
# expect: other_mac_warned the_warnings_advice_works daemon_unharmed
# timeout: 150
. tests/lab/relay.sh
tcp_file=tests/lib/tcp_file.py
size=4 # MiB of each transfer

# guest NAME MAC: a guest with this MAC
ip netns add guest
guest() {
    VM_MAC=$2
    TESTPMD_UNDER=(ip netns exec guest)
    vm "$1" "$(socket 1)" tap:eth0
    within 30 ip -n guest link show eth0 > /dev/null
    ip -n guest link set eth0 up
    ip -n guest addr add "$PEER/24" dev eth0
    ip -n guest -6 addr add fd00::9/64 dev eth0 nodad
}
# fetch DIRECTION: a file over TCP, from vf1's side to the guest or back; both ends agree on its sum
fetch() {
    local sum
    if [ "$1" = to_guest ]; then
        spawn server "$tcp_file" send 5001 "$RUN/file"
        sum=$(ip netns exec guest timeout 60 "$tcp_file" fetch 10.0.0.2:5001 - | sha256sum)
    else
        spawn server ip netns exec guest "$tcp_file" send 5001 "$RUN/file"
        sum=$(timeout 60 "$tcp_file" fetch "$PEER:5001" - | sha256sum)
    fi
    stop server > /dev/null
    [ "$sum" = "$(sha256sum < "$RUN/file")" ] || { echo "the sums differ"; return 1; }
}

scene 2
forwarder daemon --add-pci-vf "$VF0=1" || { not_ok ping6 "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
check promiscuous_refused_and_said within 10 says daemon promisc

guest vm 52:54:00:00:00:10
check ping6 within 30 answers fd00::9
head -c ${size}M /dev/urandom > "$RUN/file"
check tcp_to_guest fetch to_guest
check tcp_from_guest fetch from_guest
stop vm INT > /dev/null

other=52:54:00:00:00:99
ip neigh flush dev vf1
guest stranger $other
# It speaks first: that is when the daemon sees its MAC.
ip netns exec guest ping -c 3 -W 1 10.0.0.2 > /dev/null
check other_mac_warned within 10 says daemon "$other.*52:54:00:00:00:10|52:54:00:00:00:10.*$other"
# What the log proposes is run as it stands, and it works.
advice=$(grep -Eo "ip link set (dev )?($PF vf 0|PF vf N) mac $other" "$OUT/daemon.log" | tail -1)
advice=${advice/PF vf N/$PF vf 0}
follow_advice() {
    [ -n "$advice" ] || { echo "no line 'ip link set $PF vf 0 mac $other' in the log"; return 1; }
    note "$advice"
    bash -c "$advice" && within 30 answers
}
check the_warnings_advice_works follow_advice
stop stranger INT > /dev/null
check daemon_unharmed unharmed daemon "$daemon"
