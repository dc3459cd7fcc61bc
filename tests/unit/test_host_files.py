"""host.files: a record is whole or refused, and a write is all or nothing."""

import json
import os

import pytest

from host.errors import Busy, Denied, HostError, InputError, NoSpace, NotFound, from_errno
from host.files import (
    CorruptRecord,
    NewerRecord,
    locked,
    quarantine,
    read_input,
    read_record,
    write_atomic,
    write_record,
)


def test_a_record_comes_back_as_written(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, {"a": [1, "ü", None]}, kind="lease", version=2)
    assert read_record(path, kind="lease", version=2) == {"a": [1, "ü", None]}
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_an_older_version_is_read_and_a_newer_one_refused(tmp_path):
    path = tmp_path / "r.json"
    write_record(path, 1, kind="lease", version=2)
    assert read_record(path, kind="lease", version=3) == 1
    with pytest.raises(NewerRecord, match="version 2 is newer than 1"):
        read_record(path, kind="lease", version=1)


def test_every_truncation_and_every_flipped_bit_is_noticed_or_harmless(tmp_path):
    path = tmp_path / "r.json"
    data = {"pid": 4711, "name": "abc"}
    write_record(path, data, kind="k", version=1)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptRecord):
            read_record(path, kind="k", version=1)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            assert read_record(path, kind="k", version=1) == data
        except CorruptRecord:
            continue


def test_a_failed_write_keeps_the_old_content_and_leaves_no_temp_file(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomic(path, b"old")

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NoSpace, match=r"write .*/f"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


def test_quarantine_moves_aside(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps({}))
    assert quarantine(path).read_text() == "{}"
    assert not path.exists()
    with pytest.raises(NotFound):
        quarantine(path)


def test_a_lock_is_held_once(tmp_path):
    with locked(tmp_path / "l"), pytest.raises(Busy), locked(tmp_path / "l"):
        pytest.fail("the second holder got in")
    with locked(tmp_path / "l"):
        pass


def test_errors_are_typed_by_errno():
    assert type(from_errno(1, "x")) is Denied
    assert type(from_errno(84, "x")) is HostError
    assert str(from_errno(2, "open /x", "gone")) == "open /x: no such file or directory: gone"


def test_an_input_file_is_read_whole_or_refused_by_name(tmp_path):
    path = tmp_path / "config.yaml"
    with pytest.raises(InputError, match=r"kubeconfig .*/config.yaml cannot be read: no such file"):
        read_input(path, limit=3, noun="kubeconfig")
    path.write_bytes(b"abc")
    assert read_input(path, limit=3) == b"abc"
    path.write_bytes(b"abcd")
    with pytest.raises(InputError, match="larger than 3 bytes"):
        read_input(path, limit=3)
