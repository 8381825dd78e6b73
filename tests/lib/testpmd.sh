# shellcheck shell=bash
# DPDK's testpmd, in two roles. As a VM: its virtio_user driver is a foreign vhost-user front end with a driver side of
# its own. As a back end (net_vhost): the yardstick for ours, and the proof that a scenario works without ours.
# Neither needs hugepages: with --no-huge DPDK keeps its memory in a memfd, which it can share.
# Needs check.sh.

TESTPMD=${TESTPMD:-dpdk-testpmd}
# What testpmd is started under, for example (ip netns exec NAME).
TESTPMD_UNDER=()

# testpmd NAME CPU DEVICES [TESTPMD ARGUMENT...]: all threads on one CPU; DEVICES are separated by blanks
testpmd() {
    local name=$1 cpu=$2 devices=()
    read -ra devices <<< "$3"
    shift 3
    spawn "$name" ${TESTPMD_UNDER[@]+"${TESTPMD_UNDER[@]}"} "$TESTPMD" --lcores "0@$cpu,1@$cpu" --no-huge -m 64 \
        --no-pci --no-telemetry --file-prefix "$name$$" "${devices[@]/#/--vdev=}" \
        -- --total-num-mbufs=2048 --no-mlockall --stats-period 1 "$@"
}

# vm NAME SOCKET MODE [VIRTIO_USER PROPERTIES]: a VM whose NIC is at SOCKET. MODE: `icmpecho` answers pings; `bounce`
# sends one burst and then what it receives (so with a loopback behind the socket frames go round); `flood` only sends;
# `tap:NAME` hands all frames to a kernel interface NAME, whose IP stack is then the guest's.
vm() {
    local name=$1 socket=$2 mode=$3 device
    device=net_virtio_user0,path=$socket,queues=1,mac=${VM_MAC:-52:54:00:00:00:10}${4:+,$4}
    case $mode in
        icmpecho) testpmd "$name" "${VM_CPU:-0}" "$device" --forward-mode=icmpecho --auto-start;;
        bounce) testpmd "$name" "${VM_CPU:-0}" "$device" --forward-mode=io --port-topology=loop --tx-first;;
        tap:*)
            testpmd "$name" "${VM_CPU:-0}" "$device net_tap0,iface=${mode#tap:},mac=${VM_MAC:-52:54:00:00:00:10}" \
                --forward-mode=io --auto-start;;
        flood) testpmd "$name" "${VM_CPU:-0}" "$device" --forward-mode=txonly --auto-start;;
    esac
}

# back_end NAME CPU SOCKET: testpmd listens on SOCKET and sends every frame back
back_end() { testpmd "$1" "$2" "net_vhost0,iface=$3,queues=1" --forward-mode=io --port-topology=loop --auto-start; }

# received NAME: frames that testpmd has received until its last report
received() {
    local n
    n=$(sed -n 's/^ *RX-packets: \([0-9]*\) .*RX-missed.*/\1/p' "$OUT/$1.log" | tail -1)
    echo "${n:-0}"
}

# receives NAME [SECONDS [FRAMES]]: so many more frames arrive in the time (default: 1000 within 5 s)
receives() {
    local name=$1 limit=${2:-5} wanted=${3:-1000} before
    before=$(received "$name")
    within "$limit" received_more_than "$name" $((before + wanted)) ||
        { echo "$name received $(($(received "$name") - before)) frames of $wanted; $(tail -1 "$OUT/$name.log")"; return 1; }
}

received_more_than() { running "$1" && [ "$(received "$1")" -ge "$2" ]; }
