"""The pods of this node: the component that runs them and answers questions about them.

Where a pod goes: API watch or static manifest → store → the pod's own worker → `plan` → runtime calls; and
its facts come back: runtime events → observer → the same worker → `status` → one PATCH. This module only
joins those parts: it gives each pod uid a worker, asks admission before the first step, and hands what is
left of unknown pods to a worker that only cleans up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from agent.api.structs import ObjectMeta, Pod, Service
from agent.devices.grants import NoDevices
from agent.pods import checkpoint, probe_record, spec
from agent.pods.allocation import Allocations
from agent.pods.directory import PodDirectory
from agent.pods.ending import PodEnding
from agent.pods.executor import Executor
from agent.pods.facts import PodFacts
from agent.pods.garbage import ContainerCollector
from agent.pods.images import ImagePuller
from agent.pods.observer import Observer
from agent.pods.policies import NoPolicies
from agent.pods.ports import DevicePort, EventPort, PolicyPort, Ports, ProbePort, VolumePort
from agent.pods.resizes import Resizes
from agent.pods.runtime import Runtime
from agent.pods.security import check_sysctls
from agent.pods.settings import PodSettings
from agent.pods.status import Verdict
from agent.pods.status_writer import StatusWriter
from agent.pods.timeline import Timelines
from agent.pods.user_namespaces import UserNamespaces
from agent.pods.worker import TERMINAL, PodWorker
from agent.probes.manager import ProbeFailure, ProbeResult
from agent.probes.state import Kind
from agent.resources import preemption
from agent.resources.admission import NodeFacts, Rejection
from agent.resources.pod_cgroups import PodCgroups
from agent.resources.preemption import admit_or_preempt
from agent.server.exposition import Family
from agent.volumes.base import Sources
from host.clocks import Clock

log = logging.getLogger(__name__)
_SWEEP_SECONDS = 60.0
_API_SECONDS = 5.0  # until the API counts as away: its word is better than a record, and mostly there at once
_API = "api"


class PodManager(PodDirectory):
    """Runs the pods of one node.

    `run` owns every task and returns when cancelled, leaving containers running. `routed` says whether
    services of this node send new connections to a pod at some addresses; who makes their rules sets it.
    Pods come in by `put` and `remove` (from informer callbacks and static manifests, in the event loop);
    `complete` says that a source has told everything it has, after which leftovers may be cleaned up.

    Args:
        settings: names, paths and limits.
        clock: time.
        runtime: the CRI client, open.
        volumes, events, sources: see agent.pods.ports.
        cgroups: pod cgroups, with the node's root.
        services: the services a pod's environment lists; None until they are known.
        node: the node as admission sees it, asked for each new pod.
        writer: writes statuses; its `target` should be `status_target`.
        probes: made by the caller with `on_probe_result` and `on_probe_failure` as callbacks.
        policies: says when a pod's network policies are in force; None where there are none.
        devices: the node's device plugins; None where there are none.
        await_sources: names of the sources that `complete` will report.
    """

    routed: Callable[[Collection[str]], bool] = staticmethod(lambda ips: False)

    def __init__(
        self,
        *,
        settings: PodSettings,
        clock: Clock,
        runtime: Runtime,
        volumes: VolumePort,
        events: EventPort,
        sources: Sources,
        cgroups: PodCgroups,
        services: Callable[[], Sequence[Service] | None],
        node: Callable[[], NodeFacts],
        writer: StatusWriter,
        probes: ProbePort,
        policies: PolicyPort | None = None,
        devices: DevicePort | None = None,
        await_sources: Iterable[str] = (_API,),
        runtime_name: str = "nodelet-cri",
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._node = node
        self._writer = writer
        self._probes = probes
        self._waiting = set(await_sources)
        self._next: dict[str, Pod] = {}
        """Static pods that wait for the one of the same name before them, by that one's uid."""
        self.on_static_change: Callable[[], None] = lambda: None
        """Called when static pods or mirrors changed (see agent.pods.mirror)."""
        self.timelines = Timelines(clock)
        relist, changed = settings.relist_seconds, self._facts_changed
        observer = Observer(runtime=runtime, clock=clock, on_change=changed, relist_seconds=relist)
        super().__init__(observer)
        self._ports = Ports(
            settings=settings,
            clock=clock,
            runtime=runtime,
            observer=observer,
            images=ImagePuller(runtime=runtime, clock=clock, settings=settings),
            volumes=volumes,
            probes=probes,
            events=events,
            statuses=writer,
            sources=sources,
            cgroups=cgroups,
            policies=policies or NoPolicies(),
            devices=devices or NoDevices(),
            timelines=self.timelines,
            users=UserNamespaces(settings.id_pool, settings.root),
            services=services,
            routed=lambda ips: self.routed(ips),
            allocatable=lambda: node().allocatable,
            runtime_name=runtime_name,
        )
        self._executor = Executor(self._ports)
        self.ending = PodEnding(self._workers, executor=self._executor, clock=clock)
        """Ends pods for the node's sake."""
        self.garbage = ContainerCollector(self._workers, executor=self._executor)
        """Removes dead containers."""
        self.volume_image = self._executor.volume_image
        self._resizes = self._make_resizes()
        self._held: list[Pod] | None = []
        """Pods that came before the runtime's first list, without which they could be started twice."""

    def _make_resizes(self) -> Resizes:
        return Resizes(
            Allocations(self._settings.root),
            active=lambda: (w for w in self._workers.values() if self._active(w)),
            node=self._node,
            clock=self._clock,
            say=self._executor.say,
        )

    async def run(self) -> None:
        """Run until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.observer.run(), name="observer")
                group.create_task(self._begin(), name="pods begin")
                group.create_task(self._take_up(), name="pods without the API")
                group.create_task(self._sweep_forever(), name="orphans")
                group.create_task(self.garbage.run(), name="dead containers")
        finally:
            await asyncio.gather(*(worker.close() for worker in self._workers.values()))
            await self._writer.close()

    async def _begin(self) -> None:
        await self.observer.synced.wait()
        held, self._held = self._held or [], None
        for pod in held:
            self.put(pod)
        for worker in self._workers.values():
            worker.poke()  # a second run of this component finds its workers asleep
        self._sweep()

    # --- sources ------------------------------------------------------------------------------------------

    def put(self, pod: Pod) -> None:
        """A pod of this node, new or changed."""
        if spec.is_mirror(pod):
            self._put_mirror(pod)
            return
        if self._held is not None:
            self._held = [p for p in self._held if p.metadata.uid != pod.metadata.uid] + [pod]
            return
        worker = self._workers.get(pod.metadata.uid)
        if worker is not None:
            if worker.memory.unconfirmed:
                worker.memory.unconfirmed = False
                self._writer.forget(worker.uid)  # only now is it known which status the API has
            self._resizes.update(worker, pod)
            return
        self._supersede(pod)
        if spec.is_static(pod):
            self.on_static_change()
            before = self._find(pod.metadata.namespace, pod.metadata.name, None)
            if before is not None:
                self._next[before.uid] = pod
                return
        worker = PodWorker(self._resizes.view(pod), executor=self._executor, on_finished=self._finished)
        verdict, gone = self._admission(worker.pod)
        worker.start_after(gone)
        self._workers[pod.metadata.uid] = worker
        if verdict is not None:
            self._executor.say(pod, "Warning", verdict.reason, verdict.message)
            worker.fail(verdict)
        elif pod.metadata.deletion_timestamp is None and pod.status.phase not in TERMINAL:
            self._resizes.admitted(pod)
            self._resizes.update(worker, pod)
        worker.poke()

    def _supersede(self, pod: Pod) -> None:
        """An API pod of this name under another uid was deleted while we were not told of it."""
        meta = pod.metadata
        for worker in list(self._workers.values()):
            other = worker.pod.metadata
            same = (other.namespace, other.name) == (meta.namespace, meta.name)
            if same and not spec.is_static(worker.pod) and not spec.is_static(pod) and not worker.removed:
                self.remove(worker.pod)

    def remove(self, pod: Pod) -> None:
        """A pod's object or manifest is gone."""
        uid = pod.metadata.uid
        if spec.is_mirror(pod):
            self._mirrors.pop(uid, None)
            self._writer.forget(uid)
            self.on_static_change()
            return
        if self._held is not None:
            self._held = [p for p in self._held if p.metadata.uid != uid]
            return
        if spec.is_static(pod):
            self.on_static_change()
            self._next = {key: p for key, p in self._next.items() if p.metadata.uid != uid}
        self._writer.forget(uid)
        worker = self._workers.get(uid)
        if worker is not None:
            worker.update(self._resizes.view(pod), desired=pod)
            worker.remove()

    def complete(self, source: str) -> None:
        """A source has told all its pods for the first time: what nobody knows is left over from before."""
        self._waiting.discard(source)
        if source == _API:
            for worker in [w for w in self._workers.values() if w.memory.unconfirmed]:
                self.remove(worker.pod)
        if self._held is None:
            self._sweep()

    async def _take_up(self) -> None:
        """Go on with the API's pods that run since before this agent, unless the API soon has its say."""
        await self.observer.synced.wait()
        await self._clock.sleep(_API_SECONDS)
        if _API not in self._waiting:
            return
        for pod in checkpoint.kept(self._settings.root):
            box = self.observer.of(pod.metadata.uid).sandbox
            if box is None or not box.ready or self._find(pod.metadata.namespace, pod.metadata.name, None):
                continue  # it does not run, or the API has told of it, or of its successor
            log.info("pod known from its record, the API is away pod=%s", spec.full_name(pod))
            self.put(pod)
            self._workers[pod.metadata.uid].memory.unconfirmed = True

    def _put_mirror(self, mirror: Pod) -> None:
        self._mirrors[mirror.metadata.uid] = mirror
        self.on_static_change()
        key = mirror.metadata.annotations.get(spec.MIRROR_ANNOTATION, "")
        for worker in self._workers.values():
            if worker.pod.metadata.annotations.get(spec.HASH_ANNOTATION) == key:
                worker.poke()

    def _admission(self, pod: Pod) -> tuple[Verdict | None, list[PodWorker]]:
        """Why the pod is refused, None when it may run or already did; and what is ended to make room."""
        facts = self.observer.of(pod.metadata.uid)
        if pod.metadata.deletion_timestamp or pod.status.phase in TERMINAL or not facts.empty:
            return None, []
        others = [w.pod for w in self._workers.values() if self._active(w)]
        ending: list[PodWorker] = []
        forbidden = check_sysctls(pod, self._settings)
        if forbidden:
            refused: Rejection | None = Rejection("SysctlForbidden", forbidden)
        else:
            refused, gone = admit_or_preempt(pod, others, self._node())
            for other in gone:
                self._executor.say(other, "Warning", preemption.REASON, preemption.MESSAGE)
                verdict = Verdict(reason=preemption.REASON, message=preemption.MESSAGE, disruption=True)
                self.ending.end(other, verdict)
                ending.append(self._workers[other.metadata.uid])
        if refused is None:
            shortage = self._ports.devices.reserve(pod)
            if not shortage:
                return None, ending
            words = f"Allocate failed due to {shortage}, which is unexpected"
            refused = Rejection("UnexpectedAdmissionError", words)
        text = f"Pod was rejected: {refused.message}"
        return Verdict(reason=refused.reason, message=text), []

    @staticmethod
    def _active(worker: PodWorker) -> bool:
        return (
            not worker.removed
            and worker.memory.verdict is None
            and worker.memory.status.phase not in TERMINAL
        )

    def over(self, uid: str) -> bool:
        """Whether a pod has ended or was refused: what was set aside for it is free."""
        worker = self._workers.get(uid)
        return worker is not None and not self._active(worker)

    # --- what comes back ----------------------------------------------------------------------------------

    def services_changed(self) -> None:
        """This node's service rules are new: pods that end may have waited for it."""
        for worker in self._workers.values():
            if worker.memory.stop is not None:
                worker.poke()

    def _facts_changed(self, uid: str) -> None:
        worker = self._workers.get(uid)
        if worker is not None:
            worker.poke()

    def _finished(self, uid: str) -> None:
        worker = self._workers.pop(uid, None)
        self._resizes.forget(uid)
        self._ports.users.release(uid)
        self._ports.devices.release(uid)
        self._resizes.retry()
        if worker is not None:
            log.info("pod gone pod=%s", spec.full_name(worker.pod))
        successor = self._next.pop(uid, None)
        if successor is not None:
            self.put(successor)

    def static_pods(self) -> list[Pod]:
        """The static pods of this node, those that wait for a predecessor to end included."""
        now = [w.pod for w in self._workers.values() if spec.is_static(w.pod) and not w.removed]
        return [*now, *self._next.values()]

    def on_probe_result(self, result: ProbeResult) -> None:
        """Callback for the probe manager: a probe's state changed."""
        worker = self._workers.get(result.pod_uid)
        if worker is None:
            return
        states = self._probes.states(result.container_id)
        folder = self._settings.pod_dir(worker.uid)
        probe_record.keep(folder, result.container, result.container_id, states)
        words = result.message if not result.ok else f"{result.kind} probe succeeded"
        self.timelines.note(
            worker.uid, "probe", f"container {result.container}: {words}", trouble=not result.ok
        )
        if result.ok or result.kind is Kind.READINESS:
            worker.poke()
            return
        grace = spec.probe_grace(worker.pod, result.container, startup=result.kind is Kind.STARTUP)
        text = f"Container {result.container} failed {result.kind.lower()} probe, will be restarted"
        worker.condemn(result.container_id, text, float(grace))

    def on_probe_failure(self, failure: ProbeFailure) -> None:
        """Callback for the probe manager: one measurement failed."""
        self._executor.say(
            failure.pod, "Warning", failure.reason, failure.message, container=failure.container
        )

    # --- leftovers ----------------------------------------------------------------------------------------

    async def _sweep_forever(self) -> None:
        while True:
            await self._clock.sleep(_SWEEP_SECONDS)
            self._resizes.retry()
            if self._held is None:
                self._sweep()

    def _sweep(self) -> None:
        """Give every unknown pod of ours that the runtime or the disk holds a worker that removes it."""
        if self._waiting:
            return
        for uid in self.observer.uids() - self._workers.keys():
            facts = self.observer.of(uid)
            if facts.root and facts.root != self._settings.cgroup_root:
                continue  # another node's on the same runtime
            self._clean(_leftover(uid, facts))
        for folder in _pod_folders(self._settings.root) - self._workers.keys():
            self._clean(_leftover(folder, PodFacts(uid=folder)))

    def _clean(self, pod: Pod) -> None:
        log.info("cleaning up a pod nobody wants pod=%s", spec.full_name(pod))
        worker = PodWorker(pod, executor=self._executor, on_finished=self._finished)
        self._workers[pod.metadata.uid] = worker
        worker.remove()

    # --- questions ----------------------------------------------------------------------------------------

    def workers(self) -> list[PodWorker]:
        """Every pod there is still something of on this node, with what its worker knows."""
        return list(self._workers.values())

    def families(self) -> Sequence[Family]:
        """For /metrics."""
        known = (self.observer.of(uid).containers for uid in self.observer.uids())
        return self._ports.metrics.families(each for containers in known for each in containers)

    def prune_pulls(self, known: Collection[str], *, since: float) -> None:
        """Forget pulls of images that are gone; see ImageAccess."""
        self._ports.images.prune(known, since=since)

    def undelivered(self, worker: PodWorker) -> str:
        """Why the API has not taken that pod's last status; empty when it has."""
        return self._writer.problem(worker.pod)


def _leftover(uid: str, facts: PodFacts) -> Pod:
    """What is known of a pod whose object is gone; enough to stop and remove it."""
    return Pod(metadata=ObjectMeta(uid=uid, name=facts.name, namespace=facts.namespace))


def _pod_folders(root: Path) -> set[str]:
    try:
        return {path.name for path in (root / "pods").iterdir() if path.is_dir()}
    except FileNotFoundError:
        return set()
