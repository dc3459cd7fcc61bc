"""Mounts: host folders, read-only mounts, propagation, image volumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from counterparts import DATA, VOLUME
from criclient import CriClient, refused

from host import syscalls
from proto.cri import runtime_pb2 as pb


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A host folder that is a shared mount, with a tmpfs in it; what is mounted there is gone afterwards."""
    top = tmp_path / "top"
    top.mkdir()
    syscalls.mount("tmpfs", str(top), "tmpfs", 0, "")
    syscalls.mount("", str(top), "", syscalls.MS_SHARED)
    (top / "inner").mkdir()
    (top / "late").mkdir()
    syscalls.mount("tmpfs", str(top / "inner"), "tmpfs", 0, "")
    yield top
    syscalls.umount(str(top), syscalls.MNT_DETACH)


async def test_a_folder_of_the_node_is_seen_and_written_to(node: CriClient, folder: Path):
    (folder / "file").write_text("from the node")
    mount = pb.Mount(container_path="/host", host_path=str(folder))
    _, container, _ = await node.launch("sleep", "1000", mounts=[mount])
    assert await node.inside(container, "cat /host/file; echo back >/host/made") == "from the node"
    assert (folder / "made").read_text() == "back\n"
    assert [item.container_path for item in (await node.status(container)).mounts] == ["/host"]


async def test_a_link_on_the_node_is_followed(node: CriClient, folder: Path, tmp_path: Path):
    (folder / "file").write_text("behind the link")
    (tmp_path / "link").symlink_to(folder)
    mount = pb.Mount(container_path="/host", host_path=str(tmp_path / "link"))
    _, container, _ = await node.launch("sleep", "1000", mounts=[mount])
    assert await node.inside(container, "cat /host/file") == "behind the link"


@pytest.mark.parametrize("recursive", [False, True])
async def test_read_only_may_go_all_the_way_down(node: CriClient, folder: Path, recursive: bool):
    mount = pb.Mount(
        container_path="/host", host_path=str(folder), readonly=True, recursive_read_only=recursive
    )
    _, container, _ = await node.launch("sleep", "1000", mounts=[mount])
    assert "Read-only" in await node.inside(container, "touch /host/x")
    assert ("Read-only" in await node.inside(container, "touch /host/inner/x")) is recursive


@pytest.mark.parametrize(
    "changes",
    [
        {"readonly": False},
        {"propagation": pb.PROPAGATION_HOST_TO_CONTAINER},
        {"propagation": pb.PROPAGATION_BIDIRECTIONAL},
    ],
)
async def test_recursive_read_only_needs_read_only_and_private(
    node: CriClient, folder: Path, changes: dict[str, int]
):
    words = {"readonly": True, **changes}
    mount = pb.Mount(container_path="/host", host_path=str(folder), recursive_read_only=True, **words)
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    await refused(node.create(sandbox, config, "sleep", "1", mounts=[mount]))


@pytest.mark.parametrize(
    ("mode", "inwards", "outwards"),
    [
        (pb.PROPAGATION_PRIVATE, False, False),
        (pb.PROPAGATION_HOST_TO_CONTAINER, True, False),
        (pb.PROPAGATION_BIDIRECTIONAL, True, True),
    ],
)
async def test_later_mounts_go_where_propagation_says(
    node: CriClient, folder: Path, mode: int, inwards: bool, outwards: bool
):
    config = node.sandbox_config()
    config.linux.security_context.privileged = True
    linux = pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(privileged=True))
    mount = pb.Mount(container_path="/host", host_path=str(folder), propagation=mode)
    _, container = await node.launch_with(config, "sleep", "1000", mounts=[mount], linux=linux)
    syscalls.mount("tmpfs", str(folder / "late"), "tmpfs", 0, "")
    (folder / "late/from-node").touch()
    assert (await node.inside(container, "ls /host/late") == "from-node") is inwards
    assert await node.inside(container, "mount -t tmpfs none /host/inner && touch /host/inner/from-pod") == ""
    assert (folder / "inner/from-pod").exists() is outwards


async def test_an_image_volume_is_read_only_and_its_programs_run(node: CriClient):
    image = pb.ImageSpec(image=DATA)
    mounts = [
        pb.Mount(container_path="/whole", image=image, readonly=True),
        pb.Mount(container_path="/part", image=image, image_sub_path="data", readonly=True),
    ]
    if node.name == "containerd":
        mounts.pop()  # 2.4 ignores the sub-path of an image that is mounted whole as well
    _, container, _ = await node.launch("sleep", "1000", mounts=mounts)
    assert await node.inside(container, "cat /whole/data/file") == "from the image"
    assert "Read-only" in await node.inside(container, "touch /whole/new")
    assert await node.inside(container, "/whole/bin/busybox echo it runs") == "it runs"
    if len(mounts) == 2:
        assert await node.inside(container, "cat /part/file") == "from the image"


async def test_an_image_volume_says_which_image_it_is(node: CriClient, beyond_cri: None):
    """KEP-5365: the id in the status of a mount is that of the image, whatever name was asked for."""
    mount = pb.Mount(container_path="/data", image=pb.ImageSpec(image=DATA), readonly=True)
    _, container, _ = await node.launch("sleep", "1000", mounts=[mount])
    asked = pb.ImageStatusRequest(image=pb.ImageSpec(image=DATA))
    [told] = (await node.status(container)).mounts
    assert told.image.image == DATA
    assert told.image.image_ref == (await node.images.ImageStatus(asked)).image.id


@pytest.mark.parametrize("changes", [{"readonly": False}, {"image_sub_path": "none"}, {"host_path": "/tmp"}])
async def test_an_impossible_image_volume_is_refused(node: CriClient, changes: dict[str, object]):
    words = {"readonly": True, "image": pb.ImageSpec(image=DATA), "container_path": "/data", **changes}
    config = node.sandbox_config()
    sandbox = await node.run_pod(config)
    await refused(node.create(sandbox, config, "sleep", "1", mounts=[pb.Mount(**words)]))


async def test_a_volume_of_the_image_is_filled_and_each_containers_own(node: CriClient):
    _, first, _ = await node.launch("sleep", "1000", image=VOLUME)
    _, second, _ = await node.launch("sleep", "1000", image=VOLUME)
    await node.inside(first, "echo changed >/data/file")
    assert await node.inside(second, "cat /data/file") == "from the image"
    assert (await node.inside(first, "ls -l /data/link")).endswith("/data/link -> /etc/passwd")
    assert "/data" in await node.inside(first, "mount | grep ' /data '")
