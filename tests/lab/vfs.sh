# shellcheck shell=bash
# For the head of a lab job: SR-IOV and VFIO on the lab's 82576.
#
#   make_vfs N        N fresh VFs, VF n with MAC 52:54:00:00:00:1n; sets PF (netdev), VF0, VF1 ... (PCI addresses)
#   load_vfio         the kernel's VFIO modules; unload_vfio: away with them
#   allow_no_iommu    functions without an IOMMU may be handed out, too (needs `# lab: VFIO=rebuilt`)
#   bind_vfio ADDR... hand PCI functions to vfio-pci, whatever drives them now
#   kernel_vf ADDR NETDEV CIDR...  hand a VF to the kernel's igbvf and give it a name and addresses
#   modules           modprobe finds the modules of the running kernel
#   go_on_after_reboot FILE...  restarts the machine under systemd with these files and folders as they are now, and runs the
#                     job again from its start, with LAB_BOOT one higher (1 at first; needs `# lab: REBOOT=systemd`)
#   hugepages N       N pages of 2 MiB, and hugetlbfs on /dev/hugepages

# The order matters: VFs first, PF up second, wait for link, MACs third, VF drivers last. Any other order leaves the
# VF mailbox unanswered and the VF with a random MAC and no carrier. Called again it starts from no VFs; then, too, no
# driver may sit on a VF while the PF goes down or the VF is made: the kernel has been seen to spin for ever over that.
make_vfs() {
    local n=$1 i dev vf
    for dev in /sys/class/net/*; do
        if [ -e "$dev/device/sriov_totalvfs" ]; then PF=$(basename "$dev"); fi
    done
    ip link set lo up
    for vf in "/sys/class/net/$PF/device"/virtfn*; do
        if [ -e "$vf/driver" ]; then basename "$(readlink "$vf")" > "$vf/driver/unbind"; fi
    done
    ip link set "$PF" down
    echo 0 > "/sys/class/net/$PF/device/sriov_drivers_autoprobe"
    echo 0 > "/sys/class/net/$PF/device/sriov_numvfs"
    echo "$n" > "/sys/class/net/$PF/device/sriov_numvfs"
    ip link set "$PF" up
    for ((i = 0; i < 200; i++)); do
        if [ "$(cat "/sys/class/net/$PF/carrier")" = 1 ]; then break; fi
        sleep 0.1
    done
    for ((i = 0; i < n; i++)); do
        ip link set "$PF" vf "$i" mac "52:54:00:00:00:1$i"
        printf -v "VF$i" %s "$(basename "$(readlink "/sys/class/net/$PF/device/virtfn$i")")"
    done
}

# load MODULE...: in this order; one that is loaded already, or built into the kernel, is passed over
load() {
    local m
    for m in "$@"; do
        if [ -e "/mods/$m.ko" ] && [ ! -e "/sys/module/${m//-/_}" ]; then insmod "/mods/$m.ko"; fi
    done
}

# load_vfio [allow_unsafe_interrupts=1]: the parameter is needed with `# lab: IOMMU=virtio`, which remaps no interrupts
load_vfio() {
    load irqbypass iommufd vfio
    [ -e /sys/module/vfio_iommu_type1 ] || insmod /mods/vfio_iommu_type1.ko "$@"
    load vfio-pci-core vfio-pci
}

# unload_vfio: as if it had never been loaded (no process may use it)
unload_vfio() {
    local m
    for m in vfio-pci vfio-pci-core vfio_iommu_type1 vfio iommufd; do
        if [ -e "/sys/module/${m//-/_}" ]; then rmmod "$m" || return 1; fi
    done
}

allow_no_iommu() { echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode; }

bind_driver() {
    local driver=$1 address=$2 device=/sys/bus/pci/devices/$2
    if [ -e "$device/driver" ]; then echo "$address" > "$device/driver/unbind"; fi
    echo "$driver" > "$device/driver_override"
    echo "$address" > /sys/bus/pci/drivers_probe
}

bind_vfio() {
    local address
    for address in "$@"; do bind_driver vfio-pci "$address"; done
}

kernel_vf() {
    local address=$1 name=$2 i
    shift 2
    load igbvf
    bind_driver igbvf "$address"
    # Under systemd somebody else gives interfaces their names, too.
    [ ! -e /run/udev/control ] || udevadm settle --timeout=30
    ip link set "$(ls "/sys/bus/pci/devices/$address/net")" name "$name"
    ip link set "$name" up
    for i in "$@"; do
        # nodad: an IPv6 address is usable at once
        case $i in *:*) ip -6 addr add "$i" dev "$name" nodad;; *) ip addr add "$i" dev "$name";; esac
    done
    for ((i = 0; i < 100; i++)); do
        if [ "$(cat "/sys/class/net/$name/carrier" 2> /dev/null)" = 1 ]; then return 0; fi
        sleep 0.1
    done
    echo "no carrier on $name" >&2
    return 1
}

modules() {
    mkdir -p /lib/modules
    ln -sfn "$LAB_MODULES/$(uname -r)" "/lib/modules/$(uname -r)"
}

hugepages() {
    echo "$1" > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
    grep -q ' /dev/hugepages ' /proc/mounts || mount -t hugetlbfs nodev /dev/hugepages
}

go_on_after_reboot() {
    # Of a job that has failed a check it is known at the end, too.
    [ "${failures:-0}" = 0 ] || : > /lab-out/.failed
    echo "$LAB_JOB" > /lab-out/.at
    echo "$LAB_BOOT" > /lab-out/.boots
    # An absolute path behind a link to a folder, such as /lib, is the folder's.
    realpath --no-symlinks -- "$@" | sed 's|^/lib/|usr/lib/|; s|^/||' | tar -c -C / -f /lab-out/.keeping -T -
    mv /lab-out/.keeping /lab-out/.kept
    sync
    echo b > /proc/sysrq-trigger
    sleep 60
}
