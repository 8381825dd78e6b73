# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The whole walk on a machine with VT-d, and what is refused on the way.
# nightly
# expect: doctor_fails doctor_says_how list_shows_pf too_many created set group_address_refused
# expect: up_is_not_taken bound bound_twice module_loaded default_route_not_taken live_pf_not_taken
# expect: traffic doctor_is_clean doctor_json list_shows_relay relay_keeps_it relay_keeps_vfs
# expect: unbound unbound_works persisted unit_is_sound forgotten removed
# timeout: 300
. tests/lab/walk.sh

bare_host
check doctor_fails exits 2 host doctor
check doctor_says_how tells 'modprobe vfio-pci.*vfs create' advice
check list_shows_pf tells "$PF +igb +0 of 7 VFs" host vfs list
refused too_many '8 VFs .* 7 at most' host vfs create "$PF" 8
make_and_set
refused group_address_refused 'no address that a NIC can have' host vfs set "$VF0" --mac 01:00:5e:00:00:01

check bound tells "$VF0 taken from igbvf, now with vfio-pci" host bind "${VF0#0000:}"
check bound_twice tells "$VF0 is with vfio-pci already" host bind "$PF:1"
check module_loaded [ -e /sys/module/vfio_pci ]

kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
refused up_is_not_taken 'vf1 is up.*ip link set vf1 down' host bind "$VF1"
ip route add default via 10.0.0.1 dev vf1
refused default_route_not_taken 'default route' host bind "$VF1"
ip route del default
refused live_pf_not_taken 'PF with 2 live VFs' host bind "$PFA"

forward
check doctor_is_clean exits 0 host doctor
check doctor_json tells '"status": "ok"' host doctor --json
check list_shows_relay tells "$VF0 +vf 0 +vfio-pci +group [0-9]+ +52:54:00:00:00:10 +relay 1" host vfs list
refused relay_keeps_it "$VF0 is in use: relay 1" host unbind "$VF0"
refused relay_keeps_vfs "$VF0 is in use: relay 1.*--force" host vfs remove "$PF"
stop vm INT
stop daemon
give_back

check persisted tells 'wrote and enabled virtio-forwarder-vfs-.*service' host vfs persist "$PF" 2
unit=/etc/systemd/system/virtio-forwarder-vfs-$PFA.service
# Nothing is installed here, and no manual page.
unit_is_sound() {
    sed 's|/usr/bin/port_control|/bin/true|' "$unit" > "/tmp/$(basename "$unit")"
    ! systemd-analyze verify --man=no "/tmp/$(basename "$unit")" 2>&1 | grep virtio-forwarder-vfs
}
check unit_is_sound unit_is_sound
forgotten() {
    grep -q "vfs set $VF0 --mac 52:54:00:00:00:10 --spoofchk off" "$unit" || { cat "$unit"; return 1; }
    host vfs forget "$PF" && [ ! -e "$unit" ]
}
check forgotten forgotten
no_drivers_on_vfs
check removed tells "$PF has 0 VFs now, 2 before" host vfs remove "$PF"
