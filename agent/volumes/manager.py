"""Puts a pod's volumes in place, says how containers mount them, and takes them away again.

Nothing is remembered that the disk and the mount table do not say: after an agent restart `teardown` works
from `<root>/pods` and mountinfo alone. All volumes of a pod are set up concurrently; nothing is fsynced,
because the content is either rebuilt from the API or the pod's own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent.api.errors import ApiError, Temporary
from agent.volumes import atomic, claim, downward_api, plugins
from agent.volumes.base import (
    AllocatableGetter,
    BlockDevice,
    Certificates,
    Claimed,
    Claims,
    Context,
    ImageGetter,
    Mount,
    PreparedVolume,
    Sources,
    Unready,
    VolumeError,
)
from agent.volumes.children import Children
from agent.volumes.containers import block_devices, mount_of, subpath_of
from agent.volumes.following import Follower
from agent.volumes.mounts import HostMounter, Mounter
from agent.volumes.pod_certificates import PodCertificates
from agent.volumes.subpath import bind_subpath, bind_subpath_in_child
from agent.volumes.teardown import remove_pod
from agent.volumes.tokens import Tokens
from agent.volumes.unmounting import Unmounter
from host.clocks import Clock, SystemClock
from host.errors import HostError, InputError

if TYPE_CHECKING:
    from agent.api.structs import Container, Pod, Volume

__all__ = ["Mount", "PreparedVolume", "VolumeError", "VolumeManager"]

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_OBJECT_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
_UID = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,127}")


class VolumeManager:
    """All volumes of a node.

    Args:
        root: the agent root, usually /var/lib/kubelet.
        sources: getters for ConfigMaps, Secrets and tokens.
        claims: getters for claims and their volumes; None on a node without API.
        certificates: trust anchors and certificates for pods; None on a node without API.
        clock: time, for token renewal.
        allocatable: the node's allocatable resources, for limits that a container leaves unset.
        host_root: prefix of hostPath sources; "/" except in tests.
        mounter: the mount table.
        children: runs what touches other machines' file systems.
        image: makes an image present, for image volumes.

    The constructor does nothing; `run()` renews tokens until it is cancelled.
    """

    def __init__(
        self,
        *,
        root: Path,
        sources: Sources,
        claims: Claims | None = None,
        certificates: Certificates | None = None,
        clock: Clock | None = None,
        allocatable: AllocatableGetter = dict,
        host_root: Path = Path("/"),
        mounter: Mounter | None = None,
        children: Children | None = None,
        image: ImageGetter | None = None,
    ) -> None:
        self._pods_root = root / "pods"
        self._sources = sources
        self._claims = claims
        self._certificates = certificates
        self._clock = clock or SystemClock()
        self._allocatable = allocatable
        self._host_root = host_root
        self._mounter = mounter or HostMounter()
        self._children = children or Children()
        self._image = image
        self._unmounter = Unmounter(mounter=self._mounter, children=self._children, clock=self._clock)
        self._tokens = Tokens(sources, clock=self._clock)
        self._pod_certificates = PodCertificates(certificates, clock=self._clock)
        self._locks: dict[str, asyncio.Lock] = {}
        self._claims_locks: dict[str, asyncio.Lock] = {}
        self._pods: dict[str, Pod] = {}
        self._follower = Follower(refresh=self.refresh, due=self._due, clock=self._clock)

    async def run(self) -> None:
        """Keep live volumes in step, and renew tokens and certificates before they end, until cancelled."""
        await self._follower.run()

    def changed(self, pod: Pod) -> None:
        """To be called by whoever watches: an object that the pod's volumes show has changed."""
        if pod.metadata.uid in self._pods:
            self._follower.changed(pod)

    def pod_changed(self, old: Pod, new: Pod) -> None:
        """The pod itself has changed: what it tells of itself by downwardAPI may be other now."""
        if downward_api.differs(old, new):
            self.changed(new)

    def _due(self) -> list[Pod]:
        due = self._tokens.due() | self._pod_certificates.due()
        return [self._pods[uid] for uid in due if uid in self._pods]

    async def prepare(self, pod: Pod) -> dict[str, PreparedVolume]:
        """Set up every volume of a pod; safe to repeat.

        Returns:
            volume name → where it is.

        A volume that shows API objects and was written before, by an earlier agent perhaps, lasts as it is
        while the API is away.

        Raises:
            VolumeError: one or more volumes cannot be set up now; the others stay for the next try. The
                message is the text of the FailedMount event.
        """
        self._pods[pod.metadata.uid] = pod
        async with self._lock(pod.metadata.uid):
            return await self._set_up_all(pod, pod.spec.volumes, lasting=True)

    async def refresh(self, pod: Pod) -> bool:
        """Rewrite the volumes that follow API objects (configMap, secret, projected, downwardAPI).

        When an object has vanished the old content stays, as with kubelet.

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
            live = tuple(volume for volume in pod.spec.volumes if plugins.is_live(volume))
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
            mounts.append(mount_of(wanted, volume, source, env or {}))
        return tuple(mounts)

    def container_devices(
        self, container: Container, prepared: Mapping[str, PreparedVolume]
    ) -> tuple[BlockDevice, ...]:
        """The raw block volumes of one container (volumeDevices).

        Raises:
            VolumeError: one names no volume of the pod, or a volume of mode Filesystem.
        """
        return block_devices(container, prepared)

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
            self._pod_certificates.forget(pod_uid)
            self._follower.forget(pod_uid)
            try:
                await remove_pod(self._pod_directory(pod_uid), unmounter=self._unmounter)
            except OSError as exc:
                raise VolumeError(
                    f"UnmountVolume.TearDown failed for pod {pod_uid}: {exc}", reason="FailedUnMount"
                ) from exc
        self._locks.pop(pod_uid, None)

    def _lock(self, pod_uid: str) -> asyncio.Lock:
        return self._locks.setdefault(pod_uid, asyncio.Lock())

    def _pod_directory(self, pod_uid: str) -> Path:
        if _UID.fullmatch(pod_uid) is None:
            raise VolumeError(f"pod UID {pod_uid[:64]!r} is not usable as a directory name")
        return self._pods_root / pod_uid

    async def _set_up_all(
        self, pod: Pod, volumes: tuple[Volume, ...], *, lasting: bool = False
    ) -> dict[str, PreparedVolume]:
        directory = self._pod_directory(pod.metadata.uid)
        set_up = self._set_up_or_last if lasting else self._set_up
        outcomes = await asyncio.gather(
            *(set_up(pod, volume, directory) for volume in volumes), return_exceptions=True
        )
        prepared = {}
        failures: list[tuple[str, BaseException]] = []
        for volume, outcome in zip(volumes, outcomes, strict=True):
            if isinstance(outcome, PreparedVolume):
                prepared[volume.name] = outcome
            elif isinstance(outcome, Unready | ApiError | OSError | InputError):
                failures.append((volume.name, outcome))
            else:
                raise outcome
        if failures:
            words = "; ".join(
                f'MountVolume.SetUp failed for volume "{name}" : {failure}' for name, failure in failures
            )
            slow = all(isinstance(failure, Unready) and failure.slow for _, failure in failures)
            raise VolumeError(words, slow=slow)
        return prepared

    async def _set_up_or_last(self, pod: Pod, volume: Volume, directory: Path) -> PreparedVolume:
        """Set up a volume; one that is in place already lasts while the API is away, and is tried later."""
        try:
            return await self._set_up(pod, volume, directory)
        except (Unready, ApiError) as exc:
            away = isinstance(exc, Temporary) or isinstance(exc.__cause__, Temporary)
            if not away or not plugins.is_live(volume):
                raise
            place = _place(directory, plugins.plugin_of(volume, None).directory, volume, None)
            if not atomic.is_written(place):
                raise
            self._follower.later(pod)
            return PreparedVolume(name=volume.name, host_path=place, read_only=True, live=True)

    async def _set_up(self, pod: Pod, volume: Volume, directory: Path) -> PreparedVolume:
        if _NAME.fullmatch(volume.name) is None or len(volume.name) > 63:
            raise Unready("the name of a volume must be a DNS label")
        claimed = await claim.find(self._claims, pod, volume)
        plugin = plugins.plugin_of(volume, claimed)
        context = Context(
            pod=pod,
            directory=_place(directory, plugin.directory, volume, claimed),
            sources=self._sources,
            tokens=self._tokens,
            pod_certificates=self._pod_certificates,
            certificates=self._certificates,
            mounter=self._mounter,
            children=self._children,
            clock=self._clock,
            allocatable=self._allocatable(),
            host_root=self._host_root,
            claims=self._claims,
            claimed=claimed,
            image=self._image,
        )
        if claimed is None:
            return await plugin.set_up(context, volume)
        # Two volumes of a pod may be one claim, and of two pods only one may have a ReadWriteOncePod volume.
        async with self._claims_locks.setdefault(claimed.name, asyncio.Lock()):
            await claim.check_access(claimed, pod, pods_root=self._pods_root)
            return replace(await plugin.set_up(context, volume), group=claimed.group)

    async def _source(
        self, pod: Pod, container: Container, index: int, volume: PreparedVolume, env: Mapping[str, str]
    ) -> Path:
        """What a mount binds: the volume, or the place its subPath was bound to."""
        parts = subpath_of(container.volume_mounts[index], env)
        if not parts or volume.image:
            return volume.host_path
        directory = self._pod_directory(pod.metadata.uid)
        target = directory / "volume-subpaths" / volume.name / container.name / str(index)
        create = not volume.read_only
        if volume.remote:
            await bind_subpath_in_child(
                volume.host_path, parts, target, children=self._children, create=create
            )
        else:
            await asyncio.to_thread(
                bind_subpath, volume.host_path, parts, target, mounter=self._mounter, create=create
            )
        return target


def _place(directory: Path, kind: str, volume: Volume, claimed: Claimed | None) -> Path:
    """Where a volume is below its pod's directory."""
    name = volume.name
    if claimed is not None:
        name = claimed.name
        if _OBJECT_NAME.fullmatch(name) is None or len(name) > 253:
            raise Unready(f"the name of persistentvolume {name[:64]!r} is not usable as a directory name")
    top = "volumeDevices" if claimed is not None and claimed.block else "volumes"
    return directory / top / f"kubernetes.io~{kind}" / name
