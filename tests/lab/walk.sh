# shellcheck shell=bash source-path=SCRIPTDIR/../.. disable=SC2034 # PF is for jobs
# From a bare host to a forwarded VM and back, as docs/operations.md has it: one 82576 without VFs, no vfio module, and
# nothing but port_control's commands. The far side of the traffic is the kernel's driver on the second VF.
. tests/lab/relay.sh

host() { timeout 60 "$TARGET/port_control" --control-socket "$CONTROL" "$@"; }
# exits STATUS COMMAND...: prints what it printed
exits() {
    local expected=$1 status=0
    shift
    "$@" || status=$?
    [ "$status" = "$expected" ] || { echo "exit status $status"; return 1; }
}
# tells PATTERN COMMAND...: succeeds, and says so
tells() {
    local pattern=$1 output
    shift
    output=$("$@" 2>&1) || { echo "exit status $?: $output"; return 1; }
    note "$(paste -sd '|' <<< "$output")"
    grep -Eq -- "$pattern" <<< "$output" || { echo "no '$pattern' in: $output"; return 1; }
}
advice() { host doctor | paste -sd ' '; return 0; }
pci() { basename "$(readlink "/sys/bus/pci/devices/$1/$2")"; }

# bare_host: nothing is prepared, whatever job was before; sets PF (netdev) and PFA (its address)
bare_host() {
    local dev vf
    modules
    for dev in /sys/class/net/*; do
        if [ -e "$dev/device/sriov_totalvfs" ]; then PF=$(basename "$dev"); fi
    done
    PFA=$(basename "$(readlink "/sys/class/net/$PF/device")")
    ip link set lo up
    for vf in "/sys/class/net/$PF/device"/virtfn*; do
        if [ -e "$vf/driver" ]; then basename "$(readlink "$vf")" > "$vf/driver/unbind"; fi
    done
    ip link set "$PF" down
    echo 0 > "/sys/class/net/$PF/device/sriov_numvfs"
    echo 1 > "/sys/class/net/$PF/device/sriov_drivers_autoprobe"
    unload_vfio
    if [ -e /sys/module/igbvf ]; then rmmod igbvf; fi
}

# make_and_set: two VFs with addresses; sets VF0 and VF1; then loads igbvf, as udev would, and VF0 is up for a while, as with
# a manager of networks
make_and_set() {
    check created tells "$PF has 2 VFs now, 0 before" host vfs create "$PF" 2 --up
    VF0=$(pci "$PFA" virtfn0)
    VF1=$(pci "$PFA" virtfn1)
    check set tells 'MAC 52:54:00:00:00:10, VLAN none, spoof check off' set_both
    modprobe igbvf
    within 20 test -d "/sys/bus/pci/devices/$VF0/net" > /dev/null
    ip link set "$(ls "/sys/bus/pci/devices/$VF0/net")" up
    ip link set "$(ls "/sys/bus/pci/devices/$VF0/net")" down
}
set_both() {
    host vfs set "$VF0" --mac 52:54:00:00:00:10 --spoofchk off && host vfs set "$VF1" --mac 52:54:00:00:00:11
}

# forward: VF0 to relay 1, a VM, and pings from VF1 through all of it
forward() {
    forwarder daemon --add-pci-vf "$VF0=1"
    vm vm "$(socket 1)" icmpecho
    # The VM takes long to start on a busy host.
    check traffic traffic 90
}

# give_back: VF0 to igbvf, which pings
give_back() {
    check unbound tells "$VF0 taken from vfio-pci, now with igbvf" host unbind "$VF0"
    check unbound_works kernel_pings
}
kernel_pings() {
    within 20 test -d "/sys/bus/pci/devices/$VF0/net" || return 1
    ip netns add other
    ip link set "$(ls "/sys/bus/pci/devices/$VF0/net")" name vf0
    ip link set vf0 netns other
    ip -n other addr add 10.0.0.3/24 dev vf0
    ip -n other link set vf0 up
    within 20 ping -c 1 -W 1 10.0.0.3
}

# no_drivers_on_vfs: they have been seen to hang when their VFs go
no_drivers_on_vfs() {
    local vf
    ip netns del other
    ip link set vf1 down
    for vf in "$VF0" "$VF1"; do echo "$vf" > "/sys/bus/pci/devices/$vf/driver/unbind"; done
}
