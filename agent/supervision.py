"""The agent's components side by side: one that fails is started again, and the others go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

from host.errors import InputError

log = logging.getLogger(__name__)
RESTART_PAUSE = 5.0
"""Seconds before a component that failed is started again."""


async def supervise_all(parts: Mapping[str, Callable[[], Awaitable[None]]]) -> None:
    """Run components, by name, until cancelled. Raises InputError for what a person must mend."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for name, run in parts.items():
                tasks.create_task(supervise(name, run), name=name)
    except BaseExceptionGroup as group:
        wrong = group.subgroup(InputError)
        if wrong is not None:
            raise _first(wrong) from None
        raise


def _first(group: BaseExceptionGroup[InputError]) -> InputError:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found


async def supervise(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Run a component; after an unexpected error log it, pause, and run it again. InputError passes."""
    while True:
        try:
            await run()
            return
        except InputError:
            raise
        except Exception:
            log.exception("component failed, starting it again component=%s pause=%s", name, RESTART_PAUSE)
            await asyncio.sleep(RESTART_PAUSE)
