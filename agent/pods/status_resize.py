"""The conditions of a pod's resize, from what waits and what is under way. Pure; part of `status`.

Source: KEP-1287; core/v1 PodResizePending, PodResizeInProgress (API reference v1.37).
"""

from __future__ import annotations

from dataclasses import dataclass

PENDING, IN_PROGRESS = "PodResizePending", "PodResizeInProgress"


@dataclass(frozen=True, kw_only=True)
class ResizeDraft:
    """A condition that is true as long as it is there; `generation` is that of the spec it speaks of."""

    type: str
    reason: str = ""
    message: str = ""
    generation: int = 0


@dataclass(frozen=True, kw_only=True)
class PendingResize:
    """A resize that is asked for and not granted."""

    reason: str
    message: str
    generation: int
    since: float
    """Monotonic seconds."""


def resize_drafts(
    pending: PendingResize | None, *, running: bool, error: str, generation: int
) -> tuple[ResizeDraft, ...]:
    """The conditions of a pod that goes on running.

    Args:
        running: whether a granted resize is not yet in force; `error` is why it failed last.
        generation: that of the spec which was granted.
    """
    drafts = []
    if pending is not None:
        drafts.append(
            ResizeDraft(
                type=PENDING, reason=pending.reason, message=pending.message, generation=pending.generation
            )
        )
    if running:
        reason = "Error" if error else ""
        drafts.append(ResizeDraft(type=IN_PROGRESS, reason=reason, message=error, generation=generation))
    return tuple(drafts)
