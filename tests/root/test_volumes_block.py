"""volumeMode Block on loop devices, huge pages on hugetlbfs, fsGroup against a pod that swaps links."""

import fcntl
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.api.structs import (
    Container,
    EmptyDirVolumeSource,
    LocalVolumeSource,
    ObjectMeta,
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeClaimSpec,
    PersistentVolumeClaimStatus,
    PersistentVolumeClaimVolumeSource,
    PersistentVolumeSpec,
    Pod,
    PodSpec,
    ResourceRequirements,
    Volume,
    VolumeDevice,
)
from agent.volumes.manager import VolumeManager
from agent.volumes.mounts import HostMounter
from agent.volumes.ownership import give_to_group
from host import loop

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: CAP_SYS_ADMIN, CAP_CHOWN")
needs_loop = pytest.mark.skipif(
    not Path("/dev/loop-control").exists(), reason="needs CONFIG_BLK_DEV_LOOP: /dev/loop-control"
)
needs_huge = pytest.mark.skipif(
    "hugetlbfs" not in Path("/proc/filesystems").read_text(), reason="needs CONFIG_HUGETLBFS"
)
_SIZE = 8 << 20
_BLKGETSIZE64 = 0x80081272


class Api:
    """One claim on one local PersistentVolume of mode Block."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def get_claim(self, namespace: str, name: str) -> PersistentVolumeClaim:
        return PersistentVolumeClaim(
            metadata=ObjectMeta(name=name),
            spec=PersistentVolumeClaimSpec(volume_name="pv1"),
            status=PersistentVolumeClaimStatus(phase="Bound"),
        )

    async def get_persistent_volume(self, name: str) -> PersistentVolume:
        spec = PersistentVolumeSpec(volume_mode="Block", local=LocalVolumeSource(path=str(self.path)))
        return PersistentVolume(metadata=ObjectMeta(name=name), spec=spec)

    async def get_config_map(self, namespace: str, name: str) -> None:
        return None

    get_secret = get_config_map

    async def create_token(self, namespace: str, service_account: str, request: object) -> None:
        raise NotImplementedError


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    mounter = HostMounter()
    for mounted in mounter.table(tmp_path):
        mounter.unmount(mounted.point, lazy=True)


def pod(uid: str) -> Pod:
    claim = Volume(name="v", persistent_volume_claim=PersistentVolumeClaimVolumeSource(claim_name="c"))
    return Pod(metadata=ObjectMeta(name=uid, namespace="ns", uid=uid), spec=PodSpec(volumes=(claim,)))


def disk(root: Path) -> Path:
    """A sparse file of `_SIZE` bytes."""
    file = root / "disk"
    with file.open("wb") as opened:
        opened.truncate(_SIZE)
    return file


def size_of(node: str) -> int:
    fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0])
    finally:
        os.close(fd)


@needs_loop
async def test_a_file_is_one_loop_device_until_its_last_pod_goes(root: Path) -> None:
    file = disk(root)
    foreign = loop.attach(file, tag=b"somebody else's")
    try:
        api = Api(file)
        manager = VolumeManager(root=root, sources=api, claims=api)
        wants = Container(name="c", volume_devices=(VolumeDevice(name="v", device_path="/dev/xvda"),))
        nodes = set()
        for uid in ("u1", "u2", "u1"):
            prepared = await manager.prepare(pod(uid))
            (device,) = manager.container_devices(wants, prepared)
            nodes.add(device.host_path)
        (node,) = nodes
        assert node != str(foreign)
        assert size_of(node) == _SIZE
        restarted = VolumeManager(root=root, sources=api, claims=api)
        await restarted.teardown("u1")
        assert size_of(node) == _SIZE
        await restarted.teardown("u2")
        assert loop.backing(Path(node)) is None
        assert loop.backing(foreign) is not None
        assert file.stat().st_size == _SIZE
        assert not list((root / "pods").iterdir())
    finally:
        loop.detach(foreign)


@needs_loop
async def test_a_block_device_is_used_by_its_own_node_and_never_freed(root: Path) -> None:
    file = disk(root)
    node = loop.attach(file, tag=b"the admin's")
    try:
        path = root / "by-name"
        os.mknod(path, 0o60600, os.stat(node).st_rdev)
        api = Api(path)
        manager = VolumeManager(root=root, sources=api, claims=api)
        assert (await manager.prepare(pod("u1")))["v"].device == node
        await manager.teardown("u1")
        assert loop.backing(node) is not None
    finally:
        loop.detach(node)


@needs_huge
async def test_huge_pages_are_mounted(root: Path) -> None:
    api = Api(root)
    limits = ResourceRequirements(limits={"hugepages-2Mi": "2Mi"})
    volume = Volume(name="h", empty_dir=EmptyDirVolumeSource(medium="HugePages-2Mi"))
    made = Pod(
        metadata=ObjectMeta(name="p", namespace="ns", uid="u1"),
        spec=PodSpec(volumes=(volume,), containers=(Container(name="c", resources=limits),)),
    )
    manager = VolumeManager(root=root, sources=api)
    place = (await manager.prepare(made))["h"].host_path
    assert [mounted.kind for mounted in HostMounter().table(root)] == ["hugetlbfs"]
    assert os.statvfs(place).f_bsize == 2 << 20
    await manager.teardown("u1")
    assert HostMounter().table(root) == []


def test_fs_group_never_follows_a_link_that_takes_a_files_place(root: Path) -> None:
    """The pod swaps a file and a directory with links to the host while its group is given them."""
    volume, outside = root / "volume", root / "outside"
    volume.mkdir()
    (outside / "sub").mkdir(parents=True)
    (outside / "sub/file").touch()
    (outside / "sub/file").chmod(0o600)
    own = os.open(volume / "file", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    (volume / "to-file").symlink_to(outside / "sub/file")
    (volume / "dir").mkdir()
    (volume / "to-dir").symlink_to(outside / "sub")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            for one, other in (("file", "to-file"), ("dir", "to-dir")):
                os.rename(volume / one, volume / "aside")
                os.rename(volume / other, volume / one)
                os.rename(volume / "aside", volume / other)
            os.fchmod(own, 0o600)  # so that it is widened again

    racing = threading.Thread(target=swap)
    racing.start()
    try:
        for number in range(20_000):
            give_to_group(volume, 2000 + number % 2, only_on_mismatch=False)
    finally:
        stop.set()
        racing.join()
        os.close(own)
    for path in (outside, outside / "sub", outside / "sub/file"):
        assert path.stat().st_gid == 0
    assert (outside / "sub/file").stat().st_mode & 0o7777 == 0o600
