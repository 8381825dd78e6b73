# shellcheck shell=bash disable=SC2034,SC2119 # names that jobs use; load_vfio has an optional argument
# The scene of most lab jobs: VF0 of the 82576 for the daemon (vfio-pci, VT-d), VF1 as `vf1` with the kernel's igbvf and
# 10.0.0.2 and fd00::2, from where the pings come. The NIC switches frames between its VFs.
# shellcheck source-path=SCRIPTDIR
. tests/lib/check.sh
. tests/lib/ping.sh
. tests/lib/testpmd.sh
. tests/lib/forwarder.sh
. "${LAB_LIB:-tests/lab}/vfs.sh"

# Emulation is slow, and slower when the host is busy: waits are this many times what a real machine would need.
SLOW=10
PEER=10.0.0.9 # any address: testpmd's icmpecho answers to all of them

# scene NVFS: the VFs and their drivers
scene() {
    make_vfs "$1"
    load_vfio
    kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
    bind_vfio "$VF0"
}

answers() { ping -c 1 -W 1 "${1:-$PEER}"; }

# traffic [SECONDS]: waits for the first answer; TOOK is how long that took
traffic() { within "${1:-30}" answers; }

silent() { ! ping -c 2 -i 0.1 -W 1 "$PEER"; }

# counters_say_at_least FRAMES: relay 1 has counted so many in each direction
counters_say_at_least() {
    local direction n
    for direction in vf_to_vm vm_to_vf; do
        n=$(counter 1 $direction rx_frames)
        [ "$n" -ge "$1" ] || { echo "$direction: $n frames"; return 1; }
    done
}

# vf_is_quiet ADDR: bus mastering, bit 2 of the command register, is off
vf_is_quiet() { [ $((0x$(setpci -s "$1" COMMAND) & 4)) = 0 ]; }

# counters_move, counters_rest: the guest of relay 1 is sending; and it is stuck
sent() { counter 1 vm_to_vf tx_frames; }
counters_move() { local before; before=$(sent); sleep 0.5; [ "$(sent)" -gt "$before" ]; }
counters_rest() { local before; before=$(sent); sleep 1; [ "$before" -gt 0 ] && [ "$(sent)" = "$before" ]; }

# no_answer_missing: of the pings that `spawn pings ping ...` sent, except that the last one may have been on its way
no_answer_missing() {
    local sent received
    read -r sent received < <(sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) received.*/\1 \2/p' "$OUT/pings.log")
    note "$received of $sent"
    [ "${sent:-0}" -gt 10 ] && [ $((sent - received)) -le 1 ]
}

# capture: from now on the far side looks at every frame that it receives, as it was on the wire: vf1 merges none
capture() {
    ethtool -K vf1 gro off rx off > /dev/null
    wrong_sums_before=$(wrong_sums)
    spawn capture tests/lib/wire_check.py vf1 1514
    within 20 says capture ready
}
# every_checksum PATTERN...: was right, and no frame too long; and it has seen all of these
every_checksum() {
    local pattern
    stop capture TERM 60
    note "$(tail -1 "$OUT/capture.log" | sed "s|^# ||")"
    for pattern in "$@" ' 0 not looked at'; do
        [ "$STATUS" = 0 ] && says capture "$pattern" || { tail -4 "$OUT/capture.log"; return 1; }
    done
}
# What this kernel has found wrong since it booted: TCP, UDP and ICMP, of both IPs.
wrong_sums() { nstat -asz | awk '/InCsumErrors/ {sum += $2} END {print sum}'; }
kernel_agrees() {
    local sums
    sums=$(wrong_sums)
    [ "$sums" = "$wrong_sums_before" ] || { echo "$sums wrong checksums, $wrong_sums_before before"; return 1; }
}
# on_the_wire: frames that the capture has seen
on_the_wire() { sed -n 's/^# \([0-9]*\) frames.*/\1/p' "$OUT/capture.log"; }
