"""From settings to the arguments of each component; the small adapters between them. Mostly pure.

The wiring itself is in `assembly`.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent import startup_resources, version
from agent.api import kubeconfig
from agent.api.client import ApiClient
from agent.api.structs import (
    ConfigMap,
    EndpointSlice,
    Node,
    NodeSpec,
    ObjectMeta,
    Pod,
    Secret,
    Service,
    TokenRequest,
)
from agent.api.watch import Informer
from agent.config import durations
from agent.config.load import Settings
from agent.node.facts import Machine
from agent.node.status import POD_FEATURES, WEB_SOCKETS, NodePlan
from agent.overlay.settings import OverlaySettings
from agent.pods.id_pool import id_pool
from agent.pods.manager import PodManager
from agent.pods.resolvers import NodeDns
from agent.pods.runtime import Runtime, RuntimeFailure
from agent.pods.settings import PodSettings
from agent.pods.static_url import UrlPods
from agent.policy import yielding
from agent.policy.component import PolicyAgent
from agent.resources.log_rotation import LogRotation
from agent.resources.swap import SwapPolicy
from agent.server.auth import AuthSettings, Gate
from agent.server.certificates import Pair
from agent.server.handlers import Handlers
from agent.server.ports import Measured
from agent.server.server import KubeletServer, Listen
from agent.server.serving import ServingCertificate
from agent.services.health import HealthPorts
from agent.services.iptables import IptablesBackEnd
from agent.services.picture import NodeFacts as ProxyFacts
from agent.services.proxy import ServiceProxy
from agent.services.rules import Settings as RuleSettings
from host.clocks import Clock
from host.errors import InputError

log = logging.getLogger(__name__)


def endpoint(text: str) -> str:
    """A gRPC target for the runtime's socket."""
    return text if text.startswith("unix:") else f"unix://{text}"


def node_plan(settings: Settings, machine: Machine) -> NodePlan:
    """What shapes the Node object."""
    kubelet = settings.kubelet
    max_pods = startup_resources.max_pods(kubelet, machine)
    return NodePlan(
        name=settings.node_name,
        hostname=settings.node_name,
        version=version.kubelet(),
        port=kubelet.port,
        max_pods=max_pods,
        labels=settings.options.node_labels,
        taints=kubelet.register_with_taints,
        provider_id=kubelet.provider_id,
        register=kubelet.register_node,
        reserved=(kubelet.system_reserved, kubelet.kube_reserved),
        eviction_hard=kubelet.eviction_hard,
        max_images=kubelet.node_status_max_images,
        declared_features=declared_features(settings),
    )


def declared_features(settings: Settings) -> tuple[str, ...]:
    """What the Node object says this node can do, sorted as kubelet's is."""
    streams = (WEB_SOCKETS,) if settings.nodelet.declare_web_sockets else ()
    return tuple(sorted((*streams, *POD_FEATURES)))


LONE_POD_CIDR = "10.244.0.0/24"
"""Pod range of a node without an API, where none is configured: the first of flannel's default network."""
LONE_MTU = 1500
ZONE_LABEL = "topology.kubernetes.io/zone"


def overlay_settings(settings: Settings, *, ips: Sequence[str] = ()) -> OverlaySettings:
    """The overlay's part of NodeletConfiguration; a node without an API has no peers and needs no tunnel."""
    own = settings.nodelet
    alone = settings.options.standalone
    tunnels = own.overlay.backend in ("vxlan", "wireguard")
    backend = "host-gw" if alone and tunnels else own.overlay.backend
    # With no route to anywhere the underlay is lo, whose MTU no veth can have.
    offline = alone and any(ipaddress.ip_address(ip).is_loopback for ip in ips[:1])
    return OverlaySettings(
        backend=backend,  # type: ignore[arg-type]  # checked by agent.config.nodelet
        vni=own.overlay.vni,
        port=own.overlay.port,
        wireguard_port=own.overlay.wireguard_port,
        device=own.overlay.device,
        direct_routing=own.overlay.direct_routing,
        mtu=own.overlay.mtu or (LONE_MTU if offline else 0),
        masquerade=own.overlay.masquerade,
        not_masqueraded=own.overlay.non_masquerade_cidrs,
        cluster_cidrs=ranges(own.cluster_cidr),
        conf_dir=own.cni.conf_dir if own.cni.write_config else "",
        bridge=own.cni.bridge,
    )


def ranges(text: str) -> tuple[str, ...]:
    """The members of a comma-separated list of networks."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def pod_settings(
    settings: Settings, *, ips: Sequence[str], machine: Machine, swap: SwapPolicy
) -> PodSettings:
    """What the pods component is told once. Raises InputError when resolvConf cannot be read."""
    kubelet = settings.kubelet
    longest = kubelet.crash_loop_back_off.max_container_restart_period
    return PodSettings(
        node_name=settings.node_name,
        host_ips=tuple(ips),
        root=settings.root,
        log_root=Path(kubelet.pod_logs_dir),
        cgroup_root=kubelet.cgroup_root,
        cluster_dns=kubelet.cluster_dns,
        cluster_domain=kubelet.cluster_domain or "cluster.local",
        host_dns=NodeDns(kubelet.resolver_config),
        max_pods=kubelet.max_pods,
        cpu_quota=kubelet.cpu_cfs_quota,
        cpu_quota_period_us=round(kubelet.cpu_cfs_quota_period * 1e6),
        seccomp_default=kubelet.seccomp_default,
        max_restart_delay=longest if longest is not None else 300.0,
        hold_termination=float(settings.nodelet.hold_termination),
        max_parallel_pulls=kubelet.max_parallel_image_pulls or 10,
        memory_capacity=machine.memory,
        hugepage_sizes=tuple(machine.hugepages),
        swap=swap,
        dead_per_container=settings.options.dead_per_container,
        dead_in_all=settings.options.dead_in_all,
        dead_minimum_age=settings.options.dead_minimum_age,
        unsafe_sysctls=kubelet.allowed_unsafe_sysctls,
        pull_verification=kubelet.image_pull_credentials_verification_policy,
        preloaded_images=kubelet.preloaded_images_verification_allowlist,
        id_pool=id_pool(
            length=kubelet.user_namespaces.ids_per_pod,
            max_pods=kubelet.max_pods,
            subuid=_optional_text(Path("/etc/subuid")),
            subgid=_optional_text(Path("/etc/subgid")),
        ),
        crash_log_lines=settings.nodelet.crash_log_lines,
    )


def _optional_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def url_pods(
    settings: Settings,
    *,
    clock: Clock,
    on_put: Callable[[Pod], None],
    on_remove: Callable[[Pod], None],
    on_complete: Callable[[], None],
) -> UrlPods | None:
    """The static pods of a URL, where one is configured."""
    kubelet = settings.kubelet
    if not kubelet.static_pod_url:
        return None
    return UrlPods(
        url=kubelet.static_pod_url,
        headers=kubelet.static_pod_url_header,
        every=kubelet.http_check_frequency,
        node_name=settings.node_name,
        clock=clock,
        on_put=on_put,
        on_remove=on_remove,
        on_complete=on_complete,
    )


def pod_sources(settings: Settings) -> tuple[str, ...]:
    """Names of the places pods come from."""
    api = () if settings.options.standalone else ("api",)
    files = ("file",) if settings.static_pods else ()
    return (*api, *files, *(("http",) if settings.kubelet.static_pod_url else ()))


def exec_probe(runtime: Runtime) -> Any:
    """`agent.probes.measure.ExecSync` over CRI; a probe that takes too long is a TimeoutError."""

    async def run(container_id: str, argv: Sequence[str], timeout: float) -> tuple[int, bytes]:
        try:
            done = await runtime.exec_sync(container_id, argv, timeout=timeout)
        except RuntimeFailure as exc:
            if exc.code.name == "DEADLINE_EXCEEDED":
                raise TimeoutError(exc.message) from exc
            raise
        return done.exit_code, done.stdout + done.stderr

    return run


class NoSources:
    """`agent.volumes.base.Sources` without an API: nothing exists."""

    async def get_config_map(self, namespace: str, name: str) -> ConfigMap | None:
        return None

    async def get_secret(self, namespace: str, name: str) -> Secret | None:
        return None

    async def create_token(self, namespace: str, service_account: str, request: TokenRequest) -> TokenRequest:
        raise InputError("service account tokens need an API server, this node stands alone")

    async def runtime_handler(self, name: str) -> str | None:
        return name  # a class cannot be looked up: its name is taken for the handler's


def proxy_facts(node: Node) -> ProxyFacts:
    """What the service rules need to know of our Node object."""
    return ProxyFacts(name=node.metadata.name, zone=node.metadata.labels.get(ZONE_LABEL, ""))


def service_proxy(
    settings: Settings,
    *,
    services: Informer[Service],
    slices: Informer[EndpointSlice],
    node_ip: str,
) -> ServiceProxy:
    """The service rules' component."""
    return ServiceProxy(
        services=services,
        slices=slices,
        node=ProxyFacts(name=settings.node_name),
        back_end=IptablesBackEnd(RuleSettings(local_interface=settings.nodelet.cni.bridge, node_ip=node_ip)),
        health=HealthPorts(),
    )


def policy_agent(
    settings: Settings,
    *,
    client: ApiClient | None,
    pods: Callable[[], Sequence[Pod]],
    report: Callable[[str, str], None],
    clock: Clock,
) -> PolicyAgent:
    """The NetworkPolicy component; `pods` gives those of this node, among them other agents'."""
    return PolicyAgent(
        client,
        node_name=settings.node_name,
        mode=settings.nodelet.network_policy,  # type: ignore[arg-type]  # checked by agent.config.nodelet
        other_agent=lambda: yielding.on_this_node(pods()),
        clock=clock,
        report=report,
    )


def serving_certificate(
    settings: Settings, *, client: ApiClient | None, ips: Sequence[str], clock: Clock
) -> ServingCertificate:
    """What port 10250 shows; the cluster is asked for one only with serverTLSBootstrap."""
    kubelet = settings.kubelet
    ca = kubelet.authentication.x509.client_ca_file
    files = Pair(Path(kubelet.tls_cert_file), Path(kubelet.tls_private_key_file))
    return ServingCertificate(
        client if kubelet.server_tls_bootstrap else None,
        node_name=settings.node_name,
        ips=ips,
        pki=settings.pki,
        configured=files if kubelet.tls_cert_file else None,
        client_ca=Path(ca) if ca else None,
        clock=clock,
    )


def kubelet_server(
    settings: Settings,
    *,
    client: ApiClient | None,
    pods: PodManager,
    runtime: Runtime,
    certificate: ServingCertificate,
    clock: Clock,
    measured: Sequence[Measured | None],
) -> KubeletServer:
    """The kubelet API; /metrics shows what the `measured` components count too."""
    kubelet = settings.kubelet
    authentication, authorization = kubelet.authentication, kubelet.authorization
    gate = Gate(
        client,
        node_name=settings.node_name,
        settings=AuthSettings(
            anonymous=authentication.anonymous.enabled,
            tokens=authentication.webhook.enabled,
            token_ttl=authentication.webhook.cache_ttl,
            always_allow=authorization.mode == "AlwaysAllow",
            allowed_ttl=authorization.webhook.cache_authorized_ttl,
            refused_ttl=authorization.webhook.cache_unauthorized_ttl,
        ),
        clock=clock,
    )
    handlers = Handlers(
        node_name=settings.node_name,
        pods=pods,
        streams=runtime,
        runtime_failures=(RuntimeFailure, OSError),
        root=settings.root,
        config=msgspec.to_builtins(kubelet, enc_hook=durations.encode),
        families=lambda: [family for part in measured if part is not None for family in part.families()],
    )
    listen = Listen(
        address=kubelet.address,
        port=kubelet.port,
        healthz_address=kubelet.healthz_bind_address,
        healthz_port=kubelet.healthz_port,
    )
    return KubeletServer(listen=listen, context=certificate.context, gate=gate, handlers=handlers)


def log_rotation(settings: Settings, *, pods: PodManager, runtime: Runtime, clock: Clock) -> LogRotation:
    """The component that rotates container logs."""
    return LogRotation(
        clock=clock,
        logs=pods.running_logs,
        reopen=runtime.reopen_log,
        failures=(RuntimeFailure, OSError),
        max_bytes=int(settings.kubelet.container_log_max_size),
        max_files=settings.kubelet.container_log_max_files,
        interval=float(settings.kubelet.container_log_monitor_interval),
    )


def client_certificate(path: Path) -> Path | None:
    """The certificate file a kubeconfig names, if it is ours to renew (a link, as bootstrap makes it)."""
    found = kubeconfig.load(path).cert_file
    return found if found is not None and found.is_symlink() else None


def lone_node(settings: Settings) -> Node:
    """The Node of a node without an API."""
    cidrs = ranges(settings.nodelet.pod_cidr or settings.kubelet.pod_cidr or LONE_POD_CIDR)
    return Node(
        metadata=ObjectMeta(name=settings.node_name, labels=settings.options.node_labels),
        spec=NodeSpec(pod_cidr=cidrs[0] if cidrs else "", pod_cidrs=cidrs),
    )


def with_fallback_range(nodes: Mapping[str, Node], settings: Settings) -> Mapping[str, Node]:
    """The Nodes, ours with the configured pod range where no controller has given it one."""
    ours = nodes.get(settings.node_name)
    cidrs = ranges(settings.nodelet.pod_cidr or settings.kubelet.pod_cidr)
    if ours is None or ours.spec.pod_cidr or not cidrs:
        return nodes
    spec = msgspec.structs.replace(ours.spec, pod_cidr=cidrs[0], pod_cidrs=cidrs)
    return {**nodes, settings.node_name: msgspec.structs.replace(ours, spec=spec)}
