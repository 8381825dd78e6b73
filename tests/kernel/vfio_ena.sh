# shellcheck shell=bash source-path=SCRIPTDIR/../..
# Our ena drives the model of the newest ENA through VFIO and an IOMMU; Linux's ena is at the other end of its wire.
# expect: started carrier ping ping_1400 ping6 link begins_anew stopped content
# timeout: 300
# nightly
# lab: MODEL=ena newest
# lab: MEM=1024
. tests/lib/own_driver.sh
meet ena "ask for reset"
