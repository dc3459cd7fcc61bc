"""Makes sure a container's image is there, as its pull policy says, and tells the story in kubelet's events.

Back-off between failed pulls is the worker's (it is per pod and image); this module does one attempt. A
limited number of pulls run at the same time; looking an image up is never limited.

Source: pkg/kubelet/images/image_manager.go (v1.37).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Protocol

from agent.api.structs import Container, Secret
from agent.pods import spec
from agent.pods.convert import ImageFact
from agent.pods.credentials import credentials
from agent.pods.runtime import RuntimeFailure
from host.clocks import Clock
from proto.cri import runtime_pb2 as pb

_REFERENCE = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::[0-9]+)?/|\[[0-9a-fA-F:]+\](?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[\w][\w.-]{0,127})?(?:@[a-zA-Z][a-zA-Z0-9]*(?:[-_+.][a-zA-Z][a-zA-Z0-9]*)*:[0-9a-fA-F]{32,})?"
)

Say = Callable[[str, str, str], None]
"""Records an event about the container: type, reason, message."""


class ImagePort(Protocol):
    """The runtime calls that images need."""

    async def image(self, ref: str) -> ImageFact | None: ...
    async def pull(
        self, ref: str, *, auth: pb.AuthConfig | None = None, sandbox: pb.PodSandboxConfig | None = None
    ) -> str: ...


class ImageProblem(Exception):
    """The image cannot be had now. `reason` is the container's waiting reason."""

    def __init__(self, reason: str, message: str, *, later: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.later = later


class ImagePuller:
    """All image look-ups and pulls of a node."""

    def __init__(self, *, runtime: ImagePort, clock: Clock, parallel: int) -> None:
        self._runtime = runtime
        self._clock = clock
        self._slots = asyncio.Semaphore(max(1, parallel))

    async def ensure(self, container: Container, *, secrets: Iterable[Secret], say: Say) -> ImageFact:
        """The image, present on this node. Raises ImageProblem."""
        if not _REFERENCE.fullmatch(container.image):
            text = f'Failed to apply default image tag "{container.image}": couldn\'t parse image name'
            say("Warning", "InspectFailed", text)
            raise ImageProblem("InvalidImageName", text)
        name, policy = spec.default_tag(container.image), spec.pull_policy(container)
        if policy != "Always":
            found = await self._look_up(name, say)
            if found is not None:
                text = f'Container image "{container.image}" already present on machine'
                say("Normal", "Pulled", text)
                return found
            if policy == "Never":
                text = f'Container image "{container.image}" is not present with pull policy of Never'
                say("Warning", "ErrImageNeverPull", text)
                raise ImageProblem("ErrImageNeverPull", text)
        return await self._pull(container.image, name, secrets, say)

    async def _look_up(self, name: str, say: Say) -> ImageFact | None:
        try:
            return await self._runtime.image(name)
        except RuntimeFailure as exc:
            text = f'Failed to inspect image "{name}": {exc}'
            say("Warning", "InspectFailed", text)
            raise ImageProblem("ImageInspectError", text) from exc

    async def _pull(self, written: str, name: str, secrets: Iterable[Secret], say: Say) -> ImageFact:
        say("Normal", "Pulling", f'Pulling image "{written}"')
        asked = self._clock.monotonic()
        async with self._slots:
            began = self._clock.monotonic()
            ref = await self._try_each(written, name, credentials(name, secrets), say)
            took = self._clock.monotonic() - began
        image = await self._look_up(ref, say) or await self._look_up(name, say)
        if image is None:
            raise ImageProblem("ErrImagePull", f'image "{written}" is not there after its pull succeeded')
        waited = self._clock.monotonic() - asked
        text = (
            f'Successfully pulled image "{written}" in {_go_duration(took)} '
            f"({_go_duration(waited)} including waiting). Image size: {image.size} bytes."
        )
        say("Normal", "Pulled", text)
        return image

    async def _try_each(self, written: str, name: str, auths: list[pb.AuthConfig], say: Say) -> str:
        """Pull with each fitting credential in turn, without one if none fits."""
        problem: RuntimeFailure | None = None
        choices: list[pb.AuthConfig | None] = [*auths] or [None]
        for auth in choices:
            try:
                return await self._runtime.pull(name, auth=auth)
            except RuntimeFailure as exc:
                problem = exc
        say("Warning", "Failed", f'Failed to pull image "{written}": {problem}')
        raise ImageProblem("ErrImagePull", str(problem), later="ImagePullBackOff") from problem


def _go_duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms" if seconds < 1 else f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
