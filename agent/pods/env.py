"""A container's environment from its spec, the objects it names, and the services around it. Pure.

Order of precedence, lowest first: service variables, `envFrom` in order, `env` in order; a later name wins.
`$(NAME)` in a value sees only what came before it. What is missing raises `EnvError` with kubelet's words,
and becomes the message of CreateContainerConfigError.

Source: core/v1 EnvVar, and the messages of pkg/kubelet/kubelet_pods.go (v1.37).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from agent.api.structs import (
    ConfigMap,
    Container,
    EnvVar,
    FileKeySelector,
    KeySelector,
    ObjectFieldSelector,
    Pod,
    ResourceFieldSelector,
    Secret,
    Service,
)
from agent.expansion import expand
from agent.pods import spec
from agent.pods.env_files import EnvFileError, value_in
from agent.resources.downward import resource_value

MASTER = ("default", "kubernetes")
T = TypeVar("T", ConfigMap, Secret)


class EnvError(Exception):
    """The environment cannot be built now; the text names what is missing."""


@dataclass(frozen=True, kw_only=True)
class EnvSources:
    """Everything an environment may refer to."""

    config_maps: Mapping[str, ConfigMap | None] = field(default_factory=dict)
    """ConfigMaps of the pod's namespace by name; None: it does not exist."""
    secrets: Mapping[str, Secret | None] = field(default_factory=dict)
    files: Mapping[tuple[str, str], str | None] = field(default_factory=dict)
    """Texts of the files that `fileKeyRef` names, by volume and path; None: there is none."""
    services: Iterable[Service] = ()
    service_variables: Mapping[str, str] | None = None
    """The variables of the services, where they are known from before instead of the services."""
    pod_ips: tuple[str, ...] = ()
    host_ips: tuple[str, ...] = ()
    allocatable: Mapping[str, str] = field(default_factory=dict)
    """The node's allocatable, which stands for limits a container leaves unset."""


def references(container: Container) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the ConfigMaps and of the Secrets that a container's environment needs."""
    maps, secrets = set(), set()
    for source in container.env_from:
        if source.config_map_ref is not None:
            maps.add(source.config_map_ref.name)
        if source.secret_ref is not None:
            secrets.add(source.secret_ref.name)
    for variable in container.env:
        origin = variable.value_from
        if origin is not None and origin.config_map_key_ref is not None:
            maps.add(origin.config_map_key_ref.name)
        if origin is not None and origin.secret_key_ref is not None:
            secrets.add(origin.secret_key_ref.name)
    return frozenset(maps), frozenset(secrets)


def environment(pod: Pod, container: Container, sources: EnvSources) -> dict[str, str]:
    """All variables of a container, service variables included. Raises EnvError."""
    links = links_of(pod, sources)
    own: dict[str, str] = {}
    for source in container.env_from:
        if source.config_map_ref is not None:
            ref = source.config_map_ref
            values = _whole(sources.config_maps, "configmap", ref.name, ref.optional, _config_values)
        elif source.secret_ref is not None:
            secret = source.secret_ref
            values = _whole(sources.secrets, "secret", secret.name, secret.optional, _secret_values)
        else:
            continue
        own.update({source.prefix + key: value for key, value in values.items()})
    for variable in container.env:
        value = _value(pod, container, variable, {**links, **own}, sources)
        if value is not None:
            own[variable.name] = value
    for name, value in own.items():
        if "\0" in name or "\0" in value:
            raise EnvError(
                f"environment variable {name!r} contains a NUL byte, which no process can be given"
            )
    return {**links, **own}


def links_of(pod: Pod, sources: EnvSources) -> Mapping[str, str]:
    """The service variables of a pod's containers."""
    if sources.service_variables is not None:
        return sources.service_variables
    return service_variables(pod.metadata.namespace, sources.services, links=pod.spec.enable_service_links)


def _value(
    pod: Pod, container: Container, variable: EnvVar, known: Mapping[str, str], sources: EnvSources
) -> str | None:
    """One variable's value; None for an optional reference to something that is not there."""
    if variable.value:
        return expand(variable.value, known)
    origin = variable.value_from
    if origin is None:
        return ""
    if origin.field_ref is not None:
        return field_value(pod, origin.field_ref, sources)
    if origin.resource_field_ref is not None:
        return _resource(pod, container, origin.resource_field_ref, sources.allocatable)
    namespace = pod.metadata.namespace
    if origin.config_map_key_ref is not None:
        ref = origin.config_map_key_ref
        return _key(sources.config_maps, ("configmap", "ConfigMap"), namespace, ref, _config_values)
    if origin.secret_key_ref is not None:
        ref = origin.secret_key_ref
        return _key(sources.secrets, ("secret", "Secret"), namespace, ref, _secret_values)
    if origin.file_key_ref is not None:
        return _file_value(origin.file_key_ref, sources.files)
    raise EnvError(f"environment variable {variable.name!r} has a source this node does not support")


def _file_value(ref: FileKeySelector, files: Mapping[tuple[str, str], str | None]) -> str | None:
    where = f'file "{ref.path}" of volume "{ref.volume_name}"'
    if (ref.volume_name, ref.path) not in files:
        raise EnvError(f'cannot find the volume "{ref.volume_name}" referenced by FileKeyRef')
    text = files[ref.volume_name, ref.path]
    try:
        value = value_in(text, ref.key) if text is not None else None
    except EnvFileError as exc:
        raise EnvError(f"couldn't parse env file: {where}: {exc}") from exc
    if not value and not ref.optional:
        raise EnvError(f'environment variable key "{ref.key}" not found in {where}')
    return value or None


def _whole(
    objects: Mapping[str, T | None],
    kind: str,
    name: str,
    optional: bool,
    values: Callable[[T], Mapping[str, str]],
) -> dict[str, str]:
    found = objects.get(name)
    if found is None:
        if optional:
            return {}
        raise EnvError(f'{kind} "{name}" not found')
    return dict(values(found))


def _key(
    objects: Mapping[str, T | None],
    kinds: tuple[str, str],
    namespace: str,
    ref: KeySelector,
    values: Callable[[T], Mapping[str, str]],
) -> str | None:
    found = objects.get(ref.name)
    if found is None:
        if ref.optional:
            return None
        raise EnvError(f'{kinds[0]} "{ref.name}" not found')
    content = values(found)
    if ref.key not in content:
        if ref.optional:
            return None
        raise EnvError(f"couldn't find key {ref.key} in {kinds[1]} {namespace}/{ref.name}")
    return content[ref.key]


def _config_values(config: ConfigMap) -> Mapping[str, str]:
    return config.data


def _secret_values(secret: Secret) -> Mapping[str, str]:
    try:
        return {
            key: base64.b64decode(value).decode(errors="surrogateescape")
            for key, value in secret.data.items()
        }
    except binascii.Error as exc:
        raise EnvError(f'secret "{secret.metadata.name}" holds a value that is not base64') from exc


# --- the downward API -------------------------------------------------------------------------------------


def field_value(pod: Pod, ref: ObjectFieldSelector, sources: EnvSources) -> str:
    """A field of the pod as text. Raises EnvError for a field that has none."""
    meta, path = pod.metadata, ref.field_path
    plain: dict[str, Callable[[], str]] = {
        "metadata.name": lambda: meta.name,
        "metadata.namespace": lambda: meta.namespace,
        "metadata.uid": lambda: meta.uid,
        "metadata.labels": lambda: _format_map(meta.labels),
        "metadata.annotations": lambda: _format_map(meta.annotations),
        "spec.nodeName": lambda: pod.spec.node_name,
        "spec.serviceAccountName": lambda: pod.spec.service_account_name,
        "status.hostIP": lambda: sources.host_ips[0] if sources.host_ips else "",
        "status.hostIPs": lambda: ",".join(sources.host_ips),
        "status.podIP": lambda: sources.pod_ips[0] if sources.pod_ips else "",
        "status.podIPs": lambda: ",".join(sources.pod_ips),
    }
    if path in plain:
        return plain[path]()
    for prefix, entries in (("metadata.labels", meta.labels), ("metadata.annotations", meta.annotations)):
        if path.startswith(f"{prefix}['") and path.endswith("']"):
            return entries.get(path[len(prefix) + 2 : -2], "")
    raise EnvError(f"unsupported fieldPath: {path}")


def _format_map(entries: Mapping[str, str]) -> str:
    return "\n".join(f'{key}="{value}"' for key, value in sorted(entries.items()))


def _resource(
    pod: Pod, container: Container, ref: ResourceFieldSelector, allocatable: Mapping[str, str]
) -> str:
    named = spec.find_container(pod, ref.container_name) if ref.container_name else container
    if named is None:
        raise EnvError(f"container {ref.container_name} not found")
    try:
        return resource_value(pod, named, ref.resource, ref.divisor, allocatable)
    except ValueError as exc:
        raise EnvError(str(exc)) from exc


# --- services ---------------------------------------------------------------------------------------------


def service_variables(namespace: str, services: Iterable[Service], *, links: bool) -> dict[str, str]:
    """`{NAME}_SERVICE_HOST` and friends for the services a pod of that namespace sees.

    default/kubernetes is always among them; the others only with `links` (enableServiceLinks).
    """
    chosen: dict[str, Service] = {}
    for service in services:
        meta = service.metadata
        if service.spec.cluster_ip in ("", "None") or not service.spec.ports:
            continue
        if (meta.namespace, meta.name) == MASTER:
            chosen.setdefault(meta.name, service)
        elif meta.namespace == namespace and links:
            chosen[meta.name] = service
    variables: dict[str, str] = {}
    for service in chosen.values():
        variables.update(_service(service))
    return variables


def _service(service: Service) -> dict[str, str]:
    name, ip = _variable_name(service.metadata.name), service.spec.cluster_ip
    host = f"[{ip}]" if ":" in ip else ip
    first = service.spec.ports[0]
    out = {f"{name}_SERVICE_HOST": ip, f"{name}_SERVICE_PORT": str(first.port)}
    for port in service.spec.ports:
        if port.name:
            out[f"{name}_SERVICE_PORT_{_variable_name(port.name)}"] = str(port.port)
    out[f"{name}_PORT"] = f"{first.protocol.lower()}://{host}:{first.port}"
    for port in service.spec.ports:
        prefix = f"{name}_PORT_{port.port}_{port.protocol.upper()}"
        out[prefix] = f"{port.protocol.lower()}://{host}:{port.port}"
        out[f"{prefix}_PROTO"] = port.protocol.lower()
        out[f"{prefix}_PORT"] = str(port.port)
        out[f"{prefix}_ADDR"] = ip
    return out


def _variable_name(text: str) -> str:
    return text.replace("-", "_").upper()
