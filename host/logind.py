"""logind's part in a shutdown: being told of it, and holding it up (org.freedesktop.login1(5)).

A delay inhibitor is a descriptor: as long as it is open, and for InhibitDelayMaxSec at most, logind waits
with a shutdown it has announced by the signal PrepareForShutdown. Calls block for one answer on the bus;
signals are read when the connection's descriptor is readable, so that an event loop can wait for them.
"""

from __future__ import annotations

import errno
import signal
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    MatchRule,
    Message,
    MessageType,
    Properties,
    message_bus,
    new_method_call,
)
from jeepney.io.blocking import DBusConnection, open_dbus_connection

from host.dbus import BUS, SYSTEMD, body, connected
from host.errors import from_errno, from_oserror

_LOGIN = DBusAddress("/org/freedesktop/login1", "org.freedesktop.login1", "org.freedesktop.login1.Manager")
_SHUTDOWN = "PrepareForShutdown"
_ANSWER_LIMIT_S = 10.0


class Logind:
    """One connection. Every method raises HostError: nobody answers, or the call is refused."""

    def __init__(self, bus: str = BUS) -> None:
        """Connect, and ask to be told of shutdowns. `bus`: the D-Bus address of the system bus."""
        what = f"connect to logind at {bus}"
        self._connection: DBusConnection = connected(
            lambda: open_dbus_connection(bus=bus, enable_fds=True), what
        )
        self._early: list[Message] = []
        rule = MatchRule(type="signal", interface=_LOGIN.interface, member=_SHUTDOWN, path=_LOGIN.object_path)
        try:
            self._call(message_bus.AddMatch(rule), what)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hang up. Inhibitors taken stay."""
        self._connection.close()

    def fileno(self) -> int:
        """Readable when `shutdowns` has something to tell."""
        return int(self._connection.sock.fileno())

    def longest_delay(self) -> float:
        """InhibitDelayMaxSec: how many seconds a shutdown can be held up."""
        ((_, microseconds),) = self._call(
            Properties(_LOGIN).get("InhibitDelayMaxUSec"), "ask logind how long a shutdown may be delayed"
        )
        return float(microseconds) / 1e6

    def inhibit(self, *, who: str, why: str) -> int:
        """Hold up shutdowns until the descriptor answered is closed. It is the caller's."""
        message = new_method_call(_LOGIN, "Inhibit", "ssss", ("shutdown", who, why, "delay"))
        (lock,) = self._call(message, "take a shutdown inhibitor")
        return int(lock.to_raw_fd())

    def reload(self) -> None:
        """Make logind read its configuration files again."""
        wanted = ("systemd-logind.service", "all", int(signal.SIGHUP))
        self._call(new_method_call(SYSTEMD, "KillUnit", "ssi", wanted), "reload logind")

    def shutdowns(self) -> list[bool]:
        """What was announced since the last call: True a shutdown, False that one was called off."""
        found, self._early = self._early, []
        while True:
            try:
                found.append(self._connection.receive(timeout=0))
            except TimeoutError:
                break
            except OSError as exc:
                raise from_oserror(exc, "listen to logind") from exc
        return [bool(message.body[0]) for message in found if _announces(message)]

    def _call(self, message: Message, what: str) -> tuple[Any, ...]:
        """The answer's body; signals that come before it are kept."""
        serial = next(self._connection.outgoing_serial)
        try:
            self._connection.send(message, serial=serial)
            while True:
                answer = self._connection.receive(timeout=_ANSWER_LIMIT_S)
                if answer.header.fields.get(HeaderFields.reply_serial) == serial:
                    break
                self._early.append(answer)
        except TimeoutError as exc:
            raise from_errno(errno.ETIMEDOUT, what, "no answer on the system bus") from exc
        except OSError as exc:
            raise from_oserror(exc, what) from exc
        return body(answer, what)


def _announces(message: Message) -> bool:
    fields = message.header.fields
    return message.header.message_type is MessageType.signal and fields.get(HeaderFields.member) == _SHUTDOWN
