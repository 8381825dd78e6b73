# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# Frames a second from the VM to the wire and from the wire to the VM, through virtio functions that QEMU makes up: the daemon
# beside DPDK's testpmd (its virtio driver and net_vhost). `cargo xtask bench --cell lab` judges the figures; here they only
# have to be there.
#
# Arguments: rounds (default 5), seconds of a slot (default 2), testpmd (default dpdk-testpmd). There is no counter on this
# wire: frames to it are those that the device took, as each side's driver tells. QEMU's device takes none while nobody on its
# wire can receive, so there is a network at its end that throws all of them away.
# nightly
# expect: out.64 out.1514 in.64 in.1514
# timeout: 1800
# lab: QEMU=-netdev user,id=a,restrict=on,ipv6=off -netdev hubport,id=a2,hubid=1,netdev=a -netdev hubport,id=a0,hubid=1 -device virtio-net-pci,bus=pcie.0,addr=0x10,netdev=a0,mac=52:54:00:00:00:10,disable-legacy=on,iommu_platform=on,ats=off -netdev hubport,id=a1,hubid=1 -device virtio-net-pci,bus=pcie.0,addr=0x11,netdev=a1,mac=52:54:00:00:00:11,disable-legacy=on,iommu_platform=on,ats=off -netdev user,id=b,restrict=on,ipv6=off -netdev hubport,id=b2,hubid=2,netdev=b -netdev hubport,id=b0,hubid=2 -device virtio-net-pci,bus=pcie.0,addr=0x12,netdev=b0,mac=52:54:00:00:00:12,disable-legacy=on,iommu_platform=on,ats=off -netdev hubport,id=b1,hubid=2 -device virtio-net-pci,bus=pcie.0,addr=0x13,netdev=b1,mac=52:54:00:00:00:13,disable-legacy=on,iommu_platform=on,ats=off
. tests/lab/relay.sh
. tests/lab/virtio.sh
. tests/lab/rates.sh
sides=(virtio-forwarder testpmd)

load_vfio
for ((i = 0; i < ${#sides[@]}; i++)); do
    side=${sides[i]}
    printf -v "vf[$side]" '0000:00:%02x.0' $((0x10 + 2 * i))
    printf -v "far[$side]" '0000:00:%02x.0' $((0x11 + 2 * i))
    mac[$side]=52:54:00:00:00:$((10 + 2 * i))
done
bind_vfio "${vf[@]}" "${far[@]}"
own_sockets

forwarders() { daemon virtio-forwarder && yardstick; }
on_the_wire() {
    local before log=$OUT/testpmd.log
    if [ "$1" = testpmd ]; then
        before=$(grep -c 'TX-packets:' "$log")
        tell testpmd 'show port stats 0'
        # shellcheck disable=SC2016 # an inner shell expands these
        within 10 bash -c '[ "$(grep -c TX-packets: "$1")" -gt "$2" ]' bash "$log" "$before" || return 1
        COUNT=$(awk '$1 == "TX-packets:" {count = $2} END {print count}' "$log")
    else
        COUNT=$(CONTROL=$RUN/$1/control.sock counter 1 vm_to_vf tx_frames)
    fi
    now_ms
}

all_rates
