"""The flat directory of log links, `<pod>_<namespace>_<container>-<id>.log`, that log collectors read.

Fluentd, Fluent Bit and the like take a container's identity from these names (/var/log/containers); each link
points to the log file in the pod's own log directory. Nothing else depends on them.
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.api.structs import Pod
from agent.pods.settings import PodSettings

_NAME_LIMIT = 255


def add_link(settings: PodSettings, pod: Pod, *, container: str, container_id: str, log_path: str) -> None:
    """Make the link of a container's log; an old one of the same name is replaced. Raises OSError."""
    link = settings.links_dir / _name(pod, container, container_id)
    settings.links_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(log_path)


def remove_links(settings: PodSettings, pod: Pod) -> None:
    """Remove every link into the pod's log directory."""
    meta = pod.metadata
    target = str(settings.log_dir(meta.namespace, meta.name, meta.uid)) + "/"
    try:
        links = [entry for entry in os.scandir(settings.links_dir) if entry.is_symlink()]
    except FileNotFoundError:
        return
    for link in links:
        if link.name.startswith(f"{meta.name}_") and os.readlink(link.path).startswith(target):
            Path(link.path).unlink(missing_ok=True)


def remove_log(settings: PodSettings, pod: Pod, *, container: str, container_id: str, log_path: str) -> None:
    """Remove the log of one container that is removed: the file, its rotated ones and its link."""
    path = Path(log_path)
    (settings.links_dir / _name(pod, container, container_id)).unlink(missing_ok=True)
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return
    for name in names:
        if name == path.name or name.startswith(f"{path.name}."):
            (path.parent / name).unlink(missing_ok=True)


def _name(pod: Pod, container: str, container_id: str) -> str:
    stem = f"{pod.metadata.name}_{pod.metadata.namespace}_{container}-{container_id}"
    return stem[: _NAME_LIMIT - 4] + ".log"
