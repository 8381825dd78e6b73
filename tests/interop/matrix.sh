# shellcheck shell=bash source-path=SCRIPTDIR
# Every ring feature that DPDK's virtio_user has, a loopback behind the socket: 100 000 numbered frames of 60 to 1514 bytes
# (20 000 to 9014 in the jumbo cells) come back, each once, unaltered, those of a flow in order. See lib/matrix.sh for the
# names. Each ring and path comes with one and four queues, and with the VM as client and server; `matrix_full` has all
# combinations.
# expect: server.split.plain.1 client.split.plain.4 client.packed.plain.1 server.packed.plain.4
# expect: server.split.mergeable.4 client.split.mergeable.1 client.packed.mergeable.4 server.packed.mergeable.1
# expect: server.split.inorder.1 client.split.inorder.4 client.packed.inorder.1 server.packed.inorder.4
# expect: server.split.mergeable_inorder.4 client.split.mergeable_inorder.1
# expect: client.packed.mergeable_inorder.4 server.packed.mergeable_inorder.1
# expect: server.split.vectorized.1 client.split.vectorized.4 client.packed.vectorized.1 server.packed.vectorized.4
# expect: server.split.jumbo.1 client.split.jumbo_inorder.4 client.packed.jumbo.4 server.packed.jumbo_inorder.1
# expect: unharmed.server unharmed.client
# timeout: 280
. "$(dirname "$0")/../lib/check.sh"
. "$(dirname "$0")/../lib/testpmd.sh"
. "$(dirname "$0")/../lib/forwarder.sh"
. "$(dirname "$0")/../lib/matrix.sh"

# shellcheck disable=SC2046,SC2086 # a list of names
matrix ${CELLS:-$(announced "$0")}
