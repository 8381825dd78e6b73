# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# A PF in the hands of VFIO: its VFs are opened with the token that the PF's user has set, and with no other. A token that is
# configured and not asked for does no harm. MSI-X interrupts by kind and number, and a write-combining BAR, on the way.
# nightly
# expect: not_asked_for interrupts each_rings too_many address_width write_combining mapped_so
# expect: combined_rings pf_is_held token_missing token_wrong token_right token_of_daemon
# timeout: 120
. tests/lab/responder.sh

token=11112222-3333-4444-5555-666677778888
probe() { timeout 60 "$TARGET/vf_probe" "$@"; }
probed() { grep -Eq -- "$1" "$OUT/probe.log" || { tail -5 "$OUT/probe.log"; return 1; }; }

scene 2
start_responder "$VF0" --token $token > /dev/null
check not_asked_for pings 50
stop_responder > /dev/null

probe "$VF0" --igbvf > "$OUT/probe.log" 2>&1
check interrupts [ "$(grep -c '^interrupts: \([0-9]\) of \1$' "$OUT/probe.log")" = 5 ]
check each_rings probed '^rung: \[\[0\], \[1\], \[2\]\]'
check too_many probed "^too many: $VF0 has 3 MSI-X interrupts, and 2000 are wanted"
check address_width probed '^no memory below 20 bits: no room'

# The kernel's own list of what is mapped how.
mountpoint -q /sys/kernel/debug || mount -t debugfs debugfs /sys/kernel/debug
start=$(awk 'NR == 1 {print substr($1, 3)}' "/sys/bus/pci/devices/$VF0/resource")
rm -f "$STOP"
spawn wc "$TARGET/vf_probe" "$VF0" --write-combining 0 --igbvf --hold "$STOP"
within 20 says wc '^too many' > /dev/null
check write_combining says wc '^BAR 0 is WriteCombining'
check mapped_so grep -qi "${start#00000000}.*write-combining" /sys/kernel/debug/x86/pat_memtype_list
check combined_rings says wc '^rung: \[\[0\], \[1\], \[2\]\]'
touch "$STOP"
within 10 gone wc > /dev/null
stop wc

# The PF's driver goes; whoever takes the PF from VFIO sets the token, and makes VFs.
pf=$(basename "$(readlink "/sys/class/net/$PF/device")")
unload_vfio
load irqbypass iommufd vfio
insmod /mods/vfio_iommu_type1.ko
load vfio-pci-core
insmod /mods/vfio-pci.ko enable_sriov=1
for vf in "$VF1" "$VF0"; do
    if [ -e "/sys/bus/pci/devices/$vf/driver" ]; then echo "$vf" > "/sys/bus/pci/devices/$vf/driver/unbind"; fi
done
echo 0 > "/sys/bus/pci/devices/$pf/sriov_numvfs"
bind_vfio "$pf"
cat > /tmp/holder.py <<'PY'
import ctypes, fcntl, os, struct, sys, time, uuid
pf, token = sys.argv[1], uuid.UUID(sys.argv[2])
group = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{pf}/iommu_group"))
container, group = os.open("/dev/vfio/vfio", os.O_RDWR), os.open(f"/dev/vfio/{group}", os.O_RDWR)
fcntl.ioctl(group, 0x3b68, struct.pack("i", container))
fcntl.ioctl(container, 0x3b66, 3)
device = ctypes.CDLL(None).ioctl(group, ctypes.c_ulong(0x3b6a), pf.encode())
# VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN
fcntl.ioctl(device, 0x3b75, struct.pack("II", 24, 1 << 17) + token.bytes)
print("holding", flush=True)
time.sleep(600)
PY
spawn holder python3 /tmp/holder.py "$pf" $token
check pf_is_held within 20 says holder '^holding'
echo 1 > "/sys/bus/pci/devices/$pf/sriov_numvfs"
within 5 [ -e "/sys/bus/pci/devices/$VF0" ] > /dev/null
bind_vfio "$VF0"
refused token_missing 'give it: --vfio-vf-token' probe "$VF0"
refused token_wrong 'refuses the VF token' probe "$VF0" --token ${token/1111/9999}
check token_right probe "$VF0" --token $token
# The daemon gets as far as the PF's mailbox, which nobody reads.
refused token_of_daemon 'does not answer|ip link set|mailbox' timeout 60 "$RESPONDER" "$VF0" --token $token --seconds 1

# As it was, for the jobs that come after.
stop holder KILL
echo 0 > "/sys/bus/pci/devices/$pf/sriov_numvfs"
bind_driver igb "$pf"
echo > "/sys/bus/pci/devices/$pf/driver_override"
unload_vfio
