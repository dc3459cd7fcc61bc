"""image volumes: the files of an image, read-only. The runtime mounts them; here the image is made present.

Source: Kubernetes API, core/v1 ImageVolumeSource; KEP-4639.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.volumes.base import Context, PreparedVolume, Unready

if TYPE_CHECKING:
    from agent.api.structs import Volume


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Pull the image as its policy says.

    Raises:
        Unready: no reference, or the image cannot be had now.
    """
    source = volume.image
    if source is None or not source.reference:
        raise Unready("image.reference is empty")
    if context.image is None:
        raise Unready("image volumes need a container runtime")
    found = await context.image(context.pod, source.reference, source.pull_policy)
    return PreparedVolume(name=volume.name, host_path=context.directory, read_only=True, image=found)
