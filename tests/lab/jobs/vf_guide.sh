# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# The walk-through of the SR-IOV guide, with the commands and the outputs that users of the C daemon know, at the default
# paths; and the guide's chown of the socket directory, which the daemon accepts when it starts again.
# expect: add_says_ok waits_for_its_vm remove_says_ok curl_lists_relays
# expect: chowned_directory_accepted traffic_after_restart daemon_stops
# timeout: 120
. tests/lab/relay.sh

# prints EXACTLY COMMAND...: this on standard output, and exit status 0
prints() {
    local expected=$1 output
    shift
    output=$("$@") || { echo "exit status $?: $output"; return 1; }
    [ "$output" = "$expected" ] || { echo "it printed: $output"; return 1; }
}

scene 2
# The packages install these names as links to port_control.
mkdir -p /usr/lib/virtio-forwarder
ln -s "$TARGET/port_control" /usr/lib/virtio-forwarder/virtioforwarder_stats.py
PATH=$TARGET:/usr/lib/virtio-forwarder:$PATH
# The socket directory and the control socket of the installed daemon.
VHOST_DIR=/tmp/virtio-forwarder
CONTROL=/run/virtio-forwarder/control.sock
serves() { port_control list; }
added() { virtioforwarder_stats.py --include-inactive | grep DPDK_ADDED; }

spawn daemon virtio-forwarder --cpus 1
within 30 serves > /dev/null
check add_says_ok prints "status: OK" port_control add --virtio-id 1 --pci-addr "${VF0#0000:}"
check waits_for_its_vm prints "relay_1.vf_to_vm.internal_state=DPDK_ADDED" added
check remove_says_ok prints "status: OK" port_control remove --virtio-id 1 --pci-addr "${VF0#0000:}"
check curl_lists_relays curl -sf --unix-socket "$CONTROL" http://localhost/v1/relays
stop daemon

# The user of QEMU under libvirt owns the directory, as the guide has it.
getent group kvm > /dev/null || groupadd --system kvm
getent passwd libvirt-qemu > /dev/null || useradd --system --gid kvm --shell /usr/sbin/nologin libvirt-qemu
chown -R libvirt-qemu:kvm "$VHOST_DIR"
spawn again virtio-forwarder --cpus 1 --add-pci-vf "$VF0=1"
check chowned_directory_accepted within 30 serves
vm vm "$(socket 1)" icmpecho
check traffic_after_restart traffic
stop vm INT
check daemon_stops ends_well again
