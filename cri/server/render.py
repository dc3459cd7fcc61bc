"""Facts as CRI messages, and the filters of the List calls. Pure: records in, protobuf out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cri.network import pod_ips
from cri.state.records import ContainerState, SandboxState
from cri.state.store import Container, Sandbox
from proto.cri import runtime_pb2 as pb

SANDBOX_STATES = {
    SandboxState.MAKING: pb.SANDBOX_NOTREADY,
    SandboxState.READY: pb.SANDBOX_READY,
    SandboxState.NOT_READY: pb.SANDBOX_NOTREADY,
}
CONTAINER_STATES = {
    ContainerState.MAKING: pb.CONTAINER_UNKNOWN,
    ContainerState.CREATED: pb.CONTAINER_CREATED,
    ContainerState.RUNNING: pb.CONTAINER_RUNNING,
    ContainerState.EXITED: pb.CONTAINER_EXITED,
}


def ips_of(sandbox: Sandbox) -> list[str]:
    """A pod's addresses while it is ready; none on the host's network."""
    if sandbox.record.state is not SandboxState.READY:
        return []
    return pod_ips(sandbox.record.network.get("result") or {})


def sandbox_status(sandbox: Sandbox) -> pb.PodSandboxStatus:
    """PodSandboxStatus of a sandbox."""
    config = sandbox.config
    ips = ips_of(sandbox)
    status = pb.PodSandboxStatus(
        id=sandbox.id,
        metadata=config.metadata,
        state=SANDBOX_STATES[sandbox.record.state],
        created_at=sandbox.record.created_at,
        labels=config.labels,
        annotations=config.annotations,
        runtime_handler=sandbox.record.runtime_handler,
    )
    status.linux.namespaces.options.CopyFrom(config.linux.security_context.namespace_options)
    status.network.ip = ips[0] if ips else ""
    status.network.additional_ips.extend(pb.PodIP(ip=ip) for ip in ips[1:])
    return status


def sandbox_item(sandbox: Sandbox) -> pb.PodSandbox:
    """A sandbox in ListPodSandbox."""
    return pb.PodSandbox(
        id=sandbox.id,
        metadata=sandbox.config.metadata,
        state=SANDBOX_STATES[sandbox.record.state],
        created_at=sandbox.record.created_at,
        labels=sandbox.config.labels,
        annotations=sandbox.config.annotations,
        runtime_handler=sandbox.record.runtime_handler,
    )


def _image_spec(container: Container) -> pb.ImageSpec:
    asked = container.config.image
    return pb.ImageSpec(
        image=asked.user_specified_image or asked.image,
        annotations=asked.annotations,
        runtime_handler=asked.runtime_handler,
    )


def _mounts(container: Container) -> list[pb.Mount]:
    """The mounts as asked for; an image volume also says which image it is (KEP-5365), not only its name."""
    mounts = [pb.Mount.FromString(mount.SerializeToString()) for mount in container.config.mounts]
    of_images = [mount for mount in mounts if mount.image.image]
    for mount, image_id in zip(of_images, container.record.volume_images, strict=True):
        mount.image.image_ref = image_id
    return mounts


def container_status(container: Container) -> pb.ContainerStatus:
    """ContainerStatus of a container."""
    record, config = container.record, container.config
    status = pb.ContainerStatus(
        id=record.id,
        metadata=config.metadata,
        state=CONTAINER_STATES[record.state],
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        image=_image_spec(container),
        image_ref=record.image_ref,
        image_id=record.image_id,
        reason=record.reason,
        message=record.message,
        labels=config.labels,
        annotations=config.annotations,
        mounts=_mounts(container),
        log_path=record.log_path,
        stop_signal=config.stop_signal,
    )
    status.resources.linux.CopyFrom(config.linux.resources)
    if record.user is not None:
        uid, gid, groups = record.user
        status.user.linux.uid = uid
        status.user.linux.gid = gid
        status.user.linux.supplemental_groups.extend(groups)
    return status


def container_item(container: Container) -> pb.Container:
    """A container in ListContainers."""
    record, config = container.record, container.config
    return pb.Container(
        id=record.id,
        pod_sandbox_id=record.sandbox_id,
        metadata=config.metadata,
        image=_image_spec(container),
        image_ref=record.image_ref,
        image_id=record.image_id,
        state=CONTAINER_STATES[record.state],
        created_at=record.created_at,
        labels=config.labels,
        annotations=config.annotations,
    )


def _labels_match(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.items())


def select_sandboxes(sandboxes: Iterable[Sandbox], wanted: pb.PodSandboxFilter) -> list[Sandbox]:
    """The sandboxes a filter asks for (those being made are hidden), the newest first."""
    found = [
        item
        for item in sandboxes
        if item.record.state is not SandboxState.MAKING
        and item.id.startswith(wanted.id)
        and (not wanted.HasField("state") or SANDBOX_STATES[item.record.state] == wanted.state.state)
        and _labels_match(item.config.labels, wanted.label_selector)
    ]
    return sorted(found, key=lambda item: item.record.created_at, reverse=True)


def select_containers(
    containers: Iterable[Container], wanted: pb.ContainerFilter | pb.ContainerStatsFilter
) -> list[Container]:
    """The containers a filter asks for (those being made are hidden), the newest first."""
    state = wanted.state if isinstance(wanted, pb.ContainerFilter) and wanted.HasField("state") else None
    found = [
        item
        for item in containers
        if item.record.state is not ContainerState.MAKING
        and item.id.startswith(wanted.id)
        and item.record.sandbox_id.startswith(wanted.pod_sandbox_id)
        and (state is None or CONTAINER_STATES[item.record.state] == state.state)
        and _labels_match(item.config.labels, wanted.label_selector)
    ]
    return sorted(found, key=lambda item: item.record.created_at, reverse=True)
