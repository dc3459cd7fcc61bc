"""Events of one object: similar ones are told as one, a flood is cut off, others are not touched."""

from agent.api.event_limits import BURST, OBJECTS, REFILL, SIMILAR, WINDOW, EventLimits


def test_similar_messages_are_combined_from_the_tenth_on():
    limits = EventLimits()
    told = [limits.combined("u", "Warning", "Unhealthy", f"try {n}", now=n) for n in range(SIMILAR + 3)]
    assert told == [False] * (SIMILAR - 1) + [True] * 4
    assert not limits.combined("u", "Warning", "BackOff", "other", now=20)
    assert not limits.combined("v", "Warning", "Unhealthy", "other", now=20)


def test_one_message_again_and_again_is_never_combined():
    limits = EventLimits()
    assert not any(limits.combined("u", "Warning", "BackOff", "again", now=n) for n in range(50))


def test_messages_are_forgotten_after_ten_quiet_minutes():
    limits = EventLimits()
    for n in range(SIMILAR):
        limits.combined("u", "Warning", "Unhealthy", f"try {n}", now=0)
    assert not limits.combined("u", "Warning", "Unhealthy", "later", now=WINDOW + 1)


def test_an_object_has_a_burst_and_then_one_event_in_five_minutes():
    limits = EventLimits()
    assert [limits.admitted("u", now=0) for _ in range(BURST + 2)] == [True] * BURST + [False] * 2
    assert limits.admitted("v", now=0)
    assert not limits.admitted("u", now=REFILL - 1)
    assert limits.admitted("u", now=REFILL + 1)
    assert not limits.admitted("u", now=REFILL + 2)
    assert limits.dropped == 4


def test_memory_is_bounded():
    limits = EventLimits()
    for n in range(OBJECTS + 5):
        limits.admitted(f"u{n}", now=0)
        limits.combined(f"u{n}", "Normal", "Started", "m", now=0)
    assert len(limits._buckets) == len(limits._groups) == OBJECTS
