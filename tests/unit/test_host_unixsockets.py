"""Who has a socket's path: a listener, a dead one, or one that answers nobody."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from host.errors import InputError
from host.unixsockets import check_free, clear


def test_a_listener_is_named(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(InputError, match=rf"listens on {path}, {os.getpid()} \(.*\): stop it or set --x"):
            check_free(path, fix="set --x")
    check_free(path, fix="set --x")
    assert path.is_socket()
    clear(path, fix="set --x")
    assert not path.exists()


def test_a_listener_that_accepts_nobody_keeps_its_path(tmp_path: Path) -> None:
    """Its queue is full, so a connection cannot even be waited for."""
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waits:
        listener.bind(str(path))
        listener.listen(0)
        waits.connect(str(path))
        with pytest.raises(InputError, match="a program that does not answer listens on"):
            clear(path, fix="set --x")
    assert path.is_socket()
