"""downwardAPI volumes: the pod's own names, labels, annotations and resources as files.

Source of formats: Kubernetes API, core/v1 DownwardAPIVolumeFile; k8s.io/kubernetes/pkg/fieldpath.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from agent.resources.downward import resource_value
from agent.volumes import atomic
from agent.volumes.base import Context, PreparedVolume, Unready
from agent.volumes.config_map import DEFAULT_MODE
from agent.volumes.secret import write_in_memory

if TYPE_CHECKING:
    from agent.api.structs import DownwardAPIVolumeFile, Pod, ResourceFieldSelector, Volume

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.*)'\]", re.DOTALL)
_ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
}


async def set_up(context: Context, volume: Volume) -> PreparedVolume:
    """Write the files.

    Raises:
        Unready: an unknown field, resource or container.
    """
    source = volume.downward_api
    if source is None:
        raise Unready("not a downwardAPI")
    mode = DEFAULT_MODE if source.default_mode is None else source.default_mode
    files = collect(context.pod, source.items, mode=mode, allocatable=context.allocatable)
    changed = await asyncio.to_thread(write_in_memory, context, files)
    return PreparedVolume(
        name=volume.name, host_path=context.directory, read_only=True, live=True, changed=changed
    )


def differs(old: Pod, new: Pod) -> bool:
    """Whether a downwardAPI volume of the pod may show something else than before."""
    projections = (volume.projected.sources for volume in new.spec.volumes if volume.projected is not None)
    shown = any(volume.downward_api is not None for volume in new.spec.volumes) or any(
        source.downward_api is not None for sources in projections for source in sources
    )
    return shown and (
        old.metadata.labels != new.metadata.labels
        or old.metadata.annotations != new.metadata.annotations
        or old.spec.containers != new.spec.containers
    )


def collect(
    pod: Pod, items: Sequence[DownwardAPIVolumeFile], *, mode: int, allocatable: Mapping[str, str]
) -> dict[str, atomic.File]:
    """The files of a downwardAPI source.

    Raises:
        Unready: as `set_up`.
    """
    files = {}
    for item in items:
        if item.field_ref is not None:
            text = field_text(pod, item.field_ref.field_path)
        elif item.resource_field_ref is not None:
            text = resource_text(pod, item.resource_field_ref, allocatable)
        else:
            raise Unready(f"downwardAPI item {item.path!r} has neither fieldRef nor resourceFieldRef")
        file = atomic.File(text.encode(), mode if item.mode is None else item.mode)
        files[atomic.check_path(item.path)] = file
    return files


def field_text(pod: Pod, path: str) -> str:
    """The text of a field path that a volume may use.

    Raises:
        Unready: any other path.
    """
    metadata = pod.metadata
    match = _SUBSCRIPT.fullmatch(path)
    if match is not None:
        values = metadata.labels if match[1] == "labels" else metadata.annotations
        return values.get(match[2], "")
    texts = {
        "metadata.name": metadata.name,
        "metadata.namespace": metadata.namespace,
        "metadata.uid": metadata.uid,
    }
    if path in texts:
        return texts[path]
    if path == "metadata.labels":
        return _lines(metadata.labels)
    if path == "metadata.annotations":
        return _lines(metadata.annotations)
    raise Unready(f"unsupported fieldPath: {path}")


def _lines(values: Mapping[str, str]) -> str:
    return "\n".join(f"{key}={_quoted(value)}" for key, value in sorted(values.items()))


def _quoted(text: str) -> str:
    """A string in Go's quoted syntax, which is what kubelet writes."""
    return '"' + "".join(_escaped(letter) for letter in text) + '"'


def _escaped(letter: str) -> str:
    if letter in _ESCAPES:
        return _ESCAPES[letter]
    if letter.isprintable():
        return letter
    code = ord(letter)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def resource_text(pod: Pod, selector: ResourceFieldSelector, allocatable: Mapping[str, str]) -> str:
    """A container's request or limit in units of the divisor, rounded up.

    Args:
        pod: the pod.
        selector: container, resource such as "limits.memory", divisor.
        allocatable: the node's, for a limit that is not set.

    Raises:
        Unready: an unknown container or resource, or a divisor that is no quantity.
    """
    containers = (*pod.spec.containers, *pod.spec.init_containers)
    container = next((one for one in containers if one.name == selector.container_name), None)
    if container is None:
        raise Unready(f"container {selector.container_name} not found")
    try:
        return resource_value(pod, container, selector.resource, selector.divisor, allocatable)
    except ValueError as exc:
        raise Unready(str(exc)) from exc
