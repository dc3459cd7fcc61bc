"""What our clients of the system bus share: its address, and its errors as ours.

Source: D-Bus Specification, "Message Bus Names" and "Standard Interfaces"; org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any, TypeVar

from jeepney import DBusAddress, DBusErrorResponse, HeaderFields, Message, MessageType

from host.errors import from_errno, from_oserror

Connection = TypeVar("Connection")
BUS = "unix:path=/run/dbus/system_bus_socket"
_SYSTEMD = "org.freedesktop.systemd1"
SYSTEMD = DBusAddress("/org/freedesktop/systemd1", _SYSTEMD, f"{_SYSTEMD}.Manager")
_ERRNO = {
    f"{_SYSTEMD}.UnitExists": errno.EEXIST,
    f"{_SYSTEMD}.NoSuchUnit": errno.ENOENT,
    f"{_SYSTEMD}.UnitMasked": errno.EPERM,
    "org.freedesktop.DBus.Error.UnknownObject": errno.ENOENT,
    "org.freedesktop.DBus.Error.AccessDenied": errno.EACCES,
    "org.freedesktop.DBus.Error.InvalidArgs": errno.EINVAL,
    "org.freedesktop.DBus.Error.PropertyReadOnly": errno.EINVAL,
    "org.freedesktop.DBus.Error.UnknownProperty": errno.EOPNOTSUPP,
    "org.freedesktop.DBus.Error.NoReply": errno.ETIMEDOUT,
    "org.freedesktop.DBus.Error.Timeout": errno.ETIMEDOUT,
}


def connected(opened: Callable[[], Connection], what: str) -> Connection:
    """The connection that `opened` makes.

    Raises:
        HostError: nobody listens there, or we are not let in.
    """
    try:
        return opened()
    except OSError as exc:
        raise from_oserror(exc, what) from exc
    except DBusErrorResponse as exc:
        raise from_errno(errno.EIO, what, exc.name) from exc


def body(answer: Message, what: str) -> tuple[Any, ...]:
    """What an answer says.

    Raises:
        HostError: it is an error; its kind follows from the error's name.
    """
    if answer.header.message_type is not MessageType.error:
        return tuple(answer.body)
    name = answer.header.fields.get(HeaderFields.error_name, "")
    words = str(answer.body[0]) if answer.body else name
    raise from_errno(_ERRNO.get(name, errno.EIO), what, words)
