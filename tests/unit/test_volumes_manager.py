"""Volumes of a pod: what follows the API, how containers mount it, and how all goes away."""

import asyncio
import base64
import itertools
import stat
from pathlib import Path

import pytest
from volume_kit import Node, fails, pod, texts

from agent.api.errors import Forbidden
from agent.api.structs import (
    ConfigMap,
    ConfigMapProjection,
    ConfigMapVolumeSource,
    Container,
    DownwardAPIVolumeFile,
    DownwardAPIVolumeSource,
    EmptyDirVolumeSource,
    HostPathVolumeSource,
    KeyToPath,
    ObjectFieldSelector,
    Pod,
    ProjectedVolumeSource,
    Secret,
    SecretVolumeSource,
    ServiceAccountTokenProjection,
    Volume,
    VolumeMount,
    VolumeProjection,
)
from agent.volumes.following import CHECK, Follower
from agent.volumes.manager import Mount, VolumeError
from host.clocks import FakeClock, settle


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "host").mkdir()
    return Node(tmp_path)


async def test_config_map_volume(node: Node) -> None:
    node.api.config_maps["ns/cm"] = ConfigMap(
        data={"a": "1", "b": "2"}, binary_data={"c": base64.b64encode(b"\x00").decode()}
    )
    prepared = await node.manager.prepare(pod(Volume(name="v", config_map=ConfigMapVolumeSource(name="cm"))))
    assert texts(prepared["v"].host_path) == {"a": "1", "b": "2", "c": "\x00"}
    assert prepared["v"].read_only and prepared["v"].live
    assert node.mounter.mounts == []


async def test_items_choose_keys_paths_and_modes(node: Node) -> None:
    node.api.config_maps["ns/cm"] = ConfigMap(data={"a": "1", "b": "2"})
    source = ConfigMapVolumeSource(
        name="cm",
        default_mode=0o640,
        items=(KeyToPath(key="a", path="x/y"), KeyToPath(key="b", path="z", mode=0o400)),
    )
    prepared = await node.manager.prepare(pod(Volume(name="v", config_map=source)))
    path = prepared["v"].host_path
    assert (path / "x/y").read_text() == "1"
    assert stat.S_IMODE((path / "x/y").stat().st_mode) == 0o640
    assert stat.S_IMODE((path / "z").stat().st_mode) == 0o400
    assert not (path / "a").exists()


async def test_missing_objects_and_keys(node: Node) -> None:
    missing = await fails(node, pod(Volume(name="x", config_map=ConfigMapVolumeSource(name="y"))))
    assert missing == 'MountVolume.SetUp failed for volume "x" : configmap "y" not found'
    missing = await fails(node, pod(Volume(name="x", secret=SecretVolumeSource(secret_name="y"))))
    assert missing == 'MountVolume.SetUp failed for volume "x" : secret "y" not found'
    node.api.config_maps["ns/y"] = ConfigMap(data={"../evil": "1"})
    assert "invalid key '../evil'" in await fails(
        node, pod(Volume(name="x", config_map=ConfigMapVolumeSource(name="y")))
    )
    items = (KeyToPath(key="nope", path="p"),)
    chosen = pod(Volume(name="x", config_map=ConfigMapVolumeSource(name="y", items=items)))
    assert "configmap references non-existent config key: nope" in await fails(node, chosen)


async def test_optional_sources_may_be_missing(node: Node) -> None:
    prepared = await node.manager.prepare(
        pod(
            Volume(name="a", config_map=ConfigMapVolumeSource(name="y", optional=True)),
            Volume(name="b", secret=SecretVolumeSource(secret_name="y", optional=True)),
        )
    )
    assert texts(prepared["a"].host_path) == texts(prepared["b"].host_path) == {}


async def test_every_failure_is_told_and_the_good_ones_stay(node: Node) -> None:
    message = await fails(
        node,
        pod(
            Volume(name="a", secret=SecretVolumeSource(secret_name="one")),
            Volume(name="b", secret=SecretVolumeSource(secret_name="two")),
            Volume(name="c", empty_dir=EmptyDirVolumeSource()),
            Volume(name="d"),
        ),
    )
    assert 'secret "one"' in message and 'secret "two"' in message
    assert 'volume "d" : its kind is not supported' in message
    assert node.directory("empty-dir", "c").is_dir()


async def test_secrets_live_in_memory(node: Node) -> None:
    node.api.secrets["ns/s"] = Secret(data={"username": base64.b64encode(b"admin").decode()})
    made = pod(Volume(name="v", secret=SecretVolumeSource(secret_name="s", default_mode=0o400)))
    prepared = await node.manager.prepare(made)
    path = prepared["v"].host_path
    assert texts(path) == {"username": "admin"}
    assert stat.S_IMODE((path / "username").stat().st_mode) == 0o400
    assert node.mounter.is_mounted(path)


def service_account_pod(seconds: int = 3600) -> Pod:
    sources = (
        VolumeProjection(
            service_account_token=ServiceAccountTokenProjection(expiration_seconds=seconds, path="token")
        ),
        VolumeProjection(
            config_map=ConfigMapProjection(
                name="kube-root-ca.crt", items=(KeyToPath(key="ca.crt", path="ca.crt"),)
            )
        ),
        VolumeProjection(
            downward_api=DownwardAPIVolumeSource(
                items=(
                    DownwardAPIVolumeFile(
                        path="namespace", field_ref=ObjectFieldSelector(field_path="metadata.namespace")
                    ),
                )
            )
        ),
    )
    return pod(Volume(name="api", projected=ProjectedVolumeSource(sources=sources)))


async def test_the_service_account_volume(node: Node) -> None:
    node.api.config_maps["ns/kube-root-ca.crt"] = ConfigMap(data={"ca.crt": "CA"})
    prepared = await node.manager.prepare(service_account_pod())
    assert texts(prepared["api"].host_path) == {"token": "token1-robot", "ca.crt": "CA", "namespace": "ns"}
    bound = node.api.requests[0].spec.bound_object_ref
    assert bound is not None
    assert (bound.kind, bound.api_version, bound.name, bound.uid) == ("Pod", "v1", "p", "u1")
    assert node.api.requests[0].spec.audiences == ()
    await node.manager.prepare(service_account_pod())
    assert len(node.api.requests) == 1


async def written(path: Path, text: str) -> None:
    """Wait until a thread has written that text."""
    async with asyncio.timeout(60):
        await asyncio.to_thread(lambda: next(None for _ in itertools.count() if path.read_text() == text))


async def test_tokens_are_renewed_at_80_percent_of_their_life(node: Node) -> None:
    node.api.config_maps["ns/kube-root-ca.crt"] = ConfigMap(data={"ca.crt": "CA"})
    prepared = await node.manager.prepare(service_account_pod(1000))
    running = asyncio.create_task(node.manager.run())
    await node.clock.advance(780)
    assert len(node.api.requests) == 1
    await node.clock.advance(60)
    await written(prepared["api"].host_path / "token", "token2-robot")
    running.cancel()


async def test_an_old_token_stays_while_the_api_is_down_until_it_ends(node: Node) -> None:
    node.api.config_maps["ns/kube-root-ca.crt"] = ConfigMap(data={"ca.crt": "CA"})
    made = service_account_pod(1000)
    prepared = await node.manager.prepare(made)
    node.api.down = True
    await node.clock.advance(900)
    assert not await node.manager.refresh(made)
    assert texts(prepared["api"].host_path)["token"] == "token1-robot"
    await node.clock.advance(200)
    with pytest.raises(VolumeError, match="failed to fetch token: apiserver is down"):
        await node.manager.refresh(made)


async def test_refresh_follows_the_api(node: Node) -> None:
    node.api.config_maps["ns/cm"] = ConfigMap(data={"a": "1"})
    made = pod(Volume(name="v", config_map=ConfigMapVolumeSource(name="cm")))
    assert not await node.manager.refresh(made)
    prepared = await node.manager.prepare(made)
    assert not await node.manager.refresh(made)
    node.api.config_maps["ns/cm"] = ConfigMap(data={"a": "2", "b": "3"})
    assert await node.manager.refresh(made)
    assert texts(prepared["v"].host_path) == {"a": "2", "b": "3"}
    del node.api.config_maps["ns/cm"]
    with pytest.raises(VolumeError, match="not found"):
        await node.manager.refresh(made)
    assert texts(prepared["v"].host_path) == {"a": "2", "b": "3"}


def mounts_of(*mounts: VolumeMount) -> Container:
    return Container(name="c", volume_mounts=mounts)


async def test_container_mounts(node: Node) -> None:
    node.api.config_maps["ns/cm"] = ConfigMap(data={"a": "1"})
    made = pod(
        Volume(name="e", empty_dir=EmptyDirVolumeSource()),
        Volume(name="v", config_map=ConfigMapVolumeSource(name="cm")),
    )
    prepared = await node.manager.prepare(made)
    container = mounts_of(
        VolumeMount(name="e", mount_path="/e", mount_propagation="HostToContainer"),
        VolumeMount(name="v", mount_path="/v"),
        VolumeMount(name="v", mount_path="etc/a", sub_path="a"),
        VolumeMount(name="e", mount_path="/s", sub_path_expr="logs/$(POD)", read_only=True),
    )
    mounts = await node.manager.container_mounts(made, container, prepared, env={"POD": "p"})
    subpaths = node.root / "kubelet/pods/u1/volume-subpaths"
    e, v = node.directory("empty-dir", "e"), node.directory("configmap", "v")
    assert mounts == (
        Mount("e", str(e), "/e", propagation="HostToContainer"),
        Mount("v", str(v), "/v", read_only=True),
        Mount("v", str(subpaths / "v/c/2"), "/etc/a", read_only=True),
        Mount("e", str(subpaths / "e/c/3"), "/s", read_only=True),
    )
    assert (e / "logs/p").is_dir()
    assert stat.S_IMODE((e / "logs/p").stat().st_mode) == 0o777
    sources = dict(node.mounter.mounts)
    assert sources[subpaths / "e/c/3"] == str(e / "logs/p")
    assert sources[subpaths / "v/c/2"] == str((v / "a").resolve())


@pytest.mark.parametrize(
    ("mount", "words"),
    [
        (VolumeMount(name="nope", mount_path="/x"), 'names volume "nope"'),
        (VolumeMount(name="e", mount_path="/x", sub_path="../up"), "must be relative"),
        (VolumeMount(name="e", mount_path="/x", sub_path="/etc"), "must be relative"),
        (VolumeMount(name="e", mount_path="/x", sub_path="out"), "leads out of the volume"),
        (VolumeMount(name="e", mount_path="/x", sub_path="out/passwd"), "leads out of the volume"),
        (VolumeMount(name="e", mount_path="/x", sub_path="up/x"), "leads out of the volume"),
        (VolumeMount(name="e", mount_path="/x", sub_path="dangling/x"), "leads out of the volume"),
        (VolumeMount(name="e", mount_path="/x", sub_path_expr="$(NO)"), "no variable named 'NO'"),
    ],
)
async def test_mounts_that_are_refused(node: Node, mount: VolumeMount, words: str) -> None:
    made = pod(Volume(name="e", empty_dir=EmptyDirVolumeSource()))
    prepared = await node.manager.prepare(made)
    volume = prepared["e"].host_path
    (volume / "out").symlink_to("/etc")
    (volume / "up").symlink_to("../../..")
    (volume / "dangling").symlink_to("/nowhere/at/all")
    with pytest.raises(VolumeError, match=words):
        await node.manager.container_mounts(made, mounts_of(mount), prepared)
    assert node.mounter.mounts == []


async def test_teardown_unmounts_first_and_leaves_what_was_lent(node: Node) -> None:
    lent = node.root / "host/lent"
    lent.mkdir()
    (lent / "keep").touch()
    made = pod(
        Volume(name="e", empty_dir=EmptyDirVolumeSource(medium="Memory")),
        Volume(name="h", host_path=HostPathVolumeSource(path="/lent", type="Directory")),
    )
    prepared = await node.manager.prepare(made)
    mount = VolumeMount(name="h", mount_path="/x", sub_path="keep")
    await node.manager.container_mounts(made, mounts_of(mount), prepared)
    await node.manager.teardown("u1")
    assert node.mounter.mounts == []
    assert not (node.root / "kubelet/pods/u1").exists()
    assert (lent / "keep").exists()
    await node.manager.teardown("u1")


async def test_teardown_deletes_nothing_while_a_mount_is_busy(node: Node) -> None:
    made = pod(Volume(name="e", empty_dir=EmptyDirVolumeSource(medium="Memory")))
    path = (await node.manager.prepare(made))["e"].host_path
    (path / "data").touch()
    node.mounter.busy.add(path)
    with pytest.raises(VolumeError, match=r"busy.*in use by") as caught:
        await node.manager.teardown("u1")
    assert caught.value.reason == "FailedUnMount"
    assert str(path) in caught.value.message
    assert (path / "data").exists()
    node.mounter.busy.clear()
    await node.manager.teardown("u1")
    assert not path.exists()


@pytest.mark.parametrize("uid", ["../x", "", "a/b", ".", ".."])
async def test_uids_that_would_leave_the_root_are_refused(node: Node, uid: str) -> None:
    with pytest.raises(VolumeError, match="not usable"):
        await node.manager.teardown(uid)


async def test_an_api_error_is_a_failed_mount(node: Node) -> None:
    async def refuse(namespace: str, name: str) -> None:
        raise Forbidden("secrets is forbidden", status=403)

    node.api.get_secret = refuse
    message = await fails(node, pod(Volume(name="v", secret=SecretVolumeSource(secret_name="s"))))
    assert message == 'MountVolume.SetUp failed for volume "v" : secrets is forbidden'


async def test_the_pods_labels_are_followed(node: Node) -> None:
    item = DownwardAPIVolumeFile(path="labels", field_ref=ObjectFieldSelector(field_path="metadata.labels"))
    source = DownwardAPIVolumeSource(items=(item,))
    projection = ProjectedVolumeSource(sources=(VolumeProjection(downward_api=source),))
    for volume in (Volume(name="d", downward_api=source), Volume(name="d", projected=projection)):
        old, new = pod(volume, labels={"x": "1"}), pod(volume, labels={"x": "2"})
        file = (await node.manager.prepare(old))["d"].host_path / "labels"
        node.manager.pod_changed(old, new)
        await written(file, 'x="2"')
        await node.manager.teardown("u1")
        node.manager.pod_changed(new, old)
        await settle()
        assert not file.exists()


async def test_what_could_not_be_written_is_tried_again() -> None:
    clock, seen, failures = FakeClock(), [], [VolumeError("disk full"), VolumeError("disk full")]

    async def refresh(wanted: Pod) -> None:
        seen.append(wanted.metadata.labels["x"])
        await asyncio.sleep(0)
        if failures:
            raise failures.pop()

    follower = Follower(refresh=refresh, due=list, clock=clock)
    running = asyncio.create_task(follower.run())
    follower.changed(pod(labels={"x": "1"}))
    await settle()
    follower.changed(pod(labels={"x": "2"}))
    await asyncio.sleep(0)
    follower.changed(pod(labels={"x": "3"}))
    follower.changed(pod(labels={"x": "4"}))  # while 2 is being written: 3 is never
    await settle()
    assert seen == ["1", "2", "4"]
    failures.append(VolumeError("disk full"))
    follower.changed(pod(labels={"x": "5"}))
    await clock.advance(CHECK)
    await clock.advance(CHECK)
    assert seen == ["1", "2", "4", "5", "5"]
    running.cancel()


async def test_what_an_earlier_agent_wrote_lasts_while_the_api_is_away(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    token = VolumeProjection(service_account_token=ServiceAccountTokenProjection(path="token"))
    wanted = pod(Volume(name="v", projected=ProjectedVolumeSource(sources=(token,))))
    first = Node(tmp_path)
    before = texts((await first.manager.prepare(wanted))["v"].host_path)
    second = Node(tmp_path)
    second.mounter.mounts = first.mounter.mounts
    second.api.down = True
    following = asyncio.create_task(second.manager.run())
    prepared = await second.manager.prepare(wanted)
    assert prepared["v"].read_only and texts(prepared["v"].host_path) == before
    await second.clock.advance(CHECK)
    await settle()
    second.api.down = False
    await second.clock.advance(CHECK)
    await settle(100)
    assert len(second.api.requests) == 1, "the token is asked for once there is somebody to ask"
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_what_nobody_has_written_does_not_come_from_nowhere(node: Node) -> None:
    node.api.down = True
    token = VolumeProjection(service_account_token=ServiceAccountTokenProjection(path="token"))
    with pytest.raises(VolumeError, match="apiserver is down"):
        await node.manager.prepare(pod(Volume(name="v", projected=ProjectedVolumeSource(sources=(token,)))))
