"""Variables from files of a volume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from podkit import Node, make_pod, running

from agent.pods.env_files import EnvFileError, read_file, value_in

TEXT = """# made by an init container
  ONE='1'  # said twice

TWO='several
lines # with = and "
'
EMPTY= 'not this'
ONE='again'
"""


@pytest.mark.parametrize(
    ("key", "value"), [("ONE", "1"), ("TWO", 'several\nlines # with = and "\n'), ("EMPTY", ""), ("X", None)]
)
def test_values(key: str, value: str | None) -> None:
    assert value_in(TEXT, key) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ONE", "line 1: missing '='"),
        ("\nONE ='1'", "line 2: a name"),
        ("='1'", "line 1: a name"),
        ("ONE=1", "single quotes"),
        ("ONE='1\n2", "line 1: the single quote is not closed"),
        ("ONE='1' 2", "only a comment"),
    ],
)
def test_what_is_no_variable_is_named_by_its_line(text: str, words: str) -> None:
    with pytest.raises(EnvFileError, match=words):
        value_in(text, "LATER")
    assert value_in("NOW='1'\n" + text, "NOW") == "1"


def test_a_file_is_looked_up_beneath_its_volume(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "sub").mkdir(parents=True)
    (volume / "sub" / "env").write_text(TEXT)
    (tmp_path / "secret").write_text("KEY='secret'")
    (volume / "out").symlink_to("../secret")
    (volume / "absolute").symlink_to(tmp_path / "secret")
    (volume / "in").symlink_to("sub/env")
    os.mkfifo(volume / "pipe")
    (volume / "large").write_bytes(b"#" * (64 << 10) + b"#")
    assert read_file(volume, "sub/env") == TEXT == read_file(volume, "in")
    assert read_file(volume, "nothing") is None
    for path in ("out", "absolute", "../secret", "pipe", "large", "sub"):
        with pytest.raises(EnvFileError):
            read_file(volume, path)


def pod_of(**ref: Any) -> Any:
    source = {"fileKeyRef": {"volumeName": "v", "path": "env", "key": "ONE", **ref}}
    container = {"name": "app", "image": "busybox", "env": [{"name": "A", "valueFrom": source}]}
    return make_pod(spec={"containers": [container], "volumes": [{"name": "v", "emptyDir": {}}]})


@pytest.mark.parametrize(
    ("ref", "outcome"),
    [
        ({}, "1"),
        ({"key": "X", "optional": True}, None),
        ({"path": "nothing", "optional": True}, None),
        ({"key": "X"}, 'environment variable key "X" not found in file "env" of volume "v"'),
        ({"volumeName": "w"}, 'cannot find the volume "w" referenced by FileKeyRef'),
    ],
)
async def test_a_container_gets_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: dict[str, Any], outcome: str | None
) -> None:
    (tmp_path / "env").write_text(TEXT)
    async with running(Node(tmp_path)) as node:
        node.volumes.path = tmp_path
        await node.put(pod_of(**ref))
        waiting = node.state().state.waiting
        if waiting is not None:
            assert (waiting.reason, waiting.message) == ("CreateContainerConfigError", outcome)
            return
        env = {e.key: e.value.decode() for e in node.cri.config(node.cri.containers()[0].id).envs}
        assert env.get("A") == outcome
