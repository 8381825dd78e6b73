# shellcheck shell=bash disable=SC2034
# For scenarios in tests/kernel: the Linux kernel's own driver drives two models of a NIC that are joined by a wire, each in
# a network namespace of its own, so that the kernel's stack is the far side of both. In the lab, with `# lab: MODEL=...`.
#
#     . tests/lib/kernel_driver.sh
#     accept DRIVER      reports the checks mac carrier ping tcp tcp_verified rings vlan link reload content dmesg
#     accept_jumbo MTU   reports jumbo; between start and finish
#
# DRIVER is the module; PCI_DRIVER is the name of its driver for the device, where that is another one.
#
# `accept` is start, the checks, and finish; a scenario that wants something in between calls these itself.
. tests/lib/check.sh

SIDES=(left right)
LEFT=10.0.0.1 RIGHT=10.0.0.2
MAC_LEFT=52:54:00:00:00:01 MAC_RIGHT=52:54:00:00:00:02
LOG=/lab-out/model.log
BYTES=$((2 << 20)) # of a transfer

in_left() { ip netns exec left "$@"; }
in_right() { ip netns exec right "$@"; }

# load_driver NAME: the module with all that it needs
load_driver() {
    local module
    while read -r module; do
        [ -e "/sys/module/$(basename "${module//-/_}" .ko)" ] || insmod "/mods/$module" || return 1
    done < "/mods/$1.order"
}

driver_folder() { echo "/sys/bus/pci/drivers/${PCI_DRIVER:-$DRIVER}"; }
netdevs() { for netdev in "$(driver_folder)"/*/net/*; do [ ! -e "$netdev" ] || basename "$netdev"; done; }
has_two() { [ "$(netdevs | wc -l)" = 2 ]; }

# settle: both netdevs, each in its namespace as `nic`, with addresses, up
settle() {
    local side netdev n=0
    within 10 has_two || return 1
    for netdev in $(netdevs); do
        side=${SIDES[n++]}
        ip link set "$netdev" netns "$side" name nic || return 1
        ip -n "$side" addr add "10.0.0.$n/24" dev nic
        ip -n "$side" addr add "fd00::$n/64" dev nic nodad
        ip -n "$side" link set nic up || return 1
    done
}

carriers() { [ "$(in_left cat /sys/class/net/nic/carrier)$(in_right cat /sys/class/net/nic/carrier)" = "$1$1" ]; }

# start DRIVER: loads it
start() {
    local side
    DRIVER=$1
    dmesg -C
    for side in "${SIDES[@]}"; do
        ip netns add "$side"
        ip -n "$side" link set lo up
    done
    load_driver "$DRIVER" && settle
}

macs() {
    local left right
    left=$(in_left cat /sys/class/net/nic/address) right=$(in_right cat /sys/class/net/nic/address)
    note "$left $right"
    [ "$left $right" = "$MAC_LEFT $MAC_RIGHT" ]
}

comes_up() { within 15 carriers 1 && note "after $TOOK ms"; }

# pings ARGUMENT...: both ways, and none is lost
pings() {
    in_left ping -q -i 0.02 -c 10 -W 2 "$@" "$RIGHT" || return 1
    in_right ping -q -i 0.02 -c 10 -W 2 "$@" "$LEFT" || return 1
}
pings_of_both() { pings && in_left ping -q -i 0.02 -c 5 -W 2 fd00::2 && in_right ping -q -i 0.02 -c 5 -W 2 fd00::1; }

# transfer SENDER RECEIVER ADDRESS: what arrives is what was sent
transfer() {
    local sender=$1 receiver=$2 address=$3
    rm -f /tmp/arrived
    ip netns exec "$receiver" busybox nc -l -p 5000 > /tmp/arrived < /dev/null &
    local listener=$!
    within 5 listens "$receiver" || return 1
    ip netns exec "$sender" timeout 60 bash -c "cat /tmp/sent > /dev/tcp/$address/5000" || return 1
    within 20 gone_process "$listener" || { kill "$listener"; return 1; }
    wait "$listener"
    cmp /tmp/sent /tmp/arrived
}
listens() { [ -n "$(ip netns exec "$1" ss -Hltn 'sport = :5000')" ]; }
gone_process() { ! kill -0 "$1" 2> /dev/null; }

feature_is() {
    local features
    features=$(ip netns exec "$1" ethtool -k nic)
    grep -qE "^\s*$2: $3" <<< "$features" || { echo "$1: $2 is not $3"; return 1; }
}

no_wrong_checksums() {
    local side wrong
    for side in "${SIDES[@]}"; do
        wrong=$(ip netns exec "$side" nstat -asz TcpInCsumErrors UdpInCsumErrors Icmp6InCsumErrors | awk '!/^#/ {n += $2} END {print n}')
        [ "$wrong" = 0 ] || { echo "$side: $wrong checksums are wrong"; return 1; }
    done
}

# both_ways: a file each way, its checksums left to the device where it does them
both_ways() {
    [ -e /tmp/sent ] || head -c "$BYTES" /dev/urandom > /tmp/sent
    now_ms; local start=$NOW
    transfer left right "$RIGHT" && transfer right left "$LEFT" || return 1
    now_ms; note "$((2 * BYTES >> 20)) MiB in $((NOW - start)) ms"
    no_wrong_checksums
}

# offloaded_tcp FEATURE...: with these features on; default: checksums and segmentation
offloaded_tcp() {
    local side feature
    [ $# -gt 0 ] || set -- tx-checksumming tcp-segmentation-offload
    for side in "${SIDES[@]}"; do
        for feature in "$@"; do feature_is "$side" "$feature" on || return 1; done
    done
    both_ways
}

# verified_tcp: the receiving stack adds up every checksum itself
verified_tcp() {
    local side
    for side in "${SIDES[@]}"; do
        ip netns exec "$side" ethtool -K nic rx off gro off || return 1
        feature_is "$side" rx-checksumming off || return 1
    done
    both_ways || return 1
    for side in "${SIDES[@]}"; do ip netns exec "$side" ethtool -K nic rx on gro on || return 1; done
}

# ring SIDE WAY: descriptors of its rings
ring() {
    ip netns exec "$1" ethtool -g nic | awk -v way="${2^^}:" '/^Current/ {now = 1} now && $1 == way {print $2}'
}

# more_than_a_ring: each side has sent and received more frames than its rings have descriptors. Frames that are not cut yet
# are few, so as many small ones come after them as the largest ring has room for.
more_than_a_ring() {
    local side way ring frames most=0 said=""
    for side in "${SIDES[@]}"; do
        for way in rx tx; do
            ring=$(ring "$side" "$way")
            [ "$ring" -le "$most" ] || most=$ring
        done
    done
    in_left ping -q -f -l 16 -c "$((most + 1))" -w 60 "$RIGHT" || return 1
    for side in "${SIDES[@]}"; do
        for way in rx tx; do
            ring=$(ring "$side" "$way")
            frames=$(ip netns exec "$side" cat "/sys/class/net/nic/statistics/${way}_packets")
            said+="$side $way $frames of $ring, "
            [ "$frames" -gt "$ring" ] || { echo "$said"; return 1; }
        done
    done
    note "${said%, }"
}

# vlan: tagged frames, small and full, pass both ways
vlan() {
    local side n=0
    load_driver 8021q || return 1
    for side in "${SIDES[@]}"; do
        n=$((n + 1))
        ip -n "$side" link add link nic name tagged type vlan id 7 &&
            ip -n "$side" addr add "10.0.7.$n/24" dev tagged && ip -n "$side" link set tagged up || return 1
    done
    LEFT=10.0.7.1 RIGHT=10.0.7.2 pings -s 1472 -M 'do' || return 1
    LEFT=10.0.7.1 RIGHT=10.0.7.2 both_ways || return 1
    for side in "${SIDES[@]}"; do ip -n "$side" link del tagged; done
}

# jumbo MTU
jumbo() {
    local side mtu=$1
    for side in "${SIDES[@]}"; do ip -n "$side" link set nic mtu "$mtu" || return 1; done
    within 15 carriers 1 && pings -s $((mtu - 28)) -M 'do' && both_ways || return 1
    for side in "${SIDES[@]}"; do ip -n "$side" link set nic mtu 1500 || return 1; done
    within 15 carriers 1
}
accept_jumbo() { check jumbo jumbo "$1"; }

# model WORDS: does something to both models
model() { local n; for n in 0 1; do echo "$n $*" >> /lab-out/model.commands; done; }

flap() {
    model link down
    within 15 carriers 0 || return 1
    local took=$TOOK
    model link up
    within 15 carriers 1 || return 1
    note "down after $took ms, up after $TOOK ms"
    pings
}

reload() {
    local n
    for n in 1 2 3; do
        rmmod "$DRIVER" && load_driver "$DRIVER" && settle && within 15 carriers 1 && pings || { echo "time $n"; return 1; }
    done
}

quiet_dmesg() {
    ! dmesg | grep -iE '\bh[au]ng|timed out|fail|removed|call trace|BUG:|WARNING:' || { echo "dmesg complains"; return 1; }
}

# The models say what a driver did that it must not, and so does what was counted at the end.
content() {
    rmmod "$DRIVER" || return 1
    ! grep -E 'FAULT|panicked' "$LOG"
}

finish_driver() {
    check content content
    check dmesg quiet_dmesg
}

accept() {
    check mac start_with_macs "$1"
    check carrier comes_up
    check ping pings_of_both
    check tcp offloaded_tcp
    check tcp_verified verified_tcp
    check rings more_than_a_ring
    check vlan vlan
    [ -z "${JUMBO:-}" ] || accept_jumbo "$JUMBO"
    check link flap
    check reload reload
    finish_driver
}
start_with_macs() { start "$1" && macs; }
