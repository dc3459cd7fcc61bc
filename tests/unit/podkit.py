"""A whole pods component on fakes and virtual time, for tests: `Node` is what a test holds.

Address conventions: sandboxes get 10.0.0.<n>, the node is 192.0.2.1, cluster DNS 10.96.0.10.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from fake_cri import FakeCri, Program

from agent.api import errors
from agent.api.structs import ConfigMap, Pod, Secret, Service
from agent.pods.manager import PodManager
from agent.pods.settings import PodSettings
from agent.pods.status_writer import StatusWriter
from agent.probes.manager import ProbeManager
from agent.resources.admission import NodeFacts
from agent.resources.pod_cgroups import PodCgroups
from agent.volumes.base import BlockDevice, Mount, PreparedVolume, VolumeError
from agent.volumes.containers import block_devices
from host.cgroups import CgroupStats, Resources
from host.clocks import FakeClock, settle

__all__ = ["FakeCri", "Node", "Program", "deleted", "make_pod", "running", "settle"]


def make_pod(**changes: Any) -> Pod:
    """A pod `web` in `default` with one container `app` of `busybox`; `spec` and `metadata` are merged in.

    Values are written as in a manifest (camelCase).
    """
    spec = {"containers": [{"name": "app", "image": "busybox"}], "nodeName": "n1", **changes.get("spec", {})}
    metadata = {"name": "web", "namespace": "default", "uid": "u1", "generation": 1}
    metadata |= changes.get("metadata", {})
    body = {"metadata": metadata, "spec": spec, "status": changes.get("status", {"phase": "Pending"})}
    return msgspec.convert(body, Pod)


class FakeVolumes:
    """Volumes that are there at once, unless told otherwise."""

    def __init__(self) -> None:
        self.problem: VolumeError | None = None
        self.prepared: set[str] = set()
        self.torn: list[str] = []
        self.path: Path | None = None
        """Where every volume is, when it shall be there."""

    async def prepare(self, pod: Pod) -> dict[str, PreparedVolume]:
        if self.problem is not None:
            raise self.problem
        self.prepared.add(pod.metadata.uid)
        return {
            v.name: PreparedVolume(name=v.name, host_path=self.path or Path("/vol") / v.name)
            for v in pod.spec.volumes
        }

    async def container_mounts(
        self, pod: Pod, container: Any, prepared: Mapping[str, PreparedVolume], *, env: Any = None
    ) -> tuple[Mount, ...]:
        for wanted in container.volume_mounts:
            if wanted.name not in prepared:
                raise VolumeError(f"no volume {wanted.name}")
        return tuple(
            Mount(volume=m.name, host_path=str(prepared[m.name].host_path), container_path=m.mount_path)
            for m in container.volume_mounts
        )

    def container_devices(
        self, container: Any, prepared: Mapping[str, PreparedVolume]
    ) -> tuple[BlockDevice, ...]:
        return block_devices(container, prepared)

    async def teardown(self, pod_uid: str) -> None:
        self.prepared.discard(pod_uid)
        self.torn.append(pod_uid)


class FakeSources:
    """ConfigMaps and Secrets by "namespace/name"."""

    def __init__(self) -> None:
        self.config_maps: dict[str, ConfigMap] = {}
        self.secrets: dict[str, Secret] = {}
        self.handlers: dict[str, str] = {}

    async def get_config_map(self, namespace: str, name: str) -> ConfigMap | None:
        return self.config_maps.get(f"{namespace}/{name}")

    async def get_secret(self, namespace: str, name: str) -> Secret | None:
        return self.secrets.get(f"{namespace}/{name}")

    async def runtime_handler(self, name: str) -> str | None:
        return self.handlers.get(name)

    async def create_token(
        self, namespace: str, service_account: str, body: dict[str, Any]
    ) -> dict[str, Any]:
        raise errors.NotFound("no tokens here", status=404)


class FakeCgroups:
    """Cgroups as a dictionary; paths are those of the driver cgroupfs."""

    driver: str = "cgroupfs"

    def __init__(self) -> None:
        self.paths: dict[str, Resources | None] = {}
        self.updates: list[tuple[str, dict[str, Any]]] = []
        self.usage = 1 << 20

    def nested_path(self, root: str, *names: str) -> str:
        return "/".join((root.rstrip("/"), *names))

    def parent_name(self, path: str) -> str:
        return path

    def create(self, path: str, resources: Resources | None = None) -> None:
        self.paths[path] = resources

    def update(self, path: str, resources: Resources) -> None:
        given = {k: v for k, v in vars(resources).items() if v not in (None, {})}
        self.paths[path] = replace(self.paths.get(path) or Resources(), **given)
        self.updates.append((path, given))

    def stats(self, path: str) -> CgroupStats:
        return CgroupStats(memory_usage=self.usage)

    def remove(self, path: str) -> None:
        self.paths.pop(path, None)


@dataclass
class FakeEvents:
    """Events as (reason, message) pairs, in order."""

    seen: list[tuple[str, str]] = field(default_factory=list)
    refs: list[Any] = field(default_factory=list)

    def record(self, ref: Any, *, type: str, reason: str, message: str) -> None:
        self.seen.append((reason, message))
        self.refs.append(ref)

    @property
    def reasons(self) -> list[str]:
        return [reason for reason, _ in self.seen]

    def message(self, reason: str) -> str:
        """The last message of that reason."""
        return next(m for r, m in reversed(self.seen) if r == reason)


class FakeApi:
    """The API as the status writer sees it; statuses written are kept, `refuse` makes calls fail."""

    def __init__(self) -> None:
        self.patches: list[dict[str, Any]] = []
        self.deleted: list[tuple[str, str, int | None]] = []
        self.refuse: Exception | None = None

    async def patch(self, resource: Any, name: str, body: Any, **_: Any) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.patches.append(body["status"])

    async def delete(
        self, resource: Any, name: str, *, namespace: str, uid: str, grace_period_seconds: int | None
    ) -> None:
        if self.refuse is not None:
            raise self.refuse
        self.deleted.append((name, uid, grace_period_seconds))


class Node:
    """One node: runtime, volumes, events and API are fakes, everything of agent.pods is real."""

    def __init__(
        self,
        root: Path,
        *,
        cri: Any = None,
        clock: Any = None,
        cgroups: Any = None,
        devices: Any = None,
        cgroup_root: str = "/lab",
        **settings: Any,
    ):
        self.clock = clock or FakeClock()
        self.cri = cri or FakeCri(self.clock)
        if isinstance(self.cri, FakeCri):
            self.cri.add_image("busybox:latest")
        self.volumes, self.sources, self.events = FakeVolumes(), FakeSources(), FakeEvents()
        self.cgroups, self.api = cgroups or FakeCgroups(), FakeApi()
        self.services: list[Service] | None = []
        self.facts = NodeFacts(name="n1")
        self.settings = PodSettings(
            node_name="n1",
            host_ips=("192.0.2.1",),
            root=root / "kubelet",
            log_root=root / "logs",
            cgroup_root=cgroup_root,
            cluster_dns=("10.96.0.10",),
            memory_capacity=1 << 32,
            **settings,
        )
        self.probes = ProbeManager(
            clock=self.clock,
            exec_sync=self._exec,
            on_result=lambda result: self.manager.on_probe_result(result),
            on_failure=lambda failure: self.manager.on_probe_failure(failure),
            random=lambda: 0.0,
        )
        self.writer = StatusWriter(
            client=self.api,  # type: ignore[arg-type]
            clock=self.clock,
            target=lambda pod: self.manager.status_target(pod),
        )
        self.manager = PodManager(
            settings=self.settings,
            clock=self.clock,
            runtime=self.cri,  # type: ignore[arg-type]
            volumes=self.volumes,
            events=self.events,
            sources=self.sources,
            cgroups=PodCgroups(cgroups=self.cgroups, root=cgroup_root),
            services=lambda: self.services,
            node=lambda: self.facts,
            writer=self.writer,
            probes=self.probes,
            devices=devices,
        )

    async def _exec(self, container_id: str, argv: Any, timeout: float) -> tuple[int, bytes]:
        done = await self.cri.exec_sync(container_id, argv, timeout=timeout)
        return done.exit_code, done.stdout

    async def put(self, pod: Pod) -> None:
        """A pod's object appears or changes; everything that can happen at once happens."""
        self.manager.put(pod)
        await self.settle()

    async def settle(self) -> None:
        await settle(400)

    async def advance(self, seconds: float) -> None:
        await self.settle()
        await self.clock.advance(seconds)
        await self.settle()

    def pod(self, name: str = "web") -> Pod:
        found = self.manager.find("default", name)
        assert found is not None
        return found

    def state(self, container: str = "app") -> Any:
        status = self.pod().status
        for each in (*status.container_statuses, *status.init_container_statuses):
            if each.name == container:
                return each
        raise AssertionError(f"no container {container}")

    def phase(self) -> str:
        return self.pod().status.phase

    def condition(self, kind: str) -> str:
        return next(c.status for c in self.pod().status.conditions if c.type == kind)


@asynccontextmanager
async def running(node: Node, *pods: Pod) -> AsyncIterator[Node]:
    """The node at work; `pods` are those the API lists first."""
    task = asyncio.create_task(node.manager.run())
    for pod in pods:
        node.manager.put(pod)
    await node.settle()
    node.manager.complete("api")
    try:
        yield node
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def deleted(pod: Pod, grace: int = 30) -> Pod:
    """The pod as it is after a deletion with that grace in seconds."""
    meta = msgspec.structs.replace(
        pod.metadata, deletion_timestamp="2023-11-14T22:13:50Z", deletion_grace_period_seconds=grace
    )
    return msgspec.structs.replace(pod, metadata=meta)
