"""Addresses of pods: one file per leased address, so that the folder listing is the whole truth.

    <state dir>/<network>/lock                               flock(2) around every change
                         /boot_id                            the boot these leases belong to
                         /last-4, last-6                     where the last search ended
                         /leases/<address>,<container>,<interface>

A lease is made by creating its file and ended by unlinking it, each a single step of the file system, so a
kill at any moment leaves it either there or not. All that matters is in the file's name; its content is a
note for people. Leases of an earlier boot are void, because no pod outlives the machine: nothing needs fsync.

The search goes round the range from where the last one ended, so that an address rests as long as possible
before somebody else gets it. Who asks again gets the same address.

Not for: choosing the range (Node.spec.podCIDRs), or devices (cni.wiring).
"""

from __future__ import annotations

import errno
import ipaddress
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from cni.config import Attachment
from host import files
from host.errors import Exists, NotFound, from_oserror
from host.rtnl import IPAddress, IPInterface, IPNetwork

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_GRACE_SECONDS = 60.0  # a lease this young may belong to an ADD that has not made its devices yet


@dataclass(frozen=True)
class Lease:
    """An address and whose it is; no owner where the file's name cannot be read, which keeps it taken."""

    address: IPAddress
    owner: Attachment | None
    found_as: str = field(default="", compare=False)

    @property
    def file_name(self) -> str:
        """The lease's name on disk."""
        owner = f"{self.owner.container_id},{self.owner.ifname}" if self.owner else ""
        return self.found_as or f"{self.address},{owner}"


def parse_lease(name: str) -> Lease | None:
    """A lease from its file's name; None for a name that does not begin with an address. Pure."""
    address, _, owner = name.partition(",")
    container_id, _, ifname = owner.partition(",")
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return None
    return Lease(found, Attachment(container_id, ifname) if container_id and ifname else None, name)


def choose(subnet: IPNetwork, taken: Collection[IPAddress], last: IPAddress | None) -> IPAddress | None:
    """The next free address after `last`, going round; None when there is none. Pure.

    Never the network's own address (the VXLAN device has it), the gateway or the IPv4 broadcast address.
    """
    low = int(subnet.network_address) + 2
    high = int(subnet.broadcast_address) - (1 if subnet.version == 4 else 0)
    size = high - low + 1
    start = int(last) + 1 - low if last is not None and last.version == subnet.version else 0
    busy = {int(address) for address in taken if address.version == subnet.version}
    for step in range(min(size, len(busy) + 1)):
        candidate = low + (start + step) % size
        if candidate not in busy:
            return subnet.network_address + (candidate - int(subnet.network_address))
    return None


class Leases:
    """The leases of one network of this node. Every method takes the lock itself; safe between processes."""

    def __init__(self, directory: Path, *, boot_id: str, now: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._leases = directory / "leases"
        self._boot_id = boot_id
        self._now = now

    def allocate(
        self,
        owner: Attachment,
        subnets: Iterable[IPNetwork],
        *,
        note: Mapping[str, str] | None = None,
        requested: Collection[IPAddress] = (),
        reserved: Collection[IPAddress] = (),
        is_live: Callable[[Attachment], bool] = lambda owner: True,
        adopt: Callable[[], Iterable[Lease]] = tuple,
    ) -> list[IPInterface] | None:
        """One address of each range for `owner`, or None (and nothing leased) when a range is used up.

        Args:
            owner: gets the same addresses again when it has some already.
            subnets: the ranges, one of each IP family.
            note: text for people, kept in the lease's file.
            requested: addresses it must be, at most one of each range.
            reserved: addresses that somebody outside this folder has.
            is_live: asked about leases when a range is used up: one without live devices is taken back.
            adopt: asked for leases found in the kernel when the folder is new, for instance after somebody
                deleted it under running pods.

        Raises:
            Exists: a requested address belongs to somebody else.
        """
        with self._locked(adopt):
            leases, result = self._read(), []
            made: list[Lease] = []
            for subnet in subnets:
                wanted = next((address for address in requested if address in subnet), None)
                lease = self._own(leases, owner, subnet)
                if lease and wanted and lease.address != wanted:
                    self._unlink([lease])
                    leases.remove(lease)
                    lease = None
                if lease is None and wanted:
                    lease = self._requested(leases, owner, wanted, reserved, made)
                elif lease is None:
                    lease = self._new(leases, owner, subnet, is_live, reserved)
                    if lease is None:
                        self._unlink(made)
                        return None
                if lease not in leases:
                    self._create(lease, note or {})
                    leases.append(lease)
                    made.append(lease)
                result.append(ipaddress.ip_interface((lease.address, subnet.prefixlen)))
            return result

    def release(self, owner: Attachment) -> list[IPAddress]:
        """End all leases of `owner` and return their addresses; none is success."""
        if not self._leases.is_dir():
            return []
        with self._locked():
            mine = [lease for lease in self._read() if lease.owner == owner]
            self._unlink(mine)
            return [lease.address for lease in mine]

    def keep_only(self, valid: Collection[Attachment], kernel: Iterable[Lease] = ()) -> list[Lease]:
        """End every lease whose owner is not in `valid`, and return them.

        `kernel` are leases as the live devices tell them: those of valid owners are added where missing.
        """
        with self._locked():
            leases = self._read()
            ended = [lease for lease in leases if lease.owner not in valid]
            self._unlink(ended)
            there = {lease.address for lease in leases} - {lease.address for lease in ended}
            for lease in kernel:
                if lease.owner in valid and lease.address not in there:
                    self._create(lease, {"adopted": "from the kernel"})
            return ended

    def listed(self) -> list[Lease]:
        """All leases of this boot, by address."""
        if not self._leases.is_dir():
            return []
        with self._locked():
            return sorted(self._read(), key=lambda lease: (lease.address.version, int(lease.address)))

    @contextmanager
    def _locked(self, adopt: Callable[[], Iterable[Lease]] = tuple) -> Iterator[None]:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.locked(self.directory / "lock", wait=True):
            if self._read_text("boot_id") != self._boot_id:
                self._void()
            if not self._leases.is_dir():
                self._leases.mkdir(mode=0o700, exist_ok=True)
                for lease in adopt():
                    self._create(lease, {"adopted": "from the kernel"})
                files.write_atomic(self.directory / "boot_id", self._boot_id.encode(), sync=False)
            yield

    def _void(self) -> None:
        with suppress(FileNotFoundError):
            for name in os.listdir(self._leases):
                os.unlink(self._leases / name)
            self._leases.rmdir()

    def _read_text(self, name: str) -> str:
        try:
            return (self.directory / name).read_text(errors="replace").strip()
        except FileNotFoundError:
            return ""
        except OSError as exc:
            raise from_oserror(exc, f"read {self.directory / name}") from exc

    def _read(self) -> list[Lease]:
        return [lease for name in os.listdir(self._leases) if (lease := parse_lease(name))]

    def _own(self, leases: Iterable[Lease], owner: Attachment, subnet: IPNetwork) -> Lease | None:
        return next((lease for lease in leases if lease.owner == owner and lease.address in subnet), None)

    def _requested(
        self,
        leases: list[Lease],
        owner: Attachment,
        wanted: IPAddress,
        reserved: Collection[IPAddress],
        made: list[Lease],
    ) -> Lease:
        holder = next((lease.owner for lease in leases if lease.address == wanted), None)
        if wanted in {lease.address for lease in leases} or wanted in reserved:
            self._unlink(made)
            whose = holder.container_id if holder else "a pod of another network plugin"
            raise Exists(errno.EEXIST, f"lease {wanted}", f"it belongs to {whose}")
        return Lease(wanted, owner)

    def _new(
        self,
        leases: list[Lease],
        owner: Attachment,
        subnet: IPNetwork,
        is_live: Callable[[Attachment], bool],
        reserved: Collection[IPAddress],
    ) -> Lease | None:
        cursor = f"last-{subnet.version}"
        hint = parse_lease(self._read_text(cursor))
        last = hint.address if hint else None
        found = choose(subnet, [*reserved, *(lease.address for lease in leases)], last)
        if found is None:
            stale = [lease for lease in leases if self._is_stale(lease, is_live)]
            self._unlink(stale)
            leases[:] = [lease for lease in leases if lease not in stale]
            found = choose(subnet, [*reserved, *(lease.address for lease in leases)], last)
        if found is None:
            return None
        self._write_cursor(cursor, found)
        return Lease(found, owner)

    def _write_cursor(self, name: str, address: IPAddress) -> None:
        """In place and of fixed length: much faster than a new file, and only a hint if it is lost."""
        fd = os.open(self.directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, f"{address!s:<40}\n".encode())
        finally:
            os.close(fd)

    def _is_stale(self, lease: Lease, is_live: Callable[[Attachment], bool]) -> bool:
        if lease.owner is not None and is_live(lease.owner):
            return False
        made = (self._leases / lease.file_name).stat().st_mtime
        return self._now() - made > _GRACE_SECONDS

    def _create(self, lease: Lease, note: Mapping[str, str]) -> None:
        path = self._leases / lease.file_name
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise from_oserror(exc, f"lease {path}") from exc
        with suppress(OSError), open(fd, "wb") as file:  # a full disk may cost us the note, not the lease
            file.write(json.dumps(dict(note)).encode())

    def _unlink(self, leases: Iterable[Lease]) -> None:
        for lease in leases:
            with suppress(FileNotFoundError):
                os.unlink(self._leases / lease.file_name)


def read_boot_id(path: Path = BOOT_ID) -> str:
    """The identity of the machine's current boot. Raises NotFound where /proc has none."""
    try:
        return path.read_text().strip()
    except OSError as exc:
        raise NotFound(exc.errno or 0, f"read {path}") from exc
