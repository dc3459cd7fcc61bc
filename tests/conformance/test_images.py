"""Images: names, ids, users, removal, and the same answers from every call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from counterparts import BUSYBOX, GROUPED, NAMED, NUMBERED, PULLED
from criclient import CriClient, refused

from proto.cri import runtime_pb2 as pb


async def pull(node: CriClient, name: str) -> str:
    return (await node.images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image=name)))).image_ref


async def remove(node: CriClient, name: str) -> None:
    await node.images.RemoveImage(pb.RemoveImageRequest(image=pb.ImageSpec(image=name)))


async def found(node: CriClient, name: str) -> pb.Image | None:
    answer = await node.images.ImageStatus(pb.ImageStatusRequest(image=pb.ImageSpec(image=name)))
    return answer.image if answer.HasField("image") else None


async def listed(node: CriClient, name: str = "") -> list[pb.Image]:
    wanted = pb.ImageFilter(image=pb.ImageSpec(image=name))
    return list((await node.images.ListImages(pb.ListImagesRequest(filter=wanted))).images)


@pytest.fixture
async def absent(node: CriClient) -> AsyncIterator[None]:
    """The images of `PULLED` are not here before and after a test."""
    yield
    for name in PULLED:
        if image := await found(node, name):
            await remove(node, image.id)


async def test_a_pulled_image_is_there_at_once_and_a_removed_one_gone(node: CriClient, absent: None):
    ref = await pull(node, PULLED[0])
    image = await found(node, PULLED[0])
    assert image is not None
    assert image.id == ref
    assert image.size > 0
    assert image.repo_tags == [PULLED[0]]
    assert ref in [item.id for item in await listed(node)]
    await remove(node, PULLED[0])
    assert await found(node, PULLED[0]) is None
    assert await found(node, ref) is None
    assert ref not in [item.id for item in await listed(node)]


async def test_lists_are_filtered_by_name(node: CriClient, beyond_cri: None):
    assert [item.repo_tags for item in await listed(node, NAMED)] == [[NAMED]]
    assert await listed(node, "registry.test/none:1") == []


async def test_names_of_one_image_are_one_image(node: CriClient, absent: None):
    refs = {await pull(node, name) for name in PULLED}
    assert len(refs) == 1
    image = await found(node, PULLED[2])
    assert image is not None
    assert sorted(image.repo_tags) == sorted(PULLED)
    assert len(image.repo_digests) == 2
    assert len([item for item in await listed(node) if item.id == image.id]) == 1


async def test_an_image_is_pulled_by_digest(node: CriClient, absent: None):
    ref = await pull(node, PULLED[0])
    image = await found(node, ref)
    assert image is not None
    digest = image.repo_digests[0]
    await remove(node, ref)
    assert await pull(node, digest) == ref
    by_digest = await found(node, digest)
    assert by_digest is not None
    assert (list(by_digest.repo_tags), list(by_digest.repo_digests)) == ([], [digest])


async def test_removal_by_id_removes_every_name(node: CriClient, absent: None):
    refs = [await pull(node, name) for name in PULLED]
    await remove(node, refs[0])
    assert [await found(node, name) for name in PULLED] == [None] * 3


async def test_a_missing_image_is_no_error(node: CriClient):
    assert await found(node, "registry.test/none:1") is None
    await remove(node, "registry.test/none:1")


async def test_an_image_that_no_registry_has_cannot_be_pulled(node: CriClient):
    _, words = await refused(pull(node, "registry.test/none:1"))
    assert "registry.test/none:1" in words
    assert await found(node, "registry.test/none:1") is None


async def test_several_may_remove_at_once(node: CriClient, absent: None):
    ref = await pull(node, PULLED[0])

    async def remove_and_look() -> pb.Image | None:
        await remove(node, ref)
        return await found(node, ref)

    assert await asyncio.gather(*(remove_and_look() for _ in range(5))) == [None] * 5


@pytest.mark.parametrize(
    ("name", "uid", "username"), [(NUMBERED, 1002, ""), (NAMED, None, "mail"), (GROUPED, 8, "")]
)
async def test_the_images_user_is_told(node: CriClient, name: str, uid: int | None, username: str):
    """The kubelet needs it for runAsNonRoot."""
    image = await found(node, name)
    assert image is not None
    assert (image.uid.value if image.HasField("uid") else None, image.username) == (uid, username)


async def test_every_call_has_the_same_id(node: CriClient):
    image = await found(node, BUSYBOX)
    assert image is not None
    _, container, _ = await node.launch("sleep", "1000", image=image.id)
    listed = (await node.runtime.ListContainers(pb.ListContainersRequest())).containers
    ids = {(await node.status(container)).image_id, listed[0].image_id}
    assert ids - {""} <= {image.id}
    if node.name == "nodelet-cri":
        assert ids == {image.id}
    assert (await node.status(container)).image_ref in (*image.repo_digests, image.id)


async def test_the_verbose_status_has_the_configuration(node: CriClient):
    spec = pb.ImageSpec(image=NAMED)
    answer = await node.images.ImageStatus(pb.ImageStatusRequest(image=spec, verbose=True))
    assert '"mail"' in answer.info["info"]
    assert not (await node.images.ImageStatus(pb.ImageStatusRequest(image=spec))).info


async def test_the_store_says_what_it_takes(node: CriClient):
    info = await node.images.ImageFsInfo(pb.ImageFsInfoRequest())
    usage = info.image_filesystems[0]
    assert usage.timestamp > 0
    assert usage.fs_id.mountpoint.startswith("/")
    if node.name != "containerd":  # counts every ten seconds
        assert usage.used_bytes.value > 0
        assert usage.inodes_used.value > 0


async def test_an_image_in_use_stays_usable(node: CriClient, absent: None):
    ref = await pull(node, PULLED[0])
    _, container, _ = await node.launch("sleep", "1000", image=ref)
    try:
        await remove(node, ref)
        assert await node.inside(container, "ls /pulled") == "/pulled"
    finally:
        await node.clean(of="nodelet-tests")
