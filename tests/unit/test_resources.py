"""QoS classes and what follows from them, pod cgroups, and admission."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from podkit import FakeCgroups, make_pod

from agent.api.structs import Pod, Taint
from agent.resources import qos
from agent.resources.admission import NodeFacts, admit
from agent.resources.pod_cgroups import PodCgroups, pod_resources

GIB = 1 << 30


def sized(*sizes: dict[str, Any], uid: str = "u1", **spec: Any) -> Pod:
    """A pod with one container for each `resources`."""
    containers = [{"name": f"c{n}", "image": "x", "resources": size} for n, size in enumerate(sizes)]
    return make_pod(metadata={"uid": uid, "name": f"p-{uid}"}, spec={"containers": containers, **spec})


def limits(cpu: str = "", memory: str = "") -> dict[str, Any]:
    return {"limits": {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v}}


def requests(cpu: str = "", memory: str = "") -> dict[str, Any]:
    return {"requests": limits(cpu, memory)["limits"]}


@pytest.mark.parametrize(
    ("pod", "kind"),
    [
        (sized({}), "BestEffort"),
        (sized({"limits": {"example.com/gpu": "1"}}), "BestEffort"),
        (sized(requests("0", "0")), "BestEffort"),
        (sized(limits("1", "1Gi")), "Guaranteed"),
        (sized({**limits("1", "1Gi"), **requests("1000m", "1024Mi")}), "Guaranteed"),
        (sized({**limits("1", "1Gi"), **requests("500m", "1Gi")}), "Burstable"),
        (sized(limits("1", "1Gi"), {}), "Burstable"),
        (sized(limits("1")), "Burstable"),
        (sized(requests("1m")), "Burstable"),
        (sized({}, resources=limits("1", "1Gi")), "Guaranteed"),
    ],
)
def test_qos_class(pod: Pod, kind: str) -> None:
    assert qos.qos_class(pod) == kind


@pytest.mark.parametrize(
    ("pod", "score"),
    [
        (sized(limits("1", "1Gi")), -997),
        (sized({}), 1000),
        (sized(requests("1")), 999),
        (sized(requests("1", "1Gi")), 750),
        (sized(requests("1", "4Gi")), 3),
        (sized({}, priority=2_000_000_000), -997),
    ],
)
def test_oom_score(pod: Pod, score: int) -> None:
    assert qos.oom_score_adj(pod, pod.spec.containers[0], 4 * GIB) == score


def test_a_sidecar_is_no_likelier_a_victim_than_the_app() -> None:
    side = {"name": "s", "image": "x", "restartPolicy": "Always"}
    pod = sized(requests("1", "2Gi"), initContainers=[side])
    assert qos.oom_score_adj(pod, pod.spec.init_containers[0], 4 * GIB) == 500


@pytest.mark.parametrize(
    ("cores", "shares"), [("0", 2), ("1m", 2), ("100m", 102), ("1", 1024), ("1000", 262144)]
)
def test_cpu_shares(cores: str, shares: int) -> None:
    assert qos.cpu_shares(qos.quantity.parse(cores)) == shares


def test_cpu_quota() -> None:
    assert qos.cpu_quota_us(Fraction(1)) == 100_000
    assert qos.cpu_quota_us(Fraction(1, 1000)) == 1000


def test_what_a_pod_needs_is_its_peak() -> None:
    init = {"name": "i", "image": "x", "resources": requests("3", "1Gi")}
    side = {"name": "s", "image": "x", "restartPolicy": "Always", "resources": requests("1", "1Gi")}
    pod = sized(requests("500m", "1Gi"), requests("500m", "1Gi"), initContainers=[side, init])
    assert qos.pod_requests(pod) == {"cpu": Fraction(4), "memory": Fraction(3 * GIB)}
    over = sized(requests("1"), overhead={"cpu": "250m"})
    assert qos.pod_requests(over)["cpu"] == Fraction(5, 4)


def test_pod_limits_need_every_container() -> None:
    made = pod_resources(sized(limits("1", "500M"), limits("1", "500M")))
    assert (made.cpu_quota_us, made.memory_limit) == (200_000, 1_000_000_000)
    half = pod_resources(sized(limits("1", "500M"), requests("1")))
    assert (half.cpu_quota_us, half.memory_limit, half.cpu_shares) == (None, None, 2048)


@pytest.mark.parametrize(
    ("pod", "path"),
    [
        (sized(limits("1", "1Gi")), "/lab/kubepods/podu1"),
        (sized(requests("1")), "/lab/kubepods/burstable/podu1"),
        (sized({}), "/lab/kubepods/besteffort/podu1"),
    ],
)
async def test_pod_cgroups(pod: Pod, path: str) -> None:
    kernel = FakeCgroups()
    cgroups = PodCgroups(cgroups=kernel, root="/lab", pids_limit=100)
    assert await cgroups.create(pod) == path
    assert kernel.paths[path].pids_limit == 100  # type: ignore[union-attr]
    assert {"/lab/kubepods", "/lab/kubepods/burstable", "/lab/kubepods/besteffort"} <= kernel.paths.keys()
    await cgroups.remove(pod)
    assert path not in kernel.paths


async def test_the_burstable_level_weighs_as_its_pods() -> None:
    kernel = FakeCgroups()
    cgroups = PodCgroups(cgroups=kernel, root="/lab")
    one, two = sized(requests("1")), sized(requests("2"), uid="u2")
    for pod in (one, two):
        await cgroups.create(pod)
    assert kernel.paths["/lab/kubepods/burstable"].cpu_shares == 3072  # type: ignore[union-attr]
    await cgroups.remove(two)
    assert kernel.paths["/lab/kubepods/burstable"].cpu_shares == 1024  # type: ignore[union-attr]


async def test_an_unknown_pods_cgroup_is_found_whatever_its_class() -> None:
    kernel = FakeCgroups()
    cgroups = PodCgroups(cgroups=kernel, root="/lab")
    await cgroups.create(sized(requests("1")))
    await cgroups.remove(make_pod(spec={"containers": []}))
    assert not any(path.endswith("podu1") for path in kernel.paths)


LIKES = {"key": "disk", "operator": "NotIn", "values": ["ssd"]}
OTHER = {"uid": "u2"}
NODE = NodeFacts(name="n1", labels={"disk": "ssd", "cores": "4"}, allocatable={"cpu": "2", "memory": "4Gi"})


def port(number: int, ip: str = "", protocol: str = "TCP") -> dict[str, Any]:
    ports = [{"containerPort": 80, "hostPort": number, "hostIP": ip, "protocol": protocol}]
    return {"containers": [{"name": "app", "image": "x", "ports": ports}]}


def affinity(*expressions: dict[str, Any], key: str = "matchExpressions") -> dict[str, Any]:
    terms = [{key: list(expressions)}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": required}}


@pytest.mark.parametrize(
    ("pod", "others", "reason"),
    [
        (sized(requests("2", "4Gi")), [], ""),
        (sized(requests("2001m")), [], "OutOfcpu"),
        (sized(requests("1")), [sized(requests("1500m"), uid="u2")], "OutOfcpu"),
        (sized(requests("", "5Gi")), [], "OutOfmemory"),
        (sized({}), [sized({}, uid=f"o{n}") for n in range(110)], "OutOfpods"),
        (make_pod(spec={"nodeName": "n2"}), [], "NodeName"),
        (make_pod(spec={"nodeSelector": {"disk": "hdd"}}), [], "NodeAffinity"),
        (make_pod(spec={"nodeSelector": {"disk": "ssd"}}), [], ""),
        (
            make_pod(spec=affinity(LIKES)),
            [],
            "NodeAffinity",
        ),
        (make_pod(spec=affinity({"key": "cores", "operator": "Gt", "values": ["2"]})), [], ""),
        (make_pod(spec=affinity({"key": "gpu", "operator": "Exists"})), [], "NodeAffinity"),
        (
            make_pod(
                spec=affinity({"key": "metadata.name", "operator": "In", "values": ["n1"]}, key="matchFields")
            ),
            [],
            "",
        ),
        (make_pod(spec=port(80)), [make_pod(metadata=OTHER, spec=port(80))], "NodePorts"),
        (make_pod(spec=port(80)), [make_pod(metadata=OTHER, spec=port(80, protocol="UDP"))], ""),
        (
            make_pod(spec=port(80, "1.1.1.1")),
            [make_pod(metadata=OTHER, spec=port(80, "2.2.2.2"))],
            "",
        ),
        (make_pod(spec=port(80, "1.1.1.1")), [make_pod(metadata=OTHER, spec=port(80))], "NodePorts"),
        (make_pod(spec={"os": {"name": "windows"}}), [], "PodOSNotSupported"),
        (
            make_pod(metadata={"labels": {"kubernetes.io/os": "windows"}}),
            [],
            "PodOSSelectorNodeLabelDoesNotMatch",
        ),
        (make_pod(metadata={"labels": {"kubernetes.io/os": "linux"}}), [], ""),
        # What is missing is told before what does not match, as kubelet's order of checks has it.
        (sized(requests("3"), nodeName="n2"), [], "OutOfcpu"),
    ],
)
def test_admission(pod: Pod, others: list[Pod], reason: str) -> None:
    refused = admit(pod, others, NODE)
    assert (refused.reason if refused else "") == reason


@pytest.mark.parametrize(
    ("toleration", "effect", "reason"),
    [
        (None, "NoExecute", "TaintToleration"),
        (None, "NoSchedule", ""),
        ({"operator": "Exists"}, "NoExecute", ""),
        ({"key": "gpu", "value": "yes", "effect": "NoExecute"}, "NoExecute", ""),
        ({"key": "gpu", "value": "no", "effect": "NoExecute"}, "NoExecute", "TaintToleration"),
        ({"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}, "NoExecute", "TaintToleration"),
    ],
)
def test_taints_that_end_pods_also_keep_them_out(
    toleration: dict[str, Any] | None, effect: str, reason: str
) -> None:
    node = NodeFacts(name="n1", taints=(Taint(key="gpu", value="yes", effect=effect),))
    pod = make_pod(spec={"tolerations": [toleration] if toleration else []})
    refused = admit(pod, [], node)
    assert (refused.reason if refused else "") == reason
    static = make_pod(metadata={"annotations": {"kubernetes.io/config.source": "file"}})
    assert admit(static, [], node) is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}, "AppArmor"),
        ({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}, ""),
        ({}, ""),
    ],
)
def test_a_profile_nobody_can_enforce_is_refused(spec: dict[str, Any], reason: str) -> None:
    refused = admit(make_pod(spec=spec), [], NodeFacts(name="n1", apparmor=False))
    assert (refused.reason if refused else "") == reason
    assert admit(make_pod(spec=spec), [], NodeFacts(name="n1")) is None


def test_the_refusal_says_how_much_is_missing() -> None:
    refused = admit(sized(requests("3")), [], NODE)
    assert refused is not None
    words = "Node didn't have enough resource: cpu, requested: 3000, used: 0, capacity: 2000"
    assert refused.message == words
