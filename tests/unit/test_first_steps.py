"""What a user meets first: checks before anything is made, and log lines that say what is wrong, once."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import textwrap
from pathlib import Path

import pytest
import yaml

from agent import preflight, startup
from agent.api import kubeconfig
from agent.api.errors import Unreachable
from agent.api.kubeconfig import Access
from agent.api.structs import (
    ContainerState,
    ContainerStateTerminated,
    ContainerStateWaiting,
    ContainerStatus,
    PodStatus,
)
from agent.api.transport import HttpTransport
from agent.config import flags, load
from agent.config import kubelet as kubelet_configuration
from agent.config import nodelet as nodelet_configuration
from agent.config.flags import Options
from agent.pods.status_writer import summary
from agent.server.listening import check_free
from host import processes
from host.errors import InputError


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Folders that look like a good machine's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(processes, "which", lambda program: f"/usr/sbin/{program}")
    (tmp_path / "proc").mkdir()
    (tmp_path / "cgroup" / "memory").mkdir(parents=True)
    (tmp_path / "manifests").mkdir()
    return tmp_path


def settings(folder, **changes):
    fields = {"port": 0, "healthzPort": 0}
    options = {"standalone": True, "manifests": str(folder / "manifests"), "root_dir": str(folder / "root")}
    return load.load(Options(fields=fields | changes.pop("fields", {}), **(options | changes)))


def check(folder, **changes):
    preflight.check_machine(settings(folder, **changes), proc=folder / "proc", cgroups=folder / "cgroup")


def test_a_good_machine(machine):
    check(machine)
    assert (machine / "root" / "pki").is_dir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder, patch: patch.setattr(os, "geteuid", lambda: 1000), "must run as root"),
        (lambda folder, patch: (folder / "cgroup" / "memory").rmdir(), "mount cgroup2 there"),
        (lambda folder, patch: patch.setattr(processes, "which", lambda _: None), "apt-get install iptables"),
        (
            lambda folder, patch: (folder / "proc" / "swaps").write_text(
                "Filename Type\n/dev/sda5 partition\n"
            ),
            "swap is on (/dev/sda5)",
        ),
        (lambda folder, patch: (folder / "manifests").rmdir(), "manifests is no directory"),
    ],
)
def test_a_bad_machine_is_left_as_it_is(machine, monkeypatch, spoil, words):
    spoil(machine, monkeypatch)
    with pytest.raises(InputError) as found:
        check(machine)
    assert words in str(found.value)
    assert not (machine / "root").exists()


def test_a_port_in_use_is_named_with_its_field():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(InputError, match=f"healthzPort {port} is in use"):
            check_free("127.0.0.1", port, field="healthzPort")
    check_free("127.0.0.1", port, field="healthzPort")
    with pytest.raises(InputError, match=r"cannot listen on 192\.0\.2\.1 port"):
        check_free("192.0.2.1", port, field="port")


class Server:
    """A transport whose every request fails the same way."""

    def __init__(self, error):
        self._error = error

    async def request(self, method, path, **_):
        raise self._error


async def test_only_a_wrong_certificate_counts_at_start():
    await preflight.check_server(Server(Unreachable("cannot connect")))
    with pytest.raises(InputError, match="certificate-authority"):
        await preflight.check_server(Server(Unreachable("not signed", reason="BadCertificate")))


def test_a_node_alone_has_a_pod_range_and_no_tunnel(machine):
    alone = settings(machine)
    assert startup.lone_node(alone).spec.pod_cidrs == ("10.244.0.0/24",)
    assert (
        startup.lone_node(settings(machine, fields={"podCIDR": "10.1.0.0/24"})).spec.pod_cidr == "10.1.0.0/24"
    )
    assert startup.overlay_settings(alone, ips=["192.0.2.7"]).backend == "host-gw"
    assert startup.overlay_settings(alone, ips=["192.0.2.7"]).mtu == 0
    assert startup.overlay_settings(alone, ips=["127.0.0.1"]).mtu == 1500


async def test_a_server_that_is_away_is_logged_once_and_again_when_it_is_back(caplog):
    caplog.set_level("INFO")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    transport = HttpTransport(Access(f"http://127.0.0.1:{port}"))
    for _ in range(3):
        with pytest.raises(Unreachable):
            await transport.request("GET", "/version")
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    await transport.request("GET", "/version")
    await transport.close()
    server.close()
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(" server=")[0].split(",")[0] for line in lines] == [
        "API server does not answer",
        "API server answers again",
    ]


async def answer(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    await writer.drain()
    writer.close()


def test_a_status_in_one_line():
    waiting = ContainerState(waiting=ContainerStateWaiting(reason="ImagePullBackOff"))
    ended = ContainerState(terminated=ContainerStateTerminated(exit_code=7, reason="Error"))
    status = PodStatus(
        phase="Running",
        pod_ip="10.244.0.2",
        container_statuses=(
            ContainerStatus(name="a", ready=True, restart_count=1),
            ContainerStatus(name="b", state=waiting),
            ContainerStatus(name="c", state=ended, restart_count=2),
        ),
    )
    expected = "phase=Running ready=1/3 ip=10.244.0.2 restarts=3 b=ImagePullBackOff c=Error(7)"
    assert summary(status) == expected


def test_what_the_install_guide_tells_people_to_write_is_accepted():
    folder = Path(__file__).parents[2] / "deploy"
    unit = (folder / "systemd" / "nodelet.service").read_text().replace("\\\n", " ")
    [command] = [line for line in unit.splitlines() if line.startswith("ExecStart=")]
    program, verb, *words = command.removeprefix("ExecStart=").split()
    assert (program, verb, words.pop()) == ("/opt/nodelet/venv/bin/nodelet", "run", "$NODELET_ARGS")
    assert flags.parse(words).bootstrap_kubeconfig
    guide = textwrap.dedent("".join(re.findall(r"^    .*\n|^\n", (folder / "README.md").read_text(), re.M)))
    documents = [yaml.safe_load(part) for part in re.findall(r"^# /.*\n((?:\S.*\n|  .*\n)+)", guide, re.M)]
    access, kubelet = documents
    assert kubeconfig.parse(access, Path("/etc/kubernetes/x")).token
    assert kubelet_configuration.build(kubelet, where="guide").rotate_certificates
    settings = {"proxy": {"mode": "none"}, "overlay": {"backend": "none"}, "cni": {"writeConfig": False}}
    assert not nodelet_configuration.build(settings, where="guide").cni.write_config
