"""What a PodSandboxConfig asks for, as a SandboxSpec, a CNI description and two small files. Pure.

There is no pause image: the pod's namespaces are held by its supervisor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from cri.network import PodNetwork, bandwidth
from cri.runtime.spec import SandboxSpec
from cri.server.user_namespaces import pod_user_namespace
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

_PROTOCOLS = {pb.TCP: "tcp", pb.UDP: "udp", pb.SCTP: "sctp"}
_DNS_WORD = re.compile(r"[^\s\x00-\x1f\x7f]+")
_HOSTNAME = re.compile(r"[A-Za-z0-9._-]{0,64}")


def sandbox_key(config: pb.PodSandboxConfig) -> tuple[str, ...]:
    """What must be unique among sandboxes: pod and attempt."""
    meta = config.metadata
    return (meta.namespace, meta.name, meta.uid, str(meta.attempt))


def host_network(config: pb.PodSandboxConfig) -> bool:
    """Whether the pod stays in the node's network namespace."""
    return config.linux.security_context.namespace_options.network == pb.NODE


def sandbox_spec(
    config: pb.PodSandboxConfig, *, sandbox_id: str, netns_dir: Path, node_name: str, cgroup: str = ""
) -> SandboxSpec:
    """The spec of a sandbox.

    Args:
        config: as the kubelet sent it.
        sandbox_id: its new id.
        netns_dir: where network namespaces are bound.
        node_name: host name of the node, for pods on its network.
        cgroup: of the pod's own process; empty: none of its own.

    Raises:
        InputError: a host name, namespace mode or ID map that makes no sense.
    """
    options = config.linux.security_context.namespace_options
    if options.network not in (pb.POD, pb.NODE):
        raise InputError("namespace_options.network of a pod sandbox must be POD or NODE")
    on_host = options.network == pb.NODE
    hostname = config.hostname or (node_name if on_host else "")
    if not _HOSTNAME.fullmatch(hostname):
        raise InputError(
            f"config.hostname {hostname[:80]!r} must be at most 64 letters, digits, dots and dashes"
        )
    return SandboxSpec(
        id=sandbox_id,
        hostname=hostname,
        host_network=on_host,
        host_uts=on_host,
        host_ipc=options.ipc == pb.NODE,
        share_pid=options.pid == pb.POD,
        netns_path=None if on_host else netns_dir / f"cni-{sandbox_id}",
        cgroup_path=cgroup,
        user_namespace=pod_user_namespace(options),
        sysctls=_sysctls(config),
    )


def _sysctls(config: pb.PodSandboxConfig) -> dict[str, str]:
    """The pod's, and in a network of its own low ports and ping for everybody, as containerd 2 has it.

    An ordinary user of the pod needs neither root nor a capability for them then. Groups of ping are numbers
    of the user namespace, so a pod with its own is left alone.
    """
    given = dict(config.linux.sysctls)
    if host_network(config):
        return given
    defaults = {"net.ipv4.ip_unprivileged_port_start": "0"}
    options = config.linux.security_context.namespace_options
    if not (options.HasField("userns_options") and options.userns_options.mode == pb.POD):
        defaults["net.ipv4.ping_group_range"] = "0 2147483647"
    return defaults | given


def pod_network(config: pb.PodSandboxConfig, *, sandbox_id: str, netns: str) -> PodNetwork:
    """What the CNI plugins are told about a pod."""
    ports = tuple(
        {
            "hostPort": item.host_port,
            "containerPort": item.container_port,
            "protocol": _PROTOCOLS[item.protocol],
            **({"hostIP": item.host_ip} if item.host_ip else {}),
        }
        for item in config.port_mappings
        if item.host_port
    )
    dns: dict[str, list[str]] = {}
    if config.HasField("dns_config"):
        dns = {
            "servers": list(config.dns_config.servers),
            "searches": list(config.dns_config.searches),
            "options": list(config.dns_config.options),
        }
    meta = config.metadata
    return PodNetwork(
        sandbox_id=sandbox_id,
        netns=netns,
        namespace=meta.namespace,
        name=meta.name,
        uid=meta.uid,
        port_mappings=ports,
        dns=dns,
        bandwidth=bandwidth(config.annotations),
        cgroup_path=config.linux.cgroup_parent,
        annotations=dict(config.annotations),
    )


def resolv_conf(config: pb.PodSandboxConfig, node_file: bytes) -> bytes:
    """The pod's /etc/resolv.conf: from its DNS configuration, or the node's where it has none.

    Raises:
        InputError: white space or a control character inside a word.
    """
    dns = config.dns_config
    if not config.HasField("dns_config") or not (dns.servers or dns.searches or dns.options):
        return node_file
    for word in (*dns.servers, *dns.searches, *dns.options):
        if not _DNS_WORD.fullmatch(word):
            raise InputError(f"dns_config holds {word[:80]!r}, which is not one word")
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return ("\n".join(lines) + "\n").encode()


def small_files(
    config: pb.PodSandboxConfig, *, hostname: str, node_resolv_conf: bytes, node_hosts: bytes
) -> Mapping[str, bytes]:
    """The files mounted into every container of the pod, by name in the sandbox's folder.

    A kubelet mounts an /etc/hosts of its own; without one a container has the node's, as with containerd.
    """
    return {
        "resolv.conf": resolv_conf(config, node_resolv_conf),
        "hostname": f"{hostname}\n".encode(),
        "hosts": node_hosts,
    }
