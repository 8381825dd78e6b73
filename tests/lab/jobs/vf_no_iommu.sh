# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# A machine without an IOMMU, as in clouds: VF0 - relay 1 - DPDK's virtio_user as the VM, with physical addresses on huge
# pages; and each thing that can be missing, named with its remedy. Zero-copy, which is asked for, is refused.
# (The virtio functions are for virtio_no_iommu, with which it shares the machine.)
# expect: not_enabled bound_before no_capability no_addresses no_huge_pages pages_given_back found_again probe
# expect: warned_loudly warned_once ping ping_1400 zero_copy_refused killed.1 removed added_again daemon_unharmed daemon_stops vf_left_quiet
# timeout: 240
# lab: IOMMU=none
# lab: VFIO=rebuilt
# lab: VIRTIO=host_mtu=9000 packed=on
. tests/lab/relay.sh

probe() { timeout 60 "$TARGET/vf_probe" "$@"; }
# without CAPABILITY COMMAND...: as root, but for one capability
without() { local capability=$1; shift; setpriv --bounding-set="-$capability" --inh-caps="-$capability" "$@"; }
free_huge_pages() { awk '/^HugePages_Free/ {print $2}' /proc/meminfo; }

make_vfs 2
load_vfio
kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
refused not_enabled 'echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode' probe "$VF0"
allow_no_iommu
refused bound_before "echo vfio-pci > .*driver_override" probe "$VF0"
bind_vfio "$VF0"
refused no_capability 'CAP_SYS_RAWIO' without sys_rawio "$TARGET/vf_probe" "$VF0"
probe "$VF0" > "$OUT/no_pages.log" 2>&1
check no_huge_pages grep -q 'needs 1 free huge pages.*nr_hugepages' "$OUT/no_pages.log"
hugepages 40
without sys_admin "$TARGET/vf_probe" "$VF0" > "$OUT/no_addresses.log" 2>&1
check no_addresses grep -q 'CAP_SYS_ADMIN' "$OUT/no_addresses.log"
before=$(free_huge_pages)
probe "$VF0" --igbvf > "$OUT/probe.log" 2>&1
check probe grep -q 'memory below 40 bits' "$OUT/probe.log"
check pages_given_back [ "$(free_huge_pages)" = "$before" ]

printf '[[relay]]\nid = 1\nzero-copy = "tx"\n' > "$RUN/config.toml"
forwarder daemon --config "$RUN/config.toml" --add-pci-vf "$VF0=1" || { not_ok ping "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
vm vm "$(socket 1)" icmpecho
traffic > /dev/null
note "the first answer came after $TOOK ms"
check ping pings 300
check ping_1400 pings 100 -s 1400
check zero_copy_refused says daemon 'zero-copy is refused, frames are copied: .*has no IOMMU'
check warned_loudly says daemon 'NO IOMMU: .*reaches all memory'
stop vm KILL
vm vm "$(socket 1)" icmpecho
check killed.1 traffic 40
pc remove --virtio-id 1 --pci-addr "$VF0" > /dev/null
check removed within 5 silent
pc add --virtio-id 1 --pci-addr "$VF0" > /dev/null
check added_again traffic 40
check warned_once [ "$(grep -c 'NO IOMMU' "$OUT/daemon.log")" = 1 ]
check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
check vf_left_quiet vf_is_quiet "$VF0"

# As many are found when pages were taken and given back in another order.
check found_again grep -q '^started' <(timeout 20 "$TARGET/vf_responder" "$VF0" --seconds 2 2>&1)
