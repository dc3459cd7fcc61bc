"""What the tests of containment share: privileges as a container has them, and a host that stays as it is."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runtime_kit import Lab

from cri.runtime.errors import StartFailed

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
PRIVILEGES = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")


def status(lines: list[str]) -> dict[str, str]:
    """The fields of a /proc/<pid>/status."""
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def refused(pod: Lab, *argv: str, **fields: Any) -> str:
    """The words with which a container is refused, at create or at start."""
    spec = pod.container(*argv, **fields)
    with pytest.raises(StartFailed) as caught:
        await pod.runtime.create_container(spec)
        await pod.runtime.start_container("pod", spec.id)
    return str(caught.value)


def host_facts() -> tuple[str, str]:
    """What every escape of this kind changes first: the kernel's core_pattern, or our interpreter."""
    return CORE_PATTERN.read_text(), hashlib.sha256(Path(sys.executable).read_bytes()).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def unchanged_host(isolated: None) -> Iterator[None]:
    """A module that imports this fixture asserts that none of its tests changed the host."""
    before = host_facts()
    yield
    assert host_facts() == before
