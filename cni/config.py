"""The network configuration: what the agent writes into /etc/cni/net.d, and its strict reading in the plugin.

Not for: finding configuration files, which is the runtime's part of CNI.
"""

from __future__ import annotations

from collections.abc import Sequence

CONFLIST_NAME = "10-nodelet.conflist"


def render_conflist(
    pod_cidrs: Sequence[str],
    *,
    cluster_cidrs: Sequence[str] = (),
    mtu: int = 0,
    name: str = "nodelet",
    bridge: str = "cbr0",
    state_dir: str = "/var/lib/cni/nodelet",
    masquerade: bool = True,
    hairpin: bool = True,
) -> bytes:
    """The conflist (JSON bytes, newline at the end) for a node with these pod CIDRs (Node.spec.podCIDRs).

    `cluster_cidrs` are the ranges that are reached without masquerading (all pods); `mtu` is that of pod
    interfaces in bytes (0: the bridge's default of 1500). Deterministic: equal input, equal bytes, so a
    writer can compare before it writes (host.files.write_atomic, mode 0o644).
    Raises InputError; with no pod CIDR at all its text is NO_POD_CIDR.
    """
    raise NotImplementedError


NO_POD_CIDR = "node has no podCIDR; controller-manager needs --allocate-node-cidrs"
"""The one message for a node that has not been given a pod range; also the reason of NetworkReady=false."""
