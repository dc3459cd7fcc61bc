"""Anything at all as input of the plugin ends in a result or in the specification's error object.

The kernel is left out: devices that nobody has, addresses on a temporary folder. What is real is everything
that looks at what a stranger wrote: environment, configuration, `runtimeConfig`, `prevResult`, GC's list.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cni import entry, errors, main
from cni.wiring import Wire
from host.errors import NotFound
from host.rtnl import Link

COMMANDS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
CODES = {value for name, value in vars(errors).items() if name.isupper()}
GOOD: dict[str, Any] = {
    "cniVersion": "1.1.0",
    "name": "nodelet",
    "type": "nodelet-cni",
    "subnets": ["10.244.1.0/24", "fd00:1::/64"],
    "runtimeConfig": {
        "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": "127.0.0.1"}],
        "bandwidth": {"ingressRate": 1000, "ingressBurst": 1000},
        "ips": ["10.244.1.7/24"],
        "mac": "0a:58:0a:f4:01:07",
        "aliases": ["web"],
        "dns": {"servers": ["10.96.0.10"]},
    },
    "args": {"cni": {"mac": "0a:58:0a:f4:01:07"}},
    "prevResult": {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": "/proc/1/ns/net", "mac": "02:00:00:00:00:01"}],
        "ips": [{"address": "10.244.1.7/24", "gateway": "10.244.1.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {"nameservers": ["10.96.0.10"]},
    },
    "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}],
    "ipMasq": True,
    "mtu": 1450,
    "bridge": "cbr0",
    "clusterCIDRs": ["10.244.0.0/16"],
    "hostLocalDir": "/nowhere",
    "stateDir": "/nowhere",
}
NASTY = ("", "\0", "/a\0b", "\ud800", "../..", "/", "\x1b[0m", "9" * 400, "10.244.1.0/24", "1.1.0", "eth0")

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(NASTY)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON value, its own parts included."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def configurations(draw: st.DrawFn) -> Any:
    """A good configuration in which up to three things are something else, or are not there."""
    config = json.loads(json.dumps(GOOD))
    for path in draw(st.lists(st.sampled_from(list(places(GOOD))), max_size=3)):
        parent = config
        try:
            for key in path[:-1]:
                parent = parent[key]
            if draw(st.booleans()) and isinstance(parent, dict):
                parent.pop(path[-1], None)
            else:
                parent[path[-1]] = draw(st.sampled_from(NASTY) | values)
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    return config


class NoKernel:
    """A node on which no pod is connected and nothing can be."""

    def __init__(self, _netlink: object) -> None: ...

    def obstacle(self, _config: object) -> str:
        return ""

    def attach(self, *_args: object, addresses: Any, **_more: object) -> Wire:
        if len(addresses) > 1:
            raise NotFound(errno.ENOENT, "open the namespace")
        link = Link(7, "x", "veth", "02:00:00:00:00:01", mtu=1450, up=True, master=1)
        return Wire(link, link, "02:00:00:00:00:01")

    def detach(self, _attachment: object) -> None: ...

    def attached(self) -> dict[Any, Any]:
        return {}

    def owners(self) -> set[Any]:
        return set()


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every command away from this machine's devices and rules."""
    monkeypatch.setattr(entry, "Netlink", nullcontext)
    monkeypatch.setattr(entry, "Wiring", NoKernel)
    for name in ("firewall.ensure_once", "hostports.add", "hostports.remove"):
        monkeypatch.setattr(f"cni.{name}", lambda *_args, **_more: None)
    for name in ("check.devices", "hostports.check"):
        monkeypatch.setattr(f"cni.{name}", lambda *_args, **_more: "")


def answer(environment: dict[str, str], stdin: bytes) -> None:
    """Run the plugin, and judge what it says."""
    status, output = main.run(environment, stdin)
    text = json.dumps(output)
    assert len(text) < len(stdin) + 10_000
    if status == 0:
        assert "code" not in output
        return
    assert status == 1
    assert {"cniVersion", "code", "msg"} <= output.keys() <= {"cniVersion", "code", "msg", "details"}
    assert output["code"] in CODES
    assert all(isinstance(output.get(name, ""), str) for name in ("cniVersion", "msg", "details"))
    assert output["msg"]


anything = st.one_of(st.text(max_size=40), st.sampled_from(NASTY))
quick = settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(command=st.sampled_from(COMMANDS), config=configurations())
@example(command="ADD", config={**GOOD, "stateDir": "/a\0b"})
@example(command="ADD", config={**GOOD, "hostLocalDir": "/\ud800"})
@example(command="ADD", config={**GOOD, "subnets": ["10.244.1.0/24"]})
def test_any_configuration(tmp_path: Path, command: str, config: Any) -> None:
    """With all folders below a temporary one."""
    config.setdefault("stateDir", "/state")
    for name in ("stateDir", "hostLocalDir"):
        if isinstance(config.get(name), str) and config[name].startswith("/"):
            config[name] = f"{tmp_path}{config[name]}"
    answer(
        {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/proc/1/ns/net",
            "CNI_ARGS": "K8S_POD_NAME=web",
        },
        json.dumps(config).encode(),
    )


@quick
@given(
    command=st.sampled_from(COMMANDS) | anything,
    container_id=anything,
    ifname=anything,
    netns=anything,
    args=anything,
)
def test_any_environment(
    tmp_path: Path, command: str, container_id: str, ifname: str, netns: str, args: str
) -> None:
    config = {**GOOD, "stateDir": str(tmp_path), "hostLocalDir": str(tmp_path / "none")}
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": container_id,
        "CNI_IFNAME": ifname,
        "CNI_NETNS": netns,
        "CNI_ARGS": args,
    }
    answer(environment, json.dumps(config).encode())


@quick
@given(stdin=st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
@example(stdin=b'{"a": ' * 100_000)
@example(stdin=b"1" * 5000)
@example(stdin=json.dumps({**GOOD, "stateDir": "/proc/self/nowhere"}).encode())
@example(stdin=json.dumps({**GOOD, "stateDir": "/dev/null"}).encode())
def test_any_input(stdin: bytes) -> None:
    environment = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/x"}
    for command in COMMANDS:
        answer({"CNI_COMMAND": command, **environment}, stdin)
