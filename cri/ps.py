"""`nodelet-cri ps`: the pods of this machine and their containers, as the running daemon knows them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

from cri.client import QUICK_SECONDS, SOCKET, Parser, ask, shown
from cri.images.errors import ImageError
from host.errors import InputError

HEADER = ("POD", "IP", "CONTAINER", "STATE", "SINCE", "RUN", "IMAGE", "LOG")


def main(argv: Sequence[str]) -> int:
    """Print the table; 0 when it worked, 1 when the daemon does not answer, 2 for a wrong command line."""
    parser = Parser(prog="nodelet-cri ps", description="show the pods of this machine and their containers")
    parser.add_argument("--endpoint", default=SOCKET, help=f"CRI socket (default {SOCKET})")
    arguments = parser.parse_args(argv)
    try:
        ask(arguments.endpoint, lambda _, runtime, pb: print(table(rows(runtime, pb, now=time.time()))))
    except (ImageError, InputError) as exc:
        print(f"nodelet-cri ps: {exc}", file=sys.stderr)
        return 1
    return 0


def rows(runtime: Any, pb: Any, *, now: float) -> list[tuple[str, ...]]:
    """A row for each container, and one for each pod that has none. `now` is in Unix seconds.

    What is removed between the list and a look at it is left out: it is gone, and that is no error.
    """
    found: list[tuple[str, ...]] = []
    containers = runtime.ListContainers(pb.ListContainersRequest(), timeout=QUICK_SECONDS).containers
    for pod in runtime.ListPodSandbox(pb.ListPodSandboxRequest(), timeout=QUICK_SECONDS).items:
        status = unless_gone(runtime.PodSandboxStatus, pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id))
        if status is None:
            continue
        head = (f"{pod.metadata.namespace}/{pod.metadata.name}", status.network.ip or "-")
        members = [item for item in containers if item.pod_sandbox_id == pod.id]
        if not members:
            state = pb.PodSandboxState.Name(pod.state).removeprefix("SANDBOX_").lower()
            found.append((*head, "-", state, age(now - pod.created_at / 1e9), "-", "-", "-"))
        for item in members:
            detail = unless_gone(runtime.ContainerStatus, pb.ContainerStatusRequest(container_id=item.id))
            if detail is not None:
                found.append((*head, *container_cells(item, detail, pb, now)))
    return sorted(found)


def unless_gone(call: Any, request: Any) -> Any | None:
    """The status a call answers, or None when the runtime does not have that id any more.

    Raises:
        grpc.RpcError: anything but NotFound.
    """
    import grpc

    try:
        return call(request, timeout=QUICK_SECONDS).status
    except grpc.RpcError as exc:
        if exc.code() == grpc.StatusCode.NOT_FOUND:
            return None
        raise


def container_cells(item: Any, detail: Any, pb: Any, now: float) -> tuple[str, ...]:
    """The cells from CONTAINER on, of a listed container and its status."""
    since = detail.finished_at or detail.started_at or detail.created_at
    state = pb.ContainerState.Name(item.state).removeprefix("CONTAINER_").lower()
    if item.state == pb.CONTAINER_EXITED:
        state += f"({detail.exit_code})"
    image = item.image.user_specified_image or item.image.image
    words = (item.metadata.name, state, age(now - since / 1e9), str(item.metadata.attempt))
    return (*words, image, detail.log_path)


def age(seconds: float) -> str:
    """A duration in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def table(found: Sequence[Sequence[str]]) -> str:
    """Rows below the header, in columns."""
    cells = [HEADER, *([shown(cell) for cell in row] for row in found)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(HEADER))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
