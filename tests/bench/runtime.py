"""What each CRI call costs, and what a pod costs in memory: nodelet-cri beside containerd with runc.

No lab, no API server and no kubelet: one client calls both runtimes in turns, so that whatever else the
machine does hits both alike. Everything happens in network and mount namespaces of this process and below
cgroups of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from deploy.labkit.layout import Layout
from host import rtnl, syscalls
from host.cgroups import Cgroups
from host.netlink import Netlink
from proto.cri import runtime_pb2 as pb
from tests.bench import costs, runtimes
from tests.bench.report import Figure, percentile
from tests.bench.runtimes import Runtime

PODS = 50
AT_ONCE = 50
_WARM_UP = 3
_IDLE_SECONDS = 5.0
_MEGABYTE = 1e6
_COMMAND = ("sh", "-c", "trap 'exit 0' TERM; sleep 3600 & wait")
_HELPERS = ("nodelet-pod", "containerd-shim")
_PAUSE = "sleep\0" + "1000000\0"
Times = dict[str, list[float]]


class Pod:
    """One pod of one container, its calls timed."""

    def __init__(self, side: Runtime, name: str, cgroup: str, times: Times | None = None) -> None:
        self._calls, self._times = side.runtime, {} if times is None else times
        self._config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="bench", uid=name),
            hostname=name,
            dns_config=pb.DNSConfig(servers=["10.96.0.10"], searches=["cluster.local"]),
        )
        self._config.linux.cgroup_parent = f"{cgroup}/{side.process.pid}-{name}"
        self._config.linux.security_context.namespace_options.pid = pb.CONTAINER
        self.sandbox = self.container = ""

    def _call(self, name: str, request: Any) -> Any:
        began = time.perf_counter()
        answer = getattr(self._calls, name)(request, timeout=60)
        self._times.setdefault(name, []).append(1000 * (time.perf_counter() - began))
        return answer

    def start(self) -> None:
        """Sandbox, container, running."""
        began = time.perf_counter()
        answer = self._call("RunPodSandbox", pb.RunPodSandboxRequest(config=self._config))
        self.sandbox = answer.pod_sandbox_id
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=runtimes.IMAGE),
            command=_COMMAND,
        )
        config.linux.resources.cpu_shares = 100
        request = pb.CreateContainerRequest(
            pod_sandbox_id=self.sandbox, config=config, sandbox_config=self._config
        )
        self.container = self._call("CreateContainer", request).container_id
        self._call("StartContainer", pb.StartContainerRequest(container_id=self.container))
        self._times.setdefault("start", []).append(1000 * (time.perf_counter() - began))

    def execute(self) -> None:
        """`true` in the container."""
        self._call("ExecSync", pb.ExecSyncRequest(container_id=self.container, cmd=["true"], timeout=20))

    def stop(self) -> None:
        """Everything in the order a kubelet has."""
        began = time.perf_counter()
        self._call("StopContainer", pb.StopContainerRequest(container_id=self.container, timeout=20))
        self._call("RemoveContainer", pb.RemoveContainerRequest(container_id=self.container))
        sandbox = time.perf_counter()
        self._call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=self.sandbox))
        self._call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=self.sandbox))
        end = time.perf_counter()
        self._times.setdefault("sandbox", []).append(1000 * (end - sandbox))
        self._times.setdefault("stop", []).append(1000 * (end - began))


_CALLS = (
    ("RunPodSandbox", "RunPodSandbox, network included"),
    ("CreateContainer", "CreateContainer"),
    ("StartContainer", "StartContainer"),
    ("start", "pod of one container made and started"),
    ("ExecSync", "ExecSync of `true`"),
    ("StopContainer", "StopContainer, ends at TERM"),
    ("RemoveContainer", "RemoveContainer"),
    ("StopPodSandbox", "StopPodSandbox"),
    ("RemovePodSandbox", "RemovePodSandbox"),
    ("sandbox", "StopPodSandbox and RemovePodSandbox"),
    ("stop", "pod stopped and removed"),
)


def measure_calls(sides: Sequence[Runtime], cgroup: str, pods: int = PODS) -> list[Times]:
    """Milliseconds of every call, for each runtime; the runtimes take turns."""
    times: list[Times] = [{} for _ in sides]
    for number in range(-_WARM_UP, pods):
        for side, kept in zip(sides, times, strict=True):
            pod = Pod(side, f"pod-{number}", cgroup, kept if number >= 0 else None)
            pod.start()
            pod.execute()
            time.sleep(0.02)  # the shell sets its trap
            pod.stop()
    return times


def measure_memory(side: Runtime, cgroup: str, pods: int = AT_ONCE) -> dict[str, float]:
    """Pods a second when all are started at once; megabytes for each pod beside its container, and of the
    daemon; percent of a CPU when all are idle."""
    # By name as well: a supervisor that was forked ahead of its pod takes its name with the pod.
    before = {(pid, name) for pid, name, _ in costs.processes()}
    started = [Pod(side, f"memory-{number}", cgroup) for number in range(pods)]
    began = time.perf_counter()
    _all_at_once(Pod.start, started)
    rate = pods / (time.perf_counter() - began)
    extra = [
        pid
        for pid, name, line in costs.processes()
        if (pid, name) not in before and (name.startswith(_HELPERS) or line.endswith(_PAUSE))
    ]
    pids = [*extra, side.process.pid]
    time.sleep(1.0)
    idle = costs.busy(pids, _IDLE_SECONDS)
    figures = {
        "rate": rate,
        "pod": sum(map(costs.pss, extra)) / pods,
        "daemon": costs.pss(side.process.pid),
        "idle": idle,
    }
    _all_at_once(Pod.stop, started)
    return figures


def _all_at_once(work: Callable[[Pod], None], pods: Sequence[Pod]) -> None:
    with ThreadPoolExecutor(max_workers=len(pods)) as pool:
        for _ in pool.map(work, pods):
            pass  # raises what the work has raised


@contextmanager
def throw_away_namespaces() -> Iterator[Path]:
    """Leave the machine's network and mount namespaces for good; a folder on disk that is removed at the
    end."""
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", "/run", "tmpfs", 0, "mode=0755")
    with Netlink() as netlink:
        netlink.execute(rtnl.set_link("lo", up=True))
    folder = Path(tempfile.mkdtemp(prefix="nodelet-bench-", dir="/var/tmp"))  # on disk
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(lab: Layout, *, say: Callable[[str], None]) -> list[Figure]:
    """The benchmark `runtime`. Without containerd in the lab's cache there is no second column."""
    cgroup = f"/nodelet-bench-{os.getpid()}"
    with ExitStack() as stack:
        folder = stack.enter_context(throw_away_namespaces())
        stack.callback(Cgroups().remove, cgroup)
        sides = runtimes.start_sides(folder, lab, stack=stack, say=say)
        for side in sides:
            side.pull()
        say(f"{PODS} pods on each runtime, in turns")
        times = measure_calls(sides, cgroup)
        say(f"{AT_ONCE} pods at once on each runtime")
        memory = [measure_memory(side, cgroup) for side in sides]
    return [*_call_figures(times), *_memory_figures(memory)]


def _call_figures(times: Sequence[Times]) -> list[Figure]:
    def median(side: int, call: str) -> float | None:
        return percentile(times[side][call], 0.5) if side < len(times) else None

    return [
        Figure(what=f"{what}, p50", ours=median(0, call) or 0.0, stock=median(1, call), unit="ms")
        for call, what in _CALLS
    ]


def _memory_figures(memory: Sequence[dict[str, float]]) -> list[Figure]:
    stock: dict[str, float] = memory[1] if len(memory) > 1 else {}
    return [
        Figure(what=what, ours=memory[0][key], stock=stock.get(key), unit=unit, more_is_better=key == "rate")
        for key, what, unit in (
            ("rate", f"{AT_ONCE} pods started at once", "/s"),
            ("pod", "memory (PSS) of a pod beside its container", "MB"),
            ("daemon", "memory (PSS) of the daemon", "MB"),
            ("idle", f"CPU of the runtime, {AT_ONCE} idle pods", "%"),
        )
    ]
