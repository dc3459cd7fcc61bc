"""The documents that pass through the agent's socket as JSON. Cheap to import: the commands need no more."""

from __future__ import annotations

import msgspec

SOCKET = "nodelet.sock"
"""The socket's name in the agent's root folder."""


class Blocker(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is in the way. Seconds: since when it is, and until the node tries again."""

    what: str
    cause: str
    since: float | None = None
    until: float | None = None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the timeline; `at` in Unix seconds, `count` repetitions in a row."""

    at: float
    what: str
    seconds: float | None = None
    trouble: bool = False
    count: int = 1


class PodReport(msgspec.Struct, frozen=True, kw_only=True):
    """One pod as its node sees it. `word` is what `kubectl get pods` shows as status."""

    namespace: str
    name: str
    uid: str
    word: str
    ready: int
    containers: int
    restarts: int
    ip: str = ""
    created: float | None = None
    static: bool = False
    undelivered: str = ""
    """Why the API has not taken the last status; empty when it has."""
    blockers: tuple[Blocker, ...] = ()
    timeline: tuple[Line, ...] = ()


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """A name of the cluster: a pod's address, a Service's port, or (kind "address") an address of a node.

    `node` and `host`: the name and address of the node it is on, "" where that is unknown.
    """

    kind: str
    ip: str
    namespace: str = ""
    name: str = ""
    protocol: str = ""
    port: int = 0
    port_name: str = ""
    node: str = ""
    host: str = ""
