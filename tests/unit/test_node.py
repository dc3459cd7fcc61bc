"""The Node object: facts, conditions, registration, posting, lease; all with a fake API and a fake
runtime."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from apikit import ScriptedTransport, refusal

from agent.api import errors
from agent.api.client import ApiClient
from agent.api.events import EventRecorder
from agent.api.structs import Condition, ContainerImage, Node, NodeAddress, NodeStatus, ObjectMeta
from agent.node import addresses, conditions, facts, status
from agent.node.conditions import RuntimeState
from agent.node.facts import Machine
from agent.node.lease import LeaseKeeper
from agent.node.manager import NodeManager, status_patch
from agent.node.status import NodePlan
from host.clocks import FakeClock, settle
from host.errors import InputError

GIB = 1 << 30
MACHINE = Machine("m", "u", "b", "6.1", "Debian", "amd64", 4, 8 * GIB, {"hugepages-2Mi": 0})
UP = RuntimeState(ready=True, network_ready=True, name="nodelet-cri", version="0.1.0")
PLAN = NodePlan(
    name="n1",
    hostname="n1",
    version="v1.37.0+nodelet.0.1.0",
    port=10250,
    max_pods=110,
    eviction_hard={"memory.available": "100Mi", "nodefs.available": "10%"},
    reserved=({"cpu": "500m", "memory": "1Gi"}, {"cpu": "100m"}),
)


def by_type(found):
    return {condition.type: condition for condition in found}


def build(**more):
    defaults = {"machine": MACHINE, "nodefs": 100 * GIB, "runtime": UP, "addresses": ()}
    return status.build(PLAN, **{**defaults, **more})


def test_devices_are_capacity_and_what_is_healthy_allocatable():
    built = build(devices={"example.com/gpu": (4, 3), "example.com/gone": (0, 0)})
    assert (built.capacity["example.com/gpu"], built.allocatable["example.com/gpu"]) == ("4", "3")
    assert (built.capacity["example.com/gone"], built.allocatable["example.com/gone"]) == ("0", "0")
    assert built.capacity["cpu"]


def test_a_healthy_node_is_ready():
    found = by_type(build().conditions)
    assert found["Ready"].status == "True"
    assert [found[kind].status for kind in ("MemoryPressure", "DiskPressure", "PIDPressure")] == ["False"] * 3


def test_allocatable_is_less_than_capacity_by_reserved_and_thresholds():
    found = build()
    assert found.capacity["cpu"] == "4"
    assert found.allocatable["cpu"] == "3400m"
    assert found.allocatable["memory"] == f"{(7 * GIB - 100 * (1 << 20)) // 1024}Ki"
    assert int(found.allocatable["ephemeral-storage"]) == 90 * GIB
    assert found.allocatable["pods"] == "110"


def test_pressure_shows_the_arithmetic():
    found = by_type(build(pressures={"MemoryPressure": "1 is below 2"}).conditions)
    memory = found["MemoryPressure"]
    assert (memory.status, memory.reason) == ("True", "KubeletHasInsufficientMemory")
    assert memory.message == "1 is below 2"
    assert found["DiskPressure"].reason == "KubeletHasNoDiskPressure"


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        (RuntimeState(error="no socket"), "container runtime is down: no socket"),
        (
            RuntimeState(ready=False, network_ready=True, runtime_message="R"),
            "container runtime not ready: R",
        ),
        (
            RuntimeState(ready=True, network_message="NetworkReady=false reason:NetworkPluginNotReady"),
            "container runtime network not ready: NetworkReady=false",
        ),
    ],
)
def test_why_a_node_is_not_ready(runtime, words):
    ready = by_type(build(runtime=runtime).conditions)["Ready"]
    assert (ready.status, ready.reason) == ("False", "KubeletNotReady")
    assert words in ready.message


def test_other_problems_are_listed():
    ready = conditions.ready(UP, ("node has no podCIDR",))
    assert ready.message == "node has no podCIDR"


def test_transition_times_change_only_with_the_status():
    old = (Condition(type="Ready", status="True", last_transition_time="T0"),)
    same = conditions.stamp((Condition(type="Ready", status="True"),), old, now="T1")[0]
    other = conditions.stamp((Condition(type="Ready", status="False"),), old, now="T1")[0]
    assert (same.last_transition_time, same.last_heartbeat_time) == ("T0", "T1")
    assert other.last_transition_time == "T1"


def test_a_pressure_that_comes_or_goes_is_an_event():
    calm, tense = (build(pressures=p).conditions for p in ({}, {"DiskPressure": "x"}))
    assert conditions.pressure_events(tense, calm) == ("NodeHasDiskPressure",)
    assert conditions.pressure_events(calm, tense) == ("NodeHasNoDiskPressure",)
    assert conditions.pressure_events(tense, tense) == conditions.pressure_events(tense, ()) == ()


def test_adoption_keeps_what_others_wrote():
    node = Node(metadata=ObjectMeta(name="n1", uid="u", labels={"mine": "x", "kubernetes.io/os": "linux"}))
    patch = status.adoption(node, PLAN, MACHINE)
    assert patch["metadata"]["uid"] == "u"
    assert patch["metadata"]["labels"]["kubernetes.io/hostname"] == "n1"
    assert "kubernetes.io/os" not in patch["metadata"]["labels"]
    ours = status.new_node(PLAN, MACHINE, NodeStatus())
    assert status.adoption(ours, PLAN, MACHINE) is None


def test_the_status_patch_replaces_addresses_and_removes_what_is_gone():
    old = NodeStatus(capacity={"cpu": "4", "hugepages-1Gi": "0", "example.com/gpu": "1"})
    new = NodeStatus(capacity={"cpu": "4"}, addresses=(NodeAddress(type="InternalIP", address="10.0.0.1"),))
    body = status_patch(new, old)["status"]
    assert body["addresses"][-1] == {"$patch": "replace"}
    assert body["capacity"] == {"cpu": "4", "hugepages-1Gi": None}


def test_facts_of_a_made_up_machine(tmp_path):
    for name, text in {
        "proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 400 kB\nSwapTotal: 8 kB\n",
        "proc/loadavg": "0.1 0.2 0.3 1/321 999\n",
        "proc/sys/kernel/pid_max": "4194304\n",
        "proc/sys/kernel/threads-max": "5000\n",
        "proc/sys/kernel/random/boot_id": "boot\n",
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "3\n",
        "etc/machine-id": "machine\n",
        "etc/os-release": 'NAME=x\nPRETTY_NAME="Some Linux"\n',
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    machine = facts.read_machine(proc=tmp_path / "proc", sys=tmp_path / "sys", etc=tmp_path / "etc")
    assert (machine.memory, machine.os_image, machine.system_uuid) == (1024000, "Some Linux", "machine")
    assert machine.hugepages == {"hugepages-2Mi": 6 << 20}
    assert facts.process_ids(tmp_path / "proc") == (machine.pids, 321) == (5000, 321)
    assert facts.nodefs_capacity(tmp_path) > 0
    roots = {"proc": tmp_path / "proc", "sys": tmp_path / "sys", "etc": tmp_path / "etc"}
    assert [facts.read_machine(memory_limit=limit, **roots).memory for limit in (5, 1 << 40)] == [5, 1024000]


def test_addresses():
    assert addresses.node_ips(("10.0.0.5", "fd00::5"), server="https://x") == ("10.0.0.5", "fd00::5")
    assert addresses.node_ips(("0.0.0.0",), server="https://127.0.0.1:6443") == ("127.0.0.1",)
    with pytest.raises(InputError, match="--node-ip"):
        addresses.node_ips(("10.0.0.5", "10.0.0.6"), server="https://x")
    assert "--node-ip" in addresses.warning(("10.0.2.15",), ())
    assert addresses.warning(("10.0.2.15",), ("10.0.2.15",)) == ""


class FakeRuntime:
    def __init__(self):
        self.now = UP

    async def state(self):
        return self.now

    async def images(self):
        return (ContainerImage(names=("a",), size_bytes=1),)


class FakeNodes:
    """An API server with one Node and one Lease."""

    def __init__(self):
        self.node = None
        self.lease = None
        self.fail = None

    def __call__(self, method, path, query, body):
        if self.fail is not None:
            return self.fail
        if "leases" in path:
            return self._lease(method, body)
        if method == "POST" and path.endswith("/nodes"):
            if self.node is not None:
                return refusal(409, "AlreadyExists")
            self.node = {**body, "metadata": {**body["metadata"], "uid": "node-uid"}}
        elif method == "PATCH" and self.node and path.endswith("/status"):
            self.node["status"] = {
                **self.node.get("status", {}),
                **{k: v for k, v in body["status"].items() if k != "addresses"},
            }
        elif self.node is None:
            return {} if path.endswith("/events") else refusal(404, "NotFound")
        return self.node

    def _lease(self, method, body):
        if method == "GET" and self.lease is None:
            return refusal(404, "NotFound")
        if method in ("POST", "PUT"):
            self.lease = body
        return self.lease


@asynccontextmanager
async def managing(api, tmp_path, runtime=None):
    clock, transport = FakeClock(), ScriptedTransport(api)
    client = ApiClient(transport, clock=clock)
    manager = NodeManager(
        client,
        plan=PLAN,
        root=tmp_path,
        runtime=runtime or FakeRuntime(),
        addresses=tuple,
        events=EventRecorder(None, host="n1", clock=clock),
        clock=clock,
    )
    task = asyncio.create_task(manager.run())
    try:
        await settle(40)
        yield manager, transport, clock
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def posts(transport):
    return [r for r in transport.requests if r[0] == "PATCH" and r[1].endswith("/status")]


async def test_a_new_node_is_created_and_kept(tmp_path):
    api = FakeNodes()
    async with managing(api, tmp_path) as (_, transport, clock):
        assert api.node["metadata"]["labels"]["kubernetes.io/hostname"] == "n1"
        assert api.node["status"]["declaredFeatures"] == ["ExtendWebSocketsToKubelet"]
        assert api.lease["metadata"]["ownerReferences"][0]["uid"] == "node-uid"
        assert len(posts(transport)) == 1
        await clock.advance(250)
        assert len(posts(transport)) == 1
        await clock.advance(60)
        assert len(posts(transport)) == 2
        renewals = [r for r in transport.requests if r[0] == "PUT" and "leases" in r[1]]
        assert len(renewals) == 31


async def test_news_are_posted_at_the_next_look(tmp_path):
    api, runtime = FakeNodes(), FakeRuntime()
    async with managing(api, tmp_path, runtime) as (manager, transport, clock):
        runtime.now = RuntimeState(ready=True, network_message="gone", name="nodelet-cri", version="0.1.0")
        manager.wake()
        await settle(40)
        assert len(posts(transport)) == 2
        assert by_type(manager.status.conditions)["Ready"].status == "False"
        runtime.now = UP
        await clock.advance(1.0)
        assert by_type(manager.status.conditions)["Ready"].status == "True"


async def test_a_restart_of_the_runtime_is_no_news(tmp_path):
    api, runtime = FakeNodes(), FakeRuntime()
    async with managing(api, tmp_path, runtime) as (manager, transport, clock):
        runtime.now = RuntimeState(error="connection refused")
        await clock.advance(25)
        assert len(posts(transport)) == 1
        await clock.advance(15)
        assert len(posts(transport)) == 2
        ready = by_type(manager.status.conditions)["Ready"]
        assert "container runtime is down" in ready.message
        assert manager.status.node_info.container_runtime_version == "nodelet-cri://0.1.0"


async def test_an_existing_ready_node_is_not_flipped_by_a_start_without_runtime(tmp_path):
    api, runtime = FakeNodes(), FakeRuntime()
    api.node = {"metadata": {"name": "n1", "uid": "old"}, "status": {}}
    runtime.now = RuntimeState(error="not there yet")
    async with managing(api, tmp_path, runtime) as (_, transport, clock):
        await clock.advance(5)
        assert posts(transport) == []
        runtime.now = UP
        await clock.advance(2)
        assert len(posts(transport)) == 1


async def test_a_deleted_node_is_registered_again(tmp_path):
    api = FakeNodes()
    async with managing(api, tmp_path) as (_, _transport, clock):
        api.node = None
        await clock.advance(320)
        assert api.node is not None


async def test_an_api_that_is_away_is_waited_for(tmp_path):
    api = FakeNodes()
    api.fail = errors.Unreachable("away")
    async with managing(api, tmp_path) as (manager, _, clock):
        assert not manager.registered.is_set()
        api.fail = None
        await clock.advance(2)
        assert manager.registered.is_set()


async def test_a_lease_conflict_is_read_again():
    lease = {"metadata": {"name": "n1", "resourceVersion": "1"}}
    answers = {"GET": [lease, lease], "PUT": [refusal(409, "Conflict")]}

    def answer(method, path, query, body):
        waiting = answers.get(method)
        return waiting.pop() if waiting else body

    clock, transport = FakeClock(), ScriptedTransport(answer)
    keeper = LeaseKeeper(ApiClient(transport), node_name="n1", duration=40, clock=clock)
    task = asyncio.create_task(keeper.run())
    await settle()
    await clock.advance(1)
    assert [request[0] for request in transport.requests] == ["GET", "PUT", "GET", "PUT"]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(("same", "told"), [(False, 1), (True, 0)])
async def test_a_machine_that_was_started_anew_is_told_of_once(tmp_path, caplog, same, told):
    caplog.set_level("INFO")
    api, boot = FakeNodes(), facts.read_machine().boot_id
    info = {"bootID": boot if same else "another"}
    api.node = {"metadata": {"name": "n1", "uid": "node-uid"}, "status": {"nodeInfo": info}}
    async with managing(api, tmp_path) as (_, _, clock):
        await clock.advance(1000)
    assert caplog.text.count("reason=Rebooted") == told
    assert (f"Node n1 has been rebooted, boot id: {boot}" in caplog.text) == bool(told)


async def test_pressure_is_in_the_status_and_told_as_an_event(tmp_path, caplog):
    caplog.set_level("INFO")
    api = FakeNodes()
    async with managing(api, tmp_path) as (manager, _, clock):
        manager._pressures = lambda: {"DiskPressure": "1 is below 2"}
        manager.wake()
        await clock.advance(1)
        found = {c["type"]: c for c in api.node["status"]["conditions"]}
        assert (found["DiskPressure"]["status"], found["DiskPressure"]["message"]) == ("True", "1 is below 2")
        assert "reason=NodeHasDiskPressure" in caplog.text
