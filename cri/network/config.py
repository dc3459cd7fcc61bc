"""Network configurations: the folder they are in, their reading, and what one plugin of a chain is handed.

See sections 1 and 3 of the CNI specification 1.1.0.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cri.network.plugin import NetworkError
from host.errors import InputError

NO_CONFIG = "cni config uninitialized"
NEWEST = (1, 1, 0)
"""The version since which there are GC and STATUS; we speak no later one."""
_SUFFIXES = (".conflist", ".conf", ".json")
_TYPE = re.compile(r"[a-zA-Z0-9][\w.-]*")
_MAX_BYTES = 1 << 20


class ConfigFolder:
    """A folder such as /etc/cni/net.d: the first file by name is in force.

    It is looked at whenever somebody asks, and a file is read again only when it has changed: so a new
    configuration counts from the next pod or the next Status on, and no notification can be lost.
    """

    def __init__(self, path: Path) -> None:
        """The folder may be missing."""
        self._path = path
        self._stamp: tuple[object, ...] = ()
        self._conflist: dict[str, Any] | None = None

    def conflist(self) -> dict[str, Any]:
        """The configuration in force.

        Raises:
            NetworkError: there is none, or the first one is wrong; the text is the reason of
            NetworkReady=false.
        """
        path = self._first()
        try:
            found = path.stat()
            stamp = (path, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_size)
            if stamp != self._stamp or self._conflist is None:
                with path.open("rb") as file:
                    self._conflist = parse_conflist(file.read(_MAX_BYTES + 1), str(path))
                self._stamp = stamp
        except OSError as exc:
            raise NetworkError(f"{NO_CONFIG}: cannot read {path}: {exc.strerror}") from exc
        except InputError as exc:
            raise NetworkError(f"{NO_CONFIG}: {exc}") from exc
        return self._conflist

    def _first(self) -> Path:
        """By name, as every runtime has it. Folders and hidden files (half-written ones, an editor's) do
        not count."""
        try:
            with os.scandir(self._path) as entries:
                names = [
                    entry.name
                    for entry in entries
                    if entry.name.endswith(_SUFFIXES) and entry.name[0] != "." and not entry.is_dir()
                ]
        except FileNotFoundError:
            names = []
        except OSError as exc:
            raise NetworkError(
                f"{NO_CONFIG}: cannot list {self._path}: {(exc.strerror or '').lower()}"
            ) from exc
        if not names:
            raise NetworkError(f"{NO_CONFIG}: no network configuration in {self._path}")
        return self._path / min(names)


def parse_conflist(raw: bytes, source: str) -> dict[str, Any]:
    """A network configuration list from a file's bytes; a single plugin's `.conf` becomes a list of one.

    Raises:
        InputError: not JSON, or a list without name, version or plugins of a safe type.
    """
    if len(raw) > _MAX_BYTES:
        raise InputError(f"{source} is larger than {_MAX_BYTES} bytes")
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{source} is not JSON") from exc
    if not isinstance(config, dict):
        raise InputError(f"{source} must be a JSON object")
    if "plugins" not in config and "type" in config:
        config = {
            "name": config.get("name"),
            "cniVersion": config.get("cniVersion", "0.2.0"),
            "plugins": [config],
        }
    if not isinstance(config.get("name"), str) or not config["name"]:
        raise InputError(f"{source}: name must be a string")
    if not isinstance(config.get("cniVersion"), str):
        raise InputError(f"{source}: cniVersion must be a string")
    config["cniVersion"] = _negotiated(config, source)
    plugins = config.get("plugins")
    if not isinstance(plugins, list) or not plugins:
        raise InputError(f"{source}: plugins must be a list with at least one plugin")
    for plugin in plugins:
        _check_plugin(plugin, source)
    return config


def _check_plugin(plugin: Any, source: str) -> None:
    kind = plugin.get("type") if isinstance(plugin, dict) else None
    if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
        raise InputError(f"{source}: plugin type {kind!r} must be a plain file name")
    if not isinstance(plugin.get("capabilities") or {}, dict):
        raise InputError(f"{source}: capabilities of plugin {kind} must be an object")


def _negotiated(config: Mapping[str, Any], source: str) -> str:
    """The newest version that both sides speak: "runtimes MUST select the highest supported version"
    from `cniVersions` (CNI 1.1.0, section 1). Without it there would be no GC for a list that begins with an
    older version for older runtimes."""
    offered = config.get("cniVersions", [])
    if not isinstance(offered, list) or not all(isinstance(item, str) for item in offered):
        raise InputError(f"{source}: cniVersions must be a list of strings")
    return max(
        (item for item in (config["cniVersion"], *offered) if version_of(item) <= NEWEST),
        key=version_of,
        default=config["cniVersion"],
    )


def version_of(text: str) -> tuple[int, ...]:
    """A specification's version as numbers, which compare. Pure."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


def plugin_config(
    conflist: Mapping[str, Any],
    plugin: Mapping[str, Any],
    *,
    capabilities: Mapping[str, Any],
    previous: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The configuration one plugin of the chain gets on its standard input (CNI section 3, derivation)."""
    wanted = plugin.get("capabilities") or {}
    runtime = {key: value for key, value in capabilities.items() if wanted.get(key)}
    derived = {key: value for key, value in plugin.items() if key != "capabilities"}
    derived |= {"name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    if runtime:
        derived["runtimeConfig"] = runtime
    if previous:
        derived["prevResult"] = previous
    return derived
