"""Images that are on the node already: who may use them; and how far pulls are."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from podkit import FakeCri, Node, make_pod, running

from agent.api.structs import ObjectMeta, Secret
from agent.pods.credentials import Credential, credentials
from agent.pods.image_access import ImageAccess, PulledRecord, learned, must_verify, opens
from agent.pods.pull_progress import PullShown, progress_of, pulls_shown

IMAGE = "r.io/team/app:1"
NAME = "r.io/team/app"
DEFAULT = "NeverVerifyPreloadedImages"


def secret(name: str = "pull", password: str = "p", uid: str = "s1") -> Secret:
    auths = {"auths": {"r.io": {"username": "u", "password": password}}}
    data = {".dockerconfigjson": base64.b64encode(json.dumps(auths).encode()).decode()}
    return Secret(metadata=ObjectMeta(name=name, namespace="default", uid=uid), data=data)


def shown(*secrets: Secret) -> list[Credential]:
    return credentials(IMAGE, secrets)


@pytest.mark.parametrize(
    ("policy", "ours", "verify"),
    [
        ("NeverVerify", True, False),
        (DEFAULT, False, False),
        (DEFAULT, True, True),
        ("AlwaysVerify", False, True),
        ("NeverVerifyAllowlistedImages", False, True),
    ],
)
def test_policies(policy: str, ours: bool, verify: bool) -> None:
    assert must_verify(IMAGE, ours=ours, policy=policy, allowlist=()) is verify


@pytest.mark.parametrize(
    ("pattern", "verify"), [("r.io/team/*", False), (NAME, False), ("r.io/other/*", True), ("r.io/tea", True)]
)
def test_the_list_of_preloaded_images(pattern: str, verify: bool) -> None:
    policy = "NeverVerifyAllowlistedImages"
    assert must_verify(IMAGE, ours=False, policy=policy, allowlist=[pattern]) is verify


def test_a_secret_opens_by_its_place_or_by_its_credential() -> None:
    known = learned(PulledRecord(), IMAGE, shown(secret())[0]).credential_mapping[NAME]
    assert opens(known, shown(secret()))
    assert opens(known, shown(secret("copy", uid="s2")))  # another secret, the same password
    assert opens(known, shown(secret(password="new")))  # the same secret, rotated
    assert not opens(known, shown(secret("other", password="guess", uid="s3")))
    assert not opens(known, [])
    assert not opens(None, shown(secret()))


def test_what_needed_no_secret_once_is_open_to_all() -> None:
    private = learned(PulledRecord(), IMAGE, shown(secret())[0])
    assert opens(learned(private, IMAGE, None).credential_mapping[NAME], [])


def test_records_are_on_disk_and_tell_no_secret(tmp_path: Path) -> None:
    access = ImageAccess(tmp_path, policy=DEFAULT)
    assert access.allowed(IMAGE, "sha256:1", [])  # it was there before us
    access.begin(IMAGE)
    assert not ImageAccess(tmp_path, policy=DEFAULT).allowed(IMAGE, "sha256:1", [])  # a crash in between
    access.pulled(IMAGE, "sha256:1", shown(secret())[0])
    (path,) = (tmp_path / "image_manager" / "pulled").iterdir()
    assert '"p"' not in path.read_text() and list((tmp_path / "image_manager" / "pulling").iterdir()) == []
    again = ImageAccess(tmp_path, policy=DEFAULT)
    assert again.allowed(IMAGE, "sha256:1", shown(secret()))
    assert not again.allowed(IMAGE, "sha256:1", [])
    path.write_text("{")
    assert not again.allowed(IMAGE, "sha256:1", shown(secret()))


def test_records_of_images_that_are_gone_go(tmp_path: Path) -> None:
    access = ImageAccess(tmp_path, policy=DEFAULT)
    folder = tmp_path / "image_manager" / "pulled"
    for ref in ("sha256:1", "sha256:2", "sha256:3"):
        access.pulled(IMAGE, ref, shown(secret())[0])
    written = max(path.stat().st_mtime for path in folder.iterdir())
    access.prune({"sha256:1"}, since=written - 60)
    assert len(list(folder.iterdir())) == 3, "what was pulled after the list was made is not in it"
    access.prune({"sha256:1"}, since=written + 60)
    assert access.allowed(IMAGE, "sha256:1", shown(secret()))
    assert len(list(folder.iterdir())) == 1
    (path,) = folder.iterdir()
    path.write_text("{")
    access.prune(set(), since=written + 60)
    assert path.exists(), "who may use its image is not known, so nobody may without a secret"


def pod_of(uid: str, **spec: Any) -> Any:
    container = {"name": "app", "image": IMAGE, "imagePullPolicy": "IfNotPresent"}
    return make_pod(metadata={"uid": uid, "name": uid}, spec={"containers": [container], **spec})


async def test_a_private_image_on_the_node_is_no_secret_pods_to_have(tmp_path: Path) -> None:
    async with running(Node(tmp_path)) as node:
        node.cri.add_image(IMAGE)
        node.cri.images.pop(IMAGE)
        node.sources.secrets["default/pull"] = secret()
        await node.put(pod_of("owner", imagePullSecrets=[{"name": "pull"}]))
        assert node.pod("owner").status.phase == "Running"
        node.cri.registry[IMAGE] = "pull access denied"
        await node.put(pod_of("thief"))
        (status,) = node.pod("thief").status.container_statuses
        assert status.state.waiting is not None
        assert (status.state.waiting.reason, status.state.waiting.message) == (
            "ErrImagePull",
            "pull access denied",
        )
        await node.put(pod_of("friend", imagePullSecrets=[{"name": "pull"}]))
        assert node.pod("friend").status.phase == "Running"
        assert "can be accessed by the pod" in node.events.message("Pulled")


def test_progress_is_found_by_the_full_name() -> None:
    info = [{"image": "docker.io/library/busybox:1.36", "layers": 5, "layersDone": 2, "bytes": 45_600_000}]
    pulls = pulls_shown({"imagePulls": json.dumps(info)})
    assert progress_of("busybox:1.36", pulls) == "2 of 5 layers, 0.0 of 45.6 MB"
    assert progress_of("busybox:1.37", pulls) is None
    assert pulls_shown({}) == () == pulls_shown({"imagePulls": "?"})


async def test_a_slow_pull_is_told_in_the_waiting_message(tmp_path: Path) -> None:
    node = Node(tmp_path)
    cri: FakeCri = node.cri
    cri.slow["pull"] = 12
    cri.pulling = [
        PullShown(image="docker.io/library/busybox:latest", layers=3, layers_done=1, bytes=2_000_000)
    ]
    async with running(node):
        await node.put(make_pod())
        await node.advance(4)
        waiting = node.state().state.waiting
        assert (waiting.reason, waiting.message) == ("ContainerCreating", "")
        await node.advance(1)
        await node.advance(0.5)  # a status that is only routine waits a moment for a better one
        text = 'pulling image "busybox": 1 of 3 layers, 0.0 of 2.0 MB'
        assert node.state().state.waiting.message == text
        assert node.api.patches[-1]["containerStatuses"][0]["state"]["waiting"]["message"] == text
        await node.advance(7)
        assert node.phase() == "Running"
