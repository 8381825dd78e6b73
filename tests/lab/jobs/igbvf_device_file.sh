# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The igbvf driver through device files and /dev/iommu, which are taken where the kernel has them: two VFs, each in an address
# space of its own; pings, jumbo frames, removal. Then by group on the same kernel, and as a user who may open the group alone.
# nightly
# expect: by_device_file ping ping_8000 no_dma_fault stopped no_iommu_file no_device_file in_use memory_limit probe
# expect: by_group ping_by_group user_by_group ping_again kernel_goes_on responder_ended said_gone no_crash
# timeout: 240
# lab: VFIO=rebuilt
. tests/lab/responder.sh

node() { echo "/dev/vfio/devices/$(ls "/sys/bus/pci/devices/$1/vfio-dev")"; }
# has_open FILE: the responder does
has_open() { [ -n "$(find "/proc/${pids[responder]}/fd" -lname "$1")" ]; }
both_open() { has_open "$(node "$VF0")" && has_open "$(node "$VF2")" && has_open /dev/iommu && ! has_open /dev/vfio/vfio; }
# A user with an ordinary limit of locked memory.
user() { bash -c 'ulimit -l 64; exec setpriv --reuid 1000 --clear-groups --inh-caps=-all "$@"' - "$@"; }

scene 3
bind_vfio "$VF2"
group=$(basename "$(readlink "/sys/bus/pci/devices/$VF0/iommu_group")")
dmesg -C
ip link set vf1 mtu 9000
start_responder "$VF0" "$VF2" > /dev/null
check by_device_file both_open
check ping pings 300
check ping_8000 pings 100 -s 7972 -M "do"
refused in_use 'in use by another process' timeout 20 "$RESPONDER" "$VF0" --seconds 1
check no_dma_fault [ "$(dmesg | grep -c 'DMAR.*fault')" = 0 ]
check stopped stop_responder
check probe timeout 60 "$TARGET/vf_probe" "$VF0" --access device-file --igbvf

# What is missing is named; and that limits count for whoever is not root.
mv /dev/iommu /dev/iommu.away
refused no_iommu_file 'CONFIG_IOMMUFD' timeout 20 "$TARGET/vf_probe" "$VF0" --access device-file
mv /dev/iommu.away /dev/iommu
mv "$(node "$VF0")" /dev/away
refused no_device_file 'CONFIG_VFIO_DEVICE_CDEV' timeout 20 "$TARGET/vf_probe" "$VF0" --access device-file
mv /dev/away "$(node "$VF0")"
chown 1000 "$(node "$VF0")" /dev/iommu
user "$RESPONDER" "$VF0" --seconds 3 > "$OUT/user.log" 2>&1
check memory_limit says user 'LimitMEMLOCK=infinity'
chown 0 "$(node "$VF0")" /dev/iommu

start_responder "$VF0" --by-group > /dev/null
check by_group has_open "/dev/vfio/$group"
# The answers may have come from the other VF.
ip neigh flush dev vf1
within 20 answers > /dev/null
check ping_by_group pings 100
stop_responder > /dev/null
# Who may open the group alone is served by the group.
chown 1000 "/dev/vfio/$group"
chmod 666 /dev/vfio/vfio
user "$TARGET/vf_probe" "$VF0" > "$OUT/user_probe.log" 2>&1
check user_by_group says user_probe "node=/dev/vfio/$group"

start_responder "$VF0" > /dev/null
within 20 answers > /dev/null
check ping_again pings 50
spawn flood ping -f "$PEER"
check kernel_goes_on timeout 20 bash -c "echo 0 > /sys/class/net/$PF/device/sriov_numvfs"
touch "$STOP"
check responder_ended within 20 gone responder
check said_gone said Gone
check no_crash [ "$(dmesg | grep -c 'segfault\|panicked\|BUG:\|WARNING:')" = 0 ]
