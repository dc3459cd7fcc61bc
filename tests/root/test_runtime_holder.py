"""The process that holds a scope: there before the container's first process, gone with its last.

The cgroups here are plain ones that ask for a holder and remember it, so that no systemd is needed.
"""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest
import runtime_kit
from runtime_kit import Lab

from cri.runtime.errors import StartFailed
from host.cgroups import Cgroups, Resources
from host.errors import from_errno

lab, pod = runtime_kit.lab, runtime_kit.pod


class Held(Cgroups):
    """Like systemd's: no cgroup without a holder."""

    def __init__(self) -> None:
        super().__init__()
        self.holders: list[int] = []
        self.refuse = False

    def needs_holder(self, path: str) -> bool:
        return True

    def create(self, path: str, resources: Resources | None = None, *, holder: int = 0) -> None:
        assert alive(holder)
        self.holders.append(holder)
        if self.refuse:
            raise from_errno(errno.ETIMEDOUT, "start a scope")
        super().create(path, resources)


def alive(pid: int) -> bool:
    """Whether it runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def gone(pid: int) -> None:
    """Wait for its end."""
    async with asyncio.timeout(20):
        while alive(pid):
            await asyncio.sleep(0.01)


@pytest.fixture
async def held(pod: Lab) -> Any:
    """The pod, whose further containers want holders."""
    pod.cgroups = Held()
    await pod.runtime.close()
    pod.runtime = pod.new_runtime()
    await pod.runtime.attach_sandbox("pod")
    return pod


async def test_it_lives_as_long_as_the_container(held: Lab) -> None:
    spec = await held.start("sleep", "1000")
    (holder,) = held.cgroups.holders
    assert alive(holder)
    assert Path(f"/proc/{holder}/comm").read_text() == "scope-holder\n"
    assert os.listdir(f"/proc/{holder}/fd") == [], "an open pipe would keep a log from ending"
    await held.runtime.signal_container("pod", spec.id, 9)
    await held.runtime.wait_container("pod", spec.id)
    await gone(holder)


async def test_one_for_which_no_cgroup_was_made_is_let_go(held: Lab) -> None:
    held.cgroups.refuse = True
    with pytest.raises(StartFailed, match="start a scope"):
        await held.runtime.create_container(held.container("true", name="no"))
    (holder,) = held.cgroups.holders
    await gone(holder)


async def test_one_whose_daemon_has_died_before_the_container_was_made_is_let_go(held: Lab) -> None:
    link = held.runtime._pods.link("pod")
    holder = (await link.request("hold", container="half"))["pid"]
    assert alive(holder)
    await held.runtime.close()
    await gone(holder)
    held.runtime = held.new_runtime()


async def test_the_pods_end_is_its_end(held: Lab) -> None:
    await held.start("sleep", "1000")
    (holder,) = held.cgroups.holders
    await held.runtime.remove_sandbox("pod")
    assert not alive(holder)
