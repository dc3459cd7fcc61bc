"""A small blocking client of the lab's apiserver, from outside: its sockets live in the lab's network.

For the lab's own waiting, for tests and for benchmarks. JSON in, JSON out, no types; not the agent's client,
so that the agent is judged by something else than itself.
"""

from __future__ import annotations

import base64
import http.client
import json
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from deploy.labkit.errors import LabError, TimedOut
from deploy.labkit.layout import API_PORT, CONTROL_ADDRESS
from host import netns

Json = dict[str, Any]


class ApiError(LabError):
    """The apiserver refused; `code` is the HTTP status."""

    def __init__(self, what: str, code: int, message: str) -> None:
        super().__init__(f"{what}: {code} {message}")
        self.code = code


class _Connection(http.client.HTTPSConnection):
    """An HTTPS connection whose socket is made inside a network namespace."""

    def __init__(self, space: str, context: ssl.SSLContext, timeout: float | None) -> None:
        super().__init__(CONTROL_ADDRESS, API_PORT, context=context, timeout=timeout)
        self._space = space
        self._tls = context

    def connect(self) -> None:
        raw = connect(self._space, (self.host, self.port), timeout=self.timeout)
        self.sock = self._tls.wrap_socket(raw, server_hostname=self.host)


def connect(space: str, address: tuple[str, int], *, timeout: float | None = 5.0) -> socket.socket:
    """A TCP connection from inside a network namespace (a path such as /proc/1/ns/net)."""
    raw = netns.open_socket(space, socket.AF_INET, socket.SOCK_STREAM)
    raw.settimeout(timeout)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        raw.connect(address)
    except BaseException:
        raw.close()
        raise
    return raw


class Api:
    """Requests as one user, from one thread.

    Args:
        space: path of the network namespace to connect from.
        kubeconfig: file with embedded certificates, as kubeadm writes it.
        keep: use one connection for all requests, until `close`; else each opens and closes its own.
    """

    def __init__(self, space: str, kubeconfig: Path, *, keep: bool = False) -> None:
        self._space = space
        self._keep = keep
        self._context = _tls_context(kubeconfig)
        self._connection: _Connection | None = None

    def close(self) -> None:
        """Close the connection; the next request opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(self, method: str, path: str, body: Json | None = None, *, kind: str = "json") -> Json:
        """One request; its decoded answer.

        Args:
            kind: content type of the body: json, merge-patch+json, strategic-merge-patch+json.

        Raises:
            ApiError: any status of 400 and more.
            OSError: no connection.
        """
        if self._connection is None:
            self._connection = _Connection(self._space, self._context, 30.0)
        headers = {"Accept": "application/json", "Content-Type": f"application/{kind}"}
        data = None if body is None else json.dumps(body)
        try:
            self._connection.request(method, path, data, headers)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if not self._keep:
            self.close()
        if answer.status >= 400:
            raise ApiError(f"{method} {path}", answer.status, content[:300].decode(errors="replace"))
        try:
            return json.loads(content)
        except ValueError:
            return {"text": content.decode(errors="replace")}

    def get(self, path: str) -> Json:
        """GET."""
        return self.request("GET", path)

    def watch(self, path: str, *, timeout: float = 600.0) -> Iterator[Json]:
        """Events of a watch on a list path, from now on, on a connection of its own.

        Yields events (`type`, `object`) until the server ends the watch; closing the generator ends it too.
        """
        version = self.get(path)["metadata"]["resourceVersion"]
        connection = _Connection(self._space, self._context, timeout)
        joint = "&" if "?" in path else "?"
        try:
            connection.request("GET", f"{path}{joint}watch=1&resourceVersion={version}")
            answer = connection.getresponse()
            while line := answer.readline():
                yield json.loads(line)
        finally:
            connection.close()


def _tls_context(kubeconfig: Path) -> ssl.SSLContext:
    config = yaml.safe_load(kubeconfig.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]

    def pem(entry: Json, key: str) -> bytes:
        return base64.b64decode(entry[key])

    context = ssl.create_default_context(cadata=pem(cluster, "certificate-authority-data").decode())
    with tempfile.NamedTemporaryFile() as both:
        both.write(pem(user, "client-certificate-data") + pem(user, "client-key-data"))
        both.flush()
        context.load_cert_chain(both.name)
    return context


def wait_for(what: str, check: Callable[[], bool], *, seconds: float, every: float = 0.1) -> None:
    """Wait until a check is true; connection errors and refusals of the apiserver count as not yet.

    Raises:
        TimedOut: not in time; says what the last refusal was.
    """
    deadline = time.monotonic() + seconds
    last = ""
    while time.monotonic() < deadline:
        try:
            if check():
                return
        except (OSError, ApiError, http.client.HTTPException) as exc:
            last = f" ({exc})"
        time.sleep(every)
    raise TimedOut(f"{what} did not come about in {seconds:.0f} s{last}")
