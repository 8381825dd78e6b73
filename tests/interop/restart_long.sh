# shellcheck shell=bash source-path=SCRIPTDIR
# The restarts of `restart`, 50 of each.
# nightly
# expect: vm.split.1.server vm.split.4.server vm.packed.1.server vm.packed.4.server
# expect: vm.split.1.client vm.split.4.client vm.packed.1.client vm.packed.4.client
# expect: back_end.split.1.server back_end.split.4.server back_end.packed.1.server back_end.packed.4.server
# expect: back_end.split.1.client back_end.split.4.client back_end.packed.1.client back_end.packed.4.client
# timeout: 3000
ROUNDS=17 # of three kills
. "$(dirname "$0")/restart.sh"
