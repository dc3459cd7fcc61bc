"""Which cgroup driver the node follows: the runtime's, because both write one tree (KEP-4033).

A kubelet asks as it starts, and waits for a runtime that does not answer yet. `cgroupDriver` of the
KubeletConfiguration counts only where the runtime cannot say. Nobody needs to be asked on a machine that can
have but one driver.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from host.cgroups import Cgroups
from host.cgroups.driver import BOOTED, choose, load
from host.clocks import Clock

log = logging.getLogger(__name__)
PAUSE_S = 2.0
"""Between two questions to a runtime that does not answer."""


async def agree(
    ask: Callable[[], Awaitable[str]], *, configured: str, failures: tuple[type[Exception], ...], clock: Clock
) -> str:
    """The driver that runtime and node share.

    Args:
        ask: what the runtime says; empty when it cannot say.
        configured: `cgroupDriver`.
        failures: what `ask` raises while the runtime does not answer.
    """
    said = ""
    while True:
        try:
            found = await ask()
            break
        except failures as exc:
            if str(exc) != said:
                said = str(exc)
                log.warning("waiting for the runtime to tell its cgroup driver error=%s", exc)
            await clock.sleep(PAUSE_S)
    if found and found != configured:
        log.info("the runtime's cgroup driver counts runtime=%s cgroupDriver=%s", found, configured)
    return found or configured


async def cgroups_of(
    ask: Callable[[], Awaitable[str]], *, configured: str, failures: tuple[type[Exception], ...], clock: Clock
) -> Cgroups:
    """This machine's cgroups under that driver; arguments as for `agree`.

    Raises:
        InputError: the machine cannot have the driver.
        HostError: systemd does not answer.
    """
    cgroups = Cgroups()
    if choose("auto", mode=cgroups.mode, systemd_runs=BOOTED.is_dir()) == "cgroupfs":
        return cgroups
    return load(await agree(ask, configured=configured, failures=failures, clock=clock))
