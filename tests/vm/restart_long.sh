# shellcheck shell=bash source-path=SCRIPTDIR
# The restarts of `restart` in all combinations, 50 kills each.
# nightly
# expect: back_end.split.1.server back_end.split.4.server back_end.packed.1.server back_end.packed.4.server
# expect: back_end.split.1.client back_end.split.4.client back_end.packed.1.client back_end.packed.4.client
# expect: vm.server vm.client
# timeout: 2400
KILLS=50
. "$(dirname "$0")/restart.sh"
