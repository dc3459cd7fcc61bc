"""External runtimes, as far as it is pure: handlers, configuration, profiles, words of failure."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pyseccomp
import pytest

from cri.config import parse
from cri.runtime import seccomp, wire
from cri.runtime.messages import DeviceNode, Places
from cri.runtime.oci import bundle, commands, config, handlers
from cri.runtime.oci import seccomp as oci_seccomp
from cri.runtime.sockets import PACKETS, pair
from cri.runtime.spec import ContainerSpec, ExecSpec, Mount, Rlimit, Tmpfs
from host.cgroups import DeviceRule, Resources
from host.errors import InputError

WHO = {"uid": 8, "gid": 9, "groups": [9, 50]}
PLACES = Places(mountpoint=Path("/s/c1/rootfs"), shm=Path("/s/shm"), birthplace=Path("/cg/c1"))


def spec(**fields) -> ContainerSpec:
    known = {"id": "c1", "sandbox_id": "s1", "argv": ("sh",), "lower_dirs": (Path("/l"),)}
    return ContainerSpec(
        **{**known, "oci_runtime": ("/bin/oci", "--debug"), "cgroup_path": "/pod/c1", **fields}
    )


def message(
    one: ContainerSpec, *, pid_mode: str = "container", hybrid: Path | None = None, **changes
) -> dict:
    resources = changes.pop("resources", Resources())
    ceilings = changes.pop("ceilings", {})
    return config.message(
        one, changes.pop("places", PLACES), resources, pid_mode=pid_mode, ceilings=ceilings, hybrid=hybrid
    )


def configured(one: ContainerSpec, **changes) -> dict:
    """The configuration as the runtime gets it."""
    process = wire.decode(message(one, **changes)["process"])
    return json.loads(bundle._config(process, WHO, bundle.Creation(11, 22, [])))


class TestConfig:
    def test_process(self):
        one = spec(
            argv=("sh", "-c", "é"),
            env=(("A", "1=2"), ("B", "")),
            cwd="/w",
            tty=True,
            no_new_privileges=True,
            capabilities=("CHOWN", "NET_BIND_SERVICE", "SYS_TIME"),
            ambient_capabilities=("NET_BIND_SERVICE",),
        )
        process = configured(one, places=Places(**{**vars(PLACES), "held_capabilities": ~(1 << 25)}))[
            "process"
        ]
        assert process["user"] == {"uid": 8, "gid": 9, "additionalGids": [9, 50]}
        assert (process["args"], process["env"]) == (["sh", "-c", "é"], ["A=1=2", "B="])
        assert (process["cwd"], process["terminal"], process["noNewPrivileges"]) == ("/w", True, True)
        held = process["capabilities"]
        assert (
            held["bounding"]
            == held["permitted"]
            == held["effective"]
            == ["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]
        )
        assert held["inheritable"] == held["ambient"] == ["CAP_NET_BIND_SERVICE"]

    @pytest.mark.parametrize(
        ("mode", "expected"),
        [
            ("container", [{"type": "pid"}]),
            ("host", []),
            ("pod", [{"type": "pid", "path": "/proc/22/ns/pid"}]),
            ("target", [{"type": "pid", "path": "/proc/22/ns/pid"}]),
        ],
    )
    def test_namespaces_are_the_pods(self, mode, expected):
        found = configured(spec(), pid_mode=mode)["linux"]["namespaces"]
        assert found == [
            {"type": "mount"},
            {"type": "cgroup"},
            {"type": "network", "path": "/proc/11/ns/net"},
            {"type": "ipc", "path": "/proc/11/ns/ipc"},
            {"type": "uts", "path": "/proc/11/ns/uts"},
            *expected,
        ]

    def test_no_word_of_the_pod_is_taken_for_a_place_to_fill_in(self):
        words = ('"user":null', '"namespaces":null', "%(pod)d", "%s", "}}")
        one = spec(argv=words, env=(("X", '"user":null'),), cgroup_path='/"namespaces":null')
        found = configured(one)
        assert found["process"]["args"] == list(words)
        assert found["process"]["user"]["uid"] == 8
        assert found["linux"]["cgroupsPath"] == '/"namespaces":null'
        assert len(found["linux"]["namespaces"]) == 6

    def test_volumes_are_taken_from_where_the_bundle_holds_them(self):
        mounts = (
            Mount(source=Path("/v/deep"), target="/a/b", propagation="shared"),
            Mount(source=Path("/v"), target="/a", readonly=True, recursive_readonly=True, noexec=True),
        )
        found = configured(spec(mounts=mounts, tmpfs=(Tmpfs(target="/t", size=4096),)))
        at = {mount["destination"]: mount for mount in found["mounts"]}
        assert (at["/a"]["source"], at["/a/b"]["source"]) == ("/s/c1/mounts/0", "/s/c1/mounts/1")
        assert at["/a"]["options"] == ["rbind", "rprivate", "ro", "noexec"]
        assert at["/a/b"]["options"] == ["rbind", "rshared"]
        assert at["/t"]["options"] == ["nosuid", "nodev", "mode=1777", "size=4096"]
        assert at["/dev/shm"]["source"] == "/s/c1/mounts/shm"
        assert found["linux"]["rootfsPropagation"] == "rshared"
        order = [mount["destination"] for mount in found["mounts"]]
        assert order.index("/a") < order.index("/a/b")
        process = wire.decode(message(spec(mounts=mounts))["process"])
        assert [mount["source"] for mount in process["rootfs"]["mounts"]] == [b"/v", b"/v/deep"]

    @pytest.mark.parametrize(("writable", "expected"), [(False, True), (True, False)])
    def test_sys_is_read_only_unless_privileged(self, writable, expected):
        found = configured(spec(writable_sys=writable))["mounts"]
        sys = [mount for mount in found if mount["destination"].startswith("/sys")]
        assert [mount["type"] for mount in sys] == ["sysfs", "cgroup"]
        assert {"ro" in mount["options"] for mount in sys} == {expected}

    def test_labels_of_the_security_modules(self):
        one = spec(
            apparmor_profile="prof", selinux_label="u:r:t:s0", mount_label="u:r:m:s0", writable_sys=True
        )
        found = configured(one)
        assert (found["process"]["apparmorProfile"], found["process"]["selinuxLabel"]) == ("prof", "u:r:t:s0")
        assert found["linux"]["mountLabel"] == "u:r:m:s0"
        assert {"type": "cgroup"} not in found["linux"]["namespaces"]
        found = configured(spec())
        assert not {"apparmorProfile", "selinuxLabel"} & found["process"].keys()
        assert "mountLabel" not in found["linux"]

    def test_limits_and_devices(self):
        resources = Resources(
            memory_limit=1 << 20,
            cpu_quota_us=5000,
            cpu_period_us=10000,
            pids_limit=7,
            hugepage_limits={"2MB": 0},
            unified={"memory.high": "1"},
            devices=(DeviceRule(kind="c", major=1, minor=0), DeviceRule(kind="b", access="m")),
        )
        node = DeviceNode(target="/dev/x", mode=stat.S_IFBLK | 0o640, number=os.makedev(8, 3), gid=6)
        places = Places(**{**vars(PLACES), "devices": (node,)})
        linux = configured(spec(), resources=resources, places=places)["linux"]
        assert linux["resources"] == {
            "devices": [
                {"allow": False, "access": "rwm"},
                {"allow": True, "type": "c", "access": "rwm", "major": 1, "minor": 0},
                {"allow": True, "type": "b", "access": "m"},
            ],
            "memory": {"limit": 1 << 20},
            "cpu": {"quota": 5000, "period": 10000},
            "pids": {"limit": 7},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
        }
        assert linux["devices"] == [
            {"path": "/dev/x", "type": "b", "major": 8, "minor": 3, "fileMode": 0o640, "uid": 0, "gid": 6}
        ]
        v2 = Places(**{**vars(PLACES), "cgroup_v2": True})
        linux = configured(spec(), resources=resources, places=v2)["linux"]
        assert linux["resources"]["unified"] == {"memory.high": "1"}

    def test_a_limit_that_cannot_be_raised_is_lowered(self):
        limits = (Rlimit(name="NOFILE", soft=5000, hard=-1), Rlimit(name="RLIMIT_CORE", soft=0, hard=-1))
        found = configured(spec(rlimits=limits), ceilings={"RLIMIT_NOFILE": 4096})["process"]["rlimits"]
        assert found == [
            {"type": "RLIMIT_NOFILE", "hard": 4096, "soft": 4096},
            {"type": "RLIMIT_CORE", "hard": (1 << 64) - 1, "soft": 0},
        ]

    def test_cgroup2_beside_v1_is_hidden_and_birthplace_all_the_same(self):
        found = message(spec(), hybrid=Path("/cg"))
        assert found["oci"]["birthplace"] == b"/cg/c1"
        assert wire.decode(found["process"])["hidden"] == b"/cg"
        found = message(spec())
        assert (found["oci"]["birthplace"], wire.decode(found["process"])["hidden"]) == (b"", b"")

    def test_what_is_not_utf8_is_refused(self):
        with pytest.raises(InputError, match="UTF-8"):
            message(spec(argv=("sh", os.fsdecode(b"\xff"))))
        with pytest.raises(InputError, match="UTF-8"):
            config.exec_process(b'{"process":{}}', ExecSpec(argv=(os.fsdecode(b"\xff"),)))

    def test_a_further_process_differs_only_in_what_it_runs(self):
        whole = configured(spec(env=(("A", "1"),)))
        process = json.loads(
            config.exec_process(json.dumps(whole).encode(), ExecSpec(argv=("ls",), tty=True))
        )
        assert process == {**whole["process"], "args": ["ls"], "terminal": True}


class TestSeccomp:
    @pytest.mark.parametrize("held", [(), ("SYS_ADMIN",), ("SYS_PTRACE", "SYS_TIME")])
    def test_the_default_profile_is_the_default_filter(self, held):
        """Compiled by our own compiler of profiles, the profile gives the program of the table."""
        profile = oci_seccomp.compile_default(capabilities=held)
        assert seccomp.compile_profile(profile) == seccomp.compile_default(capabilities=held)

    def test_a_condition_on_an_argument_is_in_it(self):
        entries = json.loads(oci_seccomp.compile_default(capabilities=()))["syscalls"]
        clone = next(entry for entry in entries if "clone" in entry["names"])
        assert clone["args"] == [{"index": 0, "op": "SCMP_CMP_MASKED_EQ", "value": 0x7E020000, "valueTwo": 0}]
        absent = next(entry for entry in entries if "clone3" in entry["names"])
        assert (absent["action"], absent["errnoRet"]) == ("SCMP_ACT_ERRNO", errno.ENOSYS)
        assert pyseccomp.ERRNO(errno.ENOSYS) & 0xFFFF == errno.ENOSYS

    def test_a_profile_that_we_would_not_load_is_not_handed_on(self):
        with pytest.raises(InputError, match="defaultAction"):
            oci_seccomp.compile_profile(b"{}")
        good = b'{"defaultAction": "SCMP_ACT_ALLOW"}'
        assert oci_seccomp.compile_profile(good) == good


class TestHandlers:
    @pytest.mark.parametrize(
        "text",
        ["crun", "=/bin/x", "Crun=/bin/x", "a_b=/bin/x", "x=bin/x", "x=", "x=/bin/x,debug", "x=/bin/x,"],
    )
    def test_another_form_is_refused(self, text):
        with pytest.raises(InputError, match=r"--runtime-handler .* must be NAME=PATH"):
            handlers.parse(text)

    def test_flags_and_file_say_the_same(self, tmp_path):
        file = tmp_path / "cri.yaml"
        file.write_text("runtimeHandlers:\n  crun: /usr/bin/crun,--debug\n  runc: /usr/sbin/runc\n")
        flags = ["--runtime-handler=crun=/usr/bin/crun,--debug", "--runtime-handler=runc=/usr/sbin/runc"]
        assert parse(flags).runtime_handlers == parse(["--config", str(file)]).runtime_handlers
        found = handlers.parse_all(parse(flags).runtime_handlers)
        assert found["crun"].command == ("/usr/bin/crun", "--debug")

    def test_a_name_twice_is_refused_when_the_flags_are_read(self):
        with pytest.raises(InputError, match="'x' is given twice"):
            parse(["--runtime-handler=x=/a", "--runtime-handler=x=/b"])

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            ({}, False),
            ([], False),
            (None, False),
            ({"mountOptions": ["ro", "rro"]}, True),
            ({"mountOptions": ["ro"]}, False),
            ({"mountOptions": "rro"}, False),
        ],
    )
    def test_only_what_a_runtime_says_of_itself_is_told(self, answer, expected):
        assert handlers.with_features(handlers.parse("x=/bin/x"), answer).recursive_readonly is expected

    def test_a_program_that_answers_nonsense_has_no_features(self, tmp_path):
        program = tmp_path / "oci"
        program.write_text("#!/bin/sh\necho nonsense\n")
        program.chmod(0o755)
        assert handlers.load([f"x={program}"])["x"].recursive_readonly is False
        program.chmod(0o644)
        with pytest.raises(InputError, match="is not a program"):
            handlers.load([f"x={program}"])


class TestFailures:
    def failure(self, tmp_path: Path, log: bytes, status: int, told: dict | None = None):
        path = tmp_path / "log"
        path.write_bytes(log)
        ours, theirs = pair(PACKETS)
        if told:
            wire.send_packet(theirs, told)
        theirs.close()
        found = commands._failure(b"create", ours, status, bytes(path))
        assert not path.exists()
        return found

    def test_the_runtimes_last_words_are_the_message(self, tmp_path):
        log = b'{"level":"error","msg":"first"}\nnot json\n{"level":"error","msg":"exec: \\"x\\""}\n'
        log += b'{"level":"warning","msg":"never mind"}\n'
        found = self.failure(tmp_path, log, 1 << 8)
        assert found == {"errno": errno.EIO, "message": 'exec: "x"', "step": "create"}

    def test_without_words_the_status_is_told(self, tmp_path):
        assert "exit status 3" in self.failure(tmp_path, b"", 3 << 8)["message"]
        assert "killed by signal 9" in self.failure(tmp_path, b"", 9)["message"]

    def test_success_has_no_message_whatever_the_log_says(self, tmp_path):
        assert self.failure(tmp_path, b'{"level":"error","msg":"x"}\n', 0) is None

    def test_an_error_before_the_runtime_wins(self, tmp_path):
        told = {"errno": errno.ESRCH, "message": "user: unable to find user x", "step": "user"}
        assert self.failure(tmp_path, b'{"msg":"x"}\n', 128 << 8, told) == told
