"""One pod's serial worker: look, plan, start jobs, report; then sleep until something wakes it.

A worker never waits inside a step: everything slow is a job (an asyncio task of its own) that wakes the
worker when it ends. So a hung volume or a slow pull of this pod delays neither other pods nor this pod's
own deletion. The worker's task exists only while there is something to do.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping

from agent.api.structs import Pod
from agent.api.times import parse_time
from agent.pods import actions, checkpoint, spec
from agent.pods.allocation import summary
from agent.pods.executor import Executor
from agent.pods.facts import Figures, PodFacts, State
from agent.pods.jobs import Jobs
from agent.pods.last_words import crash, termination_message
from agent.pods.memory import Memory
from agent.pods.plan import plan
from agent.pods.plan_resize import resizing
from agent.pods.probing import sync_probes
from agent.pods.resize import granted_figures
from agent.pods.restart import finished, next_restarts, restart_all_sources, retry_delay
from agent.pods.status import StatusInput, Verdict, pod_status
from agent.pods.status_containers import ContainerView
from agent.pods.status_resize import ResizeDraft, resize_drafts

log = logging.getLogger(__name__)
TERMINAL = ("Succeeded", "Failed")
_LEAST_GRACE = 1.0  # seconds that a hold leaves of the grace
DEADLINE = Verdict(
    reason="DeadlineExceeded",
    message="Pod was active on the node longer than the specified deadline",
)


class PodWorker:
    """Runs one pod until nothing is left of it; `on_finished(uid)` is called then."""

    def __init__(self, pod: Pod, *, executor: Executor, on_finished: Callable[[str], None]) -> None:
        self.uid = pod.metadata.uid
        self.pod = pod
        """The pod as it runs: with the resources it was granted."""
        self.desired = pod
        """The pod as the API, or the manifest, has it."""
        self.removed = False
        self.memory = Memory(status=pod.status, wake=self.poke)
        self.ended = asyncio.Event()
        """Set when the pod was stopped and nothing of it runs, is mounted or has a cgroup."""
        self._executor = executor
        self._ports = executor.ports
        self._on_finished = on_finished
        self._began = executor.ports.clock.monotonic()
        self._jobs = Jobs(executor, memory=self.memory, pod=lambda: self.pod, wake=self.poke)
        self._before: list[PodWorker] = []
        self._followers: list[PodWorker] = []
        self._kept: Pod | None = None
        """The pod as its record on disk has it."""
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.Task[None] | None = None
        self._dirty = False
        self._errors = 0
        self._figures: tuple[Pod, tuple[Mapping[str, Figures], Figures | None]] | None = None

    # --- from outside -------------------------------------------------------------------------------------

    def update(self, pod: Pod, *, desired: Pod | None = None) -> None:
        """A newer version of the pod's object, or a new grant."""
        self.pod, self.desired = pod, desired or pod
        self.poke()

    def remove(self) -> None:
        """The pod's object or manifest is gone: leave nothing of it."""
        self.removed = True
        self.poke()

    def start_after(self, others: Iterable[PodWorker]) -> None:
        """These pods end to make room for this one: start nothing of it while anything of them is left."""
        self._before = list(others)
        for other in self._before:
            other._followers.append(self)

    def fail(self, verdict: Verdict) -> None:
        """End the pod: rejected or evicted."""
        if self.memory.verdict is None and self.memory.status.phase not in TERMINAL:
            self.memory.verdict = verdict
            self.poke()

    def condemn(self, container_id: str, message: str, grace: float) -> None:
        """A probe decided that the container has to be killed."""
        self.memory.condemned[container_id] = actions.Condemned(message, grace, again=True)
        self.poke()

    def poke(self) -> None:
        """Something changed: take a step soon."""
        self._dirty = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain(), name=f"pod {self.uid}")

    @property
    def jobs(self) -> dict[str, float]:
        """Keys of the jobs under way, and when each began (monotonic)."""
        return self._jobs.began

    async def close(self) -> None:
        """Cancel everything of this worker; containers stay as they are."""
        tasks = [t for t in (self._task, self._timer, *self._jobs.drop()) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the loop -----------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        while self._dirty and not self.memory.finished:
            self._dirty = False
            try:
                self._step()
                self._errors = 0
            except Exception as exc:
                # A mistake in one pod's handling must not reach the others: report it, come back later.
                self._errors += 1
                log.exception("pod step failed pod=%s", spec.full_name(self.pod))
                self._executor.say(self.pod, "Warning", "FailedSync", f"error determining status: {exc}")
                await self._ports.clock.sleep(retry_delay(self._errors, first=1.0, maximum=60.0))
                self._dirty = True

    def _step(self) -> None:
        now = self._ports.clock.monotonic()
        facts = self._facts(now)
        self._decide(facts, now)
        if restart_all_sources(self.pod, facts):
            self.memory.restarting = True
        elif any(c.alive for c in facts.containers):
            self.memory.restarting = False
        sync_probes(self.pod, facts, memory=self.memory, executor=self._executor)
        seen = self._observe(facts, now)
        crowded = self.memory.stop is None and any(not other.ended.is_set() for other in self._before)
        todo = [] if crowded else plan(self.pod, seen)
        self._take_holds(todo)
        for action in todo:
            if isinstance(action, actions.Hold | actions.Wait | actions.Finished):
                continue
            self._jobs.begin(action)
        self._tell_resize(seen)
        self._report(facts, seen)
        self._set_timer(todo, now)
        if self.memory.stop is not None and not self.memory.cgroup and not self._jobs:
            self.ended.set()
            while self._followers:
                self._followers.pop().poke()
        if any(isinstance(action, actions.Finished) for action in todo) and not self._jobs:
            self._finish()

    def _facts(self, now: float) -> PodFacts:
        """The facts with termination messages filled in; notes when each exit was first seen."""
        facts, memory = self._ports.observer.of(self.uid), self.memory
        containers = []
        for fact in facts.containers:
            if fact.dead:
                if fact.id not in memory.exits:
                    ago = max(0.0, self._ports.clock.now() - fact.finished_at) if fact.finished_at else 0.0
                    memory.exits[fact.id] = now - (0.0 if fact.id in memory.own else ago)
                    memory.messages[fact.id] = fact.message or termination_message(
                        self.pod, fact, self._ports.settings
                    )
                    if text := crash(self.pod, fact, memory, self._ports.settings):
                        self._executor.say(self.pod, "Warning", "ContainerDied", text, container=fact.name)
                fact = dataclasses.replace(fact, message=memory.messages.get(fact.id, ""))
            containers.append(fact)
        self._forget_others({fact.id for fact in containers})
        return dataclasses.replace(facts, containers=tuple(containers))

    def _forget_others(self, ids: set[str]) -> None:
        """Drop what is remembered of containers that are no more, or a crash loop would grow without end."""
        memory = self.memory
        for table in (memory.exits, memory.messages, memory.condemned):
            for key in table.keys() - ids:
                del table[key]
        if not self._jobs:
            memory.own &= ids
            memory.killing &= ids
            memory.again &= ids

    def _decide(self, facts: PodFacts, now: float) -> None:
        """Whether the pod has to stop, and by when."""
        memory, meta = self.memory, self.pod.metadata
        self._check_deadline(now)
        over = (
            memory.verdict is not None or memory.status.phase in TERMINAL or self.pod.status.phase in TERMINAL
        )
        release = self.removed or meta.deletion_timestamp is not None
        if not (over or release):
            return
        grace = spec.grace_seconds(self.pod)
        if memory.verdict is not None and memory.verdict.grace is not None:
            grace = min(grace, max(1, memory.verdict.grace))
        if memory.stop is None:
            memory.stop = actions.Stop(began=now, grace=float(grace), release=release)
            self._ports.probes.terminating(self.uid)
            self._jobs.cancel_yielding()
        elif memory.stop_grace is not None and grace < memory.stop_grace:
            memory.stop = actions.Stop(began=now, grace=float(grace), release=release)
        elif release and not memory.stop.release:
            memory.stop = dataclasses.replace(memory.stop, release=True)
        memory.stop_grace = grace
        for fact in facts.containers:
            if fact.dead and fact.id in memory.hooking:
                self._jobs.cancel(f"start:{fact.name}")  # its postStart hook has nothing left to run in

    def _check_deadline(self, now: float) -> None:
        limit = self.pod.spec.active_deadline_seconds
        if limit is None or self.memory.verdict is not None or self.memory.status.phase in TERMINAL:
            return
        if self.memory.active_since is None:
            began = parse_time(self.memory.status.start_time or self.pod.status.start_time)
            age = max(0.0, self._ports.clock.now() - began) if began else 0.0
            self.memory.active_since = now - age
        self.memory.deadline = self.memory.active_since + limit  # the limit may be lowered
        if now >= self.memory.deadline:
            self.memory.verdict = DEADLINE
            self._executor.say(self.pod, "Normal", DEADLINE.reason, DEADLINE.message)

    @property
    def _granted(self) -> tuple[Mapping[str, Figures], Figures | None]:
        """The limits its containers and cgroup were granted, computed once for each version of the pod."""
        if self._figures is None or self._figures[0] is not self.pod:
            self._figures = (self.pod, granted_figures(self.pod, self._ports))
        return self._figures[1]

    def _observe(self, facts: PodFacts, now: float) -> actions.Observed:
        memory = self.memory
        return actions.Observed(
            now=now,
            facts=facts,
            jobs=self._jobs.aims,
            volumes=memory.volumes,
            images={name: image.id for name, image in memory.images.items()},
            failures=dict(memory.failures),
            exits=dict(memory.exits),
            backoffs=dict(memory.backoffs),
            started=self._started(facts),
            condemned=dict(memory.condemned),
            again=frozenset(memory.again),
            figures=self._granted[0],
            pod_figures=self._granted[1],
            pod_in_force=memory.pod_in_force,
            stop=memory.stop,
            hold_until=self._hold(facts, now),
            restarts=next_restarts(memory.status),
            keep_dead=self._ports.settings.dead_per_container,
            dead_since=self._ports.clock.now() - self._ports.settings.dead_minimum_age,
            cgroup=memory.cgroup,
        )

    def _hold(self, facts: PodFacts, now: float) -> float | None:
        """Until when the pod's end waits for services to let go of it; None: it does not."""
        stop, longest = self.memory.stop, self._ports.settings.hold_termination
        if stop is None or not stop.release or self.memory.verdict is not None:
            return None
        until = stop.began + min(longest, stop.grace - _LEAST_GRACE)
        box = facts.sandbox
        if self.pod.spec.host_network:
            return None  # others share its addresses
        if now >= until or box is None or not self._ports.routed(self._executor.pod_ips(self.pod, box.ips)):
            return None
        return until

    def _started(self, facts: PodFacts) -> frozenset[str]:
        return frozenset(
            c.id
            for c in facts.containers
            if c.state is State.RUNNING
            and c.id not in self.memory.hooking
            and self._ports.probes.started(c.id)
        )

    def _take_holds(self, todo: list[actions.Action]) -> None:
        """Remember why containers do not run; say it once as an event when a back-off begins."""
        holds = {a.container: (a.reason, a.message) for a in todo if isinstance(a, actions.Hold)}
        for name, (reason, message) in holds.items():
            if self.memory.holds.get(name, ("", ""))[0] == reason:
                continue
            if reason == "CrashLoopBackOff":
                text = f"Back-off restarting failed container {name} in pod {spec.full_name(self.pod)}"
                self._executor.say(self.pod, "Warning", "BackOff", text, container=name)
            elif reason == "ImagePullBackOff":
                self._executor.say(self.pod, "Normal", "BackOff", message.partition(": ")[0], container=name)
        self.memory.holds = holds

    def _tell_resize(self, seen: actions.Observed) -> None:
        """The event at the end of a granted resize."""
        memory = self.memory
        if memory.resized and "resize" not in self._jobs and not resizing(self.pod, seen):
            memory.resized = 0
            words = f"Pod resize completed: {summary(self.pod)}"
            self._executor.say(self.pod, "Normal", "ResizeCompleted", words)

    # --- reporting ----------------------------------------------------------------------------------------

    def _report(self, facts: PodFacts, seen: actions.Observed) -> None:
        memory = self.memory
        quiet = not any(c.alive for c in facts.containers) and not self._jobs.starting
        over = quiet and (memory.stop is not None or finished(self.pod, facts, seen.again))
        started = self._started(facts)
        view = ContainerView(
            holds=memory.holds,
            started=started,
            ready=frozenset(i for i in started if self._ports.probes.ready(i)),
            stopping=memory.stop is not None,
            again=seen.again,
            figures=seen.figures,
            notes=memory.notes,
            restarting=memory.restarting,
        )
        if (
            memory.stop is not None
            and memory.stop.release
            and facts.empty
            and memory.status.phase in TERMINAL
        ):
            return  # the last word was said while the containers were still known
        status = pod_status(
            self.pod,
            StatusInput(
                now=self._ports.clock.now(),
                facts=facts,
                previous=memory.status,
                runtime_name=self._ports.runtime_name,
                host_ips=self._ports.settings.host_ips,
                containers=view,
                verdict=memory.verdict,
                over=over,
                resize=self._resize_drafts(seen),
            ),
        )
        if (memory.status.phase, status.phase) == ("Pending", "Running"):
            clock = self._ports.clock
            seen_for = clock.monotonic() - self._began
            self._ports.metrics.running(self.desired, seen_for=seen_for, now=clock.now())
        memory.status = status
        if not self.removed:
            routine = status.phase == "Pending" and not memory.holds and memory.stop is None
            self._ports.statuses.put(self.pod, status, soon=not routine)
            self._keep(facts)

    def _keep(self, facts: PodFacts) -> None:
        """Record a pod of the API for an agent that starts without it; nothing once its folder is to go."""
        stopping = self.memory.stop is not None
        if spec.is_static(self.pod) or (stopping and facts.empty):
            return
        pod = checkpoint.with_status(self.desired, self.memory.status)
        if checkpoint.differs(self._kept, pod):
            self._kept = pod
            checkpoint.keep(self._ports.settings.pod_dir(self.uid), pod, make=not stopping)

    def _resize_drafts(self, seen: actions.Observed) -> tuple[ResizeDraft, ...]:
        memory = self.memory
        if memory.stop is not None:
            return ()
        failure = memory.failures.get("resize")
        return resize_drafts(
            memory.pending,
            running=resizing(self.pod, seen),
            error=failure.message if failure else "",
            generation=memory.resized or self.pod.metadata.generation,
        )

    def _set_timer(self, todo: list[actions.Action], now: float) -> None:
        times = [a.until for a in todo if isinstance(a, actions.Hold | actions.Wait) and a.until is not None]
        if self.memory.deadline is not None and self.memory.stop is None:
            times.append(self.memory.deadline)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if times:
            self._timer = asyncio.create_task(self._ring(min(times) - now), name=f"pod {self.uid} timer")

    async def _ring(self, seconds: float) -> None:
        await self._ports.clock.sleep(seconds)
        self._timer = None
        self.poke()

    def _finish(self) -> None:
        """Nothing is left here: delete the object, or, where that is gone too, end this worker."""
        if not self.removed:
            self._ports.statuses.finish(self.pod)
            return
        self.memory.finished = True
        self._ports.probes.remove_pod(self.uid)
        self._executor.sweep(self.pod)
        self._on_finished(self.uid)
