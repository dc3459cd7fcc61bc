"""A corpus of bad requests: each is refused in one line that names the field, or harmless; nothing stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import crileaks
import pytest
from cri_corpus import LONG, changes, nested_groups, put
from criclient import BUSYBOX, refused
from crinode import CriNode
from grpc import StatusCode
from grpc.aio import AioRpcError

from proto.cri import runtime_pb2 as pb
from proto.cri.runtime_pb2_grpc import ImageServiceStub, RuntimeServiceStub

MOST_WORDS = 1100
CALLS = sorted(
    (service.full_name, method.name)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.server_streaming
)


@pytest.fixture
async def unharmed(node: CriNode) -> AsyncIterator[CriNode]:
    """Afterwards the daemon is the same one, has had no unforeseen error, and nothing is left."""
    before, pid, length = node.picture().without_descriptors(), node.pid, len(node.log())
    yield node
    await node.clean()
    assert (node.pid, node.has_ended()) == (pid, False)
    assert node.traceback(since=length) == ""
    assert crileaks.difference(before, node.picture().without_descriptors()) == []


def on_the_node(node: CriNode) -> pb.PodSandboxConfig:
    """A pod that is made quickly."""
    config = node.sandbox_config()
    config.linux.security_context.namespace_options.network = pb.NODE
    return config


def simple(config: pb.PodSandboxConfig) -> pb.ContainerConfig:
    container = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="main"), command=["sleep", "9"])
    container.image.image = BUSYBOX
    container.linux.security_context.namespace_options.CopyFrom(
        config.linux.security_context.namespace_options
    )
    return container


def check_refusal(what: str, exc: AioRpcError) -> None:
    words = exc.details() or ""
    image = "image.image" in what and exc.code() is StatusCode.NOT_FOUND
    assert image or exc.code() is StatusCode.INVALID_ARGUMENT, (what, exc.code(), words[:300])
    assert 0 < len(words) < MOST_WORDS, what
    assert "\n" not in words and "\x1b" not in words, (what, words)


async def test_every_field_of_a_pod(unharmed: CriNode):
    node = unharmed
    made = 0
    for what, path, value in changes(pb.PodSandboxConfig.DESCRIPTOR):
        config = on_the_node(node)
        put(config, path, value)
        try:
            sandbox = await node.run_pod(config)
        except AioRpcError as exc:
            check_refusal(what, exc)
            continue
        made += 1
        await node.runtime.ListPodSandbox(pb.ListPodSandboxRequest())
        await node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
    assert made > 10


async def test_every_field_of_a_container(unharmed: CriNode):
    node = unharmed
    config = on_the_node(node)
    sandbox = await node.run_pod(config)
    made = 0
    for what, path, value in changes(pb.ContainerConfig.DESCRIPTOR):
        request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=simple(config))
        put(request.config, path, value)
        try:
            container = (await node.runtime.CreateContainer(request)).container_id
        except AioRpcError as exc:
            check_refusal(what, exc)
            continue
        made += 1
        await node.status(container)
        await node.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    assert made > 10


async def send(node: CriNode, service: str, call: str, data: bytes) -> Any:
    """A call with these bytes for its request."""
    method = node.channel.unary_unary(f"/{service}/{call}")
    return await method(data)


@pytest.mark.parametrize(("service", "call"), CALLS, ids=[call for _, call in CALLS])
async def test_bytes_that_are_no_request(unharmed: CriNode, service: str, call: str):
    for data in (b"\x0a\x7fab", nested_groups(1_000_000)):
        code, words = await refused(send(unharmed, service, call, data))
        assert code is StatusCode.INVALID_ARGUMENT
        assert words.startswith(f"not a {input_of(call)}: "), words


@pytest.mark.parametrize("call", ["StopPodSandbox", "RemoveContainer", "ContainerStatus"])
async def test_text_that_is_no_text(unharmed: CriNode, call: str):
    code, words = await refused(send(unharmed, "runtime.v1.RuntimeService", call, b"\x0a\x03\xff\xfe\xfd"))
    assert (code, "UTF-8" in words) == (StatusCode.INVALID_ARGUMENT, True)


def input_of(call: str) -> str:
    methods = {
        method.name: method.input_type.name
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    return methods[call]


async def test_a_message_beyond_the_limit(unharmed: CriNode):
    code, words = await refused(send(unharmed, *CALLS[0], b"\0" * ((16 << 20) + 1)))
    assert code is StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in words


@pytest.mark.parametrize("field", ["labels", "annotations"])
async def test_a_hundred_thousand_labels(unharmed: CriNode, field: str):
    """Nobody could list the pods any more: refused for its size, and the field that has it is named."""
    node = unharmed
    config = on_the_node(node)
    getattr(config, field).update({f"label-{number}": "v" * 20 for number in range(100_000)})
    code, words = await refused(node.run_pod(config))
    assert code is StatusCode.INVALID_ARGUMENT
    assert words.startswith(f"{field}: the configuration has ")
    good = on_the_node(node)
    sandbox = await node.run_pod(good)
    request = pb.CreateContainerRequest(pod_sandbox_id=sandbox, config=simple(good))
    getattr(request.config, field).update(getattr(config, field))
    code, words = await refused(node.runtime.CreateContainer(request))
    assert code is StatusCode.INVALID_ARGUMENT
    assert words.startswith(f"{field}: the configuration has ")


async def test_long_words_in_every_other_call(unharmed: CriNode):
    """Ids, handlers, image names and filters of 300 KiB: no such thing, or nothing to do."""
    node = unharmed
    for service, stub in ((RuntimeServiceStub, node.runtime), (ImageServiceStub, node.images)):
        name = "RuntimeService" if service is RuntimeServiceStub else "ImageService"
        for method in pb.DESCRIPTOR.services_by_name[name].methods:
            if method.server_streaming or method.name in ("RunPodSandbox", "CreateContainer"):
                continue
            request = getattr(pb, method.input_type.name)()
            for field in method.input_type.fields:
                if field.type == field.TYPE_STRING:
                    put(request, (field,), LONG)
            if "image" in method.input_type.fields_by_name:
                request.image.image = LONG
            try:
                await getattr(stub, method.name)(request)
            except AioRpcError as exc:
                expected = (StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND, StatusCode.UNIMPLEMENTED)
                assert exc.code() in expected, (method.name, exc.code(), exc.details())
                assert len(exc.details() or "") < MOST_WORDS


async def test_a_handler_with_a_long_name(unharmed: CriNode):
    request = pb.RunPodSandboxRequest(config=on_the_node(unharmed), runtime_handler=LONG)
    code, words = await refused(unharmed.runtime.RunPodSandbox(request))
    assert code is StatusCode.INVALID_ARGUMENT
    assert "handler" in words and len(words) < MOST_WORDS
