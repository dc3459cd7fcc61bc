"""What a large cluster costs the overlay: a thousand peers set, one of them changed, and nothing to do.

The real component on real kernel tables, fed with Nodes. Beside it stand ip(8) and bridge(8), which set the
same entries in a batch: nothing that programs these tables can be much faster than that.
"""

from __future__ import annotations

import asyncio
import json
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from agent.api.structs import Node, NodeSpec, ObjectMeta
from agent.overlay import peers
from agent.overlay.component import Overlay
from agent.overlay.kernel import NetlinkKernel
from agent.overlay.settings import OverlaySettings
from cni.vxlan import Op
from deploy.labkit.layout import Layout
from tests.bench.report import Figure, percentile
from tests.bench.runtime import throw_away_namespaces

PEERS = 1000
_CHANGES = 20
_IDLE_SECONDS = 20.0
_OWN, _STOCK = "me", "stock.1"


def run(lab: Layout, *, say: Callable[[str], None]) -> list[Figure]:
    """The benchmark `overlay`."""
    say(f"{PEERS} peers, {_CHANGES} changes, {_IDLE_SECONDS:.0f} s without any")
    with throw_away_namespaces() as folder:
        _make_underlay()
        sync, change, idle = asyncio.run(_measure(folder))
        stock = _batches()
    return [
        Figure(what=f"{PEERS} peers set, beside ip and bridge -batch", ours=sync, stock=stock[0], unit="ms"),
        Figure(what="one peer changed, p50, beside ip and bridge", ours=change, stock=stock[1], unit="ms"),
        Figure(what="CPU of the overlay, no change", ours=idle, stock=None, unit="%"),
    ]


class _Timed(NetlinkKernel):
    """Tells when entries were last changed."""

    applied = 0.0

    def apply(self, ops: Sequence[Op], *, device: int) -> list[str]:
        """See Kernel."""
        failures = super().apply(ops, device=device)
        if ops:
            self.applied = time.perf_counter()
        return failures


def _make_underlay() -> None:
    _run("ip link add eth0 type veth peer name eth1")
    for device in ("eth0", "eth1"):
        _run(f"ip link set {device} up")
    _run("ip address add 172.16.0.11/12 dev eth0")


def _mac(number: int, life: int = 2) -> str:
    return f"{life:02x}:00:00:00:{number >> 8:02x}:{number & 255:02x}"


def _place(number: int) -> tuple[str, str]:
    """A peer's address and pod range."""
    return f"172.17.{number >> 8}.{number & 255}", f"10.{100 + (number >> 8)}.{number & 255}.0/24"


def _node(number: int, life: int = 2) -> Node:
    host, pods = _place(number)
    told = {
        peers.BACKEND_TYPE: "vxlan",
        peers.BACKEND_DATA: json.dumps({"VNI": 1, "VtepMAC": _mac(number, life)}),
        peers.PUBLIC_IP: host,
    }
    return Node(
        metadata=ObjectMeta(name=f"peer-{number}", annotations=told),
        spec=NodeSpec(pod_cidr=pods, pod_cidrs=(pods,)),
    )


async def _measure(folder: Path) -> tuple[float, float, float]:
    """Milliseconds of the first sync and, at the median, of one change; percent of a CPU without any."""
    own = Node(metadata=ObjectMeta(name=_OWN), spec=NodeSpec(pod_cidr="10.99.0.0/24"))
    nodes = {node.metadata.name: node for node in map(_node, range(1, PEERS + 1))} | {_OWN: own}
    annotated = asyncio.Event()

    async def annotate(told: dict[str, str]) -> None:
        metadata = msgspec.structs.replace(own.metadata, annotations=told)
        nodes[_OWN] = msgspec.structs.replace(own, metadata=metadata)
        annotated.set()

    settings = OverlaySettings(state_dir=str(folder / "cni"), conf_dir="", mtu_probe_seconds=0)
    kernel = _Timed()
    overlay = Overlay(
        node_name=_OWN, node_ips=["172.16.0.11"], annotate=annotate, settings=settings, kernel=kernel
    )
    began = time.perf_counter()
    overlay.update(nodes)
    task = asyncio.create_task(overlay.run())
    await annotated.wait()  # what a round does last
    sync = kernel.applied - began
    changes = []
    for number in range(1, _CHANGES + 1):
        nodes = {**nodes, f"peer-{number}": _node(number, life=6)}
        began = time.perf_counter()
        overlay.update(nodes)
        while kernel.applied < began:
            await asyncio.sleep(0.001)
        changes.append(kernel.applied - began)
        await asyncio.sleep(0.1)
    before = resource.getrusage(resource.RUSAGE_SELF)
    await asyncio.sleep(_IDLE_SECONDS)
    after = resource.getrusage(resource.RUSAGE_SELF)
    task.cancel()
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return 1e3 * sync, 1e3 * percentile(changes, 0.5), 100 * busy / _IDLE_SECONDS


def _batches() -> tuple[float, float]:
    """Milliseconds of ip and bridge for all peers, and for one."""
    _run(f"ip link add {_STOCK} type vxlan id 2 dev eth0 dstport 8473 nolearning")
    _run(f"ip link set {_STOCK} up")
    everything = _batch(range(1, PEERS + 1))
    return everything, percentile([_batch([number]) for number in range(1, _CHANGES + 1)], 0.5)


def _batch(numbers: Sequence[int]) -> float:
    ip, bridge = [], []
    for number in numbers:
        host, pods = _place(number)
        gateway = pods.removesuffix("/24")
        ip.append(f"neigh replace {gateway} lladdr {_mac(number)} dev {_STOCK} nud permanent")
        ip.append(f"route replace {pods} via {gateway} dev {_STOCK} onlink table 99")
        bridge.append(f"fdb replace {_mac(number)} dev {_STOCK} dst {host}")
    began = time.perf_counter()
    _run("bridge -batch -", "\n".join(bridge))
    _run("ip -batch -", "\n".join(ip))
    return 1e3 * (time.perf_counter() - began)


def _run(command: str, text: str = "") -> None:
    subprocess.run(command.split(), input=text.encode(), check=True)
