"""Host ports: rules that lead a port of the node to a pod's port."""

from __future__ import annotations

from collections.abc import Sequence

from cni.config import Attachment, NetworkConfig
from host.rtnl import IPInterface


def add(network: NetworkConfig, attachment: Attachment, addresses: Sequence[IPInterface]) -> None:
    pass


def remove(network: NetworkConfig, attachment: Attachment) -> None:
    pass
