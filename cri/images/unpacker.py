"""Starting the unpack process (`cri.images.unpack`) and reading its answer."""

import json
import sys
from dataclasses import asdict
from typing import Any

from cri.images.apply import Applied
from cri.images.errors import CorruptContent, ImageError, StoreFull
from cri.images.lower import ParentsNeeded
from cri.images.unpack import UnpackRequest
from host import helpers, processes
from host.errors import TimedOut

_TIMEOUT = 3600.0


async def unpack_layer(request: UnpackRequest) -> Applied:
    """Unpack a layer in a process of its own.

    Raises CorruptContent, StoreFull, ParentsNeeded (when the request has none), or ImageError for a failure
    of this machine. The target is left as it is then; the caller removes it.
    """
    argv = [sys.executable, "-I", "-B", "-X", "utf8", "-m", "cri.images.unpack"]
    try:
        done = await helpers.run_async(
            argv, input=json.dumps(asdict(request)).encode(), timeout=_TIMEOUT, check=False
        )
    except TimedOut as exc:
        raise CorruptContent(f"layer {request.blob_digest}: unpacking took too long") from exc
    return _read_answer(request, done)


def _read_answer(request: UnpackRequest, done: processes.Completed) -> Applied:
    what = f"layer {request.blob_digest}"
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as exc:
        tail = done.stderr[-300:].decode(errors="replace").strip()
        raise ImageError(f"{what}: unpack process ended with {done.returncode}: {tail}") from exc
    if "ok" in answer:
        return Applied(**answer["ok"])
    if answer.get("error") == "parents":
        raise ParentsNeeded
    message = f"{what}: {answer.get('message', 'unknown failure')}"
    raise {"corrupt": CorruptContent, "full": StoreFull}.get(answer.get("error", ""), ImageError)(message)
