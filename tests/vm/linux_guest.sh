# shellcheck shell=bash source-path=SCRIPTDIR
# A Linux guest in QEMU (its virtio-net driver, memory slots, kicks and interrupts) - relay - tap in a network namespace,
# where the host's own IP stack answers. With and without mergeable buffers; IPv4 and IPv6; a VM that is killed and
# started again; a second VM on a socket in use.
# expect: ping.mrg_rxbuf=on to_guest.mrg_rxbuf=on from_guest.mrg_rxbuf=on ping6.mrg_rxbuf=on
# expect: ping.mrg_rxbuf=off to_guest.mrg_rxbuf=off from_guest.mrg_rxbuf=off ping6.mrg_rxbuf=off
# expect: second_vm_refused first_vm_goes_on memory_held memory_given_back traffic_after_kill daemon_unharmed daemon_stops
# timeout: 170
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
tiny_vm=$(dirname "$0")/tiny-vm
tcp_file=$(dirname "$0")/../lib/tcp_file.py
size=50 # MiB of each transfer

# All traffic stays in this namespace, which has no way out.
netns=vf-test-$$
ip netns add "$netns"
cleanup() { ip netns del "$netns"; rm -rf "$RUN"; }
inside() { ip netns exec "$netns" "$@"; }
FORWARDER_UNDER=(ip netns exec "$netns")

forwarder daemon --enable-mrgbuf --add-device tap:vm0=0 || { not_ok daemon_unharmed "it did not start"; exit 1; }
daemon=${pids[daemon]}
# The daemon has made the interface.
inside ip link set vm0 up
inside ip addr add 10.1.0.1/24 dev vm0
inside ip -6 addr add fd01::1/64 dev vm0 nodad
socket=$(socket 0)

# guest NAME NIC-PROPERTIES COMMANDS: a VM in the background; $OUT/NAME.log is its console
guest() {
    VM_NIC=$2 VM_PIDFILE=$OUT/$1.pid spawn "$1" "$tiny_vm" "$socket" 52:54:00:01:00:02 10.1.0.2/24 "$3"
}
# kill_guest NAME: kills QEMU itself, not the script around it
kill_guest() { kill -KILL "$(cat "$OUT/$1.pid")"; stop "$1" > /dev/null; }
# line NAME PREFIX: what follows the prefix in the VM's output
line() { sed -n "s/^$2 //p" "$OUT/$1.log" | tail -1; }

head -c ${size}M /dev/urandom > "$RUN/sent"
sum=$(sha256sum < "$RUN/sent")

# The guest fetches the file and sends back what it got; its own sum says which direction is to blame if one is.
for nic in mrg_rxbuf=on mrg_rxbuf=off; do
    spawn "send.$nic" ip netns exec "$netns" "$tcp_file" send 5001 "$RUN/sent"
    spawn "receive.$nic" ip netns exec "$netns" "$tcp_file" receive 5002 "$RUN/back"
    # shellcheck disable=SC2016 # the guest expands these
    guest "vm.$nic" "$nic" '
        echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
        ip -6 addr add fd01::2/64 dev eth0
        ping -c 20 -i 0.05 -W 2 -q 10.1.0.1 | sed "s/^/ping /"
        ping -6 -c 5 -i 0.1 -W 2 -q fd01::1 | sed "s/^/ping6 /"
        mkfifo /idle; exec 3<> /idle # nc leaves when its input ends
        nc 10.1.0.1 5001 <&3 > /file
        echo "sum $(sha256sum < /file)"
        nc 10.1.0.1 5002 < /file'
    within 70 gone "vm.$nic" > /dev/null
    stop "vm.$nic" > /dev/null
    check "ping.$nic" says "vm.$nic" '^ping 20 packets transmitted, 20 packets received'
    check "ping6.$nic" says "vm.$nic" '^ping6 5 packets transmitted, 5 packets received'
    check "to_guest.$nic" [ "$(line "vm.$nic" sum)" = "$sum" ]
    check "from_guest.$nic" [ "$(sha256sum < "$RUN/back")" = "$sum" ]
    stop "send.$nic" > /dev/null
    stop "receive.$nic" > /dev/null
done

# A second VM on a socket in use is turned away, and the first one notices nothing.
guest first mrg_rxbuf=on 'ping -i 0.2 10.1.0.1 > /dev/null & sleep 600'
within 40 inside ping -c 1 -W 1 10.1.0.2 > /dev/null
spawn second "$tiny_vm" "$socket" 52:54:00:01:00:03 10.1.0.3/24 'sleep 600'
check second_vm_refused within 20 says daemon "$SECOND_VM_PATTERN"
check first_vm_goes_on inside ping -c 20 -i 0.05 -W 1 -q 10.1.0.2
stop second TERM

# A VM that is killed leaves nothing of its memory in the daemon, and the next one is served.
check memory_held guest_memory_mapped daemon
kill_guest first
check memory_given_back within 5 guest_memory_unmapped daemon
guest again mrg_rxbuf=on 'sleep 600'
check traffic_after_kill within 40 inside ping -c 1 -W 1 10.1.0.2
kill_guest again

check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
