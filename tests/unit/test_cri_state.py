"""Records, the states derived from them, and the store that keeps them."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cri.state.records import (
    RECORD_VERSION,
    SANDBOX_KIND,
    ContainerRecord,
    ContainerState,
    SandboxRecord,
    SandboxState,
    exited,
)
from cri.state.store import Store, UnknownId
from host.errors import InputError, NoSpace
from host.files import NewerRecord, write_record
from proto.cri import runtime_pb2 as pb

FIXTURES = Path(__file__).parent / "fixtures"
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
    kept = sorted(path.name for path in again.sandbox_folder(SANDBOX.id).iterdir())
    assert kept == ["2.record", "3.record"]


def damaged_forms(whole: bytes) -> Iterator[bytes]:
    """The bytes cut at every place, and with one bit changed in every byte."""
    for place in range(len(whole)):
        yield whole[:place]
        yield whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]


def test_a_damaged_record_is_set_aside_and_the_one_before_has_all_that_matters(store, tmp_path):
    """Identity, configuration and network are in two files as soon as the sandbox is ready."""
    sandbox = store.add_sandbox(SANDBOX, pb.PodSandboxConfig(hostname="web"))
    store.put_sandbox(sandbox, msgspec.structs.replace(SANDBOX, ready_at=5, network={"result": {"a": 1}}))
    last = store.sandbox_folder(SANDBOX.id) / f"{sandbox.version}.record"
    whole = last.read_bytes()
    for damaged in damaged_forms(whole):
        last.write_bytes(damaged)
        again = Store(tmp_path)
        again.load()
        found = again.sandboxes[SANDBOX.id]
        assert (found.record, found.config.hostname) == (sandbox.record, "web")
        assert last.with_name(last.name + ".corrupt").exists()
    again.put_sandbox(found, msgspec.structs.replace(found.record, stopped_at=7))
    final = Store(tmp_path)
    final.load()
    assert final.sandboxes[SANDBOX.id].record.stopped_at == 7


def test_a_folder_without_a_good_record_is_moved_away_and_the_others_are_loaded(store, tmp_path):
    store.add_container(CONTAINER, pb.ContainerConfig())
    other = msgspec.structs.replace(CONTAINER, id="cc" * 32)
    store.add_container(other, pb.ContainerConfig())
    for path in (tmp_path / "containers" / CONTAINER.id).glob("*.record"):
        path.write_bytes(b"{}")
    for _ in range(2):  # the second start finds nothing to complain about
        again = Store(tmp_path)
        again.load()
        assert set(again.containers) == {other.id}
    assert (tmp_path / "damaged" / f"containers-{CONTAINER.id}" / "1.record.corrupt").exists()


def test_records_of_a_later_release_are_refused_and_left_alone(store, tmp_path):
    store.add_sandbox(SANDBOX, pb.PodSandboxConfig())
    path = tmp_path / "sandboxes" / SANDBOX.id / "9.record"
    write_record(path, {"new": "words"}, kind=SANDBOX_KIND, version=RECORD_VERSION + 1)
    before = path.read_bytes()
    with pytest.raises(NewerRecord, match=f"version {RECORD_VERSION + 1} is newer"):
        Store(tmp_path).load()
    assert path.read_bytes() == before


def test_the_records_of_every_release_are_read(tmp_path):
    """`fixtures/state-<version>` is what a release has written; never change one, add the next."""
    for version in range(1, RECORD_VERSION + 1):
        shutil.copytree(FIXTURES / f"state-{version}", tmp_path / str(version))
        store = Store(tmp_path / str(version))
        store.load()
        [sandbox], [container] = store.sandboxes.values(), store.containers.values()
        assert (sandbox.record.state, container.record.state) == (SandboxState.READY, ContainerState.EXITED)
        assert (sandbox.config.metadata.name, sandbox.config.linux.cgroup_parent) == ("web", "/kubepods/poda")
        assert sandbox.record.network["result"]["ips"] == [{"address": "10.0.0.9/24", "interface": 2}]
        assert (container.config.metadata.attempt, container.record.exit_code) == (3, 137)
        assert container.record.user == (1000, 1000, (1000, 50))


def test_what_has_happened_is_true_even_when_the_disk_is_full(store, tmp_path, monkeypatch):
    container = store.add_container(CONTAINER, pb.ContainerConfig())

    def full(*_: object, **__: object) -> None:
        raise NoSpace(errno.ENOSPC, "write")

    monkeypatch.setattr("cri.state.store.write_record", full)
    ended = exited(msgspec.structs.replace(CONTAINER, created_at=1), at=9, code=3, oom=False)
    with pytest.raises(NoSpace):
        store.put_container(container, ended)
    assert container.record == CONTAINER
    store.note_container(container, ended)
    assert (container.record, container.ended.is_set()) == (ended, True)
    with pytest.raises(NoSpace):
        store.add_sandbox(SANDBOX, pb.PodSandboxConfig())
    assert store.sandboxes == {}
    assert list((tmp_path / "sandboxes").iterdir()) == []


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
