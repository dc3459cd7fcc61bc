"""Removing a network device without waiting for the kernel to free it.

RTM_DELLINK takes a device out of every table within a millisecond and announces that, but answers only
after rcu_barrier(), 15-20 ms later (net/core/dev.c, netdev_run_todo). Who only needs the device to be gone
waits for the announcement; a thread waits for the answer.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading

from host import rtnl, threads
from host.errors import HostError, NotFound, from_oserror
from host.netlink import Netlink

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port id
_GROUP_LINK = 1  # RTMGRP_LINK of linux/rtnetlink.h
_RECEIVE_BYTES = 1 << 18


def remove_link(name: str) -> None:
    """Remove a device of the calling thread's network namespace, and with it its veth peer.

    On return no new packet passes it and nobody finds it any more; a missing one is success.

    Raises:
        HostError: the kernel refused.
    """
    removal = _Removal(name)
    try:
        removal.start()
        removal.wait()
    finally:
        removal.close()


class _Removal:
    """One removal: a thread that asks, and two descriptors to wait on."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._failure: HostError | None = None
        self._netlink = Netlink()
        try:
            self._news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self._news.bind((0, _GROUP_LINK))
        except OSError as exc:
            self._netlink.close()
            raise from_oserror(exc, "listen for device changes") from exc
        self._answered, self._asked = os.pipe2(os.O_CLOEXEC)

    def start(self) -> None:
        """Ask, on a thread that ends by itself and then closes what is its own."""
        threads.start(threading.Thread(target=self._ask, name="link-removal", daemon=True))

    def _ask(self) -> None:
        try:
            self._netlink.execute(rtnl.delete_link(self._name), ignore=(NotFound,))
        except HostError as exc:
            self._failure = exc
        finally:
            self._netlink.close()
            os.close(self._asked)

    def wait(self) -> None:
        """Until the device is announced to be gone, or the answer is there."""
        poll = select.poll()
        poll.register(self._news, select.POLLIN)
        poll.register(self._answered, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll()]
            if self._answered in ready:
                if self._failure is not None:
                    raise self._failure
                return
            try:
                data = self._news.recv(_RECEIVE_BYTES)
            except OSError:  # too many news at once (ENOBUFS): the answer has to tell
                poll.unregister(self._news)
                continue
            if self._tells(data):
                # The announcement comes amid the removal; a question is answered after it (both take rtnl).
                with Netlink() as netlink:
                    netlink.find_link(self._name)
                return

    def _tells(self, data: bytes) -> bool:
        start = 0
        while start + _HEADER.size <= len(data):
            length, kind, _, _, _ = _HEADER.unpack_from(data, start)
            if length < _HEADER.size:
                return False
            payload = data[start + _HEADER.size : start + length]
            # A port that leaves its bridge is announced with the same type, but the family AF_BRIDGE.
            is_removal = kind == rtnl.RTM_DELLINK and payload[:1] == b"\0"
            if is_removal and rtnl.parse_link(payload).name == self._name:
                return True
            start += (length + 3) & ~3
        return False

    def close(self) -> None:
        """What the thread does not own."""
        self._news.close()
        os.close(self._answered)
