# shellcheck shell=bash source-path=SCRIPTDIR
# The VM (DPDK's virtio_user) or the back end is killed with SIGKILL under traffic, a loopback behind the socket; with
# either side as the server of the socket. The names of the checks say WHO.RING.QUEUES.SIDE: who is killed, which side the
# back end is. Each is done three times; then numbered frames must come back unharmed.
#
# Where the VM is the server it lives through the death of the back end, and goes on when that is back: its frames are
# numbered throughout, and those lost or repeated are counted. Elsewhere virtio_user cannot go on by itself, and a new VM
# takes the socket.
# expect: vm.split.1.server vm.split.4.server vm.packed.1.server vm.packed.4.server
# expect: vm.split.1.client vm.split.4.client vm.packed.1.client vm.packed.4.client
# expect: back_end.split.1.server back_end.split.4.server back_end.packed.1.server back_end.packed.4.server
# expect: back_end.split.1.client back_end.split.4.client back_end.packed.1.client back_end.packed.4.client
# timeout: 400
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
. "$(dirname "$0")/../lib/matrix.sh"

KILLS=3
FLOW=1000000 # frames of 60 bytes: a second or two
LIMIT=20    # seconds for traffic to return. A start of DPDK takes one on a quiet machine, a reconnection of it another.

# start_vm NAME RING QUEUES SIDE [IN]: with bursts of one, which make the flow last
start_vm() {
    local properties=packed_vq=0 in=${5:-$frames_dir/flow.$3}
    [ "$2" = split ] || properties=packed_vq=1
    [ "$4" = server ] || properties+=,server=1
    numbered_vm "$1" "$(socket 0)" "$3" "$properties" "$in" "$frames_dir/out" --burst=1
}

# reaches NAME FRAMES: the VM has received so many; TOOK says after which time
counts() { tell "$1" 'show port stats 0'; sleep 0.02; received_more_than "$1" "$2"; }
reaches() {
    within "$LIMIT" counts "$1" "$2" || { echo "$1 is at $(received "$1") frames"; return 1; }
    has_nic "$1"
}

# all_return NAME RING QUEUES SIDE: a VM whose frames all come back
all_return() {
    local queue ins="" outs=()
    for ((queue = 0; queue < $3; queue++)); do
        ins+=${ins:+,}$frames_dir/few.$3.$queue outs+=("$frames_dir/out.$queue")
    done
    start_vm "$1" "$2" "$3" "$4" "$frames_dir/few.$3"
    counted_back "$1" 20000 5
    quits "$1" && negotiated "$1" "$RING_PACKED" "$([ "$2" = split ] && echo 0 || echo 1)" &&
        "$pcap_frames" compare 0 "$ins" "${outs[@]}"
}

kill_vm() {
    local name=$1 i longest=0
    for ((i = 1; i <= KILLS; i++)); do
        start_vm "$name.$i" "$2" "$3" "$4"
        reaches "$name.$i" 2000 || return 1
        [ "$TOOK" -lt "$longest" ] || longest=$TOOK
        stop "$name.$i" KILL
    done
    all_return "$name.last" "$2" "$3" "$4" && running "back_end.$4" || return 1
    note "$KILLS times, longest time from the start of a VM to its traffic: $longest ms"
}

# The VM dies with it, for it does not connect again.
kill_server() {
    local name=$1 i longest=0
    for ((i = 1; i <= KILLS; i++)); do
        start_vm "$name.$i" "$2" "$3" server
        reaches "$name.$i" 2000 || return 1
        [ "$TOOK" -lt "$longest" ] || longest=$TOOK
        stop back_end.server KILL
        stop "$name.$i" KILL
        serves server
    done
    all_return "$name.last" "$2" "$3" server || return 1
    note "$KILLS times, longest time from the start of a VM to its traffic: $longest ms"
}

# The VM goes on. It resets a packed ring when it is connected again, and with it all frames under way are lost. Before
# that it gives its own data path 1 ms to end (virtio_user_reset_queues_packed), which on a busy machine is too little: it
# has been seen to wreck its ring, with testpmd as the back end, too. So there, and only there, a second try is allowed.
kill_client() {
    kill_client_once "$@" && return
    [ "$2" = packed ] || return 1
    echo "once more after: $(tail -1 "$scratch")"
    stop "$1" KILL
    running back_end.client || serves client
    kill_client_once "$@"
}

kill_client_once() {
    local name=$1 i longest=0 before killed limit=$((KILLS * 64)) queue ins="" outs=()
    [ "$2" = split ] || limit=$((KILLS * $3 * 1280))
    for ((queue = 0; queue < $3; queue++)); do
        ins+=${ins:+,}$frames_dir/flow.$3.$queue outs+=("$frames_dir/out.$queue")
    done
    start_vm "$name" "$2" "$3" client
    for ((i = 1; i <= KILLS; i++)); do
        reaches "$name" $((FLOW * i / (KILLS + 3))) || return 1
        now_ms; killed=$NOW
        stop back_end.client KILL
        counts "$name" 0
        before=$(received "$name")
        [ "$before" -lt $FLOW ] || { echo "kill $i came after the flow's end"; return 1; }
        serves client
        reaches "$name" $((before + 1000)) || return 1
        now_ms
        [ $((NOW - killed)) -lt "$longest" ] || longest=$((NOW - killed))
    done
    counted_back "$name" $FLOW 2
    quits "$name" && negotiated "$name" "$RING_PACKED" "$([ "$2" = split ] && echo 0 || echo 1)" &&
        "$pcap_frames" compare "$limit" "$ins" "${outs[@]}" || return 1
    note "$KILLS times, longest time without traffic $longest ms; $(sed -n 's/^# //p' "$scratch" | tail -1)"
}

# rounds COMMAND...: as often as was asked for; the name of a check (the second word) gets a number
rounds() {
    local round
    for ((round = 1; round <= ${ROUNDS:-1}; round++)); do "$1" "$2.$round" "${@:3}" || return 1; done
}

for queues in 1 4; do
    flow=() few=()
    for ((queue = 0; queue < queues; queue++)); do
        flow+=("$frames_dir/flow.$queues.$queue") few+=("$frames_dir/few.$queues.$queue")
    done
    "$pcap_frames" generate $FLOW 60 "${flow[@]}"
    "$pcap_frames" generate 20000 1514 "${few[@]}"
done
for side in server client; do
    serves $side
    for name in ${CELLS:-$(announced "$0")}; do
        IFS=. read -r who ring queues its_side <<< "$name"
        [ "$its_side" = $side ] || continue
        case $who in
            vm) check "$name" rounds kill_vm "$name" "$ring" "$queues" $side;;
            back_end) check "$name" rounds kill_$side "$name" "$ring" "$queues";;
        esac
        running "back_end.$side" || serves $side
    done
    stop "back_end.$side" > /dev/null
    rm -rf "$VHOST_DIR"
done
