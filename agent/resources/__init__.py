"""Shares of the node: QoS classes, the cgroups above containers, admission, and the room that logs take."""
