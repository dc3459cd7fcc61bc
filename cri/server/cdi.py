"""Container Device Interface: what a device of a vendor's puts into a container besides its nodes.

A specification file in one of the folders describes devices of one kind; a pod (by way of its device plugin)
names them as vendor.com/class=name. Of the edits such a file may ask for, environment, device nodes, bind
mounts and groups are done. Hooks are programs that would run as root of the node in the middle of a
container's start: a device with hooks is refused, as is every edit not known here.
Format: https://github.com/cncf-tags/container-device-interface/blob/main/SPEC.md, versions 0.3 to 1.x.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import yaml

from cri.runtime.spec import Device, Mount, Propagation
from cri.server.errors import unimplemented
from host.errors import InputError
from host.files import read_input

_MAX_BYTES = 1 << 20
_NAME = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*)=([A-Za-z0-9][A-Za-z0-9_.:-]*)")
_PROPAGATION: dict[str, Propagation] = {
    **dict.fromkeys(("private", "rprivate"), "private"),
    **dict.fromkeys(("slave", "rslave"), "slave"),
    **dict.fromkeys(("shared", "rshared"), "shared"),
}
_PLAIN_OPTIONS = {"bind", "rbind", "rw", "ro", "nosuid", "nodev", "noexec", "suid", "dev", "exec", "relatime"}


class _Node(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    path: str
    host_path: str = ""
    permissions: str = "rwm"
    type: str = ""
    major: int = 0
    minor: int = 0
    """Type and numbers are those of the node on this machine, whatever is written here."""


class _Mount(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    host_path: str
    container_path: str
    options: list[str] = []
    type: str = "bind"


class _Edits(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    env: list[str] = []
    device_nodes: list[_Node] = []
    mounts: list[_Mount] = []
    hooks: list[object] = []
    additional_gids: list[Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]] = []


class _Device(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    name: str
    container_edits: _Edits
    annotations: dict[str, str] = {}


class Specification(msgspec.Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    """One file: the devices of one kind, and what all of them need."""

    cdi_version: str
    kind: str
    devices: list[_Device] = []
    container_edits: _Edits = _Edits()
    annotations: dict[str, str] = {}


@dataclass(frozen=True, kw_only=True)
class ContainerEdits:
    """What the devices of a container add to it."""

    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    groups: tuple[int, ...] = ()


def container_edits(names: Sequence[str], folders: Iterable[Path]) -> ContainerEdits:
    """What the devices named need, from the files in `folders`; a later folder wins over an earlier one.

    Raises:
        InputError: a device that is not there or is there twice, or a file that cannot be understood.
        Unsupported: an edit that is not done here.
    """
    return edits_of(names, [read_folder(folder) for folder in folders]) if names else ContainerEdits()


def read_folder(folder: Path) -> list[Specification]:
    """The specifications in a folder; none where it does not exist."""
    files = sorted(folder.glob("*")) if folder.is_dir() else []
    return [
        parse(read_input(path, limit=_MAX_BYTES, noun="CDI specification"), str(path))
        for path in files
        if path.suffix in (".json", ".yaml", ".yml")
    ]


def parse(raw: bytes, name: str) -> Specification:
    """One specification; `name` is the file's, for messages.

    Raises:
        InputError: it is none, or has a field that is not known here.
    """
    try:
        found = msgspec.convert(yaml.safe_load(raw), Specification)
    except (yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as exc:
        raise InputError(f"CDI specification {name} cannot be used: {str(exc).splitlines()[0]}") from exc
    if not re.fullmatch(r"v?(0\.[3-9]|1)\.\d+(\.\d+)?", found.cdi_version):
        raise InputError(f"CDI specification {name}: cdiVersion {found.cdi_version!r} is not 0.3 to 1.x")
    return found


def edits_of(names: Sequence[str], levels: Sequence[Sequence[Specification]]) -> ContainerEdits:
    """As `container_edits`, of specifications that were read: those of one folder are one level."""
    edits: list[tuple[str, _Edits]] = []
    used: list[Specification] = []
    for name in dict.fromkeys(names):
        specification, device = _find(name, levels)
        if specification not in used:
            used.append(specification)
            edits.append((name, specification.container_edits))
        edits.append((name, device.container_edits))
    for name, edit in edits:
        if edit.hooks:
            raise unimplemented(f"CDI device {name}: hooks")
    return ContainerEdits(
        env=tuple(_variable(name, word) for name, edit in edits for word in edit.env),
        mounts=tuple(_mount(name, mount) for name, edit in edits for mount in edit.mounts),
        devices=tuple(_device(name, node) for name, edit in edits for node in edit.device_nodes),
        groups=tuple(number for _, edit in edits for number in edit.additional_gids),
    )


def _find(name: str, levels: Sequence[Sequence[Specification]]) -> tuple[Specification, _Device]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"CDI device {name[:200]!r} is not of the form vendor.com/class=name")
    kind, wanted = match.groups()
    for level in reversed(levels):
        same = [(item, device) for item in level if item.kind == kind for device in item.devices]
        found = [(item, device) for item, device in same if device.name == wanted]
        if len(found) > 1:
            raise InputError(f"CDI device {name} is described by {len(found)} files of one folder")
        if found:
            return found[0]
    raise InputError(f"CDI device {name} is not known: no file of the CDI folders describes it")


def _variable(name: str, word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    if not key or not equals or "\0" in word:
        raise InputError(f"CDI device {name}: env {word[:80]!r} is not of the form NAME=value")
    return key, value


def _mount(name: str, mount: _Mount) -> Mount:
    unknown = [word for word in mount.options if word not in _PLAIN_OPTIONS and word not in _PROPAGATION]
    if mount.type not in ("", "bind", "none") or unknown:
        raise unimplemented(f"CDI device {name}: mount of type {mount.type!r} with options {unknown}")
    for path in (mount.host_path, mount.container_path):
        if not path.startswith("/"):
            raise InputError(f"CDI device {name}: mount path {path[:80]!r} must be absolute")
    propagation = [_PROPAGATION[word] for word in mount.options if word in _PROPAGATION]
    return Mount(
        source=Path(mount.host_path),
        target=mount.container_path,
        readonly="ro" in mount.options,
        nosuid="nosuid" in mount.options,
        nodev="nodev" in mount.options,
        noexec="noexec" in mount.options,
        propagation=propagation[-1] if propagation else "private",
    )


def _device(name: str, node: _Node) -> Device:
    if set(node.permissions) - set("rwm"):
        raise InputError(f"CDI device {name}: permissions {node.permissions[:80]!r} must be of r, w and m")
    return Device(
        source=Path(node.host_path or node.path), target=node.path, access=node.permissions or "rwm"
    )
