"""The service table, error codes, joined requests and the event broker."""

import asyncio
import errno

import grpc
import pytest

from cri.images.errors import AccessDenied, ImageNotFound, RegistryUnavailable, StoreFull
from cri.network import NetworkError
from cri.runtime.errors import StartFailed
from cri.server import service
from cri.server.core import Joined
from cri.server.errors import FailedPrecondition, status_of, unimplemented
from cri.server.events import EventBroker
from cri.state.store import UnknownId
from host.errors import InputError, from_errno
from proto.cri import runtime_pb2 as pb
from proto.cri.runtime_pb2_grpc import ImageServiceServicer, RuntimeServiceServicer

NOT_DONE = {"CheckpointContainer"}


def calls(servicer: type) -> set[str]:
    return {name for name in vars(servicer) if name[0].isupper()}


def test_every_call_has_a_handler_or_a_reason():
    done = {*service.RUNTIME_CALLS, *service.RUNTIME_STREAMS}
    assert done | NOT_DONE == calls(RuntimeServiceServicer)
    assert not done & NOT_DONE
    assert {*service.IMAGE_CALLS, *service.IMAGE_STREAMS} == calls(ImageServiceServicer)


def test_streams_are_where_the_contract_has_them():
    methods = [
        *pb.DESCRIPTOR.services_by_name["RuntimeService"].methods,
        *pb.DESCRIPTOR.services_by_name["ImageService"].methods,
    ]
    streaming = {method.name for method in methods if method.server_streaming}
    assert {*service.RUNTIME_STREAMS, *service.IMAGE_STREAMS} == streaming - NOT_DONE


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), grpc.StatusCode.INVALID_ARGUMENT),
        (UnknownId("x"), grpc.StatusCode.NOT_FOUND),
        (FailedPrecondition("x"), grpc.StatusCode.FAILED_PRECONDITION),
        (NetworkError("x"), grpc.StatusCode.UNKNOWN),
        (StartFailed(errno.ENOENT, "exec", step="exec"), grpc.StatusCode.UNKNOWN),
        (ImageNotFound("x"), grpc.StatusCode.NOT_FOUND),
        (AccessDenied("x"), grpc.StatusCode.UNAUTHENTICATED),
        (RegistryUnavailable("x"), grpc.StatusCode.UNAVAILABLE),
        (StoreFull("x"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (from_errno(errno.ETIMEDOUT, "x"), grpc.StatusCode.DEADLINE_EXCEEDED),
        (from_errno(errno.ENOSPC, "x"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (from_errno(errno.EIO, "x"), grpc.StatusCode.INTERNAL),
        (unimplemented("x"), grpc.StatusCode.UNIMPLEMENTED),
    ],
)
def test_errors_become_codes(error, code):
    assert status_of(error) == (code, str(error), True)


def test_an_unforeseen_error_is_internal_and_wants_a_traceback():
    code, words, foreseen = status_of(KeyError("x"))
    assert (code, foreseen) == (grpc.StatusCode.INTERNAL, False)
    assert "KeyError" in words


async def test_a_repeated_request_joins_and_survives_its_caller():
    joined, gate, runs = Joined(), asyncio.Event(), []

    async def work() -> str:
        runs.append(1)
        await gate.wait()
        return "id"

    first = asyncio.create_task(joined.run("key", work))
    await asyncio.sleep(0)
    second = asyncio.create_task(joined.run("key", work))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert await second == "id"
    assert runs == [1]
    assert await joined.run("key", work) == "id"
    assert runs == [1, 1]
    await joined.settle()


async def test_an_error_reaches_every_joined_caller():
    joined = Joined()

    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    found = await asyncio.gather(joined.run(1, work), joined.run(1, work), return_exceptions=True)
    assert [str(error) for error in found] == ["no", "no"]


async def test_events_reach_every_subscriber_from_the_call_on():
    broker = EventBroker()
    broker.publish("before")
    streams = [broker.subscribe(), broker.subscribe()]
    assert broker.listening
    broker.publish("event")
    assert [await anext(stream) for stream in streams] == ["event", "event"]
    broker.close()
    assert [event async for event in streams[0]] == []
    assert not broker.listening


async def test_a_subscriber_that_falls_behind_is_cut_off():
    broker = EventBroker()
    stream = broker.subscribe()
    for number in range(5000):
        broker.publish(number)
    assert not broker.listening
    assert len([event async for event in stream]) == 4096
