"""Device plugins over real sockets: registration, health, and devices that stay with their containers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from device_plugin import SamplePlugin
from podkit import make_pod

from agent.devices.grants import DeviceError
from agent.devices.manager import GRACE, DeviceManager
from agent.devices.registration import problem
from host.clocks import FakeClock
from host.errors import InputError
from proto.devices import plugin_pb2 as pb

RESOURCE = "example.com/null"


class Bench:
    """A manager at work and the plugins of a test."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder, self.clock = root, root / "device-plugins", FakeClock()
        self.over: set[str] = set()
        self.plugins: list[SamplePlugin] = []
        self.manager = self.new_manager()

    def new_manager(self) -> DeviceManager:
        return DeviceManager(root=self.root, clock=self.clock, over=lambda uid: uid in self.over)

    async def plugin(self, *args: Any, **fields: Any) -> SamplePlugin:
        plugin = SamplePlugin(self.folder, *args, **fields)
        self.plugins.append(plugin)
        await plugin.start()
        await self.until(lambda: self.manager.resources().get(plugin.resource, (0, 0))[1] > 0)
        return plugin

    async def until(self, fact: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not fact():
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self.manager.run())
        try:
            await self.until(lambda: (self.folder / "kubelet.sock").exists() or running.done())
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    async with made.at_work():
        yield made
        for plugin in made.plugins:
            await plugin.stop()


def pod(uid: str, count: int = 1, *, resource: str = RESOURCE, **spec: Any) -> Any:
    limits = {"limits": {resource: str(count)}}
    container = {"name": "app", "image": "busybox", "resources": limits}
    return make_pod(metadata={"name": uid, "uid": uid}, spec={"containers": [container], **spec})


async def given(bench: Bench, one: Any) -> Any:
    assert bench.manager.reserve(one) == ""
    return await bench.manager.prepare(one, one.spec.containers[0])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"version": "v1alpha"}, "requested API version 'v1alpha' is not supported"),
        ({"resource_name": "cpu"}, "the ResourceName 'cpu' is invalid"),
        ({"resource_name": "kubernetes.io/x"}, "is invalid"),
        ({"resource_name": "requests.example.com/x"}, "is invalid"),
        ({"resource_name": "example.com/x/y"}, "is invalid"),
        ({"endpoint": "../../x.sock"}, "must be the name of a socket beside kubelet.sock"),
        ({"endpoint": ""}, "must be the name of a socket"),
    ],
)
async def test_a_bad_registration_is_refused_with_the_field(bench: Bench, fields: Any, words: str) -> None:
    plugin = SamplePlugin(bench.folder)
    with pytest.raises(grpc.aio.AioRpcError, match="INVALID_ARGUMENT") as caught:
        await plugin.register(**fields)
    assert words in caught.value.details()
    assert bench.manager.resources() == {}


def test_a_good_registration_is_none_of_these() -> None:
    assert problem(pb.RegisterRequest(version="v1beta1", endpoint="a.sock", resource_name=RESOURCE)) == ""


async def test_a_folder_too_deep_for_a_socket_costs_only_device_plugins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path / ("deep" * 25))
    running = asyncio.create_task(bench.manager.run())
    await bench.until(lambda: "no device plugins here" in caplog.text)
    assert "shorten --root-dir" in caplog.text and not running.done()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_two_agents_do_not_share_a_folder(bench: Bench) -> None:
    with pytest.raises(InputError, match=r"kubelet\.sock"):
        await bench.new_manager().run()
    await bench.plugin()


async def test_capacity_and_allocatable_follow_health_and_plugin(bench: Bench) -> None:
    plugin = await bench.plugin()
    assert bench.manager.resources() == {RESOURCE: (2, 2)}
    plugin.tell(sick={"two"})
    await bench.until(lambda: bench.manager.resources() == {RESOURCE: (2, 1)})
    await plugin.stop()
    await bench.until(lambda: bench.manager.resources() == {RESOURCE: (2, 0)})
    await bench.clock.advance(GRACE + 1)
    assert bench.manager.resources() == {RESOURCE: (0, 0)}
    await plugin.start()
    await bench.until(lambda: bench.manager.resources() == {RESOURCE: (2, 1)})


async def test_a_container_gets_what_the_plugin_gave(bench: Bench) -> None:
    plugin = await bench.plugin(pre_start=True)
    grants = await given(bench, pod("a", 2))
    assert grants.envs == {"SAMPLE_DEVICES": "one,two"}
    assert {(d.container_path, d.host_path, d.permissions) for d in grants.devices} == {
        ("/dev/sample-one", "/dev/null", "rw"),
        ("/dev/sample-two", "/dev/zero", "rw"),
    }
    assert [(m.container_path, m.readonly) for m in grants.mounts] == [("/sample", True)]
    assert grants.annotations == {"example.com/devices": "2"}
    assert plugin.readied == [["one", "two"]]


async def test_no_device_has_two_pods_until_one_has_ended(bench: Bench) -> None:
    await bench.plugin()
    first, second, third = pod("a"), pod("b"), pod("c")
    devices = {(await given(bench, one)).envs["SAMPLE_DEVICES"] for one in (first, second)}
    assert devices == {"one", "two"}
    assert bench.manager.reserve(third) == (
        "requested number of devices unavailable for example.com/null. Requested: 1, Available: 0"
    )
    bench.over.add("a")
    assert (await given(bench, third)).envs["SAMPLE_DEVICES"] == "one"


async def test_a_sick_device_is_not_given(bench: Bench) -> None:
    plugin = await bench.plugin()
    plugin.tell(sick={"one"})
    await bench.until(lambda: bench.manager.resources() == {RESOURCE: (2, 1)})
    assert (await given(bench, pod("a"))).envs["SAMPLE_DEVICES"] == "two"


async def test_the_plugin_may_choose(bench: Bench) -> None:
    devices = {name: "/dev/null" for name in ("a", "b", "c")}
    await bench.plugin(RESOURCE, devices, prefer=("c", "b"))
    assert (await given(bench, pod("1"))).envs["SAMPLE_DEVICES"] == "c"
    assert (await given(bench, pod("2", 2))).envs["SAMPLE_DEVICES"] == "a,b"


async def test_an_agent_that_starts_anew_knows_who_has_what(bench: Bench) -> None:
    plugin = await bench.plugin()
    had = await given(bench, pod("a"))
    again = bench.new_manager()
    assert again.resources() == {RESOURCE: (0, 0)}, "the plugin has not told the new agent anything"
    assert await again.prepare(pod("a"), pod("a").spec.containers[0]) == had
    assert plugin.allocated == [["one"]], "a container that starts again has what it had"
    bench.manager = again
    await plugin.stop()


async def test_after_a_restart_others_get_others(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    async with bench.at_work():
        plugin = await bench.plugin()
        await given(bench, pod("a"))
        await plugin.stop()
    bench.manager = bench.new_manager()
    async with bench.at_work():
        await plugin.start()
        await bench.until(lambda: bench.manager.resources() == {RESOURCE: (2, 2)})
        assert (await given(bench, pod("b"))).envs["SAMPLE_DEVICES"] == "two"
        bench.manager.release("a")
        assert (await given(bench, pod("c"))).envs["SAMPLE_DEVICES"] == "one"
        await plugin.stop()


async def test_a_plugin_that_refuses_or_is_away_is_named_and_asked_again(bench: Bench) -> None:
    plugin = await bench.plugin()
    plugin.refuses = "out of order"
    words = r"device plugin of example.com/null \(sample.sock\): Allocate: out of order"
    with pytest.raises(DeviceError, match=words):
        await given(bench, pod("a"))
    plugin.refuses = ""
    assert (await given(bench, pod("a"))).envs["SAMPLE_DEVICES"] == "one"
    assert bench.manager.reserve(pod("b")) == ""
    await plugin.stop()
    await bench.until(lambda: bench.manager.resources() == {RESOURCE: (2, 0)})
    with pytest.raises(DeviceError, match=r"no device plugin is registered for example\.com/null"):
        await bench.manager.prepare(pod("b"), pod("b").spec.containers[0])


async def test_a_plugin_that_registers_anew_takes_its_place(bench: Bench) -> None:
    old = await bench.plugin()
    new = await bench.plugin(RESOURCE, {"x": "/dev/null"}, endpoint="new.sock")
    await bench.until(lambda: bench.manager.resources() == {RESOURCE: (1, 1)})
    await old.stop()
    assert (await given(bench, pod("a"))).envs["SAMPLE_DEVICES"] == "x"
    assert new.allocated == [["x"]]


async def test_a_plugin_that_registers_before_it_listens_is_waited_for(bench: Bench) -> None:
    plugin = SamplePlugin(bench.folder)
    bench.plugins.append(plugin)
    await plugin.register()
    await asyncio.sleep(0.1)
    assert bench.manager.resources() == {RESOURCE: (0, 0)}
    await plugin.start()
    await bench.until(lambda: bench.manager.resources() == {RESOURCE: (2, 2)})


async def test_what_nobody_announced_is_not_this_nodes_business(bench: Bench) -> None:
    assert bench.manager.reserve(pod("a", resource="example.org/licence")) == ""
    one = pod("a", resource="example.org/licence")
    grants = await bench.manager.prepare(one, one.spec.containers[0])
    assert (grants.envs, grants.devices, grants.mounts) == ({}, (), ())


async def test_a_damaged_record_is_named_and_the_rest_is_good(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    await bench.plugin()
    await given(bench, pod("a"))
    await given(bench, pod("b"))
    path = bench.root / "pods/a/devices"
    path.write_bytes(path.read_bytes().replace(b"one", b"two"))
    again = bench.new_manager()
    assert str(path) in caplog.text and "checksum" in caplog.text
    assert again.reserve(pod("b")) == ""


async def test_a_disk_that_refuses_reserves_nothing(bench: Bench) -> None:
    await bench.plugin()
    (bench.root / "pods").write_text("in the way")
    assert "the pod's devices cannot be recorded" in bench.manager.reserve(pod("a"))
    (bench.root / "pods").unlink()
    assert (await given(bench, pod("b", 2))).envs["SAMPLE_DEVICES"] == "one,two"
