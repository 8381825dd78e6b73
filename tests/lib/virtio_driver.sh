# shellcheck shell=bash disable=SC2034
# For scenarios in tests/kernel about virtio_net, behind kernel_driver.sh: the driver of the network device is not that of
# the PCI function, which others in the lab have, too.

netdevs() {
    for netdev in /sys/bus/virtio/drivers/virtio_net/*/net/*; do [ ! -e "$netdev" ] || basename "$netdev"; done
}

# accept_virtio: what every driver is asked, but for received checksums being looked at by the kernel: the model says
# nothing of them, so that it always is.
accept_virtio() {
    # What it needs is loaded, as it was itself.
    echo virtio_net.ko > /mods/virtio_net.order
    rmmod virtio_net
    check mac start_with_macs virtio_net
    check carrier comes_up
    check ping pings_of_both
    check tcp offloaded_tcp
    check rings more_than_a_ring
    check vlan vlan
    accept_jumbo 9000
    check link flap
    check reload reload
    finish_driver
}
