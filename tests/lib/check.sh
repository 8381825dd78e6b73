# shellcheck shell=bash
# What every scenario stands on: checks that report one line each, waits with an end, and processes that end with the
# scenario. Source it first.
#
# A scenario is a bash script whose head says what it will report and how long it may take:
#   # expect: NAME NAME ...   one or more lines; every name must be reported exactly once
#   # timeout: SECONDS
# It reports each check on a line `ok NAME - remark` or `not ok NAME: why`; all else that it prints starts with `# `.
# `cargo xtask test` runs it, and fails it when a check failed, is missing, or was not announced.
#
# A check that fails does not end the scenario (no `set -e`): the others still tell something.
set -uo pipefail

# Folder for logs. `cargo xtask test` sets it (under target/); in the lab it is shared with the host.
OUT=${SCENARIO_OUT:-${LAB_OUT:+$LAB_OUT/$LAB_JOB}}
OUT=${OUT:-$(mktemp -d)}
mkdir -p "$OUT"
scratch=$(mktemp)
failures=0
declare -A pids=() # of what `spawn` started, by name
trap 'finish' EXIT
trap 'exit 143' TERM INT

ok() { echo "ok $1${2:+ - $2}"; }
not_ok() { echo "not ok $1: $2"; failures=$((failures + 1)); }
note() { echo "# $*"; }

# check NAME COMMAND...: the check holds when the command succeeds; then what it printed by `note` is the remark, and
# else the end of its output is the reason. The command runs in this very shell, so it may `spawn` and `stop`.
check() {
    local check=$1
    shift
    if "$@" > "$scratch" 2>&1; then
        ok "$check" "$(sed -n 's/^# //p' "$scratch" | tail -1)"
    else
        not_ok "$check" "$(tail -5 "$scratch" | paste -sd '|')"
    fi
}

# refused NAME PATTERN COMMAND...: the command must fail (and not by a signal), and say PATTERN (extended regex)
refused() {
    local name=$1 pattern=$2 output status
    shift 2
    output=$("$@" 2>&1) && status=0 || status=$?
    if [ "$status" = 0 ]; then
        not_ok "$name" "it was accepted: $(paste -sd '|' <<< "$output")"
    elif [ "$status" -ge 124 ]; then
        not_ok "$name" "it ended with status $status: $(tail -3 <<< "$output" | paste -sd '|')"
    elif ! grep -Eqi -- "$pattern" <<< "$output"; then
        not_ok "$name" "the message does not say '$pattern': $(paste -sd '|' <<< "$output")"
    else
        ok "$name" "$(grep -Ei -m1 -- "$pattern" <<< "$output" | cut -c 1-200)"
    fi
}

# now_ms: sets NOW to the time in milliseconds, without starting a process
now_ms() { NOW=$((${EPOCHREALTIME/[.,]/} / 1000)); }

# within SECONDS COMMAND...: tries until the command succeeds; sets TOOK to the milliseconds it took
within() {
    local limit=$(($1 * 1000)) start
    shift
    now_ms; start=$NOW
    while true; do
        if "$@" > /dev/null 2>&1; then now_ms; TOOK=$((NOW - start)); return 0; fi
        now_ms; TOOK=$((NOW - start))
        if [ "$TOOK" -gt "$limit" ]; then echo "not within $((limit / 1000)) s: $*"; return 1; fi
        sleep 0.05
    done
}

# spawn NAME COMMAND...: runs it in the background, with its output in $OUT/NAME.log
spawn() {
    local name=$1
    shift
    : > "$OUT/$name.log" # at once: others may look into it before the process has started
    "$@" < /dev/null >> "$OUT/$name.log" 2>&1 &
    pids[$name]=$!
}

running() { [ -n "${pids[$1]:-}" ] && kill -0 "${pids[$1]}" 2> /dev/null; }

gone() { ! running "$1"; }

# stop NAME [SIGNAL [SECONDS]]: ends what `spawn` started; sets STATUS to its exit status, TOOK to the milliseconds.
# After the seconds (default 10) it is killed, and the result is 1.
stop() {
    local name=$1 pid=${pids[$1]:-} result=0
    if [ -z "$pid" ]; then STATUS=-1; return 0; fi
    { # standard error apart: bash reports every process that ends by a signal
        kill -"${2:-TERM}" "$pid"
        if ! within "${3:-10}" gone "$name" > /dev/null; then kill -KILL "$pid"; result=1; fi
        wait "$pid"
        export STATUS=$?
    } 2> /dev/null
    unset "pids[$name]"
    [ $result = 0 ] || echo "$name did not end within ${3:-10} s"
    return $result
}

# ends_well NAME [SIGNAL [SECONDS]]: as `stop`, and its exit status is 0
ends_well() {
    stop "$@" || return 1
    note "after $TOOK ms"
    [ "$STATUS" = 0 ] || { echo "$1 ended with status $STATUS: $(tail -3 "$OUT/$1.log" | paste -sd '|')"; return 1; }
}

says() { grep -Eqi -- "$2" "$OUT/$1.log"; }

finish() {
    local status=$? name
    trap - EXIT
    # A child that a signal reaches before it is another program has inherited this trap.
    [ "$BASHPID" = $$ ] || exit "$status"
    for name in "${!pids[@]}"; do stop "$name" TERM 5; done
    if declare -F cleanup > /dev/null; then cleanup; fi
    rm -f "$scratch"
    if [ "$failures" -gt 0 ]; then note "$failures failed; logs: $OUT"; status=1; fi
    exit "$status"
}
