# shellcheck shell=bash disable=SC2154 # names of check.sh and forwarder.sh
# The matrix: DPDK's virtio_user with one combination of ring features after the other (cells), a loopback behind the
# socket. A VM sends numbered frames; each must come back once, byte by byte, those of a flow in order.
#
# The name of a cell says what it is: SIDE.RING.PATH.QUEUES
#   SIDE     server: the back end listens and the VM connects; client: the other way round
#   RING     split, packed
#   PATH     plain, mergeable, inorder, mergeable_inorder, vectorized, jumbo (mergeable), jumbo_inorder: how the driver
#            moves frames, as DPDK names it
#   QUEUES   queue pairs
# The cells are those that the scenario announces. Needs check.sh, testpmd.sh, forwarder.sh. With BACK_END=testpmd DPDK's
# net_vhost takes the place of the daemon: that shows that the scenario is right.
BACK_END=${BACK_END:-forwarder}
FRAMES=${FRAMES:-100000}
JUMBO_FRAMES=$((FRAMES / 5))
pcap_frames=$(dirname "${BASH_SOURCE[0]}")/pcap_frames.py
# 160 MB a cell: in memory where there is some.
frames_dir=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "$RUN")" vf.XXXXXX)
cleanup() { rm -rf "$RUN" "$frames_dir"; }

# Bits of the virtio features.
MRG_RXBUF=15 MQ=22 RING_PACKED=34 IN_ORDER=35

# serves SIDE: the back end, for VMs with up to four queue pairs
serves() {
    if [ "$BACK_END" = testpmd ]; then
        local client=""
        [ "$1" = server ] || client=client=1
        mkdir -p "$VHOST_DIR"
        [ -n "$client" ] || rm -f "$(socket 0)" # net_vhost does not take the place of a dead one's
        back_end "back_end.$1" "$FORWARDER_CPUS" "$(socket 0)" 4 "$client"
        within 20 says "back_end.$1" 'packet forwarding - ports|packet forwarding with retry - ports'
        return
    fi
    local flags=()
    [ "$1" = server ] || flags=(--vhostuser-client)
    forwarder "back_end.$1" --enable-mrgbuf --add-device loopback=0 ${flags[@]+"${flags[@]}"}
}

# dropped: frames that the daemon has dropped on relay 0, for whatever reason
dropped() {
    [ "$BACK_END" = forwarder ] || { echo 0; return; }
    curl -sS --max-time 10 --unix-socket "$CONTROL" http://localhost/metrics |
        awk '/^virtio_forwarder_dropped_frames_total{/ && /relay="0"/ {sum += $2} END {print sum + 0}'
}

# negotiated NAME BIT WANTED: whether the VM's driver and the back end agreed on a feature
negotiated() {
    local features
    features=$(sed -n 's/.*features after negotiate = \([0-9a-f]*\).*/\1/p' "$OUT/$1.log" | tail -1)
    [ -n "$features" ] || { echo "$1 negotiated nothing: $(tail -3 "$OUT/$1.log" | paste -sd '|')"; return 1; }
    [ $((0x$features >> $2 & 1)) = "$3" ] || { echo "feature $2 should be $3: negotiated 0x$features"; return 1; }
}

cell() {
    local name=$1 side ring path queues properties frames=$FRAMES longest=1514 in before arguments=() i ins="" outs=() start
    local packed=0 mrg=0 order=0 vector=0
    IFS=. read -r side ring path queues <<< "$1"
    [ "$ring" = split ] || packed=1
    case $path in
        plain) ;;
        mergeable) mrg=1;;
        inorder) order=1;;
        mergeable_inorder) mrg=1 order=1;;
        # DPDK has it with a packed ring only if buffers are used in order, and with a split one only if not.
        vectorized) vector=1 order=$packed;;
        jumbo) mrg=1 frames=$JUMBO_FRAMES longest=9014;;
        jumbo_inorder) mrg=1 order=1 frames=$JUMBO_FRAMES longest=9014;;
    esac
    properties=packed_vq=$packed,mrg_rxbuf=$mrg,in_order=$order,vectorized=$vector
    [ "$side" = server ] || properties+=,server=1
    # A long frame takes five buffers of the receive ring, and one entry of the transmit ring; and of a burst of buffers
    # the driver takes the frames that are in it, so that only with bursts of one it receives as often as it sends.
    [ "$longest" = 1514 ] || arguments=(--max-pkt-len=9018 --txd=64 --burst=1)
    in=$frames_dir/in.$longest.$queues
    for ((i = 0; i < queues; i++)); do ins+=${ins:+,}$in.$i outs+=("$frames_dir/out.$i"); done
    # shellcheck disable=SC2086 # a list of files
    [ -e "$in.0" ] || "$pcap_frames" generate "$frames" "$longest" ${ins//,/ }
    rm -f "${outs[@]}"

    before=$(dropped)
    now_ms; start=$NOW
    numbered_vm "$name" "$(socket 0)" "$queues" "$properties" "$in" "$frames_dir/out" ${arguments[@]+"${arguments[@]}"}
    counted_back "$name" "$frames" 5
    quits "$name" || return 1
    negotiated "$name" "$RING_PACKED" "$packed" && negotiated "$name" "$MRG_RXBUF" "$mrg" &&
        negotiated "$name" "$IN_ORDER" "$order" || return 1
    [ "$queues" = 1 ] || negotiated "$name" "$MQ" 1 || return 1
    [ $vector = 0 ] || says "$name" 'using.* vectorized Rx path' || { echo "the driver did not vectorize"; return 1; }
    "$pcap_frames" compare 0 "$ins" "${outs[@]}" || { echo "dropped: $(($(dropped) - before))"; return 1; }
    [ "$(dropped)" = "$before" ] || { echo "$(($(dropped) - before)) frames counted as dropped"; return 1; }
    now_ms
    note "$frames frames in $((NOW - start)) ms"
}

# matrix CELL...: those of one side share a back end
matrix() {
    local side cell
    for side in server client; do
        [[ " $*" == *" $side."* ]] || continue
        serves "$side"
        for cell in "$@"; do
            [[ $cell != "$side".* ]] || check "$cell" cell "$cell"
        done
        check "unharmed.$side" running "back_end.$side"
        stop "back_end.$side" > /dev/null
        rm -rf "$VHOST_DIR"
    done
}

# announced FILE: the cells that a scenario announces
announced() { sed -n -e '/^\(#.*\)\{0,1\}$/!q' -e 's/^# expect: *//p' "$1" | tr ' ' '\n' | grep -F -e .split. -e .packed.; }
