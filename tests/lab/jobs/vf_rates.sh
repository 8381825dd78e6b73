# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# Frames a second from the VM to the wire and from the wire to the VM: the daemon, copying and with zero-copy, beside DPDK's
# testpmd (its igbvf driver and net_vhost). `cargo xtask bench --cell lab` judges the figures; here they only have to be there.
#
# Arguments: rounds (default 5), seconds of a slot (default 2), testpmd (default dpdk-testpmd).
#
# All sides are up at once, each with a VF, a VM, and a VF for the far end, and are held by SIGSTOP but for their slots. The
# forwarder is alone on its CPU. The other CPU has the VM, and the sender at the far end too, as ports of one testpmd with one
# thread, so that they take turns burst by burst. Frames to the wire go to an address that nobody has, and the NIC counts
# them: a receiver there would cost CPU.
# nightly
# expect: out.64 out.1514 in.64 in.1514
# timeout: 1800
. tests/lab/relay.sh
lib=tests/lib
rounds=${1:-5}
seconds=${2:-2}
TESTPMD=${3:-$TESTPMD}
TESTPMD_MBUFS=8192
WARM_UP=1 SETTLE=0.5 # seconds
NOBODY=52:54:00:00:00:77
sides=(virtio-forwarder testpmd zero-copy)

declare -A vf=() far=() mac=() path=()
make_vfs $((2 * ${#sides[@]}))
load_vfio
for ((i = 0; i < ${#sides[@]}; i++)); do
    vf_name=VF$((2 * i)) far_name=VF$((2 * i + 1)) side=${sides[i]}
    vf[$side]=${!vf_name} far[$side]=${!far_name} mac[$side]=52:54:00:00:00:1$((2 * i))
    path[$side]=$RUN/$side/vhost/virtio-forwarder1.sock
    mkdir -p "$RUN/$side/vhost"
done
bind_vfio "${vf[@]}" "${far[@]}"

# daemon SIDE [ARGUMENT...]: each has folders of its own for sockets and state
daemon() { VHOST_DIR=$RUN/$1/vhost CONTROL=$RUN/$1/control.sock forwarder "$1" --add-pci-vf "${vf[$1]}=1" "${@:2}"; }
forwarders() {
    printf '[[relay]]\nid = 1\nzero-copy = "tx"\n' > "$RUN/config.toml"
    daemon virtio-forwarder && daemon zero-copy --config "$RUN/config.toml" || return 1
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

# guest SIDE WAY SIZE: a VM that sends all the time, or one that receives and, from the far VF, what it receives
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

# on_the_wire: sets COUNT to the frames that the NIC has sent, and NOW
on_the_wire() { COUNT=$(ethtool -S "$PF" | awk '$1 == "tx_packets:" {print $2}'); now_ms; }
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
        on_the_wire; count=$COUNT start=$NOW
        sleep "$3"
        on_the_wire; RATE=$(((COUNT - count) * 1000 / (NOW - start)))
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
        [ $((round % 2)) = 0 ] || order=(zero-copy testpmd virtio-forwarder)
        for side in "${order[@]}"; do
            slot "$side" "$1" "$seconds"
            note "rate $cell $round $side $RATE"
            [ "$RATE" -gt 0 ] || { echo "no frame of $side came through in round $round"; return 1; }
        done
    done
}
# let_in: the VF sends from the memory of the VM that came last
let_in() { [ "$(grep -c 'zero-copy: the device sends' "$OUT/zero-copy.log")" -gt "$let_in_before" ]; }

# median FILE: `MEDIAN (MIN–MAX)` of a column of numbers
median() {
    sort -n "$1" | awk '{v[NR] = $1} END {m = (v[int((NR + 1) / 2)] + v[int(NR / 2) + 1]) / 2
        printf "%.2f (%.2f–%.2f)", m, v[1], v[NR]}'
}
# ratio CELL SIDE: by testpmd, round by round
ratio() {
    awk -v cell="$1" -v side="$2" '$2 == "rate" && $3 == cell {rate[$4, $5] = $6; n = $4}
        END {for (i = 0; i <= n; i++) print rate[i, side] / rate[i, "testpmd"]}' "$RUN/rates" > "$RUN/ratios"
    median "$RUN/ratios"
}

if ! forwarders > "$RUN/why" 2>&1; then
    for cell in out.64 out.1514 in.64 in.1514; do not_ok "$cell" "$(tail -3 "$RUN/why" | paste -sd '|')"; done
    exit 1
fi
for way in out in; do
    for size in 64 1514; do
        cell=$way.$size
        let_in_before=$(grep -c 'zero-copy: the device sends' "$OUT/zero-copy.log")
        if rates "$way" "$size" > "$RUN/lines" 2>&1; then
            cat "$RUN/lines" >> "$RUN/rates"
            grep '^# ' "$RUN/lines"
            ok "$cell" "ratio to testpmd $(ratio "$cell" virtio-forwarder), with zero-copy $(ratio "$cell" zero-copy)"
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
