"""Kubernetes' channel protocols on top of WebSocket messages. Pure.

The first byte of a message names its channel: 0 stdin, 1 stdout, 2 stderr, 3 error (the status at the end),
4 terminal size. `v5.channel.k8s.io` adds channel 255, whose second byte names the channel a client has no
more to send on; `v4` has exit codes in the status; the older ones have words only. The base64 kinds carry the
same as text, the channel as a digit.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)
CLOSE = 255
_MAX_SIZE = 65535


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One subprotocol and what it can do."""

    name: str
    closes: bool = False
    """A client can say that its stdin ends while it goes on listening."""
    json_status: bool = False
    """The error channel carries a metav1.Status."""
    text: bool = False
    """Messages are base64 text."""


PROTOCOLS = (
    Protocol(name="v5.channel.k8s.io", closes=True, json_status=True),
    Protocol(name="v4.channel.k8s.io", json_status=True),
    Protocol(name="v4.base64.channel.k8s.io", json_status=True, text=True),
    Protocol(name="channel.k8s.io"),
    Protocol(name="base64.channel.k8s.io", text=True),
)


def choose(offered: Sequence[str], protocols: Sequence[Protocol] = PROTOCOLS) -> Protocol | None:
    """The first protocol of a client's list that we speak; without a list the oldest; None when none fits."""
    known = {protocol.name: protocol for protocol in protocols}
    if not offered:
        return Protocol(name="")
    return next((known[name] for name in offered if name in known), None)


@dataclass(frozen=True)
class Input:
    """Bytes for standard input."""

    data: bytes


@dataclass(frozen=True)
class InputEnd:
    """The client has no more input."""


@dataclass(frozen=True)
class Resize:
    """The client's terminal has another size."""

    width: int
    height: int


Event = Input | InputEnd | Resize


class ChannelError(ValueError):
    """A message that the protocol does not allow; the stream ends."""


def decode(protocol: Protocol, message: bytes) -> Event | None:
    """What a client's message means; None for one that is ignored (unknown or one-way channels, as upstream).

    Raises:
        ChannelError: a close signal of the wrong form, or text that is not base64.
    """
    if not message:
        return None
    channel, data = message[0], message[1:]
    if protocol.closes and channel == CLOSE:
        if len(data) != 1 or data[0] > RESIZE:
            raise ChannelError("close signal must name one channel")
        return InputEnd() if data[0] == STDIN else None
    channel, data = split(protocol, message)
    if channel == STDIN:
        return Input(data) if data else None
    return parse_resize(data) if channel == RESIZE else None


def split(protocol: Protocol, message: bytes) -> tuple[int, bytes]:
    """The channel and the content of a message that is no close signal; (-1, b"") of an empty one.

    Raises:
        ChannelError: text that is not base64.
    """
    if not message:
        return -1, b""
    if not protocol.text:
        return message[0], message[1:]
    try:
        return message[0] - ord("0"), base64.b64decode(message[1:], validate=True)
    except ValueError as exc:
        raise ChannelError("message is not base64") from exc


def parse_resize(data: bytes) -> Resize | None:
    """A terminal size from `{"Width": 80, "Height": 24}`; None for anything else."""
    try:
        size = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(size, dict):
        return None
    width, height = size.get("Width"), size.get("Height")
    for value in (width, height):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MAX_SIZE:
            return None
    return Resize(width=int(size["Width"]), height=int(size["Height"]))


def encode(protocol: Protocol, channel: int, data: bytes) -> bytes:
    """A message to the client."""
    if protocol.text:
        return bytes((ord("0") + channel,)) + base64.b64encode(data)
    return bytes((channel,)) + data


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a stream's work ended: an exit code, or why there is none."""

    exit_code: int = 0
    error: str = ""


def status_bytes(outcome: Outcome, *, as_json: bool) -> bytes:
    """What goes onto the error channel: metav1.Status as JSON, or the words alone (nothing for success)."""
    if outcome.error:
        status = {
            "metadata": {},
            "status": "Failure",
            "message": f"Internal error occurred: {outcome.error}",
            "reason": "InternalError",
            "code": 500,
        }
    elif outcome.exit_code:
        code = str(outcome.exit_code)
        status = {
            "metadata": {},
            "status": "Failure",
            "message": f"command terminated with non-zero exit code: exit status {code}",
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code}]},
        }
    else:
        status = {"metadata": {}, "status": "Success"}
    if as_json:
        return json.dumps(status).encode()
    return str(status.get("message", "")).encode()
