"""Checks of KubeletConfiguration on eviction, garbage collection, reservations, logs and shutdown. Pure.

Source: pkg/kubelet/apis/config/validation/validation.go (v1.37).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.api import quantity
from agent.resources.eviction.signals import Threshold, thresholds
from host.errors import InputError

if TYPE_CHECKING:
    from agent.config.kubelet import KubeletConfiguration

ENFORCEABLE = ("pods", "system-reserved", "kube-reserved", "none")
_RESERVABLE = ("cpu", "memory", "ephemeral-storage", "pid")


def eviction_thresholds(config: KubeletConfiguration) -> tuple[Threshold, ...]:
    """All thresholds of the configuration. Raises ValueError naming the field."""
    return thresholds(
        hard=config.eviction_hard,
        soft=config.eviction_soft,
        grace=config.eviction_soft_grace_period,
        reclaim=config.eviction_minimum_reclaim,
        allocatable="pods" in config.enforce_node_allocatable,
    )


def check_resources(config: KubeletConfiguration, where: str) -> None:
    """Refuse what contradicts itself. Raises InputError naming the field and the fix."""
    try:
        eviction_thresholds(config)
        _check_reserved(config)
    except ValueError as exc:
        raise InputError(f"{where}: {exc}") from exc
    high, low = config.image_gc_high_threshold_percent, config.image_gc_low_threshold_percent
    if not 0 <= low <= 100 or not 0 <= high <= 100 or (high < 100 and low >= high):
        raise InputError(
            f"{where}: imageGCLowThresholdPercent {low} must be below imageGCHighThresholdPercent {high}, "
            "both between 0 and 100"
        )
    if 0 < config.image_maximum_gc_age <= config.image_minimum_gc_age:
        raise InputError(f"{where}: imageMaximumGCAge must be longer than imageMinimumGCAge, or 0")
    if config.memory_swap.swap_behavior not in ("", "NoSwap", "LimitedSwap"):
        behaviour = config.memory_swap.swap_behavior
        raise InputError(f"{where}: memorySwap.swapBehavior must be NoSwap or LimitedSwap, not {behaviour!r}")
    _check_logs(config, where)
    _check_shutdown(config, where)


def _check_reserved(config: KubeletConfiguration) -> None:
    for field, reserved in (
        ("systemReserved", config.system_reserved),
        ("kubeReserved", config.kube_reserved),
    ):
        for name, text in reserved.items():
            if name not in _RESERVABLE:
                raise ValueError(f"{field}: {name!r} cannot be reserved, only {', '.join(_RESERVABLE)}")
            if quantity.parse(str(text)) < 0:
                raise ValueError(f"{field}.{name}: {text} is negative")
    enforced = config.enforce_node_allocatable
    for word in enforced:
        if word not in ENFORCEABLE:
            raise ValueError(f"enforceNodeAllocatable: {word!r} is none of {', '.join(ENFORCEABLE)}")
    if "none" in enforced and len(enforced) > 1:
        raise ValueError("enforceNodeAllocatable: none goes with nothing else")
    for word, field, cgroup in (
        ("system-reserved", "systemReservedCgroup", config.system_reserved_cgroup),
        ("kube-reserved", "kubeReservedCgroup", config.kube_reserved_cgroup),
    ):
        if word in enforced and not cgroup:
            raise ValueError(f"enforceNodeAllocatable {word} needs {field}: name the cgroup to limit")


def _check_logs(config: KubeletConfiguration, where: str) -> None:
    if config.container_log_max_files < 2:
        raise InputError(
            f"{where}: containerLogMaxFiles must be 2 or more: one is written while another is kept"
        )
    if config.container_log_monitor_interval < 3:
        raise InputError(f"{where}: containerLogMonitorInterval must be 3s or more")


def _check_shutdown(config: KubeletConfiguration, where: str) -> None:
    all_pods, critical = config.shutdown_grace_period, config.shutdown_grace_period_critical_pods
    if critical > all_pods or (0 < all_pods < 1) or (0 < critical < 1):
        raise InputError(
            f"{where}: shutdownGracePeriodCriticalPods is part of shutdownGracePeriod and must not be "
            "longer; each is 0 or at least 1s"
        )
    if config.shutdown_grace_period_by_pod_priority and (all_pods or critical):
        raise InputError(
            f"{where}: shutdownGracePeriodByPodPriority and shutdownGracePeriod exclude each other, set one"
        )
