# shellcheck shell=bash
# The lab itself: what all other jobs take for granted.
# expect: two_vfs own_iommu_groups vfs_reach_each_other vfs_made_again
# timeout: 90
. tests/lib/check.sh
# shellcheck source=tests/lab/vfs.sh
. "${LAB_LIB:-tests/lab}/vfs.sh"

group() { basename "$(readlink "/sys/bus/pci/devices/$1/iommu_group")"; }
# The kernel's driver on both VFs, one of them in a network namespace so that frames take the wire.
kernel_pings() {
    kernel_vf "$VF0" vf0 && kernel_vf "$VF1" vf1 10.0.0.2/24 || return 1
    ip netns add other
    ip link set vf0 netns other
    ip -n other addr add 10.0.0.3/24 dev vf0
    ip -n other link set vf0 up
    within 10 ping -c 1 -W 1 10.0.0.3
}

make_vfs 2
check two_vfs [ -e "/sys/bus/pci/devices/$VF0" -a -e "/sys/bus/pci/devices/$VF1" ]
check own_iommu_groups [ "$(group "$VF0")" != "$(group "$VF1")" ]
check vfs_reach_each_other kernel_pings
ip netns del other
make_vfs 2
check vfs_made_again [ "$(cat "/sys/class/net/$PF/device/sriov_numvfs")" = 2 ]
