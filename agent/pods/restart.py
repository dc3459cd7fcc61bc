"""When a dead container is started again, and when never: restart policies and the crash back-off. Pure.

The back-off is kubelet's: the first restart is immediate, then 10 s, 20 s, … up to a maximum, counted from
the container's exit; a container that kept running for ten minutes starts over. All times are monotonic.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.api.structs import Container, Pod, PodStatus
from agent.pods import spec
from agent.pods.facts import ContainerFact, PodFacts, State

CRASH_INITIAL = 10.0
CRASH_MAXIMUM = 300.0
CRASH_RESET = 600.0
RESTART_ALL = "RestartAllContainers"


@dataclass(frozen=True)
class Backoff:
    """A container's crash history: the wait before its next restart, and when it was last started."""

    delay: float = 0.0
    started: float = 0.0


def restart_at(backoff: Backoff | None, exited: float) -> float:
    """The earliest monotonic time of the next start of a container that exited then."""
    if backoff is None or exited - backoff.started >= CRASH_RESET:
        return exited
    return exited + backoff.delay


def after_start(
    backoff: Backoff | None, *, exited: float, now: float, maximum: float = CRASH_MAXIMUM
) -> Backoff:
    """The history after a *re*start at `now` of a container that had exited at `exited`."""
    if backoff is None or backoff.delay == 0 or exited - backoff.started >= CRASH_RESET:
        return Backoff(min(CRASH_INITIAL, maximum), now)
    return Backoff(min(backoff.delay * 2, maximum), now)


def retry_delay(count: int, *, first: float, maximum: float) -> float:
    """Seconds to wait after the count-th failure in a row (1 = the first)."""
    return min(maximum, first * 2 ** min(count - 1, 16))


def restarts(pod: Pod, container: Container, exit_code: int) -> bool:
    """Whether the policies want a container that exited so to run again.

    Container rules first (KEP-5307), then the container's own policy, then the pod's.
    """
    if rule_action(container, exit_code) in ("Restart", RESTART_ALL):
        return True
    policy = policy_of(pod, container)
    if any(c.name == container.name for c in pod.spec.init_containers) and policy == "Always":
        # An init container under a pod policy Always repeats only until it has succeeded.
        return spec.is_sidecar(container) or exit_code != 0
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def rule_action(container: Container, exit_code: int) -> str:
    """What the first rule says that matches an exit code; empty when none does (KEP-5307, KEP-5532)."""
    for rule in container.restart_policy_rules:
        codes = rule.exit_codes
        if codes is not None and (exit_code in codes.values) == (codes.operator == "In"):
            return rule.action
    return ""


def may_restart_all(pod: Pod) -> bool:
    """Whether an exit of one container can restart them all."""
    every = (*pod.spec.init_containers, *pod.spec.containers)
    return any(rule.action == RESTART_ALL for c in every for rule in c.restart_policy_rules)


def restart_all_sources(pod: Pod, facts: PodFacts) -> tuple[ContainerFact, ...]:
    """The containers whose exits ask for all to be restarted."""
    found = []
    for container in (*pod.spec.init_containers, *pod.spec.containers):
        fact = facts.latest(container.name)
        ended = fact is not None and fact.state is State.EXITED
        if fact is not None and ended and rule_action(container, fact.exit_code) == RESTART_ALL:
            found.append(fact)
    return tuple(found)


def wants_start(
    pod: Pod, container: Container, fact: ContainerFact | None, again: frozenset[str] = frozenset()
) -> bool:
    """Whether a container is to be started, now or after its back-off; `again`: ids killed to run again."""
    if fact is None or fact.state in (State.CREATED, State.UNKNOWN) or (fact.dead and fact.id in again):
        return True
    if fact.state is State.RUNNING:
        return False
    return restarts(pod, container, fact.exit_code)


def policy_of(pod: Pod, container: Container) -> str:
    """Always, OnFailure or Never: the container's own policy, or the pod's."""
    return container.restart_policy or pod.spec.restart_policy


def next_restarts(status: PodStatus) -> dict[str, int]:
    """What each container's next run counts as, going by the status alone."""
    every = (*status.init_container_statuses, *status.container_statuses)
    return {s.name: s.restart_count + (1 if s.state.terminated else 0) for s in every}


def finished(pod: Pod, facts: PodFacts, again: frozenset[str] = frozenset()) -> bool:
    """Whether the work is over for good: every app container ended, or an init container failed finally."""
    for container in pod.spec.init_containers:
        fact = facts.latest(container.name)
        if (
            not spec.is_sidecar(container)
            and fact is not None
            and fact.state is State.EXITED
            and fact.exit_code != 0
            and not restarts(pod, container, fact.exit_code)
        ):
            return True
    for container in pod.spec.containers:
        fact = facts.latest(container.name)
        if fact is None or fact.alive or wants_start(pod, container, fact, again):
            return False
    return bool(pod.spec.containers)
