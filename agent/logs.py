"""The agent's own log: one line a fact, `time level logger text key=value …`, on standard error.

Control characters (C0, C1, and line breaks of tracebacks) are escaped, so that no pod name or runtime message
can forge a line or drive a terminal. Secrets never reach a log call.
"""

from __future__ import annotations

import logging
import sys
import time

_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {10: "\\n", 9: "\\t"}


class LineFormatter(logging.Formatter):
    """One record, one line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.gmtime(record.created)
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', moment)}.{int(record.msecs):03d}Z"
        text = record.getMessage()
        if record.exc_info:
            text = f"{text} traceback={self.formatException(record.exc_info)}"
        return f"{stamp} {record.levelname} {record.name} {text}".translate(_ESCAPES)


def set_up(verbosity: int) -> None:
    """Log to standard error: warnings (0), facts (1 to 3, the default), details (4 and more)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING if verbosity < 1 else logging.INFO if verbosity < 4 else logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)
