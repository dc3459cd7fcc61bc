"""CRI log files to what `kubectl logs` prints, without I/O: feed bytes, get bytes.

A line is `<RFC 3339 nano time> <stdout|stderr> <tags> <text>`; the first tag is P for a part of a longer line
and F for its end. `read_tail` finds where the last n lines begin in a file that is too long to read from its
start.

Source: CRI log format,
https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from agent.api.times import parse_nano_time

MAX_LINE = 1 << 20
"""Bytes of one record; runtimes cut long lines into parts of 16 KiB."""


@dataclasses.dataclass(frozen=True)
class LogOptions:
    """What the client asked for. `since` in Unix nanoseconds."""

    follow: bool = False
    tail: int | None = None
    since: int | None = None
    timestamps: bool = False
    limit: int | None = None
    stream: str = ""
    """stdout or stderr; empty: both."""


class Decoder:
    """Bytes of a log file to bytes for the client.

    `done` becomes true when `limit` bytes were given out. A line that is not in CRI format is skipped and
    counted in `malformed`, because a reader must survive what a crashed writer left behind.
    """

    def __init__(self, options: LogOptions) -> None:
        self._options = options
        self._pending = b""
        self._left = options.limit
        self._at_start = True
        self.malformed = 0

    @property
    def done(self) -> bool:
        """Nothing more will be given out."""
        return self._left is not None and self._left <= 0

    def feed(self, data: bytes) -> bytes:
        """The printable part of complete lines in `data`; an incomplete one waits for the next call."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        if len(self._pending) > MAX_LINE:
            self._pending = b""
            self.malformed += 1
        return self._cut(b"".join(map(self._line, lines)))

    def end(self) -> None:
        """The file ended here (rotated or removed): forget an incomplete line."""
        self._pending = b""

    def _line(self, line: bytes) -> bytes:
        if not line:
            return b""
        parts = line.split(b" ", 3)
        if len(parts) < 4 or parts[1] not in (b"stdout", b"stderr"):
            self.malformed += 1
            return b""
        stamp, stream, tags, text = parts
        options = self._options
        if options.stream and stream.decode() != options.stream:
            return b""
        if options.since is not None and _nanoseconds(stamp) < options.since:
            return b""
        whole = tags.split(b":", 1)[0] != b"P"
        prefix = stamp + b" " if options.timestamps and self._at_start else b""
        self._at_start = whole
        return prefix + text + (b"\n" if whole else b"")

    def _cut(self, data: bytes) -> bytes:
        if self._left is None:
            return data
        data = data[: max(0, self._left)]
        self._left -= len(data)
        return data


def _nanoseconds(stamp: bytes) -> int:
    try:
        return parse_nano_time(stamp.decode("ascii", "replace"))
    except ValueError:
        return 0


def tail_offset(size: int, lines: int, read: Callable[[int, int], bytes], *, block: int = 65536) -> int:
    """The byte offset where the last `lines` lines begin; the parts of one long line count as one line.

    Args:
        size: bytes in the file.
        read: `read(offset, length)`.
    """
    if lines <= 0:
        return size
    window, start = b"", size
    while start > 0:
        length = min(block, start)
        start -= length
        window = read(start, length) + window
        offset = _tail_in(window, lines, whole=start == 0)
        if offset is not None:
            return start + offset
        block *= 2
    return 0


def _tail_in(window: bytes, lines: int, *, whole: bool) -> int | None:
    """Where the last `lines` lines begin in a window that ends at the end of the file; None: further up."""
    found, end = 0, len(window.rstrip(b"\n"))
    while end > 0:
        start = window.rfind(b"\n", 0, end) + 1
        if start == 0 and not whole:
            return None
        if _ends_line(window[start:end]):
            found += 1
            if found > lines:
                return end + 1
        end = start - 1
    return 0 if whole else None


def _ends_line(line: bytes) -> bool:
    """Whether a record ends a line (tag F), rather than being a part of one (P)."""
    parts = line.split(b" ", 3)
    return len(parts) > 2 and not parts[2].startswith(b"P")


def since_seconds(seconds: int, now: float) -> int:
    """`sinceSeconds` as the `since` of LogOptions."""
    return int((now - seconds) * 1e9)
