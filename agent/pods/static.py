"""Static pods: manifests in a directory, one pod a file, run without asking any API.

A file that is not a pod is one clear error that names it; the other files count. A changed file is another
pod (its uid is a hash of its content), so an edit means the old pod ends and the new one starts. Files are
read again when inotify says so, and from time to time in case it said nothing.

YAML is read safely: no tags, a bounded file, and a bounded number of nodes after aliases are followed,
because a few nested aliases can stand for billions of nodes.

Source: pkg/kubelet/config/file.go, common.go (v1.37); Kubernetes documentation, "Create static Pods".
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import yaml

from agent.api import yamldoc
from agent.api.structs import Pod, PodStatus, Toleration
from agent.api.times import format_time
from agent.pods import spec
from host.clocks import Clock, sleep_unless
from host.errors import HostError, InputError
from host.inotify import inotify_open, inotify_watch

log = logging.getLogger(__name__)
MAX_BYTES = 1 << 20
MAX_NODES = 100_000
RESCAN_SECONDS = 20.0
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_CHANGES = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200  # MODIFY CLOSE_WRITE MOVED_FROM MOVED_TO CREATE DELETE


def parse_manifest(text: bytes, *, source: str, node_name: str, now: float = 0.0) -> Pod:
    """The pod of one manifest, as it will run on this node.

    Args:
        text: YAML or JSON.
        source: the file's path; part of the uid and of error messages.
        node_name: appended to the pod's name.
        now: Unix seconds, noted as the time it was seen.

    Raises:
        InputError: the file is no valid pod; the message begins with its path.
    """
    body = _load(text, source)
    if not isinstance(body, dict) or body.get("kind") != "Pod" or body.get("apiVersion") != "v1":
        raise InputError(f"{source}: not a Pod: kind must be Pod and apiVersion v1")
    try:
        pod = msgspec.convert(_with_quantities(body), Pod)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise InputError(f"{source}: {exc}") from exc
    _check(pod, source)
    return _placed(pod, body, source=source, node_name=node_name, now=now)


def _load(text: bytes, source: str) -> Any:
    if len(text) > MAX_BYTES:
        raise InputError(f"{source}: larger than {MAX_BYTES} bytes")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise InputError(f"{source}: empty")
            if _weight(node, {}) > MAX_NODES:
                raise InputError(f"{source}: more than {MAX_NODES} values once aliases are followed")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        if isinstance(exc, InputError):
            raise
        raise InputError(f"{source}: not YAML: {yamldoc.fault(exc)}") from exc


def _weight(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes below this one with aliases followed; a node that contains itself weighs too much."""
    key = id(node)
    if key in known:
        return known[key]
    known[key] = MAX_NODES + 1
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    known[key] = 1 + sum(_weight(child, known) for child in children)
    return known[key]


def _with_quantities(value: Any, *, inside: bool = False) -> Any:
    """Numbers among requests, limits and overhead as text, which is how the API reads them too."""
    if isinstance(value, dict):
        return {
            k: _with_quantities(v, inside=inside or k in ("limits", "requests", "overhead"))
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [_with_quantities(item, inside=inside) for item in value]
    if inside and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return value


def _check(pod: Pod, source: str) -> None:
    """What would be dangerous or useless to run: names become paths, so they are checked first."""
    meta = pod.metadata
    if not _NAME.fullmatch(meta.name) or ".." in meta.name:
        raise InputError(f"{source}: metadata.name {meta.name!r} is not a DNS name")
    if meta.namespace and not _LABEL.fullmatch(meta.namespace):
        raise InputError(f"{source}: metadata.namespace {meta.namespace!r} is not a DNS label")
    if meta.uid and not re.fullmatch(r"[0-9a-zA-Z-]{1,64}", meta.uid):
        raise InputError(f"{source}: metadata.uid {meta.uid!r} is not an identifier")
    if not pod.spec.containers:
        raise InputError(f"{source}: spec.containers is empty")
    names = [c.name for c in spec.every_container(pod)]
    for container in spec.every_container(pod):
        if not _LABEL.fullmatch(container.name):
            raise InputError(f"{source}: container name {container.name!r} is not a DNS label")
        if not container.image:
            raise InputError(f"{source}: container {container.name}: image is missing")
    if len(set(names)) != len(names):
        raise InputError(f"{source}: two containers have the same name")
    if pod.spec.service_account_name or pod.spec.ephemeral_containers:
        raise InputError(f"{source}: a static pod cannot have a service account or ephemeral containers")


def _placed(pod: Pod, body: Any, *, source: str, node_name: str, now: float) -> Pod:
    meta = pod.metadata
    canonical = json.dumps(body, sort_keys=True, default=str)
    digest = hashlib.md5(f"{canonical}host:{node_name}file:{source}".encode(), usedforsecurity=False)
    uid = meta.uid or digest.hexdigest()
    notes = {
        **meta.annotations,
        spec.SOURCE_ANNOTATION: "file",
        spec.HASH_ANNOTATION: uid,
        spec.SEEN_ANNOTATION: format_time(now),
    }
    meta = msgspec.structs.replace(
        meta,
        uid=uid,
        name=f"{meta.name}-{node_name.lower()}",
        namespace=meta.namespace or "default",
        annotations=notes,
        deletion_timestamp=None,
        deletion_grace_period_seconds=None,
    )
    forever = Toleration(operator="Exists", effect="NoExecute")
    tolerations = tuple(t for t in pod.spec.tolerations if t != forever)
    placed = msgspec.structs.replace(
        pod.spec, node_name=node_name, tolerations=(*tolerations, forever), enable_service_links=True
    )
    return msgspec.structs.replace(pod, metadata=meta, spec=placed, status=PodStatus(phase="Pending"))


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
