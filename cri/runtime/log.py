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
    """One stream's unfinished line and the rule that cuts it.

    How lines are cut does not depend on how the bytes arrive: only a line longer than MAX_LINE is, after each
    MAX_LINE bytes (as containerd does, internal/cri/io/logger.go).
    """

    def __init__(self, stream: bytes) -> None:
        """`stream`: b"stdout" or b"stderr"."""
        self._stream = stream
        self._rest = b""

    def feed(self, data: bytes, now_ns: int) -> bytes:
        """What these bytes complete; the rest waits for its line feed."""
        head = timestamp(now_ns) + b" " + self._stream
        whole, part = head + b" F ", head + b" P "
        cut = data.rfind(b"\n") + 1
        if cut:
            lines, self._rest = self._rest + data[:cut], data[cut:]
        else:
            lines, self._rest = b"", self._rest + data
        done = [_mark(lines, whole, part)] if lines else []
        self._rest = _cut(self._rest, part, done)
        return b"".join(done)

    def flush(self, now_ns: int) -> bytes:
        """The last line when the stream ended without a line feed."""
        rest, self._rest = self._rest, b""
        return timestamp(now_ns) + b" " + self._stream + b" F " + rest + b"\n" if rest else b""


def _mark(lines: bytes, whole: bytes, part: bytes) -> bytes:
    """Whole lines with their heads. One replacement does it when none is too long: 1 ns for a byte of short
    lines, where a loop over them takes four."""
    if not _has_long_line(lines):
        return b"".join((whole, lines[:-1].replace(b"\n", b"\n" + whole), b"\n"))
    done: list[bytes] = []
    for line in lines[:-1].split(b"\n"):
        end = _cut(line, part, done)
        done += (whole, end, b"\n")
    return b"".join(done)


def _cut(line: bytes, part: bytes, done: list[bytes]) -> bytes:
    """Append the parts a line is too long by; what is left of it."""
    start = 0
    while len(line) - start > MAX_LINE:
        done += (part, line[start : start + MAX_LINE], b"\n")
        start += MAX_LINE
    return line[start:]


def _has_long_line(lines: bytes) -> bool:
    """Looks from line feed to the farthest line feed a line may have, so at most once for each 16 KiB."""
    start = 0
    while len(lines) - start > MAX_LINE:
        found = lines.rfind(b"\n", start, start + MAX_LINE + 1)
        if found < 0:
            return True
        start = found + 1
    return False
