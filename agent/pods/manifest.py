"""Manifests of static pods: YAML or JSON from a file or a URL, read as pods of this node. Pure.

YAML is read safely: no tags, a bounded size, and a bounded number of nodes after aliases are followed,
because a few nested aliases can stand for billions of nodes.

Source: pkg/kubelet/config/common.go, http.go (v1.37).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import yaml

from agent.api import quantity, yamldoc
from agent.api.structs import Pod, PodStatus, Toleration
from agent.api.times import format_time
from agent.pods import spec
from host.errors import InputError

MAX_BYTES = 1 << 20
MAX_NODES = 100_000
FILE, HTTP = "file", "http"
FOREVER = Toleration(operator="Exists", effect="NoExecute")
"""What a pod of a file tolerates, so that it is not ended for the node's troubles."""
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def parse_manifest(text: bytes, *, source: str, node_name: str, now: float = 0.0, origin: str = FILE) -> Pod:
    """The pod of one manifest, as it will run on this node.

    Args:
        text: YAML or JSON.
        source: the file's path, or the URL; part of the uid and of error messages.
        node_name: appended to the pod's name.
        now: Unix seconds, noted as the time it was seen.
        origin: FILE or HTTP, as the pod's annotation has it.

    Raises:
        InputError: the file is no valid pod; the message begins with its path.
    """
    return _pod(_load(text, source), source=source, node_name=node_name, now=now, origin=origin)


def parse_manifests(text: bytes, *, source: str, node_name: str, now: float = 0.0) -> tuple[Pod, ...]:
    """The pod, or the pods of a PodList, that a URL answers. Raises InputError as `parse_manifest`."""
    body = _load(text, source)
    bodies = [body]
    if isinstance(body, dict) and body.get("kind") in ("PodList", "List"):
        items = body.get("items")
        if not isinstance(items, list):
            raise InputError(f"{source}: items of a {body['kind']} must be a list")
        # What is in a list need not say what it is.
        bodies = [{"apiVersion": "v1", "kind": "Pod", **i} if isinstance(i, dict) else i for i in items]
    return tuple(_pod(b, source=source, node_name=node_name, now=now, origin=HTTP) for b in bodies)


def _pod(body: Any, *, source: str, node_name: str, now: float, origin: str) -> Pod:
    if not isinstance(body, dict) or body.get("kind") != "Pod" or body.get("apiVersion") != "v1":
        raise InputError(f"{source}: not a Pod: kind must be Pod and apiVersion v1")
    try:
        json.dumps(body, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as exc:  # YAML can write half of a surrogate pair
        raise InputError(f"{source}: it has text that is not Unicode") from exc
    try:
        pod = msgspec.convert(_with_quantities(body), Pod)
    except (msgspec.ValidationError, RecursionError) as exc:
        raise InputError(f"{source}: {exc}") from exc
    _check(pod, source)
    return _placed(pod, body, source=source, node_name=node_name, now=now, origin=origin)


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
    for container in spec.every_container(pod):
        _check_amounts(container.resources.requests, f"{source}: container {container.name}: requests")
        _check_amounts(container.resources.limits, f"{source}: container {container.name}: limits")
    _check_amounts(pod.spec.overhead, f"{source}: spec.overhead")
    if pod.spec.resources is not None:
        _check_amounts(pod.spec.resources.requests, f"{source}: spec.resources.requests")
        _check_amounts(pod.spec.resources.limits, f"{source}: spec.resources.limits")


def _check_amounts(amounts: Mapping[str, str], where: str) -> None:
    for name, text in amounts.items():
        try:
            amount = quantity.parse(text)
        except ValueError as exc:
            raise InputError(f"{where}: {name[:80]!r}: {exc}") from exc
        if amount < 0:
            raise InputError(f"{where}: {name[:80]!r}: {text} is negative")


def _placed(pod: Pod, body: Any, *, source: str, node_name: str, now: float, origin: str) -> Pod:
    meta = pod.metadata
    canonical = json.dumps(body, sort_keys=True, default=str)
    digest = hashlib.md5(f"{canonical}host:{node_name}{origin}:{source}".encode(), usedforsecurity=False)
    uid = meta.uid or digest.hexdigest()
    notes = {
        **meta.annotations,
        spec.SOURCE_ANNOTATION: origin,
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
    tolerations = pod.spec.tolerations
    if origin == FILE:
        tolerations = (*(t for t in tolerations if t != FOREVER), FOREVER)
    placed = msgspec.structs.replace(
        pod.spec, node_name=node_name, tolerations=tolerations, enable_service_links=True
    )
    return msgspec.structs.replace(pod, metadata=meta, spec=placed, status=PodStatus(phase="Pending"))
