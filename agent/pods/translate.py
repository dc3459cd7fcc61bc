"""A pod's spec as CRI messages: the sandbox's and the containers' configuration. Pure.

Everything decided elsewhere (environment, mounts, names, cgroup) is handed in; this module only says it in
CRI's terms. What CRI cannot express raises `SpecError`, which becomes CreateContainerConfigError.

Source: pkg/kubelet/kuberuntime (labels.go, kuberuntime_sandbox.go, kuberuntime_container_linux.go), v1.37.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from agent.api.structs import Container, Pod
from agent.expansion import expand
from agent.pods import facts, spec
from agent.pods.convert import ImageFact
from agent.pods.naming import Dns, kernel_hostname
from agent.pods.security import SpecError, container_security, dotted, namespaces, naming, sandbox_security
from agent.pods.settings import PodSettings
from agent.resources import qos
from agent.resources.node_allocatable import page_size
from agent.resources.swap import swap_limit
from agent.volumes.base import BlockDevice, Mount
from proto.cri import runtime_pb2 as pb

_PROPAGATION = {
    "None": pb.PROPAGATION_PRIVATE,
    "HostToContainer": pb.PROPAGATION_HOST_TO_CONTAINER,
    "Bidirectional": pb.PROPAGATION_BIDIRECTIONAL,
}
_PROTOCOL = {"TCP": pb.TCP, "UDP": pb.UDP, "SCTP": pb.SCTP}


def sandbox_config(
    pod: Pod,
    *,
    attempt: int,
    dns: Dns,
    cgroup_parent: str,
    settings: PodSettings,
    users: pb.UserNamespace | None = None,
) -> pb.PodSandboxConfig:
    """The configuration of a pod's sandbox. Raises NamingError, SpecError.

    Args:
        users: the pod's user namespace; None is the node's.
    """
    _check_supported(pod)
    meta = pod.metadata
    with naming("ports of a container"):
        ports = _port_mappings(pod)
    with naming("securityContext"):
        security = sandbox_security(pod, users)
    with naming("resources or overhead"):
        extra = qos.parse_all(pod.spec.overhead)
        overhead = _limits(extra, extra, settings)
        requests, limits = qos.pod_requests(pod, overhead=False), qos.pod_limits(pod, overhead=False)
        resources = _limits(requests, limits, settings)
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(
            name=meta.name, uid=meta.uid, namespace=meta.namespace, attempt=attempt
        ),
        log_directory=str(settings.log_dir(meta.namespace, meta.name, meta.uid)),
        dns_config=pb.DNSConfig(servers=dns.servers, searches=dns.searches, options=dns.options),
        port_mappings=ports,
        labels={**meta.labels, **_pod_labels(pod)},
        annotations={**meta.annotations, facts.ANNOTATION_ROOT: settings.cgroup_root},
        linux=pb.LinuxPodSandboxConfig(
            cgroup_parent=cgroup_parent,
            security_context=security,
            sysctls={dotted(s.name): s.value for s in pod.spec.security_context.sysctls},
            overhead=overhead,
            resources=resources,
        ),
    )
    if not pod.spec.host_network:
        config.hostname = kernel_hostname(pod, settings.cluster_domain)
    return config


def _check_supported(pod: Pod) -> None:
    if pod.spec.resource_claims:
        raise SpecError("resourceClaims are not supported by this node")


def _pod_labels(pod: Pod) -> dict[str, str]:
    meta = pod.metadata
    return {
        facts.LABEL_POD_NAME: meta.name,
        facts.LABEL_POD_NAMESPACE: meta.namespace,
        facts.LABEL_POD_UID: meta.uid,
    }


def _port_mappings(pod: Pod) -> list[pb.PortMapping]:
    return [
        pb.PortMapping(
            protocol=_PROTOCOL.get(port.protocol, pb.TCP),
            container_port=port.container_port,
            host_port=port.host_port,
            host_ip=port.host_ip,
        )
        for container in (*pod.spec.containers, *spec.sidecars(pod))
        for port in container.ports
        if port.container_port
    ]


def container_config(
    pod: Pod,
    container: Container,
    *,
    attempt: int,
    image: ImageFact,
    env: Mapping[str, str],
    mounts: Sequence[Mount],
    devices: Sequence[BlockDevice] = (),
    settings: PodSettings,
    target_id: str = "",
    users: pb.UserNamespace | None = None,
) -> pb.ContainerConfig:
    """The configuration of one container. Raises SpecError.

    Args:
        attempt: how often it was restarted before; also the name of its log file.
        image: what the image name was resolved to.
        env: its whole environment.
        mounts: its volumes and the files the agent manages.
        devices: its raw block volumes.
        target_id: for an ephemeral container, the id of the container whose processes it shares.
        users: the pod's user namespace; None is the node's.
    """
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=container.name, attempt=attempt),
        image=pb.ImageSpec(image=image.id, user_specified_image=container.image),
        command=[expand(word, env) for word in container.command],
        args=[expand(word, env) for word in container.args],
        working_dir=container.working_dir,
        envs=[pb.KeyValue(key=k, value=v.encode(errors="surrogateescape")) for k, v in env.items()],
        mounts=[_mount(mount, users) for mount in mounts],
        devices=[_device(device) for device in devices],
        labels={**_pod_labels(pod), facts.LABEL_CONTAINER_NAME: container.name},
        annotations=_annotations(pod, container, attempt),
        log_path=f"{container.name}/{attempt}.log",
        stdin=container.stdin,
        stdin_once=container.stdin_once,
        tty=container.tty,
        linux=pb.LinuxContainerConfig(
            resources=container_resources(pod, container, settings),
            security_context=container_security(pod, container, image=image, settings=settings),
        ),
    )
    options = namespaces(pod, target_id=target_id, users=users)
    config.linux.security_context.namespace_options.CopyFrom(options)
    if container.lifecycle is not None and container.lifecycle.stop_signal:
        config.stop_signal = _signal(container.lifecycle.stop_signal)
    return config


def _signal(name: str) -> Any:
    try:
        return pb.Signal.Value(name)
    except ValueError as exc:
        raise SpecError(f"lifecycle.stopSignal {name!r} is not a signal") from exc


def _annotations(pod: Pod, container: Container, attempt: int) -> dict[str, str]:
    notes = {
        facts.ANNOTATION_HASH: spec.container_hash(container),
        facts.ANNOTATION_RESTARTS: str(attempt),
        facts.ANNOTATION_MEMORY: memory_request(container),
        facts.ANNOTATION_MESSAGE_PATH: container.termination_message_path,
        facts.ANNOTATION_MESSAGE_POLICY: container.termination_message_policy,
        facts.ANNOTATION_GRACE: str(spec.grace_seconds(pod)),
    }
    if container.ports:
        notes["io.kubernetes.container.ports"] = json.dumps(
            [
                {"name": p.name, "containerPort": p.container_port, "protocol": p.protocol}
                for p in container.ports
            ]
        )
    return notes


def memory_request(container: Container) -> str:
    """A container's memory request in bytes, as its annotation keeps it."""
    return str(int(qos.requests_of(container.resources).get("memory", 0)))


def _mount(mount: Mount, users: pb.UserNamespace | None) -> pb.Mount:
    """A mount; in a pod with a user namespace files have the same owners inside as on the node."""
    return pb.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.read_only,
        propagation=_PROPAGATION.get(mount.propagation, pb.PROPAGATION_PRIVATE),
        recursive_read_only=mount.recursive_read_only,
        image=pb.ImageSpec(image=mount.image) if mount.image else None,
        image_sub_path=mount.image_sub_path,
        uidMappings=users.uids if users is not None else (),
        gidMappings=users.gids if users is not None else (),
    )


def _device(device: BlockDevice) -> pb.Device:
    return pb.Device(
        container_path=device.container_path,
        host_path=device.host_path,
        permissions="r" if device.read_only else "mrw",
    )


def _held(number: Fraction | int) -> int:
    """As much of a number as CRI's messages hold (kubelet's quantities saturate there): more is no limit."""
    return min(int(number), (1 << 63) - 1)


def _limits(
    requests: Mapping[str, Fraction], limits: Mapping[str, Fraction], settings: PodSettings
) -> pb.LinuxContainerResources:
    """CPU shares and quota and memory limit."""
    out = pb.LinuxContainerResources(
        cpu_shares=qos.cpu_shares(requests.get("cpu", limits.get("cpu", Fraction(0))))
    )
    if "memory" in limits:
        out.memory_limit_in_bytes = _held(limits["memory"])
    if settings.cpu_quota:
        out.cpu_period = settings.cpu_quota_period_us
        if limits.get("cpu"):
            out.cpu_quota = _held(qos.cpu_quota_us(limits["cpu"], settings.cpu_quota_period_us))
    return out


def container_resources(pod: Pod, container: Container, settings: PodSettings) -> pb.LinuxContainerResources:
    """CPU shares and quota, memory and swap limits, huge pages and OOM score of one container."""
    limits = qos.limits_of(pod, container)
    out = _limits(qos.requests_of(container.resources), limits, settings)
    out.oom_score_adj = qos.oom_score_adj(pod, container, settings.memory_capacity)
    swap = swap_limit(pod, container, settings.swap)
    if swap.memory_and_swap is not None:
        out.memory_swap_limit_in_bytes = _held(swap.memory_and_swap)
    out.unified.update(swap.unified)
    asked = {name: _held(amount) for name, amount in limits.items() if name.startswith("hugepages-")}
    for name, size in ({**dict.fromkeys(settings.hugepage_sizes, 0), **asked}).items():
        out.hugepage_limits.add(page_size=page_size(name), limit=size)
    return out
