"""Stream tokens, HTTP heads, WebSocket frames and channel protocols, all without a socket."""

import base64
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.streaming import channels, http, websocket
from cri.streaming.channels import Input, InputEnd, Outcome, Resize
from cri.streaming.tokens import Tokens, TooManyStreams
from host.clocks import FakeClock

V5, V4 = channels.PROTOCOLS[:2]


def client_frame(opcode: int, payload: bytes, *, final: bool = True, mask: bytes = b"\1\2\3\4") -> bytes:
    head = bytes([(0x80 if final else 0) | opcode])
    size = len(payload)
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 1 << 16:
        head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return head + mask + bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


async def test_a_token_opens_one_stream_once_and_soon():
    clock = FakeClock()
    tokens = Tokens(clock, lifetime=60, limit=2)
    first, second = tokens.insert("a"), tokens.insert("b")
    assert len(base64.urlsafe_b64decode(first + "=")) == 32
    with pytest.raises(TooManyStreams):
        tokens.insert("c")
    assert tokens.consume(first) == "a"
    assert tokens.consume(first) is None
    await clock.advance(60)
    assert tokens.consume(second) is None
    assert tokens.insert("d")


async def test_tokens_are_few_and_are_not_guessed():
    clock = FakeClock()
    tokens = Tokens(clock)
    made = {tokens.insert(number) for number in range(1000)}
    assert len(made) == 1000
    with pytest.raises(TooManyStreams, match="1000"):
        tokens.insert("one more")
    assert not any(tokens.consume(base64.urlsafe_b64encode(os.urandom(32)).decode()) for _ in range(10_000))
    assert tokens.consume("") is None
    await clock.advance(59.9)
    assert tokens.consume(made.pop()) is not None
    await clock.advance(0.1)
    assert not any(tokens.consume(token) for token in made)


def test_a_request_head_becomes_a_record():
    head = b"GET /exec/abc?x=1 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n"
    head += b"Upgrade: WebSocket\r\n\r\n"
    request = http.parse_head(head)
    assert (request.method, request.path) == ("GET", "/exec/abc")
    assert request.upgrades_to("websocket")
    assert not request.upgrades_to("SPDY/3.1")


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET http://x/ HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad Name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n folded\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * http.HEAD_LIMIT + b"\r\n\r\n",
    ],
)
def test_a_strange_request_head_is_refused(head):
    with pytest.raises(http.BadRequest):
        http.parse_head(head)


def test_the_handshake_answers_the_key_of_the_rfc():
    head = b"GET /exec/t HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    head += b"Sec-WebSocket-Version: 13\r\n\r\n"
    assert websocket.accept_key(http.parse_head(head)) == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@given(st.binary(max_size=70_000), st.integers(1, 5000), st.binary(min_size=4, max_size=4))
def test_frames_survive_any_cut(payload, step, mask):
    data = client_frame(2, payload, mask=mask) + client_frame(9, b"hi")
    decoder = websocket.Decoder()
    events = [event for at in range(0, len(data), step) for event in decoder.feed(data[at : at + step])]
    assert events == [websocket.Message(payload), websocket.Ping(b"hi")]


def test_fragments_become_one_message_with_a_ping_between():
    data = client_frame(2, b"ab", final=False) + client_frame(9, b"p") + client_frame(0, b"cd")
    assert list(websocket.Decoder().feed(data)) == [websocket.Ping(b"p"), websocket.Message(b"abcd")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x82\x01a", 1002),  # not masked
        (b"\xc2\x80\0\0\0\0", 1002),  # reserved bit
        (client_frame(3, b""), 1002),  # reserved opcode
        (client_frame(9, b"", final=False), 1002),  # fragmented control frame
        (client_frame(9, b"x" * 126), 1002),  # long control frame
        (client_frame(0, b"x"), 1002),  # continuation of nothing
        (client_frame(2, b"", final=False) + client_frame(2, b""), 1002),  # new message inside another
        (b"\x82\xff" + (2**63).to_bytes(8, "big"), 1009),  # length bomb
        (client_frame(8, b"x"), 1002),  # half a close code
    ],
)
def test_a_broken_frame_ends_the_stream_with_a_code(data, code):
    with pytest.raises(websocket.WebSocketError) as caught:
        list(websocket.Decoder().feed(data))
    assert caught.value.code == code


def test_nothing_comes_after_a_close_frame():
    decoder = websocket.Decoder()
    assert list(decoder.feed(client_frame(8, b"\x03\xe8") + client_frame(2, b"x"))) == [
        websocket.Closed(1000)
    ]
    assert list(decoder.feed(client_frame(2, b"x"))) == []


@pytest.mark.parametrize(
    ("offered", "name"),
    [
        (["v5.channel.k8s.io", "v4.channel.k8s.io"], "v5.channel.k8s.io"),
        (["vX", "v4.channel.k8s.io"], "v4.channel.k8s.io"),
        ([], ""),
    ],
)
def test_the_first_known_protocol_is_chosen(offered, name):
    assert channels.choose(offered).name == name


def test_an_unknown_protocol_is_not_chosen():
    assert channels.choose(["v9.channel.k8s.io"]) is None


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (b"\0hello", Input(b"hello")),
        (b"\0", None),
        (b"", None),
        (b"\xff\0", InputEnd()),
        (b"\xff\1", None),
        (b'\4{"Width":80,"Height":24}', Resize(80, 24)),
        (b'\4{"Width":0,"Height":24}', None),
        (b'\4{"Width":true,"Height":24}', None),
        (b"\4nonsense", None),
        (b"\1not ours to read", None),
        (b"\x30text", None),
    ],
)
def test_messages_of_the_fifth_protocol(message, event):
    assert channels.decode(V5, message) == event


def test_the_fourth_protocol_has_no_close_signal():
    assert channels.decode(V4, b"\xff\0") is None


@pytest.mark.parametrize("message", [b"\xff", b"\xff\0\0", b"\xff\x09"])
def test_a_malformed_close_signal_ends_the_stream(message):
    with pytest.raises(channels.ChannelError):
        channels.decode(V5, message)


@given(st.binary(max_size=300))
def test_base64_protocols_carry_the_same(data):
    protocol = channels.choose(["v4.base64.channel.k8s.io"])
    encoded = channels.encode(protocol, channels.STDOUT, data)
    assert encoded[:1] == b"1"
    assert base64.b64decode(encoded[1:]) == data
    decoded = channels.decode(protocol, b"0" + base64.b64encode(data))
    assert decoded == (Input(data) if data else None)


def test_the_status_has_the_exit_code_where_clients_look():
    status = json.loads(channels.status_bytes(Outcome(exit_code=3), as_json=True))
    assert (status["status"], status["reason"]) == ("Failure", "NonZeroExitCode")
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    assert json.loads(channels.status_bytes(Outcome(), as_json=True))["status"] == "Success"
    assert channels.status_bytes(Outcome(), as_json=False) == b""
    assert b"no such" in channels.status_bytes(Outcome(error="no such file"), as_json=False)


def test_random_bytes_never_break_the_decoders():
    for _ in range(200):
        data = os.urandom(50)
        try:
            list(websocket.Decoder().feed(data))
        except websocket.WebSocketError as exc:
            assert exc.code in (1002, 1009)
