"""The CRI client: the only place in the agent that speaks to a container runtime.

One grpc.aio channel, one method a remote call, answers turned into facts where plan and status need them
and left as CRI messages where somebody else renders them (statistics, runtime status). What a runtime
refuses is a `RuntimeFailure`; the text is the runtime's own, because it ends up in the pod's events.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from agent.pods import facts
from agent.pods.convert import (
    Event,
    ImageFact,
    add,
    container_fact,
    event,
    image_fact,
    owner_of,
    sandbox_fact,
)
from agent.pods.pull_progress import PullShown, pulls_shown
from proto.cri import runtime_pb2 as pb
from proto.cri import runtime_pb2_grpc as rpc

_MAX_MESSAGE = 16 << 20
_DEFAULT_TIMEOUT = 120.0
_NO_LISTENER = "failed to connect to all addresses"


class RuntimeFailure(Exception):
    """The runtime refused or failed; `code` is the gRPC status code, the text the runtime's own words."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class RuntimeNotFound(RuntimeFailure):
    """The runtime knows no such sandbox, container or image."""


class RuntimeUnavailable(RuntimeFailure):
    """The runtime does not answer: it is restarting, or its socket is not there."""


@dataclass(frozen=True, kw_only=True)
class ExecResult:
    """How a command run in a container ended."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Runtime:
    """A CRI v1 runtime behind a unix socket (`unix:///run/nodelet/cri.sock`).

    Every method raises RuntimeFailure (RuntimeNotFound, RuntimeUnavailable) and asyncio.CancelledError only.
    """

    def __init__(self, *, endpoint: str, image_endpoint: str = "") -> None:
        self._endpoint = endpoint
        self._image_endpoint = image_endpoint or endpoint
        self._channels: list[grpc.aio.Channel] = []
        self._calls: Any = None
        self._images: Any = None

    async def open(self) -> None:
        """Create the channel; connecting happens with the first call."""
        options = [
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        channel = grpc.aio.insecure_channel(self._endpoint, options=options)
        self._channels = [channel]
        self._calls = rpc.RuntimeServiceStub(channel)
        if self._image_endpoint != self._endpoint:
            channel = grpc.aio.insecure_channel(self._image_endpoint, options=options)
            self._channels.append(channel)
        self._images = rpc.ImageServiceStub(channel)

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        for channel in self._channels:
            await channel.close()
        self._channels = []

    async def _call(
        self, method: str, request: Any, *, image: bool = False, timeout: float | None = _DEFAULT_TIMEOUT
    ) -> Any:
        stub = self._images if image else self._calls
        try:
            return await getattr(stub, method)(request, timeout=timeout)
        except grpc.aio.AioRpcError as exc:
            raise _failure(exc, self._endpoint) from exc

    # --- the runtime itself -------------------------------------------------------------------------------

    async def version(self) -> pb.VersionResponse:
        """Name and version of the runtime."""
        return await self._call("Version", pb.VersionRequest(version="v1"), timeout=10)

    async def status(self, *, verbose: bool = False) -> pb.StatusResponse:
        """RuntimeReady and NetworkReady conditions, handlers, features."""
        return await self._call("Status", pb.StatusRequest(verbose=verbose), timeout=10)

    async def pulls(self) -> Sequence[PullShown]:
        """The pulls under way, where the runtime tells."""
        return pulls_shown((await self.status(verbose=True)).info)

    async def cgroup_driver(self) -> str:
        """The runtime's: cgroupfs or systemd; empty from one that cannot say (KEP-4033)."""
        try:
            answer = await self._call("RuntimeConfig", pb.RuntimeConfigRequest(), timeout=10)
        except RuntimeFailure as exc:
            if exc.code is grpc.StatusCode.UNIMPLEMENTED:
                return ""
            raise
        return "systemd" if answer.linux.cgroup_driver == pb.SYSTEMD else "cgroupfs"

    # --- sandboxes ----------------------------------------------------------------------------------------

    async def run_sandbox(self, config: pb.PodSandboxConfig, *, handler: str = "") -> str:
        """Create and start a pod sandbox; answers its id."""
        request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return (await self._call("RunPodSandbox", request, timeout=240)).pod_sandbox_id

    async def stop_sandbox(self, sandbox_id: str) -> None:
        """Stop every process of the sandbox and free its network; a missing one is stopped already."""
        await self._call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=sandbox_id))

    async def remove_sandbox(self, sandbox_id: str) -> None:
        """Remove the sandbox with all its containers; a missing one is removed already."""
        await self._call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox_id))

    async def sandbox(self, sandbox_id: str) -> facts.SandboxFact:
        """The sandbox's facts, addresses included."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox_id)
        return sandbox_fact((await self._call("PodSandboxStatus", request, timeout=30)).status)

    # --- containers ---------------------------------------------------------------------------------------

    async def create_container(
        self, sandbox_id: str, config: pb.ContainerConfig, sandbox_config: pb.PodSandboxConfig
    ) -> str:
        """Create a container in a sandbox; answers its id."""
        request = pb.CreateContainerRequest(
            pod_sandbox_id=sandbox_id, config=config, sandbox_config=sandbox_config
        )
        return (await self._call("CreateContainer", request)).container_id

    async def start_container(self, container_id: str) -> None:
        """Start a created container; fails when its command cannot be executed."""
        await self._call("StartContainer", pb.StartContainerRequest(container_id=container_id))

    async def stop_container(self, container_id: str, *, grace: float) -> None:
        """Stop signal, then SIGKILL after `grace` seconds; returns when the container has exited."""
        request = pb.StopContainerRequest(container_id=container_id, timeout=max(0, round(grace)))
        await self._call("StopContainer", request, timeout=grace + _DEFAULT_TIMEOUT)

    async def remove_container(self, container_id: str) -> None:
        """Remove a container and its log symlinks; a missing one is removed already."""
        await self._call("RemoveContainer", pb.RemoveContainerRequest(container_id=container_id))

    async def container(self, container_id: str) -> facts.ContainerFact:
        """The container's facts."""
        request = pb.ContainerStatusRequest(container_id=container_id)
        return container_fact((await self._call("ContainerStatus", request, timeout=30)).status)

    async def update_container(self, container_id: str, limits: pb.LinuxContainerResources) -> None:
        """Change a container's limits in place; what is 0 stays as it is."""
        request = pb.UpdateContainerResourcesRequest(container_id=container_id, linux=limits)
        await self._call("UpdateContainerResources", request, timeout=30)

    async def update_sandbox(self, sandbox_id: str, limits: pb.LinuxContainerResources) -> None:
        """Tell what a pod is resized to; a runtime that does not want to know it need not."""
        request = pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id=sandbox_id, resources=limits)
        try:
            await self._call("UpdatePodSandboxResources", request, timeout=30)
        except RuntimeFailure as exc:
            if exc.code is not grpc.StatusCode.UNIMPLEMENTED:
                raise

    async def reopen_log(self, container_id: str) -> None:
        """Make the runtime open a new log file after the old one was renamed."""
        await self._call(
            "ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=container_id), timeout=30
        )

    # --- streams ------------------------------------------------------------------------------------------

    async def exec_sync(self, container_id: str, command: Sequence[str], *, timeout: float) -> ExecResult:
        """Run a command in a container and wait; DEADLINE_EXCEEDED when it takes longer than `timeout` s."""
        request = pb.ExecSyncRequest(container_id=container_id, cmd=command, timeout=max(0, round(timeout)))
        answer = await self._call("ExecSync", request, timeout=timeout + 10 if timeout else None)
        return ExecResult(exit_code=answer.exit_code, stdout=answer.stdout, stderr=answer.stderr)

    async def exec_url(
        self,
        container_id: str,
        command: Sequence[str],
        *,
        tty: bool,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> str:
        """Address of a stream that runs a command in a container."""
        request = pb.ExecRequest(
            container_id=container_id, cmd=command, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr
        )
        return (await self._call("Exec", request, timeout=30)).url

    async def attach_url(
        self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> str:
        """Address of a stream attached to a container's first process."""
        request = pb.AttachRequest(
            container_id=container_id, tty=tty, stdin=stdin, stdout=stdout, stderr=stderr
        )
        return (await self._call("Attach", request, timeout=30)).url

    async def port_forward_url(self, sandbox_id: str, ports: Sequence[int]) -> str:
        """Address of a stream into a sandbox's network namespace."""
        request = pb.PortForwardRequest(pod_sandbox_id=sandbox_id, port=ports)
        return (await self._call("PortForward", request, timeout=30)).url

    # --- images -------------------------------------------------------------------------------------------

    async def image(self, ref: str) -> ImageFact | None:
        """The image of that name or id, or None when the runtime does not hold it."""
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=ref))
        found = (await self._call("ImageStatus", request, image=True, timeout=30)).image
        return image_fact(found) if found.id else None

    async def pull(
        self, ref: str, *, auth: pb.AuthConfig | None = None, sandbox: pb.PodSandboxConfig | None = None
    ) -> str:
        """Pull an image; answers its reference. No time limit of ours: the runtime watches the progress."""
        request = pb.PullImageRequest(image=pb.ImageSpec(image=ref), auth=auth, sandbox_config=sandbox)
        return (await self._call("PullImage", request, image=True, timeout=None)).image_ref

    async def images(self) -> list[ImageFact]:
        """All images the runtime holds."""
        answer = await self._call("ListImages", pb.ListImagesRequest(), image=True, timeout=60)
        return [image_fact(image) for image in answer.images]

    async def remove_image(self, ref: str) -> None:
        """Remove an image; a missing one is removed already."""
        await self._call("RemoveImage", pb.RemoveImageRequest(image=pb.ImageSpec(image=ref)), image=True)

    async def image_fs(self) -> pb.ImageFsInfoResponse:
        """Where images and writable layers are, and what they take."""
        return await self._call("ImageFsInfo", pb.ImageFsInfoRequest(), image=True, timeout=60)

    # --- everything at once -------------------------------------------------------------------------------

    async def pods(self) -> dict[str, facts.PodFacts]:
        """Every pod the runtime holds, by uid: lists of sandboxes and containers, then their details."""
        boxes, cons = await asyncio.gather(
            self._call("ListPodSandbox", pb.ListPodSandboxRequest(), timeout=60),
            self._call("ListContainers", pb.ListContainersRequest(), timeout=60),
        )
        details = await asyncio.gather(
            *(self._detail(self.sandbox(box.id)) for box in boxes.items),
            *(self._detail(self.container(con.id)) for con in cons.containers),
        )
        owner: dict[str, str] = {}
        pods: dict[str, facts.PodFacts] = {}
        for box in boxes.items:
            uid = box.metadata.uid
            owner[box.id] = uid
            pods.setdefault(
                uid, facts.PodFacts(uid=uid, namespace=box.metadata.namespace, name=box.metadata.name)
            )
        places = [(owner[b.id], b.id) for b in boxes.items]
        places += [(owner_of(con, owner), con.pod_sandbox_id) for con in cons.containers]
        for (uid, sandbox_id), detail in zip(places, details, strict=True):
            if uid and detail is not None:
                pods[uid] = add(pods.get(uid, facts.PodFacts(uid=uid)), detail, sandbox_id)
        return pods

    @staticmethod
    async def _detail(asking: Any) -> Any:
        try:
            return await asking
        except RuntimeNotFound:  # removed between the list and this question
            return None

    async def events(self) -> AsyncIterator[Event]:
        """What happens to sandboxes and containers, as it happens; ends with RuntimeFailure.

        Source: KEP-3386. The pod's state travels in the event, so nothing needs to be asked.
        """
        stream = self._calls.GetContainerEvents(pb.GetEventsRequest())
        try:
            async for message in stream:
                yield event(message)
        except grpc.aio.AioRpcError as exc:
            raise _failure(exc, self._endpoint) from exc
        finally:
            stream.cancel()

    # --- statistics, rendered by agent/server -------------------------------------------------------------

    async def container_stats(self, *, sandbox_id: str = "") -> Sequence[pb.ContainerStats]:
        """Usage of every running container, or of those in one sandbox."""
        request = pb.ListContainerStatsRequest(filter=pb.ContainerStatsFilter(pod_sandbox_id=sandbox_id))
        return (await self._call("ListContainerStats", request, timeout=30)).stats

    async def sandbox_stats(self) -> Sequence[pb.PodSandboxStats]:
        """Usage of every ready sandbox and its containers."""
        return (await self._call("ListPodSandboxStats", pb.ListPodSandboxStatsRequest(), timeout=30)).stats


def _failure(exc: grpc.aio.AioRpcError, endpoint: str) -> RuntimeFailure:
    kinds: Mapping[grpc.StatusCode, type[RuntimeFailure]] = {
        grpc.StatusCode.NOT_FOUND: RuntimeNotFound,
        grpc.StatusCode.UNAVAILABLE: RuntimeUnavailable,
    }
    text = exc.details() or exc.code().name.lower()
    if exc.code() is grpc.StatusCode.UNAVAILABLE and _NO_LISTENER in text:  # gRPC's words, not the runtime's
        reason = text.rpartition("error: ")[2].lower()
        fix = "start nodelet-cri, or set containerRuntimeEndpoint"
        text = f"no container runtime answers at {endpoint} ({reason}): {fix}"
    return kinds.get(exc.code(), RuntimeFailure)(exc.code(), text)
