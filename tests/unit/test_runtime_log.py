"""CRI log lines: cut by length alone, however the bytes arrive, and nothing of them lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.runtime.log import MAX_LINE, LineLog

LINE = re.compile(rb"1970-01-01T00:00:00\.\d{9}Z stdout ([FP]) ([^\n]*)\n")
SIZES = st.sampled_from([0, 1, 2, 80, MAX_LINE - 1, MAX_LINE, MAX_LINE + 1, 2 * MAX_LINE, 5 * MAX_LINE + 7])


def parse(log: bytes) -> list[tuple[bytes, bytes]]:
    """(tag, text) of every line; every byte must belong to one."""
    found = LINE.findall(log)
    assert sum(len(text) for _, text in found) + len(found) * len(
        "1970-01-01T00:00:00.000000000Z stdout F \n"
    ) == len(log)
    return found


def written(pieces: list[bytes]) -> list[tuple[bytes, bytes]]:
    lines = LineLog(b"stdout")
    return parse(b"".join([*(lines.feed(piece, 7) for piece in pieces if piece), lines.flush(7)]))


@settings(deadline=None)
@given(st.lists(SIZES, max_size=8), st.booleans(), st.lists(st.integers(1, 70_000), min_size=1, max_size=5))
def test_lines_come_back_whole_however_they_arrive(sizes: list[int], ended: bool, steps: list[int]) -> None:
    data = b"\n".join(b"x" * size for size in sizes) + (b"\n" if ended else b"")
    pieces, at = [], 0
    while at < len(data):
        step = steps[len(pieces) % len(steps)]
        pieces.append(data[at : at + step])
        at += step
    found = written(pieces)
    assert found == written([data])
    text = b"".join(part + (b"\n" if tag == b"F" else b"") for tag, part in found)
    assert text.removesuffix(b"\n") == data.removesuffix(b"\n")
    assert all(len(part) == MAX_LINE for tag, part in found if tag == b"P")
    assert all(len(part) <= MAX_LINE for _, part in found)


@pytest.mark.parametrize(("size", "tags"), [(MAX_LINE, b"F"), (MAX_LINE + 1, b"PF"), (2 * MAX_LINE, b"PF")])
def test_a_line_is_cut_only_when_it_is_too_long(size: int, tags: bytes) -> None:
    assert b"".join(tag for tag, _ in written([b"x" * size + b"\n"])) == tags


@given(st.binary(max_size=400))
def test_any_bytes_are_kept(data: bytes) -> None:
    text = b"".join(part + b"\n" for _, part in written([data[at : at + 7] for at in range(0, len(data), 7)]))
    assert text.removesuffix(b"\n") == data.removesuffix(b"\n")


def test_what_waits_for_its_end_is_small() -> None:
    lines = LineLog(b"stdout")
    for _ in range(100):
        lines.feed(b"x" * 65536, 0)
    assert len(lines.flush(0)) < MAX_LINE + 100
