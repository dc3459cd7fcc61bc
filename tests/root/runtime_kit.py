"""A small image, a runtime on temporary folders, and an oracle for leaks: what the runtime tests share."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cri.runtime.client import Runtime, Spawner, launch_spawner
from cri.runtime.security import MASKED_PATHS, READONLY_PATHS, capabilities
from cri.runtime.spec import ContainerFacts, ContainerSpec, SandboxSpec, User
from host.cgroups import Cgroups, Resources

BUSYBOX = Path("/bin/busybox")
APPLETS = (  # noqa: SIM905 - a table to read
    "sh ash ls cat id echo sleep mount ps env touch hostname ip kill mkdir mknod stat true false dd head yes "
    "tty stty unshare chroot readlink sync seq grep test setsid nc dmesg ulimit printf wc chmod chown "
    "umount su"
).split()
PASSWD = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n1234567:x:0:0::/:/bin/sh\n"
GROUP = "root:x:0:\nbob:x:1000:\nextra:x:2000:bob,eve\n"


def make_image(root: Path) -> Path:
    """A root with busybox and two users."""
    if not BUSYBOX.exists():
        pytest.skip("needs /bin/busybox (Debian package busybox-static)")
    for folder in ("bin", "etc", "tmp", "root"):
        (root / folder).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for applet in APPLETS:
        os.symlink("busybox", root / "bin" / applet)
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


class Lab:
    """One runtime with its own folders and its own cgroup parent."""

    def __init__(self, base: Path, cgroup: str) -> None:
        self.base, self.cgroup = base, cgroup
        self.image = make_image(base / "image")
        self.cgroups = Cgroups()
        self.cgroups.create(f"{cgroup}/pod-pod")
        self.spawner: Spawner = launch_spawner()
        self.runtime = self.new_runtime()
        (base / "logs").mkdir()
        self.count = 0

    def new_runtime(self) -> Runtime:
        """As after a restart of nodelet-cri."""
        return Runtime(self.base / "state", spawner=self.spawner, cgroups=self.cgroups)

    def sandbox(self, name: str = "pod", **fields: Any) -> SandboxSpec:
        """A sandbox's spec."""
        if not fields.get("host_network"):
            fields.setdefault("netns_path", self.base / "netns" / name)
        return SandboxSpec(id=name, hostname=f"host-{name}", **fields)

    def container(self, *argv: str, name: str = "", pod: str = "pod", **fields: Any) -> ContainerSpec:
        """A container's spec with everything an unprivileged pod has."""
        self.count += 1
        name = name or f"c{self.count}"
        for folder in ("upper", "work"):
            (self.base / "layers" / name / folder).mkdir(parents=True, exist_ok=True)
        spec = ContainerSpec(
            id=name,
            sandbox_id=pod,
            argv=argv,
            env=(("PATH", "/bin"),),
            lower_dirs=(self.image,),
            upper_dir=self.base / "layers" / name / "upper",
            work_dir=self.base / "layers" / name / "work",
            masked_paths=MASKED_PATHS,
            readonly_paths=READONLY_PATHS,
            capabilities=capabilities(),
            cgroup_path=f"{self.cgroup}/pod-{pod}/{name}",
            resources=Resources(cpu_shares=100),
            log_path=self.base / "logs" / f"{name}.log",
        )
        return replace(spec, **fields)

    async def run(self, *argv: str, **fields: Any) -> tuple[ContainerFacts, list[str]]:
        """Create, start, wait: the facts and the lines of output."""
        spec = self.container(*argv, **fields)
        await self.runtime.create_container(spec)
        await self.runtime.start_container(spec.sandbox_id, spec.id)
        async with asyncio.timeout(20):
            facts = await self.runtime.wait_container(spec.sandbox_id, spec.id)
        return facts, self.output(spec.id)

    async def start(self, *argv: str, **fields: Any) -> ContainerSpec:
        """Create and start."""
        spec = self.container(*argv, **fields)
        await self.runtime.create_container(spec)
        await self.runtime.start_container(spec.sandbox_id, spec.id)
        return spec

    async def sh(self, script: str, **fields: Any) -> list[str]:
        """Output of a shell script, which must succeed."""
        facts, lines = await self.run("sh", "-c", script, **fields)
        assert facts.exit is not None
        assert facts.exit.code == 0, (facts, lines)
        return lines

    def output(self, name: str) -> list[str]:
        """The text of a container's log lines."""
        lines = (self.base / "logs" / f"{name}.log").read_text().splitlines()
        return [line.split(" ", 3)[3] for line in lines]

    async def close(self) -> None:
        """Remove everything."""
        for sandbox_id in self.runtime.sandbox_ids():
            await self.runtime.remove_sandbox(sandbox_id)
        await self.runtime.close()
        self.spawner.close()
        self.cgroups.remove(self.cgroup)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """A runtime without sandboxes; what a test leaves in it is removed."""
    made = Lab(tmp_path, f"/nodelet-test-{os.getpid()}")
    yield made
    await made.close()


@pytest.fixture
async def pod(lab: Lab) -> Lab:
    """The same with one sandbox, `pod`."""
    await lab.runtime.create_sandbox(lab.sandbox())
    return lab


def user(**fields: Any) -> User:
    """Shorter to read in tables."""
    return User(**fields)


def snapshot(lab: Lab) -> dict[str, Any]:
    """What must be the same before and after: mounts, cgroups, our descriptors, netns files, state."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    tree = [folder for folder in lab.cgroups.folders(lab.cgroup) if folder.is_dir()]
    return {
        "mounts": sorted(line.split(" - ")[0].split(" ", 3)[3] for line in mounts),
        "cgroups": sorted(str(path) for folder in tree for path in folder.rglob("*") if path.is_dir()),
        "fds": len(os.listdir("/proc/self/fd")),
        "netns": sorted(os.listdir(lab.base / "netns")) if (lab.base / "netns").is_dir() else [],
        "state": lab.runtime.sandbox_ids(),
    }


@contextmanager
def no_leaks(lab: Lab) -> Iterator[None]:
    """Nothing but time may have changed afterwards."""
    before = snapshot(lab)
    yield
    after = snapshot(lab)
    assert {key: (before[key], after[key]) for key in before if after[key] != before[key]} == {}
