"""Carries out a granted resize, step by step (see `plan_resize`). No decisions beyond "did it work".

A memory limit below what is in use is refused before anything is written: the kernel would refuse it half-way
(v1) or kill in the container (v2). The next try comes with the worker's usual back-off.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.api.structs import Pod
from agent.pods import actions
from agent.pods.allocation import summary
from agent.pods.convert import figures
from agent.pods.executor import Executor, JobFailed, with_sandbox
from agent.pods.facts import Figures, State
from agent.pods.memory import Memory
from agent.pods.plan_resize import Step, steps
from agent.pods.ports import Ports
from agent.pods.runtime import RuntimeFailure, RuntimeNotFound
from agent.pods.translate import container_resources
from agent.resources import qos
from host.cgroups import Resources
from host.errors import HostError
from proto.cri import runtime_pb2 as pb

REASON = "Error"


async def resize_pod(executor: Executor, pod: Pod, action: actions.ResizePod, memory: Memory) -> None:
    """ResizePod. Raises JobFailed; what was changed until then stays, and the next plan sees it."""
    ports, uid = executor.ports, pod.metadata.uid
    try:
        await _check_usage(executor, pod, action)
        if action.changes:
            await ports.runtime.update_sandbox(action.sandbox_id, figures_message(action.goal))
        for step in steps(action):
            if step.id:
                await ports.runtime.update_container(step.id, figures_message(step.figures))
                continue
            await ports.cgroups.update(pod, _limits(step))
    except (HostError, RuntimeFailure, _InUse) as exc:
        if memory.resized:
            words = f"Pod resize error: {summary(pod, error=str(exc))}"
            executor.say(pod, "Warning", "ResizeError", words)
        memory.pod_in_force = None
        raise JobFailed(REASON, str(exc), first=1.0, maximum=60.0) from exc
    finally:
        for change in action.changes:
            await _look(executor, uid, change.id)
    memory.pod_in_force = action.goal


class _InUse(Exception):
    """A memory limit is below what is in use."""


async def _check_usage(executor: Executor, pod: Pod, action: actions.ResizePod) -> None:
    shrinking = {c.id: c for c in action.changes if _shrinks(c.now.memory_limit, c.wanted.memory_limit)}
    whole = action.in_force is not None and _shrinks(action.in_force.memory_limit, action.goal.memory_limit)
    problems = []
    if whole:
        usage, limit = executor.ports.cgroups.memory_usage(pod), action.goal.memory_limit
        if usage >= limit:
            problems.append(f"attempting to set pod memory limit ({limit}) below current usage ({usage})")
    for stats in (
        await executor.ports.runtime.container_stats(sandbox_id=action.sandbox_id) if shrinking else ()
    ):
        change = shrinking.get(stats.attributes.id)
        usage = stats.memory.usage_bytes.value
        if change is not None and usage >= change.wanted.memory_limit:
            problems.append(
                f'attempting to set container "{change.container}" memory limit '
                f"({change.wanted.memory_limit}) below current usage ({usage})"
            )
    if problems:
        raise _InUse(f"cannot decrease memory limits: [{', '.join(problems)}]")


def _shrinks(now: int, wanted: int) -> bool:
    return wanted > 0 and (now == 0 or wanted < now)


async def _look(executor: Executor, uid: str, container_id: str) -> None:
    """What the runtime says of a container now: the limits in force are its to tell."""
    try:
        fact = await executor.ports.runtime.container(container_id)
    except RuntimeNotFound:
        executor.ports.observer.forget(uid, [container_id])
        return
    except RuntimeFailure:
        return  # the next relist tells
    known = executor.ports.observer.of(uid).container(container_id)
    if known is not None and fact.state is not State.UNKNOWN:
        executor.ports.observer.learn(uid, containers=[with_sandbox(fact, known.sandbox_id)])


def figures_message(given: Figures) -> pb.LinuxContainerResources:
    """Limits in CRI's terms."""
    return pb.LinuxContainerResources(
        cpu_shares=given.cpu_shares,
        cpu_quota=given.cpu_quota,
        cpu_period=given.cpu_period,
        memory_limit_in_bytes=given.memory_limit,
        memory_swap_limit_in_bytes=given.memory_swap,
    )


def _limits(step: Step) -> Resources:
    given = step.figures
    return Resources(
        cpu_shares=given.cpu_shares or None,
        cpu_quota_us=given.cpu_quota or None,
        cpu_period_us=given.cpu_period or None,
        memory_limit=given.memory_limit or None,
    )


def pod_figures(resources: Resources) -> Figures:
    """A pod cgroup's limits as figures."""
    return Figures(
        cpu_shares=resources.cpu_shares or 0,
        cpu_quota=max(0, resources.cpu_quota_us or 0),
        cpu_period=resources.cpu_period_us or 0,
        memory_limit=max(0, resources.memory_limit or 0),
    )


def granted_figures(pod: Pod, ports: Ports) -> tuple[Mapping[str, Figures], Figures | None]:
    """The limits a pod was granted: of each container by name, and of its cgroup (None: of best effort)."""
    containers = {
        c.name: figures(container_resources(pod, c, ports.settings))
        for c in (*pod.spec.init_containers, *pod.spec.containers)
    }
    if qos.qos_class(pod) == qos.BEST_EFFORT:
        return containers, None
    return containers, pod_figures(ports.cgroups.resources(pod))
