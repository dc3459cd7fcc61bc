"""The node itself: Node object, addresses, facts, conditions, heartbeat. `NodeManager` is the way in."""
