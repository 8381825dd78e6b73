#!/bin/bash
# testpmd built for this processor from the distribution's own DPDK sources, for a second comparison: what the distribution
# ships is compiled for the oldest processor that it supports. Sources, build and result are in a folder under target/;
# Meson, Ninja and what they need are installed where they are missing. Prints what to set for `cargo xtask bench`.
#
#     tests/bench/native_dpdk.sh        about five minutes on two CPUs
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${CARGO_TARGET_DIR:-$root/target}/bench/dpdk-native
# shellcheck source=SCRIPTDIR/../lib/foreign.sh
. "$root/tests/lib/foreign.sh"
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
foreign_suites "$folder" "$suite"
sed -n 's/^deb /deb-src /p' "$folder/etc/sources.list" > "$folder/etc/sources.src"
foreign+=(-o "Dir::Etc::sourcelist=$folder/etc/sources.src")
timeout 300 apt-get "${foreign[@]}" update
apt-get install --yes --no-install-recommends build-essential dpkg-dev meson ninja-build python3-pyelftools pkg-config libnuma-dev
(cd "$folder" && rm -rf source && timeout 600 apt-get "${foreign[@]}" source --download-only dpdk &&
    dpkg-source --no-check --extract ./dpdk_*.dsc source)

# No more than what both roles of the bench take: forwarder (vhost) and generator (virtio_user).
drivers=bus/vdev,bus/pci,mempool/ring,net/vhost,net/virtio
meson setup "$folder/build" "$folder/source" --wipe 2> /dev/null ||
    meson setup "$folder/build" "$folder/source" -Dplatform=native -Dcpu_instruction_set=native -Denable_drivers="$drivers" \
        -Dtests=false -Denable_apps=test-pmd -Denable_docs=false -Ddefault_library=static
ninja -C "$folder/build" app/dpdk-testpmd
program=$folder/build/app/dpdk-testpmd
start=$("$program" -v --in-memory -m 64 --no-huge --no-pci --no-telemetry -- --help 2>&1 || true)
grep -m1 'RTE Version' <<< "$start" || { echo "the testpmd that was built does not start: $start" >&2; exit 1; }
echo "TESTPMD_MORE=testpmd-native=$program"
