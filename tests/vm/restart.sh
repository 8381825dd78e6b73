# shellcheck shell=bash source-path=SCRIPTDIR
# A Linux guest in QEMU lives through the death of its back end: that is killed with SIGKILL under a flow of 1000 echo
# requests a second and started again, three times. As a server QEMU connects to again (reconnect-ms), and as a client of
# QEMU's socket. At the end QEMU itself is killed, and the next guest is served. Checks: WHO.RING.QUEUES.SIDE of the back end.
# expect: back_end.split.1.server back_end.packed.4.server back_end.split.4.client back_end.packed.1.client
# expect: vm.server vm.client
# timeout: 300
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
. "$(dirname "$0")/../lib/far_side.sh"
tiny_vm=$(dirname "$0")/tiny-vm
KILLS=${KILLS:-3}
LIMIT=20 # seconds until traffic is back; ours should take some tenths of one

BACK_END=${BACK_END:-forwarder} nic=""
# net_tap and io forward no offloads.
[ "$BACK_END" = forwarder ] ||
    nic=,csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_uso4=off,guest_uso6=off

far_side 1500
# serves SIDE QUEUES
serves() {
    local client=()
    if [ "$BACK_END" = forwarder ]; then
        [ "$1" = server ] || client=(--vhostuser-client)
        forwarder daemon --enable-mrgbuf --add-device tap:vm0=0 ${client[@]+"${client[@]}"} || return 1
    else
        [ "$1" = server ] || client=(",client=1")
        mkdir -p "$VHOST_DIR"
        [ "$1" = client ] || rm -f "$(socket 0)" # net_vhost does not take the place of a dead one's
        local TESTPMD_MBUFS=16384 # net_tap alone keeps thousands with four queues
        testpmd daemon "$FORWARDER_CPUS" "net_vhost0,iface=$(socket 0),queues=$2${client[*]} net_tap0,iface=vm0" \
            --forward-mode=io --auto-start --rxq="$2" --txq="$2" --disable-link-check --no-flush-rx
        within 20 says daemon 'packet forwarding - ports=2' || return 1
    fi
    join vm0 1500
}

# guest NAME SIDE RING QUEUES
guest() {
    local chardev=reconnect-ms=100
    [ "$2" = server ] || { chardev=server=on,wait=off; mkdir -p "$VHOST_DIR"; rm -f "$(socket 0)"; }
    # shellcheck disable=SC2016 # the guest expands these
    VM_CHARDEV=$chardev VM_QUEUES=$4 VM_NIC=packed=$([ "$3" = packed ] && echo on || echo off)$nic VM_PIDFILE=$OUT/$1.pid \
        VM_TOOLS=ethtool VM_MEM=128 spawn "$1" "$tiny_vm" "$(socket 0)" 52:54:00:01:00:02 10.1.0.2/24 \
        'ethtool -L eth0 combined 4 2> /dev/null; i=0; while sleep 1; do i=$((i + 1)); echo "alive $i"; done'
}
kill_guest() { kill -KILL "$(cat "$OUT/$1.pid")"; stop "$1" > /dev/null; }
answers() { within "$1" in_far ping -c 1 -W 1 -q 10.1.0.2 || { echo "silent: $(tail -2 "$OUT/$2.log" | paste -sd '|')"; return 1; }; }

# killed NAME RING QUEUES SIDE
killed() {
    local name=$1 i longest=0 sent got twice gap
    guest "$name" "$4" "$2" "$3"
    answers 60 "$name" || return 1
    [ -z "${before:-}" ] || { note_vm="after $TOOK ms"; }
    spawn "flow.$name" ip netns exec "$far" ping -i 0.001 -D -W 1 10.1.0.2
    for ((i = 1; i <= KILLS; i++)); do
        sleep 0.7
        now_ms; gap=$NOW
        stop daemon KILL
        serves "$4" "$3" || return 1
        answers "$LIMIT" "$name" || { echo "kill $i"; return 1; }
        now_ms
        [ $((NOW - gap)) -lt $longest ] || longest=$((NOW - gap))
    done
    # It must not only answer: all of it, for a while.
    in_far ping -c 50 -i 0.01 -W 1 -q 10.1.0.2 | grep ' 50 received' || return 1
    stop "flow.$name" INT
    sent=$(sed -n 's/^\([0-9]*\) packets transmitted.*/\1/p' "$OUT/flow.$name.log")
    got=$(sed -n 's/.* \([0-9]*\) received.*/\1/p' "$OUT/flow.$name.log" | tail -1)
    twice=$(sed -n 's/.* +\([0-9]*\) duplicates.*/\1/p' "$OUT/flow.$name.log")
    note "$KILLS times, longest $longest ms until traffic was back; ${sent:-0} sent, $((sent - got)) lost, ${twice:-0} twice"
    [ "${twice:-0}" -le $((KILLS * 64)) ] || { echo "$twice frames came twice"; return 1; }
}
next_vm_served() { [ -n "$note_vm" ] && note "$note_vm"; }

for side in server client; do
    before="" note_vm=""
    for name in ${CELLS:-$(sed -n -e '/^\(#.*\)\{0,1\}$/!q' -e 's/^# expect: *//p' "$0" | tr ' ' '\n' | grep back_end)}; do
        IFS=. read -r _ ring queues its_side <<< "$name"
        [ "$its_side" = $side ] || continue
        if [ "$BACK_END" = testpmd ]; then stop daemon > /dev/null; fi # it has one number of queues
        running daemon || serves $side "$queues"
        check "$name" killed "$name" "$ring" "$queues" $side
        kill_guest "$name"
        stop "flow.$name" INT > /dev/null
        before=$name
    done
    check "vm.$side" next_vm_served
    stop daemon > /dev/null
done
