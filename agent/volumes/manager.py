"""Puts a pod's volumes in place, says how containers mount them, and takes them away again.

Nothing is remembered that the disk and the mount table do not say: after an agent restart `teardown` and
`pods_on_disk` work from `<root>/pods` and mountinfo alone. All volumes of a pod are set up concurrently;
nothing is fsynced, because the content is either rebuilt from the API or the pod's own.
"""

from __future__ import annotations

import asyncio
import logging
import re
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.api.errors import ApiError
from agent.expansion import expand
from agent.volumes import claim, config_map, downward_api, empty_dir, host_path, projected, secret
from agent.volumes.base import (
    AllocatableGetter,
    Claims,
    Context,
    Mount,
    PreparedVolume,
    Sources,
    Unready,
    VolumeError,
)
from agent.volumes.mounts import HostMounter, Mounter, unmount_below, users_of
from agent.volumes.subpath import bind_subpath, check_subpath
from agent.volumes.tokens import Tokens
from host.clocks import Clock, SystemClock
from host.errors import HostError

if TYPE_CHECKING:
    from agent.api.structs import Container, Pod, Volume, VolumeMount

__all__ = ["Mount", "PreparedVolume", "VolumeError", "VolumeManager"]

_log = logging.getLogger(__name__)
_RENEWAL_CHECK = 30.0
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,127}")

SetUp = Callable[[Context, "Volume"], Awaitable[PreparedVolume]]

_PLUGINS: tuple[tuple[str, str, SetUp], ...] = (
    ("empty_dir", "empty-dir", empty_dir.set_up),
    ("host_path", "host-path", host_path.set_up),
    ("config_map", "configmap", config_map.set_up),
    ("secret", "secret", secret.set_up),
    ("projected", "projected", projected.set_up),
    ("downward_api", "downward-api", downward_api.set_up),
    ("persistent_volume_claim", "persistent-claim", claim.set_up),
    ("ephemeral", "persistent-claim", claim.set_up),
)
"""Field of the API's Volume, kubelet's name of the plugin, and what sets it up."""

_LIVE = frozenset(("config_map", "secret", "projected", "downward_api"))


class VolumeManager:
    """All volumes of a node.

    Args:
        root: the agent root, usually /var/lib/kubelet.
        sources: getters for ConfigMaps, Secrets and tokens.
        claims: getters for claims and their volumes; None on a node without API.
        clock: time, for token renewal.
        allocatable: the node's allocatable resources, for limits that a container leaves unset.
        host_root: prefix of hostPath sources; "/" except in tests.
        mounter: the mount table.

    The constructor does nothing; `run()` renews tokens until it is cancelled.
    """

    def __init__(
        self,
        *,
        root: Path,
        sources: Sources,
        claims: Claims | None = None,
        clock: Clock | None = None,
        allocatable: AllocatableGetter = dict,
        host_root: Path = Path("/"),
        mounter: Mounter | None = None,
    ) -> None:
        self._pods_root = root / "pods"
        self._sources = sources
        self._claims = claims
        self._clock = clock or SystemClock()
        self._allocatable = allocatable
        self._host_root = host_root
        self._mounter = mounter or HostMounter()
        self._tokens = Tokens(sources, clock=self._clock)
        self._locks: dict[str, asyncio.Lock] = {}
        self._pods: dict[str, Pod] = {}

    async def run(self) -> None:
        """Renew projected tokens at 80 % of their life until cancelled."""
        while True:
            await self._clock.sleep(_RENEWAL_CHECK)
            for uid in self._tokens.due():
                pod = self._pods.get(uid)
                if pod is None:
                    self._tokens.forget(uid)
                    continue
                try:
                    await self.refresh(pod)
                except VolumeError as exc:
                    _log.warning("pod %s/%s: %s", pod.metadata.namespace, pod.metadata.name, exc.message)

    async def prepare(self, pod: Pod) -> dict[str, PreparedVolume]:
        """Set up every volume of a pod; safe to repeat.

        Returns:
            volume name → where it is.

        Raises:
            VolumeError: one or more volumes cannot be set up now; the others stay for the next try. The
                message is the text of the FailedMount event.
        """
        self._pods[pod.metadata.uid] = pod
        async with self._lock(pod.metadata.uid):
            return await self._set_up_all(pod, pod.spec.volumes)

    async def refresh(self, pod: Pod) -> bool:
        """Rewrite the volumes that follow API objects (configMap, secret, projected, downwardAPI).

        To be called by whoever watches, when such an object or the pod's metadata changed. When an object has
        vanished the old content stays, as with kubelet.

        Returns:
            whether any file changed.

        Raises:
            VolumeError: as `prepare`.
        """
        uid = pod.metadata.uid
        async with self._lock(uid):
            if uid not in self._pods:
                return False
            self._pods[uid] = pod
            live = tuple(volume for volume in pod.spec.volumes if _kind(volume)[0] in _LIVE)
            prepared = await self._set_up_all(pod, live)
        return any(volume.changed for volume in prepared.values())

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
            pod: the pod.
            container: one of its containers, init and ephemeral ones too.
            prepared: the answer of `prepare`.
            env: the container's environment after expansion, for `subPathExpr`.

        Raises:
            VolumeError: a mount names no volume of the pod, or its subPath leaves the volume.
        """
        mounts = []
        for index, wanted in enumerate(container.volume_mounts):
            volume = prepared.get(wanted.name)
            if volume is None:
                raise VolumeError(
                    f'container {container.name}: mount {wanted.mount_path} names volume "{wanted.name}", '
                    "which the pod does not have"
                )
            try:
                source = await self._source(pod, container, index, volume, env or {})
            except (Unready, HostError) as exc:
                raise VolumeError(
                    f'failed to prepare subPath for volumeMount "{wanted.name}" of container '
                    f'"{container.name}": {exc}'
                ) from exc
            mounts.append(_mount_of(wanted, volume, source))
        return tuple(mounts)

    async def teardown(self, pod_uid: str) -> None:
        """Unmount and delete everything of a pod; a pod that has nothing is fine.

        The pod's own data (emptyDir) goes for ever; what hostPath or other sources lent is only unmounted,
        never deleted.

        Raises:
            VolumeError: something is still busy; the message names the mount and who uses it. Call again
                later.
        """
        async with self._lock(pod_uid):
            self._pods.pop(pod_uid, None)
            self._tokens.forget(pod_uid)
            try:
                await asyncio.to_thread(self._remove, self._pod_directory(pod_uid))
            except OSError as exc:
                raise VolumeError(
                    f"UnmountVolume.TearDown failed for pod {pod_uid}: {exc}", reason="FailedUnMount"
                ) from exc
        self._locks.pop(pod_uid, None)

    def pods_on_disk(self) -> set[str]:
        """UIDs of all pods that have a directory under the root, for the orphan sweep at start."""
        if not self._pods_root.is_dir():
            return set()
        return {entry.name for entry in self._pods_root.iterdir() if _UID.fullmatch(entry.name)}

    def _lock(self, pod_uid: str) -> asyncio.Lock:
        return self._locks.setdefault(pod_uid, asyncio.Lock())

    def _pod_directory(self, pod_uid: str) -> Path:
        if _UID.fullmatch(pod_uid) is None:
            raise VolumeError(f"pod UID {pod_uid[:64]!r} is not usable as a directory name")
        return self._pods_root / pod_uid

    async def _set_up_all(self, pod: Pod, volumes: tuple[Volume, ...]) -> dict[str, PreparedVolume]:
        directory = self._pod_directory(pod.metadata.uid)
        outcomes = await asyncio.gather(
            *(self._set_up(pod, volume, directory) for volume in volumes), return_exceptions=True
        )
        prepared = {}
        failures = []
        for volume, outcome in zip(volumes, outcomes, strict=True):
            if isinstance(outcome, PreparedVolume):
                prepared[volume.name] = outcome
            elif isinstance(outcome, Unready | ApiError | OSError):
                failures.append(f'MountVolume.SetUp failed for volume "{volume.name}" : {outcome}')
            else:
                raise outcome
        if failures:
            raise VolumeError("; ".join(failures))
        return prepared

    async def _set_up(self, pod: Pod, volume: Volume, directory: Path) -> PreparedVolume:
        if _NAME.fullmatch(volume.name) is None or len(volume.name) > 63:
            raise Unready("the name of a volume must be a DNS label")
        _, plugin, set_up = _kind(volume)
        context = Context(
            pod=pod,
            directory=directory / "volumes" / f"kubernetes.io~{plugin}" / volume.name,
            sources=self._sources,
            tokens=self._tokens,
            mounter=self._mounter,
            clock=self._clock,
            allocatable=self._allocatable(),
            host_root=self._host_root,
            claims=self._claims,
        )
        return await set_up(context, volume)

    async def _source(
        self, pod: Pod, container: Container, index: int, volume: PreparedVolume, env: Mapping[str, str]
    ) -> Path:
        """What a mount binds: the volume, or the place its subPath was bound to."""
        wanted = container.volume_mounts[index]
        path = wanted.sub_path
        if wanted.sub_path_expr:
            unknown: list[str] = []
            path = expand(wanted.sub_path_expr, env, unknown=unknown.append)
            if unknown:
                raise Unready(f"subPathExpr {wanted.sub_path_expr!r}: no variable named {unknown[0]!r}")
        parts = check_subpath(path)
        if not parts:
            return volume.host_path
        directory = self._pod_directory(pod.metadata.uid)
        target = directory / "volume-subpaths" / volume.name / container.name / str(index)

        def bind() -> None:
            create = not volume.read_only
            bind_subpath(volume.host_path, parts, target, mounter=self._mounter, create=create)

        await asyncio.to_thread(bind)
        return target

    def _remove(self, directory: Path) -> None:
        """Unmount all below a pod's directory, and only if nothing is mounted there any more delete it."""
        try:
            unmount_below(self._mounter, directory)
        except HostError as exc:
            users = ", ".join(str(pid) for pid in users_of(directory)) or "nobody that can be seen"
            raise OSError(exc.errno, f"{exc} (in use by: {users})") from exc
        left = self._mounter.below(directory)
        if left:
            raise OSError(f"{left[0]} is still mounted")
        if directory.exists():
            shutil.rmtree(directory)


def _kind(volume: Volume) -> tuple[str, str, SetUp]:
    for plugin in _PLUGINS:
        if getattr(volume, plugin[0]) is not None:
            return plugin
    return ("", "unsupported", _refuse)


async def _refuse(context: Context, volume: Volume) -> PreparedVolume:
    raise Unready("its kind is not supported by this node")


def _mount_of(wanted: VolumeMount, volume: PreparedVolume, source: Path) -> Mount:
    read_only = wanted.read_only or volume.read_only
    path = wanted.mount_path if wanted.mount_path.startswith("/") else f"/{wanted.mount_path}"
    return Mount(
        volume=wanted.name,
        host_path=str(source),
        container_path=path,
        read_only=read_only,
        propagation=wanted.mount_propagation or "None",
        recursive_read_only=read_only and wanted.recursive_read_only in ("Enabled", "IfPossible"),
    )
