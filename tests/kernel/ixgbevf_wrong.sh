# shellcheck shell=bash source-path=SCRIPTDIR/../..
# The acceptance of a model can fail: what Linux's ixgbevf makes of one that is wrong in one way, and then right again.
# expect: right no_interrupt short_length no_link no_write_back reset_reply right_again
# timeout: 400
# nightly
# lab: MODEL=ixgbevf x550
# lab: IOMMU=none
# lab: MEM=1024
. tests/lib/kernel_driver.sh

begin() {
    settle && within 15 carriers 1 && macs && pings && both_ways
}
again() { model right; rmmod ixgbevf; load_driver ixgbevf; }

# fails WRONG COMMAND...: with the models wrong in this way the command fails, and does not with right ones
fails() {
    local wrong=$1
    shift
    again && settle && within_right || return 1
    model wrong "$wrong"
    within 5 grep -q "1: wrong $wrong" "$LOG" || return 1
    if "$@"; then echo "nobody noticed"; return 1; fi
}
afresh() { rmmod ixgbevf; load_driver ixgbevf && settle && within 5 carriers 1 && macs; }

within_right() { within 15 carriers 1 && pings; }

start ixgbevf
check right within_right
check no_interrupt fails NoInterrupt pings
check short_length fails ShortLength pings
check no_link fails NoLink afresh
check no_write_back fails NoWriteBack timeout 30 bash -c "ip netns exec left ping -q -f -c 4000 -w 20 $RIGHT | grep ' 4000 received'"
check reset_reply fails ResetReplyWithCts afresh
again
check right_again begin
rmmod ixgbevf
