"""logind as D-Bus speaks it: a real bus, and behind it a stand-in for logind and systemd."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import (
    DBusAddress,
    HeaderFields,
    MessageType,
    message_bus,
    new_error,
    new_method_return,
    new_signal,
)
from jeepney.io.blocking import open_dbus_connection

from host.errors import HostError
from host.logind import Logind

CONFIGURATION = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth>
<policy context="default">
<allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/>
</policy></busconfig>
"""


class StandIn:
    """Answers for logind and systemd, and remembers what it was asked."""

    def __init__(self, address: str) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.seconds = 5
        self.refuse = ""
        self.held, self._lock = os.pipe()
        self._connection = open_dbus_connection(bus=address, enable_fds=True)
        for name in ("org.freedesktop.login1", "org.freedesktop.systemd1"):
            self._connection.send_and_get_reply(message_bus.RequestName(name), timeout=10)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                message = self._connection.receive()
            except OSError:
                return
            if message.header.message_type is MessageType.method_call:
                self._answer(message)

    def _answer(self, message: Any) -> None:
        method = message.header.fields[HeaderFields.member]
        self.calls.append((method, message.body))
        if self.refuse:
            answer = new_error(message, "org.freedesktop.DBus.Error.AccessDenied", "s", (self.refuse,))
        elif method == "Get":
            answer = new_method_return(message, "v", (("t", self.seconds * 1_000_000),))
        elif method == "Inhibit":
            self.announce(True)  # before the answer: a caller must not lose it
            answer = new_method_return(message, "h", (self._lock,))
        else:
            answer = new_method_return(message)
        self._connection.send(answer)
        if method == "Inhibit":
            os.close(self._lock)

    def announce(self, begins: bool) -> None:
        where = DBusAddress("/org/freedesktop/login1", interface="org.freedesktop.login1.Manager")
        self._connection.send(new_signal(where, "PrepareForShutdown", "b", (begins,)))

    def close(self) -> None:
        self._connection.sock.shutdown(2)
        self._thread.join(10)
        self._connection.close()
        os.close(self.held)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    if shutil.which("dbus-daemon") is None:
        pytest.skip("needs dbus-daemon (Debian package dbus-daemon)")
    where = f"unix:path={tmp_path}/bus"
    (tmp_path / "bus.conf").write_text(CONFIGURATION.format(address=where))
    argv = ["dbus-daemon", f"--config-file={tmp_path}/bus.conf", "--nofork", "--print-address"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline()
        yield where
        daemon.terminate()


@pytest.fixture
def stand_in(address: str) -> Iterator[StandIn]:
    found = StandIn(address)
    yield found
    found.close()


def announced(logind: Logind) -> list[bool]:
    """The next announcement."""
    assert select.select([logind.fileno()], [], [], 10.0)[0]
    return logind.shutdowns()


def test_a_shutdown_is_told_of_and_held_up_until_the_lock_is_closed(address: str, stand_in: StandIn) -> None:
    logind = Logind(address)
    try:
        assert logind.longest_delay() == 5.0
        lock = logind.inhibit(who="kubelet", why="pods")
        assert stand_in.calls[-1] == ("Inhibit", ("shutdown", "kubelet", "pods", "delay"))
        assert logind.shutdowns() == [True]
        assert logind.shutdowns() == []
        assert select.select([stand_in.held], [], [], 0)[0] == []  # somebody holds the other end
        os.close(lock)
        assert select.select([stand_in.held], [], [], 10.0)[0] == [stand_in.held]
        stand_in.announce(False)
        assert announced(logind) == [False]
    finally:
        logind.close()


def test_logind_is_asked_to_read_its_files_again(address: str, stand_in: StandIn) -> None:
    logind = Logind(address)
    try:
        logind.reload()
        assert stand_in.calls == [("KillUnit", ("systemd-logind.service", "all", 1))]
    finally:
        logind.close()


def test_a_refusal_is_an_error_with_its_words(address: str, stand_in: StandIn) -> None:
    logind = Logind(address)
    stand_in.refuse = "not for you"
    try:
        with pytest.raises(HostError, match="not for you"):
            logind.inhibit(who="kubelet", why="pods")
    finally:
        logind.close()


def test_no_bus_and_a_bus_that_ends_are_errors(tmp_path: Path, address: str) -> None:
    with pytest.raises(HostError, match="connect to logind"):
        Logind(f"unix:path={tmp_path}/none")
    logind = Logind(address)
    try:
        with pytest.raises(HostError):  # nobody there by that name
            logind.longest_delay()
    finally:
        logind.close()
