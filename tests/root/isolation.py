"""Fixtures that keep what a test does to the kernel away from this machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from host import netns, rtnl, syscalls
from host.netlink import Netlink


@pytest.fixture(scope="session")
def throw_away_namespaces() -> None:
    """New network and mount namespaces for this process, with loopback up.

    What a test makes is therefore gone with the process, and nothing it does reaches the machine's own
    devices, addresses, routes and rules.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root")
    syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    with Netlink() as netlink:
        netlink.execute(rtnl.set_link("lo", up=True))


@pytest.fixture
def new_netns(tmp_path: Path, throw_away_namespaces: None) -> Iterator[Callable[[str], Path]]:
    """A function that makes a fresh network namespace by name and returns its path; removed afterwards."""
    made: list[Path] = []

    def make(name: str) -> Path:
        path = tmp_path / "netns" / name
        netns.create(path)
        made.append(path)
        return path

    yield make
    for path in made:
        netns.delete(path)
