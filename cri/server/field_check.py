"""Bounds that CRI itself does not set, and that its strings, paths and messages are held to here. Pure.

A runtime keeps every configuration in memory and on disk for as long as the object lives, and sends all of
them in one List answer, for which gRPC has a limit as well. So an object may have what an API server lets
through (1.5 MiB, etcd's limit for one request), with room for what a kubelet adds.
"""

from __future__ import annotations

from google.protobuf.message import Message

from host.errors import InputError

MAX_CONFIG_BYTES = 2 << 20
MAX_NAME_BYTES = 1024
"""Kubernetes' own names end at 253."""
MAX_PATH_BYTES = 4095
MAX_SEGMENT_BYTES = 255
"""NAME_MAX; a path with its final NUL is PATH_MAX, 4096 (linux/limits.h)."""
_SHOWN = 80


def check_size(config: Message) -> None:
    """Refuse a configuration that is too large to keep.

    Raises:
        InputError: names the field that takes most of it.
    """
    if (size := config.ByteSize()) > MAX_CONFIG_BYTES:
        raise InputError(
            f"{_largest(config)}: the configuration has {size} bytes, most of them here; "
            f"{MAX_CONFIG_BYTES} are the limit"
        )


def _largest(config: Message) -> str:
    """The field that takes most: each is taken away in turn."""
    rest = type(config)()
    rest.CopyFrom(config)
    sizes: dict[str, int] = {}
    for field, _ in config.ListFields():
        before = rest.ByteSize()
        rest.ClearField(field.name)
        sizes[field.name] = before - rest.ByteSize()
    return max(sizes, key=lambda name: sizes[name])


def check_name(field: str, value: str) -> None:
    """Refuse a name that no file name, log line or table could be made of.

    Raises:
        InputError: it is too long, or holds NUL.
    """
    if len(value.encode()) > MAX_NAME_BYTES:
        raise InputError(f"{field} {value[:_SHOWN]!r}... is longer than {MAX_NAME_BYTES} bytes")
    if "\0" in value:
        raise InputError(f"{field} {value[:_SHOWN]!r} holds NUL")


def check_path(field: str, path: str) -> None:
    """Refuse a path that climbs or that the kernel has no room for; an empty one is fine.

    Raises:
        InputError: the message names the field.
    """
    segments = path.split("/")
    if ".." in segments or "\0" in path:
        raise InputError(f"{field} {path[:_SHOWN]!r} must not hold '..' or NUL")
    if len(path.encode()) > MAX_PATH_BYTES or any(
        len(item.encode()) > MAX_SEGMENT_BYTES for item in segments
    ):
        raise InputError(
            f"{field} {path[:_SHOWN]!r}... is longer than {MAX_PATH_BYTES} bytes, or has a name in it "
            f"that is longer than {MAX_SEGMENT_BYTES}"
        )
