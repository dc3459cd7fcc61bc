"""The settings of nodelet-cri: flags, file, and what is refused."""

from pathlib import Path

import pytest

from cri.config import Settings, host_port, parse
from cri.main import check_machine, main
from host.errors import InputError


def test_defaults_are_the_documented_places():
    settings = parse([])
    assert settings == Settings()
    assert settings.socket_path == Path("/run/nodelet/cri.sock")


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "cri.yaml"
    file.write_text("root: /a\nstate: /b\npinnedImages: [x, y]\n")
    settings = parse(["--config", str(file), "--root=/c", "--log-level=debug"])
    assert (settings.root, settings.state, settings.log_level) == (Path("/c"), Path("/b"), "debug")
    assert settings.pinned_images == ("x", "y")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--rooot=/x"], "--rooot"),
        (["--root=relative"], "--root"),
        (["--cdi-spec-dir=relative"], "--cdi-spec-dir"),
        (["--listen=tcp://1.2.3.4"], "unix:///"),
        (["--listen=unix:///" + "x" * 120], "107 bytes"),
        (["--log-level=loud"], "loud"),
        (["--stream-address=0.0.0.0:80"], "127.0.0.1"),
        (["--stream-address=127.0.0.1:99999"], "127.0.0.1"),
        (["--max-concurrent-downloads=0"], "maxConcurrentDownloads"),
        (["--image-pull-progress-timeout=soon"], "imagePullProgressTimeout"),
        (["--config=/none"], "/none"),
        (["extra"], "extra"),
    ],
)
def test_a_mistake_is_one_line_with_its_name(argv, words, capsys):
    assert main(argv) == 2
    text = capsys.readouterr().err
    assert text.startswith("nodelet-cri: ")
    assert text.count("\n") == 1
    assert words in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("rot: /x", "unknown setting 'rot'; known are cdiSpecDirs"),
        ("- a", "mapping"),
        ("root: 5", "root must be a string"),
        ("pinnedImages: x", "list of strings"),
        ("maxConcurrentDownloads: true", "whole number"),
        ("maxConcurrentDownloads: -1", "whole number"),
        ("a: [", "not YAML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path, content, words):
    file = tmp_path / "cri.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=words):
        parse(["--config", str(file)])


def test_the_stream_address_is_split():
    assert host_port("127.0.0.1:0") == ("127.0.0.1", 0)
    assert host_port("[::1]:80") == ("::1", 80)


def test_a_kernel_without_overlay_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "filesystems").write_text("nodev\ttmpfs\n\text4\n")
    with pytest.raises(InputError, match="modprobe overlay"):
        check_machine(Settings(), proc=tmp_path)
    (tmp_path / "filesystems").write_text("nodev\toverlay\n")
    with pytest.raises(InputError, match="--cgroup-root"):
        check_machine(Settings(cgroup_root=tmp_path), proc=tmp_path)


def test_only_root_may_run_it(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(InputError, match="root"):
        check_machine(Settings())
