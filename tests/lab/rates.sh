# shellcheck shell=bash disable=SC2034,SC2153,SC2154 # names that jobs use
# Frames a second through a device and a VM, side by side: our daemon and DPDK's testpmd with net_vhost. Behind relay.sh.
#
# All sides are up at once, each with a device, a VM, and a device for the far end, and are held by SIGSTOP but for their
# slots. The forwarder is alone on its CPU. The other CPU has the VM, and the sender at the far end too, as ports of one testpmd
# with one thread, so that they take turns burst by burst.
#
# A job sets `sides` (testpmd is one of them, what others are measured by), fills `vf`, `far` and `mac` by side, calls
# `own_sockets`, and defines
#
#   forwarders          starts all of them
#   on_the_wire SIDE    sets COUNT to the frames that this side's device has sent, and NOW
#
# and then calls `all_rates`. Arguments of such jobs: rounds (default 5), seconds of a slot (default 2), testpmd.
lib=tests/lib
rounds=${1:-5}
seconds=${2:-2}
TESTPMD=${3:-$TESTPMD}
TESTPMD_MBUFS=8192
WARM_UP=1 SETTLE=0.5 # seconds
NOBODY=52:54:00:00:00:77
declare -A vf=() far=() mac=() path=()

# own_sockets: sets `path`; each side has folders of its own for sockets and state
own_sockets() {
    local side
    for side in "${sides[@]}"; do
        path[$side]=$RUN/$side/vhost/virtio-forwarder1.sock
        mkdir -p "$RUN/$side/vhost"
    done
}

# daemon SIDE [ARGUMENT...]
daemon() { VHOST_DIR=$RUN/$1/vhost CONTROL=$RUN/$1/control.sock forwarder "$1" --add-pci-vf "${vf[$1]}=1" "${@:2}"; }

# yardstick: testpmd between its device, port 0, and its VM
yardstick() {
    local TESTPMD_PCI=(-a "${vf[testpmd]}")
    told_testpmd testpmd "$FORWARDER_CPUS" "net_vhost0,iface=${path[testpmd]}" --forward-mode=io --no-flush-rx \
        --disable-link-check
    tell testpmd start
    within 60 says testpmd 'ports=2 ' || { tail -5 "$OUT/testpmd.log"; return 1; }
}

# frames TO FROM SIZE FILE: 64 of them, of one flow
frames() {
    TO=$1 FROM=$2 PYTHONPATH=$lib PYTHONDONTWRITEBYTECODE=1 python3 - "$3" "$4" << 'PY'
import os, struct, sys
import pcap_frames
size = int(sys.argv[1])
frame = bytearray(pcap_frames.header(0, size).ljust(size, b"\0"))
frame[6:12] = bytes.fromhex(os.environ["FROM"].replace(":", ""))
with open(sys.argv[2], "wb") as file:
    file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
    file.write((struct.pack("<IIII", 0, 0, size, size) + frame) * 64)
PY
}

# guest SIDE WAY SIZE: a VM that sends all the time, or one that receives, with a sender at the far device
guest() {
    local side=$1 nic file=$RUN/$1.pcap
    local TESTPMD_PCI=(--no-pci)
    nic=net_virtio_user0,path=${path[$1]},queues=1,mac=${mac[$1]}
    if [ "$2" = out ]; then
        frames "$NOBODY" "${mac[$1]}" "$3" "$file"
        nic+=" net_pcap0,rx_pcap=$file,infinite_rx=1"
    else
        frames "${mac[$1]}" 52:54:00:00:01:00 "$3" "$file"
        head -c 24 "$file" > "$RUN/none.pcap" # a device that takes all frames and has none
        TESTPMD_PCI=(-a "${far[$1]}")
        nic="net_pcap0,rx_pcap=$file,infinite_rx=1 $nic net_pcap1,rx_pcap=$RUN/none.pcap"
    fi
    told_testpmd "vm-$side" 0 "$nic" --no-flush-rx --disable-link-check
    # A full ring is waited for; nothing that was made is thrown away.
    tell "vm-$side" 'set burst tx delay 1 retry 10000000' 'set fwd io retry' start
    within 60 says "vm-$side" "ports=$([ "$2" = out ] && echo 2 || echo 4) " || { tail -5 "$OUT/vm-$side.log"; return 1; }
}

hold() { kill -STOP "${pids[vm-$1]}"; sleep 0.05; kill -STOP "${pids[$1]}"; }
go_on() { kill -CONT "${pids[$1]}" "${pids[vm-$1]}"; }

# at_the_vm SIDE: sets RATE to the frames that the VM received a second since the last call, by its own clock
at_the_vm() {
    local log=$OUT/vm-$1.log before
    before=$(grep -c 'Rx-pps:' "$log")
    tell "vm-$1" 'show port stats 2'
    # shellcheck disable=SC2016 # an inner shell expands these
    within 10 bash -c '[ "$(grep -c Rx-pps: "$1")" -gt "$2" ]' bash "$log" "$before" || return 1
    RATE=$(awk '/Rx-pps:/ {rate = $2} END {print rate}' "$log")
}

# slot SIDE WAY SECONDS: sets RATE
slot() {
    local count start
    go_on "$1"
    sleep $SETTLE
    if [ "$2" = out ]; then
        on_the_wire "$1"; count=$COUNT start=$NOW
        sleep "$3"
        on_the_wire "$1"; RATE=$(((COUNT - count) * 1000 / (NOW - start)))
    else
        at_the_vm "$1" && sleep "$3" && at_the_vm "$1" || RATE=0
    fi
    hold "$1"
}

# rates WAY SIZE: all rounds of a cell, in lines `# rate WAY.SIZE ROUND SIDE FRAMES`
rates() {
    local cell=$1.$2 round side order
    for side in "${sides[@]}"; do
        guest "$side" "$1" "$2" || return 1
        [ "$side" != zero-copy ] || within 60 let_in || return 1
        hold "$side"
    done
    for side in "${sides[@]}"; do slot "$side" "$1" $WARM_UP; done
    for ((round = 0; round < rounds; round++)); do
        order=("${sides[@]}")
        [ $((round % 2)) = 0 ] || mapfile -t order < <(printf '%s\n' "${sides[@]}" | tac)
        for side in "${order[@]}"; do
            slot "$side" "$1" "$seconds"
            note "rate $cell $round $side $RATE"
            [ "$RATE" -gt 0 ] || { echo "no frame of $side came through in round $round"; return 1; }
        done
    done
}
# let_in: the VF sends from the memory of the VM that came last
times_let_in() { grep -sc 'zero-copy: the device sends' "$OUT/zero-copy.log"; }
let_in() { [ "$(times_let_in)" -gt "$let_in_before" ]; }

# median FILE: `MEDIAN (MIN–MAX)` of a column of numbers
median() {
    sort -n "$1" | awk '{v[NR] = $1} END {m = (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2
        printf "%.2f (%.2f–%.2f)", m, v[1], v[NR]}'
}
# ratios CELL: each side's by testpmd's, round by round
ratios() {
    local side
    for side in "${sides[@]}"; do
        [ "$side" != testpmd ] || continue
        awk -v cell="$1" -v side="$side" '$2 == "rate" && $3 == cell {rate[$4, $5] = $6; n = $4}
            END {for (i = 0; i <= n; i++) print rate[i, side] / rate[i, "testpmd"]}' "$RUN/rates" > "$RUN/ratios"
        echo -n "$side $(median "$RUN/ratios") "
    done
}

# all_rates: every cell, and the end of all
all_rates() {
    local way size cell side
    if ! forwarders > "$RUN/why" 2>&1; then
        for cell in out.64 out.1514 in.64 in.1514; do not_ok "$cell" "$(tail -3 "$RUN/why" | paste -sd '|')"; done
        return 1
    fi
    for way in out in; do
        for size in 64 1514; do
            cell=$way.$size
            let_in_before=$(times_let_in || true)
            if rates "$way" "$size" > "$RUN/lines" 2>&1; then
                cat "$RUN/lines" >> "$RUN/rates"
                grep '^# ' "$RUN/lines"
                ok "$cell" "by testpmd: $(ratios "$cell")"
            else
                grep '^# ' "$RUN/lines"
                not_ok "$cell" "$(tail -3 "$RUN/lines" | paste -sd '|')"
            fi
            for side in "${sides[@]}"; do
                kill -CONT "${pids[$side]}"
                [ -z "${pids[vm-$side]:-}" ] || { kill -CONT "${pids[vm-$side]}"; stop "vm-$side" KILL; }
            done > /dev/null
        done
    done
    # All sides were let go on: they end in good order.
    for side in "${sides[@]}"; do stop "$side" TERM 10 > /dev/null; done
}
