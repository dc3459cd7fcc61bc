"""Stop signals: CRI's enumeration and the words image authors use, as numbers. Pure."""

from __future__ import annotations

import signal

from host.errors import InputError
from proto.cri import runtime_pb2 as pb

_ALIASES = {"SIGCLD": "SIGCHLD", "SIGIOT": "SIGABRT", "SIGPOLL": "SIGIO"}
_RTMIN, _RTMAX = 34, 64  # the kernel's SIGRTMIN + 2 reserved by glibc, as every container runtime counts


def signal_number(word: str) -> int:
    """The number of `SIGTERM`, `term`, `15`, `SIGRTMIN+3`, `RTMAX-1`.

    Raises:
        InputError: no such signal.
    """
    name = word.strip().upper()
    if name.isascii() and name.isdigit():
        number = int(name) if len(name) < 4 else 0
    else:
        name = name if name.startswith("SIG") else f"SIG{name}"
        number = _named(_ALIASES.get(name, name))
    if not 1 <= number <= _RTMAX:
        raise InputError(f"stop signal {word[:40]!r} is not a signal")
    return number


def _named(name: str) -> int:
    for base, start, sign in (("SIGRTMIN", _RTMIN, "+"), ("SIGRTMAX", _RTMAX, "-")):
        rest = name.removeprefix(base)
        if rest == name:
            continue
        if not rest:
            return start
        if rest[0] != sign or not rest[1:].isdecimal() or len(rest) > 3:
            return 0
        number = start + int(sign + rest[1:])
        return number if _RTMIN <= number <= _RTMAX else 0
    found = getattr(signal, name, None)
    return int(found) if isinstance(found, signal.Signals) else 0


def stop_signal(asked: int, image: str) -> int:
    """The signal StopContainer begins with: the pod's own, else the image's, else SIGTERM.

    Args:
        asked: a value of CRI's Signal enumeration.
        image: the image's StopSignal, or empty; one that makes no sense is not followed.
    """
    if asked != pb.RUNTIME_DEFAULT:
        word = pb.Signal.Name(asked)
        return signal_number(word.replace("PLUS", "+").replace("MINUS", "-"))
    try:
        return signal_number(image) if image else signal.SIGTERM
    except InputError:
        return signal.SIGTERM
