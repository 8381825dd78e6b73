# shellcheck shell=bash source-path=SCRIPTDIR
# DPDK's virtio_user as the VM, a loopback as the device: what it sends comes back. All combinations of mergeable
# buffers, a VM that leaves in good order and one that is killed, eight times each.
# expect: flows.mrg_rxbuf=1 flows.mrg_rxbuf=0 flows.vectorized=1 stop_start kill_start both_ends_agree
# expect: second_vm_refused first_vm_goes_on daemon_unharmed daemon_stops
# timeout: 120
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"

none() { [ -z "$1" ] || { echo "$1"; return 1; }; }

forwarder daemon --add-device loopback=0 || { not_ok daemon_unharmed "it did not start"; exit 1; }
daemon=${pids[daemon]}
socket=$(socket 0)

for properties in mrg_rxbuf=1 mrg_rxbuf=0 vectorized=1; do
    vm "vm.$properties" "$socket" bounce "$properties"
    check "flows.$properties" receives "vm.$properties" 10 100000
    stop "vm.$properties" INT
done

# An orderly end: the VM takes its rings back (GET_VRING_BASE) before it disconnects.
failed=""
for i in 1 2 3 4 5 6 7 8; do
    vm "stop.$i" "$socket" bounce
    why=$(receives "stop.$i" 10) || failed+=" $why;"
    stop "stop.$i" INT
done
check stop_start none "$failed"

# A crash: in the middle of traffic, without a word.
failed=""
for i in 1 2 3 4 5 6 7 8; do
    vm "kill.$i" "$socket" bounce
    why=$(receives "kill.$i" 10) || failed+=" $why;"
    stop "kill.$i" KILL
done
check kill_start none "$failed"

# A second VM on a socket in use is turned away, and the first one notices nothing.
vm first "$socket" bounce
receives first 10 > /dev/null
vm second "$socket" bounce
check second_vm_refused within 10 says daemon "$SECOND_VM_PATTERN"
check first_vm_goes_on receives first
stop second KILL
stop first INT

# What the VM says that it sent and received, and what the daemon counted, are the same, but for what was under way.
agree() {
    local direction name theirs ours
    for direction in vm_to_vf vf_to_vm; do
        name=tx_frames; [ $direction = vm_to_vf ] && name=rx_frames
        ours=$(($(counter 0 $direction $name) - before[$direction]))
        theirs=$(sed -n "s/^ *${said[$direction]}-packets: \([0-9]*\) .*-total.*/\1/p" "$OUT/count.log" | tail -1)
        note "$direction: $ours frames"
        [ $((ours - theirs)) -le 512 ] && [ $((theirs - ours)) -le 512 ] && [ "$ours" -gt 1000 ] ||
            { echo "$direction: we counted $ours frames, the VM $theirs"; return 1; }
    done
}
declare -A before said=([vm_to_vf]=TX [vf_to_vm]=RX)
before[vm_to_vf]=$(counter 0 vm_to_vf rx_frames)
before[vf_to_vm]=$(counter 0 vf_to_vm tx_frames)
vm count "$socket" bounce
receives count 10 > /dev/null
stop count INT
check both_ends_agree agree

check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
