"""What a connection between pods carries, and how long an answer takes: between two nodes, and on one.

Ours against bridge, host-local and flannel's VXLAN, in one lab, in turns. Both are the same kernel code, so
what can differ is what was configured: MTU, offloads, bridge settings, rules on the way. The benchmark's own
processes send and receive, on sockets opened in the pods' network namespaces; no pod's program is measured.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from deploy.labkit import cgroups
from deploy.labkit.api import Api, ApiError, wait_for
from deploy.labkit.errors import LabError
from deploy.labkit.lab import Lab
from host import netns
from tests.bench.pods import manifest
from tests.bench.report import Figure

NAMESPACE = "bench-traffic"
_PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
ROUNDS, SECONDS, ANSWERS = 7, 1.5, 4000
PORT = 5201
_CHUNK = 1 << 20
_FORK = multiprocessing.get_context("fork")


@dataclass
class Pair:
    """Two pods of one side; gigabits a second and microseconds an answer, of each round."""

    what: str
    client: str
    server: str
    rates: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)


def run(lab: Lab, *, ours: str, stock: str, say: Callable[[str], None]) -> list[Figure]:
    """The figures; adds a second node to each side for the time it takes."""
    others = {ours: f"{ours}b", stock: f"{stock}b"}
    with lab.locked():
        lab.add_node(others[ours])
        lab.add_node(others[stock], kind="stock")
    api = lab.api(keep=True)
    try:
        _make_namespace(api)
        places = _pods(lab, api, {node: others[node] for node in (ours, stock)})
        pairs = {
            node: [
                Pair("between nodes", f"{node}-a", f"{node}-far"),
                Pair("on one node", f"{node}-a", f"{node}-b"),
            ]
            for node in (ours, stock)
        }
        say(f"{ROUNDS} rounds of {SECONDS:g} s and of {ANSWERS} answers for each of four pairs, in turns")
        for turn in range(ROUNDS):
            for node in (ours, stock) if turn % 2 else (stock, ours):
                for pair in pairs[node]:
                    ends = places[pair.client], places[pair.server]
                    pair.rates.append(_rate(*ends))
                    pair.answers.append(_answer_time(*ends))
        return [
            figure for mine, theirs in zip(*pairs.values(), strict=True) for figure in _figures(mine, theirs)
        ]
    finally:
        api.request("DELETE", f"/api/v1/namespaces/{NAMESPACE}")
        api.close()
        with lab.locked():
            for name in others.values():
                lab.remove_node(name)


def _figures(mine: Pair, theirs: Pair) -> list[Figure]:
    def figure(what: str, ours: list[float], stock: list[float], unit: str, *, more: bool) -> Figure:
        return Figure(
            what=f"pod to pod {mine.what}, {what}",
            ours=statistics.median(ours),
            stock=statistics.median(stock),
            unit=unit,
            more_is_better=more,
        )

    return [
        figure("one TCP stream", mine.rates, theirs.rates, "Gbit/s", more=True),
        figure("one answer over TCP", mine.answers, theirs.answers, "us", more=False),
    ]


# --- pods ------------------------------------------------------------------------------------------------


def _make_namespace(api: Api) -> None:
    try:
        api.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    except ApiError as exc:
        if exc.code != 409:
            raise
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    wait_for("the namespace's account", lambda: bool(api.get(account)), seconds=30)


def _pods(lab: Lab, api: Api, nodes: dict[str, str]) -> dict[str, tuple[Path, str]]:
    """{pod: (its network namespace, its address)}: two on each node, one on the node beside it."""
    wanted = {}
    for node, other in nodes.items():
        wanted |= {f"{node}-a": node, f"{node}-b": node, f"{node}-far": other}
    for name, node in wanted.items():
        api.request("POST", _PODS, manifest(name, node))
    found = {}
    for name, node in wanted.items():
        wait_for(f"pod {name}", lambda name=name: _runs(api, name), seconds=120)
        status = api.get(f"{_PODS}/{name}")["status"]
        pid = cgroups.first_process(
            lab.layout.node_cgroup(node), status["containerStatuses"][0]["containerID"]
        )
        if pid is None:
            raise LabError(f"pod {name} has no process")
        found[name] = (Path(f"/proc/{pid}/ns/net"), status["podIP"])
    return found


def _runs(api: Api, name: str) -> bool:
    return bool(api.get(f"{_PODS}/{name}")["status"].get("phase") == "Running")


# --- packets ---------------------------------------------------------------------------------------------


def _rate(client: tuple[Path, str], server: tuple[Path, str]) -> float:
    """Gigabits a second of one TCP stream. Nothing is copied at either end."""
    sending, receiving = _connection(client, server)
    process = _started(lambda: _discard(receiving))
    receiving.close()
    source = os.memfd_create("source")
    try:
        os.ftruncate(source, _CHUNK)
        sent, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < SECONDS:
            sent += os.sendfile(sending.fileno(), source, 0, _CHUNK)
        return sent * 8 / took / 1e9
    finally:
        os.close(source)
        _close(sending)
        _ended(process)


def _discard(sock: socket.socket) -> None:
    buffer = bytearray(_CHUNK)
    while sock.recv_into(buffer, _CHUNK, socket.MSG_TRUNC):
        pass


def _answer_time(client: tuple[Path, str], server: tuple[Path, str]) -> float:
    """The median of how long one byte takes there and back, in microseconds."""
    asking, answering = _connection(client, server)
    process = _started(lambda: _echo(answering))
    answering.close()
    times = []
    try:
        for _ in range(ANSWERS):
            began = time.perf_counter_ns()
            asking.send(b"x")
            asking.recv(1)
            times.append(time.perf_counter_ns() - began)
    finally:
        _close(asking)
        _ended(process)
    return statistics.median(times) / 1e3


def _echo(sock: socket.socket) -> None:
    while data := sock.recv(1):
        sock.send(data)


def _connection(client: tuple[Path, str], server: tuple[Path, str]) -> tuple[socket.socket, socket.socket]:
    """Both ends of a new connection."""
    with netns.open_socket(server[0], socket.AF_INET, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((server[1], PORT))
        listening.listen(1)
        near = netns.open_socket(client[0], socket.AF_INET, socket.SOCK_STREAM)
        near.settimeout(30)
        near.connect((server[1], PORT))
        near.settimeout(None)
        far, _ = listening.accept()
    for end in (near, far):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def _close(sock: socket.socket) -> None:
    """For the other process too, which was forked with it."""
    sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def _started(work: Callable[[], None]) -> multiprocessing.process.BaseProcess:
    process = _FORK.Process(target=work, daemon=True)
    process.start()
    return process


def _ended(process: multiprocessing.process.BaseProcess) -> None:
    process.join(10)
    if process.exitcode is None and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
