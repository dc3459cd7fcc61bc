"""Volumes on the real mount table: tmpfs, subPath binds against a racing pod, unmounting after a restart."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.api.structs import (
    Container,
    EmptyDirVolumeSource,
    ObjectMeta,
    Pod,
    PodSecurityContext,
    PodSpec,
    Secret,
    SecretVolumeSource,
    Volume,
    VolumeMount,
)
from agent.volumes.base import Unready
from agent.volumes.manager import VolumeError, VolumeManager
from agent.volumes.mounts import HostMounter
from agent.volumes.subpath import bind_subpath

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SYS_ADMIN for mount(2)")


class Api:
    async def get_config_map(self, namespace: str, name: str) -> None:
        return None

    async def get_secret(self, namespace: str, name: str) -> Secret:
        return Secret(data={"username": "YWRtaW4="})

    async def create_token(self, namespace: str, service_account: str, request: object) -> None:
        raise NotImplementedError


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    mounter = HostMounter()
    for mounted in mounter.table(tmp_path):
        mounter.unmount(mounted.point, lazy=True)


def pod(*, group: int | None = None) -> Pod:
    return Pod(
        metadata=ObjectMeta(name="p", namespace="ns", uid="u1"),
        spec=PodSpec(
            volumes=(
                Volume(name="mem", empty_dir=EmptyDirVolumeSource(medium="Memory", size_limit="1Mi")),
                Volume(name="disk", empty_dir=EmptyDirVolumeSource()),
                Volume(name="secret", secret=SecretVolumeSource(secret_name="s")),
            ),
            security_context=PodSecurityContext(fs_group=group),
        ),
    )


def read(path: str) -> str:
    return Path(path).read_text()


def same(one: str, other: Path) -> bool:
    return os.path.samefile(one, other)


def fs_type(path: Path) -> str:
    done = subprocess.run(
        ["findmnt", "-n", "-o", "FSTYPE", str(path)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


async def test_life_of_a_pods_volumes(root: Path) -> None:
    manager = VolumeManager(root=root, sources=Api())
    prepared = await manager.prepare(pod(group=1234))
    memory, secret = prepared["mem"].host_path, prepared["secret"].host_path
    assert fs_type(memory) == fs_type(secret) == "tmpfs"
    assert fs_type(prepared["disk"].host_path) == ""
    assert (secret / "username").read_text() == "admin"
    assert (secret / "username").stat().st_gid == 1234
    facts = memory.stat()
    assert (facts.st_gid, facts.st_mode & 0o7777) == (1234, 0o3777), "sticky, as with kubelet"
    with pytest.raises(OSError, match="No space"):
        (memory / "big").write_bytes(b"x" * (2 << 20))
    await manager.prepare(pod(group=1234))
    assert len(HostMounter().table(root)) == 2

    mounts = (
        VolumeMount(name="disk", mount_path="/d", sub_path="a/b"),
        VolumeMount(name="secret", mount_path="/s", sub_path="username"),
        VolumeMount(name="mem", mount_path="/m", sub_path="made"),
    )
    bound = await manager.container_mounts(pod(), Container(name="c", volume_mounts=mounts), prepared)
    assert read(bound[1].host_path) == "admin"
    assert same(bound[0].host_path, prepared["disk"].host_path / "a/b")
    made = Path(bound[2].host_path).stat()
    assert (made.st_gid, made.st_mode & 0o7777) == (1234, 0o3777)
    again = await manager.container_mounts(pod(), Container(name="c", volume_mounts=mounts), prepared)
    assert again == bound
    assert len(HostMounter().table(root)) == 5

    restarted = VolumeManager(root=root, sources=Api())
    await restarted.teardown("u1")
    assert HostMounter().table(root) == []
    assert not (root / "pods/u1").exists()


async def test_a_busy_mount_is_named_with_its_users(root: Path) -> None:
    manager = VolumeManager(root=root, sources=Api())
    memory = (await manager.prepare(pod()))["mem"].host_path
    with (memory / "open").open("w"):
        with pytest.raises(VolumeError) as caught:
            await manager.teardown("u1")
        assert str(memory) in caught.value.message
        assert str(os.getpid()) in caught.value.message
        assert memory.exists()
    await manager.teardown("u1")
    assert HostMounter().table(root) == []


def test_a_racing_link_never_leads_out(root: Path) -> None:
    """The pod swaps a directory with a link to the host a few thousand times while subPaths are bound."""
    volume, outside, target = root / "volume", root / "outside", root / "target/0"
    volume.mkdir()
    outside.mkdir()
    (outside / "secret").touch()
    (volume / "link").symlink_to(outside)
    (volume / "real").mkdir()
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for one, other in (("real", "sub"), ("sub", "real"), ("link", "sub"), ("sub", "link")):
                os.rename(volume / one, volume / other)

    racing = threading.Thread(target=swap)
    racing.start()
    mounter = HostMounter()
    outcomes, end = {"bound": 0, "refused": 0}, time.monotonic() + 60
    try:
        # Both must have been met, however seldom the other thread is let in.
        while sum(outcomes.values()) < 2000 or (not all(outcomes.values()) and time.monotonic() < end):
            try:
                bind_subpath(volume, ("sub",), target, mounter=mounter, create=False)
            except Unready:
                outcomes["refused"] += 1
                continue
            outcomes["bound"] += 1
            assert not (target / "secret").exists()
            mounter.unmount(target)
    finally:
        stop.set()
        racing.join()
    assert outcomes["bound"] and outcomes["refused"]
