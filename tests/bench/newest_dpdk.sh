#!/bin/bash
# The testpmd of another Debian release, for a second comparison, without touching the system: apt resolves and downloads
# into a folder under target/, the packages are unpacked there, and a small program starts the result with its own loader
# and libraries. Prints what to set for `cargo xtask bench`.
#
#     tests/bench/newest_dpdk.sh [SUITE]        the suite is sid unless given
set -euo pipefail

suite=${1:-sid}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${CARGO_TARGET_DIR:-$root/target}/bench/dpdk-$suite
# shellcheck source=SCRIPTDIR/../lib/foreign.sh
. "$root/tests/lib/foreign.sh"
foreign_suites "$folder" "$suite"

# The drivers are loaded at run time; their names carry the version of DPDK's ABI.
abi=$(apt-cache "${foreign[@]}" depends dpdk-dev | grep -oE 'librte-eal[0-9]+|librte-ethdev[0-9]+' | grep -oE '[0-9]+$' | sort -un | tail -1 || true)
if [ -z "$abi" ]; then
    abi=$(apt-cache "${foreign[@]}" search --names-only '^librte-eal[0-9]+$' | sed -n 's/^librte-eal\([0-9]*\) .*/\1/p' | sort -n | tail -1)
fi
[ -n "$abi" ] || { echo "$suite has no DPDK" >&2; exit 1; }
foreign_unpack "$folder" dpdk-dev "librte-bus-vdev$abi" "librte-mempool-ring$abi" "librte-net-vhost$abi" "librte-net-virtio$abi"

tree=$folder/tree
libraries=$tree/usr/lib/x86_64-linux-gnu
loader=$(find "$tree" -name 'ld-linux-x86-64.so.2' -print -quit)
program=$(find "$tree" -name dpdk-testpmd -print -quit)
plugins=$(find "$libraries/dpdk" -maxdepth 1 -type d -name 'pmds-*' -print -quit)
[ -n "$loader" ] && [ -n "$program" ] && [ -n "$plugins" ] || { echo "no testpmd in the packages of $suite" >&2; exit 1; }
cat > "$folder/testpmd" <<END
#!/bin/bash
exec "$loader" --library-path "$libraries:$tree/lib/x86_64-linux-gnu" "$program" -d "$plugins" "\$@"
END
chmod +x "$folder/testpmd"
start=$("$folder/testpmd" -v --in-memory -m 64 --no-huge --no-pci --no-telemetry -- --help 2>&1 || true)
grep -m1 'RTE Version' <<< "$start" || { echo "testpmd of $suite does not start: $start" >&2; exit 1; }
echo "TESTPMD_MORE=testpmd-$suite=$folder/testpmd"
