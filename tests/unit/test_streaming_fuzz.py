"""Hostile bytes for every parser of streams: it answers with its own error or with events, and keeps little.

The corpus is that of frames which have hurt others: bad masks, reserved opcodes, lengths of 2^63, fragmented
control frames, floods of pings, streams and resets, stream numbers used twice, compressed bombs.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_streaming import client_frame
from test_streaming_spdy import Client, control, data

from cri.streaming import channels, http, spdy, websocket
from cri.streaming.channels import PROTOCOLS, ChannelError
from cri.streaming.portforward import PortForward
from cri.streaming.session import ClientGone
from cri.streaming.spdy_dictionary import DICTIONARY
from cri.streaming.spdy_streams import SpdyStreams
from cri.streaming.ws_portforward import ChannelPortForward
from cri.streaming.ws_streams import WebSocketStreams

V5 = PROTOCOLS[0]
STEPS = st.integers(1, 4096)


def cut(raw: bytes, step: int) -> Iterable[bytes]:
    return (raw[at : at + step] for at in range(0, len(raw), step))


# --- WebSocket


def odd_frame(first: int, second: int, payload: bytes) -> bytes:
    return bytes((first, second)) + payload


WS_CORPUS = [
    client_frame(2, b"\0hello"),
    client_frame(9, b"ping") * 50,
    client_frame(2, b"\xff\0") * 2,  # close of a channel, twice
    client_frame(2, b"\x2aunknown"),
    client_frame(2, b"", final=False) + client_frame(0, b"", final=False) * 50,
    odd_frame(0x82, 0x05, b"clear"),  # not masked
    odd_frame(0xF2, 0x80, bytes(4)),  # reserved bits
    odd_frame(0x8F, 0x80, bytes(4)),  # reserved opcode
    odd_frame(0x09, 0x80, bytes(4)),  # fragmented control frame
    odd_frame(0x82, 0xFF, (1 << 63).to_bytes(8, "big") + bytes(4)),
    odd_frame(0x82, 0xFF, b"\xff" * 12),
    client_frame(8, b"\x03\xe8bye"),
    client_frame(8, b"x"),
]
WS_BYTES = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.one_of(
            st.sampled_from(WS_CORPUS),
            st.builds(odd_frame, st.integers(0, 255), st.integers(0, 255), st.binary(max_size=200)),
            st.builds(
                lambda opcode, payload, final: client_frame(opcode, payload, final=final),
                st.integers(0, 15),
                st.binary(max_size=200),
                st.booleans(),
            ),
        ),
        max_size=12,
    ).map(b"".join),
)


@settings(max_examples=300)
@given(WS_BYTES, STEPS)
def test_websocket_frames(raw: bytes, step: int) -> None:
    decoder, size = websocket.Decoder(limit=256), 0
    try:
        for piece in cut(raw, step):
            for event in decoder.feed(piece):
                size += len(event.data) if not isinstance(event, websocket.Closed) else 0
            assert len(decoder._buffer) <= 256 + 14 + step or decoder._closed
    except websocket.WebSocketError as exc:
        assert exc.code in (1002, 1009)
        assert websocket.close(exc.code, str(exc))[0] == 0x88
    assert size <= len(raw)


@given(WS_BYTES)
def test_websocket_frames_do_not_depend_on_where_they_are_cut(raw: bytes) -> None:
    def outcome(step: int) -> int:
        decoder = websocket.Decoder()
        try:
            for piece in cut(raw, step):
                for _ in decoder.feed(piece):
                    pass
        except websocket.WebSocketError as exc:
            return exc.code
        return 0

    assert outcome(1) == outcome(len(raw) or 1)


@settings(max_examples=200)
@given(st.sampled_from(PROTOCOLS), st.binary(max_size=100))
def test_channel_messages(protocol: channels.Protocol, message: bytes) -> None:
    try:
        channels.decode(protocol, message)
    except ChannelError as exc:
        assert str(exc)


@pytest.mark.parametrize(
    "text",
    [
        b"[" * 100_000,
        b'{"Width":1e999,"Height":1}',
        b'{"Width":' + b"9" * 5000 + b"}",
        b"null",
        b"\xff",
        b"{}",
    ],
)
def test_sizes_of_no_terminal(text: bytes) -> None:
    assert channels.parse_resize(text) is None


@settings(max_examples=200)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from([b"GET", b" ", b"/", b"HTTP/1.1", b"\r\n", b":", b"a", b"\0", b"\xff", b"\n"]),
            max_size=30,
        ).map(b"".join),
    )
)
def test_request_heads(head: bytes) -> None:
    try:
        request = http.parse_head(head + b"\r\n\r\n")
    except http.BadRequest as exc:
        assert str(exc)
        return
    assert request.path.startswith("/")


# --- SPDY


def block(plain: bytes) -> bytes:
    deflate = zlib.compressobj(zdict=DICTIONARY)
    return deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH)


def syn(stream: int, headers: bytes, *, fin: bool = False) -> bytes:
    payload = struct.pack(">IIH", stream, 0, 0) + headers
    return struct.pack(">II", 0x80030001, (1 << 24 if fin else 0) | len(payload)) + payload


STREAMS = st.integers(0, 12) | st.sampled_from([0x7FFFFFFF, 0x80000001])
SPDY_FRAMES = st.one_of(
    st.builds(syn, STREAMS, st.binary(max_size=40).map(block) | st.binary(max_size=40)),
    st.builds(syn, STREAMS, st.just(block(struct.pack(">IIsI", 1, 1, b"a", 0))), fin=st.booleans()),
    st.builds(data, st.integers(0, 12), st.binary(max_size=60), fin=st.booleans()),
    st.builds(control, st.integers(0, 12), st.binary(max_size=24)),
    st.builds(lambda stream: control(3, struct.pack(">II", stream, 5)), STREAMS),
    st.builds(lambda number: control(6, struct.pack(">I", number)), st.integers(0, 9)),
    st.just(control(9, struct.pack(">II", 1, 0x7FFFFFFF)) * 3),  # windows opened beyond their end
    st.binary(max_size=60),
)
SPDY_BYTES = st.lists(SPDY_FRAMES, max_size=16).map(b"".join)


@settings(max_examples=400)
@given(SPDY_BYTES, STEPS)
def test_spdy_frames(raw: bytes, step: int) -> None:
    connection, opened = spdy.Connection(), set()
    try:
        for piece in cut(raw, step):
            for event in connection.feed(piece):
                if isinstance(event, spdy.StreamOpened):
                    assert event.stream not in opened
                    opened.add(event.stream)
                    connection.accept(event.stream)
                    connection.send(event.stream, b"x", end=event.stream % 3 == 0)
                elif isinstance(event, spdy.StreamData):
                    assert event.stream in opened
                    if event.data[:1] == b"\0":
                        connection.reset(event.stream)
    except spdy.SpdyError as exc:
        assert str(exc)
    assert len(connection._receiving | connection._sending) <= spdy.STREAM_LIMIT


def test_floods_and_storms_need_no_memory() -> None:
    """Streams opened and reset, opened and ended, pings, headers, data for nobody: ten thousand each."""
    client, connection = Client(), spdy.Connection()

    def lap(first: int) -> None:
        for stream in range(first, first + 20_000, 2):
            raw = (
                client.open(stream, a="b") + control(3, struct.pack(">II", stream, 5)) + data(stream, b"late")
            )
            raw += control(6, struct.pack(">I", 1)) + control(7, bytes(8)) + control(4, bytes(4))
            for _ in connection.feed(raw):
                pass

    lap(1)
    tracemalloc.start()
    try:
        lap(20_001)
        assert tracemalloc.get_traced_memory()[0] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [1, 8])
@pytest.mark.parametrize(
    "plain", [bytes(10 << 20), struct.pack(">I", 1 << 20) + bytes(60_000), struct.pack(">II", 1, 1 << 31)]
)
def test_header_bombs_are_small_and_end_the_connection(kind: int, plain: bytes) -> None:
    raw = control(kind, struct.pack(">IIH", 1, 0, 0)[: 10 if kind == 1 else 4] + block(plain))
    tracemalloc.start()
    try:
        with pytest.raises(spdy.SpdyError):
            list(spdy.Connection().feed(raw))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


# --- Whole connections


class Script:
    """A duplex whose client has said what it will say, and hangs up."""

    def __init__(self, raw: bytes, step: int = 1 << 16) -> None:
        self._pieces = list(cut(raw, step))[::-1]
        self.sent = b""

    async def read(self) -> bytes:
        await asyncio.sleep(0)
        return self._pieces.pop() if self._pieces else b""

    async def write(self, data: bytes) -> None:
        self.sent += data

    async def gone(self) -> None:
        await asyncio.Event().wait()


def conversation() -> bytes:
    client = Client()
    raw = client.open(1, streamType="error") + client.open(3, streamType="stdin")
    raw += client.open(5, streamType="stdout") + client.open(7, streamType="resize")
    raw += data(3, b"hello") + data(7, b'{"Width":80,"Height":24}') + data(3, b"", fin=True)
    return raw + control(6, struct.pack(">I", 1)) + control(7, bytes(8))


async def test_a_spdy_client_may_hang_up_at_any_byte() -> None:
    whole = conversation()
    wanted = {channels.ERROR, channels.STDIN, channels.STDOUT, channels.RESIZE}
    for end in range(len(whole) + 1):
        streams = SpdyStreams(Script(whole[:end]), "v4.channel.k8s.io")
        try:
            await streams.open(wanted)
        except ClientGone:
            continue
        events = [event async for event in streams.events()]
        if end == len(whole):
            assert events == [channels.Input(b"hello"), channels.Resize(80, 24), channels.InputEnd()]


async def test_a_websocket_client_may_hang_up_at_any_byte() -> None:
    whole = (
        client_frame(2, b"\0hello")
        + client_frame(9, b"p")
        + client_frame(2, b"\xff\0")
        + client_frame(8, b"")
    )
    for end in range(len(whole) + 1):
        events = [event async for event in WebSocketStreams(Script(whole[:end]), V5).events()]
        assert events == [channels.Input(b"hello"), channels.InputEnd()][: len(events)]
    assert len(events) == 2


def refuse(_family: int) -> socket.socket:
    raise ConnectionRefusedError(111, "connection refused")


PAIRS = st.lists(
    st.tuples(
        st.sampled_from(["data", "error", "junk", ""]),
        st.sampled_from(["80", "0", "65536", "x", "²", ""]),
        st.sampled_from(["1", "2", ""]),
    ),
    max_size=8,
)


async def leaves_no_task(run: Callable[[], object]) -> None:
    before = asyncio.all_tasks()
    async with asyncio.timeout(20):
        await run()
    assert asyncio.all_tasks() == before


@settings(max_examples=80)
@given(PAIRS, SPDY_BYTES, STEPS)
def test_port_forward_of_a_strange_client(pairs: list[tuple[str, str, str]], tail: bytes, step: int) -> None:
    client, raw = Client(), b""
    for number, (kind, port, request) in enumerate(pairs):
        words = {"streamType": kind, "port": port, "requestID": request}
        raw += client.open(2 * number + 1, **{name: word for name, word in words.items() if word.isascii()})
        raw += data(2 * number + 1, b"x")
    asyncio.run(leaves_no_task(PortForward(Script(raw + tail, step), refuse).run))


@settings(max_examples=80)
@given(WS_BYTES, STEPS, st.sampled_from(PROTOCOLS[1:3]))
def test_channel_port_forward_of_a_strange_client(raw: bytes, step: int, protocol: channels.Protocol) -> None:
    asyncio.run(leaves_no_task(ChannelPortForward(Script(raw, step), protocol, [80, 81], refuse).run))
