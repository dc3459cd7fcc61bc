"""Query parameters of the kubelet API to typed options. Pure; every refusal names the parameter.

Source: k8s.io/api/core/v1 PodLogOptions, PodExecOptions; k8s.io/kubelet remotecommand options (input, output,
…).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from agent.api.times import parse_nano_time
from agent.server.logs import LogOptions, since_seconds


class BadParameter(Exception):
    """A query parameter cannot be used; the text names it (400)."""


@dataclasses.dataclass(frozen=True)
class StreamOptions:
    """Which streams an exec or attach carries, and the command of an exec."""

    command: tuple[str, ...]
    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool


def log_options(query: Mapping[str, str], *, now: float) -> tuple[LogOptions, bool]:
    """Options of /containerLogs, and whether the previous container is meant. `now` is Unix seconds."""
    since = None
    if query.get("sinceSeconds"):
        seconds = _count(query, "sinceSeconds")
        if not seconds:
            raise BadParameter("sinceSeconds must be greater than 0")
        since = since_seconds(seconds, now)
    elif query.get("sinceTime"):
        try:
            since = parse_nano_time(query["sinceTime"])
        except ValueError as exc:
            raise BadParameter(f"sinceTime: {exc}") from exc
    limit = _count(query, "limitBytes")
    if limit == 0:
        raise BadParameter("limitBytes must be greater than 0")
    stream = query.get("stream", "")
    if stream not in ("", "All", "Stdout", "Stderr"):
        raise BadParameter(f"stream must be All, Stdout or Stderr, not {stream!r}")
    options = LogOptions(
        follow=_flag(query, "follow"),
        tail=_count(query, "tailLines"),
        since=since,
        timestamps=_flag(query, "timestamps"),
        limit=limit,
        stream="" if stream in ("", "All") else stream.lower(),
    )
    return options, _flag(query, "previous")


def stream_options(query: Mapping[str, str], command: Sequence[str]) -> StreamOptions:
    """Options of /exec and /attach. A terminal has one output, so it has no stderr."""
    tty = _flag(query, "tty")
    options = StreamOptions(
        command=tuple(command),
        tty=tty,
        stdin=_flag(query, "input"),
        stdout=_flag(query, "output"),
        stderr=_flag(query, "error") and not tty,
    )
    if not (options.stdin or options.stdout or options.stderr):
        raise BadParameter("you must specify at least 1 of stdin, stdout, stderr")
    return options


def ports(values: Sequence[str]) -> tuple[int, ...]:
    """The ports a WebSocket port-forward names in its query; SPDY names them in its streams."""
    result = []
    for value in values:
        for word in filter(None, value.split(",")):
            if not word.isdigit() or not 0 < int(word) < 65536:
                raise BadParameter(f"port {word!r} is not between 1 and 65535")
            result.append(int(word))
    return tuple(result)


def _flag(query: Mapping[str, str], name: str) -> bool:
    return query.get(name, "").lower() in ("1", "true", "t")


def _count(query: Mapping[str, str], name: str) -> int | None:
    text = query.get(name, "")
    if not text:
        return None
    if not text.isdigit() or len(text) > 18:
        raise BadParameter(f"{name} must be a whole number, not {text[:20]!r}")
    return int(text)
