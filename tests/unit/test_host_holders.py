"""Words about who holds what: processes of a made-up /proc, mounts from a file, freezes from cgroups."""

from __future__ import annotations

from pathlib import Path

import pytest

from host import holders
from host.cgroups import freezer
from host.cgroups.files import reader
from host.errors import Busy
from host.trees import remove_tree


def process(proc: Path, pid: int, name: str, state: str, where: str = "0") -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) {state} 1 1 0\n")
    (proc / str(pid) / "wchan").write_text(where)


def test_processes_are_named_with_what_is_remarkable(tmp_path: Path) -> None:
    process(tmp_path, 7, "dd", "D", "nfs_wait")
    process(tmp_path, 8, "a (b) c", "S", "do_wait")
    process(tmp_path, 9, "x\x1b]0;y", "T")
    words = holders.processes([7, 8, 9, 10], proc=tmp_path)
    assert words == r"7 (dd) in uninterruptible sleep in nfs_wait, 8 (a (b) c), 9 (x\x1b]0;y) stopped"


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    for pid in range(1, 9):
        process(tmp_path, pid, "p", "S")
    assert holders.processes(range(1, 9), proc=tmp_path).endswith("5 (p) and 3 more")
    assert holders.processes([], proc=tmp_path) == ""


def test_mounts_at_and_below_a_folder(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    rows = ["/", "/a", "/a/b\\040c", "/ab", "/x"]
    table.write_text("".join(f"1 2 0:1 / {point} rw - tmpfs none rw\n" for point in rows))
    assert holders.mounts(Path("/a"), mountinfo=table) == "/a is a mount point, /a/b c is a mount point"
    assert holders.mounts(Path("/y"), mountinfo=table) == ""


def test_who_has_locked_a_file(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    process(tmp_path, 7, "daemon", "S")
    process(tmp_path, 8, "waits", "S")
    inode = path.stat().st_ino
    rows = [
        f"1: FLOCK  ADVISORY  WRITE 7 fe:00:{inode} 0 EOF",
        f"1: -> FLOCK  ADVISORY  WRITE 8 fe:00:{inode} 0 EOF",
        f"2: FLOCK  ADVISORY  WRITE 8 fe:00:1{inode} 0 EOF",
        "3: OFDLCK ADVISORY  READ -1 00:06:7 0 EOF",
    ]
    (tmp_path / "locks").write_text("".join(f"{row}\n" for row in rows))
    assert holders.lockers(path, proc=tmp_path) == "7 (daemon)"


def test_a_folder_with_a_mount_in_it_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "precious").touch()
    monkeypatch.setattr(holders, "mounts", lambda folder: f"{folder}/in is a mount point")
    with pytest.raises(Busy, match=f"remove {tmp_path}: .*: {tmp_path}/in is a mount point"):
        remove_tree(tmp_path)
    assert (tmp_path / "in" / "precious").exists()
    monkeypatch.undo()
    remove_tree(tmp_path / "in")
    remove_tree(tmp_path / "in")
    assert not (tmp_path / "in").exists()


class TestFreezer:
    def test_only_its_own_freeze_is_lifted(self, tmp_path: Path) -> None:
        assert freezer.plan_thaw(reader(tmp_path)) == []
        (tmp_path / "freezer.self_freezing").write_text("0\n")
        assert freezer.plan_thaw(reader(tmp_path)) == []
        (tmp_path / "freezer.self_freezing").write_text("1\n")
        assert [(item.name, item.value) for item in freezer.plan_thaw(reader(tmp_path))] == [
            ("freezer.state", "THAWED")
        ]

    def test_the_topmost_freeze_is_the_one_that_holds(self, tmp_path: Path) -> None:
        pod, container = tmp_path / "pod", tmp_path / "pod" / "container"
        container.mkdir(parents=True)
        assert freezer.frozen_by(tmp_path, container) is None
        for folder in (container, pod):
            (folder / "freezer.self_freezing").write_text("1\n")
            assert freezer.frozen_by(tmp_path, container) == folder
