"""How fast a container can write its log: nodelet-cri beside containerd, in turns, by length of line.

The container copies a prepared file to its standard output again and again; the time is from its start to its
exit as the runtime tells them, and the log must then be whole. `pipe` is what the same program does into a
pipe whose reader throws everything away: no runtime can be faster.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from deploy.labkit.errors import LabError
from deploy.labkit.layout import Layout
from host.cgroups import Cgroups
from proto.cri import runtime_pb2 as pb
from tests.bench import runtimes
from tests.bench.report import Figure
from tests.bench.runtime import throw_away_namespaces
from tests.bench.runtimes import Runtime

LINES = (100, 1 << 10, 16 << 10)
"""Bytes of a line, its line feed included."""
ROUNDS = 3
_FILE = 64 << 20
_COPIES = 8
_COPY = "for i in " + " ".join("x" * _COPIES) + "; do busybox cat {file}; done"
_SECONDS = 300.0


def _write_lines(folder: Path, length: int) -> Path:
    path = folder / f"lines-{length}"
    path.write_bytes((b"x" * (length - 1) + b"\n") * (_FILE // length))
    return path


class Writer:
    """A container whose program writes a file to its log."""

    def __init__(self, side: Runtime, name: str, *, cgroup: str, folder: Path) -> None:
        self._calls = side.runtime
        self._log = folder / f"{name}.log"
        self._folder = folder
        self._config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="bench", uid=name),
            log_directory=str(folder),
        )
        self._config.linux.cgroup_parent = f"{cgroup}/{name}"

    def rate(self, lines: Path) -> float:
        """Megabytes of content a second. Raises LabError when the log is not whole."""
        sandbox = self._calls.RunPodSandbox(pb.RunPodSandboxRequest(config=self._config)).pod_sandbox_id
        config = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=runtimes.IMAGE),
            command=["sh", "-c", _COPY.format(file=f"/data/{lines.name}")],
            log_path=self._log.name,
            mounts=[pb.Mount(host_path=str(lines.parent), container_path="/data", readonly=True)],
        )
        request = pb.CreateContainerRequest(
            pod_sandbox_id=sandbox, config=config, sandbox_config=self._config
        )
        container = self._calls.CreateContainer(request).container_id
        try:
            self._calls.StartContainer(pb.StartContainerRequest(container_id=container))
            status = self._wait(container)
            content = lines.stat().st_size * _COPIES
            if self._log.stat().st_size <= content:
                raise LabError(f"the log holds less than the {content} bytes that were written")
        finally:
            self._calls.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=sandbox))
            self._log.unlink(missing_ok=True)
        return content / (status.finished_at - status.started_at) * 1e3

    def _wait(self, container: str) -> Any:
        request = pb.ContainerStatusRequest(container_id=container)
        deadline = time.monotonic() + _SECONDS
        while (status := self._calls.ContainerStatus(request).status).state != pb.CONTAINER_EXITED:
            if time.monotonic() > deadline:
                raise LabError(f"the container still writes its log after {_SECONDS:.0f} s")
            time.sleep(0.05)
        if status.exit_code:
            raise LabError(f"the container that writes its log ended with {status.exit_code}")
        return status


def _pipe_rate(lines: Path) -> float:
    """What the program writes into a pipe whose reader throws it away, in megabytes a second."""
    script = f"({_COPY.format(file=lines)}) | busybox cat > /dev/null"
    began = time.perf_counter()
    subprocess.run(["/bin/busybox", "sh", "-c", script], check=True, env={"PATH": "/bin"})
    return lines.stat().st_size * _COPIES / (time.perf_counter() - began) / 1e6


def run(lab: Layout, *, say: Callable[[str], None]) -> list[Figure]:
    """The benchmark `logs`. Without containerd in the lab's cache there is no second column."""
    cgroup = f"/nodelet-bench-{os.getpid()}"
    with ExitStack() as stack:
        folder = stack.enter_context(throw_away_namespaces())
        stack.callback(Cgroups().remove, cgroup)
        sides = runtimes.start_sides(folder, lab, stack=stack, say=say)
        for side in sides:
            side.pull()
        data = folder / "data"
        data.mkdir()
        return [figure for length in LINES for figure in _measure(sides, cgroup, folder, data, length, say)]


def _measure(
    sides: Sequence[Runtime], cgroup: str, folder: Path, data: Path, length: int, say: Callable[[str], None]
) -> list[Figure]:
    """Medians over rounds in which the sides and the pipe take turns."""
    say(f"lines of {length} bytes, {ROUNDS} times {_FILE * _COPIES >> 20} MiB on each runtime")
    lines = _write_lines(data, length)
    rates: list[list[float]] = [[] for _ in sides]
    pipe = []
    for number in range(ROUNDS):
        for index, (side, kept) in enumerate(zip(sides, rates, strict=True)):
            name = f"log-{index}-{length}-{number}"
            kept.append(Writer(side, name, cgroup=cgroup, folder=folder).rate(lines))
        pipe.append(_pipe_rate(lines))
    lines.unlink()
    medians = [sorted(found)[ROUNDS // 2] for found in (*rates, pipe)]
    what = f"log of {length}-byte lines"
    return [
        Figure(
            what=what,
            ours=medians[0],
            stock=medians[1] if len(sides) > 1 else None,
            unit="MB/s",
            more_is_better=True,
        ),
        Figure(what=f"{what}, the pipe alone", ours=medians[-1], stock=None, unit="MB/s"),
    ]
