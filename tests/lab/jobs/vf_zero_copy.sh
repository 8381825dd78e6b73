# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# VF0 - relay 1 - DPDK's virtio_user as the VM, with the VF let into the VM's memory: it sends from there, through a real
# IOMMU. Numbered frames go both ways and arrive byte by byte; VMs are killed, the VF leaves and comes back, and is made to
# hold on to frames, all under traffic. Memory that is locked (VmLck) tells what is mapped. In the end the kernel is told to
# map nothing more, and frames are copied.
# expect: let_in ping ping_1400 memory_locked killed.1 killed.2 memory_unlocked removed added_again let_in_again
# expect: frames_were_held held_memory_given_back sends_after_that numbered_out numbered_in no_dma_fault daemon_unharmed
# expect: daemon_stops vf_left_quiet refused_with_remedy copied_instead rx_is_refused
# timeout: 400
. tests/lab/relay.sh
lib=tests/lib
frames=5000

# Frames that are numbered go to these addresses.
make_vfs 2
ip link set "$PF" vf 1 mac 52:54:00:00:00:99
load_vfio
kernel_vf "$VF1" vf1 10.0.0.2/24 fd00::2/64
bind_vfio "$VF0"
dmesg -C

config() { printf '[[relay]]\nid = 1\nzero-copy = "%s"\n' "$1" > "$RUN/config.toml"; }
faults() { dmesg | grep -c 'DMAR.*fault'; }
locked() { awk '/^VmLck:/ {print $2}' "/proc/$daemon/status"; }
locked_at_least() { [ "$(locked)" -ge "$1" ] || { echo "$(locked) KiB are locked"; return 1; }; }
locked_at_most() { [ "$(locked)" -le "$1" ] || { echo "$(locked) KiB are locked"; return 1; }; }
lets_in() { [ "$(grep -c 'zero-copy: the device sends' "$OUT/daemon.log")" -ge "$1" ]; }

config tx
forwarder daemon --config "$RUN/config.toml" --add-pci-vf "$VF0=1" || { not_ok ping "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
before=$(locked)
vm vm "$(socket 1)" icmpecho
traffic > /dev/null
# Emulation takes seconds to pin 64 MiB; frames are copied meanwhile.
check let_in within 30 lets_in 1
check ping pings 200
check ping_1400 pings 200 -s 1400
# The VM has 64 MiB.
check memory_locked locked_at_least 60000

for i in 1 2; do
    within 30 lets_in "$i" > /dev/null
    spawn pings ping -i 0.01 -s 1400 "$PEER"
    sleep 0.5
    stop vm KILL
    [ "$i" != 2 ] || check memory_unlocked within 5 locked_at_most $((before + 10000))
    vm vm "$(socket 1)" icmpecho
    if traffic 40 > /dev/null; then ok "killed.$i" "traffic after $TOOK ms"; else not_ok "killed.$i" "no traffic"; fi
    stop pings INT
done

within 30 lets_in 3 > /dev/null
spawn pings ping -i 0.01 -s 1400 "$PEER"
pc remove --virtio-id 1 --pci-addr "$VF0" > /dev/null
check removed locked_at_most 10000
pc add --virtio-id 1 --pci-addr "$VF0" > /dev/null
check added_again traffic $((2 * SLOW))
check let_in_again within 30 lets_in 4
stop pings INT
stop vm KILL

# A device that neither fetches nor completes (bus mastering is off) has frames of a VM that is killed.
vm flood "$(socket 1)" flood
within 30 counters_move > /dev/null
within 30 lets_in 5 > /dev/null
setpci -s "$VF0" COMMAND=0:4
check frames_were_held within 20 counters_rest
stop flood KILL > /dev/null
# 100 ms, and the time that emulation takes to notice the end of the VM and to reset the queue.
within $SLOW guest_memory_unmapped daemon > /dev/null
if [ "$TOOK" -le $((100 * SLOW)) ]; then
    ok held_memory_given_back "$TOOK ms"
else
    not_ok held_memory_given_back "not after $TOOK ms"
fi
setpci -s "$VF0" COMMAND=4:4
vm again "$(socket 1)" icmpecho
check sends_after_that traffic 40
within 30 lets_in 6 > /dev/null
stop again TERM > /dev/null

# numbered WAY: the VM sends and receives numbered frames; `out` are those that it sends.
numbered() {
    local sent received=$RUN/received base let_in_before VM_WAITS=1
    let_in_before=$(grep -c 'zero-copy: the device sends' "$OUT/daemon.log")
    base=$(sent)
    TO=52:54:00:00:00:99 $lib/pcap_frames.py generate "$frames" 1514 "$RUN/out.0"
    TO=52:54:00:00:00:10 $lib/pcap_frames.py generate "$frames" 1514 "$RUN/in.0"
    if [ "$1" = out ]; then sent=$RUN/out.0; else sent=$RUN/in.0; fi
    # An empty file has the VM send nothing.
    [ "$1" = out ] || head -c 24 "$RUN/in.0" > "$RUN/out.0"
    if [ "$1" = out ]; then
        spawn wire $lib/wire_pcap.py receive vf1 "$received"
        within 20 says wire ready
    fi
    numbered_vm "numbered_$1" "$(socket 1)" 1 "mrg_rxbuf=0" "$RUN/out" "$RUN/got" --burst=1
    # Not one frame is copied.
    within 60 lets_in $((let_in_before + 1)) || return 1
    tell "numbered_$1" start
    within 30 says "numbered_$1" 'ports=2 ' || return 1
    if [ "$1" = in ]; then
        received=$RUN/got.0
        $lib/wire_pcap.py send vf1 "$sent"
        counted_back "numbered_$1" "$frames" 5
    else
        within 60 wire_has $((base + frames))
        sleep 1
    fi
    quits "numbered_$1" || return 1
    if [ "$1" = out ]; then
        stop wire TERM 20
    else
        # The kernel asks for the VM's address again, long after the pings.
        $lib/wire_pcap.py pick "$received" "$RUN/picked"
        received=$RUN/picked
    fi
    $lib/pcap_frames.py compare 0 "$sent" "$received"
}
wire_has() { [ "$(sent)" -ge "$1" ]; }
check numbered_out numbered out
check numbered_in numbered in

check no_dma_fault [ "$(faults)" = 0 ]
check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
check vf_left_quiet vf_is_quiet "$VF0"

# One mapping is the daemon's own.
echo 1 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit
forwarder limited --config "$RUN/config.toml" --add-pci-vf "$VF0=1"
vm vm "$(socket 1)" icmpecho
traffic > /dev/null
check refused_with_remedy within 10 says limited 'zero-copy is refused, frames are copied: .*dma_entry_limit'
check copied_instead ping -q -c 20 -i 0.2 -W 5 -s 1400 "$PEER"
stop limited > /dev/null
echo 65535 > /sys/module/vfio_iommu_type1/parameters/dma_entry_limit
config rx
refuses_to_start rx_is_refused "zero-copy: 'rx' is not possible" --config "$RUN/config.toml"
