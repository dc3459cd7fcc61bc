"""The executable `nodelet-cni`: environment and stdin in, one JSON object on stdout, exit status 0 or 1.

See "Section 2: Execution Protocol" of the CNI specification 1.1.0. Everything else is cni.entry. A person who
runs it by hand gets `--help` and `--version`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from cni import entry, errors
from cni.config import SUPPORTED_VERSIONS
from cni.errors import CniError
from host.errors import HostError

MAX_CONFIG_BYTES = 4 << 20


HELP = """\
usage: CNI_COMMAND=ADD CNI_CONTAINERID=… CNI_NETNS=… CNI_IFNAME=… nodelet-cni < configuration

CNI plugin of nodelet: a veth pair to the bridge, addresses, masquerading, host ports. Container runtimes call
it with the environment and input of the CNI specification 1.1.0, section 2. By hand there are only these:

  --install DIR   write the executable into a plugin folder, for instance /opt/cni/bin
  --version
  --help
"""


def main() -> None:
    """Run the command that the environment names, and exit; options are for people."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(HELP, end="")
        return
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version  # not worth its time for those who do not ask

        print(f"nodelet-cni {version('nodelet')} (CNI {SUPPORTED_VERSIONS[0]} to {SUPPORTED_VERSIONS[-1]})")
        return
    if sys.argv[1:2] == ["--install"]:
        sys.exit(_install(sys.argv[2:]))
    status, output = run(os.environ, sys.stdin.buffer)
    if output:
        sys.stdout.write(json.dumps(output) + "\n")
    sys.stdout.flush()
    os._exit(status)  # everything is on disk and in the kernel: taking the interpreter apart is 5 ms


def _install(folders: Sequence[str]) -> int:
    """Write the executable; the exit status, after one line where it cannot be done."""
    from cni import launcher  # only for this

    if len(folders) != 1:
        print("nodelet-cni: --install needs one folder, for instance /opt/cni/bin", file=sys.stderr)
        return 2
    try:
        print(launcher.install(Path(folders[0])))
    except HostError as exc:
        print(f"nodelet-cni: {exc}", file=sys.stderr)
        return 1
    return 0


def run(environment: Mapping[str, str], stdin: BinaryIO) -> tuple[int, dict[str, Any]]:
    """The exit status and the object to print for one execution."""
    version = "1.1.0"
    try:
        command = environment.get("CNI_COMMAND", "")
        config = _read_config(stdin)
        version = str(config.get("cniVersion", version))
        result = entry.execute(
            command,
            config=config,
            container_id=environment.get("CNI_CONTAINERID", ""),
            netns=environment.get("CNI_NETNS", ""),
            ifname=environment.get("CNI_IFNAME", ""),
            args=parse_args(environment.get("CNI_ARGS", "")),
            path=environment.get("CNI_PATH", ""),
        )
        return 0, result
    except CniError as exc:
        return 1, exc.to_dict(version)


def parse_args(text: str) -> dict[str, str]:
    """CNI_ARGS, "K=V;K=V", as pairs; a part without '=' is refused (error 4)."""
    pairs = {}
    for part in filter(None, text.split(";")):
        key, equals, value = part.partition("=")
        if not equals:
            raise CniError(errors.INVALID_ENVIRONMENT, f"CNI_ARGS part {part[:40]!r} is not KEY=VALUE")
        pairs[key] = value
    return pairs


def _read_config(stdin: BinaryIO) -> dict[str, Any]:
    raw = stdin.read(MAX_CONFIG_BYTES + 1)
    if len(raw) > MAX_CONFIG_BYTES:
        raise CniError(errors.DECODE_FAILURE, f"configuration is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as exc:
        raise CniError(errors.DECODE_FAILURE, "configuration is not JSON", str(exc)) from exc
    if not isinstance(config, dict):
        raise CniError(errors.DECODE_FAILURE, "configuration is not a JSON object")
    return config


if __name__ == "__main__":
    main()
