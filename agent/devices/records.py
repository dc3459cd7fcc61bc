"""Which devices each pod has, on disk: a file in the pod's own directory, which goes with it.

    <root>/pods/<uid>/devices                  ids, and what the plugins answered
    <root>/device-plugins/nodelet_resources    every resource that was ever registered here

So an agent that starts gives no device to a second pod, a container that starts again gets what it had
without its plugin, and a resource whose plugin is away counts as none instead of as many as the Node's status
said last.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from host.errors import HostError, NotFound, from_oserror
from host.files import read_record, write_record

log = logging.getLogger(__name__)
_DEVICES, _RESOURCES, _VERSION = "devices", "device-resources", 1
RECORD = _DEVICES
"""Name of the record in a pod's folder."""


class Grant(msgspec.Struct, frozen=True):
    """Devices of one resource that a container has.

    Attributes:
        answer: the plugin's ContainerAllocateResponse, serialized; None until it was asked.
    """

    ids: tuple[str, ...]
    answer: bytes | None = None


Held = Mapping[str, Mapping[str, Grant]]
"""One pod's devices, by container and resource."""


def keep(root: Path, uid: str, held: Held) -> None:
    """Write what a pod has, in place of the record before. Raises HostError."""
    path = root / "pods" / uid / _DEVICES
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as exc:
        raise from_oserror(exc, f"make {path.parent}") from exc
    write_record(path, msgspec.to_builtins(held), kind=_DEVICES, version=_VERSION)


def kept(root: Path) -> dict[str, Held]:
    """What every pod has, by uid. A record that cannot be trusted is told and left out."""
    found: dict[str, Held] = {}
    for path in sorted((root / "pods").glob(f"*/{_DEVICES}")):
        try:
            data = read_record(path, kind=_DEVICES, version=_VERSION)
            found[path.parent.name] = msgspec.convert(data, dict[str, dict[str, Grant]])
        except NotFound:
            continue
        except (HostError, msgspec.ValidationError) as exc:
            log.error(
                "record of a pod's devices not readable, others may be given them too: "
                "delete the pod if they must not be shared path=%s error=%s",
                path,
                exc,
            )
    return found


def keep_resources(folder: Path, names: Iterable[str]) -> None:
    """Write down every resource there ever was. A disk that refuses costs only the record."""
    try:
        write_record(folder / "nodelet_resources", sorted(names), kind=_RESOURCES, version=_VERSION)
    except HostError as exc:
        log.warning("device resources not recorded path=%s error=%s", folder, exc)


def kept_resources(folder: Path) -> set[str]:
    """The resources written down; none where nothing can be read."""
    try:
        data = read_record(folder / "nodelet_resources", kind=_RESOURCES, version=_VERSION)
        return set(msgspec.convert(data, list[str]))
    except NotFound:
        return set()
    except (HostError, msgspec.ValidationError) as exc:
        log.warning("record of device resources not readable path=%s error=%s", folder, exc)
        return set()
