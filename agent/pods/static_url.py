"""Static pods of a URL (KubeletConfiguration staticPodURL): a Pod or a PodList, asked for now and then.

An answer that cannot be had or read changes nothing: the pods of the last good one run on. An empty answer is
an error too; a PodList without items is how a server says that there are none.

Source: pkg/kubelet/config/http.go (v1.37).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import aiohttp

from agent.api.structs import Pod
from agent.pods.manifest import MAX_BYTES, parse_manifests
from host.clocks import Clock
from host.errors import InputError

log = logging.getLogger(__name__)
TIMEOUT = 10.0


class UrlPods:
    """The pods of one URL. `run()` until cancelled.

    Args:
        headers: sent with each request (staticPodURLHeader).
        every: seconds between two requests (httpCheckFrequency).
        on_put, on_remove: told of pods in the event loop.
        on_complete: called after the first good answer; until then nobody knows what is there.
    """

    def __init__(
        self,
        *,
        url: str,
        headers: Mapping[str, Sequence[str]],
        every: float,
        node_name: str,
        clock: Clock,
        on_put: Callable[[Pod], None],
        on_remove: Callable[[Pod], None],
        on_complete: Callable[[], None],
    ) -> None:
        self._url = url
        self._headers = [(name, value) for name, values in headers.items() for value in values]
        self._every = every
        self._node_name = node_name
        self._clock = clock
        self._on_put = on_put
        self._on_remove = on_remove
        self._on_complete = on_complete
        self._pods: dict[str, Pod] = {}
        self._text: bytes | None = None
        self._problem = ""

    async def run(self) -> None:
        """Ask until cancelled."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT)) as session:
            while True:
                try:
                    text = await self._ask(session)
                    if text != self._text:
                        self._take(text)
                        self._text, self._problem = text, ""
                except (InputError, aiohttp.ClientError, TimeoutError, OSError) as exc:
                    self._complain(str(exc) or type(exc).__name__)
                await self._clock.sleep(self._every)

    async def _ask(self, session: aiohttp.ClientSession) -> bytes:
        async with session.get(self._url, headers=self._headers) as answer:
            if answer.status != 200:
                raise InputError(f"{self._url}: answered {answer.status} {answer.reason}")
            text = await answer.content.read(MAX_BYTES + 1)
            while len(text) <= MAX_BYTES and (more := await answer.content.read(MAX_BYTES + 1)):
                text += more
            if not text:
                raise InputError(f"{self._url}: the answer is empty")
            return text

    def _take(self, text: bytes) -> None:
        now = self._clock.now()
        pods = parse_manifests(text, source=self._url, node_name=self._node_name, now=now)
        wanted = {pod.metadata.uid: pod for pod in pods}
        for uid in self._pods.keys() - wanted.keys():
            self._on_remove(self._pods.pop(uid))
        for uid, pod in wanted.items():
            if uid not in self._pods:
                self._pods[uid] = pod
                self._on_put(pod)
        if self._text is None:
            self._on_complete()

    def _complain(self, problem: str) -> None:
        """Log what is wrong once, not at every try."""
        if problem != self._problem:
            self._problem = problem
            log.warning("static pods not read from their URL: %s", problem)
