"""Pods that come and go on one node while its daemon is killed again and again, and what must be true then.

A kubelet's part is played by `Churn`: what a kill interrupts is asked for again once the daemon answers. Some
pods have host ports, some have limits, so that there are rules and second devices that could be left behind.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import crileaks
from crinode import CriNode
from grpc import StatusCode, aio

from cni import launcher
from cni.bandwidth import shaper_name
from cni.config import Attachment
from cni.wiring import host_name
from host import processes
from proto.cri import runtime_pb2 as pb

T = TypeVar("T")
AT_ONCE = 8
FIRST_PORT = 20_000
KEEP = 10
"""One pod of so many stays until the end."""


@contextmanager
def executed_plugin(node: CriNode) -> Iterator[None]:
    """The plugin under a name that nodelet-cri does not know as its own, which is therefore executed."""
    folder, config = node.folder / "bin", node.folder / "net.d" / "05-executed.conflist"
    folder.mkdir(exist_ok=True)
    plugin = launcher.install(folder).rename(folder / "executed")
    text = (node.folder / "net.d" / "10-nodelet.conflist").read_text()
    config.with_suffix(".new").write_text(text.replace('"nodelet-cni"', '"executed"'))
    config.with_suffix(".new").rename(config)
    try:
        yield
    finally:
        config.unlink()
        plugin.unlink()


class Churn:
    """One run: `count` pods made and all but a few removed, with `kills` of the daemon spread over it."""

    def __init__(self, node: CriNode, *, count: int, kills: int, say: Callable[[str], None] = print) -> None:
        self.node, self.say = node, say
        self.pods: dict[str, pb.PodSandboxConfig] = {}
        """Those that stay, by sandbox."""
        self.interrupted = 0
        self._numbers = iter(range(count))
        self._kill_at = {(number + 1) * count // (kills + 1): number for number in range(kills)}
        self._ended = 0
        self._calls = 0
        self._up, self._idle = asyncio.Event(), asyncio.Event()
        self._up.set()

    async def run(self) -> None:
        """Let them come and go, some at a time."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(AT_ONCE):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        for number in self._numbers:
            config = self._config(number)
            sandbox = await self._insist(lambda config=config: self.node.run_pod(config))
            if number % KEEP:
                await self.remove(sandbox)
            else:
                self.pods[sandbox] = config
            self._ended += 1
            if self._ended in self._kill_at:
                await self._kill(self._kill_at[self._ended])

    def _config(self, number: int) -> pb.PodSandboxConfig:
        config = self.node.sandbox_config(f"pod{number}")
        if number % 4 == 0:
            config.port_mappings.add(host_port=FIRST_PORT + number, container_port=80)
        if number % 5 == 0:
            config.annotations["kubernetes.io/egress-bandwidth"] = "10M"
        return config

    async def remove(self, sandbox: str) -> None:
        """Stop a pod and remove it."""
        await self._insist(
            lambda: self.node.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=sandbox))
        )
        await self._insist(
            lambda: self.node.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
        )

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call, and make it again after a kill."""
        while True:
            await self._up.wait()
            self._calls += 1
            try:
                return await call()
            except aio.AioRpcError as exc:
                if exc.code() is not StatusCode.UNAVAILABLE:
                    raise
                self.interrupted += 1
                self._up.clear()  # nobody asks before the daemon is back; the one who killed it says so
            finally:
                self._calls -= 1
                if not self._calls:
                    self._idle.set()

    async def _kill(self, number: int) -> None:
        """SIGKILL to the daemon; every second time to the plugins that it has started as well."""
        self._up.clear()
        plugins = executed(self.node) if number % 2 else []
        os.kill(self.node.pid, signal.SIGKILL)
        for pid in plugins:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._calls:
            self._idle.clear()
            await self._idle.wait()
        await self.node.revive()
        self.say(f"kill {number + 1} after {self._ended} pods: {self.interrupted} calls interrupted so far")
        self._up.set()

    async def expected(self) -> dict[str, object]:
        """What the pods that run must have; the runtime knows the same ones."""
        runtime = self.node.runtime
        listed = (await runtime.ListPodSandbox(pb.ListPodSandboxRequest())).items
        assert {(item.id, item.state) for item in listed} == {(id, pb.SANDBOX_READY) for id in self.pods}
        leases, devices, ports = {}, set(), {}
        for sandbox, config in self.pods.items():
            asked = pb.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
            leases[(await runtime.PodSandboxStatus(asked)).status.network.ip] = sandbox
            devices.add(host_name(Attachment(sandbox, "eth0")))
            if config.annotations:
                devices.add(shaper_name(Attachment(sandbox, "eth0")))
            for mapping in config.port_mappings:
                ports[sandbox] = mapping.host_port
        return {
            "leases": leases,
            "devices": devices,
            "records": set(ports),
            "rules": sorted(ports.values()),
            "namespaces": len(self.pods),
        }

    def there(self) -> dict[str, object]:
        """The same as disk and kernel have it."""
        network = self.node.folder / "cni" / "nodelet"
        return {
            "leases": dict(path.name.split(",")[:2] for path in (network / "leases").iterdir()),
            "devices": crileaks.links(),
            "records": {path.name.split(",")[0] for path in (network / "ports").glob("*,*")},
            "rules": host_port_rules(),
            "namespaces": len(os.listdir(self.node.folder / "netns")),
        }


def host_port_rules() -> list[int]:
    """The ports of this namespace that lead to pods, one for each rule."""
    lines = processes.run(["iptables-save", "-t", "nat"]).stdout.decode().splitlines()
    found = [line.split() for line in lines if line.startswith("-A NODELET-HOSTPORTS ")]
    return sorted(int(words[words.index("--dport") + 1]) for words in found)


def executed(node: CriNode) -> list[int]:
    """Process ids of the plugins that run now for this node."""
    wanted, found = str(node.folder / "bin" / "executed").encode(), []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if wanted in Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0"):
                found.append(int(entry))
    return found
