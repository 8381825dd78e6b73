# shellcheck shell=bash disable=SC2034,SC2119 source-path=SCRIPTDIR
# For jobs about the VF drivers alone, without a relay: the program `vf_responder` opens VFs and answers pings on
# 10.0.0.9 and fd00::9, while the kernel's igbvf sends them from the interface vf1.
. tests/lib/check.sh
. tests/lib/ping.sh
. "${LAB_LIB:-tests/lab}/vfs.sh"

RESPONDER=${TARGET:?the folder of the built binaries is not set}/vf_responder
STOP=/tmp/responder.stop
PEER=10.0.0.9

# load_any_vfio: VFIO, told to do without the interrupt remapping that only VT-d has here, or without any IOMMU, with the huge
# pages that this takes
load_any_vfio() {
    if compgen -G '/sys/class/iommu/dmar*' > /dev/null; then
        load_vfio
    elif compgen -G '/sys/kernel/iommu_groups/*' > /dev/null; then
        load_vfio allow_unsafe_interrupts=1
    else
        load_vfio
        allow_no_iommu
        hugepages 60
    fi
}

# scene NVFS: VF0 with vfio-pci, VF1 with the kernel
scene() {
    make_vfs "$1"
    load_any_vfio
    kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
    bind_vfio "$VF0"
}

# start_responder ARGUMENT...: waits until it answers; says `started` for each VF
start_responder() {
    rm -f "$STOP"
    spawn responder "$RESPONDER" "$@" --stop "$STOP" --seconds 240
    within 20 says responder '^started'
}

# stop_responder: in good order, so that it prints its counters
stop_responder() {
    touch "$STOP"
    within 20 gone responder
    stop responder
    cp "$OUT/responder.log" "$OUT/responder.$((++runs)).log"
    [ "${STATUS:-1}" = 0 ]
}
runs=0

said() { says responder "$1" || { tail -5 "$OUT/responder.log"; return 1; }; }

# numbered ARGUMENT...: our driver on VF0 and the kernel's vf1 (FAR) send each other numbered frames, each of which arrives once,
# in order, as it was sent
numbered() {
    runs=$((runs + 1))
    timeout 200 "$TARGET/vf_numbered" "$VF0" "${FAR:-vf1}" "$@" > "$OUT/numbered.$runs.log" 2>&1 ||
        { tail -3 "$OUT/numbered.$runs.log"; return 1; }
    note "$(grep -o ': [0-9]* frames of .*' "$OUT/numbered.$runs.log" | cut -c 3- | paste -sd ';')"
}

answers() { ping -c 1 -W 1 "$PEER"; }
