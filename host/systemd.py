"""systemd as the manager of transient units, over the system bus (org.freedesktop.systemd1(5)).

D-Bus is spoken through jeepney, which is pure Python and reads its socket in one thread. Calls block, from
any thread: a container's start waits here for its own job and for nobody else's. A bus that has been
restarted is connected to again at the next call. `host.logind` has a connection of its own, whose signals an
event loop waits for.

Not for supervisors: what they need of a unit is its cgroup.
"""

from __future__ import annotations

import errno
import re
import threading
from typing import Any

from jeepney import DBusAddress, MatchRule, Message, Properties, message_bus, new_method_call
from jeepney.io.common import RouterClosed
from jeepney.io.threading import DBusRouter, open_dbus_connection

from host.dbus import BUS, SYSTEMD, body, connected
from host.errors import HostError, NotFound, from_errno

Property = tuple[str, tuple[str, Any]]
_PEER = DBusAddress(SYSTEMD.object_path, SYSTEMD.bus_name, "org.freedesktop.DBus.Peer")
_ANSWER_LIMIT_S = 25.0
JOB_LIMIT_S = 30.0
"""How long a unit may take to start or stop: nothing of ours takes a second, a machine under load may."""
_REMEMBERED = 4096
"""Ends of jobs that nobody has asked for yet."""


class Systemd:
    """One connection, made when it is first needed."""

    def __init__(self, bus: str = BUS) -> None:
        """`bus`: the D-Bus address of the system bus."""
        self._bus = bus
        self._lock = threading.Lock()
        self._router: DBusRouter | None = None
        self._jobs = _Jobs()

    def close(self) -> None:
        """Hang up; a later call connects again."""
        if self._router is not None:
            self._hang_up(self._router)

    def version(self) -> int:
        """systemd's number, such as 252.

        Raises:
            HostError: nobody answers on the bus.
        """
        message = Properties(SYSTEMD).get("Version")
        ((_, text),) = self._send(message, "ask systemd for its version")
        found = re.match(r"v?(\d+)", text)
        return int(found.group(1)) if found else 0

    def start(self, unit: str, properties: list[Property]) -> None:
        """StartTransientUnit, and wait for its job.

        Raises:
            Exists: there is a unit of this name.
            TimedOut, HostError: it was not started; nothing of it is left.
        """
        wanted: tuple[Any, ...] = (unit, "fail", properties, [])
        try:
            self._job("StartTransientUnit", "ssa(sv)a(sa(sv))", wanted, f"start {unit}")
        except HostError as exc:
            if exc.errno != errno.EEXIST:
                self._take_back(unit, exc)
            raise

    def _take_back(self, unit: str, cause: HostError) -> None:
        try:
            self.stop(unit)
        except HostError as exc:
            cause.add_note(f"stopping it failed as well: {exc}")

    def set_properties(self, unit: str, properties: list[Property]) -> None:
        """SetUnitProperties, until the next boot; returns when systemd has written them into files.

        It answers before that. But it takes up one message a turn of its loop, and writes what is due between
        two (manager_loop), so that when it has answered a second one it has.

        Raises:
            NotFound: no such unit.
            HostError: a property was refused; none has changed.
        """
        message = new_method_call(SYSTEMD, "SetUnitProperties", "sba(sv)", (unit, True, properties))
        self._send(message, f"set properties of {unit}")
        self._send(new_method_call(_PEER, "Ping"), f"wait for properties of {unit}")

    def stop(self, unit: str) -> None:
        """StopUnit, wait for its job, and forget that it may have failed. A missing unit is fine."""
        try:
            self._job("StopUnit", "ss", (unit, "replace"), f"stop {unit}")
            self._send(new_method_call(SYSTEMD, "ResetFailedUnit", "s", (unit,)), f"forget {unit}")
        except NotFound:
            return

    def _job(self, method: str, signature: str, wanted: tuple[Any, ...], what: str) -> None:
        """Its end is told by a signal, which may come before the answer that names it."""
        (job,) = self._send(new_method_call(SYSTEMD, method, signature, wanted), what)
        result = self._jobs.wait(job, JOB_LIMIT_S)
        if result is None:
            raise from_errno(errno.ETIMEDOUT, what, f"its job is not done after {JOB_LIMIT_S:.0f} s")
        if result != "done":
            raise from_errno(errno.EIO, what, f"its job ended as {result!r}")

    def _send(self, message: Any, what: str) -> tuple[Any, ...]:
        """The answer's body. A connection that turns out to be lost is made again once."""
        try:
            answer = self._ask(message)
        except TimeoutError as exc:
            raise from_errno(errno.ETIMEDOUT, what, "no answer on the system bus") from exc
        except (RouterClosed, ConnectionError) as exc:
            raise from_errno(errno.ECONNRESET, what, "the connection to the system bus was lost") from exc
        return body(answer, what)

    def _ask(self, message: Message) -> Message:
        router, is_new = self._connected()
        try:
            return router.send_and_get_reply(message, timeout=_ANSWER_LIMIT_S)
        except (RouterClosed, ConnectionError):
            self._hang_up(router)
            if is_new:
                raise
            router, _ = self._connected()
            return router.send_and_get_reply(message, timeout=_ANSWER_LIMIT_S)

    def _connected(self) -> tuple[DBusRouter, bool]:
        """The router, and whether it was made just now."""
        with self._lock:
            if self._router is not None:
                return self._router, False
            self._router = self._connect()
            return self._router, True

    def _hang_up(self, router: DBusRouter) -> None:
        with self._lock:
            is_ours = self._router is router  # else another thread has found it lost, too
            if is_ours:
                self._router = None
        if is_ours:
            router.close()
            router.conn.close()

    def _connect(self) -> DBusRouter:
        """A connection with our wish for signals known to the bus and to systemd."""
        what = f"connect to systemd at {self._bus}"
        connection = connected(lambda: open_dbus_connection(bus=self._bus), what)
        router = DBusRouter(connection)
        # One filter for all: the library's are not to be changed while its thread reads.
        router.filter(MatchRule(type="signal", member="JobRemoved"), queue=self._jobs)
        rule = MatchRule(
            type="signal", sender=SYSTEMD.bus_name, member="JobRemoved", path=SYSTEMD.object_path
        )
        try:
            for message in (message_bus.AddMatch(rule), new_method_call(SYSTEMD, "Subscribe")):
                body(router.send_and_get_reply(message, timeout=_ANSWER_LIMIT_S), what)
        except BaseException:
            router.close()
            connection.close()
            raise
        return router


class _Jobs:
    """How jobs have ended, by name; fed by the connection's thread."""

    def __init__(self) -> None:
        self._ended: dict[str, str] = {}
        self._changed = threading.Condition()

    def put_nowait(self, signal: Message) -> None:
        """A JobRemoved signal: number, job, unit, result. Those of others are forgotten some time."""
        _, job, _, result = signal.body
        with self._changed:
            self._ended[job] = result
            if len(self._ended) > _REMEMBERED:
                del self._ended[next(iter(self._ended))]
            self._changed.notify_all()

    def wait(self, job: str, limit: float) -> str | None:
        """Its result, such as `done`; None when it has not ended within so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: job in self._ended, limit)
            return self._ended.get(job)
