# shellcheck shell=bash source-path=SCRIPTDIR
# What people and programs get wrong, on the command line, in files and on the control socket: each time a message that
# says what is wrong, and a daemon that goes on while a VM's traffic flows.
# expect: relay_in_use id_out_of_range no_such_pci_address malformed_pci_address unknown_device wrong_usage_exits_2
# expect: error_exits_1 no_daemon unknown_json_field wrong_json_type no_json unknown_path oversized_body
# expect: control_garbage control_half_requests control_many_connections control_stranger_refused
# expect: socket_path_too_long directory_of_all directory_is_link absent_cpu device_id_out_of_range
# expect: traffic_untouched daemon_unharmed
# timeout: 120
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"

forwarder daemon --add-device loopback=0 || { not_ok daemon_unharmed "it did not start"; exit 1; }
daemon=${pids[daemon]}
vm vm "$(socket 0)" bounce
receives vm 10 > /dev/null

# Commands.
refused relay_in_use 'relay 0|has|occupied' pc add --virtio-id 0 --device null
refused id_out_of_range '99.*(0\.\.3|0 to 3|less than 4|4 relays|highest)|(0\.\.3|0 to 3|4 relays).*99' \
    pc add --virtio-id 99 --device null
refused no_such_pci_address '0000:99:00\.0' pc add --virtio-id 1 --pci-addr 0000:99:00.0
refused malformed_pci_address 'nonsense' pc add --virtio-id 1 --pci-addr nonsense
refused unknown_device 'frobnicator.*loopback' pc add --virtio-id 1 --device frobnicator
exits() { local wanted=$1 status; shift; "$@" && status=0 || status=$?; [ "$status" = "$wanted" ]; }
check wrong_usage_exits_2 exits 2 pc add --no-such-option
check error_exits_1 exits 1 pc add --virtio-id 99 --device null
refused no_daemon "$RUN/nobody.sock" "$TARGET/port_control" --control-socket "$RUN/nobody.sock" list

# The API. Each answer is problem details (RFC 9457) with a status of its own.
# problem STATUS PATTERN PATH CURL-ARGUMENT...
problem() {
    local status=$1 pattern=$2 answer
    shift 2
    answer=$(api "$@")
    grep -q '"code"' <<< "$answer" && grep -Eq "$pattern" <<< "$answer" && [ "$(tail -1 <<< "$answer")" = "$status" ] ||
        { echo "$answer"; return 1; }
    note "$(grep -m1 '"detail"' <<< "$answer" | cut -c 1-200)"
}
json() { problem "$1" "$2" /v1/relays/1/device -X PUT -H 'Content-Type: application/json' -d "$3"; }
check unknown_json_field json 400 'colour' '{"device": "null", "colour": "red"}'
check wrong_json_type json 400 'device|integer' '{"device": 7}'
check no_json json 400 '' '{"device": '
check unknown_path problem 404 'openapi' /v1/frobnicate
head -c 10M /dev/zero > "$RUN/zeros"
check oversized_body problem 413 '' /v1/relays/1/device -X PUT -H 'Content-Type: application/json' \
    -H 'Expect:' --data-binary "@$RUN/zeros"

# The control socket below HTTP. Whatever comes, it answers or hangs up; and a proper client is served.
abuse() { timeout 60 "$(dirname "$0")/../lib/control_abuse.py" "$CONTROL" "$1" && pc list > /dev/null; }
check control_garbage abuse garbage
check control_half_requests abuse half_requests
check control_many_connections abuse many_connections
chmod o+x "$RUN"
refused control_stranger_refused 'permission|not allowed|may not' as_another_user \
    "$TARGET/port_control" --control-socket "$CONTROL" list

# Starting.
long=$RUN/$(printf 'a%.0s' {1..100})
mkdir "$long"
refuses_to_start socket_path_too_long "(path|name).*(long|108|107)" --cpus "$FORWARDER_CPUS" --relays 4 --vhost-path "$long"
mkdir -m 777 "$RUN/open"
refuses_to_start directory_of_all "$RUN/open.*(write|writable)" --cpus "$FORWARDER_CPUS" --relays 4 --vhost-path "$RUN/open"
mkdir "$RUN/real"
ln -s real "$RUN/link"
refuses_to_start directory_is_link "$RUN/link.*link" --cpus "$FORWARDER_CPUS" --relays 4 --vhost-path "$RUN/link"
refuses_to_start absent_cpu 'CPU.*63|63.*CPU' --cpus 63 --relays 4 --vhost-path "$RUN/cpu"
# A device that cannot be had is an error in the log: the other relays are served.
spawn elsewhere "$TARGET/virtio-forwarder" --cpus "$FORWARDER_CPUS" --relays 4 --vhost-path "$RUN/elsewhere" \
    --control-socket "$RUN/elsewhere.sock" --add-device null=7 --add-device null=1
check device_id_out_of_range within 10 says elsewhere 'null.*relay 7|relay 7'
stop elsewhere

check traffic_untouched receives vm
stop vm INT
check daemon_unharmed unharmed daemon "$daemon"
