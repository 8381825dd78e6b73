# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# What users get wrong about VFs: each time a message that says what, and a daemon that goes on as before.
# nightly
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

# A daemon that runs as an ordinary user may not open the group's file, and one may name a VF that is not there: both
# are errors in the log, and the other relays are served.
install -d -m 755 -o nobody "$RUN/nobody"
spawn nobody setpriv --reuid nobody --regid nogroup --clear-groups --inh-caps=-all "$TARGET/virtio-forwarder" --cpus 1 \
    --relays 4 --vhost-path "$RUN/nobody/vhost" --control-socket "$RUN/nobody/control.sock" \
    --add-pci-vf "$VF2=1" --add-pci-vf 0000:99:00.0=2
check no_permission_on_vfio within 20 says nobody '/dev/vfio.*permission|permission.*/dev/vfio'
check static_vf_missing within 20 says nobody '0000:99:00.0'
stop nobody

stop pings INT
check traffic_untouched no_answer_missing
check daemon_unharmed unharmed daemon "$daemon"
