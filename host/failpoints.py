"""Named places where a test may end or trouble this process, to see that what is left behind is repaired.

`reach("sandbox_run.ready")` stands between two steps of an operation and does nothing, unless the program was
started with `NODELET_FAILPOINT=sandbox_run.ready` in its environment:

    NAME, NAME:kill    SIGKILL to this process: a crash, an out-of-memory kill, a power cut
    NAME:error         an EIO that the step before might have had, the first time only
    NAME:stop          SIGSTOP: the process is there and does not answer, the first time only

The names are the literals in the calls; tests find them in the sources. Imports nothing that supervisors have
not got anyway.
"""

from __future__ import annotations

import errno
import os

from host.errors import InputError, from_errno

VARIABLE = "NODELET_FAILPOINT"
_KILL, _STOP = 9, 19
_ACTIONS = ("kill", "error", "stop")

_armed = ""
_action = ""


def arm(setting: str | None = None) -> None:
    """Make `reach` act; once, when a process begins its own work.

    Args:
        setting: NAME or NAME:ACTION; None for what the environment says.

    Raises:
        InputError: there is no such action.
    """
    global _armed, _action
    name, _, action = (os.environ.get(VARIABLE, "") if setting is None else setting).partition(":")
    if action and action not in _ACTIONS:
        raise InputError(f"{VARIABLE}: action {action!r} must be one of {', '.join(_ACTIONS)}")
    _armed, _action = name, action or "kill"


def environment() -> dict[str, str]:
    """The variable for a child that is given an environment of its own; empty when none is set."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


def reach(name: str) -> None:
    """Say that the step of this name is done.

    Raises:
        HostError: EIO, where a test asked for it.
    """
    if name == _armed:
        _act(name)


def _act(name: str) -> None:
    global _armed
    action = _action
    if action != "kill":
        _armed = ""
    os.write(2, f"fail point {name}: {action}\n".encode())
    if action == "error":
        raise from_errno(errno.EIO, f"fail point {name}")
    os.kill(os.getpid(), _STOP if action == "stop" else _KILL)
