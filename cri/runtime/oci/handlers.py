"""Runtime handlers: the names that a RuntimeClass may choose, each with the OCI runtime behind it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from host.errors import HostError, InputError

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A DNS label (node.k8s.io/v1, RuntimeClass.handler)."""
_FORM = "must be NAME=PATH[,--OPTION…]"
_DELETE_LIMIT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Handler:
    """One external runtime."""

    name: str
    command: tuple[str, ...]
    """Program (an absolute path) and global options."""
    recursive_readonly: bool = False
    """It says of itself that it can make mounts read-only all the way down (KEP-3857)."""


def parse(text: str) -> Handler:
    """A handler from the words of the setting, for instance crun=/usr/bin/crun,--debug.

    Raises:
        InputError: another form.
    """
    name, _, words = text.partition("=")
    program, *options = words.split(",")
    if not _NAME.fullmatch(name):
        raise InputError(f"--runtime-handler {text[:200]!r} {_FORM}, the name a DNS label")
    if not program.startswith("/") or "\0" in text:
        raise InputError(f"--runtime-handler {text[:200]!r} {_FORM}, the path absolute")
    if not all(option.startswith("--") for option in options):
        raise InputError(f"--runtime-handler {text[:200]!r} {_FORM}, options beginning with --")
    return Handler(name=name, command=(program, *options))


def parse_all(texts: Sequence[str]) -> dict[str, Handler]:
    """Handlers by name.

    Raises:
        InputError: another form, or a name twice.
    """
    found: dict[str, Handler] = {}
    for handler in map(parse, texts):
        if handler.name in found:
            raise InputError(f"--runtime-handler {handler.name!r} is given twice")
        found[handler.name] = handler
    return found


def load(texts: Sequence[str]) -> dict[str, Handler]:
    """Handlers by name, with what their runtimes say they can do. Blocks.

    Raises:
        InputError: as `parse_all`, or a program that cannot be executed.
    """
    return {name: _probe(handler) for name, handler in parse_all(texts).items()}


def _probe(handler: Handler) -> Handler:
    """`<runtime> features` (runtime-spec features.md); an old runtime has no such command: no features."""
    from host.processes import run

    program = Path(handler.command[0])
    if not program.is_file() or not os.access(program, os.X_OK):
        raise InputError(f"--runtime-handler {handler.name}: {program} is not a program: install it")
    try:
        done = run([*handler.command, "features"], timeout=10.0, check=False)
        found = json.loads(done.stdout) if done.returncode == 0 else {}
    except (HostError, ValueError):
        found = {}
    return with_features(handler, found)


def with_features(handler: Handler, found: Any) -> Handler:
    """The handler with what its runtime's answer says; whatever is not said is not there."""
    options = found.get("mountOptions") if isinstance(found, Mapping) else None
    return replace(handler, recursive_readonly=isinstance(options, list) and "rro" in options)


def find(handlers: Mapping[str, Handler], name: str) -> Handler | None:
    """The handler of that name; None for the empty name, which is our own runtime.

    Raises:
        InputError: no such handler; the message names those there are.
    """
    if not name:
        return None
    if name not in handlers:
        known = ", ".join(sorted(handlers)) or "none"
        raise InputError(f"no runtime for {name[:80]!r} is configured: runtime handlers are {known}")
    return handlers[name]


def delete_container(command: Sequence[str], bundle: Path) -> None:
    """`delete --force`: let the runtime forget a container; one that it does not know is fine.

    Its failure is none of ours: the cgroup is emptied and the runtime's folder removed after it. Blocks.
    """
    root = bundle / "oci"
    if not root.exists():
        return
    from host.processes import run

    with suppress(HostError):
        argv = [*command, "--root", str(root), "delete", "--force", bundle.name]
        run(argv, timeout=_DELETE_LIMIT_S, check=False)
