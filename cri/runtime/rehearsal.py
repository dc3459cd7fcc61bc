"""One container's life, lived by the spawner before it forks its first supervisor.

The interpreter writes into its own code and caches when something runs for the first time (PEP 659's
specialised instructions, the method cache). A page written before the fork is shared by all supervisors; one
written after it belongs to each of them alone. So what supervisors do is done once here: about 300 KiB a pod.

The container has the node's own root, mounted in a mount namespace of its own, and a command that cannot be
executed: nothing is changed, nothing runs, and what fails here fails only here.
"""

from __future__ import annotations

import _signal as signal
import os

from cri.runtime import sockets, wire
from cri.runtime.loop import Loop
from cri.runtime.supervisor import Supervisor
from host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cri.runtime.sockets import Socket

_SANDBOX: dict[str, Any] = {
    "host_network": True,
    "host_uts": True,
    "host_ipc": True,
    "share_pid": False,
    "userns": None,
    "sysctls": {},
}
"""Of what `messages.sandbox` writes: a pod without a namespace of its own, which this process can be."""


def rehearse(container: dict[str, Any]) -> list[Any]:
    """Be a supervisor for as long as that container lives, then what this process was before.

    The caller closes the descriptors that are left.

    Args:
        container: what `messages.container` writes.

    Returns:
        the answers to create, start, snapshot and remove, for tests.
    """
    folder = syscalls.new_mount(b"tmpfs", ((b"mode", b"0700"),))  # attached nowhere: gone when it is closed
    path = b"/proc/self/fd/%d" % folder
    os.makedirs(path + b"/containers/" + container["id"].encode())
    ours, theirs = sockets.pair()
    client = _Client(ours, container)
    loop = Loop()
    loop.watch(ours.fileno(), client.answered)
    try:
        Supervisor(path, _SANDBOX, loop=loop).run(theirs)
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 0)
        ours.close()
        os.close(folder)
    return client.answers


class _Client:
    """nodelet-cri's part: the next request when the answer to the last one is here."""

    def __init__(self, sock: Socket, container: dict[str, Any]) -> None:
        name = container["id"]
        self._sock = sock
        self._frames = wire.Frames()
        self._requests: list[dict[str, Any]] = [
            {"op": "create", "spec": container},
            {"op": "start", "container": name},
            {"op": "snapshot"},
            {"op": "remove", "container": name},
            {"op": "stop"},
        ]
        self.answers: list[Any] = []

    def answered(self, _events: int) -> None:
        """An answer, or the news of the container's end; answer 0 is the supervisor's first word."""
        for value, _ in wire.receive_messages(self._sock, self._frames) or ():
            if "id" not in value:
                continue
            if value["id"]:
                self.answers.append(value)
            if self._requests:
                request = {"id": value["id"] + 1, **self._requests.pop(0)}
                wire.send_blocking(self._sock, request)
