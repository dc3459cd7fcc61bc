"""How far a pull is, where the runtime tells: nodelet-cri's verbose Status has it as `imagePulls`. Pure."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import msgspec

from agent.api.meta import Struct
from agent.pods.credentials import repository

log = logging.getLogger(__name__)
_MB = 1e6


class PullShown(Struct, frozen=True, kw_only=True):
    """One pull under way."""

    image: str = ""
    layers: int = 0
    layers_done: int = 0
    bytes: int = 0
    bytes_done: int = 0


def pulls_shown(info: Mapping[str, str]) -> tuple[PullShown, ...]:
    """The pulls in a runtime's verbose Status; none from a runtime that does not tell."""
    try:
        return msgspec.json.decode(info.get("imagePulls", "[]"), type=tuple[PullShown, ...])
    except msgspec.DecodeError as exc:
        log.debug("pulls not readable error=%s", exc)
        return ()


def progress_of(image: str, pulls: Iterable[PullShown]) -> str | None:
    """`2 of 5 layers, 12.3 of 45.6 MB` for an image; None while nothing is known of it."""
    for pull in pulls:
        if pull.layers and _full(pull.image) == _full(image):
            done, total = pull.bytes_done / _MB, pull.bytes / _MB
            return f"{pull.layers_done} of {pull.layers} layers, {done:.1f} of {total:.1f} MB"
    return None


def _full(image: str) -> str:
    """The name with registry and path spelled out, and its tag and digest."""
    last = image.rpartition("/")[2]
    marks = [last.index(mark) for mark in (":", "@") if mark in last]
    return repository(image) + (last[min(marks) :] if marks else "")
