"""From settings to eviction, garbage collection, reservations and swap: the resources' part of `startup`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from agent import startup
from agent.api.structs import Pod
from agent.config.checks import eviction_thresholds
from agent.config.kubelet import KubeletConfiguration
from agent.config.load import Settings
from agent.node import facts
from agent.node.facts import Machine
from agent.node.oom import OomWatcher
from agent.node.shutdown import ShutdownManager, Stage, stages
from agent.pods.manager import PodManager
from agent.pods.runtime import Runtime, RuntimeFailure
from agent.pods.settings import PodSettings
from agent.resources.cgroup_driver import cgroups_of
from agent.resources.eviction import signals
from agent.resources.eviction.manager import EvictionManager, EvictionSettings
from agent.resources.eviction.measure import RuntimePlaces, SignalReader, limited_memory
from agent.resources.eviction.signals import Observation
from agent.resources.eviction.usage import UsageReader
from agent.resources.image_gc import ImageCollector, ImagePolicy
from agent.resources.node_allocatable import pods_limits, reserved_limits
from agent.resources.pod_cgroups import PodCgroups, kubepods_path
from agent.resources.qos import GUARANTEED
from agent.resources.swap import SwapPolicy
from host.cgroups import Cgroups, Resources
from host.clocks import Clock
from host.errors import HostError, InputError

if TYPE_CHECKING:
    from host.logind import Logind


class Say(Protocol):
    """Records an event about the node."""

    def __call__(self, reason: str, message: str, *, kind: str = "Warning") -> None: ...


async def load_cgroups(settings: Settings, clock: Clock) -> Cgroups:
    """The machine's cgroups under the driver of the runtime; waits for the runtime where that is open.

    Raises:
        InputError: the machine cannot have that driver.
        HostError: systemd does not answer.
    """
    runtime = Runtime(endpoint=startup.endpoint(settings.kubelet.container_runtime_endpoint))
    await runtime.open()
    try:
        return await cgroups_of(
            runtime.cgroup_driver,
            configured=settings.kubelet.cgroup_driver,
            failures=(RuntimeFailure,),
            clock=clock,
        )
    finally:
        await runtime.close()


def machine(settings: Settings, cgroups: Cgroups) -> Machine:
    """What this machine has; a node confined to a cgroup with a memory limit has only that memory."""
    limited = limited_memory(cgroups, cgroups.nested_path(settings.kubelet.cgroup_root))
    return facts.read_machine(memory_limit=limited.capacity if limited else 0)


def max_pods(kubelet: KubeletConfiguration, machine: Machine) -> int:
    """maxPods, or what podsPerCore allows when that is less."""
    per_core = kubelet.pods_per_core * machine.cpus
    return min(kubelet.max_pods, per_core) if per_core > 0 else kubelet.max_pods


def swap_policy(settings: Settings, machine: Machine, cgroups: Cgroups) -> SwapPolicy:
    """How pods use swap."""
    return SwapPolicy(
        limited=settings.kubelet.memory_swap.swap_behavior == "LimitedSwap",
        accounting=cgroups.swap_accounting,
        total=machine.swap,
        memory=machine.memory,
    )


def all_pods(settings: Settings, machine: Machine) -> Resources | None:
    """Limits of all pods together; None when enforceNodeAllocatable leaves them alone."""
    kubelet = settings.kubelet
    if "pods" not in kubelet.enforce_node_allocatable:
        return None
    return pods_limits(machine, (kubelet.system_reserved, kubelet.kube_reserved))


def enforce(settings: Settings, cgroups: Cgroups, pods: PodCgroups, say: Say) -> None:
    """Put the limits on the cgroups above all pods and on those of the system, before any pod is started.

    A limit on all pods that the kernel refuses (they use more already) is told and tried again with the next
    pod; the node runs meanwhile.

    Raises:
        InputError: see `enforce_reserved`.
        HostError: the kernel refuses a limit of the system's cgroups.
    """
    enforce_reserved(settings, cgroups)
    try:
        pods.ensure_levels()
    except HostError as exc:
        text = f"Failed to update Node Allocatable Limits: {exc}"
        say("FailedNodeAllocatableEnforcement", text)
        return
    if "pods" in settings.kubelet.enforce_node_allocatable:
        text = "Updated Node Allocatable limit across pods"
        say("NodeAllocatableEnforced", text, kind="Normal")


def enforce_reserved(settings: Settings, cgroups: Cgroups) -> None:
    """Limit the cgroups that systemReserved and kubeReserved are for, where that is asked for.

    Raises:
        InputError: such a cgroup is not there; nobody but the administrator knows what belongs in it.
        HostError: the kernel refuses a limit.
    """
    kubelet = settings.kubelet
    for word, field, path, reserved in (
        ("system-reserved", "systemReservedCgroup", kubelet.system_reserved_cgroup, kubelet.system_reserved),
        ("kube-reserved", "kubeReservedCgroup", kubelet.kube_reserved_cgroup, kubelet.kube_reserved),
    ):
        if word not in kubelet.enforce_node_allocatable:
            continue
        if not cgroups.exists(path):
            raise InputError(
                f"{field} {path} is not there: make it, or take {word} out of enforceNodeAllocatable"
            )
        cgroups.update(path, reserved_limits(reserved))


def places(runtime: Runtime) -> Callable[[], Awaitable[RuntimePlaces | None]]:
    """Asks the runtime where its folders are."""

    async def ask() -> RuntimePlaces | None:
        try:
            answer = await runtime.image_fs()
        except RuntimeFailure:
            return None
        images = [each.fs_id.mountpoint for each in answer.image_filesystems]
        layers = [each.fs_id.mountpoint for each in answer.container_filesystems]
        return RuntimePlaces(images=images[0] if images else "", layers=layers[0] if layers else "")

    return ask


def signal_reader(settings: Settings, *, runtime: Runtime, cgroups: Cgroups) -> SignalReader:
    """What reads the eviction signals."""
    kubelet = settings.kubelet
    enforced = "pods" in kubelet.enforce_node_allocatable
    return SignalReader(
        root=settings.root,
        cgroups=cgroups,
        cgroup_root=cgroups.nested_path(kubelet.cgroup_root),
        pods_cgroup=kubepods_path(cgroups, kubelet.cgroup_root, GUARANTEED) if enforced else "",
        places=places(runtime),
    )


def pod_cgroups(settings: Settings, machine: Machine, cgroups: Cgroups) -> PodCgroups:
    """What makes the cgroups of pods and those above them."""
    kubelet = settings.kubelet
    return PodCgroups(
        cgroups=cgroups,
        root=kubelet.cgroup_root,
        pids_limit=kubelet.pod_pids_limit,
        cpu_quota=kubelet.cpu_cfs_quota,
        period_us=round(kubelet.cpu_cfs_quota_period * 1e6),
        all_pods=all_pods(settings, machine),
    )


@dataclass(frozen=True)
class Guards:
    """The components that keep the node from running out, or pods from being cut off."""

    eviction: EvictionManager
    images: ImageCollector
    shutdown: ShutdownManager
    oom: OomWatcher

    def parts(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What has to be run, by name."""
        return {
            "eviction": self.eviction.run,
            "image-gc": self.images.run,
            "shutdown": self.shutdown.run,
            "oom": self.oom.run,
        }


def guards(
    settings: Settings,
    pod_settings: PodSettings,
    *,
    manager: PodManager,
    runtime: Runtime,
    cgroups: Cgroups,
    pod_cgroup: Callable[[Pod], str],
    clock: Clock,
    say: Say,
    on_change: Callable[[], None],
) -> Guards:
    """Eviction and image collection.

    Args:
        pod_cgroup: path of a pod's cgroup.
        on_change: called when the node's pressures have changed.
    """
    kubelet = settings.kubelet
    reader = signal_reader(settings, runtime=runtime, cgroups=cgroups)
    images = _image_collector(kubelet, manager, runtime, reader, clock, say)
    usage = UsageReader(
        stats=runtime.container_stats,
        failures=(RuntimeFailure,),
        cgroups=cgroups,
        pod_cgroup=pod_cgroup,
        settings=pod_settings,
    )
    eviction = EvictionManager(
        EvictionSettings(
            thresholds=eviction_thresholds(kubelet),
            transition=kubelet.eviction_pressure_transition_period,
            max_soft_grace=kubelet.eviction_max_pod_grace_period,
            local_storage=kubelet.local_storage_capacity_isolation,
        ),
        clock=clock,
        read=reader.read,
        usage=usage.read,
        pods=manager.ending,
        reclaim={"containers": manager.garbage.delete_dead, "images": images.delete_unused},
        say=say,
        on_change=on_change,
    )
    shutdown = _shutdown_manager(kubelet, manager, clock, say, on_change)
    return Guards(eviction, images, shutdown, OomWatcher(say=say))


def _shutdown_manager(
    kubelet: KubeletConfiguration, pods: PodManager, clock: Clock, say: Say, on_change: Callable[[], None]
) -> ShutdownManager:
    def connect() -> Logind:
        from host.logind import Logind  # brings a D-Bus library along, which few nodes need

        return Logind()

    given = stages(
        all_pods=kubelet.shutdown_grace_period,
        critical=kubelet.shutdown_grace_period_critical_pods,
        by_priority=[
            Stage(each.priority, each.shutdown_grace_period_seconds)
            for each in kubelet.shutdown_grace_period_by_pod_priority
        ],
    )
    return ShutdownManager(
        given,
        connect=connect,
        pods=pods.ending,
        clock=clock,
        say=lambda reason, text: say(reason, text, kind="Normal"),
        on_change=on_change,
    )


def _image_collector(
    kubelet: KubeletConfiguration,
    pods: PodManager,
    runtime: Runtime,
    reader: SignalReader,
    clock: Clock,
    say: Say,
) -> ImageCollector:
    async def disk() -> Observation | None:
        return (await reader.read()).seen.get(signals.IMAGE_FS)

    policy = ImagePolicy(
        high=kubelet.image_gc_high_threshold_percent,
        low=kubelet.image_gc_low_threshold_percent,
        minimum_age=kubelet.image_minimum_gc_age,
        maximum_age=kubelet.image_maximum_gc_age,
    )
    return ImageCollector(
        policy,
        clock=clock,
        runtime=runtime,
        failures=(RuntimeFailure, OSError),
        used=pods.garbage.images_in_use,
        disk=disk,
        say=say,
        prune=pods.prune_pulls,
    )
