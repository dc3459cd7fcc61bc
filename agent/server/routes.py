"""The route table of the kubelet API, and what each route asks RBAC for. Pure.

Deny by default: a path that is not in the table does not exist, and a route cannot be written without saying
which subresources of `nodes` it needs. Streams (exec, attach, run, portForward) need the verb `create` even
when they come as GET, because a WebSocket always does: read access to nodes/proxy must not run commands.

Source: k8s.io/kubernetes/pkg/kubelet/server/{server.go, auth.go} (v1.37), KEP-2862 (fine-grained
subresources).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

_VERBS = {
    "GET": "get",
    "HEAD": "get",
    "POST": "create",
    "PUT": "update",
    "PATCH": "patch",
    "DELETE": "delete",
}
_PARAMETER = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Route:
    """One path. Any one of `subresources` allows it; there is always one."""

    methods: frozenset[str]
    pattern: str
    handler: str
    subresources: tuple[str, ...]
    stream: bool = False

    def matches(self, path: str) -> Mapping[str, str] | None:
        """The path's parameters, or None when it is another path."""
        return _match(self.pattern, path)

    def verb(self, method: str) -> str:
        """The RBAC verb."""
        return "create" if self.stream else _VERBS[method]


_GET = frozenset({"GET", "HEAD"})
_STREAM = frozenset({"GET", "POST"})
_POST = frozenset({"POST"})

ROUTES: tuple[Route, ...] = (
    Route(_GET, "/healthz", "healthz", ("healthz", "proxy")),
    Route(_GET, "/healthz/{check}", "healthz", ("healthz", "proxy")),
    Route(_GET, "/pods", "pods", ("pods", "proxy")),
    Route(_GET, "/pods/", "pods", ("pods", "proxy")),
    Route(_GET, "/runningpods/", "running_pods", ("pods", "proxy")),
    Route(_GET, "/configz", "configz", ("configz", "proxy")),
    Route(_GET, "/metrics", "metrics", ("metrics",)),
    Route(_GET, "/metrics/resource", "metrics_resource", ("metrics",)),
    Route(_GET, "/metrics/cadvisor", "metrics_cadvisor", ("metrics",)),
    Route(_GET, "/stats/summary", "stats_summary", ("stats",)),
    Route(_GET, "/containerLogs/{namespace}/{pod}/{container}", "container_logs", ("proxy",)),
    Route(_STREAM, "/exec/{namespace}/{pod}/{container}", "exec", ("proxy",), True),
    Route(_STREAM, "/exec/{namespace}/{pod}/{uid}/{container}", "exec", ("proxy",), True),
    Route(_STREAM, "/attach/{namespace}/{pod}/{container}", "attach", ("proxy",), True),
    Route(_STREAM, "/attach/{namespace}/{pod}/{uid}/{container}", "attach", ("proxy",), True),
    Route(_STREAM, "/portForward/{namespace}/{pod}", "port_forward", ("proxy",), True),
    Route(_STREAM, "/portForward/{namespace}/{pod}/{uid}", "port_forward", ("proxy",), True),
    Route(_POST, "/run/{namespace}/{pod}/{container}", "run", ("proxy",), True),
    Route(_POST, "/run/{namespace}/{pod}/{uid}/{container}", "run", ("proxy",), True),
)

UNKNOWN_SUBRESOURCE = ("proxy",)
"""What an unknown path is checked against before the answer is 404, so that strangers cannot map the
routes."""


@dataclasses.dataclass(frozen=True)
class Match:
    """A request's route and parameters; `route` None: no such path. `allowed` False: not with this method."""

    route: Route | None
    parameters: Mapping[str, str]
    allowed: bool = True


def find(method: str, path: str) -> Match:
    """The route of a request. `path` is decoded once and has no query."""
    other = None
    for route in ROUTES:
        parameters = route.matches(path)
        if parameters is None:
            continue
        if method in route.methods:
            return Match(route, parameters)
        other = Match(route, parameters, allowed=False)
    return other or Match(None, {})


def verb(method: str) -> str:
    """The RBAC verb of a plain request; "" for a method that RBAC has no verb for."""
    return _VERBS.get(method, "")


def _match(pattern: str, path: str) -> Mapping[str, str] | None:
    wanted, given = pattern.split("/"), path.split("/")
    if len(wanted) != len(given):
        return None
    parameters = {}
    for want, word in zip(wanted, given, strict=True):
        parameter = _PARAMETER.fullmatch(want)
        if parameter is None:
            if want != word:
                return None
        elif not word:
            return None
        else:
            parameters[parameter[1]] = word
    return parameters
