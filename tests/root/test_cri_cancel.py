"""A client gives up at every moment and asks again with the same words: there is one object, nothing is left.

The kubelet does so whenever its own deadline passes (pain of runtimes that make a second sandbox then).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import crileaks
import pytest
from crinode import BUSYBOX, VOLUMES, CriNode
from grpc import StatusCode
from grpc.aio import AioRpcError

from proto.cri import runtime_pb2 as pb

STEPS = [0.0002 * 1.6**step for step in range(14)]
"""Seconds until the first attempt is given up, one for each round: from before the request has arrived to
after the slowest call has been answered (0.1 s)."""
PATIENCE = 20.0


async def impatient(call: Callable[..., Any], first: float, *, cancel: bool) -> Any:
    """The answer of a call that is given up after `first` seconds and repeated with twice the time."""
    limit = first
    while limit < PATIENCE:
        attempt = call() if cancel else call(timeout=limit)
        try:
            return await (asyncio.wait_for(attempt, limit) if cancel else attempt)
        except TimeoutError:
            pass
        except AioRpcError as exc:
            if exc.code() is not StatusCode.DEADLINE_EXCEEDED:
                raise
        limit *= 2
    raise AssertionError("no answer")


@pytest.mark.parametrize("cancel", [True, False], ids=["cancelled", "deadline"])
async def test_a_pod_of_an_impatient_client(node: CriNode, cancel: bool):
    before = node.picture().without_descriptors()
    runtime = node.runtime
    for first in STEPS:

        async def ask(name: str, request: Any, first: float = first) -> Any:
            stub = getattr(runtime, name)
            return await impatient(lambda **words: stub(request, **words), first, cancel=cancel)

        config = node.sandbox_config()
        made = await ask("RunPodSandbox", pb.RunPodSandboxRequest(config=config))
        pods = (await runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items
        assert [(item.id, item.state) for item in pods] == [(made.pod_sandbox_id, pb.SANDBOX_READY)]
        wanted = pb.CreateContainerRequest(pod_sandbox_id=made.pod_sandbox_id, sandbox_config=config)
        wanted.config.metadata.name = "main"
        wanted.config.image.image = BUSYBOX
        wanted.config.command.extend(["sleep", "1000"])
        container = (await ask("CreateContainer", wanted)).container_id
        await start(node, container, first, cancel=cancel)
        found = (await runtime.ListContainers(pb.ListContainersRequest())).containers
        assert [(item.id, item.state) for item in found] == [(container, pb.CONTAINER_RUNNING)]
        await ask("StopContainer", pb.StopContainerRequest(container_id=container))
        assert (await node.status(container)).exit_code == 137
        await ask("RemoveContainer", pb.RemoveContainerRequest(container_id=container))
        await ask("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=made.pod_sandbox_id))
        await ask("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=made.pod_sandbox_id))
        assert not node.picture().state
    assert crileaks.difference(before, node.picture().without_descriptors()) == []


async def start(node: CriNode, container: str, first: float, *, cancel: bool) -> None:
    """StartContainer; the one call that a repeat of says, as CRI wants it, when the first has done it."""
    request = pb.StartContainerRequest(container_id=container)
    try:
        await impatient(lambda **words: node.runtime.StartContainer(request, **words), first, cancel=cancel)
    except AioRpcError as exc:
        assert exc.code() is StatusCode.FAILED_PRECONDITION
        assert "is running" in (exc.details() or "")


async def test_a_grace_period_that_its_client_does_not_wait_for(node: CriNode):
    """Stop with a long time, given up; stop with none: it ends at once, and once."""
    _, container, _ = await node.launch("sh", "-c", "trap '' TERM; while true; do sleep 0.1; done")
    for _ in range(3):
        with pytest.raises(TimeoutError):
            long = pb.StopContainerRequest(container_id=container, timeout=1000)
            await asyncio.wait_for(node.runtime.StopContainer(long), 0.05)
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING
    await node.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
    assert (await node.status(container)).exit_code == 137


async def test_a_pull_of_an_impatient_client(bare_node: CriNode):
    """One image; of the pulls given up on the way there is nothing, once it is removed."""
    node, image = bare_node, pb.ImageSpec(image=VOLUMES)
    await node.images.RemoveImage(pb.RemoveImageRequest(image=image))
    before = node.picture().without_descriptors()
    pull = pb.PullImageRequest(image=image)
    for first, cancel in ((0.001, True), (0.02, True), (0.02, False)):
        answer = await impatient(lambda **words: node.images.PullImage(pull, **words), first, cancel=cancel)
        listed = (await node.images.ListImages(pb.ListImagesRequest())).images
        assert [item.id for item in listed].count(answer.image_ref) == 1
        await node.images.RemoveImage(pb.RemoveImageRequest(image=image))
        assert crileaks.difference(before, node.picture().without_descriptors()) == []
