# shellcheck shell=bash source-path=SCRIPTDIR/../../..
# Frames a second from the VM to the wire and from the wire to the VM, through VFs of an 82576: the daemon, copying and with
# zero-copy, beside DPDK's testpmd (its igbvf driver and net_vhost). `cargo xtask bench --cell lab` judges the figures; here
# they only have to be there.
#
# Arguments: rounds (default 5), seconds of a slot (default 2), testpmd (default dpdk-testpmd). Frames to the wire go to an
# address that nobody has, and the NIC counts them: a receiver there would cost CPU. Debian's QEMU 10.0 ends in `iotlb_to_section`
# when several VFs are held and let go.
# nightly
# expect: out.64 out.1514 in.64 in.1514
# timeout: 1800
# lab: EMULATOR=newest
. tests/lab/relay.sh
. tests/lab/rates.sh
sides=(virtio-forwarder testpmd zero-copy)

make_vfs $((2 * ${#sides[@]}))
load_vfio
for ((i = 0; i < ${#sides[@]}; i++)); do
    vf_name=VF$((2 * i)) far_name=VF$((2 * i + 1)) side=${sides[i]}
    vf[$side]=${!vf_name} far[$side]=${!far_name} mac[$side]=52:54:00:00:00:1$((2 * i))
done
bind_vfio "${vf[@]}" "${far[@]}"
own_sockets

forwarders() {
    printf '[[relay]]\nid = 1\nzero-copy = "tx"\n' > "$RUN/config.toml"
    daemon virtio-forwarder && daemon zero-copy --config "$RUN/config.toml" && yardstick
}
on_the_wire() { COUNT=$(ethtool -S "$PF" | awk '$1 == "tx_packets:" {print $2}'); now_ms; }

all_rates
