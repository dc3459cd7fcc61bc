"""The three watch layers and the informer: resuming, expiry, pruning, and never an error for an empty
list."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from apikit import ScriptedTransport, event, item, listing, refusal

from agent.api import errors
from agent.api.client import ApiClient
from agent.api.resources import PODS
from agent.api.watch import LAST_DELAY, Change, Informer, LineReader, Selection, backoff
from host.clocks import FakeClock, settle

EVERYTHING = Selection(PODS)


@asynccontextmanager
async def following(transport, clock=None):
    """An informer that runs, and what it reported."""
    seen = []
    clock = clock or FakeClock()
    informer = Informer(
        ApiClient(transport, clock=clock),
        EVERYTHING,
        lambda old, new: seen.append((old and old.metadata.name, new and new.metadata.name)),
    )
    task = asyncio.create_task(informer.run())
    try:
        yield informer, seen, clock
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_changes_arrive_and_a_broken_watch_goes_on_from_where_it_was():
    transport = ScriptedTransport(
        lambda *_: listing(item("a", "1"), version="10"),
        [
            [event("ADDED", item("b", "11")), event("BOOKMARK", {"metadata": {"resourceVersion": "15"}})],
            [event("MODIFIED", item("a", "16")), event("DELETED", item("b", "17"))],
        ],
    )
    async with following(transport) as (informer, seen, _):
        await settle(60)
        assert seen == [(None, "a"), (None, "b"), ("a", "a"), ("b", None)]
        assert set(informer.store) == {"default/a"}
    assert [query["resourceVersion"] for query in transport.watched] == ["10", "15"]
    assert transport.watched[0]["allowWatchBookmarks"] == "true"


async def test_expiry_lists_again_and_prunes_what_vanished():
    lists = [listing(item("a", "1"), item("b", "2"), version="10"), listing(item("a", "1"), version="20")]
    transport = ScriptedTransport(lambda *_: lists.pop(0), [[event("ERROR", {"code": 410})], []])
    async with following(transport) as (informer, seen, clock):
        await settle(60)
        await clock.advance(1.0)
        await settle(60)
        assert set(informer.store) == {"default/a"}
        # What did not change is not reported again.
        assert seen == [(None, "a"), (None, "b"), ("b", None)]


async def test_what_was_added_and_vanished_while_we_were_away_is_pruned():
    lists = [listing(version="10"), listing(version="20")]
    streams = [[event("ADDED", item("a", "11")), event("ERROR", {"code": 410})], []]
    async with following(ScriptedTransport(lambda *_: lists.pop(0), streams)) as (informer, seen, clock):
        await settle(60)
        await clock.advance(1.0)
        await settle(60)
        assert informer.store == {}
        assert seen == [(None, "a"), ("a", None)]


async def test_a_failing_list_keeps_everything_and_is_tried_again():
    answers = [listing(item("a", "1"), version="10"), refusal(500), refusal(500), listing(item("a", "2"))]
    transport = ScriptedTransport(lambda *_: answers.pop(0), [[event("ERROR", {"code": 410})], []])
    async with following(transport) as (informer, seen, clock):
        await settle(60)
        for _ in range(4):
            assert set(informer.store) == {"default/a"}
            await clock.advance(1.0)
            await settle(60)
        assert answers == []
        assert seen == [(None, "a"), ("a", "a")]


async def test_not_synced_before_a_complete_list():
    answers = [errors.Unreachable("no"), listing()]
    async with following(ScriptedTransport(lambda *_: answers.pop(0))) as (informer, _, clock):
        await settle(60)
        assert not informer.synced.is_set()
        await clock.advance(1.0)
        await settle(60)
        assert informer.synced.is_set()


async def test_a_late_subscriber_hears_of_everything_known():
    async with following(ScriptedTransport(lambda *_: listing(item("a", "1")))) as (informer, _, _clock):
        await settle(60)
        heard = []
        informer.subscribe(lambda old, new: heard.append((old, new.metadata.name)))
        assert heard == [(None, "a")]


async def test_an_unreadable_event_is_not_skipped_but_listed_around():
    lists = [listing(version="10"), listing(item("a", "1"), version="20")]
    transport = ScriptedTransport(lambda *_: lists.pop(0), [[event("ADDED", {"metadata": 7})], []])
    async with following(transport) as (informer, _, clock):
        await settle(60)
        await clock.advance(1.0)
        await settle(60)
        assert set(informer.store) == {"default/a"}


def test_a_bookmark_of_a_kind_with_required_lists():
    obj = b'{"kind":"Pod","metadata":{"resourceVersion":"5"},"spec":{"containers":null}}'
    line = b'{"type":"BOOKMARK","object":' + obj + b"}"
    read = LineReader(EVERYTHING).read(line)
    assert (read.change, read.obj, read.resource_version) == (Change.BOOKMARK, None, "5")


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"type":"NEW","object":{}}', b'{"type":5}'])
def test_lines_that_are_no_events(line):
    with pytest.raises(errors.Temporary, match="unreadable event"):
        LineReader(EVERYTHING).read(line)


def test_back_off_grows_and_is_bounded():
    assert backoff(0) <= 0.25
    assert all(LAST_DELAY / 2 <= backoff(attempt) <= LAST_DELAY for attempt in (10, 50, 10_000))
