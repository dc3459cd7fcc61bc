"""What the pods component is told once: names, paths and limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from agent.pods.id_pool import IdPool
from agent.pods.naming import Dns
from agent.resources.swap import SwapPolicy


@dataclass(frozen=True, kw_only=True)
class PodSettings:
    """Settings of one node's pods; the names in parentheses are KubeletConfiguration's."""

    node_name: str
    host_ips: tuple[str, ...] = ()
    """The node's addresses, the primary one first."""
    root: Path = Path("/var/lib/kubelet")
    """The agent root; pods live in `pods/<uid>` below it."""
    log_root: Path = Path("/var/log/pods")
    """Pod logs (podLogsDir)."""
    cgroup_root: str = "/"
    """Below which `kubepods` stands, relative to each hierarchy's mount (cgroupRoot)."""
    cluster_dns: tuple[str, ...] = ()
    """Addresses of the cluster's DNS service (clusterDNS)."""
    cluster_domain: str = "cluster.local"
    """The cluster's domain (clusterDomain)."""
    host_dns: Callable[[], Dns] = Dns
    """What the node's resolv.conf (resolvConf) says now."""
    max_pods: int = 110
    """Pods the node takes (maxPods)."""
    cpu_quota: bool = True
    """Whether CPU limits are enforced (cpuCFSQuota)."""
    cpu_quota_period_us: int = 100_000
    """Length of the period CPU limits count in (cpuCFSQuotaPeriod)."""
    seccomp_default: bool = False
    """Whether RuntimeDefault stands for an absent seccomp profile (seccompDefault)."""
    max_restart_delay: float = 300.0
    """Longest wait in seconds between restarts of a crashing container
    (crashLoopBackOff.maxContainerRestartPeriod)."""
    max_parallel_pulls: int = 10
    """Images pulled at the same time (maxParallelImagePulls); 1 is kubelet's serializeImagePulls."""
    swap: SwapPolicy = field(default_factory=SwapPolicy)
    """How pods use swap (memorySwap)."""
    hugepage_sizes: tuple[str, ...] = ()
    """Huge page resources of the node; a container that asks for none of a size may use none."""
    pull_verification: str = "NeverVerifyPreloadedImages"
    """When a pod must hold credentials of an image that is there (imagePullCredentialsVerificationPolicy)."""
    preloaded_images: tuple[str, ...] = ()
    """Names that need none with NeverVerifyAllowlistedImages (preloadedImagesVerificationAllowlist)."""
    memory_capacity: int = 0
    """The node's memory in bytes, for OOM scores."""
    unsafe_sysctls: tuple[str, ...] = ()
    """Patterns of sysctls that pods may set besides the safe ones (allowedUnsafeSysctls)."""
    crash_log_lines: int = 3
    """Last lines of a crashed container's log that its event shows (crashLogLines)."""
    hold_termination: float = 0.0
    """Longest wait in seconds, within the grace, for this node's service rules to let go of a pod that ends
    (holdTermination)."""
    dead_per_container: int = 1
    """Dead containers kept of each container besides the newest, negative: all
    (--maximum-dead-containers-per-container)."""
    dead_in_all: int = -1
    """Dead containers kept on the node, negative: no limit (--maximum-dead-containers)."""
    dead_minimum_age: float = 0.0
    """Seconds a container has to be dead before it is removed (--minimum-container-ttl-duration)."""
    id_pool: IdPool = field(default_factory=IdPool)
    """Ids for pods with user namespaces of their own (userNamespaces.idsPerPod, /etc/subuid)."""
    relist_seconds: float = 60.0
    """How often everything is compared with the runtime's lists, as a net below its events."""

    @property
    def links_dir(self) -> Path:
        """The flat directory of log links beside the pod logs (/var/log/containers)."""
        return self.log_root.parent / "containers"

    def pod_dir(self, uid: str) -> Path:
        """The pod's own directory."""
        return self.root / "pods" / uid

    def log_dir(self, namespace: str, name: str, uid: str) -> Path:
        """Where the pod's container logs are."""
        return self.log_root / f"{namespace}_{name}_{uid}"
