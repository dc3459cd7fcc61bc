"""Environments: precedence, references, the downward API, service variables, and what is missing."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from podkit import make_pod

from agent.api.structs import ConfigMap, ObjectMeta, Secret, Service
from agent.pods.env import EnvError, EnvSources, environment, references, service_variables
from agent.resources.downward import resource_value


def config(name: str, **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name=name), data=data)


def secret(name: str, **data: str) -> Secret:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    return Secret(metadata=ObjectMeta(name=name), data=encoded)


def service(name: str, ip: str = "10.96.0.7", namespace: str = "default", **spec: Any) -> Service:
    ports = spec.get("ports", [{"name": "http", "port": 80}])
    body = {"metadata": {"name": name, "namespace": namespace}, "spec": {"clusterIP": ip, "ports": ports}}
    return msgspec.convert(body, Service)


SOURCES = EnvSources(
    config_maps={"cm": config("cm", colour="red", size="xl"), "none": None},
    secrets={"sec": secret("sec", password="s3cr3t"), "none": None},
    pod_ips=("10.0.0.1", "fd00::1"),
    host_ips=("192.0.2.1",),
    allocatable={"cpu": "2", "memory": "4Gi"},
)


def env_of(env: list[dict[str, Any]], *, sources: EnvSources = SOURCES, **container: Any) -> dict[str, str]:
    spec = {"name": "app", "image": "busybox", "env": env, **container}
    pod = make_pod(
        spec={"containers": [spec], "serviceAccountName": "sa"},
        metadata={"labels": {"app": "web"}, "annotations": {"note": "hi"}},
    )
    return environment(pod, pod.spec.containers[0], sources)


def test_later_values_win_and_see_the_earlier_ones() -> None:
    env = env_of(
        [
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)$(COLOUR)$(NONE)$$(A)"},
            {"name": "A", "value": "2"},
        ],
        envFrom=[{"prefix": "", "configMapRef": {"name": "cm"}}],
    )
    assert env["A"] == "2" and env["B"] == "1$(COLOUR)$(NONE)$(A)" and env["colour"] == "red"


def test_whole_objects_with_a_prefix_and_later_ones_win() -> None:
    env = env_of(
        [], envFrom=[{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "sec"}}]
    )
    assert env == {"P_colour": "red", "P_size": "xl", "password": "s3cr3t"}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"configMapKeyRef": {"name": "none", "key": "k"}}, 'configmap "none" not found'),
        ({"secretKeyRef": {"name": "none", "key": "k"}}, 'secret "none" not found'),
        (
            {"configMapKeyRef": {"name": "cm", "key": "k"}},
            "couldn't find key k in ConfigMap default/cm",
        ),
        ({"secretKeyRef": {"name": "sec", "key": "k"}}, "couldn't find key k in Secret default/sec"),
        ({"fieldRef": {"fieldPath": "spec.nope"}}, "unsupported fieldPath: spec.nope"),
    ],
)
def test_what_is_missing_is_named_and_optional_is_left_out(source: dict[str, Any], text: str) -> None:
    with pytest.raises(EnvError, match="^" + text.replace("(", r"\(")):
        env_of([{"name": "X", "valueFrom": source}])
    kind = next(iter(source))
    if kind != "fieldRef":
        optional = {kind: {**source[kind], "optional": True}}
        assert "X" not in env_of([{"name": "X", "valueFrom": optional}])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web"),
        ("metadata.namespace", "default"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['note']", "hi"),
        ("metadata.annotations['absent']", ""),
        ("spec.nodeName", "n1"),
        ("spec.serviceAccountName", "sa"),
        ("status.hostIP", "192.0.2.1"),
        ("status.podIP", "10.0.0.1"),
        ("status.podIPs", "10.0.0.1,fd00::1"),
    ],
)
def test_fields(path: str, value: str) -> None:
    assert env_of([{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}])["X"] == value


@pytest.mark.parametrize(
    ("resource", "divisor", "value"),
    [
        ("limits.cpu", "", "1"),
        ("limits.cpu", "1m", "500"),
        ("limits.memory", "1Mi", "64"),
        ("requests.memory", "", str(64 << 20)),
        ("limits.ephemeral-storage", "", "0"),
        ("limits.hugepages-2Mi", "", "0"),
    ],
)
def test_resources(resource: str, divisor: str, value: str) -> None:
    ref = {"resource": resource, "divisor": divisor or "0"}
    limits = {"limits": {"cpu": "500m", "memory": "64Mi"}}
    got = env_of([{"name": "X", "valueFrom": {"resourceFieldRef": ref}}], resources=limits)
    assert got["X"] == value


@pytest.mark.parametrize(
    ("resource", "value"),
    [
        ("limits.cpu", "2"),
        ("limits.memory", str(4 << 30)),
        ("requests.cpu", "0"),
        ("limits.hugepages-2Mi", "0"),
    ],
)
def test_unset_limits_are_the_nodes(resource: str, value: str) -> None:
    """But for huge pages: a container without a limit has none."""
    ref = {"resource": resource, "divisor": "0"}
    assert env_of([{"name": "X", "valueFrom": {"resourceFieldRef": ref}}])["X"] == value


@pytest.mark.parametrize(
    ("asked", "value"), [({"cpu": "1"}, "1"), ({"cpu": "0"}, "2"), ({"memory": "1Gi"}, "2")]
)
def test_a_limit_of_the_pod_comes_before_the_nodes(asked: dict[str, str], value: str) -> None:
    container = {"name": "app", "image": "busybox"}
    pod = make_pod(spec={"containers": [container], "resources": {"limits": asked}})
    found = resource_value(pod, pod.spec.containers[0], "limits.cpu", "0", {"cpu": "2"})
    assert found == value


@pytest.mark.parametrize(
    ("resource", "divisor"), [("limits.magic", ""), ("magic.cpu", ""), ("limits.cpu", "z")]
)
def test_resources_that_are_refused(resource: str, divisor: str) -> None:
    ref = {"resource": resource, "divisor": divisor}
    with pytest.raises(EnvError):
        env_of([{"name": "X", "valueFrom": {"resourceFieldRef": ref}}])


def test_service_variables() -> None:
    web = service(
        "my-web", ports=[{"name": "http", "port": 80}, {"port": 53, "protocol": "UDP", "name": "dns"}]
    )
    got = service_variables("default", [web], links=True)
    assert got == {
        "MY_WEB_SERVICE_HOST": "10.96.0.7",
        "MY_WEB_SERVICE_PORT": "80",
        "MY_WEB_SERVICE_PORT_HTTP": "80",
        "MY_WEB_SERVICE_PORT_DNS": "53",
        "MY_WEB_PORT": "tcp://10.96.0.7:80",
        "MY_WEB_PORT_80_TCP": "tcp://10.96.0.7:80",
        "MY_WEB_PORT_80_TCP_PROTO": "tcp",
        "MY_WEB_PORT_80_TCP_PORT": "80",
        "MY_WEB_PORT_80_TCP_ADDR": "10.96.0.7",
        "MY_WEB_PORT_53_UDP": "udp://10.96.0.7:53",
        "MY_WEB_PORT_53_UDP_PROTO": "udp",
        "MY_WEB_PORT_53_UDP_PORT": "53",
        "MY_WEB_PORT_53_UDP_ADDR": "10.96.0.7",
    }


def test_which_services_a_pod_sees() -> None:
    master = service("kubernetes", "10.96.0.1")
    others = [service("here", namespace="shop"), service("headless", "None", "shop"), service("there")]
    assert "HERE_SERVICE_HOST" in service_variables("shop", [master, *others], links=True)
    without = service_variables("shop", [master, *others], links=False)
    assert {name.split("_")[0] for name in without} == {"KUBERNETES"}
    assert "THERE_SERVICE_HOST" not in service_variables("shop", others, links=True)
    assert not any(name.startswith("HEADLESS") for name in service_variables("shop", others, links=True))


def test_own_variables_win_over_services_and_may_refer_to_them() -> None:
    sources = EnvSources(services=[service("db")])
    env = env_of(
        [{"name": "DB_SERVICE_PORT", "value": "1"}, {"name": "URL", "value": "$(DB_SERVICE_HOST):5432"}],
        sources=sources,
    )
    assert env["DB_SERVICE_PORT"] == "1" and env["URL"] == "10.96.0.7:5432"


def test_nul_bytes_are_refused() -> None:
    sources = EnvSources(config_maps={"cm": config("cm", bad="a\0b")})
    with pytest.raises(EnvError, match="NUL"):
        env_of([], sources=sources, envFrom=[{"configMapRef": {"name": "cm"}}])


def test_references_names_every_object() -> None:
    pod = make_pod(
        spec={
            "containers": [
                {
                    "name": "app",
                    "image": "x",
                    "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}],
                    "env": [
                        {"name": "X", "valueFrom": {"secretKeyRef": {"name": "c", "key": "k"}}},
                        {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "d", "key": "k"}}},
                    ],
                }
            ]
        }
    )
    assert references(pod.spec.containers[0]) == (frozenset("ad"), frozenset("bc"))
