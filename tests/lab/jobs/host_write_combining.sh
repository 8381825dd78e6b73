# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The vfio-pci of packaging/vfio-wc, built against Debian's kernel, installed by the script, and taken by modprobe in place of
# the stock one, which is back after the script has removed it. The prefetchable BAR of a device that is listed (QEMU's
# ivshmem, BAR 2) is mapped write-combined, and so it stands in the kernel's list; those of an 82576 VF, which are prefetchable
# and hold registers, stay uncached, and the VF works under the same module.
# expect: installed modprobe_takes_it loaded_for_the_list created set bound listed_bound listed_is_write_combined
# expect: check_shows_it unlisted_is_uncached traffic removed stock_is_back
# lab: QEMU=-object memory-backend-ram,id=shm,size=1M,share=on -device ivshmem-plain,memdev=shm,addr=0x10
# nightly
# timeout: 240
. tests/lab/walk.sh

bare_host
# Only what is loaded here: depmod would read all the kernel's modules for minutes.
few_modules() {
    local version folder=/few/lib/modules module
    version=$(uname -r)
    for module in $(modprobe -a --show-depends vfio-pci vfio_iommu_type1 igbvf | awk '$1 == "insmod" {print $2}'); do
        install -D "$module" "$folder/$version/${module#/lib/modules/"$version"/}"
    done
    cp "/lib/modules/$version"/modules.{order,builtin,builtin.modinfo} "$folder/$version/"
    ln -sfn "$folder/$version" "/lib/modules/$version"
    depmod -a
}
few_modules
vfio_wc() { packaging/vfio-wc/vfio-wc "$@"; }
check installed tells 'installed in .* for dead:beef,1af4:1110' vfio_wc install --modules /mods/rebuilt/wc --devices dead:beef,1af4:1110
check modprobe_takes_it tells 'modprobe takes: /lib/modules/.*/updates/vfio-wc/vfio-pci-core.ko' vfio_wc check
modprobe vfio-pci
check loaded_for_the_list tells 'loaded: with write-combining for dead:beef,1af4:1110' vfio_wc check
make_and_set
check bound tells "$VF0 taken from igbvf, now with vfio-pci" host bind "$VF0"
SHM=0000:00:10.0
check listed_bound tells "$SHM taken from no driver, now with vfio-pci" host bind "$SHM"

# kind ADDRESS BAR: how the kernel has this BAR, or nothing
kind() {
    local start
    start=$(sed -n "$(($2 + 1))s/^0x0*\([0-9a-f]*\) .*/\1/p" "/sys/bus/pci/devices/$1/resource")
    sed -n "s/.*\[mem 0x0*$start-.*\] \(.*\)/\1/p; s/^PAT: \[mem 0x0*$start-.*\] \(.*\)/\1/p" /sys/kernel/debug/x86/pat_memtype_list | head -1
}
holds() { # NAME ADDRESS BAR: maps it for as long as the job lasts
    mkfifo "/tmp/$1"
    exec {fd}<> "/tmp/$1"
    : > "$OUT/$1.log"
    tests/lib/map_bar.py "$2" "$3" < "/tmp/$1" >> "$OUT/$1.log" 2>&1 &
    pids[$1]=$!
    within 20 says "$1" mapped
}
is_kind() { # PATTERN ADDRESS BAR
    local kind
    kind=$(kind "$2" "$3")
    note "$2 BAR $3: $kind"
    grep -Eq "$1" <<< "$kind" || { echo "'$kind'"; cat "$OUT"/hold*.log /sys/kernel/debug/x86/pat_memtype_list; return 1; }
}
holds hold_listed "$SHM" 2 > /dev/null
check listed_is_write_combined is_kind '^write-combining' "$SHM" 2
check check_shows_it tells "mem 0x0*$(sed -n '3s/^0x0*\([0-9a-f]*\) .*/\1/p' "/sys/bus/pci/devices/$SHM/resource")-.*write-combining" vfio_wc check
holds hold_unlisted "$VF0" 0 > /dev/null
check unlisted_is_uncached is_kind '^uncached' "$VF0" 0
stop hold_unlisted

kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
forward
stop hold_listed
stop vm INT
stop daemon
host unbind "$VF0" "$SHM" > /dev/null
check removed tells 'removed' vfio_wc remove
modprobe -r vfio-pci vfio-pci-core
modprobe vfio-pci
stock_is_back() {
    tells 'modprobe takes: /lib/modules/.*/kernel/drivers/vfio/pci/vfio-pci-core.ko' vfio_wc check && tells 'loaded: the stock module' vfio_wc check
}
check stock_is_back stock_is_back
