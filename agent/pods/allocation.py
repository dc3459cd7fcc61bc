"""What this node has granted each pod, which is what runs; a pod's spec may already ask for something else.

A grant is made at admission and changed by a resize that fits. It outlives the agent as a record in the pod's
own directory, written only for pods that ask for anything: one without requests and limits cannot be resized.
The decision is pure; `Allocations` keeps the grants.

Source: KEP-1287 (in-place resize), KEP-5419 (pod-level resources); pkg/kubelet/allocation, v1.37.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agent.api.meta import Struct
from agent.api.structs import Container, Pod, ResourceRequirements
from agent.resources import qos
from agent.resources.admission import NodeFacts, Rejection, room
from host.errors import HostError, NotFound
from host.files import read_record, write_record

log = logging.getLogger(__name__)
INFEASIBLE, DEFERRED = "Infeasible", "Deferred"
_KIND, _VERSION = "pod-allocation", 1


class Allocation(Struct, frozen=True, kw_only=True):
    """Requests and limits of a pod's init and app containers by name, and of the pod as a whole."""

    containers: dict[str, ResourceRequirements] = {}
    pod: ResourceRequirements | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing was asked for."""
        none = ResourceRequirements()
        return all(r == none for r in self.containers.values()) and self.pod in (None, none)


def asked(pod: Pod) -> Allocation:
    """What a pod's spec asks for."""
    every = (*pod.spec.init_containers, *pod.spec.containers)
    return Allocation(containers={c.name: c.resources for c in every}, pod=pod.spec.resources)


def granted(pod: Pod, allocation: Allocation) -> Pod:
    """The pod as it shall run: with the granted resources in place of those it asks for."""
    if asked(pod) == allocation:
        return pod

    def with_grant(containers: Iterable[Container]) -> tuple[Container, ...]:
        return tuple(
            msgspec.structs.replace(c, resources=allocation.containers.get(c.name, c.resources))
            for c in containers
        )

    spec = msgspec.structs.replace(
        pod.spec,
        containers=with_grant(pod.spec.containers),
        init_containers=with_grant(pod.spec.init_containers),
        resources=allocation.pod,
    )
    return msgspec.structs.replace(pod, spec=spec)


def refusal(pod: Pod, others: Iterable[Pod], node: NodeFacts) -> Rejection | None:
    """Why a resize is not granted now; None when it is. `others` as they were granted, without this pod.

    Infeasible is what this node could not give to the pod alone; anything else may fit later (Deferred).
    """
    alone = room(pod, [], node)
    if alone is not None:
        return Rejection(INFEASIBLE, alone.message)
    beside = room(pod, list(others), node)
    return Rejection(DEFERRED, beside.message) if beside is not None else None


def urgency(pod: Pod, old: Allocation, since: float) -> tuple[bool, int, bool, float]:
    """The order in which waiting resizes are tried: those that give something back, then by priority, then
    Guaranteed ones, then the longest waiting."""
    before, after = qos.pod_requests(granted(pod, old)), qos.pod_requests(pod)
    grows = any(after.get(name, 0) > before.get(name, 0) for name in ("cpu", "memory"))
    return grows, -(pod.spec.priority or 0), qos.qos_class(pod) != qos.GUARANTEED, since


def summary(pod: Pod, *, error: str = "") -> str:
    """A pod's resources in the words of kubelet's resize events."""

    def lines(containers: Iterable[Container]) -> list[dict[str, Any]]:
        return [{"name": c.name, "resources": msgspec.to_builtins(c.resources)} for c in containers]

    groups: Mapping[str, Any] = {
        "initContainers": lines(pod.spec.init_containers),
        "containers": lines(pod.spec.containers),
        "generation": pod.metadata.generation,
        "error": error,
    }
    return json.dumps({k: v for k, v in groups.items() if v}, separators=(",", ":"))


class Allocations:
    """The grants of all pods, in memory and in `<root>/pods/<uid>/allocation`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._grants: dict[str, Allocation] = {}

    def path(self, uid: str) -> Path:
        """The pod's record."""
        return self._root / "pods" / uid / "allocation"

    def of(self, pod: Pod) -> Allocation:
        """A pod's grant: the one in memory, the one on disk, or, for a new pod, what it asks for."""
        uid = pod.metadata.uid
        if uid not in self._grants:
            self._grants[uid] = self._read(uid) or asked(pod)
        return self._grants[uid]

    def grant(self, pod: Pod) -> None:
        """Grant what the pod asks for. A record that cannot be written is logged, and the pod runs."""
        uid, allocation = pod.metadata.uid, asked(pod)
        self._grants[uid] = allocation
        path = self.path(uid)
        if allocation.empty and not path.exists():
            return
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            # A power cut ends the containers too, so the record need not outlive one.
            write_record(path, msgspec.to_builtins(allocation), kind=_KIND, version=_VERSION, sync=False)
        except (HostError, OSError) as exc:
            log.warning("grant not recorded pod=%s error=%s", uid, exc)

    def forget(self, uid: str) -> None:
        """The pod is gone; its directory, and the record with it, is removed by whoever removes that."""
        self._grants.pop(uid, None)

    def _read(self, uid: str) -> Allocation | None:
        try:
            data = read_record(self.path(uid), kind=_KIND, version=_VERSION)
            return msgspec.convert(data, Allocation)
        except NotFound:
            return None
        except (HostError, msgspec.ValidationError) as exc:
            log.warning("grant not readable, taking what the pod asks for pod=%s error=%s", uid, exc)
            return None
