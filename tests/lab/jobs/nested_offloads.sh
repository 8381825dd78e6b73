# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# VF0 - relay 1 - a Linux VM in QEMU, nested in the lab, which leaves checksums and segmentation to its NIC: TCP each way
# and datagrams. The VF does none of it, so the daemon does, and the far side verifies every checksum in the bytes of every
# frame. Emulation in emulation, so it takes minutes.
# nightly
# expect: vm_is_up negotiated switched_on to_guest from_guest from_guest6 datagrams every_checksum cut kernel_agrees
# expect: guest_agrees daemon_unharmed daemon_stops
# timeout: 1500
. tests/lab/relay.sh
lib=tests/lib
size=4 # MiB of each transfer

scene 2
head -c ${size}M /dev/urandom > "$RUN/sent"
sum=$(sha256sum < "$RUN/sent")
forwarder daemon --enable-mrgbuf --enable-tso --add-pci-vf "$VF0=1" || { not_ok vm_is_up "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
# 5 times 40 datagrams of 1400 bytes in one write (one frame, where QEMU has USO), to a port where nobody listens.
# shellcheck disable=SC2016 # the guest expands these
VM_TIMEOUT=1300 VM_TOOLS="ethtool python3" spawn vm tests/vm/tiny-vm "$(socket 1)" 52:54:00:00:00:10 "$PEER/24" '
    echo "features $(cat /sys/class/net/eth0/device/features)"
    ethtool -k eth0 | sed -n "s/^[[:blank:]]*\([a-z0-9-]*\): on.*/on \1/p"
    echo "told all"
    echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
    ip -6 addr add fd00::9/64 dev eth0
    mkfifo /idle; exec 3<> /idle # nc leaves when its input ends
    until nc 10.0.0.2 5001 <&3 > /file; do sleep 1; done
    echo "sum $(sha256sum < /file)"
    until nc 10.0.0.2 5002 < /file; do sleep 1; done
    # nc writes little at a time, and the frames are hardly longer than what a wire takes. Not so with one large write.
    python3 -SIc "
import _socket, time
while True:
    s = _socket.socket(_socket.AF_INET6, _socket.SOCK_STREAM, 0)
    try:
        s.connect((\"fd00::2\", 5003))
        break
    except OSError:
        time.sleep(1)
s.sendall(open(\"/file\", \"rb\").read())
s.close()
s = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM, 0)
s.setsockopt(17, 103, 1400)
for i in range(5):
    s.sendto(bytes([i]) * 56000, (\"10.0.0.2\", 9000))
print(\"segments sent\")"
    # The name of the last column is InCsumErrors.
    sed -n "s/^Tcp: .*InErrs .* \([^ ]*\)\$/column \1/p; s/^Tcp: [0-9].* \([0-9]*\)\$/wrong \1/p" /proc/net/snmp
    echo "written $(cat /sys/class/net/eth0/statistics/tx_packets)"
    sleep 3000'
# line PREFIX: what follows the prefix in the VM's output
line() { sed -n "s/^$1 //p" "$OUT/vm.log" | tail -1; }
# CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6
negotiated() {
    local bit features
    features=$(line features)
    note "$features"
    for bit in 0 1 7 8 11 12; do [ "${features:bit:1}" = 1 ] || { echo "without $bit: $features"; return 1; }; done
}
switched_on() {
    local name
    for name in tx-checksumming tx-tcp-segmentation tx-tcp6-segmentation; do
        says vm "^on $name\$" || { grep '^on ' "$OUT/vm.log" | paste -sd ' '; return 1; }
    done
}
to_guest() {
    spawn send "$lib/tcp_file.py" send 5001 "$RUN/sent"
    within 200 says vm '^sum '
    [ "$(line sum)" = "$sum" ]
}
from_guest() { # PORT
    spawn receive "$lib/tcp_file.py" receive "$1" "$RUN/back"
    within 200 gone receive
    stop receive > /dev/null
    [ "$(sha256sum < "$RUN/back")" = "$sum" ] || { echo "the sums differ"; return 1; }
}
cut() {
    local written wire
    written=$(line written)
    wire=$(on_the_wire)
    note "$written frames of the guest, $wire on the wire"
    [ "${wire:-0}" -gt $((${written:-100000} + 1000)) ]
}
guest_agrees() { says vm '^column InCsumErrors' && [ "$(line wrong)" = 0 ]; }

check vm_is_up traffic 900
note "up after $((TOOK / 1000)) s"
within 120 says vm '^told all' > /dev/null
capture
check negotiated negotiated
check switched_on switched_on
check to_guest to_guest
check from_guest from_guest 5002
check from_guest6 from_guest 5003
check datagrams within 300 says vm '^segments sent'
within 60 says vm '^written ' > /dev/null
check every_checksum every_checksum '[5-9][0-9]{3} tcp' '[2-9][0-9]{2} udp'
check cut cut
check kernel_agrees kernel_agrees
check guest_agrees guest_agrees
stop vm > /dev/null
check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 30
