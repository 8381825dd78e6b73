# shellcheck shell=bash disable=SC2034,SC2154
# For `lab`: machines with two NICs more that are models of this project (`# lab: MODEL=NAME OPTION...`), served over
# vfio-user by the program `serve_model` and joined by a wire. That takes a QEMU that is newer than Debian 12's.

# `vfio-user-pci` came with QEMU 10.1; Debian 13 has it in its backports.
model_qemu=$LAB_DIR/qemu-trixie

setup_model() {
    [ ! -e "$model_qemu/done" ] || return 0
    need apt-get dpkg-deb
    # shellcheck source=SCRIPTDIR/../lib/foreign.sh
    . "$here/../lib/foreign.sh"
    (set -e; foreign_suites "$model_qemu" trixie trixie-backports
        foreign_unpack "$model_qemu" -t trixie-backports qemu-system-x86
        rm -rf "$model_qemu"/{archives,lists}) > "$LAB_DIR/qemu-trixie.log" 2>&1 ||
        die "could not fetch QEMU; see $LAB_DIR/qemu-trixie.log"
    "$0" model-qemu -device help | grep -q vfio-user-pci || die "this QEMU has no vfio-user-pci"
    touch "$model_qemu/done"
}

need_model_qemu() { [ -e "$model_qemu/done" ] || die "run 'lab setup-model' first"; }

# run_model_qemu ARG...: replaces this shell
run_model_qemu() {
    # shellcheck source=SCRIPTDIR/../lib/foreign.sh
    . "$here/../lib/foreign.sh"
    export QEMU_MODULE_DIR=$model_qemu/tree/usr/lib/x86_64-linux-gnu/qemu
    foreign_start "$model_qemu" usr/bin/qemu-system-x86_64 \
        -L "$model_qemu/tree/usr/share/qemu" -L "$model_qemu/tree/usr/share/seabios" "$@"
}

# start_model: starts the server, and sets the arrays qemu and devices. A job may write lines such as `0 link down` into
# $LAB_OUT/model.commands; what the models have to say is in $LAB_OUT/model.log.
start_model() {
    local name options number
    need_model_qemu
    [ -x "${TARGET:-}/serve_model" ] || die "there is no serve_model in TARGET='${TARGET:-}'"
    read -r name options <<< "$LAB_MODEL"
    # Paths of sockets are short.
    model_sockets=$(mktemp -d)
    : > "$LAB_OUT/model.commands"
    # shellcheck disable=SC2086 # options are words
    "$TARGET/serve_model" "$name" "$model_sockets/0" "$model_sockets/1" $options \
        < <(exec tail -n +1 -s 0.2 -f --pid=$$ "$LAB_OUT/model.commands") > "$LAB_OUT/model.log" 2>&1 &
    model_pid=$!
    for ((number = 0; number < 100; number++)); do
        ! grep -q '^listening' "$LAB_OUT/model.log" || break
        kill -0 $model_pid 2> /dev/null || die "no model: $(tail -3 "$LAB_OUT/model.log" | paste -sd '|')"
        sleep 0.05
    done
    qemu=("$0" model-qemu)
    # The models reach what is shared.
    devices=(-machine memory-backend=mem -object "memory-backend-memfd,id=mem,size=${LAB_MEM:-2048}M,share=on")
    for number in 0 1; do
        devices+=(-device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"'"$model_sockets/$number"'"}}')
    done
}

# end_model: the server ends when QEMU has gone; whether its drivers did nothing that they must not
end_model() {
    local number status=0
    for ((number = 0; number < 100; number++)); do
        kill -0 "$model_pid" 2> /dev/null || break
        sleep 0.05
    done
    kill "$model_pid" 2> /dev/null || true
    wait "$model_pid" || status=$?
    rm -rf "$model_sockets"
    return $status
}
