"""Pods with user namespaces of their own, and pods of another runtime handler."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from podkit import Node, deleted, make_pod, running

from agent.pods.id_pool import IdPool, id_pool
from agent.pods.security import SpecError
from agent.pods.user_namespaces import UserNamespaces, free_range
from host.errors import InputError
from proto.cri import runtime_pb2 as pb


def private(uid: str = "u1", **spec: Any) -> Any:
    return make_pod(metadata={"uid": uid, "name": uid}, spec={"hostUsers": False, **spec})


def test_the_lowest_free_range_is_given() -> None:
    pool = IdPool(first=65536, count=3 * 65536)
    assert free_range(pool, {65536, 3 * 65536}) == 2 * 65536
    with pytest.raises(SpecError, match="every range"):
        free_range(pool, {65536, 2 * 65536, 3 * 65536})


def test_without_subuid_lines_everything_above_the_first_range_is_taken() -> None:
    found = id_pool(length=131072, max_pods=110)
    assert (found.first, found.first + found.count, found.length) == (131072, 1 << 32, 131072)


def test_subuid_says_which_ids() -> None:
    text = "somebody:100000:65536\nkubelet:655360:7208960\n"
    assert id_pool(max_pods=110, subuid=text, subgid=text) == IdPool(655360, 7208960)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"length": 1000}, "idsPerPod"),
        ({"length": 1 << 32}, "idsPerPod"),
        ({"subuid": "kubelet:65536:65536"}, "same ids"),
        ({"subuid": "kubelet:x:1", "subgid": "kubelet:x:1"}, "user:first:count"),
        ({"subuid": "kubelet:0:6553600", "subgid": "kubelet:0:6553600"}, "multiples"),
        ({"subuid": "kubelet:65536:65536", "subgid": "kubelet:65536:65536"}, "maxPods is 110"),
    ],
)
def test_ids_that_cannot_be_are_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        id_pool(max_pods=110, **given)


def test_ranges_are_kept_on_disk_in_kubelets_format(tmp_path: Path) -> None:
    first = UserNamespaces(IdPool(), tmp_path)
    one = first.of(private("a")).uids[0].host_id
    assert first.of(private("b")).uids[0].host_id != one
    (tmp_path / "pods" / "c").mkdir()
    (tmp_path / "pods" / "c" / "userns").write_text("{")
    second = UserNamespaces(IdPool(), tmp_path)
    assert second.of(private("a")).uids[0].host_id == one
    maps = json.loads((tmp_path / "pods" / "a" / "userns").read_text())
    assert maps["gidMappings"] == [{"hostId": one, "containerId": 0, "length": 65536}]
    assert second.of(make_pod()).mode == pb.NODE


async def test_a_pod_of_its_own_users_is_mapped_everywhere(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        pod = private()
        await node.put(pod)
        box = node.cri.sandbox_config(node.cri.sandboxes()[0].id)
        users = box.linux.security_context.namespace_options.userns_options
        assert (users.mode, users.uids[0].container_id, users.uids[0].length) == (pb.POD, 0, 65536)
        config = node.cri.config(node.cri.containers()[0].id)
        assert config.linux.security_context.namespace_options.userns_options == users
        assert config.mounts and all(list(m.uidMappings) == list(users.uids) for m in config.mounts)
        await node.put(deleted(pod))
        node.manager.remove(deleted(pod))
        await node.settle()
        assert not (tmp_path / "kubelet" / "pods" / "u1").exists()
        await node.put(private("u2"))
        other = node.cri.sandbox_config(node.cri.sandboxes()[-1].id)
        again = other.linux.security_context.namespace_options.userns_options
        assert again.uids[0].host_id == users.uids[0].host_id


async def test_the_runtime_class_names_the_handler_and_its_overhead_counts(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        figures = {"cpu": "100m", "memory": "10Mi"}
        container = {
            "name": "app",
            "image": "busybox",
            "resources": {"requests": figures, "limits": figures},
        }
        overhead = {"cpu": "250m", "memory": "120Mi"}
        pod = make_pod(spec={"containers": [container], "runtimeClassName": "vm", "overhead": overhead})
        await node.put(pod)
        assert 'runtimeclass.node.k8s.io "vm" not found' in node.events.message("FailedCreatePodSandBox")
        node.sources.handlers["vm"] = "kata"
        await node.advance(1)
        (box,) = node.cri.sandboxes()
        assert box.runtime_handler == "kata"
        linux = node.cri.sandbox_config(box.id).linux
        assert linux.overhead.memory_limit_in_bytes == 120 << 20
        assert linux.resources.memory_limit_in_bytes == 10 << 20
        made = node.cgroups.paths["/lab/kubepods/podu1"]
        assert made is not None and made.memory_limit == 130 << 20
