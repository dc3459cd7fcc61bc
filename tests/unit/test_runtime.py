"""The pure parts of the runtime: messages, records, log lines, identity, filters, paths in a root."""

from __future__ import annotations

import errno
import os
import struct
import sys
from pathlib import Path

import pyseccomp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.runtime import identity, messages, record, rooted, seccomp, wire
from cri.runtime import seccomp_table as table
from cri.runtime.devices import device_nodes
from cri.runtime.log import MAX_LINE, LineLog, timestamp
from cri.runtime.loop import Loop
from cri.runtime.security import CAPABILITIES, DEFAULT_CAPABILITIES, capabilities, capability_mask
from cri.runtime.spec import (
    ContainerExit,
    ContainerFacts,
    ContainerSpec,
    Device,
    ExecSpec,
    Mount,
    Rlimit,
    SandboxSpec,
    User,
)
from cri.runtime.state import LOST, LOST_CODE, StateFolder
from cri.runtime.warmth import own_procs_file
from host.cgroups import Cgroups
from host.errors import Exists, HostError, InputError, NotFound, Unsupported
from host.processes import run

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
PLACES = messages.Places(mountpoint=Path("/m"), shm=Path("/s"))


class TestWire:
    @given(VALUES)
    def test_what_goes_in_comes_out(self, value: object) -> None:
        assert wire.decode(wire.encode(value)) == value

    @given(st.binary(max_size=200))
    def test_any_bytes_give_a_value_or_our_error(self, data: bytes) -> None:
        try:
            wire.decode(data)
        except wire.WireError:
            return

    @given(st.lists(VALUES, max_size=4), st.integers(1, 50))
    def test_frames_may_come_in_pieces(self, values: list[object], size: int) -> None:
        frames, found = wire.Frames(), []
        data = b"".join(wire.frame(value) for value in values)
        for start in range(0, len(data), size):
            found += [value for value, _ in frames.feed(data[start : start + size], [])]
        assert found == values

    def test_descriptors_go_with_their_frame(self) -> None:
        frames = wire.Frames()
        data = wire.frame("a", 1) + wire.frame("b", 0) + wire.frame("c", 2)
        assert frames.feed(data, [7, 8, 9]) == [("a", [7]), ("b", []), ("c", [8, 9])]

    @pytest.mark.parametrize(
        "data",
        [
            wire.HEADER.pack(wire.MAX_FRAME + 1, 0),
            wire.HEADER.pack(1, wire.MAX_FDS + 1),
            wire.frame("x", 1),
            wire.HEADER.pack(5, 0) + b"l\xff\xff\xff\xff",
            wire.HEADER.pack(2, 0) + b"NN",
            wire.HEADER.pack(65, 0) + b"l\0\0\0\1" * 13,
        ],
    )
    def test_what_is_refused(self, data: bytes) -> None:
        with pytest.raises(wire.WireError):
            wire.Frames().feed(data, [])

    def test_too_large_to_send(self) -> None:
        with pytest.raises(ValueError, match="larger than"):
            wire.frame(b"x" * (wire.MAX_FRAME + 1))
        with pytest.raises(TypeError, match="float"):
            wire.encode(1.5)


class TestRecord:
    def test_round_trip_and_replacement(self, tmp_path: Path) -> None:
        for value in ({"code": 1}, {"code": 2, "error": "x" * 1000}):
            record.write(str(tmp_path), "exit", value)
            assert record.read(str(tmp_path), "exit") == value
        assert os.listdir(tmp_path) == ["exit"]
        assert (tmp_path / "exit").stat().st_mode & 0o777 == 0o600

    def test_every_cut_and_every_flipped_byte_is_noticed(self, tmp_path: Path) -> None:
        record.write(str(tmp_path), "exit", {"code": 7})
        good = (tmp_path / "exit").read_bytes()
        bad = [good[:end] for end in range(len(good))]
        bad += [good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))]
        for data in bad:
            (tmp_path / "exit").write_bytes(data)
            with pytest.raises(record.BadRecord):
                record.read(str(tmp_path), "exit")

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            record.read(str(tmp_path), "exit")

    def test_start_time_names_one_process(self) -> None:
        assert record.start_time(os.getpid()) > 0
        assert record.start_time(2**22 + 1) == 0


class TestLog:
    def test_time_has_nine_digits(self) -> None:
        assert timestamp(1_700_000_000_000_000_006) == b"2023-11-14T22:13:20.000000006Z"

    def test_lines_parts_and_the_rest(self) -> None:
        log = LineLog(b"stdout")
        head = timestamp(0) + b" stdout "
        assert log.feed(b"one\ntw", 0) == head + b"F one\n"
        assert log.feed(b"o\n\n", 0) == head + b"F two\n" + head + b"F \n"
        assert log.feed(b"rest", 0) == b""
        assert log.flush(0) == head + b"F rest\n"
        assert log.flush(0) == b""

    @given(st.binary(max_size=200), st.integers(1, 30))
    def test_any_cutting_gives_the_same_text(self, data: bytes, size: int) -> None:
        log = LineLog(b"stderr")
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        lines = b"".join([log.feed(piece, 0) for piece in pieces] + [log.flush(0)])
        text = b"".join(line.split(b" ", 3)[3] + b"\n" for line in lines.split(b"\n")[:-1])
        assert text == (data if data.endswith(b"\n") or not data else data + b"\n")

    def test_a_line_of_many_parts_keeps_its_text(self) -> None:
        log, data = LineLog(b"stdout"), os.urandom(MAX_LINE * 3).replace(b"\n", b"x") + b"end"
        lines = (log.feed(data, 0) + log.feed(b"\n", 0)).split(b"\n")[:-1]
        assert [line.split(b" ", 3)[2] for line in lines] == [b"P", b"P", b"P", b"F"]
        assert b"".join(line.split(b" ", 3)[3] for line in lines) == data


class TestIdentity:
    PASSWD = b"root:x:0:0::/root:/bin/sh\nbob:x:1000:1001::/home/bob:\n\nbad\nodd:x:a:b::/:\n777:x:0:0::/:\n"
    GROUP = b"root:x:0:\nstaff:x:50:eve,bob\nnear:x:51:bobby\n"

    def resolve(self, **fields: object) -> tuple[int, int, list[int], bytes]:
        found = identity.resolve(messages.user(User(**fields)), self.PASSWD, self.GROUP)  # type: ignore[arg-type]
        return found["uid"], found["gid"], found["groups"], found["home"]

    def test_names_and_numbers(self) -> None:
        assert self.resolve() == (0, 0, [0], b"/root")
        assert self.resolve(name="bob") == (1000, 1001, [50, 1001], b"/home/bob")
        assert self.resolve(name="1000") == (1000, 1001, [50, 1001], b"/home/bob")
        assert self.resolve(name="bob:staff") == (1000, 50, [50], b"/home/bob")
        assert self.resolve(name="bob", merge_groups=False) == (1000, 1001, [1001], b"/home/bob")
        assert self.resolve(name="777") == (777, 0, [0], b"/")
        assert self.resolve(uid=5, gid=6, supplementary=(9, 8)) == (5, 6, [6, 8, 9], b"/")

    @pytest.mark.parametrize(
        "name", ["nobody", "odd", "+0", "-1", " 0", "2147483648", "9" * 30, "bob:x", "0:-1"]
    )
    def test_refused(self, name: str) -> None:
        with pytest.raises(HostError):
            self.resolve(name=name)

    @pytest.mark.parametrize("name", ["", "0", "00", "root"])
    def test_non_root_is_checked_on_the_number(self, name: str) -> None:
        with pytest.raises(HostError, match="runAsNonRoot"):
            self.resolve(name=name, require_nonroot=True)

    @given(st.binary(max_size=300), st.binary(max_size=300))
    def test_any_files_give_an_identity_or_our_error(self, passwd: bytes, group: bytes) -> None:
        for name in ("bob", "1000", "bob:staff"):
            try:
                identity.resolve(messages.user(User(name=name)), passwd, group)
            except HostError:
                continue


class TestCapabilities:
    def test_default_and_arithmetic(self) -> None:
        assert set(capabilities()) == DEFAULT_CAPABILITIES
        assert capabilities(drop=["ALL"]) == ()
        assert capabilities(drop=["all"], add=["cap_net_admin"]) == ("NET_ADMIN",)
        assert set(capabilities(add=["ALL"], drop=["SYS_ADMIN"])) == set(CAPABILITIES) - {"SYS_ADMIN"}

    def test_numbers_of_the_kernel(self) -> None:
        assert capability_mask(["CHOWN", "CAP_CHECKPOINT_RESTORE"]) == 1 | 1 << 40
        assert capability_mask(capabilities()) == 0xA80425FB

    def test_unknown(self) -> None:
        with pytest.raises(InputError, match="NET_ADMIIN"):
            capabilities(add=["NET_ADMIIN"])


class TestSeccomp:
    def names(self, *held: str) -> set[str]:
        rules = seccomp.default_rules(frozenset(held))
        return {name for action, name, conditions in rules if action == pyseccomp.ALLOW and not conditions}

    def test_capabilities_open_their_calls(self) -> None:
        assert not {"mount", "clone3", "clone", "bpf", "chroot", "setns", "io_uring_setup"} & self.names()
        assert {"mount", "clone3", "clone", "bpf"} <= self.names("SYS_ADMIN")
        assert "chroot" in self.names("SYS_CHROOT")
        assert set(table.WITH_CAPABILITY) <= set(CAPABILITIES)

    def test_program_is_whole_and_cached(self) -> None:
        program = seccomp.compile_default(capabilities=DEFAULT_CAPABILITIES)
        assert len(program) % 8 == 0
        assert 8 < len(program) // 8 <= seccomp.MAX_INSTRUCTIONS
        assert seccomp.compile_default(capabilities=capabilities()) is program

    def test_newer_calls_are_unknown_not_forbidden(self) -> None:
        codes = [struct.unpack("HBBI", part) for part in _parts(seccomp.unknown_is_enosys(456))]
        assert codes[-1] == (0x06, 0, 0, 0x00050000 | errno.ENOSYS)
        assert codes[2] == (0x25, 0, 1, 456)

    @pytest.mark.parametrize(
        ("profile", "words"),
        [
            (b"", "not JSON"),
            (b"[]", "no defaultAction"),
            (b"{}", "no defaultAction"),
            (b"[" * 100_000, "not JSON"),
            (b'{"defaultAction": "SCMP_ACT_SOME"}', "SCMP_ACT_SOME"),
            (b'{"defaultAction": "SCMP_ACT_NOTIFY"}', "SCMP_ACT_NOTIFY"),
            (b'{"defaultAction": "SCMP_ACT_ALLOW", "extra": 1}', "unknown key 'extra'"),
            (b'{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": -1}', "errnoRet"),
            (b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": {}}', "must be a list"),
            (b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [1]}', "must hold objects"),
            (
                b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_KILL"}]}',
                "names must be a list",
            ),
            (
                b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], '
                b'"action": "SCMP_ACT_KILL", "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]}]}',
                "index 0..5",
            ),
            (
                b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], '
                b'"action": "SCMP_ACT_KILL", "includes": {"caps": ["CAP_BPF"]}}]}',
                "Docker's form",
            ),
        ],
    )
    def test_profiles_that_are_refused(self, profile: bytes, words: str) -> None:
        with pytest.raises(InputError, match=words):
            seccomp.compile_profile(profile)

    def test_names_this_library_does_not_know_are_left_out(self) -> None:
        entry = b'{"names": ["brand_new_call", "mkdir"], "action": "SCMP_ACT_LOG"}'
        profile = b'{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [' + entry + b"]}"
        assert seccomp.compile_profile(profile)


def _parts(program: bytes) -> list[bytes]:
    return [program[at : at + 8] for at in range(0, len(program), 8)]


class TestRooted:
    @pytest.fixture
    def root(self, tmp_path: Path) -> int:
        (tmp_path / "outside").mkdir()
        (tmp_path / "root").mkdir()
        os.symlink(tmp_path / "outside", tmp_path / "root/absolute")
        os.symlink("../../../outside", tmp_path / "root/relative")
        return os.open(tmp_path / "root", os.O_PATH)

    def test_links_lead_to_places_inside(self, root: int, tmp_path: Path) -> None:
        with pytest.raises(HostError):
            rooted.folder(root, b"/absolute/new")
        (tmp_path / "root" / str(tmp_path / "outside").lstrip("/")).mkdir(parents=True)
        (tmp_path / "root/outside").mkdir()
        for path in (b"/absolute/new", b"/relative/new"):
            os.close(rooted.folder(root, path))
        os.close(rooted.file(root, b"/deep/er/file"))
        assert os.listdir(tmp_path / "outside") == []
        assert (tmp_path / "root/deep/er/file").read_text() == ""
        os.close(root)

    @pytest.mark.parametrize("path", [b"/", b"", b"/a/../b", b".."])
    def test_paths_that_are_refused(self, path: bytes) -> None:
        with pytest.raises(HostError):
            rooted.parts(path)

    def test_only_regular_files_of_bounded_size_are_read(self, root: int, tmp_path: Path) -> None:
        inside = tmp_path / "root"
        (inside / "file").write_bytes(b"x" * 100)
        os.mkfifo(inside / "fifo")
        os.symlink("nowhere", inside / "dangling")
        assert rooted.read(root, b"/file") == b"x" * 100
        assert rooted.read(root, b"/missing") == rooted.read(root, b"/dangling") == b""
        for path, limit in ((b"/file", 99), (b"/fifo", 99), (b"/", 99)):
            with pytest.raises(HostError):
                rooted.read(root, path, limit=limit)
        os.close(root)


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

    def test_apparmor_is_unsupported(self) -> None:
        with pytest.raises(Unsupported, match="AppArmor"):
            messages.container(self.spec(apparmor_profile="x"), PLACES)

    def test_everything_can_be_sent(self) -> None:
        mounts = (Mount(source=Path("/a"), target="/x/y"), Mount(source=Path("/b"), target="/x"))
        made = messages.container(self.spec(mounts=mounts, env=(("A", "\udcff"),)), PLACES)
        assert wire.decode(wire.encode(made)) == made
        assert [mount["target"] for mount in made["rootfs"]["mounts"]] == [b"/x", b"/x/y"]
        assert made["env"] == [[b"A", b"\xff"]]

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
        privileges = messages.container(self.spec(capabilities=("CHOWN", "KILL")), places)["privileges"]
        assert privileges["capabilities"] == 1

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

    @pytest.mark.parametrize(
        ("controller", "membership", "expected"),
        [
            (b"pids", b"8:pids:/\n4:memory:/a/b\n0::/c\n", b"/t/cgroup.procs"),
            (b"memory", b"8:pids:/\n4:memory:/a/b\n0::/c\n", b"/t/a/b/cgroup.procs"),
            (b"cpuacct", b"1:cpu,cpuacct:/x\n", b"/t/x/cgroup.procs"),
            (b"", b"1:name=systemd:/x\n0::/with:colon\n", b"/t/with:colon/cgroup.procs"),
            (b"pids", b"0::/\nbad\n", b""),
        ],
    )
    def test_own_cgroup_is_found(self, controller: bytes, membership: bytes, expected: bytes) -> None:
        assert own_procs_file(b"/t", controller, membership) == expected

    def test_a_callback_that_fails_does_not_end_the_loop(self, capsys: pytest.CaptureFixture[str]) -> None:
        loop, calls = Loop(), []
        read, write = os.pipe()

        def ready(_: int) -> None:
            calls.append(1)
            if len(calls) == 2:
                loop.every(0.001, loop.stop)
            raise ValueError("bad message")

        os.write(write, b"x")
        loop.watch(read, ready)
        loop.run()
        assert "bad message" in capsys.readouterr().err
        assert len(calls) >= 2
        for fd in (read, write):
            os.close(fd)
