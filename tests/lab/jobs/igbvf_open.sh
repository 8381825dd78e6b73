# What opening a VF says when it cannot: each cause is named with its remedy.
. "${LAB_LIB:-tests/lab}/vfs.sh"
. tests/lab/jobs/igbvf_common.sh
# refused TEXT ARGUMENT...: the responder fails and says TEXT
refused() {
    local text=$1 output; shift
    output=$(timeout 20 "$RESPONDER" "$@" --seconds 1 2>&1)
    if [ $? = 1 ] && grep -q -- "$text" <<< "$output"; then echo "ok: $output"; else echo "FAILED: '$text' is not in: $output"; FAILED=1; fi
}
make_vfs 2; load igbvf; sleep 1
refused 'modprobe vfio-pci' "$VF0"
load_vfio
refused 'driver igbvf instead of vfio-pci' "$VF0"
bind_vfio "$VF0" "$VF1"
refused 'lspci -D' 0000:77:00.0
refused 'no driver here knows' 0000:00:1f.2
ip link set "$PF" down
refused "ip link set $PF up" "$VF0"
ip link set "$PF" up; sleep 3
group=$(basename "$(readlink "/sys/bus/pci/devices/$VF0/iommu_group")")
(ulimit -l 64; setpriv --reuid 1000 --clear-groups --inh-caps=-all "$RESPONDER" "$VF0" > /tmp/user.log 2>&1)
check grep -q "chown USER /dev/vfio/$group" /tmp/user.log
# As a user who may: the memory limit counts, unlike for root.
chown 1000 "/dev/vfio/$group"; chmod 666 /dev/vfio/vfio
(ulimit -l 64; exec setpriv --reuid 1000 --clear-groups --inh-caps=-all "$RESPONDER" "$VF0" --seconds 3 > /tmp/user.log 2>&1)
cat /tmp/user.log
check grep -q LimitMEMLOCK=infinity /tmp/user.log
start_responder "$VF0"
refused "fuser -v /dev/vfio/$group" "$VF0"
kill -9 "$RESPONDER_PID"; wait "$RESPONDER_PID"
# A killed owner leaves a VF that opens again.
start_responder "$VF0"
expect '^started'
stop_responder
# Without an address from the PF, one is drawn.
ip link set "$PF" vf 1 mac 00:00:00:00:00:00
start_responder "$VF1"
expect 'drawn by lot'
stop_responder
finish
