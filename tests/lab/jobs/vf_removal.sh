# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# VF0 - relay 1 - DPDK's virtio_user as the VM. The VFs are switched off under traffic: the kernel goes on, the relay waits for a
# device, the VM keeps its NIC, and the same relay takes the VF when it is back. Then the VF alone is taken from vfio-pci, and
# at last the whole NIC leaves the bus.
# nightly
# expect: ping kernel_goes_on.1 told.1 relay_waits.1 back.1 kernel_goes_on.2 told.2 relay_waits.2 back.2
# expect: unbound told.3 relay_waits.3 nothing_left_open back.3 unplugged told.4 relay_waits.4 back.4 daemon_unharmed daemon_stops
# timeout: 300
. tests/lab/relay.sh

scene 2
forwarder daemon --add-pci-vf "$VF0=1" || { not_ok ping "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
vm vm "$(socket 1)" flood
check ping within 30 counters_move

told() { [ "$(grep -c "$VF0 is gone.*the relay waits for a device" "$OUT/daemon.log")" = "$1" ]; }
waits() { pc list --json | python3 -c 'import json, sys; sys.exit(any(r["id"] == 1 and r["device"] for r in json.load(sys.stdin)))'; }
# come_back: the VFs are made again, and VF0 is added
come_back() {
    make_vfs 2 && bind_vfio "$VF0" && pc add --virtio-id 1 --pci-addr "$VF0" > /dev/null && within 40 counters_move
}
for i in 1 2; do
    check "kernel_goes_on.$i" timeout 30 bash -c "echo 0 > /sys/class/net/$PF/device/sriov_numvfs"
    check "told.$i" within 10 told "$i"
    check "relay_waits.$i" within 10 waits
    check "back.$i" come_back
done
check unbound timeout 30 bash -c "echo $VF0 > /sys/bus/pci/drivers/vfio-pci/unbind"
check told.3 within 10 told 3
check relay_waits.3 within 10 waits
check nothing_left_open [ -z "$(find "/proc/$daemon/fd" -lname '*vfio*')" ]
check back.3 come_back
check unplugged timeout 30 bash -c "echo 1 > /sys/class/net/$PF/device/remove"
check told.4 within 10 told 4
check relay_waits.4 within 10 waits
echo 1 > /sys/bus/pci/rescan
within 20 compgen -G '/sys/class/net/*/device/sriov_totalvfs' > /dev/null
check back.4 come_back
check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
