"""How long a CNI plugin takes for a pod: nodelet-cni in the runtime's process, and executed (served, alone),
beside the reference plugins bridge, host-local and portmap.

The same caller (nodelet-cri's) runs all in turns, on a namespace made before the clock starts. The
reference is configured for what ours does: gateway, hairpin, masquerading, host ports. What it does not do
(spoof protection, ready neighbour entries) is in our figures all the same.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cni import launcher
from cni.config import render_conflist
from cri.network import Network, PodNetwork, parse_conflist
from deploy.labkit import versions
from deploy.labkit.layout import Layout
from host import netns
from tests.bench.report import Figure, percentile
from tests.bench.runtime import throw_away_namespaces

PODS = 30
_ALONE, _SERVED = "nodelet-cni-alone", "nodelet-cni-served"
_WAYS = {"nodelet-cni": "in-process", _SERVED: "executed, served", _ALONE: "executed, alone"}
_PORTS = {False: "", True: " with a host port"}


@dataclass
class Side:
    """One plugin chain and the milliseconds its calls took, by (command, host port)."""

    conflist: dict[str, Any]
    times: dict[tuple[str, bool], list[float]] = field(default_factory=dict)

    def median(self, command: str, port: bool) -> float:
        return percentile(self.times[command, port], 0.5)


def run(lab: Layout, *, say: Callable[[str], None]) -> list[Figure]:
    """The benchmark `network`. Without the reference plugins in the lab's cache there is no second column."""
    with throw_away_namespaces() as folder:
        bin_dir = folder / "bin"
        bin_dir.mkdir()
        for kind in (_ALONE, _SERVED):
            launcher.install(bin_dir, socket=folder / kind).rename(bin_dir / kind)
        sides = [_ours(folder, number, kind) for number, kind in enumerate(_WAYS, 1)]
        reference = [lab.binary(versions.REFERENCE_CNI, name) for name in ("bridge", "host-local", "portmap")]
        if all(path.exists() for path in reference):
            for path in reference:
                shutil.copy(path, bin_dir)
            sides.append(_reference(folder))
        say(f"{PODS} pods for each of {len(sides)} plugin chains, in turns, without and with a host port")
        network = Network(conf_dir=folder, bin_dir=bin_dir)
        with _service(folder / _SERVED):
            asyncio.run(_measure(network, sides, folder))
    return [
        figure for port in _PORTS for command in ("ADD", "DEL") for figure in _figures(sides, command, port)
    ]


@contextmanager
def _service(path: Path) -> Iterator[None]:
    """`nodelet-cni --serve`, listening when the block begins."""
    with subprocess.Popen([sys.executable, "-m", "cni.main", "--serve", "--socket", str(path)]) as process:
        try:
            while not path.exists() and process.poll() is None:
                time.sleep(0.01)
            yield
        finally:
            process.terminate()


def _ours(folder: Path, number: int, kind: str) -> Side:
    """Our plugin, by the name that makes the caller take it in-process or execute it."""
    conflist = parse_conflist(
        render_conflist(
            [f"10.100.{number}.0/24"],
            name=f"ours{number}",
            bridge=f"ours{number}",
            state_dir=str(folder / "ours"),
        ),
        "bench",
    )
    conflist["plugins"][0]["type"] = kind
    return Side(conflist)


def _reference(folder: Path) -> Side:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": "10.100.9.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dataDir": str(folder / "reference"),
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True}
    plugins = [bridge | {"ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return Side({"name": "reference", "cniVersion": "1.0.0", "plugins": plugins})


async def _measure(network: Network, sides: Sequence[Side], folder: Path) -> None:
    """Every side makes and unmakes a pod in each round; the first round, which makes bridges, is not kept."""
    for round_ in range(PODS + 1):
        for port in _PORTS:
            for number, side in enumerate(sides):
                pod = PodNetwork(
                    sandbox_id=f"pod-{round_}-{number}-{port}",
                    netns=str(folder / "netns" / f"cni-{round_}-{number}-{port}"),
                    namespace="bench",
                    name=f"pod-{round_}",
                    uid="",
                )
                if port:
                    mapping = {"hostPort": 8000 + number, "containerPort": 80, "protocol": "tcp"}
                    pod = replace(pod, port_mappings=(mapping,))
                netns.create(pod.netns)
                try:
                    times = await _one(network, side, pod)
                finally:
                    netns.delete(pod.netns)
                if round_:
                    for command, took in times.items():
                        side.times.setdefault((command, port), []).append(took)


async def _one(network: Network, side: Side, pod: PodNetwork) -> dict[str, float]:
    began = time.perf_counter()
    result = await network.add(side.conflist, pod)
    added = time.perf_counter()
    await network.delete(side.conflist, pod, result)
    return {"ADD": (added - began) * 1e3, "DEL": (time.perf_counter() - added) * 1e3}


def _figures(sides: Sequence[Side], command: str, port: bool) -> list[Figure]:
    ours, others = sides[: len(_WAYS)], sides[len(_WAYS) :]
    return [
        Figure(
            what=f"CNI {command}{_PORTS[port]}, {how}, p50",
            ours=side.median(command, port),
            stock=others[0].median(command, port) if others else None,
            unit="ms",
        )
        for how, side in zip(_WAYS.values(), ours, strict=True)
    ]
