"""Static pods as one component: the manifest directory, and the mirror pods where there is an API."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent.api.client import ApiClient
from agent.pods.manager import PodManager
from agent.pods.mirror import MirrorPods
from agent.pods.static import StaticPods
from host.clocks import Clock

SOURCE = "file"
"""The name `PodManager.complete` knows this source by."""


class StaticSource:
    """Reads manifests into a PodManager and keeps their mirrors.

    Args:
        client: None without an API: no mirrors then.
        node_uid: the Node object's uid, empty while it is not registered.
    """

    def __init__(
        self,
        *,
        folder: Path,
        node_name: str,
        clock: Clock,
        pods: PodManager,
        client: ApiClient | None,
        node_uid: Callable[[], str],
    ) -> None:
        self._static = StaticPods(
            folder=folder,
            node_name=node_name,
            clock=clock,
            on_put=pods.put,
            on_remove=pods.remove,
            on_complete=lambda: pods.complete(SOURCE),
        )
        self._mirrors: MirrorPods | None = None
        if client is not None:
            self._mirrors = MirrorPods(
                client=client,
                clock=clock,
                node_name=node_name,
                node_uid=node_uid,
                statics=pods.static_pods,
                mirrors=pods.mirror_pods,
            )
            pods.on_static_change = self._mirrors.wake

    async def run(self) -> None:
        """Follow directory and API until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._static.run(), name="manifests")
            if self._mirrors is not None:
                group.create_task(self._mirrors.run(), name="mirror pods")
