# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The VFs are switched off while one is in use: the driver hears the kernel's wish, lets go, and the kernel goes on.
# expect: ping kernel_goes_on responder_ended said_gone vf_is_gone no_crash
# timeout: 90
. tests/lab/responder.sh

scene 2
start_responder "$VF0" > /dev/null
check ping pings 100
check kernel_goes_on timeout 20 bash -c "echo 0 > /sys/class/net/$PF/device/sriov_numvfs"
touch "$STOP"
check responder_ended within 20 gone responder
check said_gone said Gone
check vf_is_gone [ ! -e "/sys/bus/pci/devices/$VF0" ]
check no_crash [ "$(dmesg | grep -c 'segfault\|panicked')" = 0 ]
