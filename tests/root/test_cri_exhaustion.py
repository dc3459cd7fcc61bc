"""Disk, inodes, descriptors, processes or memory run out: one clear error, and all works again afterwards."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import crileaks
import pytest
from criclient import refused
from crinode import BUSYBOX, VOLUMES, CriNode, build_images, running, serving
from grpc import StatusCode
from grpc.aio import AioRpcError

from host import syscalls
from host.cgroups import Cgroups, Resources
from proto.cri import runtime_pb2 as pb

STATE_OPTIONS, ROOT_OPTIONS = "size=4m,nr_inodes=2000", "size=64m,nr_inodes=2000"


@pytest.fixture(scope="module")
def small_daemon(tmp_path_factory: pytest.TempPathFactory, throw_away_namespaces: None) -> Iterator[CriNode]:
    """A daemon whose state and whose images are on small file systems of their own."""
    base = tmp_path_factory.mktemp("small")
    folder = base / "cri"
    mounts = {folder / "state": STATE_OPTIONS, folder / "root": ROOT_OPTIONS}
    for path, options in mounts.items():
        path.mkdir(parents=True)
        syscalls.mount("tmpfs", str(path), "tmpfs", 0, options)
    build_images(base / "registry")
    try:
        with serving(base / "registry") as registry, running(folder, registry=registry) as node:
            yield node
    finally:
        for path in mounts:
            syscalls.umount(str(path), syscalls.MNT_DETACH)


@pytest.fixture
async def small(small_daemon: CriNode) -> AsyncIterator[CriNode]:
    """Connected, with one image; afterwards the daemon is the same one and nothing is left of any pod."""
    await small_daemon.connect()
    await small_daemon.pull(BUSYBOX)
    before, pid = small_daemon.picture().without_descriptors(), small_daemon.pid
    yield small_daemon
    await small_daemon.clean()
    left = crileaks.difference(before, small_daemon.picture().without_descriptors())
    same = (small_daemon.pid, small_daemon.has_ended()) == (pid, False)
    await small_daemon.disconnect()
    assert (left, same) == ([], True)


def write_blocks(folder: Path) -> None:
    """Until no block is left."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def make_files(folder: Path) -> None:
    """Until no inode is left."""
    (folder / "ballast").mkdir()
    for number in range(10_000):
        (folder / "ballast" / str(number)).touch()


@contextmanager
def full(folder: Path, fill: Callable[[Path], None]) -> Iterator[None]:
    """A file system with nothing free."""
    try:
        fill(folder)
    except OSError as exc:
        assert exc.errno == errno.ENOSPC
    try:
        yield
    finally:
        ballast = folder / "ballast"
        for path in ballast.iterdir() if ballast.is_dir() else []:
            path.unlink()
        ballast.rmdir() if ballast.is_dir() else ballast.unlink()


FILLS = pytest.mark.parametrize("fill", [write_blocks, make_files], ids=["blocks", "inodes"])


@FILLS
async def test_the_state_folder_is_full(small: CriNode, fill: Callable[[Path], None]):
    """Nothing new begins; what is there can end, and be removed, which makes room."""
    sandbox, container, config = await small.launch("sleep", "1000")
    other, _, _ = await small.launch("sleep", "1000")
    with full(small.folder / "state", fill):
        for call in (
            small.run_pod(small.sandbox_config()),
            small.create(sandbox, config, "true", name="more"),
        ):
            code, words = await refused(call)
            assert (code, "no space left" in words) == (StatusCode.RESOURCE_EXHAUSTED, True), (code, words)
        await small.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
        assert (await small.status(container)).exit_code == 137
        await small.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=other))
    assert (await small.status(container)).exit_code == 137
    await small.launch("sleep", "1000")


@FILLS
async def test_the_images_folder_is_full(small: CriNode, fill: Callable[[Path], None]):
    """The pull says so and leaves nothing; images that are there can be used."""
    before = small.picture().store
    with full(small.folder / "root", fill):
        code, words = await refused(small.pull(VOLUMES))
        assert (code, "no space left" in words) == (StatusCode.RESOURCE_EXHAUSTED, True), (code, words)
        assert small.picture().store == before
    await small.pull(VOLUMES)
    _, container, _ = await small.launch("sleep", "1000", image=VOLUMES)
    assert (await small.exec(container, "cat", "/data/file")).stdout == b"from the image"
    await small.clean()
    await small.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=VOLUMES)))


async def test_descriptors_run_out(small: CriNode):
    """EMFILE at whatever place it comes; what is half made then is undone."""
    await small.launch("sleep", "1000")
    limits = resource.prlimit(small.pid, resource.RLIMIT_NOFILE)
    refusals = []
    try:
        for spare in range(12):
            used = max(int(name) for name in os.listdir(f"/proc/{small.pid}/fd"))
            resource.prlimit(small.pid, resource.RLIMIT_NOFILE, (used + 1 + spare, limits[1]))
            try:
                await small.launch("sleep", "1000")
            except AioRpcError as exc:
                refusals.append((exc.code(), exc.details() or ""))
    finally:
        resource.prlimit(small.pid, resource.RLIMIT_NOFILE, limits)
    assert refusals
    for code, words in refusals:
        assert "too many open files" in words, (code, words)
        assert "internal error" not in words
    await small.launch("sleep", "1000")


@pytest.fixture
async def confined(node: CriNode) -> AsyncIterator[Callable[[Resources], str]]:
    """Puts the daemon and its spawner into a cgroup of their own; they are others afterwards."""
    cgroups, path = Cgroups(), f"{node.cgroup_parent}-daemon"

    def confine(resources: Resources) -> str:
        cgroups.create(path)
        children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        for pid in (node.pid, *map(int, children)):
            cgroups.attach(path, pid)
        cgroups.update(path, resources)
        return path

    yield confine
    if not node.has_ended():
        cgroups.update(path, Resources(pids_limit=-1))
        await node.clean()
        node.kill(signal.SIGKILL)
    await node.revive()
    await node.clean()
    cgroups.remove(path)


async def test_processes_run_out(node: CriNode, confined: Callable[[Resources], str]):
    """Neither a thread nor a supervisor can be made."""
    _, container, _ = await node.launch("sleep", "1000")
    path = confined(Resources())
    cgroups = Cgroups()
    cgroups.update(path, Resources(pids_limit=cgroups.stats(path).pids))
    refusals = []
    for _ in range(4):
        try:
            await node.run_pod(node.sandbox_config())
        except AioRpcError as exc:
            refusals.append((exc.code(), exc.details()))
    assert refusals
    assert {code for code, _ in refusals} <= {StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE}, refusals
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING
    cgroups.update(path, Resources(pids_limit=-1))
    await node.run_pod(node.sandbox_config())


async def test_memory_runs_out(node: CriNode, confined: Callable[[Resources], str]):
    """The kernel kills the daemon: pods run on, and the next one knows them all."""
    before = node.picture().without_descriptors()
    _, container, _ = await node.launch("sleep", "1000")
    confined(Resources(memory_limit=4 << 20))
    async with asyncio.timeout(60):
        while not node.has_ended():
            config = node.sandbox_config(annotations={"large": "x" * (1 << 20)})
            with suppress(AioRpcError):
                await node.run_pod(config)
    assert node.exit_status == -signal.SIGKILL
    await node.revive()
    assert (await node.status(container)).state == pb.CONTAINER_RUNNING
    assert (await node.exec(container, "echo", "alive")).stdout == b"alive\n"
    await node.clean()
    assert crileaks.difference(before, node.picture().without_descriptors()) == []
