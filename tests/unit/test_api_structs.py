"""The records: names on the wire, defaults, nulls; quantities and times."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.api import quantity, structs, times
from agent.api.meta import wire_name
from agent.api.resources import LEASES, NODES, PODS


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("pod_ip", "podIP"),
        ("host_ips", "hostIPs"),
        ("cluster_ips", "clusterIPs"),
        ("pod_cidrs", "podCIDRs"),
        ("run_as_user", "runAsUser"),
        ("fs_group", "fsGroup"),
        ("http_get", "httpGet"),
        ("tcp_socket", "tcpSocket"),
        ("host_pid", "hostPID"),
        ("qos_class", "qosClass"),
        ("container_id", "containerID"),
        ("set_hostname_as_fqdn", "setHostnameAsFQDN"),
        ("provider_id", "providerID"),
        ("from_", "from"),
        ("load_balancer_ip", "loadBalancerIP"),
        ("system_uuid", "systemUUID"),
        ("downward_api", "downwardAPI"),
    ],
)
def test_wire_names(attribute, name):
    assert wire_name(attribute) == name


def test_pod_as_the_api_server_writes_it():
    raw = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p", "namespace": "d", "uid": "u", "creationTimestamp": None, "x": []},
        "spec": {
            "containers": [
                {
                    "name": "c",
                    "image": "i",
                    "ports": [{"containerPort": 80, "name": "http"}],
                    "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 3},
                    "resources": {"limits": {"cpu": "1"}},
                    "someFutureField": {"x": 1},
                }
            ],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "f", "azureDisk": {}}],
        },
        "status": {"conditions": [{"type": "Ready", "status": "True", "lastProbeTime": None}]},
    }
    pod = msgspec.json.decode(json.dumps(raw), type=structs.Pod)
    container = pod.spec.containers[0]
    assert container.liveness_probe.http_get.port == "http"
    assert container.liveness_probe.failure_threshold == 3
    assert container.ports[0].protocol == "TCP"
    assert pod.spec.restart_policy == "Always"
    assert pod.spec.termination_grace_period_seconds == 30
    assert pod.spec.volumes[0].empty_dir is not None
    assert pod.spec.volumes[1] == structs.Volume(name="f")
    written = json.loads(msgspec.json.encode(pod))
    assert written["spec"]["volumes"][0] == {"name": "v", "emptyDir": {}}
    assert "restartPolicy" not in written["spec"]


def test_a_terminated_state_always_says_its_exit_code():
    assert json.loads(msgspec.json.encode(structs.ContainerStateTerminated()))["exitCode"] == 0


def test_an_endpoint_slice_may_hold_null_lists():
    raw = b'{"metadata":{"name":"s"},"addressType":"IPv4","endpoints":null,"ports":null}'
    assert msgspec.json.decode(raw, type=structs.EndpointSlice).endpoints is None


def test_secrets_do_not_show_in_repr():
    secret = structs.Secret(metadata=structs.ObjectMeta(name="s", namespace="d"), data={"k": "dG9wc2VjcmV0"})
    token = structs.TokenRequestStatus(token="abc.def")
    assert "dG9wc2VjcmV0" not in repr(secret)
    assert "abc.def" not in repr(token)


def test_daemon_endpoint_has_the_capital_letter():
    assert msgspec.json.encode(structs.DaemonEndpoint(port=10250)) == b'{"Port":10250}'


def test_paths():
    status = PODS.path(namespace="a b", name="p", subresource="status")
    assert status == "/api/v1/namespaces/a%20b/pods/p/status"
    assert NODES.path(namespace="ignored", name="n") == "/api/v1/nodes/n"
    assert LEASES.path(namespace="l") == "/apis/coordination.k8s.io/v1/namespaces/l/leases"


@pytest.mark.parametrize(
    ("text", "milli", "value"),
    [("100m", 100, 1), ("1.5", 1500, 2), ("1Ki", 1024000, 1024), ("2e3", 2000000, 2000), ("0.5m", 1, 1)],
)
def test_quantities(text, milli, value):
    assert quantity.milli(text) == milli
    assert quantity.value(text) == value


@pytest.mark.parametrize("text", ["", "abc", "1KB", "1 Gi", "--1", "1e999", "٣"])
def test_bad_quantities_are_quoted(text):
    with pytest.raises(ValueError, match="not a quantity"):
        quantity.parse(text)


@given(st.integers(min_value=0, max_value=10**7))
def test_milli_round_trip(millis):
    assert quantity.milli(quantity.format_milli(millis)) == millis


@given(st.integers(min_value=0, max_value=4_000_000_000_000_000_000))
def test_nano_times_lose_nothing(nanoseconds):
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    text = times.format_time(seconds).removesuffix("Z") + f".{rest:09d}Z"
    assert times.parse_nano_time(text) == nanoseconds


def test_times_of_other_zones():
    assert times.parse_time("2026-11-21T07:00:00+01:00") == times.parse_time("2026-11-21T06:00:00Z")
    assert times.parse_time(None) is None
    assert times.format_micro_time(1.5) == "1970-01-01T00:00:01.500000Z"
    with pytest.raises(ValueError, match="not an RFC 3339 time"):
        times.parse_nano_time("yesterday")
