"""What the user sees while the lab works: a live line with a clock on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.status import Status

REMINDER_SECONDS = 15.0
Note = Callable[[str], None]


class Progress:
    """Named steps with their durations; several may be open at once, from several threads.

    Args:
        stream: where to write; standard error, so that results can be piped.
        quiet: show nothing.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._lock = threading.Lock()
        self._open: dict[str, tuple[float, str]] = {}
        self._told: dict[str, float] = {}
        self._status: Status | None = None

    def _show(self) -> None:
        if self._quiet or not self._console.is_terminal:
            return
        if not self._open:
            if self._status is not None:
                self._status.stop()
                self._status = None
            return
        now = time.monotonic()
        text = "; ".join(
            f"{title}{f': {note}' if note else ''} [dim]{now - since:.0f} s[/dim]"
            for title, (since, note) in self._open.items()
        )
        if self._status is None:
            self._status = self._console.status(text)
            self._status.start()
        else:
            self._status.update(text)

    def say(self, text: str) -> None:
        """One line, at once."""
        if not self._quiet:
            self._console.print(text, markup=False)

    @contextmanager
    def step(self, title: str) -> Iterator[Note]:
        """A piece of work: shown while it lasts, and with its duration when it is done.

        Yields a function that takes a few words on how far it has come.
        """
        began = time.monotonic()

        def note(text: str) -> None:
            with self._lock:
                self._open[title] = (began, text)
                self._show()
                self._remind(title)

        note("")
        try:
            yield note
        except BaseException:
            self._end(title)
            raise
        self._end(title)
        self.say(f"  {title}: {time.monotonic() - began:.1f} s")

    def _remind(self, title: str) -> None:
        """Where there is no live line, say now and then that a long step is still under way."""
        began, text = self._open[title]
        now = time.monotonic()
        if self._console.is_terminal or now - self._told.get(title, began) < REMINDER_SECONDS:
            return
        self._told[title] = now
        self.say(f"  {title}: {text} ({now - began:.0f} s)")

    def _end(self, title: str) -> None:
        with self._lock:
            self._open.pop(title, None)
            self._told.pop(title, None)
            self._show()
