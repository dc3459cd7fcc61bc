"""The bytes of the runtime: messages between processes, records on disk, log lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.runtime import record, wire
from cri.runtime.log import MAX_LINE, LineLog, timestamp
from host.errors import NotFound

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


class TestWire:
    @given(VALUES)
    def test_what_goes_in_comes_out(self, value: object) -> None:
        assert wire.decode(wire.encode(value)) == value

    @given(st.binary(max_size=200))
    def test_any_bytes_give_a_value_or_our_error(self, data: bytes) -> None:
        try:
            wire.decode(data)
        except wire.WireError:
            return

    @given(st.lists(VALUES, max_size=4), st.integers(1, 50))
    def test_frames_may_come_in_pieces(self, values: list[object], size: int) -> None:
        frames, found = wire.Frames(), []
        data = b"".join(wire.frame(value) for value in values)
        for start in range(0, len(data), size):
            found += [value for value, _ in frames.feed(data[start : start + size], [])]
        assert found == values

    def test_descriptors_go_with_their_frame(self) -> None:
        frames = wire.Frames()
        data = wire.frame("a", 1) + wire.frame("b", 0) + wire.frame("c", 2)
        assert frames.feed(data, [7, 8, 9]) == [("a", [7]), ("b", []), ("c", [8, 9])]

    @pytest.mark.parametrize(
        "data",
        [
            wire.HEADER.pack(wire.MAX_FRAME + 1, 0),
            wire.HEADER.pack(1, wire.MAX_FDS + 1),
            wire.frame("x", 1),
            wire.HEADER.pack(5, 0) + b"l\xff\xff\xff\xff",
            wire.HEADER.pack(2, 0) + b"NN",
            wire.HEADER.pack(65, 0) + b"l\0\0\0\1" * 13,
        ],
    )
    def test_what_is_refused(self, data: bytes) -> None:
        with pytest.raises(wire.WireError):
            wire.Frames().feed(data, [])

    def test_too_large_to_send(self) -> None:
        with pytest.raises(ValueError, match="larger than"):
            wire.frame(b"x" * (wire.MAX_FRAME + 1))
        with pytest.raises(TypeError, match="float"):
            wire.encode(1.5)


class TestRecord:
    def test_round_trip_and_replacement(self, tmp_path: Path) -> None:
        for value in ({"code": 1}, {"code": 2, "error": "x" * 1000}):
            record.write(str(tmp_path), "exit", value)
            assert record.read(str(tmp_path), "exit") == value
        assert os.listdir(tmp_path) == ["exit"]
        assert (tmp_path / "exit").stat().st_mode & 0o777 == 0o600

    def test_every_cut_and_every_flipped_byte_is_noticed(self, tmp_path: Path) -> None:
        record.write(str(tmp_path), "exit", {"code": 7})
        good = (tmp_path / "exit").read_bytes()
        bad = [good[:end] for end in range(len(good))]
        bad += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))]
        for data in bad:
            (tmp_path / "exit").write_bytes(data)
            with pytest.raises(record.BadRecord):
                record.read(str(tmp_path), "exit")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            record.read(str(tmp_path), "exit")

    def test_start_time_names_one_process(self) -> None:
        assert record.start_time(os.getpid()) > 0
        assert record.start_time(2**22 + 1) == 0


class TestLog:
    def test_time_has_nine_digits(self) -> None:
        assert timestamp(1_700_000_000_000_000_006) == b"2023-11-14T22:13:20.000000006Z"

    def test_lines_parts_and_the_rest(self) -> None:
        log = LineLog(b"stdout")
        head = timestamp(0) + b" stdout "
        assert log.feed(b"one\ntw", 0) == head + b"F one\n"
        assert log.feed(b"o\n\n", 0) == head + b"F two\n" + head + b"F \n"
        assert log.feed(b"rest", 0) == b""
        assert log.flush(0) == head + b"F rest\n"
        assert log.flush(0) == b""

    @given(st.binary(max_size=200), st.integers(1, 30))
    def test_any_cutting_gives_the_same_text(self, data: bytes, size: int) -> None:
        log = LineLog(b"stderr")
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        lines = b"".join([log.feed(piece, 0) for piece in pieces] + [log.flush(0)])
        text = b"".join(line.split(b" ", 3)[3] + b"\n" for line in lines.split(b"\n")[:-1])
        assert text == (data if data.endswith(b"\n") or not data else data + b"\n")

    def test_a_line_of_many_parts_keeps_its_text(self) -> None:
        log, data = LineLog(b"stdout"), os.urandom(MAX_LINE * 3).replace(b"\n", b"x") + b"end"
        lines = (log.feed(data, 0) + log.feed(b"\n", 0)).split(b"\n")[:-1]
        assert [line.split(b" ", 3)[2] for line in lines] == [b"P", b"P", b"P", b"F"]
        assert b"".join(line.split(b" ", 3)[3] for line in lines) == data
