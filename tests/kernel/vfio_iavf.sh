# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Our iavf drives the model of the 800 series' VF through VFIO and an IOMMU; Linux's iavf is at the other end of its wire.
# expect: started carrier ping ping_1400 ping6 link begins_anew stopped content
# timeout: 300
# nightly
# lab: MODEL=iavf 800
# lab: MEM=1024
. tests/lib/own_driver.sh
meet iavf "pf reset"
