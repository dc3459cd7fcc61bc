"""One measurement of one probe: picks the way named in the spec and says success, failure or unknown.

Source of the outcomes and texts: k8s.io/kubernetes/pkg/kubelet/prober and pkg/probe (v1.37).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent.probes.state import Outcome

if TYPE_CHECKING:
    from agent.api.structs import Container

ExecSync = Callable[[str, Sequence[str], float], Awaitable[tuple[int, bytes]]]
"""`await exec_sync(container_id, argv, timeout_seconds) -> (exit code, output)`; TimeoutError when time ran
out.
"""

USER_AGENT = "kube-probe/1.37"
OUTPUT_LIMIT = 10 << 10
"""Bytes of a command's output or an HTTP body that are looked at; kubelet has the same limit."""


class Unmeasurable(Exception):
    """The probe itself could not run (no such port name, no answer from the runtime): not good, not bad."""


@dataclass(frozen=True)
class Measurement:
    """What one try said.

    Attributes:
        outcome: see `Outcome`.
        text: why it failed, or what the warning is.
        warning: a success that people should hear about (an HTTP redirect to another host).
    """

    outcome: Outcome
    text: str = ""
    warning: bool = False


@dataclass(frozen=True)
class Target:
    """Whom to probe: the container's spec and id, and the pod's address."""

    container: Container
    container_id: str
    pod_ip: str


SUCCESS = Measurement(Outcome.SUCCESS)


def failure(text: str) -> Measurement:
    """A failed measurement with its reason, cut to `OUTPUT_LIMIT`."""
    return Measurement(Outcome.FAILURE, text[:OUTPUT_LIMIT])


def resolve_port(port: int | str, container: Container) -> int:
    """The number of a port given by number, by digits, or by the name of one of the container's ports.

    Raises:
        Unmeasurable: no such name, or not a port number.
    """
    number = port if isinstance(port, int) else None
    if number is None:
        named = [entry.container_port for entry in container.ports if entry.name == port]
        if named:
            number = named[0]
        elif str(port).isdecimal():
            number = int(port)
        else:
            raise Unmeasurable(f"couldn't find port: {port!r} in container {container.name}")
    if not 0 < number < 65536:
        raise Unmeasurable(f"invalid port number: {number}")
    return number
