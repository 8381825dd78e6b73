# shellcheck shell=bash disable=SC2034
# For scenarios in tests/kernel: our own driver drives one model through VFIO and an IOMMU, as it would the silicon, and the
# kernel's driver the other at the end of the wire. In the lab, with `# lab: MODEL=...`.
#
#     . tests/lib/own_driver.sh
#     meet DRIVER [COMMAND...]    reports the checks started carrier ping ping_1400 ping6 link stopped content, and
#                                 begins_anew where commands to the model make our driver do that
. tests/lib/kernel_driver.sh
# Last: its pings are those that our driver answers.
. tests/lab/responder.sh

# bring_together DRIVER: the first model to vfio-pci, the second to the kernel, with the addresses that pings come from
bring_together() {
    local functions
    DRIVER=$1
    load_driver "$DRIVER" && within 10 has_two || return 1
    mapfile -t functions < <(basename -a "$(driver_folder)"/0000:*)
    OURS=${functions[0]} THEIRS=${functions[1]}
    load_vfio
    bind_vfio "$OURS"
    ip link set "$(netdevs)" name far
    ip addr add 10.0.0.2/24 dev far
    ip -6 addr add fd00::2/64 dev far nodad
    ip link set far up
}
is_on() { bring_together "$1" && start_responder "$OURS"; }
far_is_up() { within 15 grep -q 1 /sys/class/net/far/carrier && note "after $TOOK ms"; }

# told WORDS PATTERN: the model is told something, and the driver tells it on
told() {
    local before
    before=$(grep -cE "$2" "$OUT/responder.log")
    echo "0 $1" >> /lab-out/model.commands
    within 10 more_than "$before" "$2" || { tail -5 "$OUT/responder.log"; return 1; }
}
more_than() { [ "$(grep -cE "$2" "$OUT/responder.log")" -gt "$1" ]; }

flaps() { told 'link down' 'Link\(Down' && told 'link up' 'Link\(Up' && within 10 answers && pings 50; }

# has_begun_anew WORDS...: these commands make the driver begin anew, and traffic is back
has_begun_anew() {
    local before word
    before=$(grep -c '^started' "$OUT/responder.log")
    for word in "$@"; do echo "0 $word" >> /lab-out/model.commands; sleep 0.3; done
    within 15 more_than "$before" '^started' || { tail -5 "$OUT/responder.log"; return 1; }
    within 10 answers && pings 50
}

meet() {
    check started is_on "$1"
    check carrier far_is_up
    within 10 answers > /dev/null
    check ping pings 500
    check ping_1400 pings 200 -s 1400
    PEER=fd00::9
    check ping6 pings 100
    PEER=10.0.0.9
    check link flaps
    [ $# = 1 ] || check begins_anew has_begun_anew "${@:2}"
    check stopped stop_responder
    check content ours_is_content
}
# What the kernel's driver does is looked at where it drives both.
ours_is_content() { rmmod "$DRIVER" && ! grep -E '^ *[0-9.]+ 0: FAULT|panicked' "$LOG"; }
