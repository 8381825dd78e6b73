# shellcheck shell=bash
# pings COUNT [PING ARGUMENT...]: PEER is pinged as fast as the answers come, and none is lost. Needs check.sh.
pings() {
    local count=$1 output sent received
    shift
    output=$(ping -A -c "$count" -w 90 -q "$@" "$PEER")
    note "$(paste -sd ' ' <<< "$output" | sed 's/.*statistics --- //')"
    # It ends with the last answer that it waits for; one more request may be on its way then. No other is missing.
    read -r sent received < <(sed -n 's/^\([0-9]*\) packets transmitted, \([0-9]*\) received.*/\1 \2/p' <<< "$output")
    [ "${received:-0}" -ge "$count" ] && [ $((sent - received)) -le 1 ] || { echo "$output"; return 1; }
}
