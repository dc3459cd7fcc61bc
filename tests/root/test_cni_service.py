"""The executed plugin and its service: the same results, and what becomes of a command when one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cnikit import call, leases, ports
from lan import Lan, Machine, ping

from cni import errors, launcher
from host import processes
from host.failpoints import VARIABLE

Make = Callable[[str], Path]


@pytest.fixture
def node(new_netns: Make, tmp_path: Path) -> Machine:
    """One node on a LAN of its own."""
    return Lan(new_netns, tmp_path).add_node()


class Plugin:
    """What `nodelet-cni --install` wrote, executed on a node."""

    def __init__(self, node: Machine, folder: Path) -> None:
        self.node, self.socket = node, folder / "cni.sock"
        self.path = launcher.install(folder, socket=self.socket)

    def __call__(self, command: str, name: str, pod: Path | str, **config: Any) -> tuple[int, dict[str, Any]]:
        """The exit status and the object printed."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": str(pod),
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
        }
        stdin = json.dumps(self.node.config(**config)).encode()
        argv = [str(self.path)]
        done = self.node.run(lambda: processes.run(argv, input=stdin, env=environment, check=False))
        assert b"Traceback" not in done.stderr
        return done.returncode, json.loads(done.stdout or b"{}")

    @contextmanager
    def served(self, where: Machine | None = None, **env: str) -> Iterator[Service]:
        """With a service running, on another node where one is given."""
        argv = [sys.executable, "-m", "cni.main", "--serve", "--socket", str(self.socket)]
        log = self.path.with_suffix(f".{len(os.listdir(self.path.parent))}.log")
        found = (where or self.node).run(lambda: Service(argv, env, log))
        try:
            yield found
        finally:
            found.process.kill()
            found.process.wait()


class Service:
    """`nodelet-cni --serve`."""

    def __init__(self, argv: list[str], env: dict[str, str], log: Path) -> None:
        """Start it in this thread's network namespace; it listens afterwards, or has ended."""
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(argv, stderr=stderr, env={**os.environ, **env})
        self._log = log
        while b"serving" not in self.log() and self.process.poll() is None:
            time.sleep(0.01)

    def log(self) -> bytes:
        """What it has said so far."""
        return self._log.read_bytes()


@pytest.fixture
def plugin(node: Machine, tmp_path: Path) -> Plugin:
    return Plugin(node, tmp_path)


def test_served_and_alone_are_the_same(plugin: Plugin, new_netns: Make) -> None:
    pod, other = new_netns("p"), new_netns("q")
    alone = plugin("ADD", "c1", pod)
    with plugin.served() as service:
        served = plugin("ADD", "c2", other)
        assert service.log().count(b"\n") == 1
        assert plugin("CHECK", "c1", pod, prevResult=alone[1]) == (0, {})
        assert ping(other, "10.244.1.1") and ping(other, "10.244.1.2")
        failed = plugin("CHECK", "c2", other, prevResult=alone[1])
        assert plugin("DEL", "c1", pod) == plugin("DEL", "c1", pod) == (0, {})
        assert plugin("STATUS", "", "") == (0, {})
        assert plugin("VERSION", "", "")[1]["cniVersion"] == "1.1.0"
    assert [item["interface"] for item in served[1]["ips"]] == [item["interface"] for item in alone[1]["ips"]]
    assert served[1].keys() == alone[1].keys() and served[0] == alone[0] == 0
    assert failed == plugin("CHECK", "c2", other, prevResult=alone[1])
    assert (failed[0], failed[1]["code"]) == (1, errors.CHECK_FAILED)
    assert leases(plugin.node) == {"10.244.1.3": "c2"}


@pytest.mark.parametrize("step", ["cni_add.leased", "cni_add.wired"])
def test_a_service_that_dies_in_the_middle_of_add(plugin: Plugin, new_netns: Make, step: str) -> None:
    """The runtime is told to try again; its DEL and next ADD are done without the service."""
    pod = new_netns("p")
    with plugin.served(**{VARIABLE: step}) as service:
        status, result = plugin("ADD", "c1", pod)
        assert service.process.wait() == -signal.SIGKILL
    assert (status, result["code"]) == (1, errors.TRY_AGAIN_LATER)
    assert plugin("DEL", "c1", pod) == (0, {})
    assert (leases(plugin.node), ports(plugin.node)) == ({}, set())
    assert plugin("ADD", "c1", pod)[0] == 0
    assert ping(pod, "10.244.1.1")


def test_a_service_that_dies_in_the_middle_of_del(plugin: Plugin, new_netns: Make) -> None:
    pod = new_netns("p")
    assert plugin("ADD", "c1", pod)[0] == 0
    with plugin.served(**{VARIABLE: "cni_del.detached"}):
        assert plugin("DEL", "c1", pod) == (0, {})
    assert (leases(plugin.node), ports(plugin.node)) == ({}, set())


def test_a_service_that_does_not_stir_is_not_waited_for(plugin: Plugin, new_netns: Make) -> None:
    pod = new_netns("p")
    with plugin.served() as service:
        service.process.send_signal(signal.SIGSTOP)
        assert plugin("ADD", "c1", pod)[0] == 0
        service.process.send_signal(signal.SIGCONT)
        assert plugin("DEL", "c1", pod) == (0, {})
        assert service.log().count(b"\n") == 1


def test_a_service_of_another_node_does_nothing_for_this_one(tmp_path: Path, new_netns: Make) -> None:
    lan = Lan(new_netns, tmp_path)
    here, there = lan.add_node(), lan.add_node()
    plugin, pod = Plugin(here, tmp_path), new_netns("p")
    with plugin.served(there):
        assert plugin("ADD", "c1", pod)[0] == 0
    assert len(ports(here)) == 1
    assert ports(there) == set()


def test_a_command_that_is_being_done_is_ended(plugin: Plugin, new_netns: Make) -> None:
    """SIGTERM takes no new command; the caller of a running one, which stops and goes on, has its answer."""
    pod = new_netns("p")
    with plugin.served(**{VARIABLE: "cni_add.leased:stop"}) as service:
        argv, stdin = [str(plugin.path)], json.dumps(plugin.node.config()).encode()
        env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": str(pod), "CNI_IFNAME": "eth0"}
        caller = plugin.node.run(
            lambda: subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        with caller:
            assert caller.stdin is not None and caller.stdout is not None
            caller.stdin.write(stdin)
            caller.stdin.close()
            os.waitid(os.P_PID, service.process.pid, os.WSTOPPED)
            service.process.terminate()
            service.process.send_signal(signal.SIGCONT)
            result = json.loads(caller.stdout.read())
        assert caller.returncode == 0
        assert service.process.wait() == 0
        assert not plugin.socket.exists()
    assert call(plugin.node, "CHECK", "c1", pod, prevResult=result) == {}


def test_one_service_a_socket(plugin: Plugin) -> None:
    with plugin.served() as first, plugin.served() as second:
        assert second.process.wait() == 1
        assert f"another program listens on {plugin.socket}".encode() in second.log()
        assert f"{first.process.pid}".encode() in second.log()


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"CNI_COMMAND=ADD\0", b"\xff\0\0\xff", b"A\0=\0\0{}"])
def test_what_is_no_request_hurts_nobody(plugin: Plugin, new_netns: Make, sent: bytes) -> None:
    talk = (
        "import socket, sys; caller = socket.socket(socket.AF_UNIX); caller.connect(sys.argv[1]);"
        "caller.sendall(sys.stdin.buffer.read()); caller.shutdown(socket.SHUT_WR);"
        "print(b''.join(iter(lambda: caller.recv(4096), b'')))"
    )
    argv = [sys.executable, "-c", talk, str(plugin.socket)]
    with plugin.served() as service:
        answer = plugin.node.run(lambda: processes.run(argv, input=sent)).stdout
        assert answer == b"b'R'\n" or b'"code": ' in answer
        assert plugin("ADD", "c1", new_netns("p"))[0] == 0
        assert b"Traceback" not in service.log()
