"""secret volumes: one file for each key, in a tmpfs so that nothing reaches the disk."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agent.volumes import atomic
from agent.volumes.base import Context, PreparedVolume, Unready
from agent.volumes.config_map import DEFAULT_MODE, project
from agent.volumes.directories import make_directory

if TYPE_CHECKING:
    from agent.api.structs import KeyToPath, Volume


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Write the files.

    Raises:
        Unready: no such Secret or key, and it is not optional.
    """
    source = volume.secret
    if source is None:
        raise Unready("not a secret")
    mode = DEFAULT_MODE if source.default_mode is None else source.default_mode
    files = await collect(context, source.secret_name, source.items, mode=mode, optional=source.optional)
    changed = await asyncio.to_thread(write_in_memory, context, files)
    return PreparedVolume(
        name=volume.name, host_path=context.directory, read_only=True, live=True, changed=changed
    )


def write_in_memory(context: Context, files: Mapping[str, atomic.File]) -> bool:
    """Put the files into a tmpfs on the volume's directory; whether anything changed."""
    make_directory(context.directory, mode=0o755)
    if not context.mounter.is_mounted(context.directory):
        context.mounter.tmpfs(context.directory, mode=0o755)
    return atomic.write(context.directory, files, group=context.fs_group)


async def collect(
    context: Context, name: str, items: Sequence[KeyToPath], *, mode: int, optional: bool
) -> dict[str, atomic.File]:
    """The files of one Secret (none if it is optional and missing).

    Raises:
        Unready: no such Secret or key.
    """
    secret = await context.sources.get_secret(context.pod.metadata.namespace, name)
    if secret is None:
        if optional:
            return {}
        raise Unready(f'secret "{name}" not found')
    data = {key: base64.b64decode(text) for key, text in secret.data.items()}
    missing = "references non-existent secret key"
    return project(data, items, mode=mode, optional=optional, missing=missing)
