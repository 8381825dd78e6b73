# shellcheck shell=bash disable=SC2034,SC2154 # names that scenarios use; names of check.sh and forwarder.sh
# The network behind a relay's tap: a namespace ($near) with the daemon, its taps and a bridge, and one ($far) that is the
# other end of a wire (veth) from there. The near end of the wire has no offloads: whatever a frame left to be done is
# done, or not, before it is on the wire, and what the far end receives is what a switch would. Needs check.sh and
# forwarder.sh, whose daemon it puts into $near. Nothing leads out of here.

near=vf-near-$$ far=vf-far-$$
far_side() { # MTU
    ip netns add "$near" && ip netns add "$far" || return 1
    ip -n "$near" link add wire mtu "$1" type veth peer name end mtu "$1" netns "$far"
    ip -n "$near" link add br0 mtu "$1" type bridge
    ip -n "$near" link set wire master br0
    # Quietly: it complains about offloads that cannot be changed.
    ip netns exec "$near" ethtool -K wire tx off > /dev/null 2>&1
    ip -n "$far" addr add 10.1.0.1/24 dev end
    ip -n "$far" addr add fd01::1/64 dev end nodad
    local link
    for link in br0 wire; do ip -n "$near" link set "$link" up; done
    ip -n "$far" link set end up
    ip -n "$far" link set lo up
}
# join TAP MTU: a device of the daemon becomes part of the network
join() { ip -n "$near" link set "$1" mtu "$2" master br0 up; }
in_far() { ip netns exec "$far" "$@"; }
in_near() { ip netns exec "$near" "$@"; }
FORWARDER_UNDER=(ip netns exec "$near")
TESTPMD_UNDER=(ip netns exec "$near")
cleanup() { ip netns del "$near"; ip netns del "$far"; rm -rf "$RUN"; }
