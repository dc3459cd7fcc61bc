"""Nine pods in three namespaces on two nodes, as the upstream tests of network policies have them, and what
reaches what: TCP and UDP, ports 80 and 81.

The test's own sockets, opened in the pods' network namespaces, serve and ask: a round of 81 connections takes
as long as its slowest answer, and a moment more in which nothing else may answer.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from kit import Cluster, Namespace, container, pod, until

from agent.policy import rules
from host import netns

NAMESPACES, PODS, PORTS = "xyz", "abc", (80, 81)
NODES = {"a": "n1", "b": "n2", "c": "n1"}
PROTOCOLS = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
ANSWER_SECONDS, SILENCE_SECONDS = 2.0, 0.3
Json = dict[str, Any]
Pair = tuple[str, str]
"""(client, server), each "x/a"."""


def names(pattern: str) -> set[str]:
    """The pods of "x/a", "x" (a namespace) or "*"."""
    every = {f"{short}/{name}" for short in NAMESPACES for name in PODS}
    return {one for one in every if pattern in ("*", one, one[0])}


class Matrix:
    """The pods, and what they reach of each other."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        tail = uuid.uuid4().hex[:5]
        self.spaces = {short: Namespace(cluster, f"netpol-{short}-{tail}") for short in NAMESPACES}
        self.ips: dict[str, str] = {}
        self._where: dict[str, Path] = {}
        self._servers: list[socket.socket] = []

    def make(self) -> None:
        """Namespaces labelled ns=x, pods labelled pod=a, ports named serve-80-tcp and so on."""
        ports = [
            {"name": f"serve-{port}-{kind.lower()}", "containerPort": port, "protocol": kind}
            for port in PORTS
            for kind in PROTOCOLS
        ]
        for short, space in self.spaces.items():
            self.cluster.kubectl("create", "namespace", space.name)
            self.cluster.kubectl("label", "namespace", space.name, f"ns={short}")
        for space in self.spaces.values():
            until("its service account", lambda s=space: s.kubectl("get", "sa", "-o", "name"))
            space.apply(*(pod(n, container(ports=ports), node=NODES[n], labels={"pod": n}) for n in PODS))
        for one in sorted(names("*")):
            status = self.spaces[one[0]].wait_running(one[2])["status"]
            self.ips[one] = status["podIP"]
            pid = self.cluster.pid_of(status["containerStatuses"][0]["containerID"], node=NODES[one[2]])
            self._where[one] = Path(f"/proc/{pid}/ns/net")
            self._serve(one)

    def close(self) -> None:
        """Take it all away."""
        for sock in self._servers:
            sock.close()
        for space in self.spaces.values():
            space.kubectl("delete", "pods", "--all", "--grace-period=1", "--wait=false")
        self.cluster.kubectl("delete", "namespace", *(s.name for s in self.spaces.values()), "--wait=false")

    def _serve(self, one: str) -> None:
        for kind in PROTOCOLS.values():
            for port in PORTS:
                sock = netns.open_socket(self._where[one], socket.AF_INET, kind)
                sock.bind((self.ips[one], port))
                sock.setblocking(False)
                if kind == socket.SOCK_STREAM:
                    sock.listen(64)
                self._servers.append(sock)

    # --- policies -----------------------------------------------------------------------------------------

    def enforce(self, *policies: Json) -> list[Json]:
        """Exactly these policies (as `policy` makes them); returns when both nodes' kernels have them."""
        for space in self.spaces.values():
            wanted = [one for one in policies if one["metadata"]["namespace"] == space.name]
            kept = {one["metadata"]["name"] for one in wanted}
            listed = space.kubectl("get", "networkpolicy", "-o", "name").split()
            stale = [name for name in listed if name.partition("/")[2] not in kept]
            if stale:
                space.kubectl("delete", *stale, "--wait=false")
            if wanted:
                space.apply(*wanted)
        until("the policies in both kernels", lambda: self._written(policies))
        return list(policies)

    def _written(self, policies: tuple[Json, ...]) -> bool:
        wanted = [
            {
                rules.policy_chain(direction, f"{meta['namespace']}/{meta['name']}")
                for direction in ("in", "out")
            }
            for meta in (one["metadata"] for one in policies)
        ]
        for node in set(NODES.values()):
            text = self.cluster.node(node, "nft", "list", "table", "inet", rules.TABLE, check=False)
            there = set(re.findall(r"chain ((?:in|out)-\w+) \{", text))
            if not all(there & chains for chains in wanted) or not there <= set().union(*wanted):
                return False
        return True

    def policy(self, short: str, *, pods: Json | None = None, name: str = "", **spec: Any) -> Json:
        """A policy in namespace x, y or z for the pods of a selector (all); name it to change it later."""
        types = [kind for kind in ("Ingress", "Egress") if kind.lower() in spec]
        return {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {
                "name": name or f"p-{uuid.uuid4().hex[:5]}",
                "namespace": self.spaces[short].name,
            },
            "spec": {"podSelector": pods or {}, "policyTypes": types, **spec},
        }

    def in_namespace(self, *shorts: str, operator: str = "In") -> Json:
        """A selector of namespaces by the label that every namespace has."""
        real = [self.spaces[short].name for short in shorts]
        key = "kubernetes.io/metadata.name"
        return {"matchExpressions": [{"key": key, "operator": operator, "values": real}]}

    # --- packets ------------------------------------------------------------------------------------------

    def expect(self, port: int, *exceptions: tuple[str, str, bool], protocol: str = "TCP") -> None:
        """Who reaches whom: everybody, but for these (clients, servers, whether) in their order; a pod always
        reaches itself. Waits until it is so."""
        wanted = {(client, server) for client in names("*") for server in names("*")}
        for clients, servers, reached in exceptions:
            pairs = {(client, server) for client in names(clients) for server in names(servers)}
            wanted = wanted | pairs if reached else wanted - pairs
        wanted |= {(one, one) for one in names("*")}
        self.wait(wanted, port, protocol)

    def wait(self, wanted: set[Pair], port: int, protocol: str = "TCP") -> None:
        """Until these pairs reach each other and no others."""
        end = time.monotonic() + 30
        while (seen := self.seen(port, protocol, wanted)) != wanted:
            if time.monotonic() > end:
                missing, many = sorted(wanted - seen), sorted(seen - wanted)
                raise AssertionError(f"{protocol} {port}: missing {missing}, too many {many}")

    def seen(self, port: int, protocol: str, wanted: set[Pair]) -> set[Pair]:
        """Who reaches whom, found out in one round."""
        kind = PROTOCOLS[protocol]
        token = uuid.uuid4().bytes
        with contextlib.ExitStack() as opened:
            clients = {}
            for client in names("*"):
                for server in names("*"):
                    sock = opened.enter_context(netns.open_socket(self._where[client], socket.AF_INET, kind))
                    sock.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        sock.connect((self.ips[server], port))
                    if kind == socket.SOCK_DGRAM:
                        sock.send(token)
                    clients[sock] = (client, server)
            found: set[Pair] = set()
            end = time.monotonic() + ANSWER_SECONDS
            quiet = False
            while (left := end - time.monotonic()) > 0:
                found |= self._look(clients, left, token, kind)
                if found >= wanted and not quiet:
                    quiet, end = True, time.monotonic() + SILENCE_SECONDS
            return found

    def reached(self, client: str, address: str, port: int, wanted: bool) -> None:
        """Wait until a pod reaches, or does not reach, a TCP port of any address."""

        def connects() -> bool:
            with netns.open_socket(self._where[client], socket.AF_INET, socket.SOCK_STREAM) as sock:
                sock.settimeout(1.0)
                return sock.connect_ex((address, port)) == 0

        what = f"{client} {'reaches' if wanted else 'does not reach'} {address} port {port}"
        until(what, lambda: connects() is wanted, timeout=30)

    def _look(self, clients: dict[socket.socket, Pair], seconds: float, token: bytes, kind: int) -> set[Pair]:
        """Serve, and take answers, once."""
        waiting = list(clients)
        stream = kind == socket.SOCK_STREAM
        readers, writers = ([], waiting) if stream else (waiting, [])
        read, written, _ = select.select([*self._servers, *readers], writers, [], seconds)
        found = set()
        for sock in read:
            if sock in self._servers:
                _answer(sock)
            elif sock.recv(100) == token:
                found.add(clients.pop(sock))
        for sock in written:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.add(clients[sock])
            clients.pop(sock)
        return found


def _answer(server: socket.socket) -> None:
    """Take a connection and end it, or send a datagram back."""
    with contextlib.suppress(BlockingIOError):
        if server.type == socket.SOCK_STREAM:
            server.accept()[0].close()
        else:
            data, sender = server.recvfrom(100)
            server.sendto(data, sender)


def labelled(**labels: str) -> Json:
    """A selector of labels."""
    return {"matchLabels": labels}


def among(key: str, *values: str, operator: str = "In") -> Json:
    """A selector by expression."""
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}
