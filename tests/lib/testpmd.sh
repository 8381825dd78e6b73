# shellcheck shell=bash
# DPDK's testpmd, in two roles. As a VM: its virtio_user driver is a foreign vhost-user front end with a driver side of
# its own. As a back end (net_vhost): the yardstick for ours, and the proof that a scenario works without ours.
# Neither needs hugepages: with --no-huge DPDK keeps its memory in a memfd, which it can share.
# Needs check.sh.

TESTPMD=${TESTPMD:-dpdk-testpmd}
# What testpmd is started under, for example (ip netns exec NAME).
TESTPMD_UNDER=()

# Further arguments of the EAL, and the memory.
TESTPMD_EAL=()
TESTPMD_MBUFS=2048
# Its PCI devices: none, unless they are given by (-a ADDR ...).
TESTPMD_PCI=(--no-pci)

# testpmd NAME CPU DEVICES [TESTPMD ARGUMENT...]: all threads on one CPU; DEVICES are separated by blanks
testpmd() {
    local name=$1 cpu=$2 devices=()
    read -ra devices <<< "$3"
    shift 3
    spawn "$name" ${TESTPMD_UNDER[@]+"${TESTPMD_UNDER[@]}"} "$TESTPMD" --lcores "0@$cpu,1@$cpu" --no-huge \
        -m $((56 + TESTPMD_MBUFS / 256)) "${TESTPMD_PCI[@]}" --no-telemetry --file-prefix "$name$$" "${devices[@]/#/--vdev=}" \
        ${TESTPMD_EAL[@]+"${TESTPMD_EAL[@]}"} \
        -- --total-num-mbufs="$TESTPMD_MBUFS" --no-mlockall --stats-period 1 "$@"
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

# back_end NAME CPU SOCKET [QUEUES [PROPERTIES]]: testpmd serves SOCKET and sends every frame back. It loses none: where
# the VM has no room it waits, and what is in the VM's rings when it starts it does not throw away.
back_end() {
    printf 'set burst tx delay 1 retry 10000000\nset fwd io retry\n' > "$OUT/$1.commands"
    TESTPMD_MBUFS=16384 testpmd "$1" "$2" "net_vhost0,iface=$3,queues=${4:-1}${5:+,$5}" --forward-mode=io \
        --port-topology=loop --auto-start --cmdline-file="$OUT/$1.commands" --no-flush-rx --disable-link-check \
        --rxq="${4:-1}" --txq="${4:-1}"
}

# told_testpmd NAME CPU DEVICES [TESTPMD ARGUMENT...]: one that takes commands, from `tell NAME COMMAND`
declare -A told=() # the file descriptor of its commands, by name
told_testpmd() {
    local commands=$OUT/$1.commands fd
    rm -f "$commands"
    mkfifo "$commands"
    exec {fd}<> "$commands"
    told[$1]=$fd
    # shellcheck disable=SC2016 # the inner shell expands these
    local TESTPMD_UNDER=(${TESTPMD_UNDER[@]+"${TESTPMD_UNDER[@]}"} bash -c 'exec stdbuf -oL "${@:2}" 0<> "$1"' bash "$commands")
    testpmd "$1" "$2" "$3" --interactive "${@:4}"
}

# pcap_vm NAME SOCKET QUEUES PROPERTIES IN OUT [TESTPMD ARGUMENT...]: a VM between its NIC (port 0) and the pcap files IN.0,
# IN.1 ... (one a queue), which it is to send once, and OUT.0 ..., where what it receives goes. Its ports are not started yet.
# `tell NAME COMMAND` gives it a command; `quit` ends it.
pcap_vm() {
    local name=$1 socket=$2 queues=$3 properties=$4 in=$5 out=$6 files="" queue
    shift 6
    for ((queue = 0; queue < queues; queue++)); do files+=,rx_pcap=$in.$queue,tx_pcap=$out.$queue; done
    [[ $properties != *server=1* ]] || rm -f "$socket" # it does not take the place of a dead one's
    local TESTPMD_EAL=(--log-level=pmd.net.virtio.init:debug --force-max-simd-bitwidth=512) TESTPMD_MBUFS=32768
    # Without --no-flush-rx testpmd empties all receive queues before it starts: the file would be read for nothing.
    told_testpmd "$name" "${VM_CPU:-0}" \
        "net_virtio_user0,path=$socket,queues=$queues,queue_size=1024,mac=52:54:00:00:00:10,$properties net_pcap0$files" \
        --disable-device-start --no-flush-rx --disable-link-check --rxq="$queues" --txq="$queues" \
        --txd=256 --rxd=1024 "$@"
}

# numbered_vm NAME SOCKET QUEUES PROPERTIES IN OUT [TESTPMD ARGUMENT...]: as pcap_vm, and it begins. It drops none of its
# own: where a ring is full it waits. As it receives as often as it sends, hardly more frames are under way than the
# transmit ring holds, so the larger receive ring always has room. With VM_WAITS=1 it sends when it is told to (`start`).
numbered_vm() {
    local name=$1
    pcap_vm "$@"
    shift 6
    # Long frames are chains of buffers both ways. Not with --rx-offloads: net_pcap would refuse that.
    [[ " $* " != *" --max-pkt-len"* ]] ||
        tell "$name" 'port config 0 rx_offload scatter on' 'port config 0 tx_offload multi_segs on'
    tell "$name" 'port start all' 'set burst tx delay 1 retry 10000000' 'set fwd io retry'
    [ -n "${VM_WAITS:-}" ] || tell "$name" start
}

# tell NAME COMMAND...: commands for a testpmd that listens to them
tell() { printf '%s\n' "${@:2}" >&"${told[$1]}"; }

# counted_back NAME FRAMES SECONDS: until the VM has received so many frames, and not longer than it makes progress. What
# it has received in the end is for others to judge.
counted_back() {
    local name=$1 frames=$2 limit=$(($3 * 1000)) seen=-1 now since
    now_ms; since=$NOW
    while running "$name"; do
        tell "$name" 'show port stats 0'
        sleep 0.1
        now=$(received "$name")
        now_ms
        if [ "$now" != "$seen" ]; then since=$NOW seen=$now; fi
        if [ "$now" -ge "$frames" ] || [ $((NOW - since)) -gt "$limit" ]; then return; fi
    done
}

# has_nic NAME: its virtio_user came up. Without it testpmd goes on, and sends all frames back by itself.
has_nic() { says "$1" 'ports=2 ' || { echo "$1 has no NIC: $(grep -m1 virtio_user_dev_init "$OUT/$1.log")"; return 1; }; }

# quits NAME: it is told to end in good order, and does
quits() {
    tell "$1" quit
    within 10 gone "$1" || true
    stop "$1" > /dev/null
    local fd=${told[$1]}
    exec {fd}>&-
    [ "$STATUS" = 0 ] || { echo "$1 ended with status $STATUS: $(tail -3 "$OUT/$1.log" | paste -sd '|')"; return 1; }
    has_nic "$1"
}

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
