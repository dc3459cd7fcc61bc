"""The unpack process: one layer, one short-lived process, and a worker in it that has no rights.

    daemon (cri.images.unpacker)                 `python -I -m cri.images.unpack`          worker (sandbox)
    unpack_layer(request)   ── stdin JSON ──▶    open blob, target, parents   ── fork ──▶  apply, verify
                                                 devices, overlay marks  ◀─ answer, list ─
                            ◀─ stdout JSON ──    {"ok": …} or {"error": kind, "message": …}

Only the worker reads what strangers wrote. It has a user and a network namespace of its own, the layer being
made is its root directory and all that Landlock lets it write, and its time, memory and files are limited
(`cri.images.sandbox`). Blob digest and DiffID are both checked as the bytes pass.
"""

import errno
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cri.images import sandbox
from cri.images.apply import Applier
from cri.images.decompress import Hashed, LayerSource, chunks
from cri.images.deferred import Deferred, finish
from cri.images.errors import CorruptContent
from cri.images.lower import ParentsNeeded
from cri.images.rootdir import RootDir
from cri.images.tarstream import TarStream
from host import landlock

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FIXED_ALLOWANCE = 4 << 30
_RATIO = 100
_BUILDING = (
    landlock.READ
    | landlock.WRITE_FILE
    | landlock.TRUNCATE
    | landlock.REFER
    | landlock.REMOVE_DIR
    | landlock.REMOVE_FILE
    | landlock.MAKE_CHAR  # whiteouts; other devices are not the worker's to make
    | landlock.MAKE_DIR
    | landlock.MAKE_REG
    | landlock.MAKE_FIFO
    | landlock.MAKE_SYM
)


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
    parents: tuple[str, ...] | None = ()
    """`diff` directories of the layers below, topmost first; None while they are being made."""
    confine: bool = True
    """False only in tests without root."""


def apply_layer(request: UnpackRequest) -> dict[str, Any]:
    """Unpack and verify; the answer for the daemon."""
    with ExitStack() as stack:
        blob = Hashed(stack.enter_context(Path(request.blob).open("rb", buffering=0)))
        root, trash, *parents = roots = [RootDir(path) for path in _directories(request)]
        for opened in roots:
            stack.callback(opened.close)
        content = chunks(blob, sandboxed=request.confine)
        os.umask(0)
        privileged = os.geteuid() == 0
        below = None if request.parents is None else parents
        applier = Applier(root, trash, below, privileged=privileged)

        def work() -> bytes:
            answer = _answered(lambda: _unpack(request, applier, blob=blob, source=source))
            if answer.get("error") == "full" and not os.fstatvfs(root.fd).f_favail:
                answer["message"] += ", no inodes left"
            return json.dumps(answer).encode()

        source = LayerSource(content, max_bytes=_FIXED_ALLOWANCE + _RATIO * request.blob_size)
        if request.confine and privileged:
            rights = {root.fd: _BUILDING, trash.fd: _BUILDING, **{low.fd: landlock.READ for low in parents}}
            answer = json.loads(sandbox.run(work, root=root.fd, rights=rights))
        else:
            answer = json.loads(work())
        if "ok" in answer:
            name = "trusted.overlay.opaque" if privileged else "user.overlay.opaque"
            finish(root, Deferred.from_json(answer.pop("deferred")), opaque_name=name)
        return dict(answer)


def _unpack(request: UnpackRequest, applier: Applier, *, blob: Hashed, source: LayerSource) -> dict[str, Any]:
    with source:
        applied = applier.apply(TarStream(source))
        diff_id = source.finish()
    if blob.digest() != request.blob_digest or blob.count != request.blob_size:
        raise CorruptContent("stored blob does not match its digest")
    if diff_id != request.diff_id:
        raise CorruptContent(f"unpacked content is {diff_id}, the configuration says {request.diff_id}")
    return {"ok": asdict(applied), "deferred": applier.deferred.to_json()}


def _directories(request: UnpackRequest) -> tuple[str, ...]:
    return (f"{request.target}/diff", f"{request.target}/trash", *(request.parents or ()))


def _answered(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What came of some work, failures included, as an answer."""
    try:
        return work()
    except ParentsNeeded:
        return {"error": "parents"}
    except CorruptContent as exc:
        return {"error": "corrupt", "message": str(exc)}
    except MemoryError:
        return {"error": "corrupt", "message": "layer needs more memory than unpacking may take"}
    except sandbox.Broken as exc:
        return {"error": "corrupt", "message": f"layer breaks the unpacking {exc}"}
    except OSError as exc:
        kind = "full" if exc.errno in _FULL else "host"
        return {"error": kind, "message": os.strerror(exc.errno or errno.EIO).lower()}


def main() -> int:
    """Read a request from standard input, answer on standard output."""
    request = UnpackRequest(**json.loads(sys.stdin.buffer.read()))
    sys.stdout.write(json.dumps(_answered(lambda: apply_layer(request))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
