# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The steps of the walk without daemon and VM, short enough for every day; host_walk has all of it. The doctor's advice is followed from a
# bare host to VFs that it calls ready, and back.
# expect: doctor_fails created set bound doctor_finds_vfs up_is_not_taken unbound removed
# nightly
# timeout: 120
. tests/lab/walk.sh

bare_host
check doctor_fails exits 2 host doctor
make_and_set
check bound tells "$VF0 taken from igbvf, now with vfio-pci" host bind "$PF:1"
check doctor_finds_vfs tells "VFs for relays +1 of 2 VFs are with vfio-pci" advice
ip link set "$(ls "/sys/bus/pci/devices/$VF1/net")" up
refused up_is_not_taken 'is up.*ip link set .* down' host bind "$PF"
check unbound tells "$VF0 taken from vfio-pci, now with igbvf" host unbind "$VF0"
ip link set "$(ls "/sys/bus/pci/devices/$VF1/net")" down
for vf in "$VF0" "$VF1"; do echo "$vf" > "/sys/bus/pci/devices/$vf/driver/unbind"; done
check removed tells "$PF has 0 VFs now, 2 before" host vfs remove "$PF"
