# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The rebind service over two 82576 VFs and an NVMe VF: lines for this node, for every node and for another one, twice; then
# with lines that are wrong. And the variables of the C daemon's defaults file: what they list is handed over and added.
# nightly
# expect: created set nvme_vf journal drivers journal_again given_back bad_lines_fail others_bound bad_lines_named missing_file
# expect: defaults_bind defaults_static defaults_bind_alone
# lab: QEMU=-device pcie-root-port,id=rp2,chassis=2,slot=2 -device nvme-subsys,id=s0 -device nvme,bus=rp2,serial=1,subsys=s0,sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2
# timeout: 240
. tests/lab/walk.sh

bare_host
make_and_set
modprobe nvme
echo worker-0 > /proc/sys/kernel/hostname
for pf in /sys/bus/pci/drivers/nvme/*/sriov_totalvfs; do
    if [ -e "$pf" ] && [ "$(cat "$pf")" -gt 0 ]; then NVME_PF=$(basename "$(dirname "$pf")"); fi
done
check nvme_vf tells 'has 2 VFs now' host vfs create "$NVME_PF" 2 --no-drivers
NVME=$(pci "$NVME_PF" virtfn0)
OTHER=$(pci "$NVME_PF" virtfn1)

mkdir -p /etc/sysconfig
cat > /etc/sysconfig/vfio-pci-devices << LIST
# devices of the cluster
worker-0 $VF0

DEFAULT $VF1
DEFAULT $NVME # storage
worker-1 $OTHER
LIST
expected="Hostname is 'worker-0'
binding: $VF0
$VF0 successfully bound to vfio-pci
binding: $VF1
$VF1 successfully bound to vfio-pci
binding: $NVME
$NVME successfully bound to vfio-pci
No host match, skip binding of $OTHER"
journal() {
    local output
    output=$(host rebind 2>&1) && [ "$output" = "$expected" ] || { echo "$output"; return 1; }
}
all_taken() {
    local function
    for function in "$VF0" "$VF1" "$NVME"; do [ "$(pci "$function" driver)" = vfio-pci ] || return 1; done
    [ ! -e "/sys/bus/pci/devices/$OTHER/driver" ]
}
check journal journal
check drivers all_taken
check journal_again journal

# To the driver that each had: the NVMe VF had none.
check given_back tells "$NVME taken from vfio-pci, now with no driver" host unbind "$VF1" "$NVME"
cat > "$OUT/list" << LIST
worker-0 0000:99:00.0
worker-0 nonsense
worker-0
DEFAULT $VF1
LIST
bad_list() { host rebind "$OUT/list" > "$OUT/rebind.log" 2>&1; }
check bad_lines_fail exits 1 bad_list
check others_bound says rebind "^$VF1 successfully bound"
bad_lines_named() {
    says rebind '99:00.0 was not bound.*lspci' && says rebind 'list:2: .nonsense. is not a PCI' &&
        says rebind 'list:3: .worker-0. is not understood'
}
check bad_lines_named bad_lines_named
refused missing_file "cannot read .*/nonexistent" host rebind /nonexistent

host unbind "$VF0" "$VF1" > /dev/null
printf 'VIRTIOFWD_BIND_VFIO_PCI=(%s %s:2)\nVIRTIOFWD_STATIC_VFS=(%s=1 %s=2)\n' "${VF0#0000:}" "$PF" "$VF0" "$VF1" > "$OUT/defaults"
within 20 test -d "/sys/bus/pci/devices/$VF1/net" > /dev/null
bound_alone() {
    "$TARGET/virtio-forwarder" bind --defaults "$OUT/defaults" && [ "$(pci "$VF1" driver)" = vfio-pci ]
}
check defaults_bind_alone bound_alone
host unbind "$VF0" "$VF1" > /dev/null
forwarder daemon --defaults "$OUT/defaults"
check defaults_bind says daemon "$VF1 taken from igbvf and handed to vfio-pci"
both_added() { pc list | grep -Eq "^ +1 +$VF0" && pc list | grep -Eq "^ +2 +$VF1"; }
check defaults_static within 20 both_added
stop daemon
