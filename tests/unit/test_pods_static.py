"""Static pods: manifests, bad ones included, and their mirrors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from podkit import Node, make_pod, settle

from agent.api import errors
from agent.api.structs import ObjectMeta, Pod
from agent.pods.manifest import parse_manifest, parse_manifests
from agent.pods.mirror import MirrorPods, mirror_of, plan_mirrors
from agent.pods.static import StaticPods
from agent.pods.static_url import UrlPods
from host.clocks import FakeClock
from host.errors import InputError

GOOD = """
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: app
    image: busybox
    resources: {limits: {cpu: 1, memory: 64Mi}}
"""


def parse(text: str, source: str = "/m/web.yaml", node_name: str = "Node1") -> Pod:
    return parse_manifest(text.encode(), source=source, node_name=node_name, now=0.0)


def test_a_manifest_becomes_a_pod_of_this_node() -> None:
    pod = parse(GOOD)
    assert (pod.metadata.name, pod.metadata.namespace) == ("web-node1", "default")
    assert pod.spec.node_name == "Node1" and len(pod.metadata.uid) == 32
    assert pod.metadata.annotations["kubernetes.io/config.source"] == "file"
    assert pod.metadata.annotations["kubernetes.io/config.hash"] == pod.metadata.uid
    assert pod.spec.tolerations[-1].operator == "Exists"
    assert pod.spec.containers[0].resources.limits["cpu"] == "1"


def test_the_uid_follows_content_and_place() -> None:
    assert parse(GOOD).metadata.uid == parse(GOOD).metadata.uid
    assert parse(GOOD).metadata.uid != parse(GOOD.replace("busybox", "nginx")).metadata.uid
    assert parse(GOOD).metadata.uid != parse(GOOD, "/m/other.yaml").metadata.uid


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("a: [", "not YAML"),
        ("kind: Deployment\napiVersion: apps/v1\n", "not a Pod"),
        (GOOD.replace("name: web", "name: ../web"), "metadata.name"),
        (GOOD.replace("name: web", "name: web, namespace: a/b"), "metadata.namespace"),
        (GOOD.replace("name: app", "name: ../app"), "container name"),
        (GOOD.replace("image: busybox", "command: [x]"), "image is missing"),
        (GOOD.replace("image: busybox", "image: 5"), "spec.containers"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: []}\n", "empty"),
        ("x: !!python/object/apply:os.system [true]\n", "not YAML"),
        (BOMB, "aliases"),
        ("a: &a [*a]\n", "aliases"),
        ("[" * 5000, "not YAML"),
        ("x" * (2 << 20), "larger than"),
    ],
)
def test_bad_manifests_are_one_error_that_names_the_file(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        parse(text)
    assert str(caught.value).startswith("/m/web.yaml: ") and "\n" not in str(caught.value)


class Told:
    """What a StaticPods told, and the object itself."""

    def __init__(self, folder: Path) -> None:
        self.log: list[str] = []
        self.complete = False
        self.static = StaticPods(
            folder=folder,
            node_name="n1",
            clock=FakeClock(),
            on_put=lambda pod: self.log.append(f"+{pod.spec.containers[0].image}"),
            on_remove=lambda pod: self.log.append(f"-{pod.spec.containers[0].image}"),
            on_complete=lambda: setattr(self, "complete", True),
        )


def test_a_directory_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told = Told(tmp_path)
    (tmp_path / "web.yaml").write_text(GOOD)
    (tmp_path / ".hidden.yaml").write_text(GOOD)
    with caplog.at_level(logging.ERROR):
        (tmp_path / "bad.yaml").write_text("kind: Nonsense")
        told.static.scan()
        told.static.scan()
    assert told.log == ["+busybox"]
    assert len(caplog.records) == 1 and str(tmp_path / "bad.yaml") in caplog.text
    (tmp_path / "web.yaml").write_text(GOOD.replace("busybox", "nginx"))
    told.static.scan()
    assert told.log == ["+busybox", "-busybox", "+nginx"]
    (tmp_path / "web.yaml").write_text("half: [")
    told.static.scan()
    assert told.log[-1] == "+nginx", "a broken edit leaves the pod that runs"
    (tmp_path / "web.yaml").unlink()
    told.static.scan()
    assert told.log[-1] == "-nginx"


async def test_inotify_wakes_it(tmp_path: Path) -> None:
    told = Told(tmp_path)
    task = asyncio.create_task(told.static.run())
    await settle()
    assert told.complete and told.log == []
    (tmp_path / "web.yaml").write_text(GOOD)
    await _eventually(lambda: told.log == ["+busybox"])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _eventually(fact: Callable[[], bool]) -> None:
    for _ in range(200):
        if fact():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("did not happen")


def mirror(pod: Pod, **changes: Any) -> Pod:
    made = mirror_of(pod, node_name="n1", node_uid="node-uid")
    meta = msgspec.structs.replace(made.metadata, **{"uid": "m1", **changes})
    return msgspec.structs.replace(made, metadata=meta)


def test_mirrors_have_the_node_as_owner_and_no_uid() -> None:
    made = mirror_of(parse(GOOD), node_name="n1", node_uid="node-uid")
    assert made.metadata.uid == "" and made.metadata.owner_references[0].uid == "node-uid"
    notes = made.metadata.annotations
    assert notes["kubernetes.io/config.mirror"] == notes["kubernetes.io/config.hash"]


def test_which_mirrors_are_missing_or_stale() -> None:
    pod, other = parse(GOOD), parse(GOOD.replace("busybox", "nginx"))
    assert plan_mirrors([pod], []) == ([pod], [])
    assert plan_mirrors([pod], [mirror(pod)]) == ([], [])
    assert plan_mirrors([], [mirror(pod)]) == ([], [mirror(pod)])
    assert plan_mirrors([other], [mirror(pod)]) == ([other], [mirror(pod)])
    going = mirror(pod, deletion_timestamp="2026-01-01T00:00:00Z")
    assert plan_mirrors([pod], [going]) == ([pod], [going])


async def test_mirrors_are_made_once_the_node_is_registered() -> None:
    made: list[Pod] = []
    uid = ""

    class Client:
        async def create(self, resource: Any, obj: Pod) -> None:
            if made:
                raise errors.AlreadyExists("there", status=409)
            made.append(obj)

    clock = FakeClock()
    keeper = MirrorPods(
        client=Client(),  # type: ignore[arg-type]
        clock=clock,
        node_name="n1",
        node_uid=lambda: uid,
        statics=lambda: [parse(GOOD)],
        mirrors=lambda: [],
    )
    task = asyncio.create_task(keeper.run())
    keeper.wake()
    await settle()
    assert made == []
    uid = "node-uid"
    await clock.advance(1)
    assert [pod.metadata.name for pod in made] == ["web-node1"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_an_edited_static_pod_waits_for_its_predecessor(tmp_path: Path) -> None:
    node = Node(tmp_path)
    task = asyncio.create_task(node.manager.run())
    await node.settle()
    node.manager.complete("api")
    node.cri.slow["stop_container"] = 5.0
    node.cri.add_image("nginx:latest")
    old, new = (parse(text, node_name="n1") for text in (GOOD, GOOD.replace("busybox", "nginx")))
    await node.put(old)
    node.manager.remove(old)
    await node.put(new)
    assert [c.image for c in node.cri.containers()] == ["busybox"]
    await node.advance(5)
    assert [c.image for c in node.cri.containers()] == ["nginx"]
    assert node.api.patches == [], "there is no mirror to write to"
    await node.put(mirror(new))
    await node.advance(1)
    assert node.api.patches[-1]["phase"] == "Running"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_the_kit_makes_api_pods() -> None:
    assert make_pod().metadata == ObjectMeta(name="web", namespace="default", uid="u1", generation=1)


# --- from a URL -------------------------------------------------------------------------------------------

LIST = """
apiVersion: v1
kind: PodList
items:
- {metadata: {name: one}, spec: {containers: [{name: app, image: busybox}]}}
- {metadata: {name: two}, spec: {containers: [{name: app, image: busybox}]}}
"""


def from_url(text: str) -> tuple[Pod, ...]:
    return parse_manifests(text.encode(), source="http://here/pods", node_name="n1")


def test_a_url_may_answer_one_pod_or_a_list() -> None:
    assert [p.metadata.name for p in from_url(LIST)] == ["one-n1", "two-n1"]
    (pod,) = from_url(GOOD)
    assert pod.metadata.annotations["kubernetes.io/config.source"] == "http"
    assert pod.spec.tolerations == ()
    assert from_url("{apiVersion: v1, kind: PodList, items: []}") == ()
    with pytest.raises(InputError, match="http://here/pods: items"):
        from_url("{apiVersion: v1, kind: PodList, items: 3}")


class Server:
    """A web server with one answer, on a free port of the loopback."""

    def __init__(self) -> None:
        self.text, self.status, self.asked = LIST, 200, asyncio.Event()
        self.headers: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.headers = request.headers.getall("X-Who", [])
        self.asked.set()
        return web.Response(text=self.text, status=self.status)


async def test_pods_of_a_url_follow_it_and_outlive_its_troubles(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server, app, clock = Server(), web.Application(), FakeClock()
    app.router.add_get("/pods", server.answer)
    there = TestServer(app)
    await there.start_server()
    running: set[str] = set()
    complete: list[str] = []
    pods = UrlPods(
        url=str(there.make_url("/pods")),
        headers={"X-Who": ["n1", "me"]},
        every=20,
        node_name="n1",
        clock=clock,
        on_put=lambda pod: running.add(pod.metadata.name),
        on_remove=lambda pod: running.discard(pod.metadata.name),
        on_complete=lambda: complete.append("http"),
    )

    async def ask_again() -> None:
        server.asked.clear()
        await clock.advance(20)
        await server.asked.wait()

    server.status = 503
    task = asyncio.create_task(pods.run())
    await server.asked.wait()
    await _eventually(lambda: "answered 503" in caplog.text)
    assert (running, complete) == (set(), [])
    server.status = 200
    await ask_again()
    await _eventually(lambda: running == {"one-n1", "two-n1"})
    assert (complete, server.headers) == (["http"], ["n1", "me"])
    server.text = GOOD
    await ask_again()
    await _eventually(lambda: running == {"web-n1"})
    server.text = "kind: [}"
    await ask_again()
    await _eventually(lambda: "not YAML" in caplog.text)
    assert running == {"web-n1"}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await there.close()
