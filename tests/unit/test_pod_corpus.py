"""Pods that no API server lets through, as files have them: every field with what breaks paths, lines,
numbers and terminals. None may end in an error that nobody foresaw, or touch other pods.

The fields are found in the structs, so that none is forgotten (the same as tests/root/cri_corpus.py for CRI).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import inspect
from podkit import Node, make_pod, running, settle

from agent.api.structs import Pod
from agent.pods.manifest import parse_manifest
from host.errors import InputError

TEXTS = {
    "empty": "",
    "long": "x" * (64 << 10),
    "nul": "a\0b",
    "odd": "../../\n\x1b]0;x\x07é\u202e",
    "surrogate": "\ud800",
    "variable": "$(A)$(",
    "number": "-1",
}
NUMBERS = (-(2**31) - 1, -1, 0, 2**32, 2**63)
QUANTITIES = ("1e999", "-1", "0.1m", "9223372036854775808", "1Ki Ki", "")
Change = tuple[str, tuple[str | int, ...], Any]


def changes(kind: Any, way: tuple[str | int, ...], seen: set[type]) -> Iterator[Change]:
    """(name, way to the field, value) for every field below a type; of each struct, its first place."""
    name = ".".join(map(str, way))
    if isinstance(kind, inspect.UnionType):
        for each in kind.types:
            yield from changes(each, way, seen)
    elif isinstance(kind, inspect.StructType) and kind.cls not in seen:
        seen.add(kind.cls)
        for field in sorted(kind.fields, key=lambda f: f.encode_name):  # containers before initContainers
            yield from changes(field.type, (*way, field.encode_name), seen)
    elif isinstance(kind, inspect.VarTupleType | inspect.ListType):
        yield from changes(kind.item_type, (*way, 0), seen)
    elif isinstance(kind, inspect.DictType):
        quantities = way[-1] in ("limits", "requests", "overhead", "capacity")
        for text in QUANTITIES if quantities else TEXTS.values():
            yield f"{name}={text[:20]!r}", way, {"memory" if quantities else "key": text}
        yield f"{name} odd key", way, {TEXTS["odd"]: "1"}
    elif isinstance(kind, inspect.StrType):
        for what, text in TEXTS.items():
            yield f"{name} {what}", way, text
    elif isinstance(kind, inspect.IntType | inspect.FloatType):
        for number in NUMBERS:
            yield f"{name} {number}", way, number
    elif isinstance(kind, inspect.AnyType):
        for value in (None, 1, [[]], {"a": {}}):
            yield f"{name} {value!r}", way, value


def built(way: tuple[str | int, ...], value: Any) -> Any:
    for step in reversed(way):
        value = [value] if isinstance(step, int) else {step: value}
    return value


def merged(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: merged(base.get(key), value) for key, value in over.items()}
    if isinstance(base, list) and isinstance(over, list):
        return [merged(old, new) for old, new in zip(base, over, strict=False)] + base[len(over) :]
    return over


SPEC = next(field.type for field in inspect.type_info(Pod).fields if field.encode_name == "spec")
CORPUS = list(changes(SPEC, ("spec",), set()))
CONTAINER = {
    "name": "app",
    "image": "busybox",
    "env": [{"name": "A", "value": "1"}],
    "ports": [{"name": "p", "containerPort": 80}],
}
BASE = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
    "spec": {"containers": [CONTAINER], "nodeName": "n1"},
}


def test_the_corpus_reaches_deep() -> None:
    ways = {way for _, way, _ in CORPUS}
    assert ("spec", "containers", 0, "env", 0, "valueFrom", "configMapKeyRef", "key") in ways
    assert ("spec", "volumes", 0, "hostPath", "path") in ways
    assert len(ways) > 150


@pytest.mark.parametrize("part", range(4))
async def test_each_is_one_clear_error_or_a_pod_that_ends_in_none_nobody_foresaw(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, part: int
) -> None:
    good, ran = make_pod(metadata={"name": "good", "uid": "good"}), 0
    async with running(Node(tmp_path), good) as node:
        for number, (name, way, value) in enumerate(CORPUS[part::4]):
            body = merged(BASE, built(way, value))
            body["metadata"] = {"name": f"web{number}", "namespace": "default", "uid": f"u{number}"}
            try:
                pod = parse_manifest(json.dumps(body).encode(), source="/m/web.yaml", node_name="n1")
            except InputError as exc:
                assert str(exc).startswith("/m/web.yaml: ") and "\n" not in str(exc), name
                continue
            node.manager.put(pod)
            await settle(60)
            problems = [record for record in caplog.records if record.levelno >= logging.ERROR]
            assert not problems, (name, problems[0].exc_text, problems[0].getMessage())
            node.manager.remove(pod)
            ran += 1
        await node.settle()
        assert node.manager.find("default", "good").status.phase == "Running"  # type: ignore[union-attr]
    assert ran > 200
