"""Work on other machines' file systems, in child processes with a time limit.

mount(2), umount(2), even stat(2) on an NFS mount whose server is dead sleep in the kernel, where no signal
reaches them; a thread of the agent that did so would be lost, and a few of those stop every pod of the node
(k8s.io issues 45419, 72604). So a child does it. One that outlives SIGKILL is left behind, and until it ends
nothing more is started for the same thing: a dead server costs one process, however often it is tried again.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import agent
from host.errors import TimedOut
from host.helpers import Unkillable, run_async
from host.processes import Completed

LOOK = 10.0
"""Seconds for a look at a path, which a file server that lives answers in milliseconds."""
_CODE = str(Path(agent.__file__).resolve().parent.parent)


class Children:
    """All such children of an agent.

    Args:
        limit: seconds a child may take.
        env: variables for them beside host.processes.SAFE_ENV; tests name their own helpers in PATH.

    Attributes:
        hanging: what was last left behind for each thing.
    """

    def __init__(self, *, limit: float = 30.0, env: Mapping[str, str] | None = None) -> None:
        self._limit = limit
        self._env = dict(env or {})
        self.hanging: dict[str, Unkillable] = {}

    async def run(
        self,
        key: str,
        argv: Sequence[str],
        *,
        limit: float | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Completed:
        """Run a helper to its end.

        Args:
            key: what it works on; of one that hangs there is never a second.
            argv: program and arguments.
            limit: seconds, where that is less than the usual.
            env: more variables.

        Raises:
            TimedOut: it took too long, or one of before still hangs.
            NotFound: no such program.
            ProcessFailed: it ended with another status than 0.
        """
        before = self.hanging.get(key)
        if before is not None:
            if not before.ended.done():
                raise TimedOut(errno.ETIMEDOUT, f"run {argv[0]}", f"{before.detail}, and hangs still")
            del self.hanging[key]
        limit = self._limit if limit is None else min(limit, self._limit)
        try:
            return await run_async(argv, timeout=limit, env={**self._env, **(env or {})})
        except Unkillable as exc:
            self.hanging[key] = exc
            raise

    async def call(self, key: str, module: str, arguments: Sequence[object]) -> None:
        """Run a module of ours as a program; it finds its arguments in `sys.argv[1]`, as JSON.

        Raises:
            TimedOut, ProcessFailed: as `run`.
        """
        # -P: not the working directory's modules; -s: nor a user's.
        argv = [sys.executable, "-sP", "-m", module, json.dumps(arguments)]
        await self.run(key, argv, limit=LOOK, env={"PYTHONPATH": _CODE})
