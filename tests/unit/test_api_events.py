"""Events: counted, bounded, never holding up the caller."""

import asyncio
from contextlib import asynccontextmanager

from apikit import ScriptedTransport

from agent.api import errors, events
from agent.api.client import ApiClient
from agent.api.events import EventRecorder, node_reference
from agent.api.structs import ObjectReference
from host.clocks import FakeClock, settle

REF = ObjectReference(
    api_version="v1", kind="Pod", namespace="d", name="p", uid="u", field_path="spec.containers{c}"
)


@asynccontextmanager
async def recording(answer):
    transport, clock = ScriptedTransport(answer), FakeClock()
    recorder = EventRecorder(ApiClient(transport), host="n1", clock=clock)
    task = asyncio.create_task(recorder.run())
    try:
        yield recorder, transport, clock
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def echo(method, path, query, body):
    return body


async def test_an_event_has_what_describe_shows():
    async with recording(echo) as (recorder, transport, _):
        recorder.record(REF, type="Normal", reason="Started", message="Container started")
        await settle()
        (method, path, _, body, _), *_ = transport.requests
        assert (method, path) == ("POST", "/api/v1/namespaces/d/events")
        assert body["involvedObject"]["fieldPath"] == "spec.containers{c}"
        assert body["source"] == {"component": "kubelet", "host": "n1"}
        assert body["count"] == 1
        assert body["firstTimestamp"] == body["lastTimestamp"]


async def test_equal_events_are_counted():
    async with recording(echo) as (recorder, transport, clock):
        for _ in range(3):
            recorder.record(REF, type="Warning", reason="BackOff", message="again")
            await settle()
            await clock.advance(10)
        methods = [request[0] for request in transport.requests]
        assert methods == ["POST", "PATCH", "PATCH"]
        assert transport.requests[-1][3]["count"] == 3


async def test_after_ten_minutes_a_new_event_begins():
    async with recording(echo) as (recorder, transport, clock):
        for _ in range(2):
            recorder.record(node_reference("n1"), type="Normal", reason="Starting", message="s")
            await settle()
            await clock.advance(events.AGGREGATION_WINDOW + 1)
        assert [request[0] for request in transport.requests] == ["POST", "POST"]
        assert transport.requests[0][1] == "/api/v1/namespaces/default/events"


async def test_the_queue_is_bounded_and_recording_does_not_wait():
    async with recording(lambda *_: errors.Unreachable("away")) as (recorder, _, _clock):
        for number in range(events.QUEUE + 50):
            ref = ObjectReference(api_version="v1", kind="Pod", namespace="d", name=f"p{number}")
            recorder.record(ref, type="Normal", reason="R", message="m")
        assert recorder.dropped == 50


async def test_an_event_waits_for_the_api_and_keeps_its_place():
    answers = [errors.Unreachable("away")]

    def answer(method, path, query, body):
        return answers.pop() if answers else body

    async with recording(answer) as (recorder, transport, clock):
        recorder.record(REF, type="Normal", reason="One", message="1")
        recorder.record(REF, type="Normal", reason="Two", message="2")
        await settle()
        await clock.advance(6)
        assert [request[3]["reason"] for request in transport.requests] == ["One", "One", "Two"]


async def test_a_refused_event_is_skipped():
    def answer(method, path, query, body):
        return errors.Forbidden("namespace is terminating") if body["reason"] == "One" else body

    async with recording(answer) as (recorder, transport, _):
        recorder.record(REF, type="Normal", reason="One", message="1")
        recorder.record(REF, type="Normal", reason="Two", message="2")
        await settle()
        assert len(transport.requests) == 2


async def test_many_different_messages_of_one_reason_become_one_event():
    async with recording(echo) as (recorder, transport, _):
        for number in range(14):
            recorder.record(REF, type="Warning", reason="Unhealthy", message=f"try {number}")
            await settle()
        made = [body["message"] for method, _, _, body, _ in transport.requests if method == "POST"]
        assert made == [*(f"try {n}" for n in range(9)), "(combined from similar events): try 9"]
        method, _, _, body, _ = transport.requests[-1]
        assert (method, body["count"]) == ("PATCH", 5)
        assert body["message"] == "(combined from similar events): try 13"


async def test_a_flood_of_one_object_is_cut_off():
    async with recording(echo) as (recorder, transport, clock):
        for number in range(40):
            recorder.record(REF, type="Normal", reason=f"R{number}", message="m")
            await settle()
        assert len(transport.requests) == 25
        await clock.advance(301)
        recorder.record(REF, type="Normal", reason="Later", message="m")
        await settle()
        assert transport.requests[-1][3]["reason"] == "Later"
