# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# A relay between a virtio function with packed rings and a VM (DPDK's virtio_user): the kernel's virtio_net pings through
# all of it. 100 000 frames pass; the function leaves and comes back under traffic; the daemon ends in good order.
# nightly
# expect: ping ping_1400 ping_jumbo many counted removed added_again daemon_unharmed daemon_stops left_quiet
# timeout: 300
# lab: VIRTIO=host_mtu=9000 packed=on packed=on,in_order=on
. tests/lab/relay.sh
. tests/lab/virtio.sh

load_vfio
pair 1 vf1 10.0.0.2/24 fd00::2/64
forwarder daemon --enable-jumbo --add-pci-vf "$VF0=1" || { not_ok ping "the daemon did not start"; exit 1; }
daemon=${pids[daemon]}
vm vm "$(socket 1)" icmpecho
traffic > /dev/null
note "the first answer came after $TOOK ms"

check ping pings 1000
check ping_1400 pings 1000 -s 1400
# testpmd's buffers hold 2 KiB.
check ping_jumbo pings 300 -s 1900
check many pings "${COUNT:-50000}" -w 150
check counted counters_say_at_least "$((2000 + ${COUNT:-50000}))"

spawn pings ping -i 0.02 "$PEER"
pc remove --virtio-id 1 --pci-addr "$VF0" > /dev/null
check removed within 5 silent
pc add --virtio-id 1 --pci-addr "$VF0" > /dev/null
if traffic $((2 * SLOW)) > /dev/null; then
    ok added_again "traffic after $TOOK ms"
else
    not_ok added_again "no traffic within $((2 * SLOW)) s"
fi
stop pings INT

check daemon_unharmed unharmed daemon "$daemon"
check daemon_stops ends_well daemon TERM 10
check left_quiet vf_is_quiet "$VF0"
