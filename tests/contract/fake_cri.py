"""A container runtime that behaves, in this process: the fake for everything above CRI.

It keeps state as a runtime does: sandboxes have addresses, containers exit, stop signals take effect or are
ignored, removing a sandbox removes its containers, a missing thing is not found, every change is an event
that carries the pod's state. Time is the clock it is given. The cases in `test_cri.py` hold for it and for
the real one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

import grpc

from agent.pods import facts
from agent.pods.convert import Event, ImageFact, figures
from agent.pods.pull_progress import PullShown
from agent.pods.runtime import (
    ExecResult,
    RuntimeFailure,
    RuntimeNotFound,
    RuntimeUnavailable,
)
from host.clocks import Clock, sleep_unless
from proto.cri import runtime_pb2 as pb


@dataclass(frozen=True)
class Program:
    """What a container of an image does when it is started.

    `lives` seconds until it exits by itself (None: for ever); `on_term` is its exit code on the stop signal,
    None when it ignores it; `refuses` makes StartContainer fail with this text.
    """

    lives: float | None = None
    exit_code: int = 0
    on_term: int | None = 143
    refuses: str = ""


@dataclass
class _Sandbox:
    fact: facts.SandboxFact
    config: pb.PodSandboxConfig


@dataclass
class _Container:
    fact: facts.ContainerFact
    config: pb.ContainerConfig
    timer: asyncio.Task[None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class FakeCri:
    """See the module; `calls` lists every call with its main argument, in order."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.images: dict[str, ImageFact] = {}
        self.registry: dict[str, ImageFact | str] = {}
        """What a pull finds: an image, or the text of its refusal."""
        self.programs: dict[str, Program] = {}
        self.calls: list[tuple[str, str]] = []
        self.broken: dict[str, str] = {}
        """Call name → error text, while it shall fail."""
        self.slow: dict[str, float] = {}
        """Call name → seconds it takes."""
        self.hooks: dict[str, ExecResult] = {}
        """Command line → its result."""
        self.pulling: list[PullShown] = []
        self.memory_usage = 1 << 20
        """Bytes each running container uses."""
        self._boxes: dict[str, _Sandbox] = {}
        self._cons: dict[str, _Container] = {}
        self._streams: set[asyncio.Queue[Event | None]] = set()
        self._ids = itertools.count(1)

    # --- for tests ----------------------------------------------------------------------------------------

    def add_image(self, name: str, *, uid: int | None = 0, username: str = "") -> None:
        """Put an image on the node and in the registry."""
        image = ImageFact(id=f"sha256:{abs(hash(name)):064x}"[:71], repo_tags=(name,), size=1000, uid=uid)
        image = replace(image, username=username, uid=None if username else uid)
        self.images[name] = self.registry[name] = image

    def containers(self, name: str = "") -> list[facts.ContainerFact]:
        """All containers, or those of one name, oldest first."""
        return [c.fact for c in self._cons.values() if not name or c.fact.name == name]

    def config(self, container_id: str) -> pb.ContainerConfig:
        """What a container was created with."""
        return self._cons[container_id].config

    def sandbox_config(self, sandbox_id: str) -> pb.PodSandboxConfig:
        """What a sandbox was made with."""
        return self._boxes[sandbox_id].config

    def sandboxes(self) -> list[facts.SandboxFact]:
        """All sandboxes, oldest first."""
        return [b.fact for b in self._boxes.values()]

    def exit(self, container_id: str, code: int, reason: str = "") -> None:
        """A container's process ends."""
        con = self._cons[container_id]
        if con.fact.state is not facts.State.RUNNING:
            return
        why = reason or ("Completed" if code == 0 else "Error")
        con.fact = replace(
            con.fact,
            state=facts.State.EXITED,
            exit_code=code,
            reason=why,
            finished_at=self.clock.now(),
        )
        con.ended.set()
        if con.timer is not None and con.timer is not asyncio.current_task():
            con.timer.cancel()
        self._tell(con.fact.sandbox_id, container_id)

    def kill_sandbox(self, sandbox_id: str) -> None:
        """The sandbox dies with everything in it."""
        for con in [c for c in self._cons.values() if c.fact.sandbox_id == sandbox_id]:
            self.exit(con.fact.id, 137)
        box = self._boxes[sandbox_id]
        box.fact = replace(box.fact, ready=False)
        self._tell(sandbox_id, sandbox_id)

    def drop_streams(self) -> None:
        """All event streams break, as when the runtime restarts."""
        for queue in self._streams:
            queue.put_nowait(None)

    # --- sandboxes ----------------------------------------------------------------------------------------

    async def _enter(self, call: str, argument: str) -> None:
        self.calls.append((call, argument))
        if call in self.slow:
            await self.clock.sleep(self.slow[call])
        else:
            await asyncio.sleep(0)
        if call in self.broken:
            raise RuntimeFailure(grpc.StatusCode.UNKNOWN, self.broken[call])

    async def run_sandbox(self, config: pb.PodSandboxConfig, *, handler: str = "") -> str:
        await self._enter("run_sandbox", config.metadata.name)
        number = next(self._ids)
        key = f"box{number}"
        host = config.linux.security_context.namespace_options.network == pb.NODE
        fact = facts.SandboxFact(
            id=key,
            attempt=config.metadata.attempt,
            created_at=self.clock.now(),
            ips=() if host else (f"10.0.0.{number}",),
            host_network=host,
            runtime_handler=handler,
            root=config.annotations.get(facts.ANNOTATION_ROOT, ""),
        )
        self._boxes[key] = _Sandbox(fact, config)
        self._tell(key, key)
        return key

    async def stop_sandbox(self, sandbox_id: str) -> None:
        await self._enter("stop_sandbox", sandbox_id)
        if sandbox_id in self._boxes:
            self.kill_sandbox(sandbox_id)

    async def remove_sandbox(self, sandbox_id: str) -> None:
        await self._enter("remove_sandbox", sandbox_id)
        if sandbox_id not in self._boxes:
            return
        self.kill_sandbox(sandbox_id)
        for con in [c for c in self._cons.values() if c.fact.sandbox_id == sandbox_id]:
            del self._cons[con.fact.id]
        box = self._boxes.pop(sandbox_id)
        self._send(Event(id=sandbox_id, deleted=True, pod=self._pod(box)))

    async def sandbox(self, sandbox_id: str) -> facts.SandboxFact:
        await self._enter("sandbox", sandbox_id)
        if sandbox_id not in self._boxes:
            raise RuntimeNotFound(grpc.StatusCode.NOT_FOUND, f"sandbox {sandbox_id} not found")
        return self._boxes[sandbox_id].fact

    # --- containers ---------------------------------------------------------------------------------------

    async def create_container(
        self, sandbox_id: str, config: pb.ContainerConfig, sandbox_config: pb.PodSandboxConfig
    ) -> str:
        await self._enter("create_container", config.metadata.name)
        box = self._boxes.get(sandbox_id)
        if box is None or not box.fact.ready:
            raise RuntimeFailure(grpc.StatusCode.UNKNOWN, f"sandbox {sandbox_id} is not ready")
        key = f"con{next(self._ids)}"
        image = self._image(config.image.image)
        fact = facts.ContainerFact(
            id=key,
            name=config.labels[facts.LABEL_CONTAINER_NAME],
            sandbox_id=sandbox_id,
            attempt=config.metadata.attempt,
            created_at=self.clock.now(),
            image=config.image.user_specified_image,
            image_ref=config.image.image,
            image_id=image.id if image else config.image.image,
            hash=config.annotations[facts.ANNOTATION_HASH],
            restart_count=int(config.annotations[facts.ANNOTATION_RESTARTS]),
            log_path=f"{sandbox_config.log_directory}/{config.log_path}",
            figures=figures(config.linux.resources),
            labels=dict(config.labels),
            annotations=dict(config.annotations),
        )
        self._cons[key] = _Container(fact, config)
        self._tell(sandbox_id, key)
        return key

    async def start_container(self, container_id: str) -> None:
        con = self._find(container_id)
        await self._enter("start_container", con.fact.name)
        if con.fact.state is not facts.State.CREATED:
            raise RuntimeFailure(
                grpc.StatusCode.FAILED_PRECONDITION, f"container {container_id} is not created"
            )
        program = self._program(con)
        con.fact = replace(con.fact, state=facts.State.RUNNING, started_at=self.clock.now())
        if program.refuses:
            con.fact = replace(con.fact, started_at=0.0)
            self.exit(container_id, 128, "StartError")
            raise RuntimeFailure(grpc.StatusCode.UNKNOWN, program.refuses)
        self._tell(con.fact.sandbox_id, container_id)
        if program.lives is not None:
            con.timer = asyncio.create_task(self._run(container_id, program))

    async def _run(self, container_id: str, program: Program) -> None:
        await self.clock.sleep(program.lives or 0.0)
        if container_id in self._cons:
            self.exit(container_id, program.exit_code)

    async def stop_container(self, container_id: str, *, grace: float) -> None:
        con = self._cons.get(container_id)
        await self._enter("stop_container", f"{con.fact.name if con else container_id} {round(grace)}")
        if con is None or con.fact.state is not facts.State.RUNNING:
            return
        program = self._program(con)
        if program.on_term is not None:
            self.exit(container_id, program.on_term)
            return
        await sleep_unless(self.clock, con.ended, grace)
        self.exit(container_id, 137)

    async def remove_container(self, container_id: str) -> None:
        await self._enter("remove_container", container_id)
        con = self._cons.get(container_id)
        if con is None:
            return
        self.exit(container_id, 137)
        del self._cons[container_id]
        box = self._boxes[con.fact.sandbox_id]
        self._send(Event(id=container_id, deleted=True, pod=self._pod(box)))

    async def container(self, container_id: str) -> facts.ContainerFact:
        await self._enter("container", container_id)
        return self._find(container_id).fact

    async def update_container(self, container_id: str, limits: pb.LinuxContainerResources) -> None:
        con = self._find(container_id)
        words = " ".join(f"{f.name}={value}" for f, value in limits.ListFields())
        await self._enter("update_container", f"{con.fact.name} {words}")
        if con.fact.state is not facts.State.RUNNING:
            raise RuntimeFailure(
                grpc.StatusCode.FAILED_PRECONDITION, f"container {container_id} is not running"
            )
        con.config.linux.resources.MergeFrom(limits)
        con.fact = replace(con.fact, figures=figures(con.config.linux.resources))

    async def update_sandbox(self, sandbox_id: str, limits: pb.LinuxContainerResources) -> None:
        await self._enter("update_sandbox", sandbox_id)

    async def container_stats(self, *, sandbox_id: str = "") -> Sequence[pb.ContainerStats]:
        await self._enter("container_stats", sandbox_id)
        found = []
        for con in self._cons.values():
            if con.fact.sandbox_id == sandbox_id and con.fact.state is facts.State.RUNNING:
                stats = pb.ContainerStats(attributes=pb.ContainerAttributes(id=con.fact.id))
                stats.memory.usage_bytes.value = self.memory_usage
                found.append(stats)
        return found

    async def exec_sync(self, container_id: str, command: Sequence[str], *, timeout: float) -> ExecResult:
        line = " ".join(command)
        await self._enter("exec_sync", line)
        con = self._find(container_id)
        if con.fact.state is not facts.State.RUNNING:
            raise RuntimeFailure(
                grpc.StatusCode.FAILED_PRECONDITION, f"container {container_id} is not running"
            )
        if line.startswith("sleep "):
            await self.clock.sleep(min(float(command[1]), timeout or float("inf")))
            if 0 < timeout < float(command[1]):
                raise RuntimeFailure(
                    grpc.StatusCode.DEADLINE_EXCEEDED, f"command took longer than {timeout} s"
                )
        return self.hooks.get(line, ExecResult(exit_code=0, stdout=b"", stderr=b""))

    def _find(self, container_id: str) -> _Container:
        con = self._cons.get(container_id)
        if con is None:
            raise RuntimeNotFound(grpc.StatusCode.NOT_FOUND, f"container {container_id} not found")
        return con

    def _program(self, con: _Container) -> Program:
        by_name = self.programs.get(con.fact.name)
        return by_name or self.programs.get(con.fact.image) or Program()

    # --- images -------------------------------------------------------------------------------------------

    async def image(self, ref: str) -> ImageFact | None:
        await self._enter("image", ref)
        return self._image(ref)

    def _image(self, ref: str) -> ImageFact | None:
        return self.images.get(ref) or next((i for i in self.images.values() if i.id == ref), None)

    async def pull(
        self, ref: str, *, auth: pb.AuthConfig | None = None, sandbox: pb.PodSandboxConfig | None = None
    ) -> str:
        await self._enter("pull", ref)
        found = self.registry.get(ref, f'failed to resolve reference "{ref}": {ref}: not found')
        if isinstance(found, str):
            raise RuntimeFailure(grpc.StatusCode.NOT_FOUND, found)
        self.images[ref] = found
        return found.id

    async def pulls(self) -> Sequence[PullShown]:
        return self.pulling

    # --- watching -----------------------------------------------------------------------------------------

    async def pods(self) -> dict[str, facts.PodFacts]:
        await self._enter("pods", "")
        found: dict[str, facts.PodFacts] = {}
        for box in self._boxes.values():
            pod = self._pod(box)
            old = found.get(pod.uid, pod)
            found[pod.uid] = facts.merge(old, sandboxes=pod.sandboxes, containers=pod.containers)
        return found

    async def events(self) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._streams.add(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._streams.discard(queue)
        raise RuntimeUnavailable(grpc.StatusCode.UNAVAILABLE, "stream ended")

    def _pod(self, box: _Sandbox) -> facts.PodFacts:
        meta = box.config.metadata
        return facts.merge(
            facts.PodFacts(uid=meta.uid, namespace=meta.namespace, name=meta.name),
            sandboxes=[box.fact],
            containers=[c.fact for c in self._cons.values() if c.fact.sandbox_id == box.fact.id],
        )

    def _tell(self, sandbox_id: str, key: str) -> None:
        self._send(Event(id=key, deleted=False, pod=self._pod(self._boxes[sandbox_id])))

    def _send(self, event: Event) -> None:
        for queue in self._streams:
            queue.put_nowait(event)
