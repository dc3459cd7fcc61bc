"""From an action to the coroutine that carries it out, and from its failure to when it is tried again."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from agent.api.structs import Pod
from agent.pods import actions, spec
from agent.pods.executor import Executor, JobFailed
from agent.pods.memory import Memory
from agent.pods.resize import pod_figures, resize_pod
from agent.pods.restart import retry_delay
from agent.pods.start import start_container


def perform(do: Executor, pod: Pod, action: actions.Job, memory: Memory) -> Coroutine[Any, Any, None]:
    """The job of an action; it raises JobFailed."""
    match action:
        case actions.PrepareVolumes():
            return do.prepare_volumes(pod, memory)
        case actions.RunSandbox():
            return _run_sandbox(do, pod, action, memory)
        case actions.PullImage():
            container = spec.find_container(pod, action.container)
            assert container is not None
            return do.pull_image(pod, container, memory)
        case actions.StartContainer():
            return start_container(do, pod, action, memory)
        case actions.KillContainer():
            return do.kill(pod, action, memory)
        case actions.ResizePod():
            return resize_pod(do, pod, action, memory)
        case actions.RemoveContainer():
            return do.remove_container(pod, action)
        case actions.StopSandbox():
            return do.stop_sandbox(pod, action)
        case actions.RemoveSandbox():
            return do.remove_sandbox(pod, action)
        case actions.TeardownVolumes():
            return do.teardown_volumes(pod, memory)
        case actions.RemoveCgroup():
            return do.remove_cgroup(pod, memory)


async def _run_sandbox(do: Executor, pod: Pod, action: actions.RunSandbox, memory: Memory) -> None:
    given = pod_figures(do.ports.cgroups.resources(pod))
    await do.run_sandbox(pod, action)
    memory.pod_in_force = given


def failure_of(before: actions.Failure | None, exc: JobFailed, now: float) -> actions.Failure:
    """What is remembered of a job that failed, once more or for the first time."""
    count = before.count + 1 if before else 1
    return actions.Failure(
        reason=exc.reason,
        message=exc.message,
        failed=now,
        retry=now + retry_delay(count, first=exc.first, maximum=exc.maximum),
        count=count,
        later=exc.later,
    )
