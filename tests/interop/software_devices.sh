# shellcheck shell=bash source-path=SCRIPTDIR
# Devices without hardware, with DPDK's virtio_user as the VM: an interface of the kernel (packet:) and a capture file
# (pcap:). The interface is one end of a wire (veth) whose other end has all offloads: frames come from there without
# checksums and up to 64 KiB long, and must be right and short where the VM receives them.
# expect: echo_with_tags tso_from_vm tcp_to_vm long_frames_cut tcp_from_vm wire_to_vm wire_from_vm
# expect: down_is_told up_again mtu_is_followed removal_is_told restored unusable_refused
# expect: capture_comes_back capture_slow_vm recording_kept full_disk_is_told daemon_unharmed daemon_stops
# timeout: 90
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
. "$(dirname "$0")/../lib/far_side.sh"
lib=$(dirname "$0")/../lib
within_vm=vf-vm-$$ # the namespace of the VM's own IP stack
cleanup() { umount -q "$RUN/full"; ip netns del "$near"; ip netns del "$far"; ip netns del "$within_vm"; rm -rf "$RUN"; }

# wire: from the daemon's namespace to the far one; no stack but that of the far end speaks on it by itself
wire() {
    ip -n "$near" link add wire type veth peer name end netns "$far" || return 1
    in_near sysctl -qw net.ipv6.conf.wire.disable_ipv6=1
    in_far sysctl -qw net.ipv6.conf.end.disable_ipv6=1
    ip -n "$near" link set wire up
    ip -n "$far" addr add 10.1.0.1/24 dev end
    ip -n "$far" link set end up
}
for namespace in "$near" "$far" "$within_vm"; do ip netns add "$namespace"; done
wire
TESTPMD_UNDER=(ip netns exec "$within_vm")

# A small disk. Now, since what is started in a namespace does not see what is mounted later.
mkdir "$RUN/full"
mount -t tmpfs -o size=256k tmpfs "$RUN/full"

# echo_vm NAME SOCKET: a VM that sends every frame back and loses none
echo_vm() {
    printf '%s\n' 'set burst tx delay 1 retry 10000000' 'set fwd io retry' start > "$OUT/$1.commands"
    TESTPMD_MBUFS=8192 testpmd "$1" "${VM_CPU:-0}" \
        "net_virtio_user0,path=$2,queues=1,queue_size=1024,mac=52:54:00:00:00:10" --forward-mode=io --port-topology=loop \
        --no-flush-rx --txd=1024 --rxd=1024 --cmdline-file="$OUT/$1.commands"
    within 20 says "$1" 'packet forwarding.* - ports=1'
}

forwarder daemon --enable-mrgbuf --enable-tso --add-device packet:wire=0 ||
    { not_ok daemon_unharmed "it did not start"; exit 1; }
daemon=${pids[daemon]}

echo_vm echo "$(socket 0)"
within 10 says daemon 'packet:wire runs'
check echo_with_tags in_far "$lib/echo_frames.py" end 4000
stop echo INT

# The VM leaves it to the interface to cut a TCP stream; on this wire, whose near end has no offloads, the kernel does.
tso() {
    in_near ethtool -K wire tx off > /dev/null 2>&1
    "$lib/tso_frames.py" generate 300 "$RUN/tso.0"
    spawn tso_check ip netns exec "$far" "$lib/tso_frames.py" check 300 1454 end
    within 5 says tso_check ready || return 1
    pcap_vm tso "$(socket 0)" 1 "" "$RUN/tso" "$RUN/tso.back"
    tell tso 'port config 0 tx_offload multi_segs on' 'port config 0 tx_offload tcp_cksum on' \
        'port config 0 tx_offload tcp_tso on' 'csum set tcp hw 0' 'csum mac-swap off 0' 'tso set 1400 0' 'port start all'
    # The driver sets its rings up anew, with these offloads.
    within 10 says tso '^Done' && sleep 0.2 && within 10 runs || return 1
    tell tso 'set burst tx delay 1 retry 10000000' 'set fwd csum retry' start
    within 10 gone tso_check
    stop tso_check
    local status=$STATUS
    cat "$OUT/tso_check.log"
    in_near ethtool -K wire tx on > /dev/null 2>&1
    quits tso && [ "$status" = 0 ] || { pc stats --json; return 1; }
}
runs() { grep -E 'packet:wire (runs|stopped)' "$OUT/daemon.log" | tail -1 | grep -q runs; }
check tso_from_vm tso

# The VM's stack is one of the kernel, behind a tap of testpmd, which forwards no offloads.
vm stack "$(socket 0)" tap:guest
within 10 ip -n "$within_vm" link show guest
in_vm() { ip netns exec "$within_vm" "$@"; }
in_vm sysctl -qw net.ipv6.conf.guest.disable_ipv6=1
ip -n "$within_vm" addr add 10.1.0.2/24 dev guest
ip -n "$within_vm" link set guest up
answers() { within "$1" in_far ping -c 1 -W 1 -q 10.1.0.2 || { echo "silent: $(tail -2 "$OUT/daemon.log" | paste -sd '|')"; return 1; }; }
answers 10 > /dev/null
spawn wire_to ip netns exec "$within_vm" "$lib/wire_check.py" guest 1514
spawn wire_from ip netns exec "$far" "$lib/wire_check.py" end 1514
within 5 says wire_to ready
within 5 says wire_from ready
head -c 10M /dev/urandom > "$RUN/sent"
# transfer FROM TO ADDRESS: the file through TCP, from a namespace to another
transfer() {
    spawn "$1.send" ip netns exec "$1" "$lib/tcp_file.py" send 5001 "$RUN/sent"
    timeout 30 ip netns exec "$2" "$lib/tcp_file.py" fetch "$3:5001" "$RUN/got" || return 1
    stop "$1.send" > /dev/null
    cmp "$RUN/sent" "$RUN/got"
}
check tcp_to_vm transfer "$far" "$within_vm" 10.1.0.1
# What came through the interface was far longer than what the VM was given.
cut() {
    local wire vm
    wire=$(counter 0 vf_to_vm rx_frames) vm=$(counter 0 vf_to_vm tx_frames)
    note "$wire frames became $vm"
    [ "$vm" -gt $((2 * wire)) ]
}
check long_frames_cut cut
check tcp_from_vm transfer "$within_vm" "$far" 10.1.0.2
# said NAME: what the wire check found, and its status
said() { stop "$1"; cat "$OUT/$1.log"; grep -q ' tcp' "$OUT/$1.log" && [ "$STATUS" = 0 ]; }
check wire_to_vm said wire_to
check wire_from_vm said wire_from

# An interface that is down, up again, has another MTU, is removed, and is there again.
ip -n "$near" link set wire down
down() {
    within 5 says daemon 'link of packet:wire is down' || return 1
    in_vm ping -c 3 -i 0.2 -W 1 -q 10.1.0.1 > /dev/null
    pc stats --json | grep -q vf_refused || { pc stats --json; return 1; }
}
check down_is_told down
ip -n "$near" link set wire up
check up_again answers 10
# Frames are under way both ways when its ring is made anew, and when it goes.
spawn flood ip netns exec "$far" ping -f -l 100 -q -s 1000 10.1.0.2
ip -n "$near" link set wire mtu 4000
followed() { within 5 says daemon 'MTU of interface wire is 4000' && answers 10; }
check mtu_is_followed followed
ip -n "$near" link del wire
removed() { within 5 says daemon 'packet:wire is gone' && pc list | grep -q DPDK_UNINIT && unharmed daemon "$daemon"; }
check removal_is_told removed
stop flood INT
wire
restored() { pc add --virtio-id 0 --device packet:wire && answers 10; }
check restored restored
stop stack INT

# What cannot be a device is refused with the reason, and its relay stays free.
unusable() {
    local device pattern output
    printf '\n\r\r\n%60s' '' > "$RUN/ng.pcap"
    while read -r device pattern; do
        output=$(pc add --virtio-id 2 --device "$device" 2>&1) && { echo "$device was accepted"; return 1; }
        grep -Eq -- "$pattern" <<< "$output" || { echo "$device: $output"; return 1; }
    done <<< "packet:nowhere no network interface nowhere
packet:lo does not carry Ethernet
pcap:$RUN/ng.pcap pcapng
pcap:$RUN/no/folder.pcap cannot make .*folder.pcap.out.pcap
packet:wire in use by relay 0"
}
check unusable_refused unusable

# A file is played to a VM that sends it back, and what comes back is what was played.
"$lib/pcap_frames.py" generate 20000 1514 "$RUN/in.pcap"
recorded() { [ "$(stat -c %s "$1" 2> /dev/null || echo 0)" -ge "$2" ]; }
# back NAME OUT [SECONDS]: the VM stands still for so long when the file begins
back() {
    echo_vm "$1" "$(socket 1)" || return 1
    [ -z "${3:-}" ] || kill -STOP "${pids[$1]}"
    pc add --virtio-id 1 --device "pcap:$RUN/in.pcap" || return 1
    [ -z "${3:-}" ] || { sleep "$3"; kill -CONT "${pids[$1]}"; }
    within 20 recorded "$RUN/in.pcap.$2" "$(stat -c %s "$RUN/in.pcap")" || true
    stop "$1" INT
    pc remove --virtio-id 1
    "$lib/pcap_frames.py" compare 0 "$RUN/in.pcap" "$RUN/in.pcap.$2"
}
check capture_comes_back back player out.pcap
# None is dropped because its ring is full for long, and the first recording is not touched.
first=$(sha256sum < "$RUN/in.pcap.out.pcap")
check capture_slow_vm back slow out.1.pcap 0.3
check recording_kept [ "$first" = "$(sha256sum < "$RUN/in.pcap.out.pcap")" ]

# A file that has no room any more: the log says so, and from then on frames are refused.
ln -s ../in.pcap "$RUN/full/in.pcap"
full() {
    echo_vm full "$(socket 1)" || return 1
    pc add --virtio-id 1 --device "pcap:$RUN/full/in.pcap" || return 1
    within 10 says daemon 'cannot write to .*full/in.pcap.out.pcap: No space left' || return 1
    within 10 refuses_all || { pc stats --json; return 1; }
    stop full INT
    pc remove --virtio-id 1 && ! says daemon 'panicked'
}
refuses_all() {
    local refused
    refused=$(curl -sS --max-time 10 --unix-socket "$CONTROL" http://localhost/metrics |
        awk '/^virtio_forwarder_dropped_/ && /relay="1"/ && /reason="vf_refused"/ {n += $2} END {print n + 0}')
    note "$refused frames refused"
    [ "$refused" -gt 0 ] && [ "$(counter 1 vm_to_vf rx_frames)" = 60000 ]
}
check full_disk_is_told full

check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
