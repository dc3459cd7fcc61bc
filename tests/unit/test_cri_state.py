"""Records, the states derived from them, and the store that keeps them."""

import msgspec
import pytest

from cri.state.records import ContainerRecord, ContainerState, SandboxRecord, SandboxState, exited
from cri.state.store import Store, UnknownId
from host.errors import InputError
from proto.cri import runtime_pb2 as pb

SANDBOX = SandboxRecord(
    id="5a" * 32, config=pb.PodSandboxConfig(hostname="web").SerializeToString(), created_at=1
)
CONTAINER = ContainerRecord(id="c0" * 32, sandbox_id=SANDBOX.id, config=b"", user=(1, 2, (3, 4)))


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path)
    made.load()
    return made


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({}, ContainerState.MAKING),
        ({"created_at": 1}, ContainerState.CREATED),
        ({"created_at": 1, "started_at": 2}, ContainerState.RUNNING),
        ({"created_at": 1, "started_at": 2, "finished_at": 3}, ContainerState.EXITED),
        ({"created_at": 1, "finished_at": 3}, ContainerState.EXITED),
    ],
)
def test_a_container_state_follows_from_its_times(facts, state):
    assert msgspec.structs.replace(CONTAINER, **facts).state is state


@pytest.mark.parametrize(
    ("facts", "state"),
    [
        ({}, SandboxState.MAKING),
        ({"ready_at": 2}, SandboxState.READY),
        ({"ready_at": 2, "stopped_at": 3}, SandboxState.NOT_READY),
    ],
)
def test_a_sandbox_state_follows_from_its_times(facts, state):
    assert msgspec.structs.replace(SANDBOX, **facts).state is state


@pytest.mark.parametrize(
    ("code", "oom", "reason"), [(0, False, "Completed"), (1, False, "Error"), (137, True, "OOMKilled")]
)
def test_the_first_end_is_the_end(code, oom, reason):
    record = exited(CONTAINER, at=9, code=code, oom=oom)
    assert (record.finished_at, record.exit_code, record.reason) == (9, code, reason)
    assert exited(record, at=10, code=99, oom=False) == record


def test_what_is_put_is_found_after_a_restart(store, tmp_path):
    sandbox = store.add_sandbox(SANDBOX, pb.PodSandboxConfig(hostname="web"))
    ready = msgspec.structs.replace(SANDBOX, ready_at=5, network={"config": {"name": "n"}})
    store.put_sandbox(sandbox, ready)
    store.add_container(CONTAINER, pb.ContainerConfig())
    again = Store(tmp_path)
    again.load()
    assert again.sandboxes[SANDBOX.id].record == ready
    assert again.sandboxes[SANDBOX.id].config.hostname == "web"
    assert again.containers[CONTAINER.id].record == CONTAINER
    assert len(list(again.sandbox_folder(SANDBOX.id).iterdir())) == 1


@pytest.mark.parametrize("keep", [0, 1, 40, 200])
def test_a_cut_record_is_set_aside_and_the_one_before_is_the_truth(store, tmp_path, keep):
    sandbox = store.add_sandbox(SANDBOX, pb.PodSandboxConfig())
    folder = store.sandbox_folder(SANDBOX.id)
    first = (folder / "1.record").read_bytes()
    store.put_sandbox(sandbox, msgspec.structs.replace(SANDBOX, ready_at=5))
    second = folder / "2.record"
    second.write_bytes(second.read_bytes()[:keep])
    (folder / "1.record").write_bytes(first)
    again = Store(tmp_path)
    again.load()
    found = again.sandboxes[SANDBOX.id]
    assert found.record == SANDBOX
    assert (folder / "2.record.corrupt").exists()
    again.put_sandbox(found, msgspec.structs.replace(SANDBOX, ready_at=7))
    assert Store(tmp_path).sandboxes == {}


def test_a_record_of_something_else_is_not_believed(store, tmp_path):
    store.add_sandbox(SANDBOX, pb.PodSandboxConfig())
    store.sandbox_folder(SANDBOX.id).rename(tmp_path / "sandboxes" / "other")
    again = Store(tmp_path)
    again.load()
    assert again.sandboxes == {}


def test_an_id_may_be_shortened_while_it_is_clear(store):
    sandbox = store.add_sandbox(SANDBOX, pb.PodSandboxConfig())
    store.add_sandbox(msgspec.structs.replace(SANDBOX, id="5a5b"), pb.PodSandboxConfig())
    assert store.sandbox("5a5a5") is sandbox
    with pytest.raises(InputError, match="beginning of 2 ids"):
        store.sandbox("5a5")
    with pytest.raises(UnknownId, match="not found"):
        store.sandbox("77")
    with pytest.raises(InputError, match="empty"):
        store.sandbox("")


def test_what_is_dropped_is_gone(store, tmp_path):
    store.add_container(CONTAINER, pb.ContainerConfig())
    store.drop_container(CONTAINER.id)
    store.drop_container(CONTAINER.id)
    assert list((tmp_path / "containers").iterdir()) == []
    with pytest.raises(UnknownId):
        store.container(CONTAINER.id)


def test_an_end_wakes_who_waits(store):
    container = store.add_container(CONTAINER, pb.ContainerConfig())
    assert not container.ended.is_set()
    store.put_container(container, exited(CONTAINER, at=1, code=0, oom=False))
    assert container.ended.is_set()
