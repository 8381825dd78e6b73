# shellcheck shell=bash source-path=SCRIPTDIR
# Two VMs (DPDK's virtio_user) at the ends of one cable. Numbered frames both ways, compared byte by byte; then either VM is
# killed under traffic, and the next one takes its place while the other stays; then the cable is pulled.
#
# The names of cells are RING_NEAR.RING_FAR.QUEUES_NEAR.QUEUES_FAR. As two VMs share a CPU, either sends in one go what the
# other's receive rings hold. `many` has both in one process, which receives as often as it sends.
# expect: split.split.1.1 packed.split.4.1 split.packed.1.4 many
# expect: kill_far kill_near sockets_refused cable_is_pulled daemon_unharmed daemon_stops
# timeout: 120
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
. "$(dirname "$0")/../lib/matrix.sh"

EACH=700 # frames a VM sends in a cell: of one queue, less than the ring of 1024 holds
far=$VHOST_DIR/far.sock

# state EXPRESSION: something of relay 0, in Python
state() { pc list --json | python3 -c "import json, sys; relay = json.load(sys.stdin)[0]; print($1)"; }
# Their rings run from when testpmd has found its devices; buffers to receive into are there once its ports are started.
both_run() { says near 'forwarding mode with retry' && says far 'forwarding mode with retry' && rings_run; }
rings_run() { [ "$(state "relay['guest_state'] + relay['device']['guest_state'] + relay['device_state']")" = VIRTIO_READYVIRTIO_READYDPDK_READY ]; }

# inputs SIDE QUEUES FRAMES: numbered frames for a VM, and the names of its files
inputs() {
    local queue
    ins=() outs=()
    for ((queue = 0; queue < $2; queue++)); do
        ins+=("$frames_dir/$1.in.$queue") outs+=("$frames_dir/$1.out.$queue")
    done
    rm -f "${outs[@]}"
    "$pcap_frames" generate "$3" 1514 "${ins[@]}"
}

joined() { local IFS=,; echo "$*"; }

# arrived DROPPED: what either VM sent has arrived at the other, and the daemon has dropped no more than before
arrived() {
    "$pcap_frames" compare 0 "$(joined "${near_ins[@]}")" "${far_outs[@]}" &&
        "$pcap_frames" compare 0 "$(joined "${far_ins[@]}")" "${near_outs[@]}" || return 1
    [ "$(dropped)" = "$1" ] || { echo "$(($(dropped) - $1)) frames counted as dropped"; return 1; }
}

cell() {
    local near_ring far_ring near_queues far_queues before ins outs near_ins near_outs far_ins far_outs start
    IFS=. read -r near_ring far_ring near_queues far_queues <<< "$1"
    now_ms; start=$NOW
    before=$(dropped)
    inputs near "$near_queues" $EACH; near_ins=("${ins[@]}") near_outs=("${outs[@]}")
    inputs far "$far_queues" $EACH; far_ins=("${ins[@]}") far_outs=("${outs[@]}")
    local VM_WAITS=1
    numbered_vm near "$(socket 0)" "$near_queues" "packed_vq=$([ "$near_ring" = split ] && echo 0 || echo 1)" \
        "$frames_dir/near.in" "$frames_dir/near.out"
    numbered_vm far "$far" "$far_queues" "packed_vq=$([ "$far_ring" = split ] && echo 0 || echo 1),mrg_rxbuf=0" \
        "$frames_dir/far.in" "$frames_dir/far.out"
    within 20 both_run || { echo "they do not run: $(tail -2 "$OUT/near.log" "$OUT/far.log" | paste -sd '|')"; return 1; }
    tell near start
    tell far start
    counted_back near $EACH 5
    counted_back far $EACH 5
    quits near && quits far || return 1
    negotiated near "$RING_PACKED" "$([ "$near_ring" = split ] && echo 0 || echo 1)" &&
        negotiated far "$RING_PACKED" "$([ "$far_ring" = split ] && echo 0 || echo 1)" && arrived "$before" || return 1
    now_ms
    note "$EACH frames each way in $((NOW - start)) ms"
}

# Both VMs in one process: port 0 is the near VM's NIC, port 1 its frames, 2 and 3 those of the far one.
many() {
    local ins outs near_ins near_outs far_ins far_outs before devices nic=queue_size=1024,packed_vq commands=$OUT/both.commands
    inputs near 1 "$FRAMES"; near_ins=("${ins[@]}") near_outs=("${outs[@]}")
    inputs far 1 "$FRAMES"; far_ins=("${ins[@]}") far_outs=("${outs[@]}")
    before=$(dropped)
    printf 'set burst tx delay 1 retry 10000000\nset fwd io retry\n' > "$commands"
    local TESTPMD_MBUFS=32768 start
    now_ms; start=$NOW
    devices="net_virtio_user0,path=$(socket 0),$nic=0 net_pcap0,rx_pcap=${near_ins[0]},tx_pcap=${near_outs[0]}"
    devices+=" net_virtio_user1,path=$far,$nic=1 net_pcap1,rx_pcap=${far_ins[0]},tx_pcap=${far_outs[0]}"
    testpmd both 0 "$devices" --auto-start --cmdline-file="$commands" --no-flush-rx --disable-link-check --txd=256 --rxd=1024
    within 30 all_written || echo "not all arrived"
    stop both INT
    arrived "$before" || return 1
    now_ms
    note "$FRAMES frames each way in $((NOW - start)) ms"
}
# A file of frames has a header of 24 bytes at its start, as that of those sent.
all_written() {
    [ "$(stat -c %s "${near_outs[0]}")" = "$(stat -c %s "${far_ins[0]}")" ] &&
        [ "$(stat -c %s "${far_outs[0]}")" = "$(stat -c %s "${near_ins[0]}")" ]
}

forwarder daemon --enable-mrgbuf --add-device "vhost-user:$far=0" || { not_ok daemon_unharmed "it did not start"; exit 1; }
daemon=${pids[daemon]}

for name in $(announced "$0"); do check "$name" cell "$name"; done
check many many

# One VM sends all the time, the other takes what comes.
kill_far() {
    local i
    vm near.flood "$(socket 0)" flood
    for i in 1 2; do
        vm "far.$i" "$far" icmpecho
        receives "far.$i" 10 || return 1
        stop "far.$i" KILL
        running near.flood && [ "$(state "relay['guest_state']")" = VIRTIO_READY ] || { echo "the near VM has gone, too"; return 1; }
    done
    stop near.flood INT
}
kill_near() {
    local i
    vm far.sink "$far" icmpecho
    for i in 1 2; do
        vm "near.$i" "$(socket 0)" flood
        receives far.sink 10 || return 1
        stop "near.$i" KILL
        running far.sink || { echo "the far VM has gone, too"; return 1; }
    done
}
check kill_far kill_far
check kill_near kill_near

# not_for_a_cable PATH PATTERN: relay 1 does not get a cable there, and the answer says why
not_for_a_cable() {
    local why
    why=$(pc add --virtio-id 1 --device "vhost-user:$1" 2>&1) && { echo "$1 was accepted"; return 1; }
    grep -Eq "$2" <<< "$why" || { echo "$1: not '$2', but $why"; return 1; }
}
sockets_refused() {
    not_for_a_cable "$(socket 2)" 'socket of relay 2 itself' &&
        not_for_a_cable "$VHOST_DIR/../vhost/virtio-forwarder1.sock" 'socket of relay 1 itself' &&
        not_for_a_cable "$far" 'in use by relay 0' &&
        not_for_a_cable relative.sock 'whole path' &&
        not_for_a_cable "$RUN/none/far.sock" 'make its directory' &&
        not_for_a_cable /tmp/far.sock 'everybody can write'
}
check sockets_refused sockets_refused

# While a VM is there: its connection ends, and the socket goes.
cable_is_pulled() {
    pc remove --virtio-id 0 --device "vhost-user:$far" && [ ! -e "$far" ] && [ "$(state "relay['device']")" = None ] || return 1
    pc add --virtio-id 0 --device "vhost-user:$far" && [ -S "$far" ] && [ "$(state "relay['device_state']")" = DPDK_ADDED ]
}
check cable_is_pulled cable_is_pulled
stop far.sink KILL

check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
