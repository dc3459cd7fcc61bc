"""`nodelet why POD` and `nodelet pods`: ask the running agent over its socket and print the answer.

    nodelet why [NAMESPACE/]POD     what happened to a pod, what is in its way and why
    nodelet pods                    every pod as this node sees it

Both work while the API server is away.
"""

from __future__ import annotations

import argparse
import http.client
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from agent.config.flags import Options
from agent.explain import render
from agent.explain.documents import SOCKET, PodReport
from host.errors import InputError

_TIMEOUT = 10.0
_ANSWER_LIMIT = 64 << 20


def main(argv: Sequence[str]) -> int:
    """Run `why` or `pods`; 0 when it worked, 1 when there is no such pod or no agent."""
    arguments = _parser().parse_args(argv)
    found, text = ask(Path(arguments.root_dir) / SOCKET, _path(arguments))
    if arguments.output == "json":
        print(text.decode())
        return 0
    now = time.time()
    if arguments.command == "pods":
        print(render.pods(found, now=now))
        return 0
    if not found:
        raise InputError(f"no pod {arguments.pod} on this node: see nodelet pods")
    print("\n\n".join(render.why(pod, now=now) for pod in found))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nodelet", description="what the node itself knows of its pods")
    commands = parser.add_subparsers(dest="command", required=True)
    why = commands.add_parser("why", help="what happened to a pod, what is in its way and why")
    why.add_argument("pod", metavar="[NAMESPACE/]POD", help="without a namespace: in all of them")
    why.add_argument("-n", "--namespace", default="", help="the pod's namespace")
    listing = commands.add_parser("pods", help="every pod as this node sees it, without the API server")
    for command in (why, listing):
        command.add_argument("-o", "--output", choices=("text", "json"), default="text")
        command.add_argument(
            "--root-dir", default=Options.root_dir, help=f"the agent's root ({Options.root_dir})"
        )
    return parser


def _path(arguments: argparse.Namespace) -> str:
    if arguments.command == "pods":
        return "/pods"
    namespace, _, name = arguments.pod.rpartition("/")
    words = filter(None, ("pods", namespace or arguments.namespace, name))
    return "/" + "/".join(quote(word, safe="") for word in words)


def ask(path: Path, query: str) -> tuple[list[PodReport], bytes]:
    """The agent's answer about pods, decoded and as it came.

    Raises:
        InputError: nobody answers there.
    """
    text = fetch(path, query)
    return msgspec.json.decode(text, type=list[PodReport]), text


def fetch(path: Path, query: str) -> bytes:
    """What the agent answers, as it came.

    Raises:
        InputError: nobody answers there.
    """
    try:
        connection = _Connection(path)
        try:
            connection.request("GET", query)
            answer = connection.getresponse()
            text = answer.read(_ANSWER_LIMIT)
        finally:
            connection.close()
    except FileNotFoundError as exc:
        raise InputError(f"no agent at {path}: start it with nodelet run, or set --root-dir") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise InputError(f"the agent at {path} does not answer: {exc}") from exc
    if answer.status != http.HTTPStatus.OK:
        raise InputError(f"the agent at {path} answers {answer.status} to {query}: is it of this release?")
    return text


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("nodelet", timeout=_TIMEOUT)
        self._path = str(path)

    def connect(self) -> None:
        """Called by `request`. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(self._path)
