"""A pod as the API last told it, on disk, so that an agent that starts while the API is away goes on with it.

    <root>/pods/<uid>/pod                  the object, with the status computed here
    <root>/pods/<uid>/service-variables    the services as its last container start was told of them

Without them an agent would know containers and not what they are for: no probe, no restart, until the API is
back. Only pods that run are taken up from here (see `PodManager`): whether another one may be started is the
API's to say, which may have given it to another node. Where both speak the API is right.

A spec names Secrets and holds none of their content; the records are the owner's alone nevertheless (0600).
They are not synced: what they tell of does not outlive a power cut either. They go with the pod's folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from agent.api.structs import Pod, PodStatus
from host.errors import HostError, NotFound, from_oserror
from host.files import read_record, write_record

log = logging.getLogger(__name__)
_POD, _VARIABLES, _VERSION = "pod", "service-variables", 1
RECORDS = (_POD, _VARIABLES)
"""Names of these records in a pod's folder."""


def differs(old: Pod | None, new: Pod) -> bool:
    """Whether `new` tells anything that neither the record of `old` nor the runtime's facts say.

    Of a status that is when the pod began, its phase, and since when its conditions are as they are: the rest
    is computed from facts at every step.
    """
    if old is None or _lasting(old.status) != _lasting(new.status):
        return True
    if old.spec is new.spec and old.metadata is new.metadata:
        return False
    version = new.metadata.resource_version
    same = msgspec.structs.replace(old.metadata, resource_version=version) == new.metadata
    return not same or old.spec != new.spec


def _lasting(status: PodStatus) -> tuple[object, ...]:
    since = [(each.type, each.status, each.last_transition_time) for each in status.conditions]
    return status.phase, status.start_time, since


def with_status(pod: Pod, status: PodStatus) -> Pod:
    """The pod with the status computed here, which the API may not have yet."""
    return msgspec.structs.replace(pod, status=status)


def keep(folder: Path, pod: Pod, *, make: bool) -> None:
    """Write a pod's record in place of the one before. A disk that refuses costs only the record.

    Args:
        folder: the pod's own directory.
        make: whether to make it where it is missing; without it nothing is written there, which is right for
            a pod whose directory is about to be removed.
    """
    try:
        if make:
            _make(folder)
        _write(folder / _POD, msgspec.to_builtins(pod), kind=_POD)
    except NotFound:
        return
    except HostError as exc:
        log.warning("pod not recorded pod=%s error=%s", pod.metadata.uid, exc)


def kept(root: Path) -> Iterator[Pod]:
    """Every pod recorded below the agent root; a record that cannot be trusted is logged and left out."""
    for path in sorted((root / "pods").glob(f"*/{_POD}")):
        try:
            pod = msgspec.convert(read_record(path, kind=_POD, version=_VERSION), Pod)
        except NotFound:
            continue
        except (HostError, msgspec.ValidationError) as exc:
            log.warning("pod record not readable, waiting for the API path=%s error=%s", path, exc)
            continue
        if pod.metadata.uid == path.parent.name:
            yield pod


def keep_variables(folder: Path, variables: Mapping[str, str]) -> None:
    """Write the service variables of a container that is about to start, unless they are there already."""
    if kept_variables(folder) == variables:
        return
    try:
        _make(folder)
        _write(folder / _VARIABLES, dict(variables), kind=_VARIABLES)
    except HostError as exc:
        log.warning("service variables not recorded path=%s error=%s", folder, exc)


def kept_variables(folder: Path) -> dict[str, str] | None:
    """The service variables of the pod's last container start; None when nothing is known of one."""
    try:
        data = read_record(folder / _VARIABLES, kind=_VARIABLES, version=_VERSION)
        return msgspec.convert(data, dict[str, str])
    except NotFound:
        return None
    except (HostError, msgspec.ValidationError) as exc:
        log.warning("service variables not readable path=%s error=%s", folder, exc)
        return None


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as exc:
        raise from_oserror(exc, f"make {folder}") from exc


def _write(path: Path, data: object, *, kind: str) -> None:
    write_record(path, data, kind=kind, version=_VERSION, sync=False)
