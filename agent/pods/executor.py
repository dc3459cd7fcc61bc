"""Carries out one action for one pod: the thin side of `plan`. No decisions beyond "did it work".

Each method is one job. A job that fails raises `JobFailed`, which says what to show and how soon to try
again; the worker does the waiting. What a job learned goes to the observer and to the worker's memory.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Awaitable
from functools import partial
from typing import TypeVar

from agent.api import errors as api_errors
from agent.api.meta import ObjectReference
from agent.api.structs import Container, Pod, Secret
from agent.devices import records as device_records
from agent.pods import actions, checkpoint, spec
from agent.pods.facts import ContainerFact, State
from agent.pods.hooks import HookFailed, run_hook
from agent.pods.images import ImageProblem
from agent.pods.loglinks import remove_links, remove_log
from agent.pods.memory import Memory
from agent.pods.naming import Dns, NamingError, limited, limits_exceeded, pod_dns
from agent.pods.ports import Ports
from agent.pods.runtime import RuntimeFailure, RuntimeNotFound
from agent.pods.security import SpecError
from agent.pods.translate import sandbox_config
from agent.volumes.base import Unready, VolumeError
from host.clocks import Clock
from host.errors import HostError
from proto.cri import runtime_pb2 as pb

T = TypeVar("T")
MINIMUM_KILL_GRACE = 1.0
_RECORDS = ("etc-hosts", "allocation", "userns", device_records.RECORD, *checkpoint.RECORDS)
"""Files of the agent in a pod's directory."""


class JobFailed(Exception):
    """A job did not succeed.

    Attributes:
        reason, message: what the container's status shows.
        later: the reason shown once the failure is no longer fresh; empty: the same.
        first, maximum: bounds in seconds of the wait before the next try.
    """

    def __init__(
        self, reason: str, message: str, *, later: str = "", first: float = 1.0, maximum: float = 15.0
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.later = later
        self.first = first
        self.maximum = maximum


class Executor:
    """Does what actions say, for any pod."""

    def __init__(self, ports: Ports) -> None:
        self.ports = ports

    # --- words --------------------------------------------------------------------------------------------

    def reference(self, pod: Pod, container: str = "") -> ObjectReference:
        """The event's object: the pod, or one container of it."""
        meta = pod.metadata
        return ObjectReference(
            api_version="v1",
            kind="Pod",
            namespace=meta.namespace,
            name=meta.name,
            uid=meta.annotations.get(spec.HASH_ANNOTATION, meta.uid) if spec.is_static(pod) else meta.uid,
            resource_version=meta.resource_version,
            field_path=spec.field_path(pod, container) if container else "",
        )

    def say(self, pod: Pod, kind: str, reason: str, message: str, *, container: str = "") -> None:
        """Record an event about the pod or one of its containers."""
        about = f"container {container}: " if container else ""
        words = f"{about}{reason}: {message}"
        self.ports.timelines.note(pod.metadata.uid, "event", words, trouble=kind == "Warning")
        self.ports.events.record(self.reference(pod, container), type=kind, reason=reason, message=message)

    # --- volumes, sandbox, image --------------------------------------------------------------------------

    async def prepare_volumes(self, pod: Pod, memory: Memory) -> None:
        """PrepareVolumes."""
        folder = self.ports.settings.pod_dir(pod.metadata.uid)
        try:
            folder.mkdir(mode=0o750, parents=True, exist_ok=True)
            memory.prepared = await self.ports.volumes.prepare(pod)
        except (VolumeError, OSError) as exc:
            reason = exc.reason if isinstance(exc, VolumeError) else "FailedMount"
            text = exc.message if isinstance(exc, VolumeError) else f"make {folder}: {exc.strerror}"
            self.say(pod, "Warning", reason, text)
            slow = isinstance(exc, VolumeError) and exc.slow
            first, longest = (10.0, 300.0) if slow else (0.5, 10.0)
            raise JobFailed("ContainerCreating", text, first=first, maximum=longest) from exc
        memory.volumes = actions.Volumes.READY

    async def run_sandbox(self, pod: Pod, action: actions.RunSandbox) -> None:
        """RunSandbox."""
        uid = pod.metadata.uid
        if action.stop:
            self.say(
                pod, "Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created."
            )
        try:
            for old in action.stop:
                await self.ports.runtime.stop_sandbox(old)
            await self.ports.cgroups.create(pod)
        except HostError as exc:
            text = f"unable to ensure pod container exists: {exc}"
            self.say(pod, "Warning", "FailedCreatePodContainer", text)
            raise JobFailed("ContainerCreating", text) from exc
        except RuntimeFailure as exc:
            raise self._sandbox_failed(pod, exc) from exc
        try:
            meta = pod.metadata
            folder = self.ports.settings.log_dir(meta.namespace, meta.name, uid)
            folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            config = self.sandbox_config(pod, action.attempt)
            for text in limits_exceeded(self._dns(pod)):
                self.say(pod, "Warning", "DNSConfigForming", text)
            handler = await self._handler(pod)
            box = await self.ports.runtime.run_sandbox(config, handler=handler)
            self.ports.metrics.sandbox_started()
            known = next((s for s in self.ports.observer.of(uid).sandboxes if s.id == box), None)
            if known is None or not (known.ips or pod.spec.host_network):
                fact = await self.ports.runtime.sandbox(box)
                self.ports.observer.learn(uid, sandboxes=[fact], namespace=meta.namespace, name=meta.name)
        except (RuntimeFailure, NamingError, SpecError, api_errors.ApiError, OSError) as exc:
            raise self._sandbox_failed(pod, exc) from exc

    async def _handler(self, pod: Pod) -> str:
        """The runtime handler of the pod's RuntimeClass; empty: the runtime's default."""
        name = pod.spec.runtime_class_name
        if not name:
            return ""
        handler = await self.ports.sources.runtime_handler(name)
        if handler is None:
            raise SpecError(f'runtimeclass.node.k8s.io "{name}" not found')
        return handler

    def _sandbox_failed(self, pod: Pod, exc: Exception) -> JobFailed:
        text = f"Failed to create pod sandbox: {exc}"
        self.say(pod, "Warning", "FailedCreatePodSandBox", text)
        return JobFailed("ContainerCreating", text)

    def _dns(self, pod: Pod) -> Dns:
        settings = self.ports.settings
        return pod_dns(
            pod,
            host=settings.host_dns(),
            cluster_servers=settings.cluster_dns,
            cluster_domain=settings.cluster_domain,
        )

    def sandbox_config(self, pod: Pod, attempt: int) -> pb.PodSandboxConfig:
        """The pod's sandbox configuration, the same for the sandbox and for each container in it."""
        settings = self.ports.settings
        dns = limited(self._dns(pod))
        parent = self.ports.cgroups.parent(pod)
        return sandbox_config(
            pod,
            attempt=attempt,
            dns=dns,
            cgroup_parent=parent,
            settings=settings,
            users=self.ports.users.of(pod),
        )

    async def pull_image(self, pod: Pod, container: Container, memory: Memory) -> None:
        """PullImage."""

        def say(kind: str, reason: str, message: str) -> None:
            self.say(pod, kind, reason, message, container=container.name)

        def note(text: str) -> None:
            memory.notes[container.name] = text
            memory.wake()

        try:
            secrets = await self._pull_secrets(pod)
            image = await self.ports.images.ensure(container, secrets=secrets, say=say, note=note)
        except ImageProblem as exc:
            say("Warning", "Failed", f"Error: {exc.reason}")
            longest = 300.0 if exc.later else 10.0
            first = 10.0 if exc.later else 2.0
            raise JobFailed(exc.reason, exc.message, later=exc.later, first=first, maximum=longest) from exc
        finally:
            memory.notes.pop(container.name, None)
        memory.images[container.name] = image

    async def volume_image(self, pod: Pod, reference: str, policy: str) -> str:
        """The runtime's id of the image of an image volume, present on this node. Raises Unready."""
        wanted = Container(image=reference, image_pull_policy=policy)
        try:
            secrets = await self._pull_secrets(pod)
            image = await self.ports.images.ensure(wanted, secrets=secrets, say=partial(self.say, pod))
        except (ImageProblem, JobFailed) as exc:
            raise Unready(f"{exc.reason}: {exc.message}", slow=bool(exc.later)) from exc
        return image.id

    async def _pull_secrets(self, pod: Pod) -> list[Secret]:
        names = [ref.name for ref in pod.spec.image_pull_secrets if ref.name]
        try:
            found = await asyncio.gather(
                *(self.ports.sources.get_secret(pod.metadata.namespace, name) for name in names)
            )
        except api_errors.ApiError as exc:
            raise JobFailed("ErrImagePull", f"cannot read the image pull secrets: {exc}") from exc
        missing = [name for name, secret in zip(names, found, strict=True) if secret is None]
        if missing:
            text = (
                f"Unable to retrieve some image pull secrets ({', '.join(missing)}); "
                "attempting to pull the image may not succeed."
            )
            self.say(pod, "Warning", "FailedToRetrieveImagePullSecret", text)
        return [secret for secret in found if secret is not None]

    # --- stopping -----------------------------------------------------------------------------------------

    async def kill(self, pod: Pod, action: actions.KillContainer, memory: Memory) -> None:
        """KillContainer: the hook within the grace, then the stop signal with what is left of it."""
        clock, uid = self.ports.clock, pod.metadata.uid
        memory.killing.add(action.id)
        self.say(pod, "Normal", "Killing", action.message, container=action.container)
        fact = self.ports.observer.of(uid).container(action.id)
        container = spec.find_container(pod, action.container)
        if action.hook and fact is not None and fact.state is State.RUNNING and container is not None:
            await self._pre_stop(pod, container, action)
        left = max(MINIMUM_KILL_GRACE, action.deadline - clock.monotonic())
        try:
            await self.ports.runtime.stop_container(action.id, grace=left)
            await self.refresh(uid, action.id)
        except RuntimeNotFound:
            self.ports.observer.forget(uid, [action.id])
        except RuntimeFailure as exc:
            text = f"error killing pod: failed to stop container {action.container}: {exc}"
            self.say(pod, "Warning", "FailedKillPod", text)
            raise JobFailed("FailedKillPod", text) from exc
        memory.condemned.pop(action.id, None)

    async def _pre_stop(self, pod: Pod, container: Container, action: actions.KillContainer) -> None:
        handler = container.lifecycle.pre_stop if container.lifecycle else None
        left = action.deadline - self.ports.clock.monotonic()
        if handler is None or left <= 0:
            return
        box = self.ports.observer.of(pod.metadata.uid).sandbox
        ip = self.pod_ips(pod, box.ips if box else ())
        hook = run_hook(
            handler,
            container=container,
            container_id=action.id,
            pod_ip=ip[0] if ip else "",
            runtime=self.ports.runtime,
            clock=self.ports.clock,
        )
        try:
            await within(self.ports.clock, left, hook)
        except (HookFailed, TimeoutError) as exc:
            how = exc.how if isinstance(exc, HookFailed) else "it did not end within the grace period"
            text = f"PreStopHook failed: {how}"
            self.say(pod, "Warning", "FailedPreStopHook", text, container=container.name)

    async def stop_sandbox(self, pod: Pod, action: actions.StopSandbox) -> None:
        """StopSandbox."""
        uid = pod.metadata.uid
        try:
            await self.ports.runtime.stop_sandbox(action.id)
        except RuntimeNotFound:
            self.ports.observer.forget(uid, [action.id])
            return
        except RuntimeFailure as exc:
            text = f"error killing pod: failed to stop sandbox: {exc}"
            self.say(pod, "Warning", "FailedKillPod", text)
            raise JobFailed("FailedKillPod", text) from exc
        self.ports.observer.sandbox_stopped(uid, action.id)

    async def remove_sandbox(self, pod: Pod, action: actions.RemoveSandbox) -> None:
        """RemoveSandbox."""
        await self._remove(pod, action.id, self.ports.runtime.remove_sandbox(action.id))

    async def remove_container(self, pod: Pod, action: actions.RemoveContainer) -> None:
        """RemoveContainer."""
        fact = self.ports.observer.of(pod.metadata.uid).container(action.id)
        await self._remove(pod, action.id, self.ports.runtime.remove_container(action.id))
        if fact is not None and fact.log_path:
            remove_log(
                self.ports.settings,
                pod,
                container=fact.name,
                container_id=fact.id,
                log_path=fact.log_path,
            )

    async def _remove(self, pod: Pod, key: str, removing: Awaitable[None]) -> None:
        try:
            await removing
        except RuntimeNotFound:
            pass
        except RuntimeFailure as exc:
            raise JobFailed("FailedKillPod", f"failed to remove {key}: {exc}") from exc
        self.ports.observer.forget(pod.metadata.uid, [key])

    async def teardown_volumes(self, pod: Pod, memory: Memory) -> None:
        """TeardownVolumes."""
        try:
            await self.ports.volumes.teardown(pod.metadata.uid)
        except VolumeError as exc:
            self.say(pod, "Warning", "FailedUnMount", exc.message)
            raise JobFailed("FailedUnMount", exc.message, first=0.5, maximum=10.0) from exc
        memory.volumes = actions.Volumes.GONE
        memory.prepared = {}

    async def remove_cgroup(self, pod: Pod, memory: Memory) -> None:
        """RemoveCgroup."""
        try:
            await self.ports.cgroups.remove(pod)
        except HostError as exc:
            raise JobFailed("FailedKillPod", f"failed to remove the pod's cgroup: {exc}") from exc
        memory.cgroup = False

    # --- shared -------------------------------------------------------------------------------------------

    def pod_ips(self, pod: Pod, ips: tuple[str, ...]) -> tuple[str, ...]:
        """The pod's addresses: its sandbox's, or the node's for a pod in the node's network."""
        return self.ports.settings.host_ips if pod.spec.host_network else ips

    async def refresh(
        self, uid: str, container_id: str, *, at_least: State = State.EXITED
    ) -> ContainerFact | None:
        """Ask for a container unless its event came already; None when it is gone."""
        known = self.ports.observer.of(uid).container(container_id)
        if known is not None and known.state >= at_least:
            return known
        try:
            fact = await self.ports.runtime.container(container_id)
        except RuntimeNotFound:
            return None
        if not fact.sandbox_id and known is not None:
            fact = with_sandbox(fact, known.sandbox_id)
        self.ports.observer.learn(uid, containers=[fact])
        return fact

    def sweep(self, pod: Pod) -> None:
        """Delete what the agent itself wrote for a pod that is gone: its directory and its logs."""
        meta, settings = pod.metadata, self.ports.settings
        folder = settings.pod_dir(meta.uid)
        shutil.rmtree(folder / "containers", ignore_errors=True)
        for name in _RECORDS:
            (folder / name).unlink(missing_ok=True)
        for path in (folder / "volumes", folder / "plugins", folder):
            try:
                path.rmdir()  # only when empty: what is still in there is somebody's data or mount
            except OSError:
                continue
        remove_links(settings, pod)
        self.ports.policies.forget(meta.uid)
        shutil.rmtree(settings.log_dir(meta.namespace, meta.name, meta.uid), ignore_errors=True)


def with_sandbox(fact: ContainerFact, sandbox_id: str) -> ContainerFact:
    """The fact with the sandbox it is in."""
    return dataclasses.replace(fact, sandbox_id=sandbox_id)


async def within(clock: Clock, seconds: float, work: Awaitable[T]) -> T:
    """The result of the work, or TimeoutError after that many seconds of this clock."""
    task = asyncio.ensure_future(work)
    timer = asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise TimeoutError(f"no end after {seconds:g} s")
        return task.result()
    finally:
        for pending in (task, timer):
            pending.cancel()
        await asyncio.gather(task, timer, return_exceptions=True)
