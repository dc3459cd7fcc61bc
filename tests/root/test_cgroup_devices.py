"""The device program in a real kernel, on a cgroup2 folder of the test's own."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from host import syscalls
from host.cgroups import Cgroups, DeviceRule, devicefilter
from host.cgroups.devices import ALL_DEVICES, CONTAINER_DEVICES
from host.errors import HostError


@pytest.fixture
def folder() -> Iterator[Path]:
    groups = Cgroups()
    if groups.mode == "v1":
        pytest.skip("needs a cgroup2 mount")
    path = groups.trees[0] / f"nodelet-test-devices-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def open_in(folder: Path, device: str) -> int:
    """The errno a process gets that is born in the cgroup and opens a device for reading; 0: it could."""
    cgroup = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    pid, pidfd = syscalls.fork(cgroup=cgroup)
    if pid == 0:
        try:
            os.close(os.open(device, os.O_RDONLY | os.O_NONBLOCK))
            os._exit(0)
        except OSError as exc:
            os._exit(exc.errno or 255)
    os.close(cgroup)
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_only_what_is_listed_opens(folder: Path) -> None:
    assert open_in(folder, "/dev/kmsg") == 0
    devicefilter.attach(folder, CONTAINER_DEVICES)
    assert open_in(folder, "/dev/kmsg") == errno.EPERM
    assert open_in(folder, "/dev/zero") == 0


def test_a_device_asked_for_has_the_access_asked_for(folder: Path) -> None:
    devicefilter.attach(folder, (*CONTAINER_DEVICES, DeviceRule(kind="c", major=1, minor=11, access="w")))
    assert open_in(folder, "/dev/kmsg") == errno.EPERM


def test_every_program_of_a_cgroup_must_allow(folder: Path) -> None:
    devicefilter.attach(folder, CONTAINER_DEVICES)
    devicefilter.attach(folder, ALL_DEVICES)
    assert open_in(folder, "/dev/kmsg") == errno.EPERM
    assert open_in(folder, "/dev/null") == 0


def test_a_folder_that_is_no_cgroup_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="control devices of"):
        devicefilter.attach(tmp_path, CONTAINER_DEVICES)
