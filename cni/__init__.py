"""`nodelet-cni`: pod interfaces on the bridge, their addresses, host ports. `entry.execute` is the way in.

For others there are `entry` (the runtime calls it in its own process), `config` (the agent writes the
configuration) and `vxlan` (the pure planner of the overlay). Stands alone on `host`.
"""
