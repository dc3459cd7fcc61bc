"""A pod with a user namespace, and how to look at one from outside."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from runtime_kit import Lab

from cri.runtime import userns_probe
from cri.runtime.errors import StartFailed
from cri.runtime.security import CAPABILITIES
from cri.runtime.spec import IdMaps, IdRange
from host.errors import HostError

ROOT = 200000
"""Root of the pod, as the host sees it."""
ALL = {"capabilities": CAPABILITIES, "readonly_paths": ()}
_NS_GET_USERNS = 0xB701


def maps(outside: int = ROOT, length: int = 65536) -> IdMaps:
    span = (IdRange(inside=0, outside=outside, length=length),)
    return IdMaps(uids=span, gids=span)


@pytest.fixture
async def pod(lab: Lab) -> AsyncIterator[Lab]:
    """One sandbox, `pod`, with a user namespace."""
    if words := userns_probe.missing(lab.base, lab.base):
        pytest.skip(words)
    await lab.runtime.create_sandbox(lab.sandbox(user_namespace=maps()))
    yield lab


def owner_of(pid: int, kind: str) -> int:
    """The user namespace (its inode) that a namespace of a process belongs to."""
    fd = os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY)
    found = fcntl.ioctl(fd, _NS_GET_USERNS)
    number = os.fstat(found).st_ino
    os.close(found)
    os.close(fd)
    return number


def userns_of(pid: int) -> int:
    return os.stat(f"/proc/{pid}/ns/user").st_ino


def in_userns(number: int) -> list[int]:
    """Processes in a user namespace."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and userns_of(int(folder.name)) == number:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


async def refused(pod: Lab, *argv: str, **fields: object) -> str:
    """The words with which a container is refused."""
    with pytest.raises((StartFailed, HostError)) as caught:
        async with asyncio.timeout(20):
            await pod.runtime.create_container(pod.container(*argv, **fields))
    return str(caught.value)
