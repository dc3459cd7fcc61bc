"""The image calls: ListImages, StreamImages, ImageStatus, PullImage, RemoveImage, ImageFsInfo.

One file, because each is a few lines around `cri.images.store`.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterable

from cri.images.model import Credentials, Image
from cri.images.reference import parse, parse_id
from cri.server.core import Core
from host.errors import InputError
from proto.cri import runtime_pb2 as pb


def image_message(image: Image) -> pb.Image:
    """An image as CRI has it; uid or username as the image's USER says, so that the kubelet can check it."""
    message = pb.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        pinned=image.pinned,
    )
    user = image.config.user.partition(":")[0]
    if user.isascii() and user.isdigit():
        message.uid.value = int(user)
    elif user:
        message.username = user
    else:
        message.uid.value = 0
    return message


def check_name(image: pb.ImageSpec) -> None:
    """Refuse what is neither the name of an image nor an id.

    Raises:
        InputError.
    """
    try:
        if not parse_id(image.image):
            parse(image.image)
    except InputError as exc:
        raise InputError(f"image.image: {exc}") from exc


def _wanted(images: Iterable[Image], wanted: pb.ImageFilter, core: Core) -> list[Image]:
    if not wanted.image.image:
        return list(images)
    found = core.images.get(wanted.image.image)
    return [found] if found else []


async def list_images(core: Core, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
    """The images a filter asks for."""
    found = _wanted(core.images.list(), request.filter, core)
    return pb.ListImagesResponse(images=[image_message(image) for image in found])


async def stream_images(
    core: Core, request: pb.StreamImagesRequest
) -> AsyncIterator[pb.StreamImagesResponse]:
    """The same, one message an image."""
    for image in _wanted(core.images.list(), request.filter, core):
        yield pb.StreamImagesResponse(images=[image_message(image)])


async def image_status(core: Core, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse:
    """An image, or an answer without one when it is not here (CRI: that is no error).

    Raises:
        InputError: the name cannot be parsed.
    """
    check_name(request.image)
    image = core.images.get(request.image.image)
    if image is None:
        return pb.ImageStatusResponse()
    response = pb.ImageStatusResponse(image=image_message(image))
    if request.verbose:
        config = json.loads(core.images.config_json(image.id))
        response.info["info"] = json.dumps({"imageSpec": config})
    return response


async def pull_image(core: Core, request: pb.PullImageRequest) -> pb.PullImageResponse:
    """Bring an image here; answers its id.

    Raises:
        InputError: the name cannot be parsed.
        PullError, StoreFull: as `cri.images.errors` says.
    """
    check_name(request.image)
    credentials = None
    if request.HasField("auth"):
        auth = request.auth
        credentials = Credentials(
            username=auth.username,
            password=auth.password,
            auth=auth.auth,
            server_address=auth.server_address,
            identity_token=auth.identity_token,
            registry_token=auth.registry_token,
        )
    image = await core.images.pull(request.image.image, credentials)
    return pb.PullImageResponse(image_ref=image.id)


async def remove_image(core: Core, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
    """Remove an image with all its names; a missing one is fine.

    Raises:
        InputError: the name cannot be parsed.
    """
    check_name(request.image)
    await core.images.remove(request.image.image)
    return pb.RemoveImageResponse()


async def image_fs_info(core: Core, request: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
    """What images take, and the file system of writable layers (the kubelet measures that one itself)."""
    usage = core.images.usage()
    images = pb.FilesystemUsage(timestamp=core.now())
    images.fs_id.mountpoint = str(usage.path)
    images.used_bytes.value = usage.used_bytes
    images.inodes_used.value = usage.inodes_used
    containers = pb.FilesystemUsage(timestamp=core.now())
    containers.fs_id.mountpoint = os.fspath(core.settings.root / "containers")
    return pb.ImageFsInfoResponse(image_filesystems=[images], container_filesystems=[containers])
