"""The VXLAN device's MAC, kept over restarts: peers hold it as a permanent entry."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from agent.api.structs import Node
from agent.overlay.peers import WORDS
from host import files, rtnl
from host.errors import InputError, NotFound

_KIND, _VERSION = "vtep-mac", 1


def keep(path: Path, *, device: str = "", node: Node | None = None, version: int = 4) -> str:
    """The MAC this node's VXLAN device has, or had; a new one, written down at once, where it never had any.

    Asked in this order: the file, the device in the kernel, our own Node's annotation. So neither a deleted
    device nor a lost disk changes what peers have to know.

    Args:
        path: the file; its folder is made if missing.
        device: MAC of the device in the kernel, '' for none.
        node: our own Node as the API has it.
        version: of IP; each has a device.

    Raises:
        HostError: the file cannot be written.
    """
    stored = _stored(path)
    if stored:
        return stored
    chosen = _valid(device) or _announced(node, version) or rtnl.mac_text(_random())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_record(path, chosen, kind=_KIND, version=_VERSION)
    return chosen


def _stored(path: Path) -> str:
    try:
        return _valid(files.read_record(path, kind=_KIND, version=_VERSION))
    except NotFound:
        return ""
    except files.CorruptRecord:
        files.quarantine(path)
        return ""


def _announced(node: Node | None, version: int) -> str:
    text = node.metadata.annotations.get(WORDS[version].data, "") if node else ""
    try:
        data = json.loads(text or "null")
    except ValueError:
        return ""
    return _valid(data.get("VtepMAC")) if isinstance(data, dict) else ""


def _valid(mac: object) -> str:
    """The MAC in lower case, or '' where it is none of a single device."""
    if not isinstance(mac, str):
        return ""
    try:
        raw = rtnl.mac_bytes(mac.lower())
    except InputError:
        return ""
    return rtnl.mac_text(raw) if any(raw) and not raw[0] & 1 else ""


def _random() -> bytes:
    """A locally administered unicast address."""
    raw = bytearray(secrets.token_bytes(6))
    raw[0] = (raw[0] & 0xFE) | 0x02
    return bytes(raw)
