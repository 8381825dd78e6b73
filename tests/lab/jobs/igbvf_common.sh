# Sourced by the igbvf jobs: a pair of VFs, the responder on one of them, and checks that are counted.
FAILED=0
LOG=/tmp/responder.log
RESPONDER=${RESPONDER:-$PWD/target/debug/examples/vf_responder}

# load_any_vfio: VFIO, told to do without the interrupt remapping that only VT-d has here
load_any_vfio() { if ls /sys/class/iommu | grep -q dmar; then load_vfio; else load_vfio allow_unsafe_interrupts=1; fi; }
# setup_pair: VF0 with vfio-pci, VF1 with the kernel's igbvf as 10.0.0.2 and fd00::2 on interface $N1
setup_pair() {
    make_vfs "${1:-2}"; load_any_vfio; load igbvf; sleep 2
    bind_vfio "$VF0"
    N1=$(ls "/sys/bus/pci/devices/$VF1/net")
    sysctl -qw "net.ipv6.conf.$N1.accept_dad=0"
    ip link set "$N1" up; ip addr add 10.0.0.2/24 dev "$N1"; ip addr add fd00::2/64 dev "$N1" nodad
    sleep 2
}
start_responder() {
    rm -f /tmp/stop; "$RESPONDER" "$@" --stop /tmp/stop --seconds 240 > "$LOG" 2>&1 & RESPONDER_PID=$!
    for _ in $(seq 100); do grep -q '^started' "$LOG" && break; sleep 0.1; done
    sleep 1
}
stop_responder() { touch /tmp/stop; wait "$RESPONDER_PID"; cat "$LOG"; }
# check COMMAND...: it succeeds, and a ping loses nothing
check() {
    local output status
    output=$("$@" 2>&1); status=$?
    if [ $status = 0 ] && { [ "$1" != ping ] || grep -q ' 0% packet loss' <<< "$output"; }; then
        echo "ok: $*"; grep -s 'packet loss' <<< "$output"
    else
        echo "FAILED ($status): $*"; echo "$output"; FAILED=1
    fi
}
# expect TEXT: the responder has said so
expect() { if grep -q -- "$1" "$LOG"; then echo "ok: said '$1'"; else echo "FAILED: did not say '$1'"; FAILED=1; fi; }
# finish: the job's verdict
finish() { [ $FAILED = 0 ] && echo PASS || { echo FAIL; cat "$LOG"; }; exit $FAILED; }
