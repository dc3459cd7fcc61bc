"""Hostnames, /etc/hosts and resolv.conf."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from podkit import make_pod

from agent.api.structs import HostAlias
from agent.pods.naming import (
    Dns,
    NamingError,
    host_network_hosts_file,
    hostname_and_domain,
    hosts_file,
    kernel_hostname,
    limited,
    limits_exceeded,
    parse_resolv_conf,
    pod_dns,
)
from agent.pods.resolvers import NodeDns
from host.errors import InputError

HOST = Dns(("192.0.2.53",), ("corp.example",), ("timeout:1",))


def names(name: str = "web", **spec: Any) -> tuple[str, str]:
    return hostname_and_domain(make_pod(metadata={"name": name}, spec=spec), "cluster.local")


@pytest.mark.parametrize(
    ("name", "spec", "expected"),
    [
        ("web", {}, ("web", "")),
        ("web", {"hostname": "busybox-1"}, ("busybox-1", "")),
        ("web", {"subdomain": "sub"}, ("web", "sub.default.svc.cluster.local")),
        ("web", {"hostnameOverride": "a.b", "subdomain": "sub"}, ("a.b", "")),
        ("a" * 62 + "-bcd", {}, ("a" * 62, "")),
    ],
)
def test_hostname_and_domain(name: str, spec: dict[str, Any], expected: tuple[str, str]) -> None:
    assert names(name, **spec) == expected


@pytest.mark.parametrize("spec", [{"hostname": "No"}, {"subdomain": "a.b"}, {"hostnameOverride": "_"}])
def test_names_that_dns_does_not_know_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(NamingError):
        names(**spec)


def test_the_kernel_may_get_the_whole_name() -> None:
    pod = make_pod(spec={"subdomain": "sub", "setHostnameAsFQDN": True})
    assert kernel_hostname(pod, "cluster.local") == "web.sub.default.svc.cluster.local"
    long = make_pod(metadata={"name": "a" * 50}, spec={"subdomain": "sub", "setHostnameAsFQDN": True})
    with pytest.raises(NamingError, match="64 characters is the max, 80 characters requested"):
        kernel_hostname(long, "cluster.local")


def test_hosts_file() -> None:
    aliases = [HostAlias(ip="203.0.113.1", hostnames=("db", "db.example"))]
    text = hosts_file(ips=["10.0.0.1"], hostname="web", domain="sub.d.svc.c", aliases=aliases)
    assert text.startswith("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n")
    assert "10.0.0.1\tweb.sub.d.svc.c\tweb\n" in text
    assert text.endswith("\n# Entries added by HostAliases.\n203.0.113.1\tdb\tdb.example\n")
    plain = hosts_file(ips=["10.0.0.1", "fd00::1"], hostname="web", domain="", aliases=[])
    assert plain.endswith("10.0.0.1\tweb\nfd00::1\tweb\n")
    host = host_network_hosts_file("127.0.0.1 me\n", [])
    assert host == "# Kubernetes-managed hosts file (host network).\n127.0.0.1 me\n"


def test_resolv_conf_is_read_as_the_resolver_does() -> None:
    text = "# comment\nnameserver 1.1.1.1\nnameserver ::1 ; x\nsearch a b\nsearch c.example.\n"
    text += "options ndots:2 rotate\n"
    assert parse_resolv_conf(text) == Dns(("1.1.1.1", "::1"), ("c.example",), ("ndots:2", "rotate"))
    assert parse_resolv_conf("search .\nnonsense\n") == Dns()


CLUSTER = Dns(
    ("10.96.0.10",),
    ("default.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"),
    ("ndots:5",),
)


@pytest.mark.parametrize(
    ("spec", "servers", "expected"),
    [
        ({}, ("10.96.0.10",), CLUSTER),
        ({"hostNetwork": True}, ("10.96.0.10",), HOST),
        ({"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}, ("10.96.0.10",), CLUSTER),
        ({"dnsPolicy": "Default"}, ("10.96.0.10",), HOST),
        ({}, (), HOST),
        (
            {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["9.9.9.9"], "searches": ["x"]}},
            ("10.96.0.10",),
            Dns(("9.9.9.9",), ("x",), ()),
        ),
        (
            {"dnsConfig": {"options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}},
            ("10.96.0.10",),
            Dns(CLUSTER.servers, CLUSTER.searches, ("ndots:2", "edns0")),
        ),
    ],
)
def test_pod_dns(spec: dict[str, Any], servers: tuple[str, ...], expected: Dns) -> None:
    made = pod_dns(make_pod(spec=spec), host=HOST, cluster_servers=servers, cluster_domain="cluster.local")
    assert made == expected


def test_no_more_than_a_resolver_reads() -> None:
    config = {"nameservers": ["1.1.1.1", "2.2.2.2", "3.3.3.3"], "searches": [f"s{n}" for n in range(40)]}
    pod = make_pod(spec={"dnsConfig": config})
    made = pod_dns(pod, host=HOST, cluster_servers=["10.96.0.10"], cluster_domain="cluster.local")
    assert len(limited(made).servers) == 3 and len(limited(made).searches) == 32
    nameservers, searches = limits_exceeded(made)
    assert nameservers.endswith("the applied nameserver line is: 10.96.0.10 1.1.1.1 2.2.2.2")
    assert searches.startswith("Search Line limits were exceeded") and " s25" in searches
    assert limits_exceeded(limited(made)) == []


def test_a_stub_resolver_is_no_pods_to_use(tmp_path: Path) -> None:
    stub, behind = tmp_path / "stub", tmp_path / "resolved"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\n")
    dns = NodeDns(str(stub), resolved=behind)
    assert dns().servers == ("127.0.0.53",)
    behind.write_text("nameserver 192.0.2.1\nsearch home.example\n")
    assert dns() == Dns(("192.0.2.1",), ("home.example",))
    own = tmp_path / "own"
    own.write_text("nameserver 127.0.0.1\nnameserver 192.0.2.9\n")
    assert NodeDns(str(own), resolved=behind)().servers == ("127.0.0.1", "192.0.2.9")
    assert NodeDns("", resolved=behind)() == Dns()
    with pytest.raises(InputError, match="cannot be read: no such file"):
        NodeDns(str(tmp_path / "nothing"))


def test_resolvers_are_those_of_now_and_never_none(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 192.0.2.1\n")
    dns = NodeDns(str(file))
    file.write_text("nameserver 192.0.2.2\n")
    assert dns().servers == ("192.0.2.2",)
    file.unlink()
    assert dns().servers == ("192.0.2.2",)
    file.write_text("")
    assert dns() == Dns()
