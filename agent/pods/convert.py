"""CRI messages as the agent's own facts. Pure; the other half of `runtime`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.pods import facts
from proto.cri import runtime_pb2 as pb

_NANO = 1e9


@dataclass(frozen=True, kw_only=True)
class ImageFact:
    """An image the runtime holds: its id (`sha256:…`), its names, and the user its configuration asks for."""

    id: str
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    size: int = 0
    uid: int | None = None
    username: str = ""
    pinned: bool = False


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something happened to a sandbox or container; carries the pod's facts where the runtime sent them."""

    id: str
    deleted: bool
    pod: facts.PodFacts | None


def sandbox_fact(status: pb.PodSandboxStatus) -> facts.SandboxFact:
    """Facts from a CRI sandbox status."""
    ips = [status.network.ip, *(ip.ip for ip in status.network.additional_ips)]
    return facts.SandboxFact(
        id=status.id,
        attempt=status.metadata.attempt,
        ready=status.state == pb.SANDBOX_READY,
        created_at=status.created_at / _NANO,
        ips=tuple(ip for ip in ips if ip),
        host_network=status.linux.namespaces.options.network == pb.NODE,
        runtime_handler=status.runtime_handler,
        root=status.annotations.get(facts.ANNOTATION_ROOT, ""),
    )


def container_fact(status: pb.ContainerStatus, sandbox_id: str = "") -> facts.ContainerFact:
    """Facts from a CRI container status; the status does not name its sandbox, so the caller does."""
    restarts = status.annotations.get(facts.ANNOTATION_RESTARTS, "")
    return facts.ContainerFact(
        id=status.id,
        name=status.labels.get(facts.LABEL_CONTAINER_NAME, status.metadata.name),
        sandbox_id=sandbox_id,
        attempt=status.metadata.attempt,
        state=facts.State(status.state),
        created_at=status.created_at / _NANO,
        started_at=status.started_at / _NANO,
        finished_at=status.finished_at / _NANO,
        exit_code=status.exit_code,
        reason=status.reason,
        message=status.message,
        image=status.image.user_specified_image or status.image.image,
        image_ref=status.image_ref,
        image_id=status.image_id or status.image_ref,
        log_path=status.log_path,
        hash=status.annotations.get(facts.ANNOTATION_HASH, ""),
        restart_count=int(restarts) if restarts.isdecimal() else status.metadata.attempt,
        figures=figures(status.resources.linux) if status.HasField("resources") else None,
        user=_user(status),
        stop_signal=_stop_signal(status),
        labels=dict(status.labels),
        annotations=dict(status.annotations),
    )


def figures(resources: pb.LinuxContainerResources) -> facts.Figures:
    """The limits CRI carries; -1 (no limit) and 0 (not set) are the same to the kernel here."""
    return facts.Figures(
        cpu_shares=max(0, resources.cpu_shares),
        cpu_quota=max(0, resources.cpu_quota),
        cpu_period=max(0, resources.cpu_period),
        memory_limit=max(0, resources.memory_limit_in_bytes),
        memory_swap=max(0, resources.memory_swap_limit_in_bytes),
    )


def _user(status: pb.ContainerStatus) -> tuple[int, int, tuple[int, ...]] | None:
    if not status.HasField("user") or not status.user.HasField("linux"):
        return None
    linux = status.user.linux
    return linux.uid, linux.gid, tuple(linux.supplemental_groups)


def _stop_signal(status: pb.ContainerStatus) -> str:
    """`SIGTERM`; empty where the runtime does not tell, or knows a signal that CRI does not."""
    known = status.stop_signal and status.stop_signal in pb.Signal.values()
    return pb.Signal.Name(status.stop_signal) if known else ""


def image_fact(image: pb.Image) -> ImageFact:
    """Facts from a CRI image."""
    return ImageFact(
        id=image.id,
        repo_tags=tuple(image.repo_tags),
        repo_digests=tuple(image.repo_digests),
        size=image.size,
        uid=image.uid.value if image.HasField("uid") else None,
        username=image.username,
        pinned=image.pinned,
    )


def event(message: pb.ContainerEventResponse) -> Event:
    """An event with the pod's facts, None where the runtime sent no sandbox status."""
    deleted = message.container_event_type == pb.CONTAINER_DELETED_EVENT
    box = message.pod_sandbox_status
    if not box.id:
        return Event(id=message.container_id, deleted=deleted, pod=None)
    pod = facts.merge(
        facts.PodFacts(uid=box.metadata.uid, namespace=box.metadata.namespace, name=box.metadata.name),
        sandboxes=[sandbox_fact(box)],
        containers=[container_fact(status, box.id) for status in message.containers_statuses],
    )
    return Event(id=message.container_id, deleted=deleted, pod=pod)


def owner_of(container: pb.Container, owner: Mapping[str, str]) -> str:
    """The uid of the pod a listed container belongs to, empty when nothing says so."""
    return owner.get(container.pod_sandbox_id) or container.labels.get(facts.LABEL_POD_UID, "")


def add(pod: facts.PodFacts, detail: Any, sandbox_id: str) -> facts.PodFacts:
    """A pod's facts with one more sandbox or container."""
    if isinstance(detail, facts.SandboxFact):
        return facts.merge(pod, sandboxes=[detail], containers=[])
    return facts.merge(pod, sandboxes=[], containers=[replace(detail, sandbox_id=sandbox_id)])
