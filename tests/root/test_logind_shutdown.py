"""A shutdown as a real logind announces it: pods stop in order, and the machine waits for them.

The shutdown is asked for in earnest. While logind waits for us its target is masked, so that it has to call
the shutdown off at the end; that is a cancellation, and what follows one is tested with it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Sequence

import pytest
from podkit import make_pod

from agent.api.structs import Pod
from agent.node.shutdown import MESSAGE, OVERRIDE, ShutdownManager, Stage
from agent.resources.qos import CRITICAL_PRIORITY
from host.cgroups.driver import BOOTED
from host.clocks import SystemClock
from host.logind import Logind

MAY = "NODELET_TEST_MAY_SHUT_DOWN"
pytestmark = pytest.mark.skipif(
    not BOOTED.is_dir() or MAY not in os.environ,
    reason=f"needs systemd as process 1, and a machine that may be shut down ({MAY}=1)",
)
STAGES = (Stage(0, 20), Stage(CRITICAL_PRIORITY, 10))
TARGET = "poweroff.target"


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout


def ask_logind(*argv: str) -> str:
    """busctl(1) about logind's manager: its part in this is independent of ours."""
    where = ("org.freedesktop.login1", "/org/freedesktop/login1", "org.freedesktop.login1.Manager")
    return run("busctl", argv[0], *where, *argv[1:])


def pod(name: str, priority: int) -> Pod:
    return make_pod(metadata={"name": name, "uid": name}, spec={"priority": priority})


class Pods:
    """Stopped as asked; what logind says meanwhile is kept beside it."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, str]] = []
        self.waits: list[str] = []

    def active(self) -> list[Pod]:
        return [pod("critical", CRITICAL_PRIORITY), pod("plain", 0)]

    def terminate(self, pod: Pod, text: str, *, grace: int) -> None:
        self.told.append((pod.metadata.name, grace, text))

    async def ended(self, pods: Sequence[Pod], *, timeout: float) -> bool:
        self.waits.append(ask_logind("get-property", "PreparingForShutdown").strip())
        return True

    async def reported(self, *, timeout: float) -> bool:
        run("systemctl", "mask", "--runtime", TARGET)
        return True


@pytest.fixture
def machine() -> Iterator[None]:
    """As it was, afterwards."""
    assert not OVERRIDE.exists()
    run("systemctl", "start", "systemd-logind.service")
    yield
    run("systemctl", "unmask", "--runtime", TARGET)
    OVERRIDE.unlink(missing_ok=True)


async def holds_up() -> None:
    """Until logind lists us and is willing to wait as long as all stages take."""
    delay = f"t {sum(stage.seconds for stage in STAGES) * 1_000_000}"
    while True:
        listed = await asyncio.to_thread(ask_logind, "call", "ListInhibitors")
        if (
            '"kubelet"' in listed
            and delay == (await asyncio.to_thread(ask_logind, "get-property", "InhibitDelayMaxUSec")).strip()
        ):
            return
        await asyncio.sleep(0.2)


async def test_pods_stop_in_order_while_logind_waits(machine: None) -> None:
    pods, said, changes = Pods(), list[str](), asyncio.Queue[bool]()
    manager = ShutdownManager(
        STAGES,
        connect=Logind,
        pods=pods,
        clock=SystemClock(),
        say=lambda reason, message: said.append(f"{reason}: {message}"),
        on_change=lambda: changes.put_nowait(manager.shutting_down),
    )
    async with asyncio.timeout(300):
        running = asyncio.create_task(manager.run())
        await holds_up()
        await asyncio.to_thread(ask_logind, "call", "PowerOff", "b", "false")
        assert await changes.get() is True
        assert await changes.get() is False, "logind has called off what it cannot do"
        await holds_up()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert pods.told == [("plain", 20, MESSAGE), ("critical", 10, MESSAGE)]
    assert pods.waits == ["b true", "b true"]
    assert [text.rpartition(" ")[2] for text in said] == ["event", "cancellation"]
    assert '"kubelet"' not in ask_logind("call", "ListInhibitors")
