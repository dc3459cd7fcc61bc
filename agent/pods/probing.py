"""Which containers of a pod are probed: those that run, and what is known of those from before this agent."""

from __future__ import annotations

from agent.api.structs import Pod
from agent.pods import probe_record, spec
from agent.pods.executor import Executor
from agent.pods.facts import ContainerFact, PodFacts, State
from agent.pods.memory import Memory
from agent.pods.settings import PodSettings
from agent.probes.state import Kind


def sync_probes(pod: Pod, facts: PodFacts, *, memory: Memory, executor: Executor) -> None:
    """Begin to probe what runs, stop probing what does not; nothing new once the pod is being deleted."""
    probes = executor.ports.probes
    running = {c.id: c for c in facts.containers if c.state is State.RUNNING}
    for gone in memory.probed - running.keys():
        probes.remove(gone)
        memory.probed.discard(gone)
    if memory.stop is not None and memory.stop.release:
        return
    ips = executor.pod_ips(pod, facts.sandbox.ips if facts.sandbox else ())
    for fact in running.values():
        container = spec.find_container(pod, fact.name)
        if fact.id in memory.probed or container is None:
            continue
        memory.probed.add(fact.id)
        probes.add(
            pod,
            container,
            container_id=fact.id,
            pod_ip=ips[0] if ips else "",
            started_at=fact.started_at,
            known=None if fact.id in memory.own else known_states(pod, fact, executor.ports.settings),
        )


def known_states(pod: Pod, fact: ContainerFact, settings: PodSettings) -> dict[Kind, bool]:
    """Probe states of a container that ran before this agent process: from disk, or the last status."""
    recorded = probe_record.kept(settings.pod_dir(pod.metadata.uid), fact.name, fact.id)
    if recorded is not None:
        return recorded
    status = pod.status
    for old in (*status.container_statuses, *status.init_container_statuses):
        if old.name == fact.name and old.container_id.endswith(f"//{fact.id}"):
            return {Kind.STARTUP: bool(old.started), Kind.READINESS: old.ready, Kind.LIVENESS: True}
    return {}
