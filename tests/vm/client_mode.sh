# shellcheck shell=bash source-path=SCRIPTDIR
# Client mode with QEMU: the VM makes the socket (server=on) and the daemon connects. Who is killed comes back: the VM, and
# the daemon under a running VM.
# expect: first_vm traffic_after_daemon_kill traffic_after_vm_kill socket_is_the_vms daemon_unharmed daemon_stops
# timeout: 170
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
tiny_vm=$(dirname "$0")/tiny-vm

netns=vf-test-$$
ip netns add "$netns"
cleanup() { ip netns del "$netns"; rm -rf "$RUN"; }
inside() { ip netns exec "$netns" "$@"; }
FORWARDER_UNDER=(ip netns exec "$netns")

# serve NAME: a daemon, and its interface
serve() {
    forwarder "$1" --vhostuser-client --add-device tap:vm0=0 || return 1
    inside ip link set vm0 up
    inside ip addr add 10.1.0.1/24 dev vm0
}
socket=$(socket 0)
guest() {
    VM_SERVER=1 VM_PIDFILE=$OUT/$1.pid spawn "$1" "$tiny_vm" "$socket" 52:54:00:01:00:02 10.1.0.2/24 'sleep 600'
}
ping_guest() { inside ping -c 1 -W 1 10.1.0.2; }
# traffic SECONDS: the guest answers within that time
traffic() { within "$1" ping_guest || return 1; note "after $TOOK ms"; }

serve killed || { not_ok daemon_unharmed "it did not start"; exit 1; }
guest first
check first_vm traffic 40

# The daemon is killed in the middle of traffic; the next finds the VM's socket and the VM's rings.
inside ping -i 0.01 -q 10.1.0.2 > /dev/null 2>&1 &
flood=$!
kill -KILL "${pids[killed]}"
stop killed > /dev/null
serve daemon
daemon=${pids[daemon]}
check traffic_after_daemon_kill traffic 10
kill "$flood"

kill -KILL "$(cat "$OUT/first.pid")"
stop first > /dev/null
guest again
check traffic_after_vm_kill traffic 40

check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
check socket_is_the_vms [ -S "$socket" ]
kill -KILL "$(cat "$OUT/again.pid")"
