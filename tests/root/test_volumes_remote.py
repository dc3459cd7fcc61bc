"""Volumes of other machines: what mount.nfs is asked to do, and a server that is dead hurts one pod alone."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuse_kit import Server

from agent.api.structs import (
    Container,
    EmptyDirVolumeSource,
    HostPathVolumeSource,
    NFSVolumeSource,
    ObjectMeta,
    Pod,
    PodSpec,
    Volume,
    VolumeMount,
)
from agent.volumes.children import Children
from agent.volumes.manager import VolumeError, VolumeManager
from agent.volumes.mounts import HostMounter
from agent.volumes.unmounting import PATIENCE
from host import helpers, processes
from host.clocks import FakeClock

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SYS_ADMIN for mount(2)")
needs_fuse = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="needs CONFIG_FUSE_FS: /dev/fuse")
PATH = processes.SAFE_PATH


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "bin").mkdir()
    yield tmp_path
    mounter = HostMounter()
    for mounted in mounter.table(tmp_path):
        mounter.unmount(mounted.point, lazy=True)


def pod(uid: str = "u1", volume: Volume | None = None) -> Pod:
    nfs = Volume(name="v", nfs=NFSVolumeSource(server="nas", path="/export"))
    return Pod(metadata=ObjectMeta(name="p", namespace="ns", uid=uid), spec=PodSpec(volumes=(volume or nfs,)))


class Nothing:
    """No API objects."""

    async def get_config_map(self, namespace: str, name: str) -> None:
        return None

    get_secret = get_config_map

    async def create_token(self, namespace: str, service_account: str, request: object) -> None:
        raise NotImplementedError


def children_of(root: Path, *, limit: float = 30.0) -> Children:
    return Children(limit=limit, env={"PATH": f"{root}/bin:{PATH}"})


def manager_in(root: Path, *, limit: float = 30.0) -> VolumeManager:
    return VolumeManager(root=root, sources=Nothing(), children=children_of(root, limit=limit))


def helper(root: Path, name: str, script: str) -> None:
    """A program of that name, found before the machine's own."""
    program = root / "bin" / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def place(root: Path) -> Path:
    return root / "pods/u1/volumes/kubernetes.io~nfs/v"


async def test_an_export_is_mounted_once_and_taken_away(root: Path) -> None:
    helper(root, "mount.nfs", f'echo "$@" >> {root}/told; exec mount -t tmpfs -o size=64k none "$2"')
    manager = manager_in(root)
    for _ in range(2):
        prepared = await manager.prepare(pod())
        assert (prepared["v"].host_path, prepared["v"].remote) == (place(root), True)
    assert (root / "told").read_text() == f"nas:/export {place(root)}\n"
    mount = VolumeMount(name="v", mount_path="/v", sub_path="a/b")
    (bound,) = await manager.container_mounts(pod(), Container(name="c", volume_mounts=(mount,)), prepared)
    assert os.path.samefile(bound.host_path, place(root) / "a/b")
    (place(root) / "link").symlink_to("/etc")
    out = VolumeMount(name="v", mount_path="/v", sub_path="link")
    with pytest.raises(VolumeError, match="it leads out of the volume"):
        await manager.container_mounts(pod(), Container(name="c", volume_mounts=(out,)), prepared)
    await manager_in(root).teardown("u1")
    assert HostMounter().table(root) == []
    assert not (root / "pods/u1").exists()


async def test_what_the_server_says_is_told(root: Path) -> None:
    helper(root, "mount.nfs", 'echo "mount.nfs: access denied by server while mounting $1" >&2; exit 32')
    with pytest.raises(VolumeError, match=r"mounting nas:/export failed: .* access denied by server"):
        await manager_in(root).prepare(pod())
    (root / "bin/mount.nfs").unlink()
    if processes.which("mount.nfs") is None:
        with pytest.raises(VolumeError, match="install nfs-common"):
            await manager_in(root).prepare(pod())
    await manager_in(root).teardown("u1")


async def test_a_mount_that_gets_no_answer_is_ended(root: Path) -> None:
    helper(root, "mount.nfs", f"echo $$ > {root}/pid; exec sleep 1000")
    with pytest.raises(VolumeError, match="NFS server nas does not answer: mount of nas:/export"):
        await manager_in(root, limit=1.0).prepare(pod())
    with pytest.raises(ProcessLookupError):
        os.kill(int((root / "pid").read_text()), 0)
    await manager_in(root).teardown("u1")


@needs_fuse
async def test_a_dead_server_hurts_one_pod_only(root: Path) -> None:
    clock, children = FakeClock(), children_of(root, limit=1.0)
    place(root).mkdir(parents=True)
    server = Server(place(root))
    try:
        server.die()
        manager = VolumeManager(root=root, sources=Nothing(), children=children, clock=clock)
        prepared = await manager.prepare(pod())  # it is mounted, which the mount table says
        mount = VolumeMount(name="v", mount_path="/v", sub_path="a")
        wants = Container(name="c", volume_mounts=(mount,))
        with pytest.raises(VolumeError, match=r"server does not answer.*hangs in the kernel") as caught:
            await manager.container_mounts(pod(), wants, prepared)
        hung = caught.value.message.split("process ")[1].split()[0]
        with pytest.raises(VolumeError, match=rf"process {hung} hangs .*, and hangs still"):
            await manager.container_mounts(pod(), wants, prepared)

        other = pod("u2", Volume(name="v", empty_dir=EmptyDirVolumeSource()))
        await manager.prepare(other)
        await manager.teardown("u2")

        with pytest.raises(VolumeError, match=rf"{place(root)}.*in use by: {hung} \(python") as caught:
            await manager.teardown("u1")
        assert caught.value.reason == "FailedUnMount"
        await clock.advance(PATIENCE)
        await manager.teardown("u1")
        assert HostMounter().table(root) == []
        assert not (root / "pods/u1").exists()
    finally:
        server.stop()
    await asyncio.wait_for(asyncio.gather(*(hung.ended for hung in children.hanging.values())), 30)


@needs_fuse
async def test_a_host_path_on_a_dead_server_is_looked_at_by_a_child(root: Path) -> None:
    point, children = root / "nas", children_of(root, limit=2.0)
    point.mkdir()
    server = Server(point)
    manager = VolumeManager(root=root, sources=Nothing(), children=children)

    def path(name: str, kind: str) -> Pod:
        source = HostPathVolumeSource(path=f"{point}/{name}", type=kind)
        return pod("u3", Volume(name="v", host_path=source))

    try:
        with pytest.raises(VolumeError, match=r"hostPath type check failed: .*/x is not a directory"):
            await manager.prepare(path("x", "Directory"))
        server.die()
        with pytest.raises(VolumeError, match=r"nas/y: fuse server does not answer.*hangs in the kernel"):
            await manager.prepare(path("y", "Directory"))
        await manager.teardown("u3")
    finally:
        server.stop()
    await asyncio.wait_for(asyncio.gather(*(hung.ended for hung in children.hanging.values())), 30)


@needs_fuse
async def test_an_unmount_that_gets_no_answer_is_made_lazily(root: Path) -> None:
    hangs = 'case "$*" in *-l*) ;; *) exec sleep 1000 ;; esac'
    helper(root, "umount", f'{hangs}\nPATH={PATH}; exec umount "$@"')
    place(root).mkdir(parents=True)
    server = Server(place(root))
    try:
        server.die()
        await manager_in(root, limit=1.0).teardown("u1")
        assert HostMounter().table(root) == []
        assert not (root / "pods/u1").exists()
    finally:
        server.stop()


@needs_fuse
async def test_a_helper_that_cannot_be_killed_is_left_behind_and_reaped(root: Path) -> None:
    point = root / "point"
    point.mkdir()
    server = Server(point)
    try:
        server.die()
        with pytest.raises(helpers.Unkillable) as caught:
            await helpers.run_async(["stat", str(point / "x")], timeout=0.5)
        assert not caught.value.ended.done()
    finally:
        server.stop()
    await asyncio.wait_for(caught.value.ended, 30)
