"""The executed plugin's short way: a service that has everything loaded does the work, `nodelet-cni --serve`.

Other projects call that a thick plugin. The interpreter starts in 7 ms, and the plugin's modules take 40 ms,
ten times the work itself; so what is executed loads this module alone, hands its environment and input over
on a unix socket, and prints the answer. Where no service listens, or it lives in other namespaces or does not
stir, nothing has been handed over, and the plugin does the work itself as ever.

One connection is one command. The service says READY; the plugin sends its CNI_ variables, each ended by a
NUL, one NUL more, its input, and closes its half; the answer is the exit status, one byte, and what to print,
ended by a NUL. Nothing is imported here that the interpreter would have to read from a disk.
"""

from __future__ import annotations

import _socket
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_SOCKET = "/run/nodelet/cni.sock"
MAX_INPUT_BYTES = 4 << 20
READY = b"R"
_READY_SECONDS = 2.0
_PIECE = 1 << 16
_VARIABLES = b"CNI_"


class Broken(Exception):
    """The service took the command and ended before it had answered: how far it came is not known."""


def main(address: str) -> None:
    """What the installed executable runs: hand over, or else be the plugin.

    Args:
        address: the path of the service's socket.
    """
    if sys.argv[1:]:
        from cni.main import main as plugin

        plugin()
        return
    stdin = _read_input()
    broken = False
    try:
        answer = hand_over(address, posix.environ, stdin)
    except Broken:
        answer, broken = None, True
    if answer is None:
        from cni.main import execute

        execute(stdin, broken=broken)
        return
    status, output = answer
    while output:
        output = output[posix.write(1, output) :]
    posix._exit(status)


def hand_over(address: str, environment: Mapping[bytes, bytes], stdin: bytes) -> tuple[int, bytes] | None:
    """The exit status and what to print; None where nobody has taken the command.

    Raises:
        Broken: the service is gone, and may have done some of it.
    """
    variables = [name + b"=" + value for name, value in environment.items() if name.startswith(_VARIABLES)]
    service = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        if not variables or not _is_taken(service, address):
            return None
        return _ask(service, b"\0".join([*variables, b"", stdin]))
    finally:
        service.close()


def _is_taken(service: _socket.socket, address: str) -> bool:
    try:
        service.settimeout(_READY_SECONDS)
        service.connect(address)
        return service.recv(1) == READY
    except OSError:
        return False


def _ask(service: _socket.socket, request: bytes) -> tuple[int, bytes]:
    answer = b""
    try:
        service.settimeout(None)  # a runtime has its own limit, and ends the plugin
        service.sendall(request)
        service.shutdown(_socket.SHUT_WR)
        while piece := service.recv(_PIECE):
            answer += piece
    except OSError as exc:
        raise Broken from exc
    if not answer.endswith(b"\0"):
        raise Broken
    return answer[0], answer[1:-1]


def _read_input() -> bytes:
    """Standard input; one byte more than the limit where it is longer."""
    found = b""
    while len(found) <= MAX_INPUT_BYTES and (piece := posix.read(0, _PIECE)):
        found += piece
    return found[: MAX_INPUT_BYTES + 1]
