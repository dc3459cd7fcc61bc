"""The unpack process: one layer, one short-lived process with as few rights as unpacking allows.

    daemon (cri.images.unpacker)                 child (`python -I -m cri.images.unpack`)
    unpack_layer(request)   ── stdin JSON ──▶    open blob, target, parents; give up rights; apply
                            ◀─ stdout JSON ──    {"ok": …} or {"error": kind, "message": …}

The child has no network namespace with an interface in it, its root directory is the layer being made,
its capabilities are the handful that owners, devices and overlay marks need, and its CPU time, memory and
file sizes are limited. The blob's digest and the layer's DiffID are both checked as the bytes pass.
"""

import errno
import json
import os
import resource
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cri.images.apply import Applied, Applier
from cri.images.decompress import Hashed, LayerSource, chunks
from cri.images.errors import CorruptContent
from cri.images.rootdir import RootDir
from cri.images.tarstream import TarStream
from host import syscalls
from host.errors import HostError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# CAP_CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SYS_ADMIN (trusted.overlay.*), MKNOD, SETFCAP
_CAPABILITIES = sum(1 << bit for bit in (0, 1, 3, 4, 21, 27, 31))
_MEMORY = 1 << 30
_CPU_SECONDS = 1800
_FIXED_ALLOWANCE = 4 << 30
_RATIO = 100


@dataclass(frozen=True, kw_only=True)
class UnpackRequest:
    """One layer to unpack. All paths are the store's own.

    `target` must hold two empty directories, `diff` for the layer and `trash` for what it displaces.
    """

    blob: str
    blob_digest: str
    blob_size: int
    diff_id: str
    target: str
    parents: tuple[str, ...] = ()
    """`diff` directories of the layers below, topmost first."""
    confine: bool = True
    """False only in tests without root."""


def apply_layer(request: UnpackRequest) -> Applied:
    """The child's work, in this process: unpack and verify; CorruptContent or OSError."""
    with ExitStack() as stack:
        blob = Hashed(stack.enter_context(Path(request.blob).open("rb", buffering=0)))
        roots = [RootDir(path) for path in _directories(request)]
        for root in roots:
            stack.callback(root.close)
        content = chunks(blob)
        os.umask(0)
        if request.confine:
            _confine(roots[0])
        limit = _FIXED_ALLOWANCE + _RATIO * request.blob_size
        source = stack.enter_context(LayerSource(content, max_bytes=limit))
        privileged = os.geteuid() == 0
        applier = Applier(
            roots[0],
            roots[1],
            roots[2:],
            overlay_prefix="trusted.overlay." if privileged else "user.overlay.",
            privileged=privileged,
        )
        applied = applier.apply(TarStream(source))
        diff_id = source.finish()
        if blob.digest() != request.blob_digest or blob.count != request.blob_size:
            raise CorruptContent("stored blob does not match its digest")
        if diff_id != request.diff_id:
            raise CorruptContent(f"unpacked content is {diff_id}, the configuration says {request.diff_id}")
        return applied


def _directories(request: UnpackRequest) -> Sequence[str]:
    return (f"{request.target}/diff", f"{request.target}/trash", *request.parents)


def _confine(root: RootDir) -> None:
    """Give up what unpacking does not need; the layer's directory becomes this process's root."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    if os.geteuid() != 0:
        return
    with suppress(HostError):  # a daemon that may not make namespaces still gets the other limits
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC)
    os.fchdir(root.fd)
    os.chroot(".")
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    kept = _CAPABILITIES & _permitted()
    syscalls.capset(effective=kept, permitted=kept, inheritable=0)


def _permitted() -> int:
    """Capabilities of the bounding set: more than those capset(2) would refuse."""
    last = range(41)  # CAP_CHECKPOINT_RESTORE is 40
    return sum(1 << bit for bit in last if os.geteuid() == 0 and _in_bounding_set(bit))


def _in_bounding_set(bit: int) -> bool:
    try:
        return syscalls.prctl(syscalls.PR_CAPBSET_READ, bit) == 1
    except HostError:
        return False


def main() -> int:
    """Read a request from standard input, answer on standard output."""
    request = UnpackRequest(**json.loads(sys.stdin.buffer.read()))
    answer: dict[str, Any]
    try:
        answer = {"ok": asdict(apply_layer(request))}
    except CorruptContent as exc:
        answer = {"error": "corrupt", "message": str(exc)}
    except OSError as exc:
        kind = "full" if exc.errno in _FULL else "host"
        answer = {"error": kind, "message": os.strerror(exc.errno or errno.EIO).lower()}
    sys.stdout.write(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
