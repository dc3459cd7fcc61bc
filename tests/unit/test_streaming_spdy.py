"""SPDY frames without a socket: what clients send, cut anywhere, and what must end a connection."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming import spdy
from cri.streaming.http import BadRequest, Request
from cri.streaming.spdy_dictionary import DICTIONARY
from cri.streaming.spdy_streams import PROTOCOLS, expected, handshake
from proto.cri import runtime_pb2 as pb


class Client:
    """Frames of a client."""

    def __init__(self) -> None:
        self.deflate = zlib.compressobj(zdict=DICTIONARY)

    def headers(self, pairs: dict[str, str]) -> bytes:
        plain = struct.pack(">I", len(pairs))
        for word in (word for pair in pairs.items() for word in pair):
            plain += struct.pack(">I", len(word)) + word.encode()
        return self.deflate.compress(plain) + self.deflate.flush(zlib.Z_SYNC_FLUSH)

    def open(self, stream: int, *, fin: bool = False, **headers: str) -> bytes:
        payload = struct.pack(">IIH", stream, 0, 0) + self.headers(headers)
        return struct.pack(">II", 0x80030001, (1 << 24 if fin else 0) | len(payload)) + payload


def data(stream: int, content: bytes, *, fin: bool = False) -> bytes:
    return struct.pack(">II", stream, (1 << 24 if fin else 0) | len(content)) + content


def control(kind: int, payload: bytes) -> bytes:
    return struct.pack(">II", 0x80030000 | kind, len(payload)) + payload


def test_the_dictionary_is_the_drafts():
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


@given(st.integers(1, 60))
def test_a_conversation_survives_any_cut(step):
    client = Client()
    raw = client.open(1, streamType="error") + client.open(3, streamType="stdin") + data(3, b"hello")
    raw += control(6, struct.pack(">I", 7)) + data(3, b"", fin=True) + data(3, b"late") + control(7, bytes(8))
    connection = spdy.Connection()
    events = [event for at in range(0, len(raw), step) for event in connection.feed(raw[at : at + step])]
    assert events == [
        spdy.StreamOpened(1, {"streamtype": "error"}, False),
        spdy.StreamOpened(3, {"streamtype": "stdin"}, False),
        spdy.StreamData(3, b"hello", False),
        spdy.Pinged(control(6, struct.pack(">I", 7))),
        spdy.StreamData(3, b"", True),
        spdy.Leaving(),
    ]


def test_what_is_sent_ends_with_its_stream():
    connection = spdy.Connection()
    list(connection.feed(Client().open(1, streamType="stdout")))
    assert connection.accept(1).startswith(b"\x80\x03\x00\x02")
    assert connection.send(1, b"x") == data(1, b"x")
    assert connection.send(1, b"y", end=True) == data(1, b"y", fin=True)
    assert connection.send(1, b"z") == b""
    assert connection.send(9, b"z") == b""


def test_a_reset_closes_both_ways():
    connection = spdy.Connection()
    client = Client()
    list(connection.feed(client.open(1, a="b") + client.open(3, a="b")))
    assert list(connection.feed(control(3, struct.pack(">II", 1, 5)))) == [spdy.StreamReset(1)]
    assert connection.send(1, b"x") == b""
    assert connection.reset(3) == control(3, struct.pack(">II", 3, 5))
    assert connection.reset(3) == b""
    assert list(connection.feed(data(3, b"late"))) == []


def bomb() -> bytes:
    block = zlib.compressobj(zdict=DICTIONARY)
    squeezed = block.compress(b"\0" * (10 << 20)) + block.flush(zlib.Z_SYNC_FLUSH)
    return control(1, struct.pack(">IIH", 1, 0, 0) + squeezed)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02\x00\x01" + struct.pack(">I", 10) + bytes(10),  # version 2
        Client().open(2, a="b"),  # even number
        Client().open(0, a="b"),
        control(1, bytes(4)),  # too short
        control(3, b""),
        control(1, struct.pack(">IIH", 1, 0, 0) + b"not zlib"),
        struct.pack(">II", 1, 0xFFFFFF),  # frame bomb
        bomb(),
    ],
)
def test_a_broken_peer_ends_the_connection(raw):
    with pytest.raises(spdy.SpdyError):
        list(spdy.Connection().feed(raw))


def test_a_stream_number_is_used_once():
    client, connection = Client(), spdy.Connection()
    list(connection.feed(client.open(5, a="b")))
    with pytest.raises(spdy.SpdyError, match="cannot be opened"):
        list(connection.feed(client.open(3, a="b")))


def test_streams_are_limited():
    client, connection = Client(), spdy.Connection()
    with pytest.raises(spdy.SpdyError, match="more than"):
        for number in range(spdy.STREAM_LIMIT + 1):
            list(connection.feed(client.open(number * 2 + 1, a="b")))


@given(st.binary(max_size=200))
def test_random_bytes_end_in_order(raw):
    try:
        list(spdy.Connection().feed(raw))
    except spdy.SpdyError as exc:
        assert str(exc)


def test_the_newest_common_protocol_is_spoken():
    request = Request(
        method="POST",
        path="/",
        headers={"x-stream-protocol-version": "v9,v4.channel.k8s.io,v3.channel.k8s.io"},
    )
    assert handshake(request, PROTOCOLS)[0] == "v4.channel.k8s.io"
    with pytest.raises(BadRequest):
        handshake(Request(method="POST", path="/", headers={}), PROTOCOLS)


def test_streams_to_wait_for():
    asked = pb.ExecRequest(stdin=True, stdout=True, tty=True)
    assert expected(asked, "v4.channel.k8s.io") == {0, 1, 3, 4}
    assert expected(asked, "v2.channel.k8s.io") == {0, 1, 3}
