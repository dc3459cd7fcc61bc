"""exec probes: exit status 0 is success. The runtime runs the command and kills it when its time is up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.expansion import expand_all
from agent.probes.measure import OUTPUT_LIMIT, SUCCESS, ExecSync, Measurement, Target, failure

if TYPE_CHECKING:
    from agent.api.structs import ExecAction


async def measure_exec(
    action: ExecAction, target: Target, *, timeout: float, exec_sync: ExecSync
) -> Measurement:
    """Run the command once.

    References to the container's literal environment values are expanded, as kubelet does; there is no shell.

    Raises:
        whatever `exec_sync` raises beside TimeoutError: the runtime could not say.
    """
    variables = {entry.name: entry.value for entry in target.container.env if entry.value_from is None}
    argv = expand_all(action.command, variables)
    try:
        code, output = await exec_sync(target.container_id, argv, timeout)
    except TimeoutError:
        return failure(f"command timed out: {' '.join(argv)!r} timed out after {timeout:g}s")
    if code == 0:
        return SUCCESS
    return failure(output[:OUTPUT_LIMIT].decode(errors="replace"))
