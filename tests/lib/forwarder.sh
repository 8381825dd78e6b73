# shellcheck shell=bash disable=SC2034,SC2154 # names that scenarios use; names of check.sh
# The daemon under test and its command line. Needs check.sh, and TARGET: the folder of the built binaries.

TARGET=${TARGET:?the folder of the built binaries is not set}
# Sockets have short paths (108 bytes at most), so they do not live with the logs.
RUN=$(mktemp -d /tmp/vf.XXXXXX)
chmod 755 "$RUN"
VHOST_DIR=$RUN/vhost
CONTROL=$RUN/control.sock

# What the daemon is started under, for example (ip netns exec NAME).
FORWARDER_UNDER=()
# A scenario that is run beside others, or on a machine with one CPU, may choose another.
FORWARDER_CPUS=${FORWARDER_CPUS:-$(($(nproc) - 1))}

# forwarder NAME [ARGUMENT...]: starts the daemon and waits until it serves; its log is $OUT/NAME.log
forwarder() {
    local name=$1
    shift
    spawn "$name" ${FORWARDER_UNDER[@]+"${FORWARDER_UNDER[@]}"} env RUST_BACKTRACE=1 "$TARGET/virtio-forwarder" \
        --cpus "$FORWARDER_CPUS" --vhost-path "$VHOST_DIR" --control-socket "$CONTROL" --relays 4 "$@"
    within 30 forwarder_settled "$name"
    forwarder_serves "$name" > /dev/null 2>&1 ||
        { note "$name does not serve: $(tail -5 "$OUT/$name.log" | paste -sd '|')"; return 1; }
}

forwarder_serves() { running "$1" && pc list; }
forwarder_settled() { gone "$1" || pc list; }

# refuses_to_start NAME PATTERN ARGUMENT...: the daemon ends by itself, with an error that says PATTERN
refuses_to_start() {
    local name=$1 pattern=$2
    shift 2
    refused "$name" "$pattern" timeout -k 5 20 "$TARGET/virtio-forwarder" --control-socket "$RUN/$name.sock" "$@"
}

# socket ID: the path of a relay's vhost-user socket
socket() { echo "$VHOST_DIR/virtio-forwarder$1.sock"; }

# pc COMMAND...: port_control
pc() { timeout 20 "$TARGET/port_control" --control-socket "$CONTROL" "$@"; }

# api PATH [CURL ARGUMENT...]: prints the body, and the status code on a line of its own
api() {
    local path=$1
    shift
    curl -sS --max-time 10 --unix-socket "$CONTROL" -w '\n%{http_code}\n' "$@" "http://localhost$path"
}

# counter RELAY DIRECTION NAME: a counter of the metrics (rx_frames: taken from the source, tx_frames: given to the sink)
counter() {
    local value
    value=$(curl -sS --max-time 10 --unix-socket "$CONTROL" http://localhost/metrics |
        awk -v name="virtio_forwarder_$3_total" -v relay="relay=\"$1\"" -v direction="direction=\"$2\"" \
            'index($1, name "{") == 1 && index($1, relay) && index($1, direction) {print $2}')
    echo "${value:-0}"
}

# unharmed NAME PID: it is still the process that it was, and it answers. For the end of a scenario.
unharmed() { [ "${pids[$1]}" = "$2" ] && running "$1" && pc list > /dev/null && ! says "$1" 'panicked|SIGSEGV'; }

# guest_memory_mapped NAME: the daemon maps memory of a VM (a memfd of QEMU or DPDK)
guest_memory_mapped() { grep -Eq 'memfd:(memory-backend-memfd|nohuge)' "/proc/${pids[$1]}/maps"; }
guest_memory_unmapped() { ! guest_memory_mapped "$1"; }

# as_another_user COMMAND...: as the user nobody, with no group and no capability left
as_another_user() { setpriv --reuid nobody --regid nogroup --clear-groups --inh-caps=-all "$@"; }

# What the log says when a second VM comes to a socket in use.
SECOND_VM_PATTERN='refused a second VM'

# The folder of sockets goes with the scenario.
cleanup() { rm -rf "$RUN"; }
