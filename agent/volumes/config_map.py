"""configMap volumes: one file for each key, following the ConfigMap while the pod lives."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agent.volumes import atomic
from agent.volumes.base import Context, PreparedVolume, Unready
from agent.volumes.directories import make_directory

if TYPE_CHECKING:
    from agent.api.structs import ConfigMap, KeyToPath, Volume

DEFAULT_MODE = 0o644


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Write the files.

    Raises:
        Unready: no such ConfigMap or key, and it is not optional.
    """
    source = volume.config_map
    if source is None:
        raise Unready("not a configMap")
    mode = DEFAULT_MODE if source.default_mode is None else source.default_mode
    files = await collect(context, source.name, source.items, mode=mode, optional=source.optional)
    changed = await asyncio.to_thread(write_files, context, files)
    return PreparedVolume(
        name=volume.name, host_path=context.directory, read_only=True, live=True, changed=changed
    )


def write_files(context: Context, files: Mapping[str, atomic.File]) -> bool:
    """Put the files into the volume's directory on disk; whether anything changed."""
    make_directory(context.directory, mode=0o755)
    return atomic.write(context.directory, files, group=context.fs_group)


async def collect(
    context: Context, name: str, items: Sequence[KeyToPath], *, mode: int, optional: bool
) -> dict[str, atomic.File]:
    """The files of one ConfigMap (none if it is optional and missing).

    Raises:
        Unready: no such ConfigMap or key.
    """
    config_map = await context.sources.get_config_map(context.pod.metadata.namespace, name)
    if config_map is None:
        if optional:
            return {}
        raise Unready(f'configmap "{name}" not found')
    missing = "configmap references non-existent config key"
    return project(contents(config_map), items, mode=mode, optional=optional, missing=missing)


def contents(config_map: ConfigMap) -> dict[str, bytes]:
    """Key → bytes of a ConfigMap's text and binary data."""
    data = {key: text.encode() for key, text in config_map.data.items()}
    data.update((key, base64.b64decode(text)) for key, text in config_map.binary_data.items())
    return data


def project(
    data: Mapping[str, bytes], items: Sequence[KeyToPath], *, mode: int, optional: bool, missing: str
) -> dict[str, atomic.File]:
    """Which file gets which key: all keys under their own names, or just the `items` under theirs.

    Args:
        data: key → bytes.
        items: the chosen keys; none means all.
        mode: permission bits unless an item has its own.
        optional: whether a chosen key may be absent.
        missing: words for a key that is absent.

    Raises:
        Unready: an absent key, or a key or path that is not allowed.
    """
    if not items:
        return {atomic.check_key(key): atomic.File(value, mode) for key, value in data.items()}
    files = {}
    for item in items:
        path = atomic.check_path(item.path)
        if item.key not in data:
            if optional:
                continue
            raise Unready(f"{missing}: {item.key}")
        files[path] = atomic.File(data[item.key], mode if item.mode is None else item.mode)
    return files
