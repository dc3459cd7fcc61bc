"""KubeletConfiguration (kubelet.config.k8s.io/v1beta1): the fields we act on, and the ones we only know.

A field of `KubeletConfiguration` below has an effect here. A name in `UNUSED` is valid in the file and logged
once; any other name is an error. Defaults are the kubelet's own, except where the comment says otherwise.

Source: k8s.io/kubelet/config/v1beta1/types.go and pkg/kubelet/apis/config/v1beta1/defaults.go, v1.37.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
from typing import Any

import msgspec

from agent.api.cluster import Taint
from agent.api.meta import wire_name
from agent.config.checks import check_resources
from agent.config.durations import Duration, Size, decode
from host.errors import InputError

log = logging.getLogger(__name__)
API_VERSION = "kubelet.config.k8s.io/v1beta1"
KIND = "KubeletConfiguration"

PULL_POLICIES = (
    "NeverVerify",
    "NeverVerifyPreloadedImages",
    "NeverVerifyAllowlistedImages",
    "AlwaysVerify",
)
EVICTION_HARD = {
    "memory.available": "100Mi",
    "nodefs.available": "10%",
    "nodefs.inodesFree": "5%",
    "imagefs.available": "15%",
    "imagefs.inodesFree": "5%",
}
"""kubelet's thresholds on Linux; a file that has evictionHard replaces all of them."""

_IRREGULAR = {
    "cluster_dns": "clusterDNS",
    "cpu_cfs_quota": "cpuCFSQuota",
    "cpu_cfs_quota_period": "cpuCFSQuotaPeriod",
    "server_tls_bootstrap": "serverTLSBootstrap",
    "client_ca_file": "clientCAFile",
    "cache_ttl": "cacheTTL",
    "cache_authorized_ttl": "cacheAuthorizedTTL",
    "cache_unauthorized_ttl": "cacheUnauthorizedTTL",
    "max_parallel_image_pulls": "maxParallelImagePulls",
    "provider_id": "providerID",
    "resolver_config": "resolvConf",
    "image_minimum_gc_age": "imageMinimumGCAge",
    "image_maximum_gc_age": "imageMaximumGCAge",
    "image_gc_high_threshold_percent": "imageGCHighThresholdPercent",
    "image_gc_low_threshold_percent": "imageGCLowThresholdPercent",
}

UNUSED = frozenset(
    [
        "fileCheckFrequency",
        "cgroupsPerQOS",
        "enableDebuggingHandlers",
        "tlsMinVersion",
        "featureGates",
        "runtimeRequestTimeout",
        "serializeImagePulls",
        "defaultPodSysctls",
        "podLogsDirMode",
        "syncFrequency",
        "readOnlyPort",
        "tlsCipherSuites",
        "tlsCurvePreferences",
        "registryPullQPS",
        "registryBurst",
        "eventRecordQPS",
        "eventBurst",
        "enableContentionProfiling",
        "streamingConnectionIdleTimeout",
        "volumeStatsAggPeriod",
        "kubeletCgroups",
        "systemCgroups",
        "singleProcessOOMKill",
        "cpuManagerPolicy",
        "cpuManagerPolicyOptions",
        "cpuManagerReconcilePeriod",
        "memoryManagerPolicy",
        "topologyManagerPolicy",
        "topologyManagerScope",
        "topologyManagerPolicyOptions",
        "qosReserved",
        "hairpinMode",
        "runOnce",
        "maxOpenFiles",
        "contentType",
        "kubeAPIQPS",
        "kubeAPIBurst",
        "protectKernelDefaults",
        "makeIPTablesUtilChains",
        "iptablesMasqueradeBit",
        "iptablesDropBit",
        "configMapAndSecretChangeDetectionStrategy",
        "reservedSystemCPUs",
        "showHiddenMetricsForVersion",
        "volumePluginDir",
        "kernelMemcgNotification",
        "enableSystemLogHandler",
        "enableSystemLogQuery",
        "reservedMemory",
        "enableProfilingHandler",
        "enableDebugFlagsHandler",
        "memoryThrottlingFactor",
        "memoryReservationPolicy",
        "tracing",
        "imageServiceEndpoint",
        "failCgroupV1",
        "containerLogMaxWorkers",
        "enableControllerAttachDetach",
        "logging",
    ]
)


def _wire(attribute: str) -> str:
    return _IRREGULAR.get(attribute) or wire_name(attribute)


class Section(
    msgspec.Struct, frozen=True, kw_only=True, rename=_wire, forbid_unknown_fields=True, omit_defaults=False
):
    """A part of the file; a field that is not listed is an error."""


class X509(Section, frozen=True, kw_only=True):
    client_ca_file: str = ""


class WebhookAuthentication(Section, frozen=True, kw_only=True):
    enabled: bool = True
    cache_ttl: Duration = Duration(120)


class AnonymousAuthentication(Section, frozen=True, kw_only=True):
    enabled: bool = False


class Authentication(Section, frozen=True, kw_only=True):
    """Who is there: certificate, bearer token (TokenReview), or nobody."""

    x509: X509 = X509()
    webhook: WebhookAuthentication = WebhookAuthentication()
    anonymous: AnonymousAuthentication = AnonymousAuthentication()


class WebhookAuthorization(Section, frozen=True, kw_only=True):
    cache_authorized_ttl: Duration = Duration(300)
    cache_unauthorized_ttl: Duration = Duration(30)


class Authorization(Section, frozen=True, kw_only=True):
    """May they: Webhook asks the API server (SubjectAccessReview), AlwaysAllow does not ask."""

    mode: str = "Webhook"
    webhook: WebhookAuthorization = WebhookAuthorization()


class CrashLoopBackOff(Section, frozen=True, kw_only=True):
    max_container_restart_period: Duration | None = None


class MemorySwap(Section, frozen=True, kw_only=True):
    """How pods use swap where the node has any: NoSwap (the default) or LimitedSwap."""

    swap_behavior: str = ""


class ShutdownByPriority(Section, frozen=True, kw_only=True):
    """Seconds that pods of this priority, up to the next one's, get when the node shuts down."""

    priority: int = 0
    shutdown_grace_period_seconds: int = 0


class UserNamespaces(Section, frozen=True, kw_only=True):
    ids_per_pod: int = msgspec.field(default=65536, name="idsPerPod")


class KubeletConfiguration(Section, frozen=True, kw_only=True):
    """The fields that have an effect. Durations in seconds, sizes in bytes."""

    api_version: str = API_VERSION
    kind: str = KIND
    # Where things are
    static_pod_path: str = ""
    static_pod_url: str = msgspec.field(default="", name="staticPodURL")
    static_pod_url_header: dict[str, tuple[str, ...]] = msgspec.field(
        default_factory=dict, name="staticPodURLHeader"
    )
    http_check_frequency: Duration = Duration(20)
    pod_logs_dir: str = "/var/log/pods"
    cgroup_root: str = "/"
    cgroup_driver: str = "cgroupfs"
    container_runtime_endpoint: str = "unix:///run/nodelet/cri.sock"
    resolver_config: str = msgspec.field(default="/etc/resolv.conf", name="resolvConf")
    provider_id: str = ""
    # The server
    enable_server: bool = True
    address: str = "0.0.0.0"  # noqa: S104 - kubelet's default: the API server connects from outside
    port: int = 10250
    healthz_port: int = 10248
    healthz_bind_address: str = "127.0.0.1"
    tls_cert_file: str = ""
    tls_private_key_file: str = ""
    rotate_certificates: bool = False
    server_tls_bootstrap: bool = msgspec.field(default=False, name="serverTLSBootstrap")
    authentication: Authentication = Authentication()
    authorization: Authorization = Authorization()
    # The node
    register_node: bool = True
    register_with_taints: tuple[Taint, ...] = ()
    node_status_update_frequency: Duration = Duration(10)
    node_status_report_frequency: Duration = Duration(300)
    node_lease_duration_seconds: int = 40
    node_status_max_images: int = 50
    max_pods: int = 110
    pod_cidr: str = msgspec.field(default="", name="podCIDR")
    system_reserved: dict[str, str] = {}
    kube_reserved: dict[str, str] = {}
    fail_swap_on: bool = True
    pods_per_core: int = 0
    enforce_node_allocatable: tuple[str, ...] = ("pods",)
    system_reserved_cgroup: str = ""
    kube_reserved_cgroup: str = ""
    memory_swap: MemorySwap = MemorySwap()
    shutdown_grace_period: Duration = Duration(0)
    shutdown_grace_period_critical_pods: Duration = Duration(0)
    shutdown_grace_period_by_pod_priority: tuple[ShutdownByPriority, ...] = ()
    # Pods
    cluster_domain: str = ""
    cluster_dns: tuple[str, ...] = ()
    max_parallel_image_pulls: int | None = None
    pod_pids_limit: int = -1
    cpu_cfs_quota: bool = msgspec.field(default=True, name="cpuCFSQuota")
    cpu_cfs_quota_period: Duration = msgspec.field(default=Duration(0.1), name="cpuCFSQuotaPeriod")
    container_log_max_size: Size = Size(10 << 20)
    container_log_max_files: int = 5
    container_log_monitor_interval: Duration = Duration(10)
    allowed_unsafe_sysctls: tuple[str, ...] = ()
    seccomp_default: bool = False
    crash_loop_back_off: CrashLoopBackOff = CrashLoopBackOff()
    user_namespaces: UserNamespaces = UserNamespaces()
    image_pull_credentials_verification_policy: str = "NeverVerifyPreloadedImages"
    preloaded_images_verification_allowlist: tuple[str, ...] = ()
    oom_score_adj: int = -999
    # Pressure
    eviction_hard: dict[str, str] = msgspec.field(default_factory=lambda: dict(EVICTION_HARD))
    eviction_soft: dict[str, str] = {}
    eviction_soft_grace_period: dict[str, Duration] = {}
    eviction_minimum_reclaim: dict[str, str] = {}
    eviction_pressure_transition_period: Duration = Duration(300)
    eviction_max_pod_grace_period: int = 0
    merge_default_eviction_settings: bool = False
    local_storage_capacity_isolation: bool = True
    image_minimum_gc_age: Duration = Duration(120)
    image_maximum_gc_age: Duration = Duration(0)
    image_gc_high_threshold_percent: int = 85
    image_gc_low_threshold_percent: int = 80


KNOWN = frozenset(field.encode_name for field in msgspec.structs.fields(KubeletConfiguration))


def build(document: dict[str, Any], *, where: str) -> KubeletConfiguration:
    """The configuration of a decoded (and merged) document; `where` names its source in messages.

    Raises:
        InputError: an unknown field, a value of the wrong type, or one out of range.
    """
    used: dict[str, Any] = {}
    for name, value in document.items():
        if name in KNOWN:
            if value is not None:
                used[name] = value
        elif name in UNUSED:
            log.info("configuration field has no effect here field=%s source=%s", name, where)
        else:
            near = difflib.get_close_matches(name, [*KNOWN, *UNUSED], 1)
            hint = f", did you mean {near[0]}?" if near else f", see {API_VERSION}"
            raise InputError(f"{where}: unknown field {name}{hint}")
    used = _go_zero_means_default(used)
    try:
        config = msgspec.convert(used, KubeletConfiguration, dec_hook=decode, strict=False)
    except (msgspec.ValidationError, ValueError) as exc:
        raise InputError(f"{where}: {str(exc).replace('$.', 'field ')}") from exc
    if config.merge_default_eviction_settings:
        merged = {**EVICTION_HARD, **config.eviction_hard}
        config = msgspec.structs.replace(config, eviction_hard=merged)
    _check(config, where)
    return config


def _go_zero_means_default(document: dict[str, Any]) -> dict[str, Any]:
    """kubeadm writes every duration it does not set as "0s"; kubelet reads these as "use the default"."""
    result: dict[str, Any] = {}
    for name, value in document.items():
        if isinstance(value, dict):
            result[name] = _go_zero_means_default(value)
        elif value not in ("0s", "") or name == "resolvConf":  # a pointer in Go: "" means no file
            result[name] = value
    return result


def _check(config: KubeletConfiguration, where: str) -> None:
    if config.api_version != API_VERSION or config.kind != KIND:
        raise InputError(f"{where}: expected apiVersion {API_VERSION}, kind {KIND}, not {config.kind}")
    for name, port in (("port", config.port), ("healthzPort", config.healthz_port)):
        if not 0 <= port <= 65535:
            raise InputError(f"{where}: {name} must be between 0 and 65535, not {port}")
    for network in filter(None, config.pod_cidr.split(",")):
        try:
            ipaddress.ip_network(network.strip())
        except ValueError as exc:
            raise InputError(f"{where}: podCIDR: {exc}") from exc
    if config.cgroup_driver not in ("cgroupfs", "systemd"):
        raise InputError(f"{where}: cgroupDriver must be cgroupfs or systemd, not {config.cgroup_driver!r}")
    if config.image_pull_credentials_verification_policy not in PULL_POLICIES:
        names = ", ".join(PULL_POLICIES)
        raise InputError(f"{where}: imagePullCredentialsVerificationPolicy must be one of {names}")
    longest = config.crash_loop_back_off.max_container_restart_period
    if longest is not None and not 1 <= longest <= 300:
        raise InputError(f"{where}: crashLoopBackOff.maxContainerRestartPeriod must be between 1s and 300s")
    if config.authorization.mode not in ("Webhook", "AlwaysAllow"):
        raise InputError(f"{where}: authorization.mode must be Webhook or AlwaysAllow")
    if bool(config.tls_cert_file) != bool(config.tls_private_key_file):
        raise InputError(f"{where}: tlsCertFile and tlsPrivateKeyFile go together, set both or neither")
    check_resources(config, where)
    if not config.container_runtime_endpoint.startswith(("unix://", "/")):
        raise InputError(f"{where}: containerRuntimeEndpoint must be a unix:// socket")
