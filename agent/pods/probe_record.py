"""What a container's probes have decided, on disk, so that a restart of the agent flips nothing.

The API's copy of a pod's status says it too, but not while the API is away, nor for a static pod, nor in the
moment between a decision and its PATCH. One small record beside the container's termination messages; it goes
with the pod's folder. It is not synced: what it tells of does not outlive a power cut either.

Source of the need: KEP-4781, kubernetes/kubernetes issue 100277.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from agent.probes.state import Kind
from host.errors import HostError, NotFound, from_oserror
from host.files import read_record, write_record

log = logging.getLogger(__name__)
_KIND = "probe-states"
_VERSION = 1


def path_in(pod_dir: Path, container: str) -> Path:
    """Where a container's record is. Attempts, the only other names in there, are numbers."""
    return pod_dir / "containers" / container / "probes"


def keep(pod_dir: Path, container: str, container_id: str, states: Mapping[Kind, bool]) -> None:
    """Write what is decided now, in place of what was. A disk that refuses costs only the record."""
    path = path_in(pod_dir, container)
    data = {"containerId": container_id, "states": {str(kind): ok for kind, ok in states.items()}}
    try:
        try:
            path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as exc:
            raise from_oserror(exc, f"make {path.parent}") from exc
        write_record(path, data, kind=_KIND, version=_VERSION, sync=False)
    except HostError as exc:
        log.warning("probe states not kept path=%s error=%s", path, exc)


def kept(pod_dir: Path, container: str, container_id: str) -> dict[Kind, bool] | None:
    """What was decided for this run of the container; None when nothing is known of it."""
    try:
        data = read_record(path_in(pod_dir, container), kind=_KIND, version=_VERSION)
    except NotFound:
        return None
    except HostError as exc:
        log.warning("probe states not read error=%s", exc)
        return None
    if data.get("containerId") != container_id:
        return None
    return {kind: data["states"][kind] for kind in Kind if kind in data["states"]}
