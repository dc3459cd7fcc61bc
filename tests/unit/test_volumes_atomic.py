"""The atomic writer: layout, updates, modes, and directories somebody tampered with."""

import os
import stat
from pathlib import Path

import pytest

from agent.volumes.atomic import File, check_key, check_path, write
from agent.volumes.base import Unready


def files(**texts: str) -> dict[str, File]:
    return {name.replace("__", "/"): File(text.encode(), 0o644) for name, text in texts.items()}


def content(directory: Path) -> dict[str, str]:
    """Visible path → text, read through the links as a container would."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if not path.relative_to(directory).parts[0].startswith("..") and path.is_file():
            found[str(path.relative_to(directory))] = path.read_text()
    for link in directory.iterdir():
        if link.is_symlink() and link.is_dir() and not link.name.startswith(".."):
            for path in link.rglob("*"):
                if path.is_file():
                    found[str(path.relative_to(directory))] = path.read_text()
    return found


def generations(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir() if path.name.startswith("..2")]


def test_layout(tmp_path: Path) -> None:
    assert write(tmp_path, files(key="a", dir__file="b"))
    assert content(tmp_path) == {"key": "a", "dir/file": "b"}
    assert os.readlink(tmp_path / "key") == "..data/key"
    assert os.readlink(tmp_path / "dir") == "..data/dir"
    assert os.readlink(tmp_path / "..data") == generations(tmp_path)[0]


def test_nothing_new_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, files(key="a"))
    before = generations(tmp_path)
    assert not write(tmp_path, files(key="a"))
    assert generations(tmp_path) == before


@pytest.mark.parametrize(
    "after",
    [files(key="b"), files(key="a", more="x"), files(), files(other="a"), {"key": File(b"a", 0o600)}],
)
def test_updates(tmp_path: Path, after: dict[str, File]) -> None:
    write(tmp_path, files(key="a"))
    assert write(tmp_path, after)
    assert content(tmp_path) == {path: file.data.decode() for path, file in after.items()}
    assert len(generations(tmp_path)) == 1
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("..")} == set(after)


def test_an_open_reader_keeps_the_old_file(tmp_path: Path) -> None:
    write(tmp_path, files(key="old"))
    with (tmp_path / "key").open() as reader:
        write(tmp_path, files(key="new"))
        assert reader.read() == "old"


def test_modes_and_group(tmp_path: Path) -> None:
    write(tmp_path, {"a": File(b"", 0o400), "d/b": File(b"", 0o644)}, group=os.getgid())
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o440
    assert stat.S_IMODE((tmp_path / "d/b").stat().st_mode) == 0o644
    assert (tmp_path / "d").stat().st_mode & stat.S_ISGID
    assert not write(tmp_path, {"a": File(b"", 0o400), "d/b": File(b"", 0o644)}, group=os.getgid())


def test_a_tampered_directory_is_put_right_and_nothing_outside_is_touched(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("keep")
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "..data").symlink_to(outside)
    (volume / "key").symlink_to(outside / "precious")
    (volume / "planted").symlink_to(outside)
    (volume / "..data_tmp").symlink_to(outside)
    write(volume, files(key="a"))
    assert content(volume) == {"key": "a"}
    assert (outside / "precious").read_text() == "keep"
    assert [path.name for path in outside.iterdir()] == ["precious"]


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OSError, match="link"):
        write(tmp_path / "link", files(key="a"))


@pytest.mark.parametrize("key", ["../x", "..", ".", "", "a/b", "a\0", "ä", "..data", "x" * 254, "a\n"])
def test_keys_that_are_refused(key: str) -> None:
    with pytest.raises(Unready, match="invalid key"):
        check_key(key)


@pytest.mark.parametrize("key", ["a", ".hidden", "A-b_c.d", "tls.crt"])
def test_keys_that_are_allowed(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x", "a/../../b", "", "..data/x", "a\0", "a/" + "b" * 4096]
)
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(Unready, match="invalid path"):
        check_path(path)


def test_paths_are_normalised() -> None:
    assert check_path("a//b/./c") == "a/b/c"
