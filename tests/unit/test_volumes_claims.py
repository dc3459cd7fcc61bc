"""Claims: which PersistentVolume stands behind a volume, who may have it, and fsGroup on what is in it."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from volume_kit import Node, fails, pod

from agent.api.structs import (
    Container,
    EphemeralVolumeSource,
    HostPathVolumeSource,
    LocalVolumeSource,
    NFSVolumeSource,
    ObjectMeta,
    ObjectReference,
    OwnerReference,
    PersistentVolume,
    PersistentVolumeClaim,
    PersistentVolumeClaimSpec,
    PersistentVolumeClaimStatus,
    PersistentVolumeClaimVolumeSource,
    PersistentVolumeSpec,
    Pod,
    Volume,
    VolumeDevice,
    VolumeMount,
)
from agent.volumes import block
from agent.volumes.base import Unready
from agent.volumes.manager import VolumeError
from agent.volumes.nfs import mount_arguments
from agent.volumes.ownership import give_to_group


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "host").mkdir()
    return Node(tmp_path)


def claim_of(phase: str = "Bound", **facts: Any) -> PersistentVolumeClaim:
    return PersistentVolumeClaim(
        metadata=ObjectMeta(name="data", namespace="ns", **facts),
        spec=PersistentVolumeClaimSpec(volume_name="pv1"),
        status=PersistentVolumeClaimStatus(phase=phase),
    )


def volume_of(**spec: Any) -> PersistentVolume:
    return PersistentVolume(metadata=ObjectMeta(name="pv1"), spec=PersistentVolumeSpec(**spec))


LOCAL = LocalVolumeSource(path="/disk")
DATA = Volume(name="v", persistent_volume_claim=PersistentVolumeClaimVolumeSource(claim_name="data"))


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ({"host_path": HostPathVolumeSource(path="/disk")}, "host-path"),
        ({"local": LOCAL}, "local-volume"),
    ],
)
async def test_claims_on_paths_of_this_node(node: Node, spec: dict[str, Any], kind: str) -> None:
    node.claims.claims["ns/data"] = claim_of()
    (node.root / "host/disk").mkdir()
    (node.root / "host/disk/file").touch(mode=0o600)
    node.claims.volumes["pv1"] = volume_of(**spec)
    prepared = await node.manager.prepare(pod(DATA))
    assert prepared["v"].host_path == node.root / "host/disk"
    assert not prepared["v"].read_only
    assert node.directory(kind, "pv1").is_dir()
    await node.manager.teardown("u1")
    assert (node.root / "host/disk/file").exists()
    assert not (node.root / "kubelet/pods/u1").exists()


async def test_claims_that_cannot_be_used(node: Node) -> None:
    assert 'persistentvolumeclaim "data" not found' in await fails(node, pod(DATA))
    node.claims.claims["ns/data"] = claim_of("Pending")
    assert 'PVC "ns/data" is not bound' in await fails(node, pod(DATA))
    node.claims.claims["ns/data"] = claim_of(uid="mine")
    assert 'persistentvolume "pv1" not found' in await fails(node, pod(DATA))
    node.claims.volumes["pv1"] = volume_of(local=LOCAL, claim_ref=ObjectReference(uid="other"))
    assert 'PersistentVolume "pv1" is bound to another claim' in await fails(node, pod(DATA))
    node.claims.volumes["pv1"] = volume_of()
    assert "the kind of persistentvolume 'pv1' is not supported" in await fails(node, pod(DATA))
    node.claims.volumes["pv1"] = volume_of(iscsi={"targetPortal": "x"})
    assert "iscsi volumes are not supported by this node: use a CSI driver" in await fails(node, pod(DATA))
    node.claims.volumes["pv1"] = volume_of(local=LocalVolumeSource(path="/none"))
    assert "/none is not a directory: no such file" in await fails(node, pod(DATA))
    node.claims.volumes["pv1"] = volume_of(local=LocalVolumeSource(path="/a/../b"))
    assert "must not contain '..'" in await fails(node, pod(DATA))


async def test_ephemeral_claims_must_be_the_pods_own(node: Node) -> None:
    made = pod(Volume(name="data", ephemeral=EphemeralVolumeSource()))
    node.claims.volumes["pv1"] = volume_of(host_path=HostPathVolumeSource(path="/eph"))
    node.claims.claims["ns/p-data"] = claim_of()
    assert "was not created for this pod" in await fails(node, made)
    owner = OwnerReference(uid="u1", controller=True)
    node.claims.claims["ns/p-data"] = claim_of(owner_references=(owner,))
    assert (await node.manager.prepare(made))["data"].host_path == node.root / "host/eph"


@pytest.mark.parametrize("modes", [("ReadOnlyMany",), ("ReadWriteOnce", "ReadOnlyMany")])
async def test_access_modes_decide_what_is_read_only(node: Node, modes: tuple[str, ...]) -> None:
    (node.root / "host/disk").mkdir()
    node.claims.claims["ns/data"] = claim_of()
    node.claims.volumes["pv1"] = volume_of(local=LOCAL, access_modes=modes)
    prepared = await node.manager.prepare(pod(DATA))
    assert prepared["v"].read_only == (len(modes) == 1)
    wanted = PersistentVolumeClaimVolumeSource(claim_name="data", read_only=True)
    prepared = await node.manager.prepare(pod(Volume(name="v", persistent_volume_claim=wanted)))
    assert prepared["v"].read_only


@pytest.mark.parametrize(("text", "group"), [("5555", 5555), ("", None), ("-1", None), ("4294967296", None)])
async def test_the_group_a_volume_is_annotated_with(node: Node, text: str, group: int | None) -> None:
    (node.root / "host/disk").mkdir()
    node.claims.claims["ns/data"] = claim_of()
    meta = ObjectMeta(name="pv1", annotations={"pv.beta.kubernetes.io/gid": text})
    node.claims.volumes["pv1"] = PersistentVolume(metadata=meta, spec=PersistentVolumeSpec(local=LOCAL))
    assert (await node.manager.prepare(pod(DATA)))["v"].group == group


def other_pod() -> Pod:
    made = pod(DATA)
    return Pod(metadata=ObjectMeta(name="q", namespace="ns", uid="u2"), spec=made.spec)


async def test_a_volume_for_one_pod_is_refused_to_a_second_until_the_first_is_gone(node: Node) -> None:
    (node.root / "host/disk").mkdir()
    node.claims.claims["ns/data"] = claim_of()
    node.claims.volumes["pv1"] = volume_of(local=LOCAL, access_modes=("ReadWriteOncePod",))
    await node.manager.prepare(pod(DATA))
    await node.manager.prepare(pod(DATA))
    restarted = Node(node.root, claims=node.claims)
    with pytest.raises(VolumeError, match=r"ReadWriteOncePod access mode and is already in use .*u1"):
        await restarted.manager.prepare(other_pod())
    await restarted.manager.teardown("u1")
    await restarted.manager.prepare(other_pod())


async def test_a_claim_of_mode_block_is_a_device_and_no_directory(node: Node, monkeypatch: Any) -> None:
    monkeypatch.setattr(block, "node_of", lambda number: Path("/dev/null"))
    monkeypatch.setattr(block.stat, "S_ISBLK", lambda mode: True)
    (node.root / "host/disk").touch()
    node.claims.claims["ns/data"] = claim_of()
    node.claims.volumes["pv1"] = volume_of(local=LOCAL, volume_mode="Block")
    device = VolumeDevice(name="v", device_path="/dev/xvda")
    wants = Container(name="c", volume_devices=(device,))
    prepared = await node.manager.prepare(pod(DATA, containers=(wants,)))
    (found,) = node.manager.container_devices(wants, prepared)
    assert (found.host_path, found.container_path, found.read_only) == ("/dev/null", "/dev/xvda", False)
    link = node.root / "kubelet/pods/u1/volumeDevices/kubernetes.io~local-volume/pv1"
    assert link.readlink() == Path("/dev/null")
    mounted = Container(name="c", volume_mounts=(VolumeMount(name="v", mount_path="/v"),))
    with pytest.raises(VolumeError, match="has volumeMode Block: use volumeDevices"):
        await node.manager.container_mounts(pod(DATA), mounted, prepared)
    await node.manager.teardown("u1")
    assert not link.is_symlink()


async def test_devices_that_are_refused(node: Node) -> None:
    (node.root / "host/disk").mkdir()
    node.claims.claims["ns/data"] = claim_of()
    node.claims.volumes["pv1"] = volume_of(local=LOCAL, volume_mode="Block")
    assert "/disk is neither a block device nor a file" in await fails(node, pod(DATA))
    node.claims.volumes["pv1"] = volume_of(host_path=HostPathVolumeSource(path="/disk"), volume_mode="Block")
    assert "cannot have volumeMode Block" in await fails(node, pod(DATA))
    node.claims.volumes["pv1"] = volume_of(local=LOCAL)
    prepared = await node.manager.prepare(pod(DATA))
    for name, words in (("v", "has volumeMode Filesystem"), ("w", "which the pod does not have")):
        wants = Container(name="c", volume_devices=(VolumeDevice(name=name, device_path="/dev/x"),))
        with pytest.raises(VolumeError, match=words):
            node.manager.container_devices(wants, prepared)


@pytest.mark.parametrize(
    ("server", "path", "options", "expected"),
    [
        ("nas", "/e", (), ("nas:/e",)),
        ("fd00::1", "/e", (), ("[fd00::1]:/e",)),
        ("nas", "/a b", ("vers=4.1", "hard,ro"), ("nas:/a b", "-o", "hard,ro,vers=4.1")),
    ],
)
def test_what_mount_nfs_is_told(
    server: str, path: str, options: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    source = NFSVolumeSource(server=server, path=path)
    assert mount_arguments(source, options=options, read_only=False) == expected


def test_a_read_only_export_is_mounted_so() -> None:
    source = NFSVolumeSource(server="nas", path="/e")
    assert mount_arguments(source, options=("soft",), read_only=True) == ("nas:/e", "-o", "ro,soft")


@pytest.mark.parametrize(
    ("server", "path", "option"),
    [
        ("", "/e", "ro"),
        ("-ofoo", "/e", "ro"),
        ("nas;rm", "/e", "ro"),
        ("nas", "e", "ro"),
        ("nas", "/e\nx", "ro"),
        ("nas", "/e", "a\0b"),
        ("nas", "/e", "-o"),
        ("nas", "/e", ""),
    ],
)
def test_what_mount_nfs_is_never_told(server: str, path: str, option: str) -> None:
    with pytest.raises(Unready):
        mount_arguments(NFSVolumeSource(server=server, path=path), options=(option,), read_only=False)


def test_fs_group_reaches_all_files_and_no_link_target(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch(mode=0o600)
    volume = tmp_path / "volume"
    (volume / "sub").mkdir(parents=True)
    (volume / "sub/file").touch(mode=0o600)
    (volume / "link").symlink_to(outside)
    give_to_group(volume, os.getgid(), only_on_mismatch=True)
    assert stat.S_IMODE((volume / "sub/file").stat().st_mode) == 0o660
    assert stat.S_IMODE((volume / "sub").stat().st_mode) & 0o2770 == 0o2770
    assert stat.S_IMODE(outside.stat().st_mode) == 0o600
    (volume / "later").touch(mode=0o600)
    give_to_group(volume, os.getgid(), only_on_mismatch=True)
    assert stat.S_IMODE((volume / "later").stat().st_mode) == 0o600


def test_fs_group_is_taken_up_again_where_it_was_cut_short(tmp_path: Path) -> None:
    """The root is made right last, because OnRootMismatch looks at nothing else."""
    volume = tmp_path / "volume"
    (volume / "sub").mkdir(parents=True, mode=0o700)
    order: list[str] = []
    real = os.fchown

    def fchown(fd: int, uid: int, gid: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd, uid, gid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fchown", fchown)
        assert give_to_group(volume, os.getgid(), only_on_mismatch=True) == 2
    assert order == [str(volume / "sub"), str(volume)]
    assert give_to_group(volume, os.getgid(), only_on_mismatch=False) == 0
