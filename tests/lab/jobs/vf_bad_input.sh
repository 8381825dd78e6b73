# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# What users get wrong about VFs: each time a message that says what, and a daemon that goes on as before.
# expect: no_such_address not_on_vfio no_vf relay_in_use vf_in_use wrong_vf_removed
# expect: no_permission_on_vfio static_vf_missing traffic_untouched daemon_unharmed
# timeout: 120
. tests/lab/relay.sh

scene 3
bind_vfio "$VF2"
forwarder daemon --add-pci-vf "$VF0=1" || { not_ok traffic_untouched "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
vm vm "$(socket 1)" icmpecho
traffic > /dev/null
spawn pings ping -i 0.1 "$PEER"

add() { pc add --virtio-id "$1" --pci-addr "$2"; }
refused no_such_address '0000:99:00.0' add 2 0000:99:00.0
refused not_on_vfio 'igbvf.*vfio-pci|vfio-pci.*igbvf' add 2 "$VF1"
refused no_vf "$(basename "$(readlink "/sys/class/net/$PF/device")")" add 2 "$(basename "$(readlink "/sys/class/net/$PF/device")")"
refused relay_in_use 'relay|occupied|has a device' add 1 "$VF2"
refused vf_in_use 'in use|already|relay 1' add 2 "$VF0"
refused wrong_vf_removed "$VF2|$VF0" pc remove --virtio-id 1 --pci-addr "$VF2"

# An ordinary user may not open the group's file, and is told so. The daemon itself may start as anybody.
mkdir -m 777 "$RUN/nobody"
unprivileged() {
    as_another_user timeout 10 "$TARGET/virtio-forwarder" --cpus 1 --relays 4 --vhost-path "$RUN/nobody/vhost" \
        --control-socket "$RUN/nobody/control.sock" --add-pci-vf "$VF2=1"
}
refused no_permission_on_vfio '/dev/vfio.*permission|permission.*/dev/vfio' unprivileged
refuses_to_start static_vf_missing '0000:99:00.0' --cpus 1 --relays 4 --vhost-path "$RUN/static" --add-pci-vf 0000:99:00.0=1

stop pings INT
check traffic_untouched no_answer_missing
check daemon_unharmed unharmed daemon "$daemon"
