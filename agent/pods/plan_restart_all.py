"""All containers of a pod start anew because one of them ended as a rule says (KEP-5532). Pure.

Sandbox, addresses and volumes stay; everything that ran in it is killed without grace and removed, those last
whose exit asked for it: as long as one of them is there, a crash of the agent forgets nothing. A pod without
containers then starts as any new one does, init containers first.

Source: pkg/kubelet/kuberuntime/kuberuntime_manager.go (getContainersToReset), v1.37.
"""

from __future__ import annotations

from agent.pods.actions import Action, KillContainer, Observed, RemoveContainer
from agent.pods.facts import ContainerFact, State
from agent.pods.plan_stop import retrying


def plan_restart_all(seen: Observed, sources: tuple[ContainerFact, ...]) -> list[Action]:
    """The next actions; empty while those under way go on."""
    actions: list[Action] = []
    for fact in seen.facts.containers:
        if fact.state in (State.RUNNING, State.UNKNOWN):
            text = f"Stopping container {fact.name}, all containers of the pod restart"
            actions += retrying(seen, KillContainer(fact.name, fact.id, seen.now, text, hook=False))
    if not actions and not any(key.startswith("start:") for key in seen.jobs):
        asking = {fact.id for fact in sources}
        others = [fact for fact in seen.facts.containers if fact.id not in asking]
        for fact in others or sources:
            actions += retrying(seen, RemoveContainer(fact.id))
    return [a for a in actions if getattr(a, "key", None) not in seen.jobs]
