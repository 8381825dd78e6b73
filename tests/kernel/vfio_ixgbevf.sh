# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Our ixgbevf drives the model of the X550's VF through VFIO and an IOMMU; Linux's ixgbevf is at the other end of its wire.
# expect: started carrier ping ping_1400 ping6 link begins_anew stopped content
# timeout: 300
# nightly
# lab: MODEL=ixgbevf x550
# lab: MEM=1024
. tests/lib/own_driver.sh
meet ixgbevf "pf reset" "pf back"
