# Two VFs of one IOMMU group, used at once by one process. VFs of a PF get groups of their own unless the path above them
# lacks ACS, and then the PF is in the group too and VFIO refuses it. VFs that were handed to a virtual machine are where
# groups of VFs alone are found: so a second machine is started inside the lab, which gets both VFs behind a bridge to
# conventional PCI, where they have one requester id. Takes about 5 minutes; needs LAB_TIMEOUT=580.
. "${LAB_LIB:-tests/lab}/vfs.sh"
. tests/lab/jobs/igbvf_common.sh
setup_pair 3
N2=$(ls "/sys/bus/pci/devices/$VF2/net")
# VF1 goes to the machine inside, and VF2 takes its place.
bind_vfio "$VF1"
ip link set "$N2" up; ip addr add 10.0.0.2/24 dev "$N2"
export LAB_OUT=/tmp/inner; mkdir -p $LAB_OUT
cat > /tmp/inner.job <<INNER
. "${LAB_LIB:-tests/lab}/vfs.sh"
load_vfio
VFS=\$(cd /sys/bus/pci/devices; grep -l 0x10ca */device | cut -d/ -f1)
bind_vfio \$VFS
ls /sys/kernel/iommu_groups/*/devices
$RESPONDER \$VFS --stop /lab-out/stop --seconds 300
INNER
LAB_MEM=640 LAB_CPUS=1 LAB_TIMEOUT=500 LAB_APPEND="no_timer_check ${LAB_APPEND:-}" \
    LAB_QEMU="-device pcie-pci-bridge,id=br -device vfio-pci,host=$VF0,bus=br,addr=1 -device vfio-pci,host=$VF1,bus=br,addr=2" \
    bash "${LAB_LIB:-tests/lab}/lab" run /tmp/inner.job > "$LOG" 2>&1 & RESPONDER_PID=$!
for _ in $(seq 400); do [ "$(grep -c '^started' "$LOG")" = 2 ] && break; kill -0 $RESPONDER_PID 2> /dev/null || break; sleep 1; done
for mac in 52:54:00:00:00:10 52:54:00:00:00:11; do
    ip neigh replace 10.0.0.9 lladdr $mac dev "$N2"
    check ping -A -c 100 -w 30 -q 10.0.0.9
done
expect 'shares its IOMMU group'
touch $LAB_OUT/stop; stop_responder
expect 'rx_errors: 0'
finish
