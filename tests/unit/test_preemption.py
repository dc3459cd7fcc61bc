"""Room for critical pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from podkit import Node, Program, make_pod, running

from agent.api.structs import Pod
from agent.resources.admission import NodeFacts
from agent.resources.preemption import admit_or_preempt

NODE = NodeFacts(name="n1", allocatable={"cpu": "2", "memory": "1Gi", "pods": "110"})
CRITICAL = {"priority": 2_000_000_000}


def sized(uid: str, cpu: str, *, limits: bool = False, **spec: Any) -> Pod:
    figures = {"cpu": cpu, "memory": "10Mi"}
    resources = {"requests": figures, **({"limits": figures} if limits else {})}
    container = {"name": "app", "image": "busybox", "resources": resources}
    return make_pod(metadata={"uid": uid, "name": uid}, spec={"containers": [container], **spec})


def ends(pod: Pod, *others: Pod) -> tuple[str, list[str]]:
    refused, gone = admit_or_preempt(pod, others, NODE)
    return (refused.reason if refused else "", [other.metadata.uid for other in gone])


def test_only_critical_pods_make_others_end() -> None:
    assert ends(sized("p", "1"), sized("a", "1500m")) == ("OutOfcpu", [])
    assert ends(sized("p", "1", **CRITICAL), sized("a", "1500m")) == ("", ["a"])
    static = make_pod(metadata={"annotations": {"kubernetes.io/config.source": "file"}})
    assert ends(static, sized("a", "2")) == ("", [])


def test_as_few_as_possible_and_the_least_valuable() -> None:
    small, large, guaranteed = sized("s", "200m"), sized("l", "700m"), sized("g", "1", limits=True)
    assert ends(sized("p", "800m", **CRITICAL), guaranteed, large, small) == ("", ["l"])
    assert ends(sized("p", "1", **CRITICAL), guaranteed, large, small) == ("", ["s", "l"])
    assert ends(sized("p", "1200m", **CRITICAL), guaranteed, large, small) == ("", ["s", "g"])


def test_critical_pods_end_only_for_more_important_ones() -> None:
    other = sized("other", "2", **CRITICAL)
    assert ends(sized("p", "1", **CRITICAL), other) == ("UnexpectedAdmissionError", [])
    assert ends(sized("p", "1", priority=2_000_001_000), other) == ("", ["other"])


def test_nobody_ends_for_a_pod_that_is_refused_all_the_same() -> None:
    lost = sized("p", "1", nodeSelector={"no": "such"}, **CRITICAL)
    assert ends(lost, sized("a", "1500m")) == ("NodeAffinity", [])


async def test_the_pod_that_has_to_go_fails_with_the_reason(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.facts = NODE
        await node.put(sized("low", "1500m"))
        await node.put(sized("high", "1", **CRITICAL))
        low = node.pod("low").status
        assert (low.phase, low.reason) == ("Failed", "Preempting")
        assert next(c.status for c in low.conditions if c.type == "DisruptionTarget") == "True"
        assert node.pod("high").status.phase == "Running"
        assert node.events.message("Preempting") == "Preempted in order to admit critical pod"


async def test_nothing_starts_in_its_place_while_anything_of_it_is_left(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.facts = NODE
        node.cri.programs["app"] = Program(on_term=None)
        await node.put(sized("low", "1500m", terminationGracePeriodSeconds=20))
        await node.put(sized("high", "1", **CRITICAL))
        await node.advance(10)
        assert (node.pod("high").status.phase, len(node.cri.containers())) == ("Pending", 1)
        await node.advance(11)
        assert node.pod("low").status.phase == "Failed"
        assert node.pod("high").status.phase == "Running"
