"""The CRI log format, without any file: bytes of a stream in, lines to append out.

`2026-01-02T03:04:05.000000006Z stdout F text\n` for a whole line, with P instead of F for a part of one that
is longer than 16 KiB (kubernetes design: node/kubelet-cri-logging). What comes out is ready for one write.
"""

from __future__ import annotations

import time

MAX_LINE = 16 << 10


def timestamp(now_ns: int) -> bytes:
    """RFC 3339 in UTC with nine digits of fraction."""
    seconds, fraction = divmod(now_ns, 1_000_000_000)
    year, month, day, hour, minute, second, *_ = time.gmtime(seconds)
    return b"%04d-%02d-%02dT%02d:%02d:%02d.%09dZ" % (year, month, day, hour, minute, second, fraction)


class LineLog:
    """One stream's unfinished line and the rule that cuts it."""

    def __init__(self, stream: bytes) -> None:
        """`stream`: b"stdout" or b"stderr"."""
        self._stream = stream
        self._rest = b""

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """What these bytes complete; the rest waits for its line feed."""
        head = timestamp(now_ns) + b" " + self._stream
        whole, part = head + b" F ", head + b" P "
        lines = (self._rest + data).split(b"\n")
        rest = lines.pop()
        done: list[bytes] = []
        for line in lines:
            while len(line) > MAX_LINE:
                done += (part, line[:MAX_LINE], b"\n")
                line = line[MAX_LINE:]
            done += (whole, line, b"\n")
        while len(rest) >= MAX_LINE:
            done += (part, rest[:MAX_LINE], b"\n")
            rest = rest[MAX_LINE:]
        self._rest = rest
        return b"".join(done)

    def flush(self, now_ns: int) -> bytes:
        """The last line when the stream ended without a line feed."""
        rest, self._rest = self._rest, b""
        return timestamp(now_ns) + b" " + self._stream + b" F " + rest + b"\n" if rest else b""
