# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# What lasts: VFs that `vfs persist` has written down are there after a reboot under systemd, set as they were, before the
# rebind service and the daemon start, which then have theirs. After `forget` and another reboot there are none.
# nightly
# expect: created set persisted made_at_boot set_at_boot made_before_the_daemon rebound_at_boot daemon_has_its_vf daemon_forwards
# expect: forgotten forgotten_by_systemd none_at_boot
# lab: REBOOT=systemd
# timeout: 240
. tests/lab/walk.sh

UNITS=(virtio-forwarder.service vfio-rebind.service)
# What a package installs, with the programs where they were built.
install_here() {
    local unit
    ln -sf "$TARGET"/{port_control,virtio-forwarder} /usr/bin/
    for unit in "${UNITS[@]}"; do cp "packaging/systemd/$unit" /usr/lib/systemd/system/; done
    mkdir -p /etc/sysconfig
    echo worker-0 > /etc/hostname
    echo "worker-0 $VF1" > /etc/sysconfig/vfio-pci-devices
    printf 'VIRTIOFWD_BIND_VFIO_PCI=%s\nVIRTIOFWD_STATIC_VFS=(%s=1)\n' "$VF0" "$VF0" > /etc/default/virtioforwarder
    systemctl enable "${UNITS[@]}"
    # Udev would load igbvf while the VFs come to be, which this emulated NIC has not always survived (see make_vfs).
    echo 'blacklist igbvf' > /etc/modprobe.d/lab.conf
}
LASTS=(/etc/modprobe.d/lab.conf /usr/bin/{port_control,virtio-forwarder} "${UNITS[@]/#//usr/lib/systemd/system/}" /etc/systemd/system
    /etc/sysconfig /etc/hostname /etc/default/virtioforwarder "/lib/modules/$(uname -r)")

# when UNIT PROPERTY: in microseconds after the kernel's start
when() { systemctl show -P "$2" "$1"; }
made_before() {
    local made started unit=virtio-forwarder-vfs-$PFA.service
    made=$(when "$unit" ActiveEnterTimestampMonotonic)
    started=$(when virtio-forwarder.service ExecMainStartTimestampMonotonic)
    note "made at $((made / 1000)) ms, the daemon started at $((started / 1000)) ms"
    [ "$made" -gt 0 ] && [ "$made" -lt "$started" ] || { systemctl status "$unit" virtio-forwarder.service; return 1; }
}
find_pf() {
    local pf
    for pf in /sys/bus/pci/devices/*/sriov_totalvfs; do PFA=$(basename "$(dirname "$pf")"); done
    VF0=$(pci "$PFA" virtfn0)
    VF1=$(pci "$PFA" virtfn1)
}
CONTROL=/run/virtio-forwarder/control.sock

case $LAB_BOOT in
    1)
        bare_host
        check created tells "$PF has 2 VFs now, 0 before" host vfs create "$PF" 2 --up
        find_pf
        check set tells 'MAC 52:54:00:00:00:10, VLAN none, spoof check off' set_both
        check persisted tells 'wrote and enabled virtio-forwarder-vfs-.*service' host vfs persist "$PF" 2
        install_here > /dev/null 2>&1
        go_on_after_reboot "${LASTS[@]}";;
    2)
        find_pf
        check made_at_boot tells "$PFA .*2 of 7 VFs +up" host vfs list
        check set_at_boot tells "$VF0 .*52:54:00:00:00:10.*$VF1 .*52:54:00:00:00:11" eval 'host vfs list | paste -sd " "'
        check made_before_the_daemon made_before
        check rebound_at_boot tells "Hostname is 'worker-0'.*$VF1 successfully bound to vfio-pci" \
            eval 'journalctl -b -o cat -u vfio-rebind.service | paste -sd " "'
        check daemon_has_its_vf tells "^ +1 +$VF0" host list
        vm vm /tmp/virtio-forwarder/virtio-forwarder1.sock icmpecho
        host unbind "$VF1" > /dev/null
        kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
        check daemon_forwards traffic 90
        stop vm INT
        journalctl -b > "$OUT/journal.log"
        check forgotten tells 'removed virtio-forwarder-vfs-' host vfs forget "$PFA"
        check forgotten_by_systemd [ "$(systemctl show -P LoadState "virtio-forwarder-vfs-$PFA.service")" = not-found ]
        go_on_after_reboot "${LASTS[@]}";;
    3)
        find_pf
        check none_at_boot tells "$PFA .*0 of 7 VFs" host vfs list;;
esac
