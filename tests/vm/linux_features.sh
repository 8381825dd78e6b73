# shellcheck shell=bash source-path=SCRIPTDIR
# A Linux guest with what QEMU does not give it by default: in one boot a packed ring, four queue pairs, jumbo frames and
# all offloads; in another a virtual IOMMU (every address the guest hands out is translated over the back-end channel) and
# receive buffers that cannot be merged. On the far end of a wire without offloads every checksum is verified.
# expect: features.packed ping.packed jumbo.packed queues.packed to_guest.packed from_guest.packed segments.packed
# expect: ring_resize_harmless.packed wire.packed
# expect: features.iommu ping.iommu to_guest.iommu from_guest.iommu wire.iommu daemon_unharmed
# timeout: 240
#
# With BACK_END=testpmd DPDK's net_vhost and net_tap take the place of the daemon; they forward no offloads, so the guest
# is given none then.
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
. "$(dirname "$0")/../lib/far_side.sh"
tiny_vm=$(dirname "$0")/tiny-vm
lib=$(dirname "$0")/../lib
size=${SIZE:-30} # MiB of each transfer

# Bits of the features, and names that this scenario gives them.
declare -A bit=([csum]=0 [guest_csum]=1 [mtu]=3 [guest_tso4]=7 [guest_tso6]=8 [host_tso4]=11 [host_tso6]=12 [mrg_rxbuf]=15
    [mq]=22 [indirect]=28 [event_idx]=29 [access_platform]=33 [packed]=34 [ring_reset]=40 [guest_uso4]=54 [guest_uso6]=55
    [host_uso]=56)
offloads="csum guest_csum guest_tso4 guest_tso6 host_tso4 host_tso6"
no_offloads=csum=off,gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off
no_offloads+=,host_tso6=off,host_ecn=off,host_ufo=off,guest_uso4=off,guest_uso6=off,host_uso=off

BACK_END=${BACK_END:-forwarder}
mtu=9000
[ "$BACK_END" = forwarder ] || mtu=1500 # of net_tap, whatever is asked for
far_side $mtu
# serves QUEUES: the reference spreads flows over as many queues as it has, whether the guest uses them or not
serves() {
    if [ "$BACK_END" = forwarder ]; then
        running daemon || forwarder daemon --enable-mrgbuf --enable-tso --add-device tap:vm0=0 ||
            { not_ok daemon_unharmed "it did not start"; exit 1; }
    else
        stop daemon > /dev/null
        mkdir -p "$VHOST_DIR"
        local TESTPMD_MBUFS=4096
        # A translation that net_vhost does not have yet is a failed transmission: without `retry` the frame is gone.
        printf 'set burst tx delay 1 retry 100000\nset fwd io retry\n' > "$OUT/commands"
        testpmd daemon "$FORWARDER_CPUS" "net_vhost0,iface=$(socket 0),queues=$1,iommu-support=1 net_tap0,iface=vm0" \
            --forward-mode=io --auto-start --rxq="$1" --txq="$1" --disable-link-check --mbuf-size=4096 \
            --cmdline-file="$OUT/commands"
        within 20 says daemon 'packet forwarding.* - ports=2'
    fi
    daemon=${pids[daemon]}
    join vm0 $mtu
}
if [ "$BACK_END" = forwarder ]; then without=""; else without=,$no_offloads offloads=""; fi
serves 4

# line NAME PREFIX: what follows the prefix in the VM's output
line() { sed -n "s/^$2 //p" "$OUT/$1.log" | tail -1; }

# has NAME BITS: the guest's driver has negotiated these features
has() {
    local features missing="" name
    features=$(line "$1" features)
    for name in $2; do [ "${features:${bit[$name]}:1}" = 1 ] || missing+=" $name"; done
    [ -z "$missing" ] || { echo "without$missing: ${features:-no VM} $(tail -3 "$OUT/$1.log" | paste -sd '|')"; return 1; }
}
has_not() { local features; features=$(line "$1" features); [ "${features:${bit[$2]}:1}" = 0 ] || { echo "with $2"; return 1; }; }

# transfers NAME: the far end's part of the guest's transfers
transfers() {
    spawn "send.$1" ip netns exec "$far" "$lib/tcp_file.py" send 5001 "$RUN/sent"
    spawn "receive.$1" ip netns exec "$far" "$lib/tcp_file.py" receive 5002 "$RUN/back"
    spawn "send6.$1" ip netns exec "$far" "$lib/tcp_file.py" send 5003 "$RUN/sent"
}
head -c "${size}M" /dev/urandom > "$RUN/sent"
sum=$(sha256sum < "$RUN/sent")
# shellcheck disable=SC2016 # the guest expands these
common='
    ethtool -L eth0 combined 4 2> /dev/null
    echo "features $(cat /sys/class/net/eth0/device/features)"
    echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
    ip -6 addr add fd01::2/64 dev eth0
    ping -c 20 -i 0.05 -W 2 -q 10.1.0.1 | sed "s/^/ping /"
    mkfifo /idle; exec 3<> /idle # nc leaves when its input ends
    nc 10.1.0.1 5001 <&3 > /file
    echo "sum $(sha256sum < /file)"
    nc fd01::1 5003 <&3 | sha256sum | sed "s/^/sum6 /"
    nc 10.1.0.1 5002 < /file
'
# judge NAME: the checks that all boots share
judge() {
    check "ping.$1" says "$1" '^ping 20 packets transmitted, 20 packets received'
    check "to_guest.$1" [ "$(line "$1" sum) / $(line "$1" sum6)" = "$sum / $sum" ]
    check "from_guest.$1" [ "$(sha256sum < "$RUN/back")" = "$sum" ]
    # Both directions are on the wire; what the far end receives is what comes from the guest.
    check "wire.$1" well_judged "$1"
    local of
    for of in send receive send6; do stop "$of.$1" > /dev/null; done
}
well_judged() {
    stop "capture.$1" TERM 60
    [ "$STATUS" = 0 ] || { tail -4 "$OUT/capture.$1.log"; return 1; }
    note "$(tail -1 "$OUT/capture.$1.log")"
    says "capture.$1" '[1-9][0-9]{3} tcp'
}

# 20 times 40 datagrams of 1400 bytes that a program hands over in one piece, to a port where nobody listens.
# shellcheck disable=SC2016
spawn capture.packed ip netns exec "$far" "$lib/wire_check.py" end $((mtu + 14))
transfers packed
# shellcheck disable=SC2016
VM_QUEUES=4 VM_CPUS=2 VM_TOOLS="ethtool python3" VM_NIC=packed=on,host_mtu=$mtu,rx_queue_size=512,tx_queue_size=512$without \
    VM_TIMEOUT=100 spawn packed "$tiny_vm" "$(socket 0)" 52:54:00:01:00:02 10.1.0.2/24 "$common"'
    ping -c 10 -i 0.1 -W 2 -s '$((mtu - 28))' -q 10.1.0.1 | sed "s/^/jumbo /"
    python3 -SIc "
import _socket
s = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
s.setsockopt(17, 103, 1400)
for i in range(20):
    s.sendto(bytes([i]) * 56000, (\"10.1.0.1\", 9000))
print(\"segments sent\")"
    ethtool -l eth0 | sed -n "s/^Combined:[^0-9]*/combined /p"
    for n in 1 3 4; do
        ethtool -L eth0 combined $n && ping -c 5 -i 0.05 -W 2 -q 10.1.0.1 | grep -q "5 packets received" && echo "queues $n"
    done
    ethtool -G eth0 tx 128; ethtool -G eth0 rx 128
    ping -c 5 -i 0.05 -W 2 -q 10.1.0.1 | sed "s/^/resized /"'
within 100 gone packed > /dev/null
stop packed > /dev/null
check features.packed has packed "packed mq mtu mrg_rxbuf indirect event_idx $offloads"
check jumbo.packed says packed '^jumbo 10 packets transmitted, 10 packets received'
queues_change() {
    local n
    [ "$BACK_END" = forwarder ] || { note "net_tap uses all queues always"; return; }
    for n in 1 3 4; do says packed "^queues $n" || { echo "not with $n queues"; return 1; }; done
}
check queues.packed queues_change
# QEMU does not tell a vhost-user back end of the reset of one ring: offered, it would take the guest's traffic away.
keeps_its_rings() { has_not packed ring_reset && says packed '^resized 5 packets transmitted, 5 packets received'; }
check ring_resize_harmless.packed keeps_its_rings
judge packed
segments() { says packed '^segments sent' && says capture.packed '(8[0-9]{2}|9[0-9]{2}|[0-9]{4}) udp'; }
check segments.packed segments

serves 1
# An ordinary MTU here: segmentation makes frames of 1514 bytes.
size=$((size / 3))
head -c "${size}M" /dev/urandom > "$RUN/sent"
sum=$(sha256sum < "$RUN/sent")
ip -n "$far" link set end mtu 1500
spawn capture.iommu ip netns exec "$far" "$lib/wire_check.py" end 1514
transfers iommu
VM_IOMMU=1 VM_NIC=iommu_platform=on,ats=on,disable-legacy=on,mrg_rxbuf=off$without VM_TIMEOUT=100 \
    spawn iommu "$tiny_vm" "$(socket 0)" 52:54:00:01:00:02 10.1.0.2/24 "$common"
within 100 gone iommu > /dev/null
stop iommu > /dev/null
iommu() { has iommu "access_platform indirect event_idx $offloads" && has_not iommu mrg_rxbuf; }
check features.iommu iommu
judge iommu

if [ "$BACK_END" = testpmd ]; then check daemon_unharmed running daemon; else check daemon_unharmed unharmed daemon "$daemon"; fi
