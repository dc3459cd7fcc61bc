"""Work on other machines' file systems, in child processes with a time limit.

mount(2), umount(2), even stat(2) on an NFS mount whose server is dead sleep in the kernel, where no signal
reaches them; a thread of the agent that did so would be lost, and a few of those stop every pod of the node
(k8s.io issues 45419, 72604). So a child does it. One that outlives SIGKILL is left behind, and until it ends
nothing more is started for the same thing: a dead server costs one process, however often it is tried again.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence

from host.errors import TimedOut
from host.helpers import Unkillable, run_async
from host.processes import Completed


class Children:
    """All such children of an agent.

    Args:
        limit: seconds a child may take.
        env: variables for them beside host.processes.SAFE_ENV; tests name their own helpers in PATH.
    """

    def __init__(self, *, limit: float = 30.0, env: Mapping[str, str] | None = None) -> None:
        self._limit = limit
        self._env = dict(env or {})
        self._stuck: dict[str, Unkillable] = {}

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
        before = self._stuck.get(key)
        if before is not None:
            if not before.ended.done():
                raise TimedOut(errno.ETIMEDOUT, f"run {argv[0]}", f"{before.detail}, and hangs still")
            del self._stuck[key]
        limit = self._limit if limit is None else min(limit, self._limit)
        try:
            return await run_async(argv, timeout=limit, env={**self._env, **(env or {})})
        except Unkillable as exc:
            self._stuck[key] = exc
            raise
