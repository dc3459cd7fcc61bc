"""Questions about a pod's spec that several modules ask. Pure; nothing here looks at the runtime."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from agent.api.structs import Container, Pod

SOURCE_ANNOTATION = "kubernetes.io/config.source"
HASH_ANNOTATION = "kubernetes.io/config.hash"
SEEN_ANNOTATION = "kubernetes.io/config.seen"
MIRROR_ANNOTATION = "kubernetes.io/config.mirror"


def is_static(pod: Pod) -> bool:
    """Whether the pod comes from a manifest on this node, not from the API."""
    return pod.metadata.annotations.get(SOURCE_ANNOTATION, "api") != "api"


def is_mirror(pod: Pod) -> bool:
    """Whether the pod is only the API's picture of a static pod."""
    return MIRROR_ANNOTATION in pod.metadata.annotations


def waiting_reason(pod: Pod) -> str:
    """Why a container waits of which there is nothing else to say.

    Of an init container, too: for this reason alone kubectl shows "Init:0/2", otherwise the reason itself.
    """
    return "PodInitializing" if pod.spec.init_containers else "ContainerCreating"


def is_sidecar(container: Container) -> bool:
    """Whether an init container is a native sidecar (KEP-753): it runs beside the app containers."""
    return container.restart_policy == "Always"


def sidecars(pod: Pod) -> tuple[Container, ...]:
    """The native sidecars, in start order."""
    return tuple(c for c in pod.spec.init_containers if is_sidecar(c))


def every_container(pod: Pod) -> Iterator[Container]:
    """Init, app and ephemeral containers, in spec order."""
    yield from pod.spec.init_containers
    yield from pod.spec.containers
    yield from pod.spec.ephemeral_containers


def find_container(pod: Pod, name: str) -> Container | None:
    """The container of that name, of any kind."""
    return next((c for c in every_container(pod) if c.name == name), None)


def field_path(pod: Pod, name: str) -> str:
    """The container's place in the spec as events name it: `spec.containers{web}`."""
    for kind, group in (
        ("containers", pod.spec.containers),
        ("initContainers", pod.spec.init_containers),
        ("ephemeralContainers", pod.spec.ephemeral_containers),
    ):
        if any(c.name == name for c in group):
            return f"spec.{kind}{{{name}}}"
    return ""


def container_hash(container: Container) -> str:
    """What makes a running container another one: name and image, the only parts that change in place."""
    return hashlib.sha256(f"{container.name}\n{container.image}".encode()).hexdigest()[:16]


def full_name(pod: Pod) -> str:
    """`name_namespace(uid)`, as kubelet writes it in messages."""
    return f"{pod.metadata.name}_{pod.metadata.namespace}({pod.metadata.uid})"


def grace_seconds(pod: Pod) -> int:
    """Seconds a pod has to stop by itself; at least 1, as with kubelet."""
    grace = pod.metadata.deletion_grace_period_seconds if pod.metadata.deletion_timestamp else None
    if grace is None:
        grace = pod.spec.termination_grace_period_seconds
    return max(1, 30 if grace is None else grace)


def probe_grace(pod: Pod, name: str, *, startup: bool) -> int:
    """Seconds a container that failed this probe has to stop: the probe's own, or the pod's."""
    container = find_container(pod, name)
    probe = None
    if container is not None:
        probe = container.startup_probe if startup else container.liveness_probe
    own = probe.termination_grace_period_seconds if probe else None
    return grace_seconds(pod) if own is None else own


def pull_policy(container: Container) -> str:
    """The image pull policy, derived from the tag when nothing was said (core/v1 defaults)."""
    if container.image_pull_policy:
        return container.image_pull_policy
    return "Always" if default_tag(container.image).endswith(":latest") else "IfNotPresent"


def default_tag(image: str) -> str:
    """The image name with `:latest` added when it has neither tag nor digest."""
    last = image.rpartition("/")[2]
    return image if "@" in image or ":" in last else f"{image}:latest"
