"""The kinds of volumes this node knows. A new kind is a file beside this one, and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.volumes import (
    block,
    config_map,
    downward_api,
    empty_dir,
    image,
    nfs,
    persistent_path,
    projected,
    secret,
)
from agent.volumes.base import Claimed, Plugin, Unready

if TYPE_CHECKING:
    from agent.api.structs import Volume

PLUGINS: tuple[Plugin, ...] = (
    Plugin("empty_dir", "empty-dir", empty_dir.set_up),
    Plugin("host_path", "host-path", persistent_path.set_up_host_path),
    Plugin("config_map", "configmap", config_map.set_up, live=True),
    Plugin("secret", "secret", secret.set_up, live=True),
    Plugin("projected", "projected", projected.set_up, live=True),
    Plugin("downward_api", "downward-api", downward_api.set_up, live=True),
    Plugin("local", "local-volume", persistent_path.set_up_local, block.tear_down),
    Plugin("nfs", "nfs", nfs.set_up),
    Plugin("image", "image", image.set_up),
)

_REMOVED = {
    "git_repo": "gitRepo volumes run commands of a repository on the node (CVE-2024-10220): "
    "use an init container and an emptyDir",
    "csi": "csi volumes are not supported by this node",
    "iscsi": "iscsi volumes are not supported by this node: use a CSI driver",
    "fc": "fc volumes are not supported by this node: use a CSI driver",
    "flex_volume": "flexVolume was replaced by CSI: use a CSI driver",
}
"""Kinds of the API that are refused by name, and what to do instead."""


def plugin_of(volume: Volume, claimed: Claimed | None) -> Plugin:
    """The plugin for a pod's volume, or for the PersistentVolume behind it.

    Raises:
        Unready: a kind that this node does not support.
    """
    source = volume if claimed is None else claimed.volume.spec
    for plugin in PLUGINS:
        if getattr(source, plugin.field, None) is not None:
            return plugin
    for field, words in _REMOVED.items():
        if getattr(source, field, None) is not None:
            raise Unready(words)
    what = "its kind" if claimed is None else f"the kind of persistentvolume {claimed.name!r}"
    raise Unready(f"{what} is not supported by this node")


def is_live(volume: Volume) -> bool:
    """Whether a volume follows API objects."""
    return any(plugin.live and getattr(volume, plugin.field, None) is not None for plugin in PLUGINS)


def plugin_at(directory: str) -> Plugin | None:
    """The plugin that makes directories "kubernetes.io~<...>" of that name, for what is found on disk."""
    name = directory.removeprefix("kubernetes.io~")
    return next((plugin for plugin in PLUGINS if plugin.directory == name), None)
