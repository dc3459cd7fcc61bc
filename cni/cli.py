"""What a person asks of `nodelet-cni`; a runtime gives it no options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from cni import launcher
from cni.config import SUPPORTED_VERSIONS
from cni.handover import DEFAULT_SOCKET
from host.errors import HostError, InputError

_DESCRIPTION = """\
CNI plugin of nodelet: a veth pair to the bridge, addresses, masquerading, host ports. Container runtimes call
it with the environment and input of the CNI specification 1.1.0, section 2:

  CNI_COMMAND=ADD CNI_CONTAINERID=… CNI_NETNS=… CNI_IFNAME=… nodelet-cni < configuration

By hand there are only these options.
"""


def main(argv: Sequence[str]) -> int:
    """The exit status, after one line where something cannot be done."""
    options = _parser().parse_args(argv)
    try:
        if options.install:
            print(launcher.install(options.install, socket=options.socket))
        else:
            _serve(options.socket)
    except (HostError, InputError) as exc:
        print(f"nodelet-cni: {exc}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nodelet-cni", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    spoken = f"CNI {SUPPORTED_VERSIONS[0]} to {SUPPORTED_VERSIONS[-1]}"
    parser.add_argument("--version", action="version", version=f"nodelet-cni {version('nodelet')} ({spoken})")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--install",
        type=Path,
        metavar="DIR",
        help="write the executable into a plugin folder, for instance /opt/cni/bin",
    )
    what.add_argument(
        "--serve",
        action="store_true",
        help="do the work of the executables that --install wrote, four times as fast, until SIGTERM",
    )
    parser.add_argument(
        "--socket",
        type=Path,
        default=Path(DEFAULT_SOCKET),
        metavar="PATH",
        help="where both meet (default %(default)s)",
    )
    return parser


def _serve(socket: Path) -> None:
    import logging

    from cni.service import serve
    from host import failpoints

    failpoints.arm()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    serve(socket)
