"""NFS volumes on a real server: what is written arrives, and a server that stops hurts its pods alone.

The server is this machine's own, at 127.0.0.1; the second kernel's tests start one. It is in the network of
process 1, so that is where these tests, which have a network of their own, mount from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from volume_kit import FakeApi, FakeClaims

from agent.api.structs import (
    Container,
    EmptyDirVolumeSource,
    NFSVolumeSource,
    ObjectMeta,
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeClaimSpec,
    PersistentVolumeClaimStatus,
    PersistentVolumeClaimVolumeSource,
    PersistentVolumeSpec,
    Pod,
    PodSpec,
    Volume,
    VolumeMount,
)
from agent.volumes.children import Children
from agent.volumes.manager import VolumeError, VolumeManager
from agent.volumes.mounts import HostMounter
from host import processes
from host.clocks import FakeClock

EXPORT = os.environ.get("NODELET_TEST_NFS_EXPORT", "")
pytestmark = pytest.mark.skipif(
    not EXPORT,
    reason="needs a kernel with NFS server and client, and NODELET_TEST_NFS_EXPORT=DIR exported by it",
)
THREADS = "4"
OUTSIDE = ("nsenter", "--net=/proc/1/ns/net")


def nfsd(threads: str) -> None:
    processes.run([*OUTSIDE, "rpc.nfsd", threads], timeout=60)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    program = tmp_path / "bin/mount.nfs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPATH={processes.SAFE_PATH}\nexec {" ".join(OUTSIDE)} mount.nfs "$@"\n')
    program.chmod(0o755)
    yield tmp_path
    nfsd(THREADS)
    mounter = HostMounter()
    for mounted in mounter.table(tmp_path):
        mounter.unmount(mounted.point, lazy=True)
    for path in Path(EXPORT).iterdir():
        path.unlink()


def children_of(root: Path, *, limit: float = 60.0) -> Children:
    return Children(limit=limit, env={"PATH": f"{root}/bin:{processes.SAFE_PATH}"})


def manager_in(root: Path, *, children: Children | None = None) -> VolumeManager:
    clock, children = FakeClock(), children or children_of(root)
    return VolumeManager(root=root, sources=FakeApi(clock), clock=clock, claims=claims(), children=children)


def claims() -> FakeClaims:
    """A bound claim of a PersistentVolume with mount options."""
    found = FakeClaims()
    meta = ObjectMeta(name="data", namespace="ns", uid="c1")
    found.claims["ns/data"] = PersistentVolumeClaim(
        metadata=meta,
        spec=PersistentVolumeClaimSpec(volume_name="pv"),
        status=PersistentVolumeClaimStatus(phase="Bound"),
    )
    found.volumes["pv"] = PersistentVolume(
        metadata=ObjectMeta(name="pv"),
        spec=PersistentVolumeSpec(
            nfs=NFSVolumeSource(server="127.0.0.1", path=EXPORT),
            mount_options=("vers=4.2", "timeo=77"),
        ),
    )
    return found


def pod(volume: Volume, uid: str = "u1") -> Pod:
    meta = ObjectMeta(name="p", namespace="ns", uid=uid)
    return Pod(metadata=meta, spec=PodSpec(volumes=(volume,)))


def export(path: str = "", *, read_only: bool = False) -> Volume:
    return Volume(name="v", nfs=NFSVolumeSource(server="127.0.0.1", path=path or EXPORT, read_only=read_only))


def options_at(point: Path) -> set[str]:
    """Mount options of both kinds, as the kernel tells them."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(point):
            return {*fields[5].split(","), *fields[-1].split(",")}
    raise AssertionError(f"nothing is mounted at {point}")


async def test_what_is_written_arrives_and_a_new_agent_takes_it_away(root: Path) -> None:
    prepared = (await manager_in(root).prepare(pod(export())))["v"]
    (prepared.host_path / "file").write_text("over the wire")
    assert (Path(EXPORT) / "file").read_text() == "over the wire"
    (mounted,) = HostMounter().table(root)
    assert (mounted.kind, mounted.source) == ("nfs4", f"127.0.0.1:{EXPORT}")
    again = (await manager_in(root).prepare(pod(export())))["v"]
    assert again.host_path == prepared.host_path and len(HostMounter().table(root)) == 1
    await manager_in(root).teardown("u1")
    assert HostMounter().table(root) == [] and not (root / "pods/u1").exists()
    assert (Path(EXPORT) / "file").exists()


async def test_options_of_the_volume_and_read_only_reach_the_kernel(root: Path) -> None:
    claim = Volume(
        name="v",
        persistent_volume_claim=PersistentVolumeClaimVolumeSource(claim_name="data", read_only=True),
    )
    manager = manager_in(root)
    prepared = (await manager.prepare(pod(claim)))["v"]
    assert {"vers=4.2", "timeo=77"} <= options_at(prepared.host_path)
    assert prepared.read_only
    plain = (await manager.prepare(pod(export(read_only=True), "u2")))["v"]
    assert "ro" in options_at(plain.host_path)
    with pytest.raises(OSError, match="Read-only"):
        (plain.host_path / "file").write_text("no")
    for uid in ("u1", "u2"):
        await manager.teardown(uid)


async def test_what_the_server_refuses_is_told(root: Path) -> None:
    with pytest.raises(VolumeError, match=r"mounting 127\.0\.0\.1:/nowhere failed: mount.nfs: .*"):
        await manager_in(root).prepare(pod(export("/nowhere")))
    await manager_in(root).teardown("u1")


async def test_a_server_that_stops_hurts_its_pods_alone(root: Path) -> None:
    manager = manager_in(root, children=children_of(root, limit=5.0))
    prepared = await manager.prepare(pod(export()))
    (prepared["v"].host_path / "before").write_text("x")
    nfsd("0")
    mount = VolumeMount(name="v", mount_path="/v", sub_path="later")
    wants = Container(name="c", volume_mounts=(mount,))
    with pytest.raises(VolumeError, match=r"subPath 'later': the volume's server does not answer"):
        await manager.container_mounts(pod(export()), wants, prepared)
    other = pod(Volume(name="v", empty_dir=EmptyDirVolumeSource()), "u2")
    await manager.prepare(other)
    await manager.teardown("u2")
    await manager.teardown("u1")  # nobody uses it any more: it is taken away without asking the server
    assert HostMounter().table(root) == []
    assert not (root / "pods/u1").exists()
