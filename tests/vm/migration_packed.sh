# shellcheck shell=bash source-path=SCRIPTDIR
# The migrations of `migration` with a packed ring.
# nightly
# expect: traffic_before cancelled traffic_after_cancel
# expect: migrated memory_after rarp traffic_after frames_lost
# expect: migrated_back memory_back rarp_back traffic_back frames_lost_back no_duplicates daemon_unharmed
# timeout: 200
VM_RING=packed=on
. "$(dirname "$0")/migration.sh"
