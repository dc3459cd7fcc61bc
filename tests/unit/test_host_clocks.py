"""host.clocks: virtual time wakes sleepers in order, and a set event wakes them early."""

import asyncio

from host.clocks import FakeClock, sleep_unless


async def test_sleepers_wake_in_order_and_at_their_time():
    clock = FakeClock(now=100.0)
    seen: list[tuple[str, float]] = []

    async def sleeper(name, seconds):
        await clock.sleep(seconds)
        seen.append((name, clock.monotonic()))

    tasks = [asyncio.create_task(sleeper(n, s)) for n, s in (("b", 2.0), ("a", 1.0), ("c", 10.0))]
    await clock.advance(5.0)
    assert seen == [("a", 1.0), ("b", 2.0)]
    assert clock.now() == 105.0
    await clock.advance(5.0)
    assert seen[-1] == ("c", 10.0)
    await asyncio.gather(*tasks)


async def test_a_sleep_ends_at_its_time_or_with_the_event():
    clock, event = FakeClock(), asyncio.Event()
    task = asyncio.create_task(sleep_unless(clock, event, 10.0))
    await clock.advance(9.0)
    assert not task.done()
    await clock.advance(1.0)
    assert task.done()
    task = asyncio.create_task(sleep_unless(clock, event, 10.0))
    await clock.advance(0.0)
    event.set()
    await task
    assert clock.monotonic() == 10.0
