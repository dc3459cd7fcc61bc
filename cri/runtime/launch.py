"""Starting the spawner: a fresh interpreter with nothing of nodelet-cri in it, run from a sealed copy.

The copy (a sealed memfd) is what /proc/<pid>/exe of supervisors and container inits shows, so that a
container which gets hold of it cannot overwrite the host's interpreter (CVE-2019-5736). `-I -S -B -X utf8`:
no environment variables, no user site, no .pth files, no byte code written.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from cri.runtime import identity, messages, wire
from cri.runtime.security import DEFAULT_CAPABILITIES, MASKED_PATHS, READONLY_PATHS
from cri.runtime.spec import ContainerSpec
from host import failpoints
from host.errors import from_oserror
from host.processes import SAFE_ENV

_ROOT = Path(__file__).resolve().parents[2]
_BOOT = (
    "import sys; sys.path.append(sys.argv[1]); from cri.runtime.spawner import main; main(int(sys.argv[2]))"
)
_F_ADD_SEALS = 1033  # fcntl(2)
# Against further seals, shrinking, growing, and every write but by a mapping of before; there is none.
# F_SEAL_WRITE says the same, and is refused with EBUSY while anybody in the kernel looks at a page.
_F_SEALS = 0x1 | 0x2 | 0x4 | 0x10


class Spawner:
    """The small process that forks supervisors; started again when it has died."""

    def __init__(self) -> None:
        """Nothing is started: see `launch_spawner`."""
        self._sock: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Its process id, 0 when it was never started."""
        return self._process.pid if self._process else 0

    def start(self) -> None:
        """Start the process, in place of one that may be left.

        Raises:
            HostError: it could not be executed.
        """
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = _execute(theirs.fileno())
        except OSError as exc:
            ours.close()
            raise from_oserror(exc, "start the spawner") from exc
        finally:
            theirs.close()
        self._sock = ours
        wire.send_packet(ours, rehearsal_container())

    def spawn(self, folder: bytes, spec: dict[str, Any], connection: int) -> None:
        """Ask for a supervisor that answers on `connection` (a descriptor, which stays the caller's).

        A spawner that was killed is replaced first: `connection` then simply goes to the new one.

        Raises:
            HostError: no spawner can be started.
        """
        request = {"folder": folder, "spec": spec}
        if self._sock is not None and self._process is not None and self._process.poll() is None:
            with suppress(BrokenPipeError, ConnectionResetError):
                wire.send_packet(self._sock, request, (connection,))
                return
        self.start()
        if self._sock is not None:
            wire.send_packet(self._sock, request, (connection,))

    def close(self) -> None:
        """End the process; supervisors stay."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._process is not None:
            self._process.wait()
            self._process = None


def rehearsal_container() -> dict[str, Any]:
    """The container of `rehearsal.rehearse`: on the node's own root, with a command that is a folder."""
    spec = ContainerSpec(
        id="rehearsal",
        sandbox_id="rehearsal",
        argv=("/",),
        lower_dirs=(Path("/"),),
        masked_paths=MASKED_PATHS,
        readonly_paths=READONLY_PATHS,
        capabilities=tuple(DEFAULT_CAPABILITIES),
    )
    places = messages.Places(
        mountpoint=Path("/proc"), shm=None, held_capabilities=identity.held_capabilities()
    )
    return messages.container(spec, places)


def launch_spawner() -> Spawner:
    """Start the spawner (about 20 ms). Call first thing in main(), before grpc is imported.

    Raises:
        HostError: it could not be executed.
    """
    spawner = Spawner()
    spawner.start()
    return spawner


def _execute(fd: int) -> subprocess.Popen[bytes]:
    copy = sealed_copy(Path(sys.executable))
    try:
        argv = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", _BOOT, str(_ROOT), str(fd)]
        return subprocess.Popen(
            argv,
            executable=f"/proc/self/fd/{copy}",
            pass_fds=(fd, copy),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={**SAFE_ENV, **failpoints.environment()},
            cwd="/",
        )
    finally:
        os.close(copy)


def sealed_copy(program: Path) -> int:
    """A memfd with the program's bytes that nobody can change any more; the caller closes it."""
    fd = os.memfd_create("nodelet-python", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with program.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            done = 0
            while done < size:
                done += os.sendfile(fd, source.fileno(), done, size - done)
        fcntl.fcntl(fd, _F_ADD_SEALS, _F_SEALS)
    except OSError as exc:
        os.close(fd)
        raise from_oserror(exc, f"copy {program}") from exc
    return fd
