"""Every sandbox and container the runtime knows, in memory and as records on disk.

    <state>/sandboxes/<id>/<n>.record
    <state>/containers/<id>/<n>.record

Disk first, then memory, so that a crash in between repeats a step instead of losing one. Records are not
fsynced: a killed daemon loses nothing the kernel has in its page cache, and after a power cut no container is
left for the records to be about (a cut record fails its checksum and is set aside). Each version gets a new
name, because ext4 flushes the data of a file that is renamed over another (auto_da_alloc), which costs 2 ms
against 0.05 ms; the highest number is the truth.

The last two versions stay, and the first one that is not of something in the making is written twice. So when
a record turns out damaged, the one before it has the same identity, configuration and network, and what is
newer (an exit, a stop) is known to the supervisor and the kernel. A folder without any good record is moved
to <state>/damaged, where the last 16 stay for a person to look at; what the kernel has of it is then removed
as an orphan.

Not for: files of the running containers (cri/runtime) and images (cri/images).
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec

from cri.state.records import (
    CONTAINER_KIND,
    RECORD_VERSION,
    SANDBOX_KIND,
    ContainerRecord,
    ContainerState,
    SandboxRecord,
    SandboxState,
)
from host.errors import HostError, InputError, from_oserror
from host.files import CorruptRecord, quarantine, read_record, write_record
from proto.cri import runtime_pb2 as pb

log = logging.getLogger(__name__)

T = TypeVar("T", "Sandbox", "Container")
_SUFFIX = ".record"
_MAX_DAMAGED = 16


class UnknownId(LookupError):
    """No sandbox or container has this id, or this prefix of one."""


@dataclass(eq=False)
class Sandbox:
    """One sandbox: its facts and the lock under which they change."""

    record: SandboxRecord
    config: pb.PodSandboxConfig
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    version: int = 0

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.record.id


@dataclass(eq=False)
class Container:
    """One container: its facts, the lock under which they change, and an event set once it has ended."""

    record: ContainerRecord
    config: pb.ContainerConfig
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    version: int = 0

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.record.id


class Store:
    """The index of sandboxes and containers. All methods belong to the event loop's thread."""

    def __init__(self, state: Path) -> None:
        """Describe a store under this folder; `load` reads it."""
        self.sandboxes: dict[str, Sandbox] = {}
        self.containers: dict[str, Container] = {}
        self._sandbox_root = state / "sandboxes"
        self._container_root = state / "containers"

    def load(self) -> None:
        """Read every record. One that cannot be trusted is set aside and logged, never fatal.

        Raises:
            NewerRecord: a later release has been at work here; nothing has been changed.
        """
        for root in (self._sandbox_root, self._container_root):
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for version, record in _records(self._sandbox_root, SANDBOX_KIND, SandboxRecord):
            config = pb.PodSandboxConfig.FromString(record.config)
            self.sandboxes[record.id] = Sandbox(record, config, version=version)
        for version, found in _records(self._container_root, CONTAINER_KIND, ContainerRecord):
            container = Container(found, pb.ContainerConfig.FromString(found.config), version=version)
            if found.finished_at:
                container.ended.set()
            self.containers[found.id] = container

    def add_sandbox(self, record: SandboxRecord, config: pb.PodSandboxConfig) -> Sandbox:
        """Begin a sandbox: its record is on disk when this returns."""
        sandbox = Sandbox(record, config)
        sandbox.version = _begin(self._sandbox_root, SANDBOX_KIND, record)
        self.sandboxes[record.id] = sandbox
        return sandbox

    def put_sandbox(self, sandbox: Sandbox, record: SandboxRecord) -> None:
        """Replace the facts of a sandbox.

        Raises:
            HostError: the disk refused, and the facts before are still the truth.
        """
        for _ in range(2 if sandbox.record.state is SandboxState.MAKING else 1):
            sandbox.version = _write(self._sandbox_root, SANDBOX_KIND, record, sandbox.version)
        sandbox.record = record

    def note_sandbox(self, sandbox: Sandbox, record: SandboxRecord) -> None:
        """Replace the facts after something has happened: a full disk does not undo it, so memory has it."""
        try:
            self.put_sandbox(sandbox, record)
        except HostError as exc:
            log.error("facts of sandbox %s are in memory only: %s", sandbox.id, exc)
            sandbox.record = record

    def add_container(self, record: ContainerRecord, config: pb.ContainerConfig) -> Container:
        """Begin a container: its record is on disk when this returns."""
        container = Container(record, config)
        container.version = _begin(self._container_root, CONTAINER_KIND, record)
        self.containers[record.id] = container
        return container

    def put_container(self, container: Container, record: ContainerRecord) -> None:
        """Replace the facts of a container, and wake who waits for its end; raises as `put_sandbox`."""
        for _ in range(2 if container.record.state is ContainerState.MAKING else 1):
            container.version = _write(self._container_root, CONTAINER_KIND, record, container.version)
        self._take(container, record)

    def note_container(self, container: Container, record: ContainerRecord) -> None:
        """The same after something has happened, as `note_sandbox`."""
        try:
            self.put_container(container, record)
        except HostError as exc:
            log.error("facts of container %s are in memory only: %s", container.id, exc)
            self._take(container, record)

    def _take(self, container: Container, record: ContainerRecord) -> None:
        container.record = record
        if record.finished_at:
            container.ended.set()

    def drop_sandbox(self, sandbox_id: str) -> None:
        """Forget a sandbox; an unknown one is fine."""
        shutil.rmtree(self._sandbox_root / sandbox_id, ignore_errors=True)
        self.sandboxes.pop(sandbox_id, None)

    def drop_container(self, container_id: str) -> None:
        """Forget a container; an unknown one is fine."""
        shutil.rmtree(self._container_root / container_id, ignore_errors=True)
        self.containers.pop(container_id, None)

    def sandbox(self, id_or_prefix: str) -> Sandbox:
        """The sandbox with this id or unique prefix.

        Raises:
            UnknownId: none has.
            InputError: empty, or several have.
        """
        return _find(self.sandboxes, id_or_prefix, "pod sandbox")

    def container(self, id_or_prefix: str) -> Container:
        """The container with this id or unique prefix; raises as `sandbox`."""
        return _find(self.containers, id_or_prefix, "container")

    def containers_of(self, sandbox_id: str) -> list[Container]:
        """Every container of a sandbox, the oldest first, those being made included."""
        found = [item for item in self.containers.values() if item.record.sandbox_id == sandbox_id]
        return sorted(found, key=lambda item: item.record.created_at)

    def sandbox_folder(self, sandbox_id: str) -> Path:
        """The folder for small files of a sandbox (resolv.conf, hostname)."""
        return self._sandbox_root / sandbox_id


def _find(items: Mapping[str, T], wanted: str, noun: str) -> T:
    if not wanted:
        raise InputError(f"{noun} id is empty")
    if wanted in items:
        return items[wanted]
    matches = [item for key, item in items.items() if key.startswith(wanted)]
    if len(matches) > 1:
        raise InputError(
            f"{noun} id {wanted[:80]!r} is the beginning of {len(matches)} ids; give more digits"
        )
    if not matches:
        raise UnknownId(f"{noun} {wanted[:80]!r} not found")
    return matches[0]


R = TypeVar("R", SandboxRecord, ContainerRecord)


def _begin(root: Path, kind: str, record: SandboxRecord | ContainerRecord) -> int:
    """The folder with the first record in it, or, where the disk refuses, nothing."""
    folder = root / record.id
    try:
        folder.mkdir(mode=0o700, parents=True)
        return _write(root, kind, record, 0)
    except OSError as exc:
        shutil.rmtree(folder, ignore_errors=True)
        raise from_oserror(exc, f"begin record {folder}") from exc


def _write(root: Path, kind: str, record: SandboxRecord | ContainerRecord, version: int) -> int:
    folder = root / record.id
    data = msgspec.to_builtins(record)
    write_record(folder / f"{version + 1}{_SUFFIX}", data, kind=kind, version=RECORD_VERSION, sync=False)
    for old in (version - 1, version - 2):  # two, as a crash may have left the one before as well
        if old > 0:
            (folder / f"{old}{_SUFFIX}").unlink(missing_ok=True)
    return version + 1


def _move_aside(folder: Path) -> Path:
    """Out of the way, and in place of what may be there of an earlier time; the oldest ones make room."""
    target = folder.parents[1] / "damaged" / f"{folder.parent.name}-{folder.name}"
    target.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)
    os.utime(target)
    for old in sorted(target.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-_MAX_DAMAGED]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def _versions(folder: Path) -> list[int]:
    names = [path.name.removesuffix(_SUFFIX) for path in folder.glob(f"*{_SUFFIX}")]
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _records(root: Path, kind: str, model: type[R]) -> Iterator[tuple[int, R]]:
    for folder in sorted(root.iterdir()):
        versions = _versions(folder)
        if not versions and folder.is_dir() and all(path.name.startswith(".") for path in folder.iterdir()):
            shutil.rmtree(folder)  # the daemon was killed before its first record: nothing else was made
            continue
        record = None
        for version in versions:
            path = folder / f"{version}{_SUFFIX}"
            try:
                record = msgspec.convert(read_record(path, kind=kind, version=RECORD_VERSION), model)
            except (CorruptRecord, msgspec.ValidationError) as exc:
                log.error("record set aside as %s: %s", quarantine(path), exc)
                continue
            if record.id == folder.name:
                yield version, record
            break
        if record is None or record.id != folder.name:
            log.error("no good record of %s: moved to %s", folder, _move_aside(folder))
