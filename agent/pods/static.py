"""Static pods of a directory: one pod a file, run without asking any API.

A file that is not a pod is one clear error that names it; the other files count. A changed file is another
pod (its uid is a hash of its content), so an edit means the old pod ends and the new one starts. Files are
read again when inotify says so, and from time to time in case it said nothing.

Source: pkg/kubelet/config/file.go (v1.37); Kubernetes documentation, "Create static Pods".
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from agent.api.structs import Pod
from agent.pods.manifest import parse_manifest
from host.clocks import Clock, sleep_unless
from host.errors import HostError, InputError
from host.inotify import inotify_open, inotify_watch

log = logging.getLogger(__name__)
RESCAN_SECONDS = 20.0
_CHANGES = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200  # MODIFY CLOSE_WRITE MOVED_FROM MOVED_TO CREATE DELETE


class StaticPods:
    """The pods of one manifest directory (KubeletConfiguration staticPodPath).

    Args:
        folder: the directory; it may come and go.
        on_put, on_remove: told of pods in the event loop.
        on_complete: called once, after the first look.
    """

    def __init__(
        self,
        *,
        folder: Path,
        node_name: str,
        clock: Clock,
        on_put: Callable[[Pod], None],
        on_remove: Callable[[Pod], None],
        on_complete: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._node_name = node_name
        self._clock = clock
        self._on_put = on_put
        self._on_remove = on_remove
        self._on_complete = on_complete
        self._pods: dict[str, Pod] = {}
        self._texts: dict[str, bytes] = {}

    async def run(self) -> None:
        """Follow the directory until cancelled."""
        changed = asyncio.Event()
        fd = inotify_open()
        loop = asyncio.get_running_loop()

        def readable() -> None:
            try:
                os.read(fd, 65536)  # only a wake-up: the scan finds out what changed
            except BlockingIOError:
                return
            changed.set()

        loop.add_reader(fd, readable)
        try:
            self._watch(fd)
            self.scan()
            self._on_complete()
            while True:
                await sleep_unless(self._clock, changed, RESCAN_SECONDS)
                changed.clear()
                self._watch(fd)
                self.scan()
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def _watch(self, fd: int) -> None:
        try:
            inotify_watch(fd, str(self._folder), _CHANGES)
        except HostError as exc:
            log.debug("no manifest directory path=%s error=%s", self._folder, exc)

    def scan(self) -> None:
        """Compare the directory with the pods told so far. A file that cannot be read keeps its pod."""
        try:
            files = {str(p): p for p in sorted(self._folder.iterdir()) if not p.name.startswith(".")}
        except (FileNotFoundError, NotADirectoryError):
            files = {}
        for name in self._pods.keys() - files.keys():
            self._texts.pop(name, None)
            self._on_remove(self._pods.pop(name))
        for name, path in files.items():
            self._scan_file(name, path)

    def _scan_file(self, name: str, path: Path) -> None:
        try:
            if not path.is_file():
                return
            text = path.read_bytes()
        except OSError as exc:
            log.warning("manifest not read path=%s error=%s", path, exc.strerror)
            return
        if self._texts.get(name) == text:
            return
        self._texts[name] = text
        try:
            pod = parse_manifest(text, source=name, node_name=self._node_name, now=self._clock.now())
        except InputError as exc:
            log.error("manifest ignored: %s", exc)
            return
        old = self._pods.get(name)
        self._pods[name] = pod
        if old is not None and old.metadata.uid != pod.metadata.uid:
            self._on_remove(old)
        self._on_put(pod)
