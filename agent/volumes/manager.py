"""Puts a pod's volumes in place, says how containers mount them, and takes them away again.

Nothing is remembered that the disk and the mount table do not say: after an agent restart `teardown` and
`pods_on_disk` work from `<root>/pods` and mountinfo alone. All volumes of a pod are set up concurrently;
nothing is fsynced, because the content is either rebuilt from the API or the pod's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.volumes.base import AllocatableGetter, Mount, PreparedVolume, Sources, VolumeError
from host.clocks import Clock

if TYPE_CHECKING:
    from agent.api.structs import Container, Pod

__all__ = ["Mount", "PreparedVolume", "VolumeError", "VolumeManager"]


class VolumeManager:
    """All volumes of a node.

    Args:
        root: the agent root, usually /var/lib/kubelet.
        sources: getters for ConfigMaps, Secrets and tokens.
        clock: time, for token renewal.
        allocatable: the node's allocatable resources, for downward API limits that the container leaves
        unset. host_root: prefix of hostPath sources; "/" except in tests.

    The constructor does nothing; `run()` owns token renewal and returns when cancelled.
    """

    def __init__(
        self,
        *,
        root: Path,
        sources: Sources,
        clock: Clock | None = None,
        allocatable: AllocatableGetter = dict,
        host_root: Path = Path("/"),
    ) -> None: ...

    async def run(self) -> None:
        """Renew projected tokens at 80 % of their life until cancelled."""

    async def prepare(self, pod: Pod) -> dict[str, PreparedVolume]:
        """Set up every volume of a pod; safe to repeat.

        Returns:
            volume name → where it is.

        Raises:
            VolumeError: one or more volumes cannot be set up now; those that could stay for the next try. The
                message is the text of the FailedMount event.
        """

    async def container_mounts(
        self,
        pod: Pod,
        container: Container,
        prepared: Mapping[str, PreparedVolume],
        *,
        env: Mapping[str, str] | None = None,
    ) -> tuple[Mount, ...]:
        """The mounts of one container, in the order of its spec. subPaths are resolved and bound now.

        Args:
            pod, container: the specs; init and ephemeral containers too.
            prepared: the answer of `prepare`.
            env: the container's environment after expansion, for `subPathExpr`.

        Raises:
            VolumeError: a mount names no volume of the pod, or its subPath leaves the volume.
        """

    async def refresh(self, pod: Pod) -> bool:
        """Rewrite the volumes that follow API objects (configMap, secret, projected, downwardAPI).

        To be called by whoever watches when such an object or the pod's metadata changed. Objects that
        vanished leave the old content in place, as with kubelet.

        Returns:
            whether any file changed.

        Raises:
            VolumeError: as `prepare`.
        """

    async def teardown(self, pod_uid: str) -> None:
        """Unmount and delete everything of a pod; a pod that has nothing is fine.

        The pod's own data (emptyDir) goes for ever; what hostPath or other sources lent is only unmounted,
        never deleted.

        Raises:
            VolumeError: something is still busy; the message names the mount. Call again later.
        """

    def pods_on_disk(self) -> set[str]:
        """UIDs of all pods that have a directory under the root, for the orphan sweep at start."""
