# shellcheck shell=bash disable=SC2034 # names that jobs use
# For the head of a job about virtio functions, behind responder.sh or relay.sh. The job's `# lab: VIRTIO=` line, or its
# `QEMU=` line, has pairs of functions at fixed places of the root bus, joined by a hub or bridge of their own:
#
#   00:10.0 and 00:11.0, 00:12.0 and 00:13.0 ...    the first of each is for our driver, the second for the kernel's
#
#   pair N NETDEV CIDR...   sets VF0 to our function of pair N (from 0), with vfio-pci, and gives the kernel's a name and
#                           addresses

pair() {
    local far netdev i name=$2
    printf -v VF0 '0000:00:%02x.0' $((0x10 + 2 * $1))
    printf -v far '0000:00:%02x.0' $((0x11 + 2 * $1))
    shift 2
    netdev=$(basename "$(echo "/sys/bus/pci/devices/$far"/virtio*/net/*)")
    # Several jobs may share the machine: it is found as the one before has left it, with its addresses.
    for i in /sys/bus/virtio/drivers/virtio_net/*/net/*; do ip addr flush dev "$(basename "$i")"; done
    ip link set "$netdev" down
    [ "$netdev" = "$name" ] || ip link set "$netdev" name "$name"
    ip link set "$name" mtu 9000 up
    for i in "$@"; do
        case $i in *:*) ip -6 addr add "$i" dev "$name" nodad;; *) ip addr add "$i" dev "$name";; esac
    done
    bind_vfio "$VF0"
}

# every_kind COUNT: the driver alone answers the kernel's virtio_net, through each pair of the machine in turn: a split
# ring and a packed one. (Not used in order: with that QEMU 10.0 receives nothing more after a frame of several buffers
# goes around the ring's end, where it looks behind its own list. The driver's tests against our model have it.)
every_kind() {
    local kind n=0
    load_any_vfio
    for kind in split packed; do
        pair $n "far$n" "10.1.$n.2/24" "fd1$n::2/64"
        PEER=10.1.$n.9
        check "started.$kind" start_responder "$VF0" --ip "$PEER" --ip6 "fd1$n::9"
        check "ping.$kind" pings "$1"
        check "ping_1514.$kind" pings 300 -s 1472
        check "ping_9000.$kind" pings 300 -s 8972 -M "do"
        PEER=fd1$n::9
        check "ping6.$kind" pings 100
        check "link.$kind" said 'Link\(Up'
        check "stopped.$kind" stop_responder
        check "no_errors.$kind" said 'rx_errors: 0.* tx_errors: 0'
        n=$((n + 1))
    done
}

# every_frame COUNT: numbered frames both ways, likewise
every_frame() {
    local kind n=0
    load_any_vfio
    for kind in split packed; do
        pair $n "far$n" "10.1.$n.2/24"
        FAR=far$n
        check "numbered.$kind" numbered --frames "$1"
        check "jumbo.$kind" numbered --frames "$(($1 / 10))" --longest 9014
        n=$((n + 1))
    done
}
