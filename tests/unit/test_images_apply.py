"""Applying layers: OCI rules, and archives that try to leave their directory."""

import os
import stat
import time
from contextlib import suppress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from images_kit import apply, archive, header, member, pax

from cri.images import sandbox
from cri.images.errors import CorruptContent
from cri.images.rootdir import clean

DIR, LINK, SYMLINK, CHAR, FIFO = b"5", b"1", b"2", b"3", b"6"
OPAQUE = "user.overlay.opaque"


def is_whiteout(path) -> bool:
    facts = path.lstat()
    return stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0


def test_files_directories_links_and_times(tmp_path):
    tree = apply(
        tmp_path,
        archive(
            member(b"./", kind=DIR, mode=0o755),
            member(b"etc/", kind=DIR, mode=0o750, mtime=1000),
            member(b"etc/f", b"text", mode=0o640, mtime=2000),
            member(b"etc/hard", kind=LINK, link=b"etc/f"),
            member(b"etc/soft", kind=SYMLINK, link=b"/etc/f"),
            member(b"pipe", kind=FIFO, mode=0o600),
        ),
    )
    assert (tree.path / "etc/f").read_bytes() == b"text"
    assert (tree.path / "etc/f").stat().st_mtime == 2000
    assert (tree.path / "etc").stat().st_mtime == 1000
    assert stat.S_IMODE((tree.path / "etc").stat().st_mode) == 0o750
    assert (tree.path / "etc/hard").stat().st_ino == (tree.path / "etc/f").stat().st_ino
    assert os.readlink(tree.path / "etc/soft") == "/etc/f"
    assert stat.S_ISFIFO((tree.path / "pipe").lstat().st_mode)
    assert tree.applied.inodes == 4 and tree.applied.size == 8192


def test_setuid_bits_stay(tmp_path):
    tree = apply(tmp_path, archive(member(b"su", b"x", mode=0o4755), member(b"t", kind=DIR, mode=0o1777)))
    assert stat.S_IMODE((tree.path / "su").stat().st_mode) == 0o4755
    assert stat.S_IMODE((tree.path / "t").stat().st_mode) == 0o1777


def test_later_entries_win(tmp_path):
    tree = apply(
        tmp_path,
        archive(
            member(b"a", b"file"),
            member(b"a", kind=DIR, mode=0o755),
            member(b"a/b", b"1"),
            member(b"a", b"file again"),
            member(b"l", kind=SYMLINK, link=b"a"),
            member(b"l", b"not through the link"),
        ),
    )
    assert (tree.path / "a").read_bytes() == b"file again"
    assert not (tree.path / "l").is_symlink()


def test_whiteouts(tmp_path):
    tree = apply(
        tmp_path,
        archive(
            member(b".wh.gone"),
            member(b"d/.wh.gone"),
            member(b"o/", kind=DIR, mode=0o755),
            member(b"o/.wh..wh..opq"),
            member(b"o/.wh..wh..opq"),
            member(b".wh..wh.plnk/1.2", b"aufs"),
        ),
    )
    assert is_whiteout(tree.path / "gone")
    assert is_whiteout(tree.path / "d/gone")
    assert os.getxattr(tree.path / "o", OPAQUE) == b"y"
    assert not tree.applied.opaque_root


def test_opaque_root_is_reported(tmp_path):
    assert apply(tmp_path, archive(member(b".wh..wh..opq"))).applied.opaque_root


def test_whiteouts_hide_lower_layers_only(tmp_path):
    tree = apply(
        tmp_path,
        archive(
            member(b"file", b"new"),
            member(b".wh.file"),
            member(b"dir/", kind=DIR, mode=0o755),
            member(b"dir/f", b"new"),
            member(b".wh.dir"),
            member(b".wh.later"),
            member(b"later/", kind=DIR, mode=0o755),
            member(b".wh.implied"),
            member(b"implied/f", b"new"),
        ),
    )
    assert (tree.path / "file").read_bytes() == b"new"
    assert (tree.path / "dir/f").read_bytes() == b"new"
    for name in ("dir", "later", "implied"):
        assert os.getxattr(tree.path / name, OPAQUE) == b"y"


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"a/.wh.."])
def test_whiteouts_of_nothing_are_refused(tmp_path, name):
    with pytest.raises(CorruptContent):
        apply(tmp_path, archive(member(b"a/", kind=DIR, mode=0o755), member(name)))


def test_unlisted_parents_look_like_those_below(tmp_path):
    lower = apply(tmp_path, archive(member(b"v/", kind=DIR, mode=0o701, mtime=500)), name="lower")
    upper = apply(tmp_path, archive(member(b"v/w/f", b"x")), lower.path, name="upper")
    assert stat.S_IMODE((upper.path / "v").stat().st_mode) == 0o701
    assert (upper.path / "v").stat().st_mtime == 500
    assert stat.S_IMODE((upper.path / "v/w").stat().st_mode) == 0o755


def test_hard_links_to_lower_layers_copy_the_file_up(tmp_path):
    lower = apply(tmp_path, archive(member(b"bin/tool", b"program", mode=0o755, mtime=7)), name="lower")
    upper = apply(tmp_path, archive(member(b"bin/alias", kind=LINK, link=b"bin/tool")), lower.path, name="u")
    assert (upper.path / "bin/alias").read_bytes() == b"program"
    assert (upper.path / "bin/alias").stat().st_mtime == 7


def test_overlay_marks_and_host_policy_are_stripped(tmp_path):
    data = archive(
        pax(
            SCHILY__xattr__user__overlay__opaque=b"y",
            SCHILY__xattr__trusted__overlay__opaque=b"y",
            SCHILY__xattr__security__selinux=b"x",
            SCHILY__xattr__user__kept=b"1",
        ),
        member(b"f"),
    )
    assert os.listxattr(apply(tmp_path, data).path / "f") == ["user.kept"]


ESCAPES = {
    "dots": [member(b"../../evil", b"x")],
    "absolute": [member(b"/evil", b"x")],
    "dots inside": [member(b"a/../../../evil", b"x")],
    "link to root": [member(b"l", kind=SYMLINK, link=b"/"), member(b"l/evil", b"x")],
    "link up": [member(b"l", kind=SYMLINK, link=b"../../.."), member(b"l/evil", b"x")],
    "link chain": [
        member(b"a", kind=SYMLINK, link=b".."),
        member(b"b", kind=SYMLINK, link=b"a/.."),
        member(b"b/evil", b"x"),
    ],
    "directory over link": [
        member(b"l", kind=SYMLINK, link=b"/"),
        member(b"l", kind=DIR, mode=0o777),
        member(b"l/evil", b"x"),
    ],
    "whiteout through link": [
        member(b"l", kind=SYMLINK, link=b"../.."),
        member(b"l/.wh.canary"),
    ],
    "opaque through link": [member(b"l", kind=SYMLINK, link=b"/"), member(b"l/.wh..wh..opq")],
}


@pytest.mark.parametrize("members", ESCAPES.values(), ids=ESCAPES.keys())
def test_nothing_outside_is_touched(tmp_path, members):
    canary = tmp_path / "canary"
    canary.write_text("alive")
    before = {entry.name for entry in os.scandir("/")}
    apply(tmp_path, archive(*members))
    assert canary.read_text() == "alive"
    assert {entry.name for entry in tmp_path.iterdir()} == {"canary", "layer"}
    assert {entry.name for entry in (tmp_path / "layer").iterdir()} == {"diff", "trash"}
    assert {entry.name for entry in os.scandir("/")} == before


@pytest.mark.parametrize(
    "target", [b"../../canary", b"/canary", b"l/canary", b"nowhere", b"", b"self", b"dir"]
)
def test_hard_links_out_are_refused(tmp_path, target):
    (tmp_path / "canary").write_text("alive")
    with pytest.raises(CorruptContent):
        apply(
            tmp_path,
            archive(
                member(b"l", kind=SYMLINK, link=b"../.."),
                member(b"dir/", kind=DIR, mode=0o755),
                member(b"self", kind=LINK, link=target),
            ),
        )
    assert (tmp_path / "canary").stat().st_nlink == 1


def test_hard_link_to_itself_is_harmless(tmp_path):
    tree = apply(tmp_path, archive(member(b"f", b"x"), member(b"f", kind=LINK, link=b"f")))
    assert (tree.path / "f").read_bytes() == b"x"


@pytest.mark.parametrize(
    "members",
    [
        [member(b"n" * 90 + b"/x"), pax(path=b"p" * 300) + member(b"x")],
        [pax(path=b"d/" * 600 + b"f") + member(b"x")],
        [member(b"a", kind=SYMLINK, link=b"b"), member(b"b", kind=SYMLINK, link=b"a"), member(b"a/x", b"1")],
        [member(b"f", b"x"), member(b"f/below", b"x")],
        [header(b"s", kind=SYMLINK)],
        [member(b"..", b"root as a file")],
    ],
    ids=["long name", "too deep", "link loop", "file as parent", "empty link", "root as file"],
)
def test_impossible_places_are_corrupt_content(tmp_path, members):
    with pytest.raises(CorruptContent):
        apply(tmp_path, archive(*members))


def test_opaque_storm_is_quick(tmp_path):
    started = time.monotonic()
    apply(tmp_path, archive(member(b"d/", kind=DIR, mode=0o755), *[member(b"d/.wh..wh..opq")] * 100_000))
    assert time.monotonic() - started < 10


def test_displacement_storm_is_quick(tmp_path):
    pair = [member(b"d/", kind=DIR, mode=0o755), member(b"d/x", b""), member(b"d", b"")]
    started = time.monotonic()
    apply(tmp_path, archive(*pair * 2000))
    assert time.monotonic() - started < 10


NAMES = st.sampled_from([b"a", b"b", b"a/b", b"b/a", b"../a", b"/b", b"a/../..", b".", b"a/.wh.b", b".wh.a"])
KINDS = st.sampled_from([b"0", LINK, SYMLINK, DIR, FIFO])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(NAMES, KINDS, NAMES), max_size=8))
@example([(b"b/a", DIR, b"a"), (b"b", SYMLINK, b"b")])
def test_any_mix_stays_inside(tmp_path_factory, mix):
    base = tmp_path_factory.mktemp("mix")
    (base / "a").write_text("canary")
    (base / "b").mkdir()
    members = [member(name, kind=kind, link=link, mode=0o755) for name, kind, link in mix]
    with suppress(CorruptContent):
        apply(base, archive(*members))
    assert (base / "a").read_text() == "canary"
    assert list((base / "b").iterdir()) == []
    assert {entry.name for entry in base.iterdir()} == {"a", "b", "layer"}
    assert {entry.name for entry in (base / "layer").iterdir()} == {"diff", "trash"}


def test_clean():
    assert clean(b"/a/./b//c/") == (b"a", b"b", b"c")
    assert clean(b"../../a") == (b"a",)
    assert clean(b"a/../..") == ()


def test_the_sandbox_maps_every_id_to_itself():
    assert sandbox.identity("         0          0 4294967295\n") == "0 0 4294967295\n"
    assert sandbox.identity("0 100000 65536\n70000 1 2\n") == "0 0 65536\n70000 70000 2\n"
