"""A forked process without privileges for work on a stranger's bytes.

    caller (root)                          worker, born in new user, network, IPC, UTS and mount namespaces
    writes its id maps        ── go ───▶   Landlock, chroot, few capabilities, limits; work
    reads until the end       ◀─ answer ─  exit

The user namespace maps every id to itself: the worker may give files to any owner, which layers need, and its
capabilities hold for inodes only. None counts in the machine's own user namespace: no mounts, no devices, no
trusted.* attributes, no keys, no modules. Where the kernel grants no user namespace the same few
capabilities are all it has.
"""

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from host import landlock, syscalls
from host.errors import HostError

_CLONE_NEWUSER = 0x10000000
_NEW = syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWNS
# CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETFCAP
CAPABILITIES = sum(1 << bit for bit in (0, 1, 3, 4, 31))
_MEMORY = 1 << 30
_CPU_SECONDS = 1800
_MAX_ANSWER = 64 << 20


class Broken(Exception):
    """The worker ended without an answer: killed by a limit, or by a mistake in it."""


def run(work: Callable[[], bytes], *, root: int, rights: Mapping[int, int]) -> bytes:
    """Run `work` in a worker whose root directory is `root`, and return its answer.

    The caller must have no threads. Everything the work needs is imported and opened before.

    Args:
        work: returns the answer; may raise nothing but what means a mistake.
        root: descriptor of the folder that becomes `/`.
        rights: descriptors of folders -> Landlock rights below them.

    Raises:
        Broken: there is no answer.
        HostError: the machine does not let us make one.
    """
    go, tell_go = os.pipe()
    answer, tell_answer = os.pipe()
    pid, pidfd = _fork()
    if pid == 0:
        os.close(tell_go)
        os.close(answer)
        _worker(work, root=root, rights=rights, go=go, answer=tell_answer)
    try:
        os.close(go)
        os.close(tell_answer)
        if os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user"):
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{pid}/{kind}").write_text(identity(Path(f"/proc/self/{kind}").read_text()))
        os.write(tell_go, b"g")
        data = _read_all(answer)
    finally:
        os.close(tell_go)
        os.close(answer)
        with suppress(HostError):
            syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not data:
        raise Broken(f"worker ended with {status}")
    return data


def identity(ours: str) -> str:
    """The map that leaves every id as it is, from /proc/self/uid_map: all ids there are, or ours if fewer."""
    return "".join(f"{first} {first} {count}\n" for first, _, count in map(str.split, ours.splitlines()))


def _fork() -> tuple[int, int]:
    for flags in (_CLONE_NEWUSER | _NEW, _NEW):
        with suppress(HostError):
            return syscalls.fork(flags=flags)
    return syscalls.fork()


def _read_all(fd: int) -> bytes:
    data = bytearray()
    while piece := os.read(fd, 1 << 16):
        data += piece
        if len(data) > _MAX_ANSWER:
            raise Broken("worker answers without end")
    return bytes(data)


def _worker(
    work: Callable[[], bytes], *, root: int, rights: Mapping[int, int], go: int, answer: int
) -> NoReturn:
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.read(go, 1) == b"g":
            _confine(root, rights)
            data = memoryview(work())
            while data:
                data = data[os.write(answer, data) :]
        os._exit(0)
    except BaseException:
        # Whatever it was, this process must end here: it is a copy of its caller.
        traceback.print_exc(file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)


def _confine(root: int, rights: Mapping[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_NPROC, (64, 64))
    landlock.restrict(rights)
    os.fchdir(root)
    os.chroot(".")
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    for bit in range(64):  # a bit the kernel does not know ends it
        if not CAPABILITIES >> bit & 1:
            try:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, bit)
            except HostError:
                break
    kept = CAPABILITIES & _bounding_set()
    syscalls.capset(effective=kept, permitted=kept, inheritable=0)


def _bounding_set() -> int:
    """More than this capset(2) would refuse."""
    return sum(
        1 << bit
        for bit in range(64)
        if CAPABILITIES >> bit & 1 and syscalls.prctl(syscalls.PR_CAPBSET_READ, bit) == 1
    )
