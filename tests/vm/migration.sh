# shellcheck shell=bash source-path=SCRIPTDIR
# A Linux guest migrates from one QEMU to another and back, and a migration is cancelled, each under a flow of 1000
# numbered frames a second (echo requests from the far end, answered by the guest). The two QEMUs are at two relays whose
# taps are in one bridge, as if they were on two hosts. The guest keeps rewriting memory and checks what it finds.
#
# The guest does not announce itself (guest_announce=off): the bridge learns where it is from the RARP that the back end
# sends for it, or never.
# expect: traffic_before cancelled traffic_after_cancel
# expect: migrated memory_after rarp traffic_after frames_lost
# expect: migrated_back memory_back rarp_back traffic_back frames_lost_back no_duplicates daemon_unharmed
# timeout: 200
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
. "$(dirname "$0")/../lib/far_side.sh"
tiny_vm=$(dirname "$0")/tiny-vm
lib=$(dirname "$0")/../lib

far_side 1500
if [ "${BACK_END:-forwarder}" = testpmd ]; then
    mkdir -p "$VHOST_DIR"
    for relay in 0 1; do
        testpmd "daemon$relay" "$FORWARDER_CPUS" "net_vhost0,iface=$(socket $relay) net_tap0,iface=vm$relay" \
            --forward-mode=io --auto-start --disable-link-check
        within 20 says "daemon$relay" 'packet forwarding - ports=2'
    done
    # net_tap and io forward no offloads.
    nic=,csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_uso4=off,guest_uso6=off
    unharmed_daemon() { running daemon0 && running daemon1; }
else
    forwarder daemon --enable-mrgbuf --add-device tap:vm0=0 --add-device tap:vm1=1 ||
        { not_ok daemon_unharmed "it did not start"; exit 1; }
    daemon=${pids[daemon]} nic=""
    unharmed_daemon() { unharmed daemon "$daemon"; }
fi
join vm0 1500
join vm1 1500

# The guest rewrites one file in memory from another and checks both, over and over.
# shellcheck disable=SC2016 # the guest expands these
life='
    head -c 8M /dev/urandom > /kept
    sum=$(sha256sum < /kept)
    i=0
    while true; do
        i=$((i + 1))
        cp /kept /churned
        [ "$(sha256sum < /churned)" = "$sum" ] && echo "memory ok $i" || echo "memory bad $i"
        sleep 0.1
    done'

# guest NAME RELAY [QEMU ARGUMENTS]
guest() {
    VM_NIC=guest_announce=off,${VM_RING:-packed=off}$nic VM_PIDFILE=$OUT/$1.pid VM_MEM=128 \
        VM_QEMU="-qmp unix:$RUN/$1.qmp,server=on,wait=off ${3:-}" \
        spawn "$1" "$tiny_vm" "$(socket "$2")" 52:54:00:01:00:02 10.1.0.2/24 "$life"
}
qmp() { timeout 60 "$lib/qmp.py" "$RUN/$1.qmp" "${@:2}"; }
ends() { qmp "$1" quit > /dev/null 2>&1; within 5 gone "$1" > /dev/null; stop "$1" > /dev/null; }
answers() { in_far ping -c 20 -i 0.02 -W 1 -q 10.1.0.2; }
answered() { within "${1:-5}" in_far ping -c 1 -W 1 -q 10.1.0.2 && note "after $TOOK ms"; }

# The flow: numbered, so that what is lost and what comes twice is known. Its gaps are the times without traffic.
flow_starts() {
    spawn "flow.$1" ip netns exec "$far" ping -i 0.001 -D -W 1 10.1.0.2
    spawn "capture.$1" ip netns exec "$far" "$lib/wire_check.py" end 1514
    sleep 1
}
flow_ends() { sleep 1; stop "flow.$1" INT; stop "capture.$1" TERM 20; }
# lost NAME LIMIT: frames of the flow that were not answered, and the longest gap
lost() {
    local sent got gap
    sent=$(sed -n 's/^\([0-9]*\) packets transmitted.*/\1/p' "$OUT/flow.$1.log")
    got=$(sed -n 's/.* \([0-9]*\) received.*/\1/p' "$OUT/flow.$1.log" | tail -1)
    gap=$(awk -F'[][]' '/icmp_seq/ {if (last && $2 - last > gap) gap = $2 - last; last = $2} END {printf "%d", gap * 1000}' \
        "$OUT/flow.$1.log")
    note "${sent:-0} sent, $((${sent:-0} - ${got:-0})) lost, longest gap $gap ms"
    [ "${sent:-0}" -gt 500 ] && [ $((sent - got)) -le "$2" ] || { echo "$((sent - got)) of $sent lost, gap $gap ms"; return 1; }
}
duplicates() {
    local name count all=0
    for name in "$@"; do
        count=$(sed -n 's/.* +\([0-9]*\) duplicates.*/\1/p' "$OUT/flow.$name.log")
        all=$((all + ${count:-0}))
    done
    note "$all frames twice"
    [ $all -le $((32 * $#)) ] || { echo "$all frames came twice"; return 1; }
}
# keeps NAME: the guest, now in that QEMU, finds its memory as it was: three more rounds
rounds() { grep -c '^memory ok' "$OUT/$1.log"; }
more_rounds() { [ "$(rounds "$1")" -ge "$2" ]; }
keeps() {
    within 20 more_rounds "$1" $(($(rounds "$1") + 3)) || return 1
    ! grep -m1 '^memory bad' "$OUT"/here*.log "$OUT"/there*.log
}
rarp_seen() { says "capture.$1" '[1-9][0-9]* rarp' && note "$(grep -o '[0-9]* rarp' "$OUT/capture.$1.log")"; }

guest here 0
within 60 in_far ping -c 1 -W 1 10.1.0.2 > /dev/null
check traffic_before answers

# Cancelled: a destination that is too slow to fill.
cancel() {
    guest there0 1 "-incoming unix:$RUN/migrate0"
    within 20 [ -S "$RUN/migrate0" ] || return 1
    qmp here migrate-set-parameters '{"max-bandwidth": 1000000}' > /dev/null
    qmp here migrate "{\"uri\": \"unix:$RUN/migrate0\"}" > /dev/null || return 1
    sleep 1
    qmp here query-migrate | grep -q '"status": "active"' || { qmp here query-migrate; return 1; }
    qmp here migrate_cancel > /dev/null
    within 10 cancelled
}
cancelled() { qmp here query-migrate | grep -q '"status": "cancelled"'; }
check cancelled cancel
qmp here migrate-set-parameters '{"max-bandwidth": 134217728}' > /dev/null
ends there0
check traffic_after_cancel answers

# moves NAME FROM TO RELAY: under the flow
moves() {
    guest "$3" "$4" "-incoming unix:$RUN/migrate.$1"
    within 20 [ -S "$RUN/migrate.$1" ] || return 1
    flow_starts "$1"
    qmp "$2" move "unix:$RUN/migrate.$1" 40
}
check migrated moves there here there 1
check traffic_after answered 5
check memory_after keeps there
flow_ends there
ends here
check rarp rarp_seen there
# A second's worth: QEMU itself stops the guest for up to 300 ms, and more on a busy machine.
check frames_lost lost there 1500

check migrated_back moves back there here2 0
check traffic_back answered 5
check memory_back keeps here2
flow_ends back
ends there
check rarp_back rarp_seen back
check frames_lost_back lost back 1500
check no_duplicates duplicates there back
ends here2
check daemon_unharmed unharmed_daemon
