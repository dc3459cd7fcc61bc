"""What a PodSandboxConfig may not say. Pure; refused before anything of the pod exists.

What a CNI plugin or the kernel would refuse later is refused here: a pod whose network cannot be made with a
value cannot be unmade with it either, and would stay.
"""

from __future__ import annotations

import ipaddress

from cri.network import bandwidth
from cri.server.field_check import check_name, check_path, check_size
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

_MODES = {"network": (pb.POD, pb.NODE), "pid": (pb.POD, pb.CONTAINER, pb.NODE), "ipc": (pb.POD, pb.NODE)}
_MAX_PORT = 65535


def check_sandbox(config: pb.PodSandboxConfig) -> None:
    """Refuse a sandbox that is not named, or that nobody could make.

    Raises:
        InputError: the message names the field.
    """
    check_size(config)
    for part in ("name", "namespace", "uid"):
        if not getattr(config.metadata, part):
            raise InputError(f"config.metadata.{part} is empty: a pod sandbox needs name, namespace and uid")
        check_name(f"config.metadata.{part}", getattr(config.metadata, part))
    check_path("log_directory", config.log_directory)
    check_path("cgroup_parent", config.linux.cgroup_parent)
    if config.log_directory and not config.log_directory.startswith("/"):
        raise InputError(f"log_directory {config.log_directory[:80]!r} must be absolute")
    _check_namespaces(config.linux.security_context.namespace_options)
    for mapping in config.port_mappings:
        _check_port(mapping)
    bandwidth(config.annotations)


def _check_namespaces(options: pb.NamespaceOption) -> None:
    for name, known in _MODES.items():
        mode = getattr(options, name)
        if mode not in known:
            words = " or ".join(pb.NamespaceMode.Name(item) for item in known)
            raise InputError(f"namespace_options.{name} {mode} of a pod sandbox must be {words}")


def _check_port(mapping: pb.PortMapping) -> None:
    if not mapping.host_port:
        return  # a port of the container alone is only told, not mapped
    for name in ("host_port", "container_port"):
        if not 1 <= getattr(mapping, name) <= _MAX_PORT:
            raise InputError(f"port_mappings: {name} {getattr(mapping, name)} is not 1 to {_MAX_PORT}")
    if mapping.protocol not in pb.Protocol.values():
        raise InputError(f"port_mappings: protocol {mapping.protocol} is not known: TCP, UDP or SCTP")
    try:
        if mapping.host_ip:
            ipaddress.ip_address(mapping.host_ip)
    except ValueError as exc:
        raise InputError(f"port_mappings: host_ip {mapping.host_ip[:80]!r} is not an address") from exc
