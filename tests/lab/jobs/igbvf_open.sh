# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# What opening a VF says when it cannot: each cause is named with its remedy.
# expect: no_vfio wrong_driver no_such_address no_driver_here pf_is_down not_our_file too_little_memory in_use
# expect: opens_after_kill stopped mac_by_lot
# timeout: 120
. tests/lab/responder.sh

opened() { timeout 20 "$RESPONDER" "$@" --seconds 1; }
# A user with an ordinary limit of locked memory.
user() { bash -c 'ulimit -l 64; exec setpriv --reuid 1000 --clear-groups --inh-caps=-all "$@"' - "$RESPONDER" "$@"; }

make_vfs 2
unload_vfio
load igbvf
bind_driver igbvf "$VF0"
refused no_vfio 'modprobe vfio-pci' opened "$VF0"
load_any_vfio
refused wrong_driver 'driver igbvf instead of vfio-pci' opened "$VF0"
bind_vfio "$VF0" "$VF1"
refused no_such_address 'lspci -D' opened 0000:77:00.0
refused no_driver_here 'no driver here knows' opened 0000:00:1f.2
ip link set "$PF" down
refused pf_is_down "ip link set $PF up" opened "$VF0"
ip link set "$PF" up
sleep 3
group=$(basename "$(readlink "/sys/bus/pci/devices/$VF0/iommu_group")")
refused not_our_file "chown USER /dev/vfio/$group" user "$VF0"
# As a user who may: the memory limit counts, unlike for root.
chown 1000 "/dev/vfio/$group"
chmod 666 /dev/vfio/vfio
user "$VF0" --seconds 3 > "$OUT/user.log" 2>&1
check too_little_memory says user 'LimitMEMLOCK=infinity'
start_responder "$VF0" > /dev/null
refused in_use "fuser -v /dev/vfio/$group" opened "$VF0"
# A killed owner leaves a VF that opens again.
stop responder KILL
check opens_after_kill start_responder "$VF0"
check stopped stop_responder
# Without an address from the PF, one is drawn.
ip link set "$PF" vf 1 mac 00:00:00:00:00:00
start_responder "$VF1" > /dev/null
check mac_by_lot said 'drawn by lot'
stop_responder
