"""Volumes of a pod without root: a mount table that is a list, API objects that are in dicts."""

import asyncio
import base64
import os
import socket
import stat
from pathlib import Path

import pytest

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
    ObjectMeta,
    Pod,
    PodSpec,
    ProjectedVolumeSource,
    ResourceFieldSelector,
    ResourceRequirements,
    Secret,
    SecretVolumeSource,
    ServiceAccountTokenProjection,
    TokenRequest,
    TokenRequestStatus,
    Volume,
    VolumeMount,
    VolumeProjection,
)
from agent.api.times import format_time
from agent.volumes.base import Unready
from agent.volumes.downward_api import field_text, resource_text
from agent.volumes.empty_dir import memory_size
from agent.volumes.manager import Mount, VolumeError, VolumeManager
from agent.volumes.mounts import mount_points
from host.clocks import FakeClock
from host.errors import Busy


class FakeMounter:
    """A mount table in memory: remembers, refuses what is not mounted, and can be told to be busy."""

    def __init__(self) -> None:
        self.table: list[tuple[Path, str]] = []
        self.busy: set[Path] = set()

    def tmpfs(self, path: Path, *, mode: int, size: int | None = None) -> None:
        assert path.is_dir()
        self.table.append((path, f"tmpfs size={size}"))

    def bind(self, fd: int, target: Path) -> None:
        assert target.exists()
        self.table.append((target, os.readlink(f"/proc/self/fd/{fd}")))

    def unmount(self, path: Path, *, lazy: bool = False) -> None:
        if path in self.busy:
            raise Busy(16, f"umount {path}")
        self.table = [entry for entry in self.table if entry[0] != path]

    def is_mounted(self, path: Path) -> bool:
        return any(entry[0] == path for entry in self.table)

    def below(self, path: Path) -> list[Path]:
        return [entry[0] for entry in reversed(self.table) if path in (entry[0], *entry[0].parents)]


class FakeApi:
    """Sources in dicts, and a token that says how often it was asked for."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.config_maps: dict[str, ConfigMap] = {}
        self.secrets: dict[str, Secret] = {}
        self.requests: list[TokenRequest] = []
        self.down = False

    async def get_config_map(self, namespace: str, name: str) -> ConfigMap | None:
        return self.config_maps.get(f"{namespace}/{name}")

    async def get_secret(self, namespace: str, name: str) -> Secret | None:
        return self.secrets.get(f"{namespace}/{name}")

    async def create_token(self, namespace: str, service_account: str, request: TokenRequest) -> TokenRequest:
        if self.down:
            raise ConnectionError("apiserver is down")
        self.requests.append(request)
        seconds = request.spec.expiration_seconds or 0
        return TokenRequest(
            spec=request.spec,
            status=TokenRequestStatus(
                token=f"token{len(self.requests)}-{service_account}",
                expiration_timestamp=format_time(self.clock.now() + seconds),
            ),
        )


class Node:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = FakeClock()
        self.api = FakeApi(self.clock)
        self.mounter = FakeMounter()
        self.manager = VolumeManager(
            root=root / "kubelet",
            sources=self.api,
            clock=self.clock,
            allocatable=lambda: {"memory": "1Gi", "cpu": "2"},
            host_root=root / "host",
            mounter=self.mounter,
        )

    def directory(self, plugin: str, name: str) -> Path:
        return self.root / "kubelet/pods/u1/volumes" / f"kubernetes.io~{plugin}" / name


@pytest.fixture
def node(tmp_path: Path) -> Node:
    (tmp_path / "host").mkdir()
    return Node(tmp_path)


def pod(*volumes: Volume, containers: tuple[Container, ...] = (), **metadata: object) -> Pod:
    return Pod(
        metadata=ObjectMeta(name="p", namespace="ns", uid="u1", **metadata),
        spec=PodSpec(volumes=volumes, containers=containers, service_account_name="robot"),
    )


def texts(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir() if path.is_file()}


async def fails(node: Node, made: Pod) -> str:
    with pytest.raises(VolumeError) as caught:
        await node.manager.prepare(made)
    assert caught.value.reason == "FailedMount"
    return caught.value.message


async def test_empty_dir_is_world_writable_and_survives_a_second_prepare(node: Node) -> None:
    made = pod(Volume(name="scratch", empty_dir=EmptyDirVolumeSource()))
    prepared = await node.manager.prepare(made)
    path = prepared["scratch"].host_path
    assert path == node.directory("empty-dir", "scratch")
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    (path / "data").write_text("x")
    os.chmod(path, 0o700)
    assert await node.manager.prepare(made) == prepared
    assert (path / "data").exists()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


async def test_empty_dir_in_memory_is_mounted_once(node: Node) -> None:
    made = pod(Volume(name="mem", empty_dir=EmptyDirVolumeSource(medium="Memory", size_limit="64Mi")))
    await node.manager.prepare(made)
    await node.manager.prepare(made)
    assert node.mounter.table == [(node.directory("empty-dir", "mem"), f"tmpfs size={64 << 20}")]


@pytest.mark.parametrize(
    ("limit", "container_limits", "allocatable", "expected"),
    [
        ("64Mi", (), "1Gi", 64 << 20),
        (None, (), "1Gi", 1 << 30),
        ("2Gi", ("256Mi", "256Mi"), "1Gi", 512 << 20),
        ("2Gi", ("256Mi", None), "1Gi", 1 << 30),
        (None, (), None, None),
    ],
)
def test_memory_sizes(
    limit: str | None, container_limits: tuple[str | None, ...], allocatable: str | None, expected: int | None
) -> None:
    containers = tuple(
        Container(resources=ResourceRequirements(limits={"memory": one} if one else {}))
        for one in container_limits
    )
    source = EmptyDirVolumeSource(medium="Memory", size_limit=limit)
    assert memory_size(source, pod(containers=containers), allocatable) == expected


async def test_an_unknown_medium_is_refused_by_name(node: Node) -> None:
    made = pod(Volume(name="huge", empty_dir=EmptyDirVolumeSource(medium="HugePages")))
    assert "emptyDir medium 'HugePages' is not supported" in await fails(node, made)


def host_path(path: str, kind: str) -> Pod:
    return pod(Volume(name="h", host_path=HostPathVolumeSource(path=path, type=kind)))


async def test_host_path_makes_what_its_type_allows(node: Node) -> None:
    await node.manager.prepare(host_path("/a/b", "DirectoryOrCreate"))
    assert stat.S_IMODE((node.root / "host/a/b").stat().st_mode) == 0o755
    await node.manager.prepare(host_path("/a/f", "FileOrCreate"))
    assert stat.S_IMODE((node.root / "host/a/f").stat().st_mode) == 0o644
    await node.manager.prepare(host_path("/a/x", ""))
    assert (node.root / "host/a/x").is_dir()
    prepared = await node.manager.prepare(host_path("/a/f", "File"))
    assert prepared["h"].host_path == node.root / "host/a/f"


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/file", "Directory", "/file is not a directory"),
        ("/file", "DirectoryOrCreate", "/file is not a directory"),
        ("/dir", "File", "/dir is not a file"),
        ("/dir", "FileOrCreate", "/dir is not a file"),
        ("/file", "Socket", "/file is not a socket file"),
        ("/file", "CharDevice", "/file is not a character device"),
        ("/null", "BlockDevice", "/null is not a block device"),
        ("/missing", "Directory", "/missing is not a directory: no such file or directory"),
        ("/missing/f", "FileOrCreate", "/missing/f: no such file or directory"),
        ("/file", "Folder", "hostPath type 'Folder' is unknown"),
        ("/../etc", "", "must be absolute and must not contain '..'"),
        ("etc", "", "must be absolute"),
    ],
)
async def test_host_path_of_the_wrong_type_is_named(node: Node, path: str, kind: str, words: str) -> None:
    host = node.root / "host"
    (host / "file").touch()
    (host / "dir").mkdir()
    (host / "null").symlink_to("/dev/null")
    message = await fails(node, host_path(path, kind))
    assert message.startswith('MountVolume.SetUp failed for volume "h" : ')
    assert words in message


async def test_host_path_sockets_and_devices(node: Node) -> None:
    host = node.root / "host"
    (host / "null").symlink_to("/dev/null")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(host / "sock"))
    listening.close()
    await node.manager.prepare(host_path("/sock", "Socket"))
    await node.manager.prepare(host_path("/null", "CharDevice"))


async def test_config_map_volume(node: Node) -> None:
    node.api.config_maps["ns/cm"] = ConfigMap(
        data={"a": "1", "b": "2"}, binary_data={"c": base64.b64encode(b"\x00").decode()}
    )
    prepared = await node.manager.prepare(pod(Volume(name="v", config_map=ConfigMapVolumeSource(name="cm"))))
    assert texts(prepared["v"].host_path) == {"a": "1", "b": "2", "c": "\x00"}
    assert prepared["v"].read_only and prepared["v"].live
    assert node.mounter.table == []


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


async def test_tokens_are_renewed_at_80_percent_of_their_life(node: Node) -> None:
    node.api.config_maps["ns/kube-root-ca.crt"] = ConfigMap(data={"ca.crt": "CA"})
    prepared = await node.manager.prepare(service_account_pod(1000))
    running = asyncio.create_task(node.manager.run())
    await node.clock.advance(780)
    assert len(node.api.requests) == 1
    await node.clock.advance(60)
    async with asyncio.timeout(5):  # the files are written in a thread
        while texts(prepared["api"].host_path)["token"] != "token2-robot":
            await asyncio.sleep(0)
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
    sources = dict(node.mounter.table)
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
    assert node.mounter.table == []


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
    assert node.manager.pods_on_disk() == {"u1"}
    await node.manager.teardown("u1")
    assert node.mounter.table == []
    assert node.manager.pods_on_disk() == set()
    assert (lent / "keep").exists()
    await node.manager.teardown("u1")


async def test_teardown_deletes_nothing_while_a_mount_is_busy(node: Node) -> None:
    made = pod(Volume(name="e", empty_dir=EmptyDirVolumeSource(medium="Memory")))
    path = (await node.manager.prepare(made))["e"].host_path
    (path / "data").touch()
    node.mounter.busy.add(path)
    with pytest.raises(VolumeError, match=r"busy.*in use by") as caught:
        await node.manager.teardown("u1")
    assert caught.value.reason == "FailedUnmount"
    assert str(path) in caught.value.message
    assert (path / "data").exists()
    node.mounter.busy.clear()
    await node.manager.teardown("u1")
    assert not path.exists()


@pytest.mark.parametrize("uid", ["../x", "", "a/b", ".", ".."])
async def test_uids_that_would_leave_the_root_are_refused(node: Node, uid: str) -> None:
    with pytest.raises(VolumeError, match="not usable"):
        await node.manager.teardown(uid)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("metadata.name", "p"),
        ("metadata.uid", "u1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['none']", ""),
        ("metadata.labels", 'app="web"\ntier="a\\"b\\n\\x01ü"'),
    ],
)
def test_downward_fields(path: str, text: str) -> None:
    made = pod(labels={"tier": 'a"b\n\x01ü', "app": "web"})
    assert field_text(made, path) == text


@pytest.mark.parametrize(
    ("resource", "divisor", "text"),
    [
        ("limits.cpu", "", "1"),
        ("limits.cpu", "1m", "500"),
        ("limits.memory", "1Mi", "1024"),
        ("requests.memory", "", "1000"),
        ("requests.cpu", "1m", "0"),
    ],
)
def test_downward_resources(resource: str, divisor: str, text: str) -> None:
    resources = ResourceRequirements(limits={"cpu": "500m"}, requests={"memory": "1k"})
    made = pod(containers=(Container(name="c", resources=resources),))
    selector = ResourceFieldSelector(container_name="c", resource=resource, divisor=divisor)
    assert resource_text(made, selector, {"memory": "1Gi"}) == text


@pytest.mark.parametrize(
    "selector",
    [
        ResourceFieldSelector(container_name="x", resource="limits.cpu"),
        ResourceFieldSelector(container_name="c", resource="limits.magic"),
        ResourceFieldSelector(container_name="c", resource="limits.cpu", divisor="z"),
    ],
)
def test_downward_resources_that_are_refused(selector: ResourceFieldSelector) -> None:
    with pytest.raises(Unready):
        resource_text(pod(containers=(Container(name="c"),)), selector, {})


def test_mount_points_from_mountinfo() -> None:
    text = (
        "36 35 98:0 / /p rw,noatime - ext3 /dev/root rw\n"
        "37 36 0:5 / /p/a\\040b rw - tmpfs tmpfs rw\n"
        "38 36 0:6 / /pq rw - tmpfs tmpfs rw\n"
        "garbage\n"
    )
    assert mount_points(text, Path("/p")) == [Path("/p/a b"), Path("/p")]
