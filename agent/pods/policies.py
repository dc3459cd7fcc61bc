"""A pod's containers start only when the network policies that concern it are in force."""

from __future__ import annotations

from collections.abc import Sequence

from agent.api.structs import Pod
from agent.pods import spec
from agent.pods.executor import Executor, JobFailed, within

LIMIT = 30.0
"""Seconds that a start waits for policies before it is told as failed and tried again."""


class NoPolicies:
    """`agent.pods.ports.PolicyPort` where nothing enforces NetworkPolicy."""

    problem = ""

    async def ready(self, pod: Pod, ips: Sequence[str], *, early: bool) -> None:
        """At once."""

    def forget(self, uid: str) -> None:
        """Nothing is remembered."""


async def await_policies(
    executor: Executor, pod: Pod, ips: Sequence[str], *, container: str, early: bool
) -> None:
    """Return when policies are in force for the pod at these addresses.

    Args:
        early: whether the pod ran before this agent and the API has not been reached since: what the kernel
            holds of policies then is what the agent before it knew.

    Raises:
        JobFailed: they are not after LIMIT; nothing was started.
    """
    ports = executor.ports
    try:
        await within(ports.clock, LIMIT, ports.policies.ready(pod, ips, early=early or spec.is_static(pod)))
    except TimeoutError as exc:
        why = ports.policies.problem or "the kernel has not answered"
        text = f"network policies are not in force after {LIMIT:g} s: {why}"
        executor.say(pod, "Warning", "FailedNetworkPolicy", text, container=container)
        raise JobFailed("ContainerCreating", text, first=1.0, maximum=15.0) from exc
