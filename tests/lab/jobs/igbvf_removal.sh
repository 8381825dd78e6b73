# The VFs are switched off while one is in use: the driver hears the kernel's wish, lets go, and the kernel goes on.
. "${LAB_LIB:-tests/lab}/vfs.sh"
. tests/lab/jobs/igbvf_common.sh
setup_pair
start_responder "$VF0"
check ping -A -c 100 -w 20 -q 10.0.0.9
check timeout 20 bash -c "echo 0 > /sys/class/net/$PF/device/sriov_numvfs"
stop_responder
expect 'Gone'
check test ! -e "/sys/bus/pci/devices/$VF0"
check test "$(dmesg | grep -c 'segfault\|panicked')" = 0
finish
