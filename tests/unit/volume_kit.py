"""A node for volume tests without root: a mount table that is a list, API objects that are in dicts."""

import os
from pathlib import Path
from typing import Any

import pytest

from agent.api.errors import Unreachable
from agent.api.structs import (
    ConfigMap,
    Container,
    ObjectMeta,
    PersistentVolume,
    PersistentVolumeClaim,
    Pod,
    PodSpec,
    Secret,
    TokenRequest,
    TokenRequestStatus,
    Volume,
)
from agent.api.times import format_time
from agent.volumes.base import Unready
from agent.volumes.manager import VolumeError, VolumeManager
from agent.volumes.mounts import Mounted
from host.clocks import FakeClock
from host.errors import Busy


class FakeMounter:
    """A mount table in memory: remembers, refuses what is not mounted, and can be told to be busy."""

    def __init__(self) -> None:
        self.mounts: list[tuple[Path, str]] = []
        self.busy: set[Path] = set()

    def tmpfs(self, path: Path, *, mode: int, size: int | None = None) -> None:
        assert path.is_dir()
        self.mounts.append((path, f"tmpfs size={size}"))

    def hugetlbfs(self, path: Path, *, page_size: str) -> None:
        assert path.is_dir()
        self.mounts.append((path, f"hugetlbfs pagesize={page_size}"))

    def bind(self, fd: int, target: Path) -> None:
        assert target.exists()
        self.mounts.append((target, os.readlink(f"/proc/self/fd/{fd}")))

    def unmount(self, path: Path, *, lazy: bool = False) -> None:
        if path in self.busy:
            raise Busy(16, f"umount {path}")
        self.mounts = [entry for entry in self.mounts if entry[0] != path]

    def is_mounted(self, path: Path) -> bool:
        return any(entry[0] == path for entry in self.mounts)

    def mount_at(self, path: Path) -> Mounted | None:
        return None

    def table(self, path: Path) -> list[Mounted]:
        return [
            Mounted(point, what.split()[0] if what.startswith(("tmpfs", "hugetlbfs", "nfs")) else "ext4")
            for point, what in reversed(self.mounts)
            if path in (point, *point.parents)
        ]


class FakeApi:
    """Sources in dicts, and a token that says how often it was asked for."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.config_maps: dict[str, ConfigMap] = {}
        self.secrets: dict[str, Secret] = {}
        self.requests: list[TokenRequest] = []
        self.down = False

    async def get_config_map(self, namespace: str, name: str) -> ConfigMap | None:
        return self.config_maps.get(f"{namespace}/{name}")

    async def get_secret(self, namespace: str, name: str) -> Secret | None:
        return self.secrets.get(f"{namespace}/{name}")

    async def create_token(self, namespace: str, service_account: str, request: TokenRequest) -> TokenRequest:
        if self.down:
            raise Unreachable("apiserver is down")
        self.requests.append(request)
        seconds = request.spec.expiration_seconds or 0
        return TokenRequest(
            spec=request.spec,
            status=TokenRequestStatus(
                token=f"token{len(self.requests)}-{service_account}",
                expiration_timestamp=format_time(self.clock.now() + seconds),
            ),
        )


class FakeClaims:
    """Claims and their volumes in dicts."""

    def __init__(self) -> None:
        self.claims: dict[str, PersistentVolumeClaim] = {}
        self.volumes: dict[str, PersistentVolume] = {}

    async def get_claim(self, namespace: str, name: str) -> PersistentVolumeClaim | None:
        return self.claims.get(f"{namespace}/{name}")

    async def get_persistent_volume(self, name: str) -> PersistentVolume | None:
        return self.volumes.get(name)


class Node:
    def __init__(self, root: Path, *, claims: FakeClaims | None = None, certificates: Any = None) -> None:
        self.root = root
        self.certificates = certificates
        self.images: dict[str, str] = {}
        self.pulls: list[tuple[str, str]] = []
        self.clock = FakeClock()
        self.api = FakeApi(self.clock)
        self.claims = claims or FakeClaims()
        self.mounter = FakeMounter()
        self.manager = VolumeManager(
            root=root / "kubelet",
            sources=self.api,
            claims=self.claims,
            certificates=certificates,
            clock=self.clock,
            allocatable=lambda: {"memory": "1Gi", "cpu": "2"},
            host_root=root / "host",
            mounter=self.mounter,
            image=self.image,
        )

    async def image(self, pod: Pod, reference: str, policy: str) -> str:
        self.pulls.append((reference, policy))
        if reference not in self.images:
            raise Unready("ErrImagePull: no such image", slow=True)
        return self.images[reference]

    def directory(self, plugin: str, name: str) -> Path:
        return self.root / "kubelet/pods/u1/volumes" / f"kubernetes.io~{plugin}" / name


def pod(*volumes: Volume, containers: tuple[Container, ...] = (), **metadata: object) -> Pod:
    return Pod(
        metadata=ObjectMeta(name="p", namespace="ns", uid="u1", **metadata),
        spec=PodSpec(volumes=volumes, containers=containers, service_account_name="robot"),
    )


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}


async def fails(node: Node, made: Pod) -> str:
    with pytest.raises(VolumeError) as caught:
        await node.manager.prepare(made)
    assert caught.value.reason == "FailedMount"
    return caught.value.message
