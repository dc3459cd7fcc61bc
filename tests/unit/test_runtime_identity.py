"""Who a container runs as and what it may do: users, capabilities, system call filters, paths in its root."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pyseccomp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.runtime import identity, messages, rooted, seccomp
from cri.runtime import seccomp_table as table
from cri.runtime.security import CAPABILITIES, DEFAULT_CAPABILITIES, capabilities, capability_mask
from cri.runtime.spec import (
    User,
)
from host.errors import HostError, InputError


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
