"""The fakes need no root; a real thing takes the same fixtures as the root ring."""

import crinode
import isolation

throw_away_namespaces, new_netns = isolation.throw_away_namespaces, isolation.new_netns
daemon = crinode.daemon
