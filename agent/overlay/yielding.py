"""Whose the pod network is: ours, or that of another CNI configuration which runtimes prefer to ours.

A CNI's DaemonSet puts its configuration into the folder that ours is in. Runtimes take the first by name
(libcni's ConfFiles), so it is enough to look where ours stands: two that make the network of one node, with
flannel even by devices and annotations of the same names, would be one too many.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cni.config import CONFLIST_NAME, PLUGIN_TYPE

_SUFFIXES = (".conf", ".conflist", ".json")
_LIMIT = 1 << 20


def preferred(folder: Path) -> str:
    """The file of another network that comes before ours; '' when none does.

    A file that no runtime could use does not count, nor one with our own plugin in it, whatever its name.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix in _SUFFIXES)
    except OSError:
        return ""
    for name in names:
        if name == CONFLIST_NAME:
            return ""
        types = _plugins(folder / name)
        if PLUGIN_TYPE in types:
            return ""
        if types - {"loopback"}:
            return str(folder / name)
    return ""


def _plugins(path: Path) -> set[str]:
    """The plugins that a configuration, or a list of them, names."""
    try:
        with path.open("rb") as file:
            config: Any = json.loads(file.read(_LIMIT))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(config, dict):
        return set()
    plugins = config.get("plugins", [config])
    if not isinstance(plugins, list):
        return set()
    found = [plugin.get("type") for plugin in plugins if isinstance(plugin, dict)]
    return {kind for kind in found if isinstance(kind, str) and kind}
