"""Volume plugins that take nothing from the API: emptyDir, hostPath, downwardAPI; and mountinfo."""

import os
import socket
import stat
from pathlib import Path

import pytest
from volume_kit import Node, fails, pod

from agent.api.structs import (
    Container,
    EmptyDirVolumeSource,
    HostPathVolumeSource,
    ImageVolumeSource,
    Pod,
    ResourceFieldSelector,
    ResourceRequirements,
    Volume,
    VolumeMount,
)
from agent.volumes.base import Unready
from agent.volumes.downward_api import field_text, resource_text
from agent.volumes.empty_dir import memory_size
from agent.volumes.manager import VolumeError
from agent.volumes.mounts import mount_at, mounts_below


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "host").mkdir()
    return Node(tmp_path)


async def test_empty_dir_is_world_writable_and_survives_a_second_prepare(node: Node) -> None:
    made = pod(Volume(name="scratch", empty_dir=EmptyDirVolumeSource()))
    prepared = await node.manager.prepare(made)
    path = prepared["scratch"].host_path
    assert path == node.directory("empty-dir", "scratch")
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    (path / "data").write_text("x")
    os.chmod(path, 0o700)
    assert await node.manager.prepare(made) == prepared
    assert (path / "data").exists()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


async def test_empty_dir_in_memory_is_mounted_once(node: Node) -> None:
    made = pod(Volume(name="mem", empty_dir=EmptyDirVolumeSource(medium="Memory", size_limit="64Mi")))
    await node.manager.prepare(made)
    await node.manager.prepare(made)
    assert node.mounter.mounts == [(node.directory("empty-dir", "mem"), f"tmpfs size={64 << 20}")]


@pytest.mark.parametrize(
    ("limit", "container_limits", "allocatable", "expected"),
    [
        ("64Mi", (), "1Gi", 64 << 20),
        (None, (), "1Gi", 1 << 30),
        ("2Gi", ("256Mi", "256Mi"), "1Gi", 512 << 20),
        ("2Gi", ("256Mi", None), "1Gi", 1 << 30),
        (None, (), None, None),
    ],
)
def test_memory_sizes(
    limit: str | None, container_limits: tuple[str | None, ...], allocatable: str | None, expected: int | None
) -> None:
    containers = tuple(
        Container(resources=ResourceRequirements(limits={"memory": one} if one else {}))
        for one in container_limits
    )
    source = EmptyDirVolumeSource(medium="Memory", size_limit=limit)
    assert memory_size(source, pod(containers=containers), allocatable) == expected


async def test_an_unknown_medium_is_refused_by_name(node: Node) -> None:
    made = pod(Volume(name="x", empty_dir=EmptyDirVolumeSource(medium="Disk")))
    assert "emptyDir medium 'Disk' is not supported" in await fails(node, made)


@pytest.mark.parametrize(
    ("medium", "asked", "answer"),
    [
        ("HugePages", ("2Mi",), "hugetlbfs pagesize=2M"),
        ("HugePages-1Gi", ("2Mi", "1Gi"), "hugetlbfs pagesize=1G"),
        ("HugePages", (), "they request none"),
        ("HugePages", ("2Mi", "1Gi"), "they request 1Gi, 2Mi"),
        ("HugePages-1Gi", ("2Mi",), "no container requests hugepages-1Gi"),
        ("HugePages-", ("2Mi",), "is not supported"),
    ],
)
async def test_huge_pages_are_of_a_size_the_pod_asks_for(
    node: Node, medium: str, asked: tuple[str, ...], answer: str
) -> None:
    limits = ResourceRequirements(limits={f"hugepages-{size}": size for size in asked})
    volume = Volume(name="huge", empty_dir=EmptyDirVolumeSource(medium=medium))
    made = pod(volume, containers=(Container(name="c", resources=limits),))
    if "pagesize" not in answer:
        assert answer in await fails(node, made)
        return
    await node.manager.prepare(made)
    assert node.mounter.mounts == [(node.directory("empty-dir", "huge"), answer)]


async def test_image_volumes_are_pulled_and_left_to_the_runtime(node: Node) -> None:
    node.images["web:1"] = "sha256:1"
    source = ImageVolumeSource(reference="web:1", pull_policy="Never")
    made = pod(Volume(name="i", image=source))
    prepared = await node.manager.prepare(made)
    mount = VolumeMount(name="i", mount_path="/i", sub_path="a/b")
    wants = Container(name="c", volume_mounts=(mount,))
    (found,) = await node.manager.container_mounts(made, wants, prepared)
    assert (found.image, found.image_sub_path, found.host_path) == ("sha256:1", "a/b", "")
    assert found.read_only
    assert node.pulls == [("web:1", "Never")]
    with pytest.raises(VolumeError, match="no such image") as caught:
        await node.manager.prepare(pod(Volume(name="i", image=ImageVolumeSource(reference="gone"))))
    assert caught.value.slow


@pytest.mark.parametrize("kind", ["git_repo", "iscsi", "fc", "flex_volume"])
async def test_kinds_that_are_not_ours_are_refused_by_name(node: Node, kind: str) -> None:
    """gitRepo ran a repository's hooks as the node's root: CVE-2024-10220, CVE-2025-1767."""
    message = await fails(node, pod(Volume(name="v", **{kind: {"repository": "https://x/y"}})))
    assert kind.partition("_")[0] in message


def host_path(path: str, kind: str) -> Pod:
    return pod(Volume(name="h", host_path=HostPathVolumeSource(path=path, type=kind)))


async def test_host_path_makes_what_its_type_allows(node: Node) -> None:
    await node.manager.prepare(host_path("/a/b", "DirectoryOrCreate"))
    assert stat.S_IMODE((node.root / "host/a/b").stat().st_mode) == 0o755
    await node.manager.prepare(host_path("/a/f", "FileOrCreate"))
    assert stat.S_IMODE((node.root / "host/a/f").stat().st_mode) == 0o644
    await node.manager.prepare(host_path("/a/x", ""))
    assert (node.root / "host/a/x").is_dir()
    prepared = await node.manager.prepare(host_path("/a/f", "File"))
    assert prepared["h"].host_path == node.root / "host/a/f"


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/file", "Directory", "/file is not a directory"),
        ("/file", "DirectoryOrCreate", "/file is not a directory"),
        ("/dir", "File", "/dir is not a file"),
        ("/dir", "FileOrCreate", "/dir is not a file"),
        ("/file", "Socket", "/file is not a socket file"),
        ("/file", "CharDevice", "/file is not a character device"),
        ("/null", "BlockDevice", "/null is not a block device"),
        ("/missing", "Directory", "/missing is not a directory: no such file or directory"),
        ("/missing/f", "FileOrCreate", "/missing/f: no such file or directory"),
        ("/file", "Folder", "hostPath type 'Folder' is unknown"),
        ("/../etc", "", "must be absolute and must not contain '..'"),
        ("etc", "", "must be absolute"),
    ],
)
async def test_host_path_of_the_wrong_type_is_named(node: Node, path: str, kind: str, words: str) -> None:
    host = node.root / "host"
    (host / "file").touch()
    (host / "dir").mkdir()
    (host / "null").symlink_to("/dev/null")
    message = await fails(node, host_path(path, kind))
    assert message.startswith('MountVolume.SetUp failed for volume "h" : ')
    assert words in message


async def test_host_path_sockets_and_devices(node: Node) -> None:
    host = node.root / "host"
    (host / "null").symlink_to("/dev/null")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(host / "sock"))
    listening.close()
    for path, kind in (("/sock", "Socket"), ("/null", "CharDevice")):
        (mount,) = (await node.manager.prepare(host_path(path, kind))).values()
        assert mount.host_path == host / path[1:]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("metadata.name", "p"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['none']", ""),
        ("metadata.labels", 'app="web"\ntier="a\\"b\\n\\x01ü"'),
    ],
)
def test_downward_fields(path: str, text: str) -> None:
    made = pod(labels={"tier": 'a"b\n\x01ü', "app": "web"})
    assert field_text(made, path) == text


@pytest.mark.parametrize(
    ("resource", "divisor", "text"),
    [
        ("limits.cpu", "", "1"),
        ("limits.cpu", "1m", "500"),
        ("limits.memory", "1Mi", "1024"),
        ("requests.memory", "", "1000"),
        ("requests.cpu", "1m", "500"),
    ],
)
def test_downward_resources(resource: str, divisor: str, text: str) -> None:
    resources = ResourceRequirements(limits={"cpu": "500m"}, requests={"memory": "1k"})
    made = pod(containers=(Container(name="c", resources=resources),))
    selector = ResourceFieldSelector(container_name="c", resource=resource, divisor=divisor)
    assert resource_text(made, selector, {"memory": "1Gi"}) == text


@pytest.mark.parametrize(
    "selector",
    [
        ResourceFieldSelector(container_name="x", resource="limits.cpu"),
        ResourceFieldSelector(container_name="c", resource="limits.magic"),
        ResourceFieldSelector(container_name="c", resource="limits.cpu", divisor="z"),
    ],
)
def test_downward_resources_that_are_refused(selector: ResourceFieldSelector) -> None:
    with pytest.raises(Unready):
        resource_text(pod(containers=(Container(name="c"),)), selector, {})


def test_which_mount_a_path_is_on() -> None:
    text = (
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:40 / /mnt/nfs rw - nfs4 nas:/e rw\n"
        "3 2 0:41 / /mnt/nfs/in rw - tmpfs tmpfs rw\n"
        "4 1 0:42 / /mnt/n rw - fuse.sshfs host: rw\n"
    )
    found = {
        path: mount_at(text, Path(path)) for path in ("/mnt/nfs/a", "/mnt/nfs/in/b", "/mnt/n/c", "/mnt/nf")
    }
    assert [(one.kind, one.remote) for one in found.values() if one] == [
        ("nfs4", True),
        ("tmpfs", False),
        ("fuse.sshfs", True),
        ("ext4", False),
    ]
    assert mount_at("", Path("/x")) is None


def test_mount_points_from_mountinfo() -> None:
    text = (
        "36 35 98:0 / /p rw,noatime - ext3 /dev/root rw\n"
        "37 36 0:5 / /p/a\\040b rw - tmpfs tmpfs rw\n"
        "38 36 0:6 / /pq rw - tmpfs tmpfs rw\n"
        "garbage\n"
    )
    assert [mounted.point for mounted in mounts_below(text, Path("/p"))] == [Path("/p/a b"), Path("/p")]
