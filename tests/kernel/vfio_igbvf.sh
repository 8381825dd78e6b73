# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Our igbvf drives the model of the 82576's VF through VFIO and an IOMMU; Linux's igbvf is at the other end of its wire, on a
# model that forgives it what it does to every such VF (see `igbvf`).
# expect: started carrier ping ping_1400 ping6 link begins_anew stopped content
# timeout: 300
# nightly
# lab: MODEL=igbvf lenient-far
# lab: MEM=1024
. tests/lib/own_driver.sh
meet igbvf "pf reset" "pf back"
