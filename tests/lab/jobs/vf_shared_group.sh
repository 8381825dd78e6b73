# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# Two VFs of one IOMMU group on two relays. VFs of a PF get groups of their own unless the path above them lacks ACS, and
# then the PF is in the group too and VFIO refuses it. VFs that were handed to a virtual machine are where groups of VFs
# alone are found: so a second machine is started inside the lab, which gets both VFs behind a bridge to conventional PCI,
# where they have one requester id. The daemon and its two guests run there. Takes 5 minutes, on a busy host 15.
# nightly
# expect: both_served ping_first ping_second group_is_told daemon_ended
# timeout: 1800
. tests/lab/responder.sh

# VF2 is the kernel's here: VF0 and VF1 go to the machine inside.
make_vfs 3
load_vfio
bind_vfio "$VF0" "$VF1"
kernel_vf "$VF2" vf1 10.0.0.2/24 fd00::2/64
inner=/var/tmp/inner
mkdir -p $inner/out
cat > $inner/job.sh <<INNER
# timeout: 1700
. "${LAB_LIB:-tests/lab}/vfs.sh"
load_vfio
VFS=\$(cd /sys/bus/pci/devices; grep -l 0x10ca */device | cut -d/ -f1)
bind_vfio \$VFS
set -- \$VFS
mkdir -m 755 /tmp/s
$TARGET/virtio-forwarder --cpus 0 --relays 2 --vhost-path /tmp/s/v --control-socket /tmp/s/c --vhost-username= \\
    --vhost-groupname= --add-pci-vf "\$1=0" --add-pci-vf "\$2=1" &
daemon=\$!
for relay in 0 1; do
    for _ in \$(seq 300); do [ -S /tmp/s/v/virtio-forwarder\$relay.sock ] && break; sleep 0.2; done
    $TARGET/guest_responder /tmp/s/v/virtio-forwarder\$relay.sock 52:54:00:00:00:1\$relay 10.0.0.9 fd00::9 /lab-out/stop &
    guests="\${guests-} \$!"
done
wait \$guests
kill \$daemon; wait \$daemon
echo "daemon ended with \$?"
INNER
export LAB_OUT=$inner/out LAB_MEM=640 LAB_CPUS=1 LAB_APPEND=no_timer_check
export LAB_QEMU="-device pcie-pci-bridge,id=br -device vfio-pci,host=$VF0,bus=br,addr=1 -device vfio-pci,host=$VF1,bus=br,addr=2"
spawn responder tests/lab/lab run $inner/job.sh
both() { [ "$(grep -c '^ready' "$OUT/responder.log")" = 2 ] && [ "$(grep -c '0000:.* runs' "$OUT/responder.log")" -ge 2 ]; }
check both_served within 900 both
ip neigh replace "$PEER" lladdr 52:54:00:00:00:10 dev vf1
check ping_first pings 20 -w 300
ip neigh replace "$PEER" lladdr 52:54:00:00:00:11 dev vf1
check ping_second pings 20 -w 300
check group_is_told said 'shares its IOMMU group'
touch $LAB_OUT/stop
check daemon_ended within 120 said 'daemon ended with 0'
