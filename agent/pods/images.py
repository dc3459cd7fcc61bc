"""Makes sure a container's image is there, as its pull policy says, and tells the story in kubelet's events.

Back-off between failed pulls is the worker's (it is per pod and image); this module does one attempt. A
limited number of pulls run at the same time; looking an image up is never limited.

Source: pkg/kubelet/images/image_manager.go (v1.37).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from agent.api.structs import Container, Secret
from agent.pods import spec
from agent.pods.convert import ImageFact
from agent.pods.credentials import Credential, credentials
from agent.pods.image_access import ImageAccess
from agent.pods.pull_progress import PullShown, progress_of
from agent.pods.runtime import RuntimeFailure
from agent.pods.settings import PodSettings
from host.clocks import Clock
from proto.cri import runtime_pb2 as pb

_REFERENCE = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?/|\[[0-9a-fA-F:]+\](?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[\w][\w.-]{0,127})?(?:@[a-zA-Z][a-zA-Z0-9]*(?:[-_+.][a-zA-Z][a-zA-Z0-9]*)*:[0-9a-fA-F]{32,})?"
)

Say = Callable[[str, str, str], None]
"""Records an event about the container: type, reason, message."""
Note = Callable[[str], None]
"""Told now and then how far a pull is."""
PROGRESS_SECONDS = 5.0


class ImagePort(Protocol):
    """The runtime calls that images need."""

    async def image(self, ref: str) -> ImageFact | None: ...
    async def pull(
        self, ref: str, *, auth: pb.AuthConfig | None = None, sandbox: pb.PodSandboxConfig | None = None
    ) -> str: ...
    async def pulls(self) -> Sequence[PullShown]: ...


class ImageProblem(Exception):
    """The image cannot be had now. `reason` is the container's waiting reason."""

    def __init__(self, reason: str, message: str, *, later: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.later = later


class ImagePuller:
    """All image look-ups and pulls of a node."""

    def __init__(self, *, runtime: ImagePort, clock: Clock, settings: PodSettings) -> None:
        self._runtime = runtime
        self._clock = clock
        self._access = ImageAccess(
            settings.root, policy=settings.pull_verification, allowlist=settings.preloaded_images
        )
        self.prune = self._access.prune
        self._slots = asyncio.Semaphore(max(1, settings.max_parallel_pulls))

    async def ensure(
        self, container: Container, *, secrets: Iterable[Secret], say: Say, note: Note | None = None
    ) -> ImageFact:
        """The image, present on this node and open to these secrets' pod. Raises ImageProblem."""
        if not _REFERENCE.fullmatch(container.image):
            text = f'Failed to apply default image tag "{container.image}": couldn\'t parse image name'
            say("Warning", "InspectFailed", text)
            raise ImageProblem("InvalidImageName", text)
        name, policy = spec.default_tag(container.image), spec.pull_policy(container)
        shown = credentials(name, secrets)
        if policy != "Always":
            found = await self._look_up(name, say)
            if found is not None and self._access.allowed(name, found.id, shown):
                text = (
                    f'Container image "{container.image}" already present on machine '
                    "and can be accessed by the pod"
                )
                say("Normal", "Pulled", text)
                return found
            if policy == "Never":
                text = f'Container image "{container.image}" is not present with pull policy of Never'
                say("Warning", "ErrImageNeverPull", text)
                raise ImageProblem("ErrImageNeverPull", text)
        return await self._pull(container.image, name, shown, say, note or _silent)

    async def _look_up(self, name: str, say: Say) -> ImageFact | None:
        try:
            return await self._runtime.image(name)
        except RuntimeFailure as exc:
            text = f'Failed to inspect image "{name}": {exc}'
            say("Warning", "InspectFailed", text)
            raise ImageProblem("ImageInspectError", text) from exc

    async def _pull(
        self, written: str, name: str, shown: list[Credential], say: Say, note: Note
    ) -> ImageFact:
        say("Normal", "Pulling", f'Pulling image "{written}"')
        asked = self._clock.monotonic()
        async with self._slots:
            began = self._clock.monotonic()
            self._access.begin(name)
            telling = asyncio.create_task(self._tell_progress(written, name, note), name=f"progress {name}")
            try:
                ref, opened = await self._try_each(written, name, shown, say)
            finally:
                telling.cancel()
            took = self._clock.monotonic() - began
        image = await self._look_up(ref, say) or await self._look_up(name, say)
        if image is None:
            raise ImageProblem("ErrImagePull", f'image "{written}" is not there after its pull succeeded')
        self._access.pulled(name, image.id, opened)
        waited = self._clock.monotonic() - asked
        text = (
            f'Successfully pulled image "{written}" in {_go_duration(took)} '
            f"({_go_duration(waited)} including waiting). Image size: {image.size} bytes."
        )
        say("Normal", "Pulled", text)
        return image

    async def _tell_progress(self, written: str, name: str, note: Note) -> None:
        while True:
            await self._clock.sleep(PROGRESS_SECONDS)
            try:
                found = progress_of(name, await self._runtime.pulls())
            except RuntimeFailure:
                return  # the pull itself tells what is wrong
            if found is not None:
                note(f'pulling image "{written}": {found}')

    async def _try_each(
        self, written: str, name: str, shown: list[Credential], say: Say
    ) -> tuple[str, Credential | None]:
        """Pull with each fitting credential in turn, without one if none fits; what opened it comes back."""
        problem: RuntimeFailure | None = None
        choices: list[Credential | None] = [*shown] or [None]
        for choice in choices:
            try:
                auth = choice.auth if choice is not None else None
                return await self._runtime.pull(name, auth=auth), choice
            except RuntimeFailure as exc:
                problem = exc
        self._access.ended(name)
        say("Warning", "Failed", f'Failed to pull image "{written}": {problem}')
        raise ImageProblem("ErrImagePull", str(problem), later="ImagePullBackOff") from problem


def _silent(_: str) -> None:
    return


def _go_duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms" if seconds < 1 else f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
