"""What the agent looks at before it makes anything, and what it says when that is not right."""

from __future__ import annotations

import os
import socket

import pytest

from agent import preflight, startup
from agent.api.errors import Unreachable
from agent.config import load
from agent.config.flags import Options
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
