"""A process dies, or fails, between any two steps; a kubelet-like loop gets its pod, and nothing is left.

The fail points are found in the sources, so that a new one is tested by being there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import crileaks
import pytest
from crinode import BUSYBOX, DRIVER, CriNode
from grpc import StatusCode, aio

from proto.cri import runtime_pb2 as pb

ROOT = Path(__file__).parents[2]
OF_SYSTEMD = ("runtime.container_held",)
"""Only with its cgroups; test_systemd_driver.py is there for them."""
POINTS = sorted(
    name
    for package in ("cri", "cni", "host")
    for path in (ROOT / package).rglob("*.py")
    for name in re.findall(r'\breach\("([a-z_.]+)"\)', path.read_text())
    if path.name != "failpoints.py" and (DRIVER == "systemd" or name not in OF_SYSTEMD)
)
NEVER_FAIL = (
    "supervisor.container_executed",
    "supervisor.container_reaped",
    "supervisor.exit_recorded",
)
"""Something has happened to a process: that cannot be refused; what is written of it may fail quietly."""
RECOVERY = [name for name in POINTS if name.startswith(("recover.", "sandbox_undo."))]
ATTEMPTS = 8
UNNOTICED = ("supervisor.container_forgotten", "supervisor.stopped")
"""A supervisor that dies there has done what it was asked for: nobody has to be told."""
ENDS_BY_ITSELF = "trap 'exit 0' TERM; echo up; while true; do sleep 0.05; done"


def test_every_fail_point_has_a_name_of_its_own():
    assert len(POINTS) > 40
    assert len(set(POINTS)) == len(POINTS)


class Kubelet:
    """Wants one pod with one running container, and later none; counts what went wrong on the way."""

    def __init__(self, node: CriNode) -> None:
        self.node = node
        self.trouble: list[str] = []
        self.disarmed = False
        self.grace = 10
        self.config = node.sandbox_config()

    async def until_done(self, work: Callable[[], Awaitable[bool]]) -> None:
        """Repeat, whatever fails, starting the daemon again when it has died."""
        for _ in range(ATTEMPTS):
            try:
                async with asyncio.timeout(30):
                    if await work():
                        return
            except aio.AioRpcError as exc:
                self.trouble.append(f"{exc.code()}: {exc.details()}")
            if self.node.has_ended():
                self.trouble.append("the daemon has died")
                await self.node.revive()
            elif self.trouble and not self.disarmed:  # each new supervisor would do the same again
                await self.node.restart()
                self.disarmed = True
        raise AssertionError(f"not done after {ATTEMPTS} attempts: {self.trouble}\n{self.node.log()[-3000:]}")

    async def run(self) -> bool:
        """One step of SyncPod; True when the container runs."""
        runtime, image = self.node.runtime, pb.ImageSpec(image=BUSYBOX)
        if not (await self.node.images.ImageStatus(pb.ImageStatusRequest(image=image))).HasField("image"):
            await self.node.images.PullImage(pb.PullImageRequest(image=image))
        sandboxes = (await runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items
        ready = [item.id for item in sandboxes if item.state == pb.SANDBOX_READY]
        for item in sandboxes:
            if item.state != pb.SANDBOX_READY:
                self.trouble.append("a sandbox is not ready")
                self.config.metadata.attempt = max(self.config.metadata.attempt, item.metadata.attempt + 1)
                await runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=item.id))
                await runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=item.id))
        assert len(ready) <= 1, "two ready sandboxes of one pod"
        sandbox = ready[0] if ready else await self.node.run_pod(self.config)
        found = (await runtime.ListContainers(pb.ListContainersRequest())).containers
        attempt = 0
        for item in found:
            if item.state == pb.CONTAINER_RUNNING:
                return True
            if item.state == pb.CONTAINER_CREATED:
                await runtime.StartContainer(pb.StartContainerRequest(container_id=item.id))
                return False
            attempt = item.metadata.attempt + 1
            self.trouble.append(f"a container has ended: {item.state}")
        await self.node.create(sandbox, self.config, "sh", "-c", ENDS_BY_ITSELF, attempt=attempt)
        return False

    async def end(self) -> bool:
        """Stop and remove everything, as a kubelet does for a deleted pod; True when all is gone."""
        runtime = self.node.runtime
        for item in (await runtime.ListContainers(pb.ListContainersRequest())).containers:
            if item.state == pb.CONTAINER_RUNNING:
                await runtime.StopContainer(pb.StopContainerRequest(container_id=item.id, timeout=self.grace))
        for pod in (await runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items:
            if pod.state != pb.SANDBOX_READY:
                self.trouble.append("a sandbox is not ready")
        for item in (await runtime.ListContainers(pb.ListContainersRequest())).containers:
            await runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=item.id))
        for pod in (await runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items:
            await runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
            await runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))
        await self.node.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=BUSYBOX)))
        return True


@pytest.fixture
async def kubelet(bare_node: CriNode):
    """On a node without images and pods; afterwards nothing may be left of what the test made."""
    node = bare_node
    for item in (await node.images.ListImages(pb.ListImagesRequest())).images:
        await node.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=item.id)))
    before = node.picture().without_descriptors()
    yield Kubelet(node)
    if node.has_ended():
        await node.revive()
    assert crileaks.difference(before, node.picture().without_descriptors()) == []


@pytest.mark.parametrize("point", [name for name in POINTS if name not in RECOVERY])
async def test_a_crash_between_any_two_steps(kubelet: Kubelet, point: str):
    await kubelet.node.restart(failpoint=point)
    kubelet.grace = 0 if point == "container_stop.killed" else 10
    await kubelet.until_done(kubelet.run)
    await kubelet.until_done(kubelet.end)
    assert kubelet.trouble or point in UNNOTICED, "the fail point was never reached"


@pytest.mark.parametrize("point", [name for name in POINTS if name not in (*RECOVERY, *NEVER_FAIL)])
async def test_an_error_between_any_two_steps(kubelet: Kubelet, point: str):
    """What fails is undone or can be repeated; the daemon stays."""
    await kubelet.node.restart(failpoint=f"{point}:error")
    kubelet.grace = 0 if point == "container_stop.killed" else 10
    kubelet.disarmed = not point.startswith("supervisor.")
    pid = kubelet.node.pid
    await kubelet.until_done(kubelet.run)
    await kubelet.until_done(kubelet.end)
    assert point.startswith("supervisor.") or kubelet.node.pid == pid
    assert point in UNNOTICED or f"fail point {point}" in kubelet.node.log() + " ".join(kubelet.trouble)


@pytest.mark.parametrize("point", RECOVERY)
async def test_a_crash_while_recovering_from_a_crash(kubelet: Kubelet, point: str):
    """A half-made pod beside a running one; the second start dies as well, the third puts all right."""
    node = kubelet.node
    await kubelet.until_done(kubelet.run)
    await node.restart(failpoint="sandbox_run.network_added")
    with pytest.raises(aio.AioRpcError) as caught:
        await node.run_pod(node.sandbox_config())
    assert caught.value.code() is StatusCode.UNAVAILABLE
    await node.revive(failpoint=point, answers=False)
    node.wait_end()
    await node.revive()
    running = (await node.runtime.ListContainers(pb.ListContainersRequest())).containers
    assert [item.state for item in running] == [pb.CONTAINER_RUNNING]
    await kubelet.until_done(kubelet.end)
