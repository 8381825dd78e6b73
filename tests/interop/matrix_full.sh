# shellcheck shell=bash source-path=SCRIPTDIR
# The whole matrix of ring features, of which `matrix` runs a part every day.
# nightly
# expect: server.split.plain.1 server.split.plain.4
# expect: server.split.mergeable.1 server.split.mergeable.4
# expect: server.split.inorder.1 server.split.inorder.4
# expect: server.split.mergeable_inorder.1 server.split.mergeable_inorder.4
# expect: server.split.vectorized.1 server.split.vectorized.4
# expect: server.split.jumbo.1 server.split.jumbo.4
# expect: server.split.jumbo_inorder.1 server.split.jumbo_inorder.4
# expect: server.packed.plain.1 server.packed.plain.4
# expect: server.packed.mergeable.1 server.packed.mergeable.4
# expect: server.packed.inorder.1 server.packed.inorder.4
# expect: server.packed.mergeable_inorder.1 server.packed.mergeable_inorder.4
# expect: server.packed.vectorized.1 server.packed.vectorized.4
# expect: server.packed.jumbo.1 server.packed.jumbo.4
# expect: server.packed.jumbo_inorder.1 server.packed.jumbo_inorder.4
# expect: client.split.plain.1 client.split.plain.4
# expect: client.split.mergeable.1 client.split.mergeable.4
# expect: client.split.inorder.1 client.split.inorder.4
# expect: client.split.mergeable_inorder.1 client.split.mergeable_inorder.4
# expect: client.split.vectorized.1 client.split.vectorized.4
# expect: client.split.jumbo.1 client.split.jumbo.4
# expect: client.split.jumbo_inorder.1 client.split.jumbo_inorder.4
# expect: client.packed.plain.1 client.packed.plain.4
# expect: client.packed.mergeable.1 client.packed.mergeable.4
# expect: client.packed.inorder.1 client.packed.inorder.4
# expect: client.packed.mergeable_inorder.1 client.packed.mergeable_inorder.4
# expect: client.packed.vectorized.1 client.packed.vectorized.4
# expect: client.packed.jumbo.1 client.packed.jumbo.4
# expect: client.packed.jumbo_inorder.1 client.packed.jumbo_inorder.4
# expect: unharmed.server unharmed.client
# timeout: 900
. "$(dirname "$0")/matrix.sh"
