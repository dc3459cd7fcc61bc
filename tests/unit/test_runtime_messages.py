"""What the runtime accepts and refuses, what it remembers, and how small its processes are."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cri.runtime import messages, record, wire
from cri.runtime.devices import device_nodes, device_rules
from cri.runtime.loop import Loop
from cri.runtime.spec import (
    ContainerExit,
    ContainerFacts,
    ContainerSpec,
    Device,
    ExecSpec,
    Mount,
    Rlimit,
    SandboxSpec,
)
from cri.runtime.state import LOST, LOST_CODE, StateFolder
from host.cgroups import Cgroups, DeviceRule
from host.cgroups.devices import ALL_DEVICES, CONTAINER_DEVICES
from host.errors import Exists, HostError, InputError, NotFound
from host.processes import run

PLACES = messages.Places(mountpoint=Path("/m"), shm=Path("/s"))


class TestMessages:
    def spec(self, **fields: object) -> ContainerSpec:
        base = {"id": "c", "sandbox_id": "s", "argv": ("x",), "lower_dirs": (Path("/image"),)}
        return ContainerSpec(**(base | fields))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"id": "../x"}, "container id"),
            ({"id": ""}, "container id"),
            ({"id": ".hidden"}, "container id"),
            ({"argv": ()}, "no command"),
            ({"argv": ("",)}, "no command"),
            ({"argv": ("a\0b",)}, "NUL"),
            ({"env": (("A", "x\0"),)}, "env A"),
            ({"lower_dirs": ()}, "no root"),
            ({"seccomp": b"1234"}, "seccomp"),
            ({"log_path": Path("logs/x")}, "not absolute"),
            ({"capabilities": ("SUPER",)}, "SUPER"),
            ({"rlimits": (Rlimit(name="NOPE", soft=1, hard=1),)}, "NOPE"),
            ({"mounts": (Mount(source=Path("/a"), target="/"),)}, "mount target"),
            ({"mounts": (Mount(source=Path("/a"), target="/x/../y"),)}, "mount target"),
            ({"mounts": (Mount(source=Path("a"), target="/x"),)}, "not absolute"),
        ],
    )
    def test_containers_that_are_refused(self, fields: dict[str, object], words: str) -> None:
        with pytest.raises(InputError, match=words):
            messages.container(self.spec(**fields), PLACES)

    def test_everything_can_be_sent(self) -> None:
        mounts = (Mount(source=Path("/a"), target="/x/y"), Mount(source=Path("/b"), target="/x"))
        made = messages.container(self.spec(mounts=mounts, env=(("A", "\udcff"),)), PLACES)
        assert wire.decode(wire.encode(made)) == made
        process = wire.decode(made["process"])
        assert [mount["target"] for mount in process["rootfs"]["mounts"]] == [b"/x", b"/x/y"]
        assert process["env"] == [[b"A", b"\xff"]]

    @pytest.mark.parametrize(
        ("fields", "share", "mode"),
        [
            ({}, False, "container"),
            ({}, True, "pod"),
            ({"host_pid": True}, True, "host"),
            ({"target_container": "t"}, True, "target"),
        ],
    )
    def test_pid_namespace(self, fields: dict[str, object], share: bool, mode: str) -> None:
        assert messages.container(self.spec(**fields), PLACES, share_pid=share)["pid_mode"] == mode

    def test_capabilities_that_cannot_be_handed_on_are_left_out(self) -> None:
        places = messages.Places(mountpoint=Path("/m"), shm=None, held_capabilities=0b1)
        made = messages.container(self.spec(capabilities=("CHOWN", "KILL")), places)
        assert wire.decode(made["process"])["privileges"]["capabilities"] == 1

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"sysctls": {"kernel.core_pattern": "x"}}, "not namespaced"),
            ({"sysctls": {"kernel.shm_rmid_forced": "1+x"}}, "not usable"),
            ({"sysctls": {"net.ipv4.x": "1\n2"}}, "not usable"),
            ({"sysctls": {"net.ipv4.x": "1"}, "host_network": True}, "node's own"),
            ({"sysctls": {"kernel.msgmax": "1"}, "host_ipc": True}, "node's own"),
            ({"sysctls": {"net": "1"}}, "not usable"),
            ({"id": "a/b"}, "sandbox id"),
            ({"hostname": "x" * 65}, "hostname"),
        ],
    )
    def test_sandboxes_that_are_refused(self, fields: dict[str, object], words: str) -> None:
        with pytest.raises(InputError, match=words):
            messages.sandbox(SandboxSpec(**({"id": "s"} | fields)))  # type: ignore[arg-type]

    def test_exec_and_signals(self) -> None:
        assert messages.exec_request(ExecSpec(argv=("a",)), 3)["exec"] == 3
        with pytest.raises(InputError):
            messages.exec_request(ExecSpec(argv=()), 3)
        for number in (0, -1, 65, 1000):
            with pytest.raises(InputError):
                messages.signal_number(number)

    def test_state_follows_from_facts(self) -> None:
        ended = ContainerExit(code=1, finished_at=3)
        states = [
            ContainerFacts(id="c", created_at=1, started_at=at, exit=end)
            for at, end in ((0, None), (2, None), (2, ended))
        ]
        assert [facts.state for facts in states] == ["created", "running", "exited"]

    def test_a_cgroup_allows_the_common_devices_and_those_asked_for(self) -> None:
        wanted = (Device(source=Path("/dev/null"), target="/dev/mine", access="r"),)
        spec = self.spec(devices=wanted)
        rules = device_rules(spec, device_nodes(spec))
        assert rules == (*CONTAINER_DEVICES, DeviceRule(kind="c", major=1, minor=3, access="r"))
        assert device_rules(self.spec(all_devices=True), ()) == ALL_DEVICES

    def test_devices_must_be_devices(self, tmp_path: Path) -> None:
        wanted = (Device(source=Path("/dev/null"), target="/dev/mine"),)
        (node,) = device_nodes(self.spec(devices=wanted))
        assert (node.target, os.major(node.number), os.minor(node.number)) == ("/dev/mine", 1, 3)
        for source in (tmp_path, tmp_path / "missing"):
            with pytest.raises(HostError, match="device"):
                device_nodes(self.spec(devices=(Device(source=source, target="/dev/x"),)))


class TestState:
    @pytest.fixture
    def state(self, tmp_path: Path) -> StateFolder:
        (tmp_path / "cgroup").mkdir()
        (tmp_path / "cgroup/cgroup.procs").write_text("")
        (tmp_path / "cgroup/cgroup.controllers").write_text("")
        return StateFolder(tmp_path / "state", Cgroups(tmp_path / "cgroup"))

    def test_folders_are_for_root_only_and_made_once(self, state: StateFolder) -> None:
        folder = state.make_sandbox("s", {"cgroup": ""})
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(Exists):
            state.make_sandbox("s", {})
        with pytest.raises(NotFound):
            state.make_container("other", "c", {})
        assert state.sandbox_ids() == ["s"]

    def test_a_lost_container_gets_an_exit_that_stays(self, state: StateFolder) -> None:
        state.make_sandbox("s", {})
        state.make_container("s", "c", {"cgroup": ""})
        first, second = (state.lost_facts("s").containers[0].exit for _ in range(2))
        assert first == second
        assert first is not None
        assert (first.code, first.error) == (LOST_CODE, LOST)

    def test_a_reused_process_id_is_not_the_supervisor(self, state: StateFolder) -> None:
        folder = os.fsencode(state.make_sandbox("s", {}))
        facts = {"pid": os.getpid(), "start_time": record.start_time(os.getpid())}
        record.write(folder, "supervisor", facts)
        assert state.supervisor_pid("s") == os.getpid()
        record.write(folder, "supervisor", facts | {"start_time": 1})
        assert state.supervisor_pid("s") == 0
        state.kill_supervisor("s")

    def test_removing_what_is_gone(self, state: StateFolder) -> None:
        state.remove_container("s", "c")
        state.remove_sandbox("s")
        with pytest.raises(NotFound):
            state.lost_facts("s")


class TestSmallProcess:
    HEAVY = (
        "asyncio",
        "json",
        "typing",
        "dataclasses",
        "inspect",
        "re",
        "pathlib",
        "logging",
        "subprocess",
        "grpc",
    )

    def test_supervisors_import_little(self) -> None:
        """Each of these would be paid for by every pod, and could be loaded late, from an image."""
        root = str(Path(messages.__file__).parents[2])
        text = "import sys; sys.path.append(sys.argv[1]); import cri.runtime.spawner; print(*sys.modules)"
        done = run([sys.executable, "-I", "-S", "-B", "-c", text, root])
        assert set(self.HEAVY) & set(done.stdout.decode().split()) == set()

    def test_a_callback_that_fails_does_not_end_the_loop(self, capsys: pytest.CaptureFixture[str]) -> None:
        loop, calls = Loop(), []
        read, write = os.pipe()

        def ready(_: int) -> None:
            calls.append(1)
            if len(calls) == 2:
                loop.stop()
            raise ValueError("bad message")

        os.write(write, b"x")
        loop.watch(read, ready)
        loop.run()
        assert "bad message" in capsys.readouterr().err
        assert len(calls) >= 2
        for fd in (read, write):
            os.close(fd)
