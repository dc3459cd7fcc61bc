"""The overlay network: keeps VXLAN device, neighbours, FDB and routes equal to the list of Nodes.

`agent.overlay.component.Overlay` is the component; `cni.vxlan` holds the pure planner.
"""
